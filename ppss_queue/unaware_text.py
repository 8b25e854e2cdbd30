"""Texts that can't tell whether a bash of their own runs them, or a fork of one that has just been started.

What can tell is a matter of bash's inner state (`$$`, `$BASHPID`, job control, traps) and of a few places where
`bash -c` treats the end or the failure of its text in a way of its own. So this is a list of what is harmless:
whatever is not on it is taken to tell.
"""

from __future__ import annotations

import re

from ppss_queue.shell_lexer import ShellText
from ppss_queue.shell_words import BUILTINS, KEYWORDS, SimpleCommand, Word, names

_HARMLESS = names(": true false echo printf test [ [[ cd pwd umask read exit")
_STRUCTURE = names("for fi done }")
_SET_OPTIONS = frozenset({"-e", "+e", "-f", "-o pipefail", "-eo pipefail", "-e -o pipefail"})
_LOOKS_AT_PROCESSES = names("ps pgrep pkill killall pidof pstree top htop lsof fuser strace gdb kill busybox")

_TELLING = re.compile(
    r"[\n`]"  # after an error bash goes on in the next line of its text, but not in that of `eval`
    r"|(?<![&<>])&(?![&>])|\|&"  # jobs: the successor is one too
    r"|\(\(|\$\[|[<>]\("  # arithmetic looks up what a value names
    r'|\$[$!_-]|\$"'
    r"|\$\{(?!#?[A-Za-z]\w*\}|[A-Za-z]\w*(?:%%?|\#\#?|//?|:?[-+=]|\^\^?|,,?)[^{}`$]*\})"
    r"|(?<![A-Za-z0-9])(?:BASH\w*|COMP_\w*|COPROC|DIRSTACK|E?UID|EPOCH\w*|FUNCNAME|HIST\w*|IGNOREEOF|LINENO|POSIX\w*"
    r"|PPID|PPSS_H_\w*|PROMPT_\w*|PS[0-4]|S?RANDOM|SECONDS|SHELLOPTS|SHLVL|TIMEFORMAT|TMOUT|_)(?!\w)"
    r"|/proc(?!\w)|/dev/(?:fd|tty)|extglob",
    re.ASCII,
)
_EVALUATING_ASSIGNMENT = re.compile(r"\w+\[|\w+\+?=\(", re.ASCII)
_COMPARISONS = names("-eq -ne -lt -le -gt -ge -v -R -o -t")
_REDIRECTED = re.compile(r"\s*(?:[0-9]*[<>]|&>)")


def is_unaware(text: ShellText, source: str) -> bool:
    """Whether all that `source`, read as `text`, can do and print is the same in a fork of a fresh bash."""
    if _TELLING.search(source) or not all(map(_is_harmless, text.commands)):
        return False
    return not text.outer or not _may_replace_bash(text.outer, source)


def _is_harmless(words: SimpleCommand) -> bool:
    command = _without_assignments(words)
    if any(_EVALUATING_ASSIGNMENT.match(word.raw) for word in words[: len(words) - len(command)]):
        return False
    if not command:
        return True
    first, arguments = command[0], command[1:]
    if first.raw in _STRUCTURE:
        return len(command) == len(words)
    if first.raw == "set":
        return " ".join(word.raw for word in arguments) in _SET_OPTIONS
    if first.raw == "export":
        return bool(arguments) and all(word.assigns and "[" not in word.raw for word in arguments)
    if first.raw == "printf":  # -v assigns, and %(...)T knows when the shell was started
        form = arguments[0].literal if arguments else None
        return form is not None and not form.startswith("-") and "%(" not in form
    if first.raw == "[[":
        return not any(word.raw in _COMPARISONS for word in arguments)
    return first.raw in _HARMLESS or _is_program(first)


def _is_program(word: Word) -> bool:
    name = word.literal
    if not name or name in KEYWORDS or name in BUILTINS or name.startswith("%"):
        return False
    return name.rpartition("/")[2] not in _LOOKS_AT_PROCESSES


def _may_replace_bash(commands: list[SimpleCommand], source: str) -> bool:
    """Whether `bash -c` executes the last command in its own place, so that a signal which kills it kills bash."""
    last = commands[-1]
    command = _without_assignments(last)
    if not command or command[0].raw in _HARMLESS or command[0].raw in _STRUCTURE | {"set", "export"}:
        return False
    if _REDIRECTED.match(source, _end(last)):
        return False
    before = source[_end(commands[-2]) if len(commands) > 1 else 0 : last[0].start].rstrip()
    return not before.endswith("|") or before.endswith("||")


def _end(words: SimpleCommand) -> int:
    return words[-1].start + len(words[-1].raw)


def _without_assignments(words: SimpleCommand) -> SimpleCommand:
    first = next((at for at, word in enumerate(words) if not word.assigns), len(words))
    return words[first:]
