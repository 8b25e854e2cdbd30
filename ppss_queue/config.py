"""`ppss.toml` in the current directory: defaults for options, below the environment and the command line.

Top-level keys are option names without the dashes, and count for every verb that has the option; a table
`[run]` counts for that verb only, and goes first. `[nodes]` is a list of nodes: see nodes/listing.py.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from ppss_queue.errors import BadInput

FILE_NAME = "ppss.toml"
NODES = "nodes"
"""The table of nodes, not of options; no table: the option of that name."""
_SIMILARITY = 0.75
"""difflib's ratio; at its usual 0.6, `bogus` is `logs`."""


def read(directory: Path, options: Mapping[str, Collection[str]]) -> dict[str, dict[str, object]]:
    """Settings per verb; `options` gives the names that each verb knows. No file: nothing.

    Raises BadInput for a file that is no TOML, an unknown option, or a file of another user: it could bring a
    command that this user never wrote.
    """
    path = directory / FILE_NAME
    values = _values(path)
    found: dict[str, dict[str, object]] = {verb: {} for verb in options}
    known = {name for names in options.values() for name in names}
    for key, value in values.items():
        if isinstance(value, dict):
            if key == NODES:
                continue
            if key not in options:
                raise BadInput(
                    f"'{path}' has a table [{key}], but there is no such verb.{_hint(key, options)}"
                )
            for name, inner in value.items():
                _set(found[key], path, name, inner, options[key])
            continue
        if key not in known:
            raise BadInput(f"'{path}' sets '{key}', which is no option.{_hint(key, known)}")
        for verb, names in options.items():
            own = values.get(verb)
            if key in names and not (isinstance(own, dict) and key in own):
                _set(found[verb], path, key, value, names)
    return found


def read_nodes(directory: Path) -> dict[str, object]:
    """The table [nodes]; empty if there is none. Raises BadInput."""
    table = _values(directory / FILE_NAME).get(NODES)
    return table if isinstance(table, dict) else {}


def _values(path: Path) -> dict[str, object]:
    """Nothing if there is no file."""
    try:
        owner = path.stat().st_uid
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"'{path}' can't be read ({error}). Mend or remove it.") from None
    if owner not in (os.getuid(), 0):
        raise BadInput(f"'{path}' belongs to another user, who could run commands as you. Copy or remove it.")
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"'{path}' is no valid TOML: {error}.") from None


def _set(found: dict[str, object], path: Path, name: str, value: object, names: Collection[str]) -> None:
    if name not in names:
        raise BadInput(f"'{path}' sets '{name}', which is no option there.{_hint(name, names)}")
    found[name] = value


def closest(name: str, names: Collection[str]) -> str | None:
    """What was probably meant: the most similar name, if it is a slip of a letter or two away."""
    import difflib

    return next(iter(difflib.get_close_matches(name, names, 1, _SIMILARITY)), None)


def _hint(name: str, names: Collection[str]) -> str:
    close = closest(name, names)
    return f" Did you mean '{close}'?" if close else ""
