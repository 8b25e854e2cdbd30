"""The gate on the master, and lines that are cut, hang, or lose their sshd."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import pytest
from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.ssh import URL, enqueue, logins, pids, ppss, restart_sshd, start_sshd, stop_sshd

from ppss_queue import __version__

_GATE = "ppss gate"


def _forced(lab: Lab, options: str = 'restrict,command="ppss gate"') -> None:
    """n1's key may do nothing on master but this."""
    lab.master.write(".ssh/authorized_keys", f"{options} {lab['n1'].read('.ssh/id_ed25519.pub').decode()}")


def _succeeded(lab: Lab, run: str) -> int:
    found = re.search(r'"succeeded": ?(\d+)', ppss(lab.master, "status", run, "--json").out)
    return int(found[1]) if found else -1


def _worker(host: Host, *options: str) -> Callable[[], str]:
    """A worker that runs on until the test ends; what it said so far."""
    host.run(["sh", "-c", f"setsid ppss worker --url {URL} {' '.join(options)} >log 2>&1 &"])
    wait_until(lambda: b"worker " in host.read("log"), "the worker has begun")
    return lambda: host.read("log").decode()


# What a key with a forced command can do


def test_a_key_that_may_do_nothing_but_the_gate_is_enough(lab: Lab) -> None:
    _forced(lab)
    enqueue(lab.master, 5, "true")
    done = ppss(lab["n1"], "worker", "--burst", "--url", URL)
    assert done.code == 0 and "ended: 5 succeeded" in done.err, done
    assert lab["n1"].run(["ssh", "master", "id"], check=False).stdout.startswith('{"ppss_gate":')


@pytest.mark.parametrize(
    "asked",
    [
        "id",
        "ppss gate redis; id",
        "ppss gate redis\nid",
        "ppss gate $(id)",
        "sh -c 'exec ppss gate redis'; id'",
        "sh -c 'exec ppss gate redis' && id",
        "ppss gate redis durable",
        "ppss gate nothing",
        "ppss server stop",
        "",
    ],
)
def test_what_else_such_a_key_asks_for_is_refused_and_not_executed(lab: Lab, asked: str) -> None:
    _forced(lab)
    done = lab["n1"].run(["ssh", "master", asked] if asked else ["ssh", "-T", "master"], check=False)
    assert done.returncode == 2
    assert re.fullmatch(r'\{"ppss_gate":1,[^\n]*"error":"the gate opens [^\n]*"exit":2\}\n', done.stdout), (
        done
    )


def test_the_gate_says_hello_and_nothing_else(lab: Lab) -> None:
    hello = f'{{"ppss_gate":1,"oldest":1,"version":"{__version__}","service":"redis"}}\n'
    for command in ("ppss gate redis", "ppss gate redis </dev/null"):
        done = lab.master.run(["sh", "-c", f"printf 'PING\\r\\n' | {command}; true"])
        assert done.stdout.startswith(hello) and done.stdout.removeprefix(hello) in ("", "+PONG\r\n"), done
        assert done.stderr == ""


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/dash", "/bin/bash"])
def test_login_scripts_may_print_and_any_login_shell_will_do(lab: Lab, shell: str) -> None:
    lab.master.run(["sed", "-i", f"/^ppss:/s,/bin/bash,{shell},", "/etc/passwd"], user="root")
    lab.master.write(".bashrc", 'echo Welcome; printf \'{"ppss\'; seq 10000; printf "no newline"\n')
    lab.master.run(["mkdir", "-p", ".local/bin"])
    lab.master.run(["sh", "-c", "mv $(command -v ppss) /home/ppss/.local/bin"], user="root")
    enqueue_far = ppss(lab["n1"], "enqueue", "--url", URL, "--", "true", stdin="1\n")
    assert enqueue_far.code == 0, enqueue_far


def test_the_gates_of_a_worker_are_opened_without_waiting_for_one_another(lab: Lab) -> None:
    """On a far line each takes three round trips."""
    meet = "echo >>here; until [ $(wc -l <here) = 2 ]; do sleep 0.05; done; exec ppss gate"
    lab.master.write("meet", meet)
    _forced(lab, 'restrict,command="sh meet"')
    assert ppss(lab["n1"], "worker", "--burst", "--url", URL).code == 0


# What is left on the master


def test_nothing_is_left_on_the_master_when_a_worker_is_killed(lab: Lab) -> None:
    _worker(lab["n1"])
    assert len(pids(lab.master, _GATE)) == 2, "that is all that a worker without --stage takes there"
    lab["n1"].run(["pkill", "-KILL", "-f", "ppss worker"])
    wait_until(lambda: not pids(lab.master, _GATE), "no gate is left")
    wait_until(lambda: not pids(lab.master, "sshd: ppss"), "no sshd of it is left")


def test_sshd_ends_the_gates_of_a_node_without_power_if_it_is_set_to_ask(lab: Lab) -> None:
    restart_sshd(lab.master, "ClientAliveInterval 2", "ClientAliveCountMax 2")
    _worker(lab["n1"])
    lab["n1"].kill()
    wait_until(lambda: not pids(lab.master, _GATE), "no gate is left", 30)


def test_the_gates_of_a_node_that_never_comes_back_end_by_themselves(lab: Lab) -> None:
    """They say something now and then, so TCP gives up: here after seconds, usually after a quarter of an hour."""
    lab.master.run(["sh", "-c", "echo 2 > /proc/sys/net/ipv4/tcp_retries2"], user="root")
    run = enqueue(lab.master, 1, ": {}; sleep 100", "--visibility", "2s")
    _worker(lab["n1"])
    wait_until(lambda: '"leased": 1' in ppss(lab.master, "status", run, "--json").out, "it works")
    lab["n1"].kill()
    assert len(pids(lab.master, _GATE)) == 2
    left = "while pgrep -f '[p]pss gate|^sshd: [p]pss'; do sleep 0.5; done"
    lab.master.run(["sh", "-c", left], user="root", timeout_seconds=90)


def test_a_gate_at_rest_costs_no_time(lab: Lab) -> None:
    _worker(lab["n1"])
    time.sleep(1)
    script = "cat /proc/$(pgrep -of 'ppss gate')/stat"
    used = [
        lab.master.run(["sh", "-c", script]).stdout.split()[13:15] for _ in (time.sleep(2), time.sleep(2))
    ]
    assert sum(map(int, used[1])) - sum(map(int, used[0])) <= 2, "in hundredths of a second"


# Lines that fail


def test_a_cut_of_ten_seconds_is_survived_on_the_same_connection(lab: Lab) -> None:
    run = enqueue(lab.master, 40, ": {}; sleep 0.4")
    said = _worker(lab["n1"], "-p", "2")
    wait_until(lambda: _succeeded(lab, run) > 2, "it works")
    before = logins(lab.master)
    lab["n1"].cut()
    time.sleep(10)
    lab["n1"].heal()
    wait_until(lambda: _succeeded(lab, run) == 40, "all is done", 60)
    assert logins(lab.master) == before
    assert "lost" not in said()
    assert "attempt 2" not in said()


def test_a_line_that_went_dead_is_noticed_and_made_again(lab: Lab) -> None:
    """The packets vanish, and with them every sign of an end: only silence tells."""
    run = enqueue(lab.master, 1000, ": {}; sleep 0.4")
    said = _worker(lab["n1"], "-p", "2")
    wait_until(lambda: _succeeded(lab, run) > 2, "it works")
    lab["n1"].cut()
    wait_until(lambda: "lost" in said(), "it is noticed, by TCP alone after a quarter of an hour", 60)
    lab["n1"].heal()
    done = _succeeded(lab, run)
    wait_until(lambda: _succeeded(lab, run) > done + 4, "it goes on", 60)
    ppss(lab.master, "cancel", run)


def test_a_master_whose_kernel_alone_answers_is_noticed(lab: Lab) -> None:
    """TCP sees nothing wrong there."""
    waiting = lab["n1"].popen([sys.executable, "-c", _WAITS % URL])
    assert waiting.stdout
    assert waiting.stdout.readline() == b"open\n"
    lab.master.freeze()
    assert waiting.wait(60) == 0
    assert waiting.stdout.readline() == b"b''\n"


_WAITS = """
from ppss_queue.address import Address
from ppss_queue.ssh.line import Line
line = Line(Address.parse(%r).via)
joined = line.as_socket(line.open_gate("redis"))
print("open", flush=True)
print(joined.recv(1), flush=True)
"""


def test_an_sshd_that_is_killed_and_comes_back_is_found_again(lab: Lab) -> None:
    run = enqueue(lab.master, 60, ": {}; sleep 0.1")
    said = _worker(lab["n1"], "-p", "2")
    wait_until(lambda: _succeeded(lab, run) > 2, "it works")
    stop_sshd(lab.master)
    wait_until(lambda: "was lost" in said(), "the loss is noticed")
    wait_until(lambda: not pids(lab.master, _GATE), "the gates have ended")
    start_sshd(lab.master)
    wait_until(lambda: _succeeded(lab, run) == 60, "all is done", 60)


def test_a_key_of_the_agent_opens_again_after_a_loss(lab: Lab) -> None:
    n1 = lab["n1"]
    run = enqueue(lab.master, 60, ": {}; sleep 0.1")
    n1.run(["sh", "-c", "ssh-agent -a $PWD/agent >&2; SSH_AUTH_SOCK=$PWD/agent ssh-add -q; rm .ssh/id_*"])
    n1.run(["sh", "-c", f"SSH_AUTH_SOCK=$PWD/agent setsid ppss worker -p 2 --url {URL} >log 2>&1 &"])
    wait_until(lambda: _succeeded(lab, run) > 2, "it works")
    stop_sshd(lab.master)
    wait_until(lambda: b"was lost" in n1.read("log"), "the loss is noticed")
    start_sshd(lab.master)
    wait_until(lambda: _succeeded(lab, run) == 60, "all is done", 60)


def test_a_node_that_slept_goes_on_with_the_connection_that_it_had(lab: Lab) -> None:
    """It was not the master that was silent."""
    run = enqueue(lab.master, 1000, ": {}; sleep 0.2", "--visibility", "2m")
    said = _worker(lab["n1"], "-p", "2")
    wait_until(lambda: _succeeded(lab, run) > 2, "it works")
    before = logins(lab.master)
    lab["n1"].freeze()
    time.sleep(25)
    lab["n1"].thaw()
    done = _succeeded(lab, run)
    wait_until(lambda: _succeeded(lab, run) > done + 4, "it goes on")
    assert logins(lab.master) == before and "lost" not in said()


def test_a_server_that_died_is_started_again_by_the_next_gate(lab: Lab) -> None:
    run = enqueue(lab.master, 40, ": {}; sleep 0.1")
    _worker(lab["n1"], "-p", "2")
    wait_until(lambda: _succeeded(lab, run) > 2, "it works")
    lab.master.run(["pkill", "-KILL", "-f", "valkey-server"])
    wait_until(lambda: _succeeded(lab, run) == 40, "all is done", 60)


def test_many_threads_that_lost_the_line_log_in_once(lab: Lab) -> None:
    """And share the failure when they can't."""
    script = _THREADS % URL
    done = lab["n1"].run([sys.executable, "-c", script])
    assert done.stdout == "ok\n" * 8 + "1 attempts\n", done
    assert logins(lab.master) == 1
    lab["n1"].cut()
    done = lab["n1"].run([sys.executable, "-c", script])
    assert done.stdout.count("master:22 did not answer SSH in time") == 8, done
    assert done.stdout.endswith("1 attempts\n"), done


_THREADS = """
import threading
from ppss_queue.address import Address
from ppss_queue.errors import ConnectFailed
from ppss_queue.ssh.line import Line
line = Line(Address.parse(%r).via)
def use():
    try:
        channel = line.open_gate("redis")
        channel.sendall(b"PING\\r\\n")
        assert channel.recv(7) == b"+PONG\\r\\n"
        channel.close()
        words = "ok"
    except ConnectFailed as error:
        words = str(error)
    with lock:
        print(words, flush=True)
lock = threading.Lock()
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(line._attempts, "attempts")
line.close()
"""


def test_sockets_leave_no_thread_and_no_descriptor_however_they_end(lab: Lab) -> None:
    done = lab["n1"].run([sys.executable, "-c", _ENDS % URL])
    assert done.stdout == "ok\n", done


_ENDS = """
import os, socket, threading, time
from contextlib import suppress
from ppss_queue.address import Address
from ppss_queue.ssh.line import Line
line = Line(Address.parse(%r).via)
def opened():
    joined = line.as_socket(line.open_gate("redis"))
    joined.sendall(b"PING\\r\\n")
    assert joined.recv(7) == b"+PONG\\r\\n"
    return joined
def count():
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
def settles(at):
    for _ in range(2000):
        if count() == at:
            return True
        time.sleep(0.01)
    return False
opened().close()
while threading.active_count() > 3:  # ours, paramiko's, and the one that asks
    time.sleep(0.01)
at = count()
def flood(joined):
    "The far side sends more than anybody reads."
    joined.settimeout(0.5)
    joined.send(b"*3\\r\\n$3\\r\\nSET\\r\\n$1\\r\\nv\\r\\n$60000\\r\\n" + bytes(60000) + b"\\r\\n")
    with suppress(TimeoutError):
        for _ in range(300):
            joined.sendall(b"GET v\\r\\n")
    time.sleep(0.5)
ends = {
    "close": lambda joined: joined.close(),
    "shut": lambda joined: (joined.shutdown(socket.SHUT_WR), joined.recv(1), joined.close()),
    "quit": lambda joined: (joined.sendall(b"QUIT\\r\\n"), joined.recv(5), joined.recv(1), joined.close()),
    "flood": lambda joined: (flood(joined), joined.close()),
}
for name, end in ends.items():
    end(opened())
    assert settles(at), (name, at, count(), threading.enumerate())
left = [opened(), opened()]
line.close()
for joined in left:
    assert joined.recv(1) == b""
    joined.close()
for _ in range(2000):
    if threading.active_count() == 1: break
    time.sleep(0.01)
print("ok" if threading.active_count() == 1 else threading.enumerate())
"""


def test_the_dashboard_shows_a_queue_over_ssh(lab: Lab) -> None:
    n1 = lab["n1"]
    run = enqueue(lab.master, 1, "true")
    n1.run(["sh", "-c", f"setsid ppss dashboard --port 9181 --url {URL} >log 2>&1 &"])
    wait_until(lambda: b"Ctrl-C" in n1.read("log"), "it serves")
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9181/0/data/queues.json').read())"
    assert run in n1.run([sys.executable, "-c", fetch]).stdout


def test_no_descriptor_of_the_line_reaches_a_command(lab: Lab) -> None:
    enqueue(lab.master, 1, ": {}; ls -l /proc/self/fd/ >open")
    ppss(lab["n1"], "worker", "--burst", "--url", URL)
    descriptors = lab["n1"].read("open").decode()
    assert " 1 -> /home/ppss/open\n" in descriptors and "socket:" not in descriptors


def test_a_worker_over_a_slow_and_far_line_keeps_its_pace(lab: Lab) -> None:
    lab["n1"].delay(80)
    enqueue(lab.master, 1000, ":")
    began = time.monotonic()
    done = ppss(lab["n1"], "worker", "--burst", "-q", "-p", "2", "--url", URL)
    assert "1,000 succeeded" in done.err, done
    assert time.monotonic() - began < 80, "items are claimed ahead, not one per round trip"


def test_a_master_with_little_room_for_sessions_says_so(lab: Lab) -> None:
    restart_sshd(lab.master, "MaxSessions 1")
    assert "Raise MaxSessions" in ppss(lab["n1"], "worker", "--burst", "--url", URL).refused(2)


def test_a_worker_whose_line_is_lost_before_its_first_claim_connects_again(lab: Lab) -> None:
    """Once the first of its two connections showed that all is well; then also at each of those that replace them."""
    master = lab.master
    real = master.run(["readlink", "-f", "/usr/local/bin/ppss"]).stdout.strip()
    program = _LOSES_THE_LINE.replace("REAL", real).replace("$AWAIT_WORKER", _AWAIT_WORKER.replace('"', "'"))
    master.write("/usr/local/bin/fault", program, user="root")
    master.run(["sh", "-c", "cd /usr/local/bin && chmod +x fault && mv fault ppss"], user="root")
    for number in ("2", "2 3", "2 4"):
        run = enqueue(master, 1, "true")
        master.run(["sh", "-c", "rm -rf gates && mkdir gates"])
        master.write("at", number)
        done = ppss(lab["n1"], "worker", "--burst", "--url", URL)
        assert done.code == 0 and "ended: 1 succeeded" in done.err, (number, done)
        assert _succeeded(lab, run) == 1
        assert "was lost" in done.err


_LOSES_THE_LINE = """#!/bin/sh
if [ "$1" = gate ]; then
  number=1
  until mkdir "gates/$number"; do number=$((number + 1)); done
  if grep -qw "$number" at; then
    [ "$number" != 2 ] || "$(dirname REAL)/python" -c "$AWAIT_WORKER"
    pkill -KILL -f "^sshd: ppss"
  fi
fi
exec REAL "$@"
"""
_AWAIT_WORKER = """
import time; from ppss_queue import connect
with connect() as queue:
    while b"name=ppss-worker" not in queue.connection.execute("CLIENT", "LIST"):
        time.sleep(0.05)
"""
