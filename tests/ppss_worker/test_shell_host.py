"""A text that a shell runs which was started for many items does what `bash -c` does with it; and what dies, dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ppss_worker import shell_host
from ppss_worker.captures import capture_tail
from ppss_worker.guardian import Guardian
from ppss_worker.process import Child, Exit, Spawner
from ppss_worker.runs import ActiveRun
from ppss_worker.shell_host import ShellHosts, hosts_item, shell_word

from ppss_queue.command import parse_command
from ppss_queue.errors import BadInput
from ppss_queue.model import RunSpec

if TYPE_CHECKING:
    from conftest import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper")

EXAMPLES = int(os.environ.get("PPSS_TEST_EXAMPLES", "400"))

LOOK = r"""
import os, re, resource, sys
own = {b"PPSS_WORKER_KEY"}
for name, value in sorted(os.environb.items()):
    print(name, value if name not in own else "")
for number in sorted(map(int, os.listdir("/dev/fd"))):
    try:
        target = os.readlink(f"/dev/fd/{number}")
        with open(f"/proc/self/fdinfo/{number}") as file:
            flags = int(re.search(r"flags:\s*(\d+)", file.read())[1], 8)
    except OSError:
        continue
    access = "" if number == 2 else flags & os.O_ACCMODE  # the capture of stderr can't be read in a shell that waited
    print(number, re.sub(r"#?\d+", "", target), access, flags & os.O_APPEND, flags & os.O_CLOEXEC)
print("group", os.getpgrp() == os.getppid(), os.getsid(0), "of the caller", os.getpgid(os.getppid()) == os.getppid())
for line in open("/proc/self/status"):
    if re.match("Umask|Sig(Blk|Ign|Cgt)|Uid|Gid|NoNewPrivs|Seccomp", line):
        print(line.strip())
with open(f"/proc/{os.getppid()}/status") as file:
    print([line for line in file if re.match("PPid|Sig(Ign|Blk)", line)])
print(os.getcwd(), os.nice(0), os.sched_getscheduler(0), *map(resource.getrlimit, range(16)))
print(sys.stdin.read())
"""


@dataclass(frozen=True)
class Seen:
    """What can be seen of a command from outside."""

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes


def without_pids(text: bytes) -> bytes:
    """Bash names the process that a signal ended."""
    return re.sub(rb"(?m)(^bash: line \d+: |^ )\s*\d+ ", rb"\1PID ", text)


class Bench:
    """A spawner, and both ways to run a text for an item."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guardian = Guardian.start()
        self.spawner = Spawner(self.guardian, directory)
        self.hosts = ShellHosts(self.spawner)
        self.environment = {"PATH": f"{directory}:{os.environ['PATH']}", "HOME": "/home/me"}

    def run(self, text: str, **environment: str) -> ActiveRun:
        seen = self.environment | {"PPSS_RUN": "r"} | environment
        spec = RunSpec(command=text, directory=str(self.directory))
        return ActiveRun(f"r{hash((text, str(environment)))}", spec, parse_command(text), None, seen, None)

    def begin(self, run: ActiveRun, variables: Mapping[str, str], slot: int = 1) -> Child | None:
        return self.hosts.start(run, slot, variables)

    def plain(self, run: ActiveRun, variables: Mapping[str, str]) -> Child:
        assert run.command is not None
        argv = ("bash", "-c", run.command.script)
        return self.spawner.spawn(argv, {**run.environment, **variables}, run.spec.directory)

    def wait(self, child: Child) -> Exit:
        exits: list[Exit] = []

        def ended() -> bool:
            exits.extend(self.spawner.reap())
            return any(exited.pid == child.pid for exited in exits)

        wait_until(ended, f"{child} ends")
        return next(exited for exited in exits if exited.pid == child.pid)

    def see(self, child: Child) -> Seen:
        assert os.getpgid(child.pid) == child.pid
        exited = self.wait(child)
        self.hosts.finish(child)
        out, err = (capture_tail(source, 1 << 30)[0] for source in (child.stdout, child.stderr))
        child.close()
        assert child.began
        return Seen(exited.exit_code, exited.signal, without_pids(out), without_pids(err))

    def both(self, text: str, variables: Mapping[str, str], **environment: str) -> tuple[Seen, Seen]:
        """As a waiting shell, and as `bash -c` shows it; it is a text for the former."""
        run = self.run(text, **environment)
        assert run.command is not None and run.command.unaware, text
        hosted = self.begin(run, variables)
        assert hosted is not None, text
        return self.see(hosted), self.see(self.plain(run, variables))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = Path.cwd()
    for name, text in (
        ("look", f"#!{sys.executable} -I\n{LOOK}"),
        ("die", "#!/bin/sh\nkill -${1:-9} $$\n"),
        ("wait-all", "#!/usr/bin/perl\n1 while wait() != -1; print qq(waited\\n)"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    bench = Bench(tmp_path)
    yield bench
    bench.hosts.close()
    for pid in bench.spawner._running:
        os.killpg(pid, signal.SIGKILL)
    bench.guardian.close()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    os.chdir(before)


ITEM = {
    "ITEM": 'it\'s a "b" $(touch X) `touch X`\n\\ \x01\x7f* ',
    "PPSS_SEQ": "7",
    "OUTPUT_FILE": "\udcff.x",
}

UNAWARE = [
    ': "$ITEM"',
    '/bin/true "$ITEM" && :',
    'true "$ITEM" | cat',
    "false {} || :",
    "exit 3 || : {}",
    "exit 300 || : {}",
    "exit nonsense || : {}",
    "echo {} {#} {/.} {//} | cat",
    "printf '%s\\n' {} 1 > out; cat out > out2; cat < out2 >&2",
    'cd /; pwd; echo "$PWD" "$OLDPWD" {}',
    "umask; umask 077; umask; : {}",
    "X=1 export Y=2; look {} 2>&1",
    "look {} > x; cat x | cat",
    "look {} | cat",
    "look {}; :",
    "( look {} )",
    "{ look {}; } 2>&1",
    "if look {}; then :; fi",
    "for x in 1 2; do look {} $x; done",
    'x=$(look {}) ; echo "$x"',
    "no-such-program {} && :",
    "no-such-program {} > out",
    "true | no-such-program {}",
    "x=$(no-such-program {}) ; echo $?",
    "./look-not {} || echo $?",
    "/ {} || echo $?",
    "echo {} > /no/such/directory || echo $?",
    "cat < /no/such/file && echo {}",
    "cat {} > out",
    'echo "$ITEM" >&5 && :',
    "cd /no/such/directory || : {}",
    "die 9; echo $? {}",
    "die 11 {} && :",
    "die 15 {} > out",
    "die 13 {} | cat",
    "true {} | die 11",
    "true {} | die 13",
    "( die 11 {} )",
    "{ die 9 {}; }",
    "if die 9 {}; then :; fi",
    "for x in 1; do die 2 $x {}; done",
    "die 9 {} || die 2 2>&1",
    "set -e; false; echo {}",
    "set -e; die 11; echo {}",
    "set -e; false || echo {}; ( exit 4 ); echo no",
    "set -o pipefail; die 9 {} | cat > out",
    "set -eo pipefail; false | true; echo {}",
    "yes {} | head -1 > out; echo $?",
    "yes {} | head -1 | cat; :",
    "wait-all {} > out; cat out | cat",
    "head -c 300000 /dev/zero | cat; : {}",
    "cat | cat; read x; echo $? {}",
    'read x < look; echo "$x" {}',
    "while read x; do echo $x {}; done < die",
    "echo a > /dev/stderr; echo {} >&2; echo b > /dev/stderr",
    "echo a > /dev/stdout; echo {}; echo b >> /dev/stdout",
    "[ a -eq 1 ] || echo $? {}",
    "[ 1 -eq 1 || : {}",
    "test a b c || : {}",
    "[[ {} == it* ]] && echo yes",
    "[[ -n $ITEM ]] && echo ${#ITEM} ${ITEM%%b*} ${ITEM//a/x} ${NONE:-none} ${NONE-x}",
    "x=${NONE=default}; echo $x {}",
    'IFS=s; for x in $ITEM; do printf "<%s>" $x; done',
    "PATH=/nowhere; look {} && :",
    "A=1 B=2; C=$A; echo $A$B$C {}; A=3 sh -c 'echo $A'; :",
    "echo $0 $# $* {}",
    "echo $? {}; (exit 5); echo $?",
    "echo {a,b}{1..3} ~ {}",
    "printf '%d\\n' x {} || :",
    "printf '%q %b' {} 'a\\tb'; :",
    "echo *; echo no*match; : {}",
    "export A='x y'; env | grep ^A=; : {}",
    "sh -c 'exit 7' {} || exit 9",
    "sleep 0.01 && : {}",
    "bash -c 'exit 3' {} && :",
    "bash -c 'echo x >&2; (exit 3)' {} || echo $?",
    "setsid true {} && :",
    "nohup true {} && :",
    "env -i look {} > out; cat out | cat",
    "echo é {} | cat",
    "LC_ALL=xx_YY; echo {}",
    "echo {} # a comment",
    ": {} ;",
    "xargs -n1 echo {} < die | cat",
    "echo ${ITEM:+set} ${ITEM^^} ${ITEM,,} | cat",
    'echo "${ITEM#*\\"}" | cat',
    "find . -name die | cat; : {}",
]


AWARE = [
    *[
        "echo $$ {} | cat",
        "sh -c 'echo $PPID' | cat {}",
        'echo "$BASHPID" | cat {}',
        "kill 0; : {}",
        ": {}; wait",
    ],
    *[
        "trap 'echo bye' EXIT; : {}",
        "exec die {}",
        "jobs; : {}",
        "sleep 9 & : {}",
        "set -u; echo $x {} | cat",
    ],
    *[
        "set -m; : {}",
        "set -x; : {}",
        "set; : {}",
        "declare -p; : {}",
        "export -p; : {}",
        "echo $- $_ {} | cat",
    ],
    *[
        "echo ${x:?gone} ${x?} {} | cat",
        "echo ${x?} {} | cat",
        "echo ${!PPSS@} {} | cat",
        "echo ${x@P} {} | cat",
        "true\n: {}",
    ],
    *["source look; : {}", ". ./look; : {}", "eval x; : {}", "coproc cat; : {}", "cat <(echo {}) > out"],
    *["echo $RANDOM {} | cat", "echo $SECONDS {} | cat", "echo $LINENO {} | cat", "echo $SHLVL {} | cat"],
    *["cat /proc/self/stat | cat; : {}", "ps > out; : {}", "pkill -P 1; : {}", "printf '%(%s)T' -2; : {}"],
    *["printf -v x a; : {}", "[[ $x -eq 1 ]] || : {}", "echo $((x)) {} | cat", "a[1]=2; : {}", "a=(1); : {}"],
    *[
        "f() { :; }; f {} | cat",
        "shopt -s extglob; : {}",
        "alias a=b; : {}",
        "unset x; : {}",
        "return 3; : {}",
    ],
    *[
        "true && die {}",
        "cd / && look {}",
        ": ; A=1 die {}",
        "if true; then :; fi; die {}",
        "die | die; die {}",
    ],
    *[
        "true || die {}",
        "die {}; die",
        "! die {}",
        "times; : {}",
        "type die; : {}",
        "command die {}; :",
        "let x=1; : {}",
    ],
    *[
        "for ((i=0;i<3;i++)); do :; done; : {}",
        "time true; echo $TIMEFORMAT {} | cat",
        "(trap '' TERM; : {})",
    ],
]


def test_a_waiting_shell_does_what_bash_does(bench: Bench) -> None:
    for text in UNAWARE:
        hosted, plain = bench.both(text, ITEM)
        assert hosted == plain, text
    assert not (bench.directory / "X").exists(), "an item's text was run"


@pytest.mark.parametrize("text", AWARE)
def test_a_text_that_could_tell_is_left_to_a_bash_of_its_own(text: str) -> None:
    assert not parse_command(text).unaware


simple = st.sampled_from(
    """true|false|: {}|echo {}|exit 3|die 9|die 11|die 2|no-such {}|/ {}|./die-not|set -e|set -o pipefail|X=1|X=1 die 13
    |cd /|cd /no|read x|[ -n {} ]|[[ a == b ]]|test|umask 7|export X=2|echo $X|printf %d x|cat|bash -c 'exit 4'|(exit 5)
    |sh -c 'kill -9 $$'|trap 'echo t' EXIT|exec die|exec|wait|kill 0|echo $?|echo "${X:?}"|echo ${X:-y}|set -u|! die
    |echo $BASH_SUBSHELL|echo $-|sleep 5 &|{ die 11|( die 11|$X|$X die|"die" 9|d\\ie 9|'die' 15|return 2|break|exit
    |shift 3|unset X|readonly X|X=3 Y=$X|eval die|command die|builtin exit 4|echo $((1/0))|a[1/0]=1""".replace(
        "\n    ", ""
    ).split("|")
)
redirections = st.sampled_from(
    ["", "", "", " > out", " 2>&1", " >&2", " < die", " < /no", " > /no/x", " &> out"]
)
joints = st.sampled_from(["; ", " && ", " || ", " | ", "; ", " && ", " || ", " | ", "\n", " & ", " |& "])
frames = st.sampled_from(
    """{}|{}|( {} )|{{ {}; }}|if {}; then :; fi|for x in 1 2; do {}; done|x=$({})|echo $({})|while {}; do exit 1; done
    |f() {{ {}; }}; f|! {}|case a in a) {};; esac|if true; then {}; fi""".replace("\n    ", "").split("|")
)


@st.composite
def texts(draw: st.DrawFn, depth: int = 2) -> str:
    text = ""
    for number in range(draw(st.integers(1, 3))):
        inner = draw(texts(depth - 1)) if depth and draw(st.booleans()) else draw(simple)
        frame = draw(frames) if depth else "{}"
        text += (draw(joints) if number else "") + frame.replace("{{", "{").replace("}}", "}").replace(
            "{}", inner, 1
        )
        text += draw(redirections)
    return text


def test_whatever_text_is_taken_for_unaware_a_waiting_shell_does_what_bash_does(bench: Bench) -> None:
    ways: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES * 3, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(texts())
    def compare(text: str) -> None:
        try:
            command = parse_command(f": {{}}; {text}")
        except BadInput:
            return
        if not command.unaware:
            ways["aware"] += 1
            return
        run = bench.run(command.source)
        hosted = bench.begin(run, ITEM)
        if hosted is None:
            ways["no bash text"] += 1
            return
        seen = [bench.see(hosted), bench.see(bench.plain(run, ITEM))]
        for _ in range(3):  # in a pipeline somebody may write before or after somebody else has left
            if in_any_order(seen[0]) == in_any_order(seen[1]):
                break
            again = bench.begin(run, ITEM)
            assert again is not None
            seen = [bench.see(again), bench.see(bench.plain(run, ITEM))]
        assert in_any_order(seen[0]) == in_any_order(seen[1]), text
        ways["same"] += 1
        ways["a signal inside"] += b"Killed" in seen[0].stderr or b"fault" in seen[0].stderr
        ways["failed"] += seen[0].exit_code != 0

    compare()
    assert ways["same"] > EXAMPLES // 4, ways
    assert ways["failed"] > EXAMPLES // 20 and ways["a signal inside"], ways


def in_any_order(seen: Seen) -> tuple[object, ...]:
    lines = [sorted(text.split(b"\n")) for text in (seen.stdout, seen.stderr)]
    return seen.exit_code, seen.signal, *lines


# What it is given


values = st.one_of(st.binary(max_size=30), st.text(max_size=10).map(str.encode)).map(
    lambda raw: os.fsdecode(raw.replace(b"\0", b""))
)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_every_value_arrives_byte_for_byte_and_none_is_run(tmp_path: Path, locale: str) -> None:
    @settings(
        max_examples=EXAMPLES // 2, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(values, min_size=1, max_size=40))
    def compare(some: list[str]) -> None:
        words = " ".join(f"v{number}={shell_word(value)}" for number, value in enumerate(some))
        assert words.isascii() and "\n" not in words
        printed = subprocess.check_output(
            ["bash", "-c", f"export {words}; env -0"],
            env={"PATH": os.environ["PATH"], "LC_ALL": locale},
            cwd=tmp_path,
        )
        found = dict(pair.split(b"=", 1) for pair in printed.split(b"\0") if pair)
        for number, value in enumerate(some):
            assert found[b"v%d" % number] == os.fsencode(value)

    compare()
    assert not list(tmp_path.iterdir())


def test_what_no_variable_can_hold_goes_the_plain_way(bench: Bench) -> None:
    run = bench.run(': "$ITEM"')
    for value in ("a\0b", "\ud800", "x" * 200_000):
        assert bench.begin(run, {"ITEM": value}) is None
    child = bench.begin(run, ITEM)
    assert child and bench.see(child).exit_code == 0


def test_nothing_of_an_item_is_left_for_the_next_one(bench: Bench) -> None:
    text = 'echo "$X$Y$NEW"; X=1; export Y=2; umask 7; set -e; cd /; exit 4 || : {}'
    run = bench.run(text)
    for number in range(shell_host._TURNS * 2 + 3):
        child = bench.begin(run, ITEM | ({"NEW": "x"} if number == 0 else {}))
        assert child is not None
        out = b"x\n" if number == 0 else b"\n"
        assert bench.see(child) == Seen(4, None, out, b"")
    look = bench.run("look {} | cat")
    child = bench.begin(look, ITEM)
    assert child is not None
    assert b"b'NEW'" not in bench.see(child).stdout


@pytest.mark.parametrize(
    "name",
    ["BASH_ENV", "SHELLOPTS", "POSIXLY_CORRECT", "TMOUT", "PPSS_H_A", "BASH_FUNC_die%%", "SECONDS", "LC_ALL"],
)
def test_an_environment_that_steers_bash_goes_the_plain_way(bench: Bench, name: str) -> None:
    assert bench.begin(bench.run("die {} | cat", **{name: "() { echo; }"}), ITEM) is None


def test_functions_that_the_text_does_not_name_do_not_matter(bench: Bench) -> None:
    hosted, plain = bench.both("look {} | cat", ITEM, **{"BASH_FUNC_module%%": "() { echo; }"})
    assert hosted == plain


def test_a_text_that_bash_can_not_read_goes_the_plain_way(bench: Bench) -> None:
    run = bench.run(": {} | fi")
    assert run.command is not None and run.command.unaware
    assert bench.begin(run, ITEM) is None


def test_a_directory_that_was_replaced_is_entered_anew(bench: Bench) -> None:
    place = bench.directory / "place"
    place.mkdir()
    (place / "old").touch()
    bench.directory = place
    run = bench.run("echo * && : {}")
    for name in ("old", "new"):
        child = bench.begin(run, ITEM)
        assert child is not None
        assert bench.see(child).stdout == f"{name}\n".encode()
        place.rename(place.with_name(f"moved-{name}"))
        place.mkdir()
        (place / "new").touch()


def test_the_time_of_a_command_is_counted(bench: Bench) -> None:
    (bench.directory / "busy.py").write_text("import time\nwhile time.process_time() < 0.3: pass")
    run = bench.run(f"{sys.executable} -S busy.py && : {{}}")
    child = bench.begin(run, ITEM)
    assert child is not None
    exited = bench.wait(child)
    assert exited.exit_code == 0 and exited.user_seconds + exited.system_seconds >= 0.3


# Ends


def waiting(bench: Bench) -> int:
    """The process that waits for the next item of slot 1."""
    host = bench.hosts._hosts[1]
    host.collect()
    assert host._waiting
    return host._waiting


def test_a_killed_command_and_all_its_processes_die_and_the_next_shell_lives(bench: Bench) -> None:
    run = bench.run("sleep 60 | sleep 61 | cat; : {}")
    child = bench.begin(run, ITEM)
    assert child is not None
    group = f"/proc/{child.pid}/task/{child.pid}/children"
    wait_until(lambda: len(Path(group).read_text().split()) == 4, "three commands and the next shell")
    pids = set(map(int, Path(group).read_text().split()))
    child.kill()
    assert bench.see(child) == Seen(None, signal.SIGKILL, b"", b"")
    assert {pid for pid in pids if os.path.exists(f"/proc/{pid}")} == {waiting(bench)}
    child = bench.begin(run, ITEM)
    assert child is not None
    group = f"/proc/{child.pid}/task/{child.pid}/children"
    wait_until(lambda: len(Path(group).read_text().split()) == 4, "three commands and the next shell")
    child.terminate()
    seen = bench.see(child)
    assert (seen.exit_code, seen.signal) == (None, signal.SIGTERM)


def test_a_shell_that_died_while_it_waited_is_replaced(bench: Bench) -> None:
    run = bench.run(": {} | cat")
    for _ in range(3):
        child = bench.begin(run, ITEM)
        if child is None:  # it was noticed when the item was sent, and the plain way taken
            continue
        assert bench.see(child).exit_code == 0
        os.kill(waiting(bench), signal.SIGKILL)
        wait_until(
            lambda: bench.spawner.reap() == [] and not os.path.exists(f"/proc/{waiting(bench)}"), "its end"
        )
        assert bench.begin(run, ITEM) is None
    child = bench.begin(run, ITEM)
    assert child is not None and bench.see(child).exit_code == 0


def test_a_shell_that_dies_before_it_begins_an_item_says_so_and_is_the_last(bench: Bench) -> None:
    run = bench.run("touch begun; : {}")
    child = bench.begin(run, ITEM)
    assert child is not None
    bench.see(child)
    (bench.directory / "begun").unlink()
    os.kill(waiting(bench), signal.SIGSTOP)
    child = bench.begin(run, ITEM)
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    assert bench.wait(child).signal == signal.SIGKILL
    bench.hosts.finish(child)
    assert not child.began
    assert not (bench.directory / "begun").exists()
    assert bench.begin(run, ITEM) is None


def test_what_an_item_leaves_behind_is_buried(bench: Bench) -> None:
    def children() -> int:
        bench.spawner.reap()
        return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()
    run = bench.run("setsid sh -c 'sleep 0.05 & sleep 0.05 & :' > out; : {}")
    for _ in range(20):
        child = bench.begin(run, ITEM)
        assert child is not None
        assert bench.see(child).exit_code == 0
    wait_until(lambda: children() == before + 1, "only the shell that waits is left")


def test_it_can_be_told_from_outside_which_item_a_shell_runs(bench: Bench) -> None:
    run = bench.run("until [ -e go ]; do read x; done; : {}")
    first, second = bench.begin(run, ITEM, 1), bench.begin(run, ITEM | {"PPSS_SEQ": "71"}, 2)
    assert first and second
    assert hosts_item(first.pid, run.id, 7) and hosts_item(second.pid, run.id, 71)
    assert not hosts_item(first.pid, run.id, 71) and not hosts_item(first.pid, "r", 7)
    (bench.directory / "go").touch()
    assert bench.wait(first).exit_code == 0
    assert not hosts_item(first.pid, run.id, 7)


# In a worker


def test_a_run_is_done_by_shells_that_wait(site: Site) -> None:
    run = site.enqueue([str(number) for number in range(300)], 'echo "$ITEM" >> all; true')
    site.burst("-p", "3")
    assert site.states(run) == {"succeeded": 300}
    assert sorted(map(int, (site.directory / "all").read_text().split())) == list(range(300))


def test_an_item_whose_shell_died_before_it_began_is_run_all_the_same(site: Site) -> None:
    run = site.enqueue(["1", "2", "3"], 'echo "$ITEM" >> all; until [ -e go ]; do sleep 0.02; done')
    worker = site.worker("--burst", "-p", "1")
    wait_until(
        lambda: (site.directory / "all").exists() and len(shells_of(worker.pid)) == 2, "the first item runs"
    )
    running, waiting = sorted(shells_of(worker.pid), key=lambda pid: pid not in children_of(worker.pid))
    os.kill(waiting, signal.SIGSTOP)
    (site.directory / "go").touch()
    wait_until(
        lambda: not site.alive(running) and run.status().running, "the second item waits for its shell"
    )
    os.kill(waiting, signal.SIGKILL)
    assert worker.wait() == 0
    assert site.states(run) == {"succeeded": 3}
    assert sorted((site.directory / "all").read_text().split()) == ["1", "2", "3"]
    assert not any(view.lost for view in run.items())


def test_no_item_is_lost_with_the_shell_that_waited_for_it(site: Site) -> None:
    """Shells are killed at any moment; what was killed while it ran has failed, as always, and all else succeeded."""
    run = site.enqueue([str(number) for number in range(600)], 'echo "$ITEM" >> all; sleep 0.01; true')
    worker = site.worker("--burst")
    killed = 0
    while worker._process.poll() is None:
        for pid in shells_of(worker.pid):
            if not (killed % 7) or killed < 3:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed += 1
        time.sleep(0.002)
    assert killed
    assert run.status().succeeded + run.status().failed == 600
    printed = (site.directory / "all").read_text().split()
    assert len(printed) == len(set(printed)), "an item ran twice"
    assert all(view.outcome.signal == signal.SIGKILL for view in run.items() if view.state == "failed")


def test_a_killed_worker_leaves_no_shell(site: Site) -> None:
    site.enqueue(["a", "b"], "sleep 60; true")
    worker = site.worker()
    wait_until(lambda: len(shells_of(worker.pid)) == 4, "two that run, two that wait")
    pids = shells_of(worker.pid)
    worker.signal(signal.SIGKILL)
    site.wait_gone(pids)


def test_no_shell_waits_for_a_worker_that_has_ended(site: Site) -> None:
    site.enqueue(["a", "b"], "until [ -e go ]; do sleep 0.1; done")
    worker = site.worker("--burst")
    wait_until(lambda: len(shells_of(worker.pid)) == 4, "two that run, two that wait")
    pids = shells_of(worker.pid)
    (site.directory / "go").touch()
    assert worker.wait() == 0
    site.wait_gone(pids)


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid), "bash"], capture_output=True, text=True)
    return list(map(int, found.stdout.split()))


def shells_of(pid: int) -> list[int]:
    """The shells below a process."""
    return [shell for child in children_of(pid) for shell in (child, *shells_of(child))]
