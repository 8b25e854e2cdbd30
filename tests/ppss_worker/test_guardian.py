"""What becomes of a worker's commands when the worker dies: real workers, killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ppss_worker.guardian import Guardian
from ppss_worker.process import Spawner

from ppss_queue.errors import MachineFailed

WORKER = """
import os, sys, time
from pathlib import Path
from ppss_worker.guardian import Guardian
from ppss_worker.process import Spawner
guardian = Guardian.start()
spawner = Spawner(guardian, Path(sys.argv[1]))
environment = {"PATH": os.environ["PATH"]}
children = [spawner.spawn(["bash", "-c", text], environment, sys.argv[1]) for text in sys.argv[3:]]
print(guardian.pid, flush=True)
deadline = time.monotonic() + 60
ended = 0
while sys.argv[2] == "stay" or ended < len(children):
    ended += len(spawner.reap())
    assert time.monotonic() < deadline
    time.sleep(0.01)
if sys.argv[2] == "close":
    guardian.close()
"""


def wait_until(condition: Callable[[], object], what: str, timeout_seconds: float = 20) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(0.005)


def state(pid: int) -> str:
    """Letter of ps, "" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid: int) -> bool:
    return state(pid) in ("", "Z", "X")


class Workers:
    """Starts workers and kills at the end what a failed test left of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[subprocess.Popen[str]] = []
        (directory / "worker.py").write_text(WORKER)

    def start(
        self, end: str, *commands: str, around: tuple[str, ...] = ()
    ) -> tuple[subprocess.Popen[str], int]:
        """Worker and pid of its guardian; `end`: "stay", "leave" once all ended, "close" then in order."""
        argv = [
            *around,
            sys.executable,
            str(self.directory / "worker.py"),
            str(self.directory),
            end,
            *commands,
        ]
        environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        worker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
        self._started.append(worker)
        assert worker.stdout is not None
        return worker, int(worker.stdout.readline())

    def pid_in(self, name: str) -> int:
        """The pid that a command wrote to this file."""
        path = self.directory / name
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"{name} written")
        return int(path.read_text())

    def clean_up(self) -> None:
        for worker in self._started:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
        for path in self.directory.glob("pid-*"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(tmp_path)
    yield workers
    workers.clean_up()


FOREVER = "echo $$ > {0}.new; mv {0}.new {0}; trap '' TERM HUP INT; while :; do sleep 1; done"
NORMAL = FOREVER.format("pid-normal")
GRANDCHILD = f"bash -c '{FOREVER.format('pid-grandchild')}'; true".replace("trap ''", 'trap ""')
ESCAPEE = f"setsid bash -c '{FOREVER.format('pid-escapee')}'; true".replace("trap ''", 'trap ""')
DAEMON = f"(setsid bash -c '{FOREVER.format('pid-daemon')}' </dev/null >/dev/null 2>&1 &) & sleep 60".replace(
    "trap ''", 'trap ""'
)
STOPPED = "echo $$ > pid-stopped; kill -STOP $$; sleep 60"


def test_every_command_of_a_killed_worker_dies(workers: Workers) -> None:
    """Also those that left their process group, and stopped ones: else an item would run twice at once."""
    worker, guardian = workers.start("stay", NORMAL, GRANDCHILD, ESCAPEE, DAEMON, STOPPED)
    pids = {
        name: workers.pid_in(f"pid-{name}")
        for name in ("normal", "grandchild", "escapee", "daemon", "stopped")
    }
    wait_until(lambda: state(pids["stopped"]) == "T", "stopped")
    assert not any(map(gone, pids.values()))
    os.kill(worker.pid, signal.SIGKILL)
    for name, pid in pids.items():
        wait_until(lambda pid=pid: gone(pid), f"{name} dead")  # type: ignore[misc]
    wait_until(lambda: gone(guardian), "guardian gone")


def test_a_worker_killed_while_its_guardian_is_still_starting_leaves_nothing(
    workers: Workers,
) -> None:
    for _ in range(5):
        worker, guardian = workers.start("stay", NORMAL)
        os.kill(worker.pid, signal.SIGKILL)  # most often before the command has written its pid
        wait_until(lambda guardian=guardian: gone(guardian), "guardian gone")  # type: ignore[misc]
        path = workers.directory / "pid-normal"
        assert not path.exists() or gone(int(path.read_text()))
        path.unlink(missing_ok=True)


def test_other_peoples_processes_are_left_alone(workers: Workers, tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"], env={"PPSS_WORKER_KEY": "of another worker"})
    worker, guardian = workers.start("stay", NORMAL)
    workers.pid_in("pid-normal")
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: gone(guardian), "guardian gone")
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_no_signal_but_sigkill_ends_the_guardian(workers: Workers) -> None:
    worker, guardian = workers.start("stay", NORMAL)
    normal = workers.pid_in("pid-normal")
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGTSTP,
        signal.SIGUSR1,
    ):
        os.kill(guardian, number)
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: gone(normal), "command dead")


def test_a_signal_to_the_workers_session_spares_the_guardian(workers: Workers) -> None:
    """A closed terminal or `kill -- -GROUP` ends the worker; the commands must not be forgotten with it."""
    worker, guardian = workers.start("stay", NORMAL, around=("setsid",))
    normal = workers.pid_in("pid-normal")
    assert os.getsid(guardian) != os.getsid(worker.pid)
    assert os.getpgid(worker.pid) == worker.pid
    os.killpg(worker.pid, signal.SIGKILL)
    wait_until(lambda: gone(normal), "command dead")


def test_a_worker_inside_a_command_of_another_worker_dies_with_it_and_so_do_its_commands(
    workers: Workers,
) -> None:
    """The outer marker must not be in the inner guardian, which is needed to kill the inner commands."""
    inner = f"{sys.executable} {workers.directory}/worker.py {workers.directory} stay '{ESCAPEE_INNER}'"
    worker, guardian = workers.start(
        "stay", f"export PYTHONPATH='{os.pathsep.join(filter(None, sys.path))}'; {inner}"
    )
    escapee = workers.pid_in("pid-inner")
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: gone(escapee), "command of the inner worker dead")
    wait_until(lambda: gone(guardian), "guardian gone")


ESCAPEE_INNER = "echo $$ > pid-inner; exec setsid --wait sleep 60"


def test_the_guardian_is_gone_after_an_orderly_end_and_kills_nothing_else(workers: Workers) -> None:
    command = (
        "setsid -f bash -c 'echo $$ > pid-left; exec sleep 60' > /dev/null 2>&1; "
        "while [ ! -s pid-left ]; do sleep 0.01; done"
    )
    worker, guardian = workers.start("close", command)
    assert worker.wait(20) == 0
    assert gone(guardian)
    assert not gone(workers.pid_in("pid-left"))


def test_the_guardian_holds_nobodys_pipe_open(workers: Workers) -> None:
    """`worker | cat` must end when the worker ends, even if the guardian is stopped."""
    worker, guardian = workers.start("leave", "true; while [ ! -e go ]; do sleep 0.01; done")
    cwd = Path(f"/proc/{guardian}/cwd")
    wait_until(lambda: cwd.readlink() == Path("/"), "guardian holds no directory")
    os.kill(guardian, signal.SIGSTOP)
    (workers.directory / "go").touch()
    try:
        assert worker.stdout is not None
        assert select.select([worker.stdout], [], [], 20)[0], "someone else holds the worker's stdout"
        assert worker.stdout.read() == ""
    finally:
        os.kill(guardian, signal.SIGCONT)


def test_a_killed_guardian_is_replaced_by_one_that_knows_what_runs(workers: Workers) -> None:
    worker, guardian = workers.start("stay", NORMAL, STOPPED)
    normal, stopped = workers.pid_in("pid-normal"), workers.pid_in("pid-stopped")
    os.kill(guardian, signal.SIGKILL)
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")

    def successors() -> set[int]:
        return {int(pid) for pid in children.read_text().split()} - {guardian, normal, stopped}

    wait_until(lambda: gone(guardian) and successors(), "a new guardian")
    (successor,) = successors()
    os.kill(worker.pid, signal.SIGKILL)
    for pid in (normal, stopped, successor):
        wait_until(lambda pid=pid: gone(pid), f"{pid} dead")  # type: ignore[misc]


def test_a_guardian_that_fails_by_itself_is_not_started_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    guardian = Guardian.start()
    spawner = Spawner(guardian, tmp_path)
    with pytest.raises(MachineFailed, match="exit code 1"):
        wait_until(lambda: spawner.reap(), "guardian's end seen")
    guardian.close()


def test_a_guardian_that_cannot_be_started_is_the_fault_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(MachineFailed, match="guardian can't be started"):
        Guardian.start()


def test_close_kills_what_is_watched_and_spares_what_was_forgotten() -> None:
    watched, forgotten = (subprocess.Popen(["sleep", "60"], process_group=0) for _ in range(2))
    guardian = Guardian.start()
    for process in (forgotten, watched):
        guardian.watch(process.pid)
    guardian.forget(forgotten.pid)
    guardian.close()
    assert watched.wait(20) == -signal.SIGKILL
    forgotten.terminate()
    assert forgotten.wait(20) == -signal.SIGTERM


def test_registered_groups_are_killed_without_any_marker(workers: Workers) -> None:
    """What runs in a group is found by the table alone, e.g. `env -i program`, which has no marker."""
    bare = [f"echo $$ > pid-{name}; exec env -i /bin/sleep 60" for name in ("first", "last")]
    worker, guardian = workers.start("stay", bare[0], "echo $$ > pid-ended", bare[1])
    first, ended, last = (workers.pid_in(f"pid-{name}") for name in ("first", "ended", "last"))
    wait_until(lambda: state(ended) == "", "the command that ended reaped")
    for pid in (first, last):
        environment = Path(f"/proc/{pid}/environ")
        wait_until(lambda environment=environment: environment.read_bytes() == b"", "no marker")  # type: ignore[misc]
    os.kill(worker.pid, signal.SIGKILL)
    for pid in (first, last, guardian):
        wait_until(lambda pid=pid: gone(pid), f"{pid} dead")  # type: ignore[misc]
