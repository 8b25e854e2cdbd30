"""Items must not become the text of another shell: `sh -c`, `eval`, `ssh` and others run what they are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from ppss_queue.errors import BadInput
from ppss_queue.shell_words import Word, names

_SHELLS = names("sh bash rbash dash zsh ksh mksh pdksh ash yash fish csh tcsh")
_EVALUATORS = names("eval ssh su runuser trap let parallel sem")
_WITH_C = names("flock script")
_WRAPPERS = names(
    """env nice nohup timeout sudo doas time exec command builtin ionice setsid stdbuf chrt taskset flock
    xargs find strace chronic unbuffer busybox systemd-run"""
)


def refuse_program_text(words: Sequence[Word], item: str) -> None:
    """Raise BadInput if a replacement string is in an argument that a program would run as shell text."""
    words = words[next((at for at, word in enumerate(words) if not word.assigns), 0) :]
    wrapped = bool(words) and _program_name(words[0]) in _WRAPPERS
    for at, word in enumerate(words):
        name, arguments = _program_name(word), words[at + 1 :]
        if word.opaque and not at and (text := _program_text(arguments)) and text.replaced:
            raise BadInput(
                f"{item} behind -c of a program that is not known yet could run as a command: use $ITEM"
            )
        if name in _SHELLS and (text := _program_text(arguments)) and text.replaced:
            raise BadInput(
                f"{item} in the program text of '{name} -c' could run as a command: pass it behind that text "
                f'and write "$1" for it ({name} -c \'... "$1"\' _ {item}), or use $ITEM'
            )
        if at and not wrapped:
            continue
        if name in _EVALUATORS and any(argument.replaced for argument in arguments):
            raise BadInput(
                f"{item} in an argument of '{name}' could run as a command: "
                'write "${ITEM@Q}" (in the text of -c) for the item quoted once more, '
                'or "$ITEM" if it is meant to be read as shell text'
            )
        if name in _WITH_C and any(
            argument.replaced and before.prefix.startswith("-c") for before, argument in pairwise(arguments)
        ):
            raise BadInput(f"{item} behind '{name} -c' could run as a command: use $ITEM")
        if name == "env" and any(argument.replaced for argument in _split_by_env(arguments)):
            raise BadInput(f"{item} behind 'env -S' would be split into words: leave -S out, or use $ITEM")


def _program_name(word: Word) -> str:
    """The word as the name of a program: `/usr/bin/ssh` is `ssh`, but `./ssh` is some other program."""
    folder, _, name = (word.literal or "").rpartition("/")
    return name if not folder or folder.endswith("bin") else ""


def _program_text(arguments: Sequence[Word]) -> Word | None:
    """The argument that a shell given these arguments runs as text, if any."""
    takes_text = False
    rest = iter(arguments)
    for word in rest:
        option = "".join(part for part in word.parts if isinstance(part, str))
        if option == "--":
            word = next(rest, word)
        elif len(option) > 1 and option[0] in "-+":
            takes_text |= "c" in option and not option.startswith("--")
            if option in ("--rcfile", "--init-file") or (option[1] != "-" and option[-1] in "oO"):
                next(rest, None)
            continue
        elif word.opaque:  # may be an option, or nothing at all
            continue
        return word if takes_text else None
    return None


def _split_by_env(arguments: Sequence[Word]) -> Sequence[Word]:
    for at, word in enumerate(arguments):
        if re.match(r"-[A-Za-z0]*S|--split-string", word.prefix):
            return arguments[at:]
    return ()
