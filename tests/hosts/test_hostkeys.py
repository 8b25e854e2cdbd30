"""Host keys: who is let in as the master, and `ppss trust`."""

from __future__ import annotations

import pytest
from hosts.lab import Host, Lab
from hosts.ssh import URL, Done, at_terminal, enqueue, logins, ppss, restart_sshd

_SYSTEM = "/etc/ssh/ssh_known_hosts"
_MINE = "/home/ppss/.ssh/known_hosts"


def _key(host: Host, kind: str = "ed25519") -> str:
    """Kind and key, as known_hosts has them."""
    fields = host.read(f"/etc/ssh/ssh_host_{kind}_key.pub", user="root").decode().split()
    return " ".join(fields[:2])


def _fingerprint(host: Host, kind: str = "ed25519") -> str:
    shown = host.run(["ssh-keygen", "-lf", f"/etc/ssh/ssh_host_{kind}_key.pub"]).stdout.split()
    return f"{kind.upper()} {shown[1]}"


def _new_key(host: Host, kind: str = "ed25519") -> None:
    """Another one for its sshd, beside or instead of those that it has."""
    path = f"/etc/ssh/ssh_host_{kind}_key"
    host.run(["sh", "-c", f"rm -f {path}*; ssh-keygen -qt {kind} -N '' -f {path}"], user="root")
    restart_sshd(host, *([f"HostKey {path}"] if kind != "ed25519" else []))


def _status(host: Host, *options: str, url: str = URL) -> Done:
    return ppss(host, "status", "--url", url, *options)


@pytest.fixture
def n1(lab: Lab) -> Host:
    """A node that knows no host; `ssh` there would accept none either."""
    lab["n1"].run(["sh", "-c", f": > {_SYSTEM}"], user="root")
    return lab["n1"]


def test_an_unknown_host_is_refused_until_it_is_trusted(lab: Lab, n1: Host) -> None:
    enqueue(lab.master, 1, "true")
    fingerprint = _fingerprint(lab.master)
    refused = ppss(n1, "worker", "--burst", "--url", URL).refused(3)
    assert refused == (
        f"host key of 'master' is unknown ({fingerprint}). If that is right: ppss trust ppss@master"
    )
    assert logins(lab.master) == 0
    trusted = ppss(n1, "trust", "--yes", "ppss@master")
    assert trusted.code == 0, trusted
    assert trusted.out == f"host key of 'master':\n  {fingerprint}\n"
    assert n1.read(_MINE).decode() == f"master {_key(lab.master)}\n"
    assert n1.run(["stat", "-c", "%a", _MINE]).stdout == "600\n"
    assert "1 succeeded" in ppss(n1, "worker", "--burst", "--url", URL).err
    n1.run(["ssh", "master", "true"])


def test_trust_asks_on_a_terminal_alone(lab: Lab, n1: Host) -> None:
    refused = ppss(n1, "trust", "master")
    assert refused.refused(2) == ("nobody can be asked here. If this key is right: ppss trust --yes master")
    assert _fingerprint(lab.master) in refused.out
    answers = {"y": ("trusted from now on", True), "n": ("nothing was written", False)}
    for answer in ("n", "y"):
        typed = at_terminal(n1, "[y/N]", answer, "trust", "master")
        says, known = answers[answer]
        assert says in typed.stdout, typed
        assert (n1.run(["ssh-keygen", "-F", "master"], check=False).returncode == 0) is known
    again = ppss(n1, "trust", "master")
    assert again.code == 0 and "is trusted already" in again.err


def test_trust_writes_down_all_keys_and_makes_what_is_missing(lab: Lab, n1: Host) -> None:
    for kind in ("rsa", "ecdsa"):
        _new_key(lab.master, kind)
    n1.run(["sh", "-c", "mkdir keys; mv .ssh/id* keys; rm -r .ssh"])
    trusted = ppss(n1, "trust", "--yes", "master:22")
    assert trusted.code == 0, trusted
    for kind in ("ed25519", "ecdsa", "rsa"):
        assert _fingerprint(lab.master, kind) in trusted.out
        assert f"master {_key(lab.master, kind)}\n" in n1.read(_MINE).decode()
    assert n1.run(["stat", "-c", "%a", "/home/ppss/.ssh"]).stdout == "700\n"


def test_trust_hashes_names_where_ssh_does_and_through_another_host(lab: Lab, n1: Host) -> None:
    n1.write(_MINE, f"n2 {_key(lab['n2'])}")
    n1.write(".ssh/config", "HashKnownHosts yes\nHost master\n  Port 2222\n  ProxyJump n2\n")
    restart_sshd(lab.master, "Port 2222")
    assert ppss(n1, "trust", "--yes", "master").code == 0
    text = n1.read(_MINE).decode()
    assert text.count("\n") == 2 and text.splitlines()[1].startswith("|1|") and "master" not in text
    assert n1.run(["ssh-keygen", "-F", "[master]:2222"]).stdout
    assert _status(n1).code == 0
    n1.run(["ssh", "master", "true"])


def test_a_changed_key_is_never_accepted(lab: Lab, n1: Host) -> None:
    assert ppss(n1, "trust", "--yes", "master").code == 0
    before = n1.read(_MINE)
    _new_key(lab.master)
    for refused in (
        _status(n1),
        _status(n1, "--accept-new"),
        ppss(n1, "trust", "--yes", "master"),
        ppss(n1, "status", "--url", URL, env={"PPSS_ACCEPT_NEW": "1"}),
    ):
        sentence = refused.refused(3)
        assert f"has changed (now {_fingerprint(lab.master)}; line 1 of {_MINE} has" in sentence
        assert "ssh-keygen -R 'master', then ppss trust" in sentence
    assert n1.read(_MINE) == before
    n1.run(["ssh-keygen", "-R", "master"])
    assert ppss(n1, "trust", "--yes", "master").code == 0
    assert _status(n1).code == 0


def test_a_known_host_that_shows_only_a_key_of_another_kind_has_changed(lab: Lab, n1: Host) -> None:
    """It may be somebody else who asks to be trusted as a new one."""
    n1.run(["ssh-keygen", "-qt", "rsa", "-N", "", "-f", "other"])
    n1.write(_MINE, b"master " + n1.read("other.pub"))
    for refused in (_status(n1), _status(n1, "--accept-new"), ppss(n1, "trust", "--yes", "master")):
        assert "has changed" in refused.refused(3)


def test_a_host_is_asked_for_the_key_that_is_known(lab: Lab, n1: Host) -> None:
    for kind in ("ecdsa", "rsa"):
        _new_key(lab.master, kind)
    for kind in ("ed25519", "ecdsa", "rsa"):
        n1.write(_MINE, f"master {_key(lab.master, kind)}\n")
        assert _status(n1).code == 0, kind
        known = ppss(n1, "trust", "--yes", "master")
        assert known.code == 0 and "is trusted already" in known.err


def test_accept_new_trusts_an_unknown_host_and_remembers_it(lab: Lab, n1: Host) -> None:
    accepted = _status(n1, "--accept-new")
    assert accepted.code == 0
    assert (
        f"ppss: 'master' was not known and is trusted from now on ({_fingerprint(lab.master)}).\n"
        in accepted.err
    )
    assert n1.read(_MINE).decode() == f"master {_key(lab.master)}\n"
    again = _status(n1, "--accept-new")
    assert again.code == 0 and "trusted" not in again.err


def test_no_file_to_write_to_is_told(lab: Lab, n1: Host) -> None:
    n1.write(".ssh/config", "UserKnownHostsFile none\n")
    assert "names no file to write a host key to" in ppss(n1, "trust", "--yes", "master").refused(2)
    assert "is unknown" in _status(n1, "--accept-new").refused(3)


def test_a_revoked_key_is_never_accepted(lab: Lab, n1: Host) -> None:
    n1.write(_MINE, f"master {_key(lab.master)}\n@revoked * {_key(lab.master)}\n")
    for refused in (_status(n1), _status(n1, "--accept-new"), ppss(n1, "trust", "--yes", "master")):
        assert "was revoked" in refused.refused(3)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ("", "master,10.0.0.1 {key} a comment"),
        ("", "# a comment\n\nbad line\n*.example,m?st* {key}"),
        ("Host master\n  HostKeyAlias queue\n", "queue {key}"),
        ("Host master\n  HostName 10.77.0.100\n", "10.77.0.100 {key}"),
        ("Host master\n  UserKnownHostsFile ~/mine\n", ""),
    ],
)
def test_a_key_is_known_by_any_name_that_ssh_would_know_it_by(
    lab: Lab, n1: Host, config: str, known: str
) -> None:
    n1.write(".ssh/config", config)
    n1.write("mine", f"master {_key(lab.master)}")
    n1.write(_MINE, known.format(key=_key(lab.master)))
    assert _status(n1).code == 0
    n1.run(["ssh", "master", "true"])


def test_a_hashed_name_and_one_with_a_port_are_known(lab: Lab, n1: Host) -> None:
    restart_sshd(lab.master, "Port 22", "Port 2222")
    n1.write(_MINE, f"master {_key(lab.master)}\n")
    assert _status(n1, url="ssh://ppss@master:2222").code == 0, "known without a port"
    n1.write(_MINE, f"[master]:2222 {_key(lab.master)}\n")
    n1.run(["ssh-keygen", "-H"])
    assert _status(n1, url="ssh://ppss@master:2222").code == 0
    assert "is unknown" in _status(n1).refused(3)


def test_a_host_on_the_way_must_be_known_too(lab: Lab, n1: Host) -> None:
    n1.write(_MINE, f"master {_key(lab.master)}\n")
    n1.write(".ssh/config", "Host master\n  ProxyJump ppss@n2\n")
    assert "host key of 'n2' is unknown" in (sentence := _status(n1).refused(3))
    assert sentence.endswith("ppss trust ppss@n2")


def test_the_systems_file_counts(lab: Lab, n1: Host) -> None:
    n1.write(_SYSTEM, f"master {_key(lab.master)}\n", user="root")
    assert _status(n1).code == 0
