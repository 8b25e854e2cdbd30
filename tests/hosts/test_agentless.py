"""Items on nodes that have sshd and bash, and nothing of PPSS: all is as if they had run on the master."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hosts.lab import Host, Lab
from hosts.test_staging import _MAKE_INPUTS, _WRITE_ALL_KINDS, failures, states, tree

_NODE = ("worker", "--burst", "-p", "0", "--on", "4/n1")
_HERE = ("worker", "--burst", "-p", "4")


@pytest.fixture
def master(lab: Lab) -> Host:
    for node in lab.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    return lab.master


def both_ways(
    master: Host, options: list[str], scripts: Mapping[str, str], *, logs: bool = False
) -> list[list[dict[str, object]]]:
    """What is known of items whose files are scripts, after they ran on the master, and on a node."""
    for name, script in scripts.items():
        master.write(f"scripts/{name}", script)
    found = []
    for worker in (_HERE, _NODE):
        run = master.run(["ppss", "enqueue", "scripts", *options, "--", "bash", "{}"]).stdout.strip()
        master.run(["ppss", *worker])
        lines = master.run(["ppss", "items", run, "--json"]).stdout.splitlines()
        items = [json.loads(line) for line in lines]
        for item in items if logs else ():
            item["printed"] = master.run(["ppss", "log", run, f"#{item['seq']}"]).stdout.partition("\n")[2]
        found.append(items)
    assert {item["node"] for item in found[1]} == {"n1"}
    return found


def _facts(items: list[dict[str, object]], *names: str) -> dict[object, tuple[object, ...]]:
    return {item["item"]: tuple(item[name] for name in names) for item in items}


def test_a_node_without_ppss_makes_the_same_outputs_as_the_master_itself(master: Host, lab: Lab) -> None:
    master.run(["python3", "-c", _MAKE_INPUTS])
    here = master.run(["ppss", "enqueue", "in", "-o", "out", "-c", _WRITE_ALL_KINDS]).stdout.strip()
    master.run(["ppss", "worker", "--burst"])
    master.run(["mv", "out", "expected"])
    there = master.run(["ppss", "enqueue", "in", "-o", "out", "-c", _WRITE_ALL_KINDS]).stdout.strip()
    master.run(["ppss", *_NODE])
    assert states(master, here) == states(master, there) == {"succeeded": 18}, failures(master, there)
    assert tree(master, "out") == tree(master, "expected")
    assert int(master.run(["du", "-k", "out/sparse"]).stdout.split()[0]) < 1000, "holes were filled"
    assert lab["n1"].run(["ls", "-A"]).stdout == ".ssh\n"


def test_exit_codes_and_signals_are_told_apart(master: Host) -> None:
    scripts = {f"{code}": f"exit {code}" for code in (0, 1, 2, 126, 127, 128, 137, 143, 192, 193, 255)}
    signals = ("HUP", "INT", "QUIT", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "XCPU", "RTMIN", "RTMAX")
    scripts |= {name: f"kill -s {name} $$" for name in signals}
    here, there = both_ways(master, [], scripts)
    assert _facts(there, "state", "exit_code", "signal") == _facts(here, "state", "exit_code", "signal")


def test_what_commands_print_is_kept_whole(master: Host) -> None:
    scripts = {
        "both": "echo out; echo err >&2; printf 'no end'",
        "much": "for ((i = 0; i < 20000; i++)); do printf '%09d\\n' $i; done; echo last >&2",
        "bytes": r"printf 'a\0b\377\\ \t\n'; printf '\0' >&2",
        "middling": "printf '%01300d' 0; printf '%01300d\\\\\\n' 0 >&2; exit 1",
        "late": "(sleep 0.2; echo late) & exit 3",
        "nothing": "",
    }
    here, there = both_ways(master, ["--keep-output"], scripts, logs=True)
    assert _facts(there, "printed", "last_line", "exit_code") == _facts(
        here, "printed", "last_line", "exit_code"
    )
    assert "000019999" in str(_facts(there, "printed")["much"])


_SHOW = r"""
{ printf '%s\n' "${ITEM##*/}" "$PPSS_ITEM" "$PPSS_SEQ" "$PPSS_ATTEMPT" "$PPSS_NODE" "$OUTPUT_FILE" "$GREETING"
  echo ${LC_ALL-no}; greet; pwd | sed 's:.*/::'; printf '[%s]' "$@"; umask; trap; cat; } > "$OUTPUT_DIR/$OUTPUT_FILE"
"""


def test_a_command_sees_what_it_would_see_on_the_master(master: Host, lab: Lab) -> None:
    names = [
        "plain",
        "-n",
        "with blank",
        "new\nline",
        "'\"`$(touch pwned)`\\",
        "\udcff\udcfe",
        "a.tar.gz",
        "tab\there",
    ]
    for name in names:
        master.write(f"in/{name}", name)
    carried = {"GREETING": "a\\b\nc\td ' \" \udce9", "BASH_FUNC_greet%%": '() { echo "hello $GREETING"; }'}
    made = master.run(
        [
            "ppss",
            "enqueue",
            "in",
            "-o",
            "out",
            "--env",
            "GREETING",
            "--env",
            "greet",
            "-c",
            f"set -- {{/}} {{.}}; {_SHOW}",
        ],
        env=carried,
    )
    master.run(["ppss", *_NODE])
    assert states(master, made.stdout.strip()) == {"succeeded": len(names)}, failures(
        master, made.stdout.strip()
    )
    for name in names:
        seen = master.read(f"out/{name}").decode(errors="surrogateescape")
        begin = [name, name]
        assert seen.startswith("\n".join(begin) + "\n"), seen
        number, attempt, node, *_ = seen.removeprefix("\n".join(begin) + "\n").split("\n")
        assert (1 <= int(number) <= len(names), attempt, node) == (True, "1", "n1")
        end = f"{name}\n{carried['GREETING']}\nno\nhello {carried['GREETING']}\nwork\n[{name}]["
        assert end in seen, (seen, end)
        assert seen.endswith("]0022\n"), seen
    assert "pwned" not in lab["n1"].run(["find", "/home/ppss"]).stdout


def test_an_item_that_takes_too_long_is_ended_with_all_its_processes(master: Host, lab: Lab) -> None:
    run = master.run(
        [
            "ppss",
            "enqueue",
            "--timeout",
            "0.5",
            "--grace",
            "0.3",
            "-f",
            "-",
            "-c",
            "trap '' TERM; sleep 1000 & wait; wait; : $ITEM",
        ],
        stdin="a\nb\n",
    ).stdout.strip()
    master.run(["ppss", *_NODE])
    assert failures(master, run).count("timed out after 500 ms") == 2, failures(master, run)
    assert left_on(lab["n1"]) == ""


def test_companions_shared_files_and_returned_ones_come_and_go(master: Host, lab: Lab) -> None:
    for name in "abc":
        master.write(f"in/{name}.wav", name)
        master.write(f"in/{name}.txt", f"text of {name}")
    master.write("tools/join", '#!/bin/bash\ncat "$1" "$2" > "$3"\n')
    master.run(["chmod", "+x", "tools/join"])
    options = ["--stage", "--also", "{.}.txt", "--with", "tools/join", "--return", "{.}.up"]
    run = master.run(
        [
            "ppss",
            "enqueue",
            "in",
            "--include",
            "*.wav",
            "-o",
            "out",
            *options,
            "-c",
            "tools/join {} {.}.txt {.}.up; : > {out}",
        ]
    ).stdout.strip()
    master.run(["ppss", *_NODE])
    assert states(master, run) == {"succeeded": 3}, failures(master, run)
    assert [master.read(f"out/{name}.up").decode() for name in "abc"] == [
        f"{name}text of {name}" for name in "abc"
    ]
    assert master.run(["ls", "out"]).stdout.split() == ["a.up", "a.wav", "b.up", "b.wav", "c.up", "c.wav"]
    assert left_on(lab["n1"]) == ""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ('echo x > "$ITEM.new"', "wrote 'plain.new' beside its input"),
        ('sleep 0.01; echo x >> "$ITEM"', "changed 'plain', which is a copy"),
        (': "$ITEM"; mkfifo "$OUTPUT_DIR/pipe"', "made 'pipe', which is no file, directory or link"),
        (': "$ITEM"; echo x > "$OUTPUT_DIR/.ppss"', "kept for scratch"),
    ],
)
def test_what_can_not_come_home_fails_the_item_and_says_so(master: Host, command: str, reason: str) -> None:
    master.write("in/plain", "x")
    run = master.run(["ppss", "enqueue", "in", "-o", "out", "-c", command]).stdout.strip()
    master.run(["ppss", *_NODE])
    assert reason in failures(master, run), failures(master, run)
    assert master.run(["find", "out", "-type", "f"]).stdout == ""


def test_a_run_uses_this_machine_and_nodes_at_once_and_prints_what_they_print(master: Host) -> None:
    words = [
        "ppss",
        "run",
        "-p",
        "1",
        "--on",
        "2/n1,2/n2",
        "--tag",
        "-f",
        "-",
        "-c",
        'echo "$PPSS_NODE $PPSS_SLOT"; sleep 0.3; : $ITEM',
    ]
    done = master.run(words, stdin="".join(f"{number}\n" for number in range(20)))
    lines = [line.partition("\t")[2] for line in done.stdout.splitlines()]
    assert len(lines) == 20
    assert set(lines) == {"master 1", "n1 1", "n1 2", "n2 1", "n2 2"}
    assert "1 slot on this machine · 4 slots on 2 nodes" in done.stderr


def test_lines_are_printed_with_line_buffer_too(master: Host) -> None:
    done = master.run(
        ["ppss", "run", "-p", "0", "--on", "2/n1", "--line-buffer", "-f", "-", "--", "echo"], stdin="a\nb\n"
    )
    assert sorted(done.stdout.split()) == ["a", "b"]


def left_on(node: Host) -> str:
    """Processes of the user, and files in its home, that PPSS has left."""
    script = "ps -u ppss -o pid=,args= | grep -v -e sshd: -e 'ps -u' -e grep -e 'bash -c ps'; ls -A | grep -v -x .ssh"
    return node.run(["bash", "-c", script], check=False).stdout


def test_a_node_of_the_list_with_mode_ssh_joins_a_run_without_ppss(master: Host, lab: Lab) -> None:
    master.write("nodes", "n1 mode=ssh slots=2 scratch=/tmp nice=5 name=first # no PPSS there\n")
    master.write("in/a", "x")
    command = 'echo "$PPSS_NODE $(nice) ${ITEM%%/.ppss*} $(cat "$ITEM")" > {out}'
    done = master.run(["ppss", "run", "-p", "0", "-n", "nodes", "in", "-o", "out", "-c", command])
    assert master.read("out/a") == b"first 5 /tmp x\n"
    assert "2 slots on 1 node" in done.stderr
    assert lab["n1"].run(["find", "/tmp", "-name", ".ppss*"]).stdout == left_on(lab["n1"]) == ""
