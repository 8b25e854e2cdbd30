"""Commands as processes, with real ones."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ppss_worker.captures import capture_tail, last_line
from ppss_worker.guardian import Guardian
from ppss_worker.process import (
    Child,
    DirectoryMissing,
    Exit,
    Spawner,
    SpawnFailed,
)
from ppss_worker.signals import ChildSignals

from ppss_queue.errors import MachineFailed


def wait_until(condition: Callable[[], object], what: str, timeout_seconds: float = 20) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(0.005)


class Bench:
    """A spawner, and what a worker does around it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.guardian = Guardian.start()
        self.spawner = Spawner(self.guardian, directory)
        self.environment = {"PATH": os.environ["PATH"]}

    def spawn(self, *argv: str, **environment: str) -> Child:
        return self.spawner.spawn(argv, self.environment | environment, str(self.directory))

    def wait(self, child: Child) -> Exit:
        exits: list[Exit] = []
        wait_until(lambda: exits.extend(self.spawner.reap()) or exits, f"{child} ends")
        assert [exit_.pid for exit_ in exits] == [child.pid]
        return exits[0]

    def run(self, *argv: str, **environment: str) -> tuple[Exit, bytes, bytes]:
        child = self.spawn(*argv, **environment)
        exit_ = self.wait(child)
        output = capture_tail(child.stdout, 1 << 30)[0], capture_tail(child.stderr, 1 << 30)[0]
        child.close()
        return exit_, *output

    def printed(self, child: Child) -> bytes:
        return capture_tail(child.stdout, 1 << 20)[0]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = Path.cwd()
    bench = Bench(tmp_path)
    yield bench
    bench.guardian.close()
    with suppress(ChildProcessError):  # what a failed test left
        for _ in range(1000):
            bench.spawner.reap()
            if not bench.spawner._running:
                break
            time.sleep(0.01)
    os.chdir(before)


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


# How it ends


@pytest.mark.parametrize("code", [0, 1, 3, 137, 255])
def test_the_exit_code_is_that_of_the_command(bench: Bench, code: int) -> None:
    exit_, _, _ = bench.run("sh", "-c", f"exit {code}")
    assert (exit_.exit_code, exit_.signal) == (code, None)


def test_a_signal_is_told_from_an_exit_code(bench: Bench) -> None:
    exit_, _, _ = bench.run("sh", "-c", "kill -9 $$")
    assert (exit_.exit_code, exit_.signal) == (None, signal.SIGKILL)


def test_cpu_time_of_the_command_and_its_children_is_counted(bench: Bench) -> None:
    busy = f"{sys.executable} -S -c 'import time\nwhile time.process_time() < 0.3: pass'"
    exit_, _, _ = bench.run("sh", "-c", f"{busy}; exit 0")
    assert exit_.user_seconds + exit_.system_seconds >= 0.3


def test_reap_never_waits_and_reports_each_exit_once(bench: Bench) -> None:
    child = bench.spawn("sleep", "60")
    assert bench.spawner.reap() == []
    child.kill()
    assert bench.wait(child).signal == signal.SIGKILL
    assert bench.spawner.reap() == []
    child.close()


# What can't be started


@pytest.mark.parametrize(
    ("program", "status", "says"),
    [
        ("no-such-program", 127, "command not found"),
        ("", 127, "command not found"),
        ("./no-such-file", 127, "no such file"),
        ("./bad-interpreter", 127, "interpreter"),
        ("./plain", 126, "permission denied"),
        ("plain", 126, "permission denied"),
        ("./directory", 126, "Permission denied"),
        ("plain/x", 126, "Not a directory"),
        ("/" + "x" * 300, 126, "too long"),
    ],
)
def test_what_cannot_be_executed_fails_with_the_status_of_bash(
    bench: Bench, tmp_path: Path, program: str, status: int, says: str
) -> None:
    script(tmp_path / "bad-interpreter", "#!/no/such/interpreter\n")
    script(tmp_path / "plain", "true\n", mode=0o644)
    (tmp_path / "directory").mkdir()
    search_path = f"{bench.environment['PATH']}:{tmp_path}"
    with pytest.raises(SpawnFailed, match=says) as failure:
        bench.spawn(program, PATH=search_path)
    assert failure.value.exit_status == status
    bash = subprocess.run(
        ["bash", "-c", '"$0"', program], cwd=tmp_path, env={"PATH": search_path}, capture_output=True
    )
    assert bash.returncode == status


def test_an_item_too_long_for_an_argument_or_variable_says_so(bench: Bench) -> None:
    for argv, environment in ((["true", "x" * 200_000], {}), (["true"], {"ITEM": "x" * 200_000})):
        with pytest.raises(SpawnFailed, match="too long for an environment variable or argument") as failure:
            bench.spawn(*argv, **environment)
        assert failure.value.exit_status == 1


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_text_that_no_process_can_get_is_a_failure_of_the_item(bench: Bench, bad: str) -> None:
    for argv, environment in ((["true", bad], {}), ([bad], {}), (["true"], {"ITEM": bad})):
        with pytest.raises(SpawnFailed, match="arguments or environment") as failure:
            bench.spawn(*argv, **environment)
        assert failure.value.exit_status == 1


def test_a_missing_directory_is_the_fault_of_the_node(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "gone", tmp_path / "file"):
        with pytest.raises(DirectoryMissing, match=directory.name):
            bench.spawner.spawn(["true"], bench.environment, str(directory))


def test_a_full_or_missing_capture_directory_is_the_fault_of_the_machine(
    tmp_path: Path, bench: Bench
) -> None:
    spawner = Spawner(bench.guardian, tmp_path / "gone")
    with pytest.raises(MachineFailed, match="gone"):
        spawner.spawn(["true"], bench.environment, str(tmp_path))


def test_no_descriptors_left_is_the_fault_of_the_machine(bench: Bench) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, hard))  # room for one of the two captures
    try:
        with pytest.raises(MachineFailed, match="ulimit -n"):
            bench.spawn("true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert bench.run("true")[0].exit_code == 0


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_no_processes_left_is_the_fault_of_the_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The errno is injected: root has no process limit to run into."""

    def refuse(*args: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_spawn", refuse)
    with pytest.raises(MachineFailed, match="can't start 'true'"):
        bench.spawn("true")


# What it is given


def test_stdin_is_dev_null_whatever_the_workers_own_is(bench: Bench) -> None:
    reader, writer = os.pipe()
    own = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert bench.run("sh", "-c", "readlink /proc/self/fd/0; cat")[1] == b"/dev/null\n"
    finally:
        os.dup2(own, 0)
        for descriptor in (own, reader, writer):
            os.close(descriptor)


HOSTILE = b"\n \t'\"\\$(touch x)`touch x`*?-\xff\xfe\x80\x01\x7f{};&|<>\xc3\xa4 \r\n"


def test_hostile_bytes_arrive_exactly_in_arguments_and_environment(bench: Bench) -> None:
    item = os.fsdecode(HOSTILE)
    dump = "import os, sys; os.write(1, os.fsencode(sys.argv[1]) + b'|' + os.environb[b'ITEM'])"
    assert bench.run(sys.executable, "-c", dump, item, ITEM=item)[1] == HOSTILE + b"|" + HOSTILE


def test_the_environment_is_the_given_one_and_the_marker(bench: Bench) -> None:
    name, nonce = bench.guardian.marker
    _, out, _ = bench.run("env", ITEM="a")
    assert set(out.decode().splitlines()) == {f"PATH={os.environ['PATH']}", "ITEM=a", f"{name}={nonce}"}


def test_the_program_is_looked_up_on_the_path_of_the_command(bench: Bench, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        script(tmp_path / name / "tool", f"#!/bin/sh\necho {name}\n")
    assert bench.run("tool", PATH=f"{tmp_path}/one:{tmp_path}/two")[1] == b"one\n"
    assert bench.run("tool", PATH=f"{tmp_path}/two:{tmp_path}/one")[1] == b"two\n"


def test_a_program_that_moved_along_the_path_is_found_again(bench: Bench, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    search_path = f"{tmp_path}/one:{tmp_path}/two"
    script(tmp_path / "one" / "tool", "#!/bin/sh\necho tool\n")
    assert bench.run("tool", PATH=search_path)[1] == b"tool\n"
    (tmp_path / "one" / "tool").rename(tmp_path / "two" / "tool")
    assert bench.run("tool", PATH=search_path)[1] == b"tool\n"
    (tmp_path / "two" / "tool").unlink()
    with pytest.raises(SpawnFailed, match="not found"):
        bench.spawn("tool", PATH=search_path)


def test_empty_and_relative_parts_of_path_mean_the_directory_of_the_command(
    bench: Bench, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "bin").mkdir(parents=True)
        script(tmp_path / name / "tool", f"#!/bin/sh\necho {name}\n")
        script(tmp_path / name / "bin" / "deep", f"#!/bin/sh\necho deep {name}\n")
    for name in ("a", "b"):
        for tool, output in (("tool", name), ("deep", f"deep {name}")):
            child = bench.spawner.spawn([tool], {"PATH": "/nowhere::bin"}, str(tmp_path / name))
            bench.wait(child)
            assert bench.printed(child).decode() == f"{output}\n"
            child.close()


def test_what_was_found_from_one_directory_is_not_taken_for_another(bench: Bench, tmp_path: Path) -> None:
    for path in ("a/bin/tool", "b/bin/tool", "b/tool"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        script(tmp_path / path, f"#!/bin/sh\necho {path}\n")
    for name, found in (("a", "a/bin/tool"), ("b", "b/tool")):
        child = bench.spawner.spawn(["tool"], {"PATH": ":bin"}, str(tmp_path / name))
        bench.wait(child)
        assert bench.printed(child).decode() == f"{found}\n"
        child.close()


def test_a_script_without_an_interpreter_line_is_run_by_bash(bench: Bench, tmp_path: Path) -> None:
    text = 'a=(x "$@"); echo "${a[@]}" "$ITEM" "${BASH_VERSION:+bash}"\n'
    (tmp_path / "-c").mkdir()
    for name in ("plain", "-c/plain"):
        script(tmp_path / name, text)
        assert bench.run(name if "/" in name else f"./{name}", "1", "2 3", ITEM="i")[1] == b"x 1 2 3 i bash\n"
    assert bench.run("plain", PATH=f"{os.environ['PATH']}:{tmp_path}")[1] == b"x  bash\n"


def test_a_script_without_an_interpreter_line_is_run_by_sh_where_there_is_no_bash(
    bench: Bench, tmp_path: Path
) -> None:
    script(tmp_path / "plain", 'echo "sh $1"\n')
    assert bench.run("./plain", "1", PATH="/nowhere")[1] == b"sh 1\n"


def test_commands_start_with_default_signals_none_blocked(bench: Bench) -> None:
    old_handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        _, out, _ = bench.run("grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        signal.signal(signal.SIGHUP, old_handler)
    blocked, ignored = (int(line.split()[1], 16) for line in out.splitlines())
    assert blocked == 0
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        assert not ignored >> (number - 1) & 1, number


def test_a_broken_pipe_inside_a_command_is_silent(bench: Bench) -> None:
    exit_, out, err = bench.run("bash", "-c", "yes | head -1; exit ${PIPESTATUS[0]}")
    assert (exit_.exit_code, out, err) == (141, b"y\n", b"")


def test_commands_inherit_no_descriptor_not_even_one_the_worker_inherited(tmp_path: Path) -> None:
    program = script(
        tmp_path / "worker.py",
        "import os, sys, time; from pathlib import Path\n"
        "from ppss_worker.guardian import Guardian\n"
        "from ppss_worker.process import Spawner; from ppss_worker.captures import capture_tail\n"
        "spawner = Spawner(Guardian.start(), Path(sys.argv[1]))\n"
        "other = spawner.spawn(['sleep', '60'], {'PATH': os.environ['PATH']}, '/')\n"
        "child = spawner.spawn(['ls', '/proc/self/fd'], {'PATH': os.environ['PATH']}, '/')\n"
        "while not spawner.reap(): time.sleep(0.01)\n"
        "print(capture_tail(child.stdout, 999)[0].decode().split())\n",
    )
    reader, writer = os.pipe()
    out = subprocess.check_output(
        [sys.executable, str(program), str(tmp_path)], pass_fds=[writer], env=worker_environment(), text=True
    )
    os.close(writer)
    assert out == "['0', '1', '2', '3']\n"  # 3 is what ls reads the list from
    assert select.select([reader], [], [], 20)[0], "the guardian or a command holds the pipe"
    assert os.read(reader, 1) == b""
    os.close(reader)


def worker_environment() -> dict[str, str]:
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


# Output


def test_output_of_more_than_a_pipe_holds_does_not_block(bench: Bench) -> None:
    exit_, out, err = bench.run("sh", "-c", "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2")
    assert (exit_.exit_code, len(out), len(err)) == (0, 300_000, 200_000)


def test_a_hundred_megabytes_of_output_cost_no_memory(bench: Bench) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = bench.spawn("sh", "-c", "head -c 100000000 /dev/zero; echo; echo end")
    bench.wait(child)
    assert last_line(child.stdout, child.stderr) == "end"
    assert capture_tail(child.stdout, 5) == (b"\nend\n", 100_000_005)
    child.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_output_can_be_read_while_the_command_runs(bench: Bench) -> None:
    child = bench.spawn("sh", "-c", "echo first; sleep 60")
    wait_until(lambda: bench.printed(child) == b"first\n", "output of a running command")
    child.kill()
    bench.wait(child)
    child.close()


def test_late_output_of_an_escaped_grandchild_does_not_get_into_the_next_capture(
    bench: Bench, tmp_path: Path
) -> None:
    late = "touch out; while [ ! -e go ]; do sleep 0.01; done; echo late; echo late >&2; touch said"
    escape = f"setsid -f sh -c '{late}'; while [ ! -e out ]; do sleep 0.01; done"
    child = bench.spawn("sh", "-c", escape)
    bench.wait(child)
    child.close()
    following = bench.spawn("sh", "-c", "echo mine; touch go; while [ ! -e said ]; do sleep 0.01; done")
    bench.wait(following)
    assert (bench.printed(following), capture_tail(following.stderr, 99)) == (b"mine\n", (b"", 0))
    following.close()


def test_stderr_opened_by_its_name_is_not_overwritten(bench: Bench) -> None:
    _, _, err = bench.run("bash", "-c", "echo by name > /dev/stderr; echo x >&2")
    assert err == b"by name\nx\n"


def test_captures_leave_no_file_behind(bench: Bench, tmp_path: Path) -> None:
    child = bench.spawn("ls", "-A")
    bench.wait(child)
    assert bench.printed(child) == b""
    child.close()


def test_captures_work_where_the_system_has_no_unnamed_files(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE")
    assert bench.run("ls", "-A")[1] == b""
    assert bench.run("echo", "a")[1] == b"a\n"


def test_given_descriptors_are_used_instead_of_captures_and_left_open(bench: Bench, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = bench.spawner.spawn(
        ["sh", "-c", "echo out; echo err >&2"], bench.environment, str(tmp_path), stdout=writer
    )
    bench.wait(child)
    assert child.stdout == -1
    assert capture_tail(child.stdout, 10) == (b"", 0)
    assert last_line(child.stdout, child.stderr) == "err"
    child.close()
    os.close(writer)
    assert os.read(reader, 100) == b"out\n"
    assert os.read(reader, 100) == b""
    os.close(reader)


def captured(tmp_path: Path, name: str, content: bytes) -> int:
    (tmp_path / name).write_bytes(content)
    return os.open(tmp_path / name, os.O_RDONLY)


@pytest.mark.parametrize(
    ("out", "err", "line"),
    [
        (b"", b"", ""),
        (b"one\ntwo\n\n \t\n", b"", "two"),
        (b"out\n", b"err\n", "err"),
        (b"out\n", b" \n\t\n", "out"),
        (b"", b"no newline", "no newline"),
        (b"10%\r50%\r100%\r\n", b"", "100%"),
        (b"", b"\x1b[31;1mred\x1b[0m \x1b]0;title\x07end\x1b(B", "red end"),
        (b"", b"bell\x07 back\x08 nul\x00 del\x7f \xc2\x9b31mc1\n", "bell back nul del c1"),
        (b"", "a\u202eb\u200b \u00e4\u00a0\u20ac".encode(), "ab ä €"),
        (b"", b"latin \xfc\n", "latin \ufffd"),
        (b"", b"a\tb  c\n", "a b  c"),
        (b"", b"x" * 1000, "x" * 200),
        (b"out\n", b"early\n" + b"\n" * 10_000, "out"),
    ],
)
def test_the_last_line_is_the_last_readable_one(tmp_path: Path, out: bytes, err: bytes, line: str) -> None:
    descriptors = captured(tmp_path, "out", out), captured(tmp_path, "err", err)
    assert last_line(*descriptors) == line
    for descriptor in descriptors:
        os.close(descriptor)


# Signals and what is left


def test_terminate_reaches_the_whole_group_and_stopped_processes_too(bench: Bench) -> None:
    child = bench.spawn("sh", "-c", "sleep 60 & echo $!; kill -STOP $$; wait")
    wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "T", "child stopped")
    grandchild = int(bench.printed(child))
    child.terminate()
    assert bench.wait(child).signal == signal.SIGTERM
    wait_until(lambda: not alive(grandchild), "grandchild dead")
    child.close()


def test_kill_reaches_grandchildren_that_ignore_sigterm(bench: Bench) -> None:
    child = bench.spawn("sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait; sleep 60")
    wait_until(lambda: bench.printed(child).endswith(b"\n"), "grandchild started")
    grandchild = int(bench.printed(child))
    child.terminate()
    child.kill()
    assert bench.wait(child).signal == signal.SIGKILL
    wait_until(lambda: not alive(grandchild), "grandchild dead")
    child.close()


def test_a_background_process_of_a_finished_command_is_killed(bench: Bench) -> None:
    exit_, out, _ = bench.run("sh", "-c", "trap '' TERM HUP; sleep 60 & echo $!; exit 4")
    assert exit_.exit_code == 4
    wait_until(lambda: not alive(int(out)), "background process dead")


def test_a_reaped_child_is_never_signalled_again(bench: Bench) -> None:
    """Its process group's number may belong to somebody else by then."""
    child = bench.spawn("true")
    bench.wait(child)
    victim = subprocess.Popen(["cat"], process_group=0, stdin=subprocess.PIPE)
    child.pid = victim.pid  # as if the number had come round
    child.terminate()
    child.kill()
    victim.communicate()
    assert victim.returncode == 0
    child.close()
    child.close()  # closing twice closes nobody else's files


def test_children_of_others_are_left_to_them_and_hide_nothing(bench: Bench) -> None:
    """waitid shows one zombie, always the same: a foreign one must not hide ours behind it."""
    theirs = subprocess.Popen(["sh", "-c", "exit 7"])
    wait_until(lambda: not alive(theirs.pid), "foreign zombie")
    children = [bench.spawn("sh", "-c", f"exit {code}") for code in (1, 2, 3)]
    exits: list[Exit] = []
    wait_until(lambda: exits.extend(bench.spawner.reap()) or len(exits) == 3, "all of ours reaped")
    assert {exit_.pid: exit_.exit_code for exit_ in exits} == {c.pid: n for n, c in enumerate(children, 1)}
    assert theirs.wait() == 7
    for child in children:
        child.close()


def test_a_thousand_spawns_leave_no_descriptor_and_nothing_watched(bench: Bench) -> None:
    def open_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    bench.run("true")
    before = open_descriptors()
    for _ in range(500):
        assert bench.run("true")[0].exit_code == 0
    for _ in range(250):
        with pytest.raises(SpawnFailed):
            bench.spawn("no-such-program")
        with pytest.raises(SpawnFailed):
            bench.spawn("./no-such-program")
    assert open_descriptors() == before
    assert not bench.guardian._places


def test_sigchld_makes_the_descriptor_readable_and_others_come_along(bench: Bench) -> None:
    got: list[int] = []
    old_handler = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    old_wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(old_wakeup)
    try:
        with ChildSignals() as signals:
            assert signals.drain() == []
            child = bench.spawn("sh", "-c", f"kill -USR1 {os.getpid()}")
            seen: list[int] = []
            while signal.SIGCHLD not in seen:
                assert select.select([signals], [], [], 20)[0]
                seen += signals.drain()
            assert signal.SIGUSR1 in seen
            assert got == [signal.SIGUSR1]
            assert signals.drain() == []
            bench.wait(child)
            child.close()
    finally:
        signal.signal(signal.SIGUSR1, old_handler)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == old_wakeup
