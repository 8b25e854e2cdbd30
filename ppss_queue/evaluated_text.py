"""Items must not be evaluated by bash itself: it runs the `$(...)` of a subscript wherever it expects a number or
the name of a variable, as in `[[ X -eq 1 ]]` or `read X`, for an X of `a[$(command)]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ppss_queue.errors import BadInput
from ppss_queue.shell_words import SimpleCommand, Word, names

_COMPARISONS = names("-eq -ne -lt -le -gt -ge")
_TAKE_NAMES = names("read mapfile readarray unset getopts compgen complete bind alias")
_DECLARE = names("declare typeset local export readonly")
_EVALUATING_ATTRIBUTES = re.compile(r"[-+]\w*[inaA]")
_OPEN_SUBSCRIPT = re.compile(r"\w*\[[^\]]*\Z", re.ASCII)
_RUN_LATER = re.compile(r"(?:BASH_ENV|ENV|PS4|PROMPT_COMMAND)\+?=")


def refuse_evaluated(commands: Iterable[SimpleCommand], item: str) -> None:
    """Raise BadInput if a replacement string, but a number of ours, stands where bash would evaluate it."""
    commands = list(commands)
    integers = any(_makes_integers(words) for words in commands)
    for words in commands:
        assignments, rest = _parts(words)
        for word in assignments:
            if word.untrusted and (integers or _in_subscript(word) or _RUN_LATER.match(word.raw)):
                raise _refused(item, f"in '{word.raw}'")
        if rest:
            _check_builtin(rest, item)
            _check_tests(rest, item)


def _parts(words: SimpleCommand) -> tuple[Sequence[Word], Sequence[Word]]:
    """The assignments before a command, and the command."""
    first = next(
        (at for at, word in enumerate(words) if not word.assigns and not _in_subscript(word)), len(words)
    )
    return words[:first], words[first:]


def _makes_integers(words: SimpleCommand) -> bool:
    """Whether assignments of plain variables may be evaluated from here on."""
    return any(word.literal in _DECLARE for word in words[:1]) and any(
        re.match(r"[-+]\w*[in]", word.prefix) for word in words
    )


def _check_builtin(words: Sequence[Word], item: str) -> None:
    name, arguments = words[0].literal, words[1:]
    if name in ("builtin", "command"):
        return _check_builtin(arguments, item) if arguments else None
    if name in _DECLARE:
        evaluates = any(_EVALUATING_ATTRIBUTES.match(word.prefix) for word in arguments)
        bad = [word for word in arguments if word.untrusted and (evaluates or "=" not in _before_item(word))]
    elif name in _TAKE_NAMES:
        bad = [word for word in arguments if word.untrusted]
    elif name in ("printf", "wait"):
        option = "-v" if name == "printf" else "-p"
        bad = [
            word for at, word in enumerate(arguments) if word.untrusted and _follows(arguments, at, option)
        ]
    else:
        bad = []
    if bad:
        raise _refused(item, f"in an argument of '{name}'")
    return None


def _check_tests(words: Sequence[Word], item: str) -> None:
    """`[[ ... ]]`, of which `&&` and `||` may have left a part; `[` and `test` evaluate only what follows -v."""
    first = words[0].raw  # brackets could be a pattern, so they are no literal
    for at, word in enumerate(words):
        if not word.untrusted:
            continue
        around = {other.literal for other in words[max(0, at - 1) : at + 2]}
        compared = first not in ("[", "test") and not around.isdisjoint(_COMPARISONS)
        looked_up = first in ("[[", "[", "test", "-v", "-R") and (
            _follows(words, at, "-v") or _follows(words, at, "-R")
        )
        if compared or looked_up:
            raise _refused(item, "in a test")


def _follows(words: Sequence[Word], at: int, option: str) -> bool:
    return (at > 0 and words[at - 1].literal == option) or words[at].prefix.startswith(option)


def _before_item(word: Word) -> str:
    """The text of a word up to the first thing in it that is not literal."""
    return "" if word.opaque and not word.prefix else word.prefix


def _in_subscript(word: Word) -> bool:
    return word.untrusted and _OPEN_SUBSCRIPT.match(word.prefix) is not None


def _refused(item: str, place: str) -> BadInput:
    return BadInput(
        f"{item} {place} would be evaluated by bash, which runs what is in it: "
        "use $ITEM there if it is surely a number or a name"
    )
