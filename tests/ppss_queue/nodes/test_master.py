"""What a master grants to the keys of its nodes, and how these find it."""

from __future__ import annotations

import getpass
import re
import shlex
from pathlib import Path

import pytest

from ppss_queue.address import Address, SshHost
from ppss_queue.errors import BadInput
from ppss_queue.nodes import master
from ppss_queue.nodes.home import NodeHome
from ppss_queue.nodes.master import MasterHome, worker_url
from ppss_queue.server_place import default_place
from ppss_queue.ssh.target import resolve


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Address:
    """The embedded one, of a state directory with a name to be quoted."""
    monkeypatch.setenv("PPSS_STATE_DIR", str(tmp_path / 'a "b" $c'))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    return Address.parse(default_place().address)


def _command(home: MasterHome) -> list[str]:
    """As the shell of sshd reads it."""
    found = re.fullmatch(r'restrict,command="((?:[^"]|\\")*)"', home.grant)
    assert found, home.grant
    return shlex.split(found[1].replace('\\"', '"'))


def test_the_gate_is_named_in_full_with_the_state_directory_of_this_shell(
    own_server: Address, tmp_path: Path
) -> None:
    env, state, program, verb = _command(MasterHome.of(own_server))
    assert (env, state, verb) == ("env", f'PPSS_STATE_DIR={tmp_path}/a "b" $c', "gate")
    assert Path(program).is_absolute() and Path(program).name == "ppss"
    assert worker_url(own_server) == "ssh://ppss-master"


def test_without_a_state_directory_of_its_own_the_gate_needs_none(
    monkeypatch: pytest.MonkeyPatch, own_server: Address
) -> None:
    monkeypatch.delenv("PPSS_STATE_DIR")
    assert len(_command(MasterHome.of(Address.parse(default_place().address)))) == 2


def test_a_line_break_can_not_end_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPSS_STATE_DIR", "/tmp/a\nb")
    with pytest.raises(BadInput, match="has a line break"):
        MasterHome.of(Address.parse(default_place().address))


@pytest.mark.parametrize(
    ("url", "place", "inner"),
    [
        ("redis://db:6380/2", "db:6380", "redis://db:6380/2"),
        ("redis://127.0.0.1", "127.0.0.1:6379", "redis://127.0.0.1:6379"),
        ("redis://[::1]:1", "[::1]:1", "redis://[::1]:1"),
        ("redis://:p%40ss@db", "db:6379", "redis://:p%40ss@db:6379"),
        ("rediss://u:p%2F@db/1", "db:6379", "rediss://u:p%2F@db:6379/1"),
    ],
)
def test_another_redis_is_reached_through_its_port_alone(url: str, place: str, inner: str) -> None:
    address = Address.parse(url)
    grant = f'restrict,port-forwarding,permitopen="{place}",command="internal-sftp"'
    assert MasterHome.of(address).grant == grant
    assert worker_url(address) == f"ssh://ppss-master/{inner}"
    seen = Address.parse(worker_url(address))
    assert (seen.hosts, seen.db, seen.password) == (address.hosts, address.db, address.password)


@pytest.mark.parametrize("url", ["unix:///run/redis.sock", "redis+sentinel://a:1/m", "ssh://me@other"])
def test_a_queue_that_no_node_reaches_through_here_is_refused(url: str) -> None:
    for refuses in (worker_url, MasterHome.of):
        with pytest.raises(BadInput):
            refuses(Address.parse(url))  # type: ignore[operator]


def test_the_configuration_of_a_node_leads_here_and_trusts_nobody_else(
    own_server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = MasterHome.of(own_server)
    paths = NodeHome(f"{tmp_path}/a home", home.id, "m1")
    config = tmp_path / "ssh_config"
    config.write_text(home.ssh_config("10.0.0.5", paths.tilde(paths.key), paths.tilde(paths.known_hosts)))
    monkeypatch.setenv("HOME", paths.home)
    monkeypatch.setenv("PPSS_SSH_CONFIG", str(config))
    target = resolve(SshHost("ppss-master"))
    assert (target.host, target.port, target.user) == ("10.0.0.5", 22, getpass.getuser())
    assert target.key_names == ("ppss-master",) and not target.accept_new
    assert target.known_hosts == (paths.known_hosts,) and not target.system_known_hosts
    assert target.identity_files == (paths.key,) and target.identities_only and not target.agent


def test_a_way_that_is_held_open_is_looked_up_anew_and_ends_at_the_same_host_key(
    own_server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = MasterHome.of(own_server, SshHost("10.0.0.5", port=2222))
    config, way = tmp_path / "ssh_config", tmp_path / "way"
    config.write_text(home.ssh_config("", "k", "h", str(way)))
    monkeypatch.setenv("PPSS_SSH_CONFIG", str(config))
    assert resolve(SshHost("ppss-master")).port == 1, "no port that anybody listens at"
    for port in (40001, 40002):
        way.write_text(f"Port {port}\n")
        target = resolve(SshHost("ppss-master"))
        assert (target.host, target.port, target.key_names) == ("127.0.0.1", port, ("ppss-master",))
    assert home.sshd == ("10.0.0.5", 2222)


def test_where_nodes_find_the_master_can_be_said(own_server: Address) -> None:
    home = MasterHome.of(own_server, SshHost("master.example", port=2222))
    text = home.ssh_config("10.0.0.5", "k", "h")
    assert "HostName master.example\n" in text and "Port 2222\n" in text
    with pytest.raises(BadInput, match="--master HOST"):
        MasterHome.of(own_server).ssh_config("", "k", "h")
    with pytest.raises(BadInput, match="log in here as you"):
        MasterHome.of(own_server, SshHost("master.example", "somebody"))


def test_the_host_keys_are_pinned(
    own_server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "_SSHD", tmp_path)
    (tmp_path / "ssh_host_ed25519_key.pub").write_text("ssh-ed25519 AAAA root@here\n")
    (tmp_path / "ssh_host_rsa_key.pub").write_text("ssh-rsa BBBB\n")
    assert MasterHome.of(own_server).known_hosts == "ppss-master ssh-ed25519 AAAA\nppss-master ssh-rsa BBBB\n"
