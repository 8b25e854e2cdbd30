"""The command: what it names, how it is read, what is refused, and what runs for an item."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ppss_queue.command import (
    Command,
    ItemValues,
    check_program,
    check_syntax,
    output_file_of,
    parse_command,
    render,
)
from ppss_queue.errors import BadInput, CommandNotFound
from ppss_queue.quoting import shell_quoted


def values(item: str = "dir/a b.tar.gz", output_dir: str = "/out") -> ItemValues:
    return ItemValues(
        item=item, name=item, seq=7, slot=2, output_dir=output_dir, output_file=output_file_of(item)
    )


def argv(command: str | list[str], item: str = "dir/a b.tar.gz", **options: str) -> tuple[str, ...]:
    bound = parse_command(command, **options).bind(values(item))
    assert not bound.shell and not bound.variables
    return bound.argv


def script(text: str) -> str:
    command = parse_command(text)
    assert command.shell, f"{text} went the direct way"
    return command.bind(values()).argv[-1]


def environment_of(bound_values: ItemValues) -> dict[str, str]:
    """What the worker exports, as far as these tests need it."""
    return {
        "PATH": os.environ["PATH"],
        "ITEM": bound_values.item,
        "PPSS_ITEM": bound_values.name,
        "OUTPUT_DIR": bound_values.output_dir,
        "OUTPUT_FILE": bound_values.output_file,
        "PPSS_SEQ": str(bound_values.seq),
        "PPSS_SLOT": str(bound_values.slot),
    }


def printed(command: Command, item: str, directory: Path) -> bytes:
    """What the command prints for an item when it is executed in this directory."""
    invocation = command.bind(values(item))
    done = subprocess.run(
        invocation.argv,
        env={**environment_of(values(item)), **invocation.variables},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return done.stdout


# -- replacement strings -----------------------------------------------------------------------------------

MEANINGS = [
    ("{}", "d.x/a.tar.gz", "d.x/a.tar.gz"),
    ("{.}", "d.x/a.tar.gz", "d.x/a.tar"),
    ("{.}", "d.x/a", "d.x/a"),
    ("{.}", "d.x/.bashrc", "d.x/.bashrc"),
    ("{.}", ".bashrc.bak", ".bashrc"),
    ("{.}", "a.", "a"),
    ("{.}", "..", ".."),
    ("{.}", "d.x/", "d.x/"),
    ("{..}", "d.x/a.tar.gz", "d.x/a"),
    ("{..}", "d.x/a.gz", "d.x/a"),
    ("{/}", "d.x/a.tar.gz", "a.tar.gz"),
    ("{/}", "plain", "plain"),
    ("{/}", "d/e/", "e"),
    ("{/}", "/", "/"),
    ("{/}", "", ""),
    ("{//}", "d.x/a.tar.gz", "d.x"),
    ("{//}", "plain", "."),
    ("{//}", "/top", "/"),
    ("{//}", "d//a", "d"),
    ("{//}", "d/e/", "d"),
    ("{//}", "/", "/"),
    ("{/.}", "d.x/a.tar.gz", "a.tar"),
    ("{/.}", "d.x/.bashrc", ".bashrc"),
    ("{/..}", "d.x/a.tar.gz", "a"),
    ("{#}", "x", "7"),
    ("{%}", "x", "2"),
    ("{out}", "d/a b.wav", "/out/a b.wav"),
    ("{out.}", "d/a b.wav", "/out/a b"),
    ("{out.}", "d/.bashrc", "/out/.bashrc"),
]


@pytest.mark.parametrize(("string", "item", "expected"), MEANINGS)
def test_a_replacement_string_means_the_same_as_a_word_in_direct_text_and_in_a_script(
    string: str, item: str, expected: str, tmp_path: Path
) -> None:
    assert argv(["prog", f"x{string}y"], item) == ("prog", f"x{expected}y")
    assert argv(f'prog x{string}y "{string}"', item) == ("prog", f"x{expected}y", expected)
    in_script = parse_command(f"printf '%s\\n' x{string}y \"{string}\"; :")
    assert printed(in_script, item, tmp_path) == f"x{expected}y\n{expected}\n".encode()


def test_a_script_gets_only_the_variables_that_it_uses() -> None:
    assert parse_command("echo {} {.} {out}").bind(values()).variables == {"PPSS_R_NOEXT": "dir/a b.tar"}
    assert parse_command('echo "$ITEM"').bind(values()).variables == {}


def test_another_word_may_stand_for_the_item_and_the_others_stay() -> None:
    command = parse_command("prog xITy {/} '{}'", replacement="IT")
    assert command.bind(values("a/b")).argv == ("prog", "xa/by", "b", "{}")
    assert argv(["prog", "@", "{}", "{.}"], "a.b", replacement="@") == ("prog", "a.b", "{}", "a")
    assert argv(["prog", "{", "{.}"], "a.b", replacement="{") == ("prog", "a.b", "a"), (
        "the longest string counts"
    )


@pytest.mark.parametrize("replacement", ["", "a b", "'", "$x", "{%}", "\\", ";", "a\nb"])
def test_a_replacement_string_that_the_shell_would_read_is_refused(replacement: str) -> None:
    with pytest.raises(BadInput, match="-I"):
        parse_command("prog", replacement=replacement)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b c", "b c"),
        ("a/b/", "b"),
        ("", "item"),
        (".", "item"),
        ("x/..", "item"),
        ("///", "item"),
        ("a\0b", "ab"),
        ("-x", "-x"),
        ("x" * 300, "x" * 200),
        ("x" + "é" * 150, "x" + "é" * 99),
        ("\udcff" * 300, "\udcff" * 200),
    ],
)
def test_output_file_is_the_last_component_cut_at_a_whole_character(text: str, expected: str) -> None:
    assert output_file_of(text) == expected
    assert len(os.fsencode(output_file_of(text))) <= 200


# -- words -------------------------------------------------------------------------------------------------


def test_words_are_executed_as_they_are() -> None:
    assert argv(["prog", "a b", "$ITEM", "*", "", "{}"]) == (
        "prog",
        "a b",
        "$ITEM",
        "*",
        "",
        "dir/a b.tar.gz",
    )


def test_words_that_name_no_item_get_it_as_the_last() -> None:
    assert argv(["prog", "$ITEM"], "-x") == ("prog", "$ITEM", "-x")
    assert argv(["prog", "{#}"]) == ("prog", "7")


def test_the_item_may_be_the_program() -> None:
    assert argv(["{}", "-v"], "./x") == ("./x", "-v")
    assert parse_command(["{}", "-v"]).program is None


@pytest.mark.parametrize("words", [[], [""], ["", "x"]])
def test_no_words_are_no_command(words: list[str]) -> None:
    with pytest.raises(BadInput, match="empty"):
        parse_command(words)


# -- text: direct or bash ----------------------------------------------------------------------------------

DIRECT = [
    ("flac -8 {} -o {.}.flac", ("flac", "-8", "a b.wav", "-o", "a b.flac")),
    ("prog", ("prog", "a b.wav")),
    ('  prog "$ITEM"\n', ("prog", "a b.wav")),
    ('prog "${ITEM}.x" "$OUTPUT_DIR/$OUTPUT_FILE"', ("prog", "a b.wav.x", "/out/a b.wav")),
    ('prog "$PPSS_ITEM" "$PPSS_SEQ" "${PPSS_SLOT}"', ("prog", "a b.wav", "7", "2")),
    ("prog 'a $x \"b\"' {}", ("prog", 'a $x "b"', "a b.wav")),
    ("prog '' \"\" {}", ("prog", "", "", "a b.wav")),
    ('prog "a\\$b\\"c\\\\d\\e" {}', ("prog", 'a$b"c\\d\\e', "a b.wav")),
    ("prog a\\ b \\; {}", ("prog", "a b", ";", "a b.wav")),
    ('prog \\\n  a\\\nb "a\\\nb" {}', ("prog", "ab", "ab", "a b.wav")),
    ("\\prog x=1 a:b,c@d%e+f {}", ("prog", "x=1", "a:b,c@d%e+f", "a b.wav")),
    ("'my prog' {}", ("my prog", "a b.wav")),
    ("awk '{print $1}'", ("awk", "{print $1}", "a b.wav")),
    ('prog "{}{/}"x{}', ("prog", "a b.wava b.wavxa b.wav")),
    ('prog "* ~ {a,b} ! # ; é" {}', ("prog", "* ~ {a,b} ! # ; é", "a b.wav")),
    ("bash script.sh {}", ("bash", "script.sh", "a b.wav")),
]


@pytest.mark.parametrize(("text", "expected"), DIRECT)
def test_plain_and_quoted_words_need_no_shell(text: str, expected: tuple[str, ...]) -> None:
    assert argv(text, "a b.wav") == expected


@pytest.mark.parametrize(
    "text",
    [
        "prog $ITEM",
        "prog ${ITEM}",
        'prog "${ITEM%.wav}"',
        'prog "$ITEMS" {}',
        'prog "$HOME" {}',
        'prog "$PPSS_RUN" {}',
        "prog *.x {}",
        "prog a?b {}",
        "prog [ab] {}",
        "prog ~/x {}",
        "prog a=~ {}",
        "prog {a,b} {}",
        "prog é {}",
        "prog ! {}",
        "prog {} > x",
        "prog {} 2>&1",
        "prog {} | cat",
        "prog {} &",
        "prog {}; prog",
        "prog {}\nprog",
        "prog {} # note",
        "prog $'a' {}",
        'prog $"a" {}',
        "prog $(date) {}",
        "prog `date` {}",
        "prog <(date) {}",
        "(prog {})",
        "{ prog {}; }",
        "a=1 prog {}",
        "a=1",
        "a+=1 prog {}",
        "a[0]=1 prog {}",
        "cd {}",
        "'cd' {}",
        "[ -f {} ]",
        "if true; then prog {}; fi",
        "time prog {}",
        "! prog {}",
        "fun {}",
        "*prog {}",
        "$prog {}",
        "{} x",
        "%1 {}",
        '"" {}',
    ],
)
def test_whatever_bash_would_expand_or_do_itself_goes_to_bash(text: str) -> None:
    text = text if "ITEM" in text or "{}" in text else text + "; prog {}"
    assert parse_command(text, functions=["fun"]).shell


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo x{}y", 'echo x"${ITEM}"y'),
        ('echo "x{}y"', 'echo "x${ITEM}y"'),
        ('echo "$(cat {} "{/}")"', 'echo "$(cat "${ITEM}" "${PPSS_R_BASE}")"'),
        ("x={.}; :", 'x="${PPSS_R_NOEXT}"; :'),
        ("cat < {} > {.}.x", 'cat < "${ITEM}" > "${PPSS_R_NOEXT}".x'),
        ("echo {a,{}} {a,b}", 'echo {a,"${ITEM}"} {a,b}'),
        ("echo \\{} {}", 'echo \\{} "${ITEM}"'),
        ('echo "\\{}" {}', 'echo "\\{}" "${ITEM}"'),
        ("echo ${#} $$ {}", 'echo ${#} $$ "${ITEM}"'),
        ("echo $x{}", 'echo $x"${ITEM}"'),
        ("echo $((x)){}", 'echo $((x))"${ITEM}"'),
        ("echo $(( {#} + 1 )) $[{%}]", "echo $(( ${PPSS_SEQ} + 1 )) $[${PPSS_SLOT}]"),
        ('echo "${x:-"{}"}"', 'echo "${x:-"${ITEM}"}"'),
        ("echo \"${x%'}'}\" {}", 'echo "${x%\'}\'}" "${ITEM}"'),
        ("echo ${x:-$(cat {})}", 'echo ${x:-$(cat "${ITEM}")}'),
        ("diff <(sort {}) {/}", 'diff <(sort "${ITEM}") "${PPSS_R_BASE}"'),
        ("a=(x {}); f() { echo {}; }; f", 'a=(x "${ITEM}"); f() { echo "${ITEM}"; }; f'),
        ("echo don\\'t {} # don't", "echo don\\'t \"${ITEM}\" # don't"),
        ("echo a#b {}", 'echo a#b "${ITEM}"'),
        ("cat <<E\nit's\nE\necho {}", 'cat <<E\nit\'s\nE\necho "${ITEM}"'),
        ("cat <<-'E' {}\n'\n\tE\necho {}", 'cat <<-\'E\' "${ITEM}"\n\'\n\tE\necho "${ITEM}"'),
        ("cat <<< {}", 'cat <<< "${ITEM}"'),
        ("cat <<E $(echo\n) {}\nit's\nE", 'cat <<E $(echo\n) "${ITEM}"\nit\'s\nE'),
        ("(cat <<E\nit's\nE\n); echo {}", '(cat <<E\nit\'s\nE\n); echo "${ITEM}"'),
        (
            "x=$(case {} in *.a) echo 1;; (b) echo 2;; esac); echo {}",
            'x=$(case "${ITEM}" in *.a) echo 1;; (b) echo 2;; esac); echo "${ITEM}"',
        ),
        ('echo "$(case x in a) cat {/};; esac)"', 'echo "$(case x in a) cat "${PPSS_R_BASE}";; esac)"'),
        ("prog {} &> {.}", 'prog "${ITEM}" &> "${PPSS_R_NOEXT}"'),
    ],
)
def test_a_replacement_string_in_a_script_becomes_a_quoted_reference(text: str, expected: str) -> None:
    assert script(text) == expected
    check_syntax(parse_command(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("echo '{}'", r"'\{\}' inside single quotes .* double quotes, .* with -I$"),
        ("find . -exec grep x '{}' \\;", r"with -I$"),
        ("sed 's/{.}/x/' f", r"'\{\.\}' inside single quotes .* as text: '\{''\.\}'"),
        ("echo $'a{}'", "single quotes"),
        ("cat <<E\nx {}\nE", r"here-document.*write \$ITEM"),
        ("cat <<'E'\nx {}\nE", "here-document"),
        ("cat <<{}\nx", "end mark"),
        ("prog x # {}", "in a comment"),
        ("echo `cat {}`", r"backticks.*\$\(\.\.\.\)"),
        ('echo "`cat {}`"', "backticks"),
        ("echo ${x:-{}}", r"inside \$\{\.\.\.\}"),
        ('echo "${x/{.}/y}"', r"inside \$\{\.\.\.\}"),
        ("echo ${}", r"after \$"),
        ("echo $(( {} + 1 ))", r"\$\(\( \.\.\. \)\) is evaluated"),
        ("(( {} > 1 )) && prog", r"\(\( \.\.\. \)\) is evaluated"),
    ],
)
def test_a_replacement_string_that_cannot_be_replaced_is_refused_with_the_fix(
    text: str, sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence) as refused:
        parse_command(text)
    assert "\n" not in str(refused.value)


def test_strings_split_by_quotes_stay_text() -> None:
    assert argv("sed 's/{''.}/x/' {}", "f") == ("sed", "s/{.}/x/", "f")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('echo "a', r"double quote .* never closed, from here on: '\"a'"),
        ("echo 'a", "single quote .* never closed"),
        ("echo $'a", "never closed"),
        ("echo `a", "backtick .* never closed"),
        ("echo ${a", r"'\$\{' .* never closed"),
        ('echo "$(a"', "double quote .* never closed"),
        ("echo a\\", "backslash"),
        ("", "empty"),
        (" \n", "empty"),
        ("a\0b", "NUL"),
        ("$(" * 2000, "nested too deeply"),
    ],
)
def test_a_text_that_does_not_end_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        parse_command(text)


# -- commands that name no item ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cd /x && prog", 'cd /x && prog "${ITEM}"'),
        ("a | b -c", 'a | b -c "${ITEM}"'),
        ("prog > log", 'prog > log "${ITEM}"'),
        ("prog 2>&1", 'prog 2>&1 "${ITEM}"'),
        ("a\nb\n\n", 'a\nb "${ITEM}"\n\n'),
        ("prog $x\\ ", 'prog $x\\  "${ITEM}"'),
        ("x=1 prog", 'x=1 prog "${ITEM}"'),
        ("prog \\$ITEMS $ITEMS", 'prog \\$ITEMS $ITEMS "${ITEM}"'),
        ('prog "$OUTPUT_FILE"; prog', 'prog "$OUTPUT_FILE"; prog "${ITEM}"'),
        ("# for each $ITEM\nprog *", '# for each $ITEM\nprog * "${ITEM}"'),
        ("test -s", 'test -s "${ITEM}"'),
        ("! prog", '! prog "${ITEM}"'),
    ],
)
def test_the_item_is_appended_to_the_last_command(text: str, expected: str) -> None:
    assert script(text) == expected
    check_syntax(parse_command(text))


@pytest.mark.parametrize(
    "text",
    [
        "echo ${ITEM%.wav}",
        "echo ${#ITEM}",
        "sh -c 'echo \"$ITEM\"'",
        "echo $((ITEM * 2))",
        "(( ITEM > 2 )) && prog",
        "printenv PPSS_ITEM; :",
        "prog {#}; :",
        "cat <<E\n$ITEM\nE",
    ],
)
def test_a_command_that_names_the_item_gets_nothing_appended(text: str) -> None:
    command = parse_command(text)
    bound = command.bind(values())
    assert bound.argv[-1].replace("${PPSS_SEQ}", "{#}").replace('"{#}"', "{#}") == text or not command.shell
    assert "dir/a b.tar.gz" not in bound.argv


@pytest.mark.parametrize(
    "text",
    [
        "prog # note",
        "prog;",
        "prog &",
        "prog |",
        "prog &&",
        "prog >",
        "prog <",
        "(prog)",
        "{ prog; }",
        "for x in 1 2; do prog; done",
        "for x in 1 2; do prog; done > log",
        "if a; then b; fi",
        "case $x in a) b;; esac",
        "f() { prog; }",
        "[[ -f x ]]",
        "[ -f x ]",
        "(( 1 + 1 ))",
        "x=1",
        "x=1 y=(a b)",
        "cat <<E\nx\nE",
        "# nothing else",
        "if a; then",
    ],
)
def test_where_nothing_can_be_appended_the_sentence_says_so(text: str) -> None:
    with pytest.raises(BadInput, match=r'names no item.* say where the item goes with "\$ITEM" or \{\}'):
        parse_command(text)


# -- items as program text ---------------------------------------------------------------------------------

PROGRAM_TEXT = [
    ["bash", "-c", "echo {}"],
    ["sh", "-c", "{}"],
    ["sh", "-c"],
    ["/bin/dash", "-ec", "x{.}y"],
    ["bash", "-euo", "pipefail", "-c", "x {}"],
    ["bash", "-c", "--", "x {}"],
    ["bash", "-c", "-e", "x {}"],
    ["env", "A=1", "bash", "-c", "echo {}"],
    ["nice", "-n", "5", "timeout", "3", "zsh", "-c", "echo {}"],
    ["find", ".", "-exec", "sh", "-c", "cat {}", ";"],
    ["ssh", "host", "cat {}"],
    ["ssh", "host", "cat"],
    ["nohup", "/usr/bin/ssh", "host", "cat", "{}"],
    ["sudo", "-u", "bob", "su", "-c", "{}"],
    ["eval", "echo", "{#}{}"],
    ["trap", "echo {}", "EXIT"],
    ["env", "-S", "bash -c {}"],
    ["env", "-iS", "prog", "{}"],
    ["nice", "env", "--split-string=prog {}"],
]


@pytest.mark.parametrize("words", PROGRAM_TEXT)
def test_an_item_in_the_program_text_of_another_shell_is_refused_as_words_and_as_text(
    words: list[str],
) -> None:
    with pytest.raises(BadInput, match=r"run as a command|split into words"):
        parse_command(words)
    text = " ".join(f'"{word}"' for word in words)
    for form in (text, f"true && {text}", f'x="$({text})"', f"A=1 {text}", f"if {text}; then :; fi"):
        if any("{" in word for word in words) or form == text:
            with pytest.raises(BadInput, match=r"run as a command|split into words"):
                parse_command(form)


@pytest.mark.parametrize(
    "words",
    [
        ["bash", "-c", 'echo "$1"', "_", "{}"],
        ["bash", "-c", "echo", "_"],
        ["bash", "script.sh", "{}"],
        ["bash", "-x", "{}"],
        ["bash", "-s", "{}"],
        ["grep", "-c", "bash", "{}"],
        ["cp", "{}", "ssh"],
        ["cp", "ssh", "{}"],
        ["./ssh", "{}"],
        ["env", "A={}", "prog"],
        ["sudo", "cp", "/etc/ssh", "{}"],
    ],
)
def test_an_item_beside_the_program_text_is_fine(words: list[str]) -> None:
    assert parse_command(words).bind(values()).argv[0] == words[0]
    quoted = " ".join("'" + word + "'" if "{" not in word else word for word in words)
    parse_command(quoted)


# -- what a command tells about itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ('prog "$ITEM" "$OUTPUT_DIR/x"', True),
        ("prog {} ${OUTPUT_DIR}; :", True),
        ("prog {} {out}", True),
        ("prog {} {out.}.x; :", True),
        (["prog", "{out}"], True),
        (["sh", "-c", 'cp "$1" "$OUTPUT_DIR"', "_", "{}"], True),
        ('prog "$ITEM" "$OUTPUT_FILE"', False),
        ("prog {} $OUTPUT_DIRECTORY", False),
        ("prog {} # not $OUTPUT_DIR\n", False),
        (["prog", "{}"], False),
    ],
)
def test_a_command_knows_whether_it_needs_an_output_directory(command: str | list[str], needed: bool) -> None:
    assert parse_command(command).needs_output is needed


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("prog {}", "prog"),
        ("'my prog' {} | cat", "my prog"),
        ("./prog $ITEM", "./prog"),
        (["prog", "x"], "prog"),
        (["cd"], "cd"),
        ("~/prog {}", None),
        ("$prog {}", None),
        ("p* {}", None),
        ("cd {}", None),
        ("fun {}", None),
        ("a=1 prog {}", None),
        ("if prog {}; then :; fi", None),
        ("if i {}; then :; fi", None),
        ("(prog {})", None),
        ("f() { prog {}; }; f", None),
        ("$(prog {})", None),
    ],
)
def test_the_program_is_known_only_where_it_is_sure(command: str | list[str], program: str | None) -> None:
    assert parse_command(command, functions={"fun"}).program == program


def test_a_missing_program_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("#!/bin/sh\n")
    with pytest.raises(
        CommandNotFound, match=r"'tool' is not found on this machine\. Install it, or pass --no-check"
    ):
        check_program(parse_command("tool"), "/nonexistent", str(tmp_path))
    with pytest.raises(CommandNotFound, match=r"'.*bin/tool' is not executable"):
        check_program(parse_command("tool"), f"/nonexistent:{tmp_path}/bin", "/")
    (tmp_path / "bin" / "tool").chmod(0o755)
    check_program(parse_command("tool"), f"/nonexistent:{tmp_path}/bin", "/")
    check_program(parse_command(["bin/tool"]), "", str(tmp_path))
    check_program(parse_command("tool"), "bin", str(tmp_path))
    check_program(parse_command("$tool {}"), "", "/")
    with pytest.raises(CommandNotFound, match="'bin/tool' is not found"):
        check_program(parse_command(["bin/tool"]), str(tmp_path), "/")
    with pytest.raises(CommandNotFound, match="'bin' is not found"):
        check_program(parse_command("bin"), str(tmp_path), "/")
    with pytest.raises(CommandNotFound, match="'cd' is a word of the shell"):
        check_program(parse_command(["cd", "x"]), "", str(tmp_path))


@pytest.mark.parametrize("text", ["if true; prog {}; fi", "for x; done {}", "prog {} )", "prog (a {}"])
def test_bash_is_asked_about_the_syntax_and_answers_in_one_line(text: str) -> None:
    with pytest.raises(
        BadInput, match=r"^bash can't read the command \(syntax error[^\n]*\): correct its syntax$"
    ):
        check_syntax(parse_command(text))


def test_the_syntax_check_runs_nothing_and_knows_extended_patterns(tmp_path: Path) -> None:
    check_syntax(parse_command(f"touch {tmp_path}/x; : {{}}"))
    assert not (tmp_path / "x").exists()
    check_syntax(parse_command("shopt -s extglob\nls !(*.o) {}"))
    check_syntax(parse_command(["if", ";;"]))


# -- what is shown -----------------------------------------------------------------------------------------

HOSTILE = [
    "a b",
    " lead",
    "it's",
    'say "x"',
    "$(touch X)",
    "`touch X`",
    "-rf",
    "back\\slash\\",
    "new\nline\n",
    "tab\tcr\r",
    "\x1b[31mred\x07",
    "\udcff\udc80x",
    "é\u202eexe",
    "\udcc3'\n!x\x41\x01A",
    "*",
    "~",
    "a;b&c|d",
    "",
    "{}",
    "#x",
    "!!",
    "a=b",
    "$'x'",
]


@pytest.mark.parametrize("word", HOSTILE)
def test_quoted_words_come_back_exactly_from_one_printable_line(word: str, tmp_path: Path) -> None:
    line = shell_quoted(["printf", "%s", word])
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)
    assert not list(tmp_path.iterdir())


def test_a_program_with_an_odd_name_is_quoted_as_a_program() -> None:
    assert shell_quoted(["a=b", "c=d"]) == "'a=b' c=d"
    assert shell_quoted(["if"]) == "'if'"


def test_an_interactive_bash_finds_no_history_to_expand() -> None:
    assert shell_quoted(["x", "!1", "a\n!2"]) == r"x '!1' $'a\n\x212'"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("prog -x {}", "prog -x 'a b'"),
        (["prog", "{}", ""], "prog 'a b' ''"),
        ("echo $ITEM", "ITEM='a b' bash -c 'echo $ITEM'"),
        ("echo {.} {#}", "PPSS_SEQ=7 PPSS_R_NOEXT='a b' bash -c 'echo \"${PPSS_R_NOEXT}\" \"${PPSS_SEQ}\"'"),
    ],
)
def test_a_dry_run_shows_what_would_run(command: str | list[str], expected: str) -> None:
    assert render(parse_command(command), values("a b")) == expected


@pytest.mark.parametrize("item", HOSTILE)
@pytest.mark.parametrize(
    "text", ["printf '%s|' $ITEM {} \"{/}\"", "printf '%s|' \"$OUTPUT_DIR/\"{#}; echo {}"]
)
def test_a_dry_run_can_be_pasted(text: str, item: str, tmp_path: Path) -> None:
    line = render(parse_command(text), values(item))
    assert line.isprintable()
    pasted = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True)
    assert pasted.stdout == printed(parse_command(text), item, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["echo {1}", "echo {} {2.}", ["echo", "{1/}"], "a && b {3/.}"])
def test_columns_of_gnu_parallel_are_refused(command: str | list[str]) -> None:
    """They came out as they were, without a word."""
    with pytest.raises(BadInput, match=r"stands for a column of the item, and items have none yet: \{\} is"):
        parse_command(command)


@pytest.mark.parametrize("command", ["grep -E '[0-9]{3}'", 'grep -E "a{1}"', "echo a{1} \\{1}", "echo '{1}'"])
def test_braces_with_a_number_that_are_no_columns_are_not(command: str) -> None:
    assert parse_command(command).source == command


EVALUATED = """\
[[ {} -eq 1 ]]
[[ 1 -lt {} ]]
[[ -v {} ]]
[ -v {} ]
test -v {}
[[ -f x && {} -eq 1 ]]
[[ -f x && -v {} ]]
[[ a == b || ( 1 -gt {} && x ) ]]
printf -v {} x
read {} <<< x
declare {}
typeset {}
declare -i x={}
declare -n r={}; echo $r
declare -i n; n={}
x[{}]=1
a=([{}]=x)
compgen -W {}
compgen -C {}
BASH_ENV={} bash -c :
unset {}
mapfile {} < /dev/null
$SHELL -c {}
S=sh; $S -c {}
rbash -c {}
runuser root -c {}
flock x -c {}
script -c {}
parallel ::: {}
local -i x={}
if [[ {} -ne 0 ]]; then :; fi
while ! [[ {} -ge 0 ]]; do break; done
builtin printf -v {} x
export {}
""".splitlines()
"""Where bash runs the command in a subscript: it expects a number, or the name of a variable."""

NOT_EVALUATED = """\
[ {} -eq 1 ]
test {} -eq 1
[[ {} == x ]]
[[ {#} -eq 1 ]]
[[ -f {} && 1 -eq 1 ]]
grep -v {} f
export X={}
declare x={}
local x={}
x={}
printf '%s' {}
printf -v x '%s' {}
read x < {}
for f in {}; do echo $f; done
case {} in a) ;; esac
a=({} b)
X={} prog
ls [ab]*{}
mapfile x < {}
command ls {}
bash -c 'echo "$1"' _ {}
$PROG {}
awk -v x={} 1
[ -e {} ] && echo {}
""".splitlines()


@pytest.mark.parametrize("text", EVALUATED)
def test_an_item_is_refused_where_bash_would_evaluate_it(text: str) -> None:
    with pytest.raises(BadInput, match=r"would be evaluated by bash|could run as a command"):
        parse_command(text)


@pytest.mark.parametrize("text", NOT_EVALUATED)
def test_an_item_is_not_refused_where_bash_takes_it_as_it_is(text: str, tmp_path: Path) -> None:
    command = parse_command(text)
    if command.shell:
        invocation = command.bind(values("a[$(touch X)]"))
        subprocess.run(
            invocation.argv,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "ITEM": "a[$(touch X)]", **invocation.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "item",
    ["$(touch X)", "`touch X`", "a;touch X", "x'$(touch X)'", '"; touch X; "', "a[$(touch X)]"],
)
@pytest.mark.parametrize(
    "text",
    [
        "echo {} | cat",
        'echo "{.}"; echo "$(echo {/})"',
        "for x in {} {//}; do echo $x; done",
        "[[ {} == x ]] || echo {}",
        "case {} in x) ;; *) echo {};; esac",
        'a=({}); echo "${a[0]}" $ITEM',
        "cat <<< {}",
    ],
)
def test_no_item_is_ever_executed(text: str, item: str, tmp_path: Path) -> None:
    assert item.encode() in printed(parse_command(text), item, tmp_path)
    assert not list(tmp_path.iterdir())
