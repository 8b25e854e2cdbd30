"""The line to a master: one SSH connection, shared by all that this process wants of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ppss_queue.address import SshHost
from ppss_queue.errors import ConnectFailed, PpssError

if TYPE_CHECKING:
    import paramiko

    from ppss_queue.ssh.identities import Identities
    from ppss_queue.ssh.login import Session
    from ppss_queue.ssh.opening import Openings
    from ppss_queue.ssh.target import Target

    Channel = paramiko.Channel

_OPEN_SECONDS = 15.0
"""For a channel, or an answer to a request for a command."""
_CLOSE_SECONDS = 0.5
_PROHIBITED = 1
_CONNECT_FAILED = 2
"""SSH_OPEN_ADMINISTRATIVELY_PROHIBITED and SSH_OPEN_CONNECT_FAILED of RFC 4254."""


@dataclass(frozen=True, slots=True)
class Listening:
    """A port of the loopback of the machine at the other end."""

    port: int
    """Chosen by sshd there."""
    _transport: paramiko.Transport = field(repr=False)

    @property
    def lasts(self) -> bool:
        """Whether the connection that it came over is still the one of before."""
        return self._transport.is_active()


class Line:
    """All threads may use it. The connection is made at the first use, and again at the next one after a loss.

    While one thread connects the others wait, and share its failure. Nothing is inherited by commands. A line that
    went dead is noticed within about 20 s: then every channel ends.
    """

    def __init__(self, host: SshHost, *, accept_new: bool = False) -> None:
        """`accept_new`: trust the host from now on if nothing is known of it; a changed key never is."""
        self.host = host
        self._accept_new = accept_new
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._target: Target | None = None
        self._identities: Identities | None = None
        self._session: Session | None = None
        self.accepted: list[str] = []
        """A sentence for each host that was not known, and is trusted from now on."""
        self._worked = False
        self._attempts = 0
        self._failure: PpssError | None = None
        self._ahead: dict[str, Openings] = {}

    def open_ahead(self, service: str, count: int) -> None:
        """Begins to open so many gates at the same time: the next ones that `open_gate` returns.

        Raises ConnectFailed, BadInput.
        """
        self._transport()  # here, as it may ask for a passphrase
        from ppss_queue.ssh.opening import Openings

        self._ahead[service] = Openings(partial(self._open_gate, service), count)

    def open_gate(self, service: str) -> paramiko.Channel:
        """A channel to `ppss gate SERVICE` on the master, after its hello: all bytes are the service's own.

        Reading and writing it raises OSError, EOFError or paramiko.SSHException. Raises ConnectFailed, BadInput.
        """
        ahead = self._ahead.get(service)
        return ahead.next() if ahead and ahead.left else self._open_gate(service)

    def open_command(self, command: str, beside: paramiko.Channel | None = None) -> paramiko.Channel:
        """A channel to a command that the user's login shell executes there; stderr comes apart.

        `beside`: over the connection of that channel, even if it is lost and another one was made.
        Reading and writing it raises OSError, EOFError or paramiko.SSHException. Raises ConnectFailed, BadInput.
        """
        channel = self._channel("session", None, beside.get_transport() if beside else None)
        try:
            self._execute(channel, command)
        except BaseException:
            self.hang_up(channel)
            raise
        return channel

    def open_tcp(self, host: str, port: int) -> paramiko.Channel:
        """A channel to a port as the master sees it. Raises ConnectFailed, BadInput."""
        return self._channel("direct-tcpip", (host, port))

    def open_sftp(self) -> paramiko.Channel:
        """A channel to the SFTP server of sshd. Raises ConnectFailed, BadInput."""
        from ppss_queue.ssh.failures import LOST, SshRefused, is_lost

        channel = self._channel("session", None)
        try:
            channel.invoke_subsystem("sftp")
        except LOST as error:
            if is_lost(channel.get_transport()):
                raise self._lost(channel.get_transport(), error) from None
            self.hang_up(channel)
            raise SshRefused(
                f"sshd of {self.target.host} has no SFTP, so no files can be staged. Allow it there "
                "(Subsystem sftp internal-sftp), or install PPSS there and use its own server."
            ) from None
        return channel

    def open_unix(self, path: str) -> paramiko.Channel:
        """Raises BadInput, as paramiko can't do that."""
        from ppss_queue.errors import BadInput

        raise BadInput(
            f"a unix socket behind {self.host.display()} can't be used. Give the port of that Redis, as in "
            f"ssh://{self.host.display()}/redis://127.0.0.1:6379"
        )

    def listen(self, serve: Callable[[paramiko.Channel], None]) -> Listening:
        """Have the master listen on its loopback, as long as this very connection lives.

        Each connection there is a channel for `serve`, in a thread of its own. Raises SshRefused if it is not allowed,
        ConnectFailed, BadInput.
        """
        from ppss_queue.ssh.failures import LOST, SshRefused, is_lost
        from ppss_queue.ssh.transport import end_with_close

        def begin(channel: paramiko.Channel, origin: tuple[str, int], place: tuple[str, int]) -> None:
            end_with_close(channel)
            threading.Thread(target=serve, args=[channel], name="ssh-serve", daemon=True).start()

        transport = self._transport()
        try:
            return Listening(transport.request_port_forward("127.0.0.1", 0, begin), transport)
        except LOST as error:
            if is_lost(transport):
                raise self._lost(transport, error) from None
            raise SshRefused(
                f"sshd of {self.target.host} lets no port be forwarded back. Allow it there for user "
                f"'{self.target.user}' (AllowTcpForwarding yes or remote, and no PermitListen)."
            ) from None

    def as_socket(self, channel: paramiko.Channel) -> socket.socket:
        """A socket joined to the channel, which belongs to it from now on; see `pump.as_socket`."""
        from ppss_queue.ssh.pump import as_socket

        return as_socket(channel)

    def hang_up(self, channel: paramiko.Channel) -> None:
        """Close a channel; that the connection may be lost meanwhile matters to nobody."""
        from ppss_queue.ssh.failures import LOST

        with suppress(*LOST):
            channel.close()

    def close(self) -> None:
        """End the connection with all its channels; the next use opens another one.

        Where another thread is just connecting, that is left alone: nobody who ends waits for a dead line.
        """
        if not self._lock.acquire(timeout=_CLOSE_SECONDS):
            return
        try:
            session, self._session = self._session, None
            self._ahead.clear()
        finally:
            self._lock.release()
        if session is not None:
            session.close()

    @property
    def target(self) -> Target:
        """What the address means here, read anew for each login. Raises BadInput."""
        if self._target is None:
            from ppss_queue.ssh.target import resolve

            self._target = resolve(self.host)
        return self._target

    def _transport(self) -> paramiko.Transport:
        """The living connection. Raises ConnectFailed, BadInput."""
        seen = self._attempts
        with self._lock:
            if self._session is not None:
                if self._session.transport.is_active():
                    return self._session.transport
                self._session.close()
                self._session = None
            if self._failure is not None and self._attempts != seen:
                raise type(self._failure)(*self._failure.args)
            self._failure = None
            try:
                self._session = self._log_in()
            except PpssError as error:
                self._failure = error
                raise
            finally:
                self._attempts += 1
            return self._session.transport

    def _log_in(self) -> Session:
        from ppss_queue.ssh.failures import LOST, lost, told
        from ppss_queue.ssh.identities import Identities
        from ppss_queue.ssh.login import log_in
        from ppss_queue.ssh.target import resolve

        try:
            self._target = resolve(self.host)  # a master that holds a way open for us has another port now
            if self._identities is None:
                self._identities = Identities(self._target)
            session = log_in(self._target, self._identities, accept_new=self._accept_new)
        except LOST as error:
            raise lost(self.target, told(error)) from None
        except PpssError as error:
            if not self._worked or isinstance(error, ConnectFailed):
                raise
            raise ConnectFailed(str(error)) from None  # it worked before: whoever uses it tries again
        self._worked = True
        self.accepted += session.accepted
        return session

    def _open_gate(self, service: str) -> paramiko.Channel:
        from ppss_queue.ssh.failures import LOST
        from ppss_queue.ssh.greeting import await_hello
        from ppss_queue.ssh.hello import remote_command

        channel = self._channel("session", None)
        try:
            self._execute(channel, remote_command(service))
            await_hello(channel, service, self.target)
            channel.settimeout(None)
        except LOST as error:
            raise self._lost(channel.get_transport(), error) from None
        except BaseException:
            self.hang_up(channel)
            raise
        return channel

    def _channel(
        self,
        kind: str,
        destination: tuple[str, int] | None,
        transport: paramiko.Transport | None = None,
    ) -> paramiko.Channel:
        """`transport`: one of before; None: the living one."""
        import paramiko

        from ppss_queue.ssh.failures import LOST

        transport = transport or self._transport()
        try:
            with self._opening:  # paramiko mixes up the refusals of several threads
                if destination is None:
                    return transport.open_channel(kind, timeout=_OPEN_SECONDS)
                return transport.open_channel(kind, destination, ("127.0.0.1", 0), timeout=_OPEN_SECONDS)
        except paramiko.ChannelException as error:
            raise self._refused(error.code, error.text, destination) from None
        except LOST as error:
            raise self._lost(transport, error) from None

    def _execute(self, channel: paramiko.Channel, command: str) -> None:
        from ppss_queue.ssh.failures import LOST, SshRefused, is_lost

        transport = channel.get_transport()
        try:
            channel.exec_command(command)
        except LOST as error:
            if is_lost(transport):
                raise self._lost(transport, error) from None
            raise SshRefused(
                f"sshd of {self.target.host} runs no commands for user '{self.target.user}' (ForceCommand, "
                "chroot?). Allow them there."
            ) from None

    def _refused(self, code: int, text: str, destination: tuple[str, int] | None) -> ConnectFailed:
        from ppss_queue.ssh.failures import NoMoreSessions

        where = self.target.host
        if destination is None:
            return NoMoreSessions(
                f"sshd of {where} opens no more sessions in one connection ({text}). "
                "Raise MaxSessions in its sshd_config."
            )
        place = f"{destination[0]}:{destination[1]}"
        if code == _PROHIBITED:
            return ConnectFailed(
                f"sshd of {where} does not let this key reach {place} (forwarding is forbidden). Allow it there with "
                f'permitopen="{place}", or use the embedded server: ssh://{self.host.display()}'
            )
        if code == _CONNECT_FAILED:
            return ConnectFailed(
                f"nothing listens at {place} of {where} ({text}). Start Redis there, or leave {place} out to use the "
                "embedded server."
            )
        return ConnectFailed(f"sshd of {where} does not open {place} ({text}).")

    def _lost(self, transport: paramiko.Transport, error: Exception) -> ConnectFailed:
        """Ends a connection that does not answer; the next use makes another one."""
        from ppss_queue.ssh.failures import lost, told

        with suppress(OSError, EOFError):
            transport.close()
        return lost(self.target, told(error))
