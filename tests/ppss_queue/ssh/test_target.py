"""What ~/.ssh/config makes of an address."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from ppss_queue.address import SshHost
from ppss_queue.errors import BadInput
from ppss_queue.ssh.target import Target, resolve


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def _resolved(home: Path, config: str, given: str = "queue") -> Target:
    (home / ".ssh" / "config").write_text(config)
    return resolve(SshHost.parse(given))


def test_without_a_configuration_the_defaults_of_ssh_count(home: Path) -> None:
    target = resolve(SshHost("queue"))
    assert (target.host, target.port, target.user) == ("queue", 22, getpass.getuser())
    assert target.key_names == ("queue",)
    assert target.known_hosts[0] == f"{home}/.ssh/known_hosts"
    assert f"{home}/.ssh/id_ed25519" in target.identity_files
    assert not target.jumps and not target.proxy_command and not target.identities_only


def test_each_setting_is_found(home: Path) -> None:
    target = _resolved(
        home,
        """
        Host queue
          HostName q.example
          User me
          Port 2222
          IdentityFile ~/k1
          IdentityFile "~/my keys/%r"
          IdentitiesOnly yes
          CertificateFile ~/c.pub
          UserKnownHostsFile ~/kh /other
          GlobalKnownHostsFile none
          HashKnownHosts yes
          StrictHostKeyChecking accept-new
          ProxyJump a@b:1,c
          Compression yes
        Host *
          User nobody
          IdentityAgent none
        """,
    )
    assert (target.host, target.port, target.user) == ("q.example", 2222, "me")
    assert target.key_names == ("[q.example]:2222", "q.example")
    assert target.identity_files == (f"{home}/k1", f"{home}/my keys/me")
    assert target.identities_only and not target.agent
    assert target.certificate_files == (f"{home}/c.pub",)
    assert target.known_hosts == (f"{home}/kh", "/other") and target.system_known_hosts == ()
    assert target.hash_known_hosts and target.accept_new and target.compress
    assert target.jumps == (SshHost("b", "a", 1), SshHost("c"))


def test_what_is_typed_goes_first(home: Path) -> None:
    target = _resolved(home, "Host *\n User nobody\n Port 1\n", "me@queue:2")
    assert (target.user, target.port) == ("me", 2)


def test_an_alias_is_what_known_hosts_calls_it(home: Path) -> None:
    assert _resolved(home, "Host *\n HostKeyAlias Q\n Port 2\n").key_names == ("q",)


def test_included_files_stand_in_place_and_their_sections_end_with_them(home: Path) -> None:
    (home / ".ssh" / "conf.d").mkdir()
    (home / ".ssh" / "conf.d" / "a").write_text("Host other\n  Port 7\nHost queue\n  User = first\n")
    (home / "more").write_text("Port 9\n")
    config = "Include conf.d/* missing\nHostName q.example\nHost queue\n  Include ~/more\n  User second\n"
    target = _resolved(home, config)
    assert (target.host, target.port, target.user) == ("q.example", 9, "first")
    assert _resolved(home, config, "other").port == 7


def test_a_file_that_includes_itself_ends(home: Path) -> None:
    assert _resolved(home, "Include config\nPort 7\n").port == 7


def test_a_proxy_command_goes_before_a_jump_and_none_means_none(home: Path) -> None:
    target = _resolved(home, "Host *\n ProxyCommand nc -x %h %p %r\n ProxyJump b\n User me\n")
    assert target.proxy_command == "nc -x queue 22 me" and not target.jumps
    assert not _resolved(home, "Host *\n ProxyCommand none\n").proxy_command
    assert not _resolved(home, "Host *\n ProxyJump none\n").jumps


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("Host *\n Port ssh\n", "Port ssh in the configuration of ssh for 'queue' is no port"),
        ("nonsense\n", "can't be understood"),
        ("Host 'a\n", "can't be understood"),
        ("Host *\n ProxyJump a;b\n", "'a;b' is no host that SSH can reach"),
    ],
)
def test_what_can_not_be_understood_is_named(home: Path, config: str, says: str) -> None:
    with pytest.raises(BadInput) as error:
        _resolved(home, config)
    assert says in str(error.value)


def test_a_file_that_is_named_counts_instead_of_both(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.write_text("Host queue\n  Port 7\n")
    monkeypatch.setenv("PPSS_SSH_CONFIG", str(own))
    target = _resolved(home, "Host queue\n  User nobody\n  Port 1\n")
    assert (target.user, target.port) == (getpass.getuser(), 7)
    own.unlink()
    with pytest.raises(BadInput, match="PPSS_SSH_CONFIG names no file"):
        resolve(SshHost("queue"))
