"""What tests of ssh:// share: running ppss on a host, and changing an sshd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from subprocess import CompletedProcess

from helpers import wait_until
from hosts.lab import Host

URL = "ssh://ppss@master"


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int) -> str:
        """The one sentence that it ended with."""
        assert self.code == code, self
        assert self.err.startswith("ppss: ") and self.err.endswith("\n"), self
        sentence = self.err.removeprefix("ppss: ").removesuffix("\n")
        assert "\n" not in sentence and "Traceback" not in sentence and "[Errno" not in sentence, self
        return sentence


def ppss(host: Host, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Done:
    """Run a verb there as user ppss."""
    done = host.run(["ppss", *arguments], stdin=stdin, env=env, check=False, timeout_seconds=90)
    return Done(done.returncode, done.stdout, done.stderr)


def enqueue(host: Host, items: int, command: str, *options: str) -> str:
    """A run of so many items; its id."""
    lines = "".join(f"{number}\n" for number in range(1, items + 1))
    done = ppss(host, "enqueue", "-c", command, *options, stdin=lines)
    assert done.code == 0, done
    return done.out.strip()


def logins(host: Host) -> int:
    """How often its sshd let somebody in."""
    return host.read("/var/log/sshd.log", user="root").count(b"Accepted publickey")


def pids(host: Host, pattern: str) -> list[int]:
    """Processes of a host whose command line matches."""
    found = host.run(["pgrep", "-f", pattern], user="root", check=False).stdout
    return [int(pid) for pid in found.split()]


def restart_sshd(host: Host, *settings: str) -> None:
    """End sshd with all its connections, and start it with these settings before its own."""
    stop_sshd(host)
    if settings:
        text = "".join(f"{line}\n" for line in settings)
        host.write(
            "/etc/ssh/sshd_config",
            text.encode() + host.read("/etc/ssh/sshd_config", user="root"),
            user="root",
        )
    start_sshd(host)


def stop_sshd(host: Host) -> None:
    """Also the processes that serve connections."""
    host.run(["pkill", "-KILL", "-x", "sshd"], user="root", check=False)
    wait_until(lambda: not pids(host, "^sshd: |/sshd "), "sshd is gone")


def start_sshd(host: Host) -> None:
    host.run(["/usr/sbin/sshd", "-E", "/var/log/sshd.log"], user="root")


def at_terminal(host: Host, question: str, answer: str, *arguments: str) -> CompletedProcess[str]:
    """Run a verb at a terminal, where this is typed whenever it asks so; stdout is all that was seen."""
    return host.run(["python3", "-c", _TYPIST, question, answer, "ppss", *arguments], check=False)


_TYPIST = """
import os, pty, sys
question, answer, *words = sys.argv[1:]
def read(fd):
    data = os.read(fd, 1024)
    if question.encode() in data:
        os.write(fd, answer.encode() + b"\\n")
    return data
pid, fd = pty.fork()
if pid == 0:
    os.execvp(words[0], words)
try:
    while data := read(fd):
        sys.stdout.buffer.write(data)
except OSError:
    pass  # how the end of the other side shows
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
