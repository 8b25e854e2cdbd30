"""Which nodes are meant: a list of them (a file, or [nodes] in ppss.toml), and what of it -S names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ppss_queue.config import closest
from ppss_queue.errors import BadInput
from ppss_queue.nodes.spec import NodeSpec, parse_node
from ppss_queue.units import shorten

_RANGE = re.compile(r"\[([^\[\]:]*)\]")
"""An IPv6 address has colons between its brackets."""
_SENTENCE_CHARACTERS = 400
"""Of an error, which may quote a line that is not what was meant, such as a binary file."""
_NODES_AT_MOST = 10_000
"""Of one range: more is a slip."""


def read_nodes_file(path: Path) -> list[NodeSpec]:
    """A node a line, `#` begins a comment. Raises BadInput with the number of the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"there is no nodes file '{path}'. Write one: a [USER@]HOST[:PORT] a line.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise BadInput(f"the nodes file '{path}' can't be read ({reason}).") from None
    nodes = _parse((f"'{path}', line {number}", line) for number, line in enumerate(text.splitlines(), 1))
    if not nodes:
        raise BadInput(f"the nodes file '{path}' names no node. Write a [USER@]HOST[:PORT] a line.")
    return nodes


def read_nodes_table(table: Mapping[str, object], source: str) -> list[NodeSpec]:
    """[nodes] of ppss.toml: `"big1" = "slots=16 tags=gpu"`, or a table of settings. Raises BadInput."""
    lines = []
    for name, settings in table.items():
        if isinstance(settings, Mapping):
            words = [f"{key}={_text(value)}" for key, value in settings.items()]
            lines.append((f"{source}, node '{name}'", shlex.join([name, *words])))
        elif isinstance(settings, str):
            lines.append((f"{source}, node '{name}'", f"{shlex.quote(name)} {settings}"))
        else:
            raise BadInput(
                f'{source}, node \'{name}\': write its settings as text, as in "{name}" = "slots=8".'
            )
    return _parse(lines)


def choose(known: list[NodeSpec], wanted: str | None) -> list[NodeSpec]:
    """What -S means: `a,b,@gpu,node[01-40]`; names that the list does not know are hosts. None: all of the list.

    A node that is meant twice is there once, in the order of its first mention. Raises BadInput.
    """
    if wanted is None:
        return known
    by_name = {node.name: node for node in known}
    chosen: dict[str, NodeSpec] = {}
    for text in _split(wanted):
        if text.startswith("@"):
            found = [node for node in known if text == "@all" or text[1:] in node.tags]
            if not found:
                raise BadInput(f"no node has the tag '{text[1:]}'. {_tags_hint(known, text[1:])}")
        else:
            found = [by_name.get(name) or parse_node([name]) for name in _expand(text)]
        for node in found:
            chosen.setdefault(node.name, node)
    if not chosen:
        raise BadInput("-S names no node. Write names with commas between them: -S big1,me@big2")
    return list(chosen.values())


def _parse(lines: Iterable[tuple[str, str]]) -> list[NodeSpec]:
    nodes: dict[str, NodeSpec] = {}
    places: dict[str, str] = {}
    for place, line in lines:
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            for name in _expand(words[0]):
                node = parse_node([name, *words[1:]])
                if node.name in nodes:
                    raise BadInput(
                        f"node '{node.name}' is there already ({places[node.name]}). "
                        "Remove one, or give it another name=..."
                    )
                nodes[node.name], places[node.name] = node, place
        except ValueError:
            raise BadInput(f"{place}: a quote is not closed. Correct it.") from None
        except BadInput as error:
            raise BadInput(f"{place}: {shorten(str(error), _SENTENCE_CHARACTERS)}") from None
    return list(nodes.values())


def _split(text: str) -> list[str]:
    """At commas that are not between brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def _expand(text: str) -> Iterator[str]:
    """`node[01-03,7]` as node01, node02, node03, node7."""
    match = _RANGE.search(text)
    if match is None:
        yield text
        return
    for rest in _expand(text[match.end() :]):
        for number in _numbers(text, match[1]):
            yield f"{text[: match.start()]}{number}{rest}"


def _numbers(text: str, ranges: str) -> Iterator[str]:
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise BadInput(f"'{text}' has no range that can be read. Write node[01-40] or node[1,3,5-7].")
        if int(ends[1]) - int(ends[0]) >= _NODES_AT_MOST:
            raise BadInput(f"'{text}' would be more than {_NODES_AT_MOST:,} nodes. Correct the range.")
        for number in range(int(ends[0]), int(ends[1]) + 1):
            yield str(number).zfill(len(first))


def _tags_hint(known: list[NodeSpec], tag: str) -> str:
    tags = sorted({tag for node in known for tag in node.tags})
    if not tags:
        return "Tags come from a list of nodes: -n FILE, with tags=... after a node."
    close = closest(tag, tags)
    return f"Did you mean '@{close}'?" if close else f"There are: {', '.join(f'@{tag}' for tag in tags)}."


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
