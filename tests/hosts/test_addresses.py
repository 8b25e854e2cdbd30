"""Workers and verbs with ssh:// addresses, and what goes wrong there, against a real sshd."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import pytest
from helpers import missing, wait_until
from hosts.lab import Host, Lab
from hosts.ssh import URL, at_terminal, enqueue, logins, pids, ppss, restart_sshd

from ppss_queue.server_binary import binary


def test_a_worker_takes_the_items_of_its_master_through_one_login(lab: Lab) -> None:
    run = enqueue(lab.master, 20, 'echo "$ITEM on $(hostname)"')
    before = logins(lab.master)
    done = ppss(lab["n1"], "worker", "--burst", "--url", URL)
    assert done.code == 0 and f"· {URL}\n" in done.err, done
    assert "ended: 20 succeeded" in done.err
    assert logins(lab.master) == before + 1
    assert ppss(lab.master, "log", run, "#7").code == 0
    assert ppss(lab.master, "wait", run).code == 0


def test_nothing_is_in_the_way_of_a_node_but_a_port_for_ssh(lab: Lab) -> None:
    ppss(lab.master, "server", "start")
    listening = lab.master.run(["ss", "-Hltn"], user="root").stdout
    assert {line.split()[3].rpartition(":")[2] for line in listening.splitlines()} == {"22"}


def test_every_verb_works_from_afar(lab: Lab) -> None:
    n1 = lab["n1"]
    enqueued = ppss(n1, "enqueue", "--url", URL, "--name", "far", "-c", "test {} != 2", stdin="1\n2\n3\n")
    assert enqueued.code == 0, enqueued
    run = enqueued.out.strip()
    assert f"ppss worker --url {URL}" in enqueued.err
    assert ppss(n1, "pause", "far", env={"PPSS_URL": URL}).code == 0
    assert ppss(n1, "resume", "far", "--url", URL).code == 0
    assert ppss(n1, "worker", "--burst", "--url", URL).code == 0
    assert '"failed":1' in ppss(n1, "status", "far", "--json", "--url", URL).out.replace(" ", "")
    assert ppss(n1, "items", "far", "--state", "failed", "--names", "--url", URL).out == "2\0"
    assert ppss(n1, "wait", "far", "--url", URL).code == 1
    assert ppss(n1, "retry", "far", "--url", URL).code == 0
    assert ppss(n1, "cancel", "far", "--url", URL).code == 0
    assert run in ppss(lab.master, "status").out
    assert ppss(n1, "purge", run, "--url", URL).code == 0
    done = ppss(n1, "run", "--keep-output", "--url", URL, "--", "echo", "x{}", stdin="1\n")
    assert (done.code, done.out) == (0, "x1\n"), done


_DURABLE = """
import os, signal, sys
from ppss_queue import connect
queue = connect(sys.argv[1])
policy = lambda: print(queue.connection.execute("CONFIG", "GET", "appendfsync")[1].decode(), flush=True)
policy()
with queue._durable(queue.connection):
    policy()
    if sys.argv[2:]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_enqueued_from_afar_is_flushed_before_the_answer(lab: Lab, killed: bool) -> None:
    """The process there that sees to it ends with the one here, however that ends."""
    words = [sys.executable, "-c", _DURABLE, URL, *(["killed"] if killed else [])]
    done = lab["n1"].run(words, check=False)
    assert done.stdout == "everysec\nalways\n", done
    wait_until(lambda: not pids(lab.master, "ppss gate"), "no gate is left")
    assert lab["n1"].run([*words[:4]]).stdout.startswith("everysec\n")


def test_a_redis_behind_the_host_is_reached_without_ppss_there(lab: Lab) -> None:
    _redis(lab.master, 7000)
    lab.master.run(["rm", "/usr/local/bin/ppss"], user="root")
    url = f"{URL}/redis://127.0.0.1:7000/2"
    done = ppss(lab["n1"], "run", "--keep-output", "--url", url, "--", "echo", "x{}", stdin="1\n")
    assert (done.code, done.out) == (0, "x1\n"), done
    assert f"--url {url}" in ppss(lab["n1"], "enqueue", "--url", url, "--", "true", stdin="1\n").err


def test_the_sentinels_behind_the_host_name_the_master_behind_it(lab: Lab) -> None:
    _redis(lab.master, 7000)
    lab.master.write("sentinel.conf", "port 7001\nsentinel monitor main 127.0.0.1 7000 1\n")
    sentinel = lab.master.popen([str(binary()), "sentinel.conf", "--sentinel"])
    wait_until(lambda: ":7001 " in lab.master.run(["ss", "-ltn"]).stdout, "a sentinel listens")
    assert sentinel.poll() is None
    url = f"{URL}/redis+sentinel://127.0.0.1:7001/main/1"
    done = ppss(lab["n1"], "run", "--keep-output", "--url", url, "--", "echo", "x{}", stdin="1\n")
    assert (done.code, done.out) == (0, "x1\n"), done


def test_a_redis_behind_the_host_may_talk_tls(lab: Lab) -> None:
    """Its certificate is checked on the node; files go by SFTP."""
    master, n1 = lab.master, lab["n1"]
    if shutil.which("openssl") is None:
        missing("openssl to make a certificate with")
    master.run([*_MAKE_CERTIFICATE.split(), "-addext", "subjectAltName=IP:127.0.0.1"])
    program = shutil.which("redis-server") or ""
    options = "--tls-port 7443 --port 0 --tls-auth-clients no --tls-cert-file cert --tls-key-file key"
    server = master.popen([program or "false", *options.split(), "--save", "", "--appendonly", "yes"])
    wait_until(
        lambda: ":7443 " in master.run(["ss", "-ltn"]).stdout or server.poll() is not None, "it listens"
    )
    if server.poll() is not None:
        missing("redis-server with TLS on PATH (apt-get install redis-server)")
    certificate = master.read("cert")
    redis = "rediss://127.0.0.1:7443"
    trusting = {"SSL_CERT_FILE": "cert"}
    master.write("in/x", bytes(range(256)) * 4000)
    words = ["enqueue", "in", "--stage", "-o", "out", "--url", redis, "--", "cp", "{}", "{out}"]
    assert ppss(master, *words, env=trusting).code == 0
    worker = ["worker", "--burst", "--url", f"{URL}/{redis}"]
    assert "is not trusted (self-signed certificate)" in ppss(n1, *worker).refused(3)
    n1.write("cert", certificate)
    done = ppss(n1, *worker, env=trusting)
    assert done.code == 0 and "ended: 1 succeeded" in done.err, done
    assert master.read("out/x") == bytes(range(256)) * 4000
    assert "whether it wants TLS (rediss://)" in ppss(
        n1, *worker[:-1], f"{URL}/redis://127.0.0.1:7443"
    ).refused(3)


_MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test "
    "-keyout key -out cert"
)


def _redis(host: Host, port: int) -> None:
    server = host.popen([str(binary()), "--port", str(port), "--save", "", "--appendonly", "yes"])
    wait_until(lambda: f":{port} " in host.run(["ss", "-ltn"]).stdout, "a server listens")
    assert server.poll() is None


def test_settings_of_ssh_config_count(lab: Lab) -> None:
    n1 = lab["n1"]
    n1.run(["mv", ".ssh/id_ed25519", "key with blank"])
    n1.write(
        ".ssh/config",
        "Include conf.d/*.conf\nHost queue\n  HostName master\n  Port 2222\n"
        '  IdentityFile "~/key with blank"\n  IdentitiesOnly yes\n  HostKeyAlias master\nHost *\n  User nobody\n',
    )
    n1.write(".ssh/conf.d/a.conf", "Host queue\n  User=ppss\nHost other\n  Port 1\n")
    restart_sshd(lab.master, "Port 2222")
    enqueue(lab.master, 1, "true")
    done = ppss(n1, "worker", "--burst", "--url", "ssh://queue")
    assert "1 succeeded" in done.err, done


@pytest.mark.parametrize(
    "setting", ["ProxyJump n2", "ProxyCommand ssh -W %h:%p n2", "ProxyJump ppss@n2:22,n1"]
)
def test_a_master_behind_other_hosts_is_reached_through_them(lab: Lab, setting: str) -> None:
    enqueue(lab.master, 3, "true")
    lab["n1"].write(".ssh/config", f"Host master\n  {setting}\n")
    done = ppss(lab["n1"], "worker", "--burst", "--url", URL)
    assert "3 succeeded" in done.err, done
    if "n2" in setting.split()[-1] or "n2" in setting:
        assert logins(lab["n2"]) >= 1
    wait_until(lambda: not _proxies(lab["n1"]), "no ssh is left")


def _proxies(host: Host) -> str:
    return host.run(["pgrep", "-x", "ssh"], check=False).stdout


def test_hosts_on_the_way_that_lead_in_a_circle_are_named(lab: Lab) -> None:
    lab["n1"].write(".ssh/config", "Host n2\n  ProxyJump master\nHost master\n  ProxyJump n2\n")
    assert "leads in a circle" in ppss(lab["n1"], "status", "--url", URL).refused(2)


# Keys


def test_a_key_of_the_agent_opens(lab: Lab) -> None:
    script = (
        "eval $(ssh-agent) >&2; ssh-add -q .ssh/id_ed25519; rm .ssh/id_ed25519*;"
        "ppss status --url $0; kill $SSH_AGENT_PID"
    )
    done = lab["n1"].run(["bash", "-c", script, URL])
    assert "no run" in (done.stdout + done.stderr).lower(), done


def test_a_key_with_a_passphrase_that_the_agent_has_asks_nobody(lab: Lab) -> None:
    script = (
        "eval $(ssh-agent) >&2; ssh-add -q .ssh/id_ed25519; ssh-keygen -qp -N secret -f .ssh/id_ed25519;"
        "ppss status --url $0; code=$?; kill $SSH_AGENT_PID; exit $code"
    )
    lab["n1"].run(["bash", "-c", script, URL])


def test_too_many_keys_in_an_agent_are_told_with_the_setting_that_helps(lab: Lab) -> None:
    script = (
        "eval $(ssh-agent) >&2; for i in 1 2 3 4 5 6 7; do ssh-keygen -qt ed25519 -N '' -f $i; ssh-add -q $i; done;"
        "ssh-add -q .ssh/id_ed25519; mv .ssh/id_ed25519.pub key.pub; ppss status --url $0; echo $?;"
        "mv key.pub .ssh/id_ed25519.pub; ppss status --url $0; echo $?; mv .ssh/id_ed25519.pub key.pub;"
        "printf 'IdentityFile ~/.ssh/id_ed25519\\nIdentitiesOnly yes\\n' >.ssh/config;"
        "ppss status --url $0; echo $?; kill $SSH_AGENT_PID"
    )
    done = lab["n1"].run(["bash", "-c", script, URL])
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["3", "0", "0"], done
    assert "ppss: master hung up after 6 keys. Name the right one in ~/.ssh/config" in done.stderr


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_keys_of_all_kinds_open_and_one_that_is_not_accepted_is_no_obstacle(lab: Lab, kind: str) -> None:
    n1 = lab["n1"]
    n1.run(
        [
            "bash",
            "-c",
            "cd .ssh; rm id_*; for t in rsa ecdsa ed25519; do ssh-keygen -qt $t -N '' -f id_$t; done",
        ]
    )
    lab.master.write(".ssh/authorized_keys", n1.read(f".ssh/id_{kind}.pub"))
    assert ppss(n1, "status", "--url", URL).code == 0


def test_a_certificate_opens(lab: Lab) -> None:
    n1, master = lab["n1"], lab.master
    master.run(["bash", "-c", "ssh-keygen -qt ed25519 -N '' -f ca"])
    master.write("key.pub", n1.read(".ssh/id_ed25519.pub"))
    master.run(["ssh-keygen", "-q", "-s", "ca", "-I", "n1", "-n", "ppss", "key.pub"])
    n1.write(".ssh/id_ed25519-cert.pub", master.read("key-cert.pub"))
    master.write(".ssh/authorized_keys", b"cert-authority " + master.read("ca.pub"))
    assert ppss(n1, "status", "--url", URL).code == 0


def test_a_passphrase_is_asked_for_on_a_terminal_once_per_worker(lab: Lab) -> None:
    n1 = lab["n1"]
    enqueue(lab.master, 2, "true")
    n1.run(["ssh-keygen", "-qp", "-N", "secret", "-f", ".ssh/id_ed25519"])
    done = at_terminal(n1, "Passphrase", "secret", "worker", "--burst", "--url", URL)
    assert done.stdout.count("Passphrase for") == 1 and "2 succeeded" in done.stdout, done


# What goes wrong


def _no_key(lab: Lab) -> None:
    lab["n1"].run(["rm", ".ssh/id_ed25519"])


def _locked_key(lab: Lab) -> None:
    lab["n1"].run(["ssh-keygen", "-qp", "-N", "secret", "-f", ".ssh/id_ed25519"])


def _wrong_key(lab: Lab) -> None:
    lab.master.write(".ssh/authorized_keys", "")


def _no_ppss(lab: Lab) -> None:
    lab.master.run(["rm", "/usr/local/bin/ppss"], user="root")


def _other_ppss(*, protocol: int, oldest: int) -> Callable[[Lab], None]:
    def replace(lab: Lab) -> None:
        hello = f'{{"ppss_gate":{protocol},"oldest":{oldest},"version":"9.8.7","service":"redis"}}'
        _no_ppss(lab)
        lab.master.write("/usr/local/bin/ppss", f"#!/bin/sh\necho '{hello}'\n", user="root")
        lab.master.run(["chmod", "+x", "/usr/local/bin/ppss"], user="root")

    return replace


def _no_state_directory(lab: Lab) -> None:
    lab.master.write(".local/state/ppss", "a file")


def _forced(command: str) -> Callable[[Lab], None]:
    def force(lab: Lab) -> None:
        key = lab["n1"].read(".ssh/id_ed25519.pub").decode()
        lab.master.write(".ssh/authorized_keys", f'restrict,command="{command}" {key}')

    return force


def _no_shell(lab: Lab) -> None:
    lab.master.run(["sed", "-i", "/^ppss:/s,/bin/bash,/usr/sbin/nologin,", "/etc/passwd"], user="root")


def _chatty(lab: Lab) -> None:
    lab.master.write(".bashrc", "seq 100000\n")


def _few_sessions(lab: Lab) -> None:
    restart_sshd(lab.master, "MaxSessions 0")


def _config(text: str) -> Callable[[Lab], None]:
    return lambda lab: lab["n1"].write(".ssh/config", text)


@pytest.mark.parametrize(
    ("prepare", "url", "code", "says"),
    [
        (None, "ssh://ppss@nosuch", 3, "the host 'nosuch' of ssh://ppss@nosuch is unknown"),
        (None, "ssh://ppss@master:2", 3, "no SSH server listens at master:2 (connection refused)"),
        (None, "ssh://nobody@master", 3, "lets none of this machine's keys in as user 'nobody' (tried: ~/.ssh/id"),
        (_no_key, URL, 3, "there is no SSH key on this machine to log in as ppss@master"),
        (_locked_key, URL, 3, "has a passphrase, and nobody can be asked for it here. Put it into an ssh-agent"),
        (_wrong_key, URL, 3, "or bring a key there: ssh-copy-id ppss@master"),
        (_no_ppss, URL, 2, "PPSS is not installed for user 'ppss' on master"),
        (_other_ppss(protocol=0, oldest=0), URL, 2, "master has PPSS 9.8.7 (gate 0)"),
        (_other_ppss(protocol=9, oldest=8), URL, 2, "the one here is too old. Upgrade PPSS on this machine"),
        (_no_state_directory, URL, 3, "master: the embedded server can't run in '/home/ppss/.local/state/ppss"),
        (_forced("date"), URL, 2, "does not open `ppss gate` to this key"),
        (_forced("ppss gate durable"), URL, 2, "opens only `ppss gate durable` there, not redis"),
        (_forced("internal-sftp"), URL, 2, "does not open `ppss gate` to this key"),
        (_no_shell, URL, 2, 'and says "This account is currently not available."'),
        (_chatty, URL, 2, "print without end"),
        (_few_sessions, URL, 2, "Raise MaxSessions in its sshd_config"),
        (_forced("ppss gate"), f"{URL}/redis://127.0.0.1:7000", 3, "does not let this key reach 127.0.0.1:7000"),
        (None, f"{URL}/redis://127.0.0.1:7000", 3, "nothing listens at 127.0.0.1:7000 of master"),
        (None, f"{URL}/unix:///run/redis.sock", 2, "a unix socket behind ppss@master can't be used"),
        (_config("Host master\n  Port x\n"), URL, 2, "is no port"),
        (_config("Host 'master\n"), URL, 2, "'/home/ppss/.ssh/config' can't be understood"),
        (_config("Host *\n  ProxyCommand false\n"), URL, 3, "the ProxyCommand `false` did not begin an SSH connection"),
        (_config("Host master\n  ProxyJump n9\n"), URL, 3, "the host 'n9' of ssh://n9 is unknown"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_sentence(
    lab: Lab, prepare: Callable[[Lab], None] | None, url: str, code: int, says: str
) -> None:
    if prepare:
        prepare(lab)
    assert says in ppss(lab["n1"], "status", "--url", url).refused(code)
