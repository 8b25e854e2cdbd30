"""The words of a shell command, and those among them that mean something to the shell itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ppss_queue.replacements import Value

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(\[[^]]*\])?\+?=", re.ASCII)


def names(text: str) -> frozenset[str]:
    """The blank-separated names in a text."""
    return frozenset(text.split())


KEYWORDS = names(
    "if then else elif fi case esac for select while until do done in function time coproc { } ! [[ ]]"
)
BUILTINS = names(
    """. : [ alias bg bind break builtin caller cd command compgen complete compopt continue declare dirs
    disown echo enable eval exec exit export false fc fg getopts hash help history jobs kill let local
    logout mapfile popd printf pushd pwd read readarray readonly return set shift shopt source suspend test
    times trap true type typeset ulimit umask unalias unset wait"""
)
BEFORE_A_COMMAND = names("if then else elif while until do time { !")


@dataclass(slots=True)
class Word:
    """One word of a command. Its value is the parts, joined, unless it is `opaque`: then only bash knows."""

    start: int = 0
    raw: str = ""
    parts: list[str | Value] = field(default_factory=list)
    opaque: bool = False
    replaced: bool = False
    """Holds a replacement string."""
    untrusted: bool = False
    """Holds one that is not a number of ours."""

    @property
    def literal(self) -> str | None:
        """The value if it is the same for every item."""
        texts = [part for part in self.parts if isinstance(part, str)]
        return None if self.opaque or len(texts) < len(self.parts) else "".join(texts)

    @property
    def prefix(self) -> str:
        """The literal text that it begins with."""
        return self.parts[0] if self.parts and isinstance(self.parts[0], str) else ""

    def add(self, text: str) -> None:
        """Put more literal text at the end."""
        if self.parts and isinstance(last := self.parts[-1], str):
            self.parts[-1] = last + text
        else:
            self.parts.append(text)

    @property
    def assigns(self) -> bool:
        """Is an assignment if it stands before a command."""
        return _ASSIGNMENT.match(self.raw) is not None


SimpleCommand = list[Word]
