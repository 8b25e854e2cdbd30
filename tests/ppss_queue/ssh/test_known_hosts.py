"""known_hosts files, checked against ssh-keygen where it is there; tests/hosts does it with a real sshd."""

from __future__ import annotations

import base64
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from helpers import missing

from ppss_queue.errors import MachineFailed
from ppss_queue.ssh.known_hosts import HostKey, KnownHosts, Verdict, add, names_of

KEY = HostKey(
    "ssh-ed25519", base64.b64decode("AAAAC3NzaC1lZDI1NTE5AAAAIPi0eBqYK0dUFiTzs0yBNXxF2yjbRi3Ug0AfEvTKgkiN")
)
OTHER = HostKey("ssh-ed25519", KEY.blob[:-1] + b"x")
RSA = HostKey("ssh-rsa", b"\0\0\0\7ssh-rsa")
_LINE = f"ssh-ed25519 {base64.b64encode(KEY.blob).decode()}"


def _judge(tmp_path: Path, text: str, key: HostKey = KEY, host: str = "master", port: int = 22) -> Verdict:
    (tmp_path / "known").write_text(text)
    return KnownHosts([str(tmp_path / "known"), str(tmp_path / "missing")]).judge(names_of(host, port), key)


@pytest.mark.parametrize(
    ("text", "host", "port", "verdict"),
    [
        ("", "master", 22, Verdict.UNKNOWN),
        (f"master {_LINE}", "master", 22, Verdict.KNOWN),
        (f"MASTER,x {_LINE} comment", "Master", 22, Verdict.KNOWN),
        (f"*,!master {_LINE}", "master", 22, Verdict.UNKNOWN),
        (f"m?st*r {_LINE}", "master", 22, Verdict.KNOWN),
        (f"[master]:22 {_LINE}", "master", 22, Verdict.UNKNOWN),
        (f"[master]:2222 {_LINE}", "master", 2222, Verdict.KNOWN),
        (f"[mas]ter {_LINE}", "m", 22, Verdict.UNKNOWN),
        (f"master {_LINE}", "master", 2222, Verdict.KNOWN),
        (f"@revoked * {_LINE}\nmaster {_LINE}", "master", 22, Verdict.REVOKED),
        (f"@cert-authority * {_LINE}", "master", 22, Verdict.UNKNOWN),
        (
            f"# master {_LINE}\nmaster ssh-ed25519\nmaster ssh-ed25519 ???\nslave {_LINE}",
            "master",
            22,
            Verdict.UNKNOWN,
        ),
    ],
)
def test_a_line_is_read_as_ssh_reads_it(
    tmp_path: Path, text: str, host: str, port: int, verdict: Verdict
) -> None:
    assert _judge(tmp_path, text, host=host, port=port) is verdict


def test_another_key_of_a_known_host_has_changed_and_a_name_without_port_only_confirms(
    tmp_path: Path,
) -> None:
    assert _judge(tmp_path, f"master {_LINE}", OTHER) is Verdict.CHANGED
    assert _judge(tmp_path, f"master {_LINE}", RSA) is Verdict.CHANGED
    assert _judge(tmp_path, f"[master]:2222 {_LINE}\n", OTHER, port=2222) is Verdict.CHANGED
    assert _judge(tmp_path, f"master {_LINE}\n", OTHER, port=2222) is Verdict.UNKNOWN


@pytest.mark.parametrize("hashed", [False, True])
def test_what_is_added_is_found_by_us_and_by_ssh(tmp_path: Path, hashed: bool) -> None:
    path = tmp_path / "new" / "known"
    names = names_of("master", 2222)
    add(str(path), names[0], [KEY], hashed=hashed)
    path.write_text(path.read_text().rstrip("\n"))  # somebody's editor
    add(str(path), names[0], [RSA], hashed=hashed)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    known = KnownHosts([str(path)])
    assert known.kinds(names) == ["ssh-ed25519", "ssh-rsa"]
    assert known.judge(names, KEY) is Verdict.KNOWN and known.judge(names, OTHER) is Verdict.CHANGED
    assert ("master" in path.read_text()) is not hashed
    if not shutil.which("ssh-keygen"):
        missing("ssh-keygen")
    found = subprocess.run(
        ["ssh-keygen", "-F", names[0], "-f", path], capture_output=True, text=True, check=True
    )
    assert _LINE in found.stdout
    shown = subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=f"{_LINE}\n", capture_output=True, text=True, check=True
    )
    assert KEY.fingerprint == f"ED25519 {shown.stdout.split()[1]}"


def test_a_file_is_made_for_this_user_alone(tmp_path: Path) -> None:
    add(str(tmp_path / "known"), "master", [KEY], hashed=False)
    assert stat.S_IMODE((tmp_path / "known").stat().st_mode) == 0o600


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "known").mkdir()
    with pytest.raises(MachineFailed, match=r"can't be written to '.*/known' \(Is a directory\)"):
        add(str(tmp_path / "known"), "master", [KEY], hashed=False)
