"""What runs for an item equals what `bash -c` makes of the same text, for generated texts and hostile items.

The reference is made here, apart from the lexer: commands are generated in two spellings at once, one with
replacement strings and one with references to variables whose values this file works out by itself.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppss_queue.command import ItemValues, check_syntax, output_file_of, parse_command, render
from ppss_queue.errors import BadInput

EXAMPLES = int(os.environ.get("PPSS_TEST_EXAMPLES", "400"))

HELPER = r"""#!/bin/sh
printf '%s\0' "$#" "$@"
exit $(($# % 5))
"""


# -- what replacement strings mean, worked out a second time ------------------------------------------------


def _no_extension(path: str) -> str:
    return re.sub(r"(\A|/)(\.*[^./][^/]*)\.[^./]*\Z", r"\1\2", path)


def _base_name(path: str) -> str:
    found = re.search(r"([^/]*)/*\Z", path)
    assert found
    return found[1] or path[:1]


def _directory_name(path: str) -> str:
    path = re.sub(r"/+\Z", "", path) or path[:1]
    return (re.sub(r"/+[^/]*\Z", "", path) or "/") if "/" in path else "."


MEANINGS: Mapping[str, tuple[str, Callable[[ItemValues], str]]] = {
    "{}": ("R_ITEM", lambda v: v.item),
    "{.}": ("R_A", lambda v: _no_extension(v.item)),
    "{..}": ("R_B", lambda v: _no_extension(_no_extension(v.item))),
    "{/}": ("R_C", lambda v: _base_name(v.item)),
    "{//}": ("R_D", lambda v: _directory_name(v.item)),
    "{/.}": ("R_E", lambda v: _no_extension(_base_name(v.item))),
    "{/..}": ("R_F", lambda v: _no_extension(_no_extension(_base_name(v.item)))),
    "{#}": ("R_G", lambda v: str(v.seq)),
    "{%}": ("R_H", lambda v: str(v.slot)),
    "{out}": ("R_I", lambda v: v.output_dir + "/" + v.output_file),
    "{out.}": ("R_J", lambda v: v.output_dir + "/" + _no_extension(v.output_file)),
}


# -- commands in two spellings -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A piece of a command: as a user writes it, for the reference, and whether it names the item."""

    text: str
    reference: str
    names: bool = False

    def __add__(self, other: Piece) -> Piece:
        return Piece(self.text + other.text, self.reference + other.reference, self.names or other.names)


def same(text: str) -> Piece:
    return Piece(text, text, re.search(r"\$\{?#?ITEM\b|PPSS_ITEM\b", text) is not None)


def bare(string: str) -> Piece:
    return Piece(string, f'"${{{MEANINGS[string][0]}}}"', True)


def between_quotes(string: str) -> Piece:
    return Piece(string, f"${{{MEANINGS[string][0]}}}", True)


def joined(pieces: list[Piece], between: str = "") -> Piece:
    total = same("")
    for index, piece in enumerate(pieces):
        total += (same(between) if index else same("")) + piece
    return total


def quoted(pieces: list[Piece]) -> Piece:
    return same('"') + joined(pieces) + same('"')


STRINGS = sorted(MEANINGS)
PLAIN = ["a", "-x", "a=b", "1", "x.y", ":", "@", "%+,", "/", "_"]
SINGLE = ["a b", "$ITEM", "\\", "*", "`x`", "$(touch X)", '"', "\n", "é", "~", "!x", "{a,b}", "", "# ;&|<>()"]
ESCAPED = ["\\ ", "\\$", "\\\\", "\\*", "\\'", '\\"', "\\\n", "\\{}", "\\#", "\\é", "\\~"]
IN_DOUBLE = [
    "a b",
    "*",
    "~",
    "!",
    "'",
    "\\$",
    '\\"',
    "\\\\",
    "\\x",
    "\\\n",
    "{a,b}",
    ";",
    "#",
    "é",
    "{ ",
    " }",
]
REFERENCES = [
    "$ITEM/",
    "${ITEM}",
    "$OUTPUT_FILE.",
    "${OUTPUT_DIR}",
    "$PPSS_SEQ:",
    "${PPSS_SLOT}",
    "$PPSS_ITEM ",
]
EXPANDED_IN_DOUBLE = [
    *map(same, ["${ITEM##*/}", '$(argv "$ITEM")', "`argv 1`", "$HOME", "$ITEMS", "$ ", "${#ITEM}", "\\{.}"]),
    same("$(argv ") + bare("{/}") + same(' "') + between_quotes("{.}") + same('")'),
    same("$((") + between_quotes("{#}") + same(" + (1)))"),
    same('${NONE:-"') + between_quotes("{}") + same('"}'),
    same("$(case ")
    + bare("{}")
    + same(" in *.a) argv 1;; (b) argv 2;; *) argv ")
    + bare("{//}")
    + same(";; esac)"),
]
EXPANDED = [
    *map(
        same,
        ["*", "?", "~", "{a,b}", "[a]", "$HOME", "$ITEM/", "${ITEM%.*}", "$'a\\t\\'b'", "!", "^", "é", "$#"],
    ),
    *map(
        same, ["$(argv 'x)')", "`argv \\`argv z\\``", "$((1+2))", "${NONE-'}'}", '$"a b"', "${ITEM//'a'/b}"]
    ),
    same("{x,") + bare("{}") + same("}"),
    same("$(argv ") + bare("{.}") + same(" # it's\n)"),
    same("$(cat <(argv ") + bare("{}") + same("))"),
]

in_double = st.one_of(
    st.sampled_from(IN_DOUBLE).map(same),
    st.sampled_from(REFERENCES).map(same),
    st.sampled_from(STRINGS).map(between_quotes),
)
fragments = st.one_of(
    st.sampled_from(PLAIN).map(same),
    st.sampled_from(STRINGS).map(bare),
    st.sampled_from(SINGLE).map(lambda text: same(f"'{text}'")),
    st.sampled_from(ESCAPED).map(same),
    st.lists(in_double, max_size=4).map(quoted),
)
expanding = st.one_of(
    st.sampled_from(EXPANDED),
    st.lists(st.one_of(in_double, st.sampled_from(EXPANDED_IN_DOUBLE)), max_size=4).map(quoted),
)
simple_words = st.lists(fragments, min_size=1, max_size=3).map(joined)
any_words = st.lists(st.one_of(fragments, expanding), min_size=1, max_size=3).map(joined)
programs = st.sampled_from(
    ["argv"] * 12
    + ["'argv'", "ar\\gv", 'a"rg"v', "nonesuch", "printf '%s|'", "X=1 argv", "$NONE argv", "! argv"]
).map(same)
END = "\0"
"""Marks the end of a simple command: behind the last one an item may be appended."""

blanks = st.sampled_from([" ", " ", "\t ", " \\\n "])


@st.composite
def simple_commands(draw: st.DrawFn, words: st.SearchStrategy[Piece]) -> Piece:
    return joined([draw(programs), *draw(st.lists(words, min_size=1, max_size=4))], draw(blanks)) + same(END)


@dataclass(frozen=True)
class Frame:
    """Texts around commands. A `closed` one ends in something that no word can be appended to."""

    parts: tuple[str, ...]
    closed: bool = False


FRAMES = [
    Frame(("", "; ", "")),
    Frame(("", " && ", " || ", "")),
    Frame(("", " | ", "")),
    Frame(("", "\n", "\n")),
    Frame(("f() { ", "; }; f; ", "")),
    Frame(("{ ", "; }; argv | ", " 2>&1")),
    Frame(("# it's\n", "")),
    Frame(("a=(", '); argv "${a[@]}"; ', " < /dev/null")),
    Frame(("( ", " )"), closed=True),
    Frame(("if ", "; then ", "; fi"), closed=True),
    Frame(("for f in ", '; do argv "$f"; ', "; done"), closed=True),
    Frame(("case a in b) ", ";; a) ", ";; esac"), closed=True),
    Frame(("", " # it's"), closed=True),
    Frame(("cat <<'E'; ", "\nit's \"\nE\n"), closed=True),
    Frame(("x=$(", '); argv "$x"; ', " ;"), closed=True),
]


@st.composite
def framed(draw: st.DrawFn) -> tuple[Piece, bool]:
    frame = draw(st.sampled_from(FRAMES))
    total = same(frame.parts[0])
    for part in frame.parts[1:]:
        total += draw(simple_commands(any_words)) + same(part)
    return total, frame.closed


commands = st.one_of(
    st.tuples(simple_commands(simple_words), st.just(False)),
    st.tuples(simple_commands(any_words), st.just(False)),
    framed(),
)

ITEMS = [
    *[
        "a b",
        "d/ lead ",
        "new\nline\n",
        "it's",
        'say "x"',
        "$(touch X)",
        "`touch X`",
        "-rf",
        "--",
        "a;touch X",
    ],
    *[
        "back\\slash\\",
        "*",
        "?",
        "~",
        "!!",
        "{}",
        "$ITEM",
        "\udcff\udc80.x",
        "é.tar.gz",
        "/abs/.bashrc",
        "dir/",
    ],
    *[
        "//",
        "/",
        ".",
        "..",
        "a..",
        "%s%n",
        "\x01\x7f",
        "[a]",
        "{a,b}",
        "#x",
        "é/\udce9.a",
        "a[$(touch X)]",
        "",
    ],
]
items = st.one_of(
    st.sampled_from(ITEMS),
    st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"/"))),
    st.text("ab./ '\"$`\\\n*-~é\udcff", max_size=8),
)
values = st.builds(
    lambda item, seq, slot: ItemValues(item, f"shown as {item}", seq, slot, "/o u't", output_file_of(item)),
    items,
    st.integers(1, 10**6),
    st.integers(1, 64),
)


# -- the comparison ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A directory with a few files to glob, and the helper program on a PATH."""

    directory: Path
    path: str

    def run(self, argv: tuple[str, ...], variables: Mapping[str, str]) -> tuple[bytes, int]:
        """Standard output and exit code; a program that is not there is 127, as in a shell."""
        environment = {"PATH": self.path, "HOME": "/home/me", **variables}
        try:
            done = subprocess.run(
                argv,
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except FileNotFoundError:
            return b"", 127
        return done.stdout, done.returncode

    def files(self) -> set[str]:
        return {file.name for file in self.directory.iterdir()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    helper = tmp_path / "bin" / "argv"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    for name in ("a", "b c"):
        (tmp_path / "work" / name).touch()
    return Bench(tmp_path / "work", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def exported(values: ItemValues, locale: str) -> dict[str, str]:
    return {
        "LC_ALL": locale,
        "ITEM": values.item,
        "PPSS_ITEM": values.name,
        "OUTPUT_DIR": values.output_dir,
        "OUTPUT_FILE": values.output_file,
        "PPSS_SEQ": str(values.seq),
        "PPSS_SLOT": str(values.slot),
    }


def test_direct_exec_and_scripts_do_what_bash_does(bench: Bench) -> None:
    ways: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(commands, values, st.sampled_from(["C", "C.UTF-8"]))
    def compare(generated: tuple[Piece, bool], values: ItemValues, locale: str) -> None:
        piece, closed = generated
        text = piece.text.replace(END, "")
        if closed and not piece.names:
            ways["refused"] += 1
            with pytest.raises(BadInput, match="names no item"):
                parse_command(text)
            return
        command = parse_command(text)
        *before, after = piece.reference.split(END)
        reference = "".join(before) + ("" if piece.names else ' "$ITEM"') + after
        environment = exported(values, locale)
        meanings = {name: meaning(values) for name, meaning in MEANINGS.values()}
        expected = bench.run(("bash", "-c", reference), {**environment, **meanings})

        invocation = command.bind(values)
        assert bench.run(invocation.argv, {**environment, **invocation.variables}) == expected
        if locale == "C.UTF-8":
            pasted = bench.run(("bash", "-c", render(command, values)), {"LC_ALL": locale})
            assert pasted == expected
        assert bench.files() == {"a", "b c"}, "an item's text was run"
        ways["bash" if invocation.shell else "direct"] += 1
        ways["argument counts other than 0"] += expected[0][:2] not in (b"", b"0\0")

    compare()
    assert ways["direct"] > EXAMPLES // 5, ways
    assert ways["bash"] > EXAMPLES // 5, ways
    assert ways["argument counts other than 0"] > EXAMPLES // 2, ways


def test_the_syntax_check_refuses_what_bash_refuses(bench: Bench) -> None:
    answers: Counter[bool] = Counter()

    @settings(
        max_examples=EXAMPLES // 8, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(framed(), st.sampled_from(["", "", " ) ", " fi", "; do"]))
    def compare(generated: tuple[Piece, bool], fault: str) -> None:
        piece = generated[0] + same(fault)
        if not piece.names:
            return
        refused = bench.run(("bash", "-n", "-c", piece.reference.replace(END, "")), {})[1] != 0
        try:
            check_syntax(parse_command(piece.text.replace(END, "")))
        except BadInput:
            assert refused
        else:
            assert not refused
        answers[refused] += 1

    compare()
    assert answers[True] and answers[False]


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.sampled_from(STRINGS).map(bare),
                st.sampled_from(PLAIN + SINGLE + IN_DOUBLE + REFERENCES).map(same),
            ),
            max_size=4,
        ).map(joined),
        max_size=5,
    ),
    values,
)
def test_words_are_filled_in_and_otherwise_left_alone(words: list[Piece], values: ItemValues) -> None:
    bound = parse_command(["argv", *(word.text for word in words)]).bind(values)
    meanings = {f'"${{{name}}}"': meaning(values) for name, meaning in MEANINGS.values()}
    pattern = re.compile("|".join(map(re.escape, meanings)))
    expected = [pattern.sub(lambda found: meanings[found[0]], word.reference) for word in words]
    if not any("R_" in word.reference for word in words):
        expected.append(values.item)
    assert bound.argv == ("argv", *expected)
