"""Imports go one way: each module only imports from layers below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = [
    ["errors"],
    [
        "units",
        "resources",
        "keys",
        "model",
        "rules",
        "replacements",
        "config",
        "globs",
        "locks",
        "notes",
        "spool",
        "server_place",
    ],
    ["shell_words", "replaced_text", "program_text", "evaluated_text", "shell_lexer", "unaware_text"],
    ["address", "failures", "dial", "ssh", "resp", "lists", "walk", "server_binary"],
    ["quoting", "command", "server", "sources", "connection", "sentinels", "server_info"],
    ["durability", "scripts", "changes", "replies", "rq_form"],
    ["calls", "store"],
    ["status", "broker", "filling", "node_views"],
    ["run"],
    ["queue"],
    ["ppss_worker", "nodes"],
    ["cli"],
]
"""Lowest first. A package counts as one; modules of one layer may import each other."""

ONLY = {
    "hiredis": {"connection", "resp"},
    "paramiko": {"ssh"},
    "redis": set[str](),
    "rq": {"broker"},
    "rq_dashboard": {"broker"},
    "rich": {"cli"},
}


def _modules() -> list[Path]:
    return sorted([*(ROOT / "ppss_queue").rglob("*.py"), *(ROOT / "workers" / "ppss_worker").rglob("*.py")])


def _layer_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "workers":
        return "ppss_worker"
    return "" if parts[1] == "__init__" else parts[1]


def _imports(path: Path) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            base = tuple(node.module.split("."))
            found.update((*base, alias.name) for alias in node.names)
            assert node.level == 0, f"{path}: a relative import"
    return found


def _level(name: str) -> int:
    return next(level for level, names in enumerate(LAYERS) if name in names)


def test_every_module_has_a_layer() -> None:
    names = {_layer_name(path) for path in _modules()} - {""}
    assert names == {name for layer in LAYERS for name in layer}


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_its_own_layer_and_those_below(path: Path) -> None:
    here = _layer_name(path)
    if not here:
        return  # the package itself: names of every layer, imported when they are used
    for parts in _imports(path):
        if parts[0] == "ppss_worker":
            target = "ppss_worker"
        elif parts[0] == "ppss_queue" and len(parts) > 1 and parts[1] != "__version__":
            target = parts[1]
        else:
            continue
        assert _level(target) <= _level(here), f"{here} imports {'.'.join(parts)}"


@pytest.mark.parametrize("library", sorted(ONLY))
def test_a_library_is_imported_only_behind_its_seam(library: str) -> None:
    users = {_layer_name(path) for path in _modules() for parts in _imports(path) if parts[0] == library}
    assert users <= ONLY[library]
