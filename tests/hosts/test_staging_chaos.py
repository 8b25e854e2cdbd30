"""Lines, hosts, workers and what serves them fail at random while files are staged; the seed is printed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hosts.lab import Host, Lab
from hosts.staged import GATES, SECONDS, SERVER, Staged, Worker, pids

_COMMAND = """
sleep "0.$((RANDOM % 3))"
[ "$(cat tool)" = shared ] || exit 9
{ printf '%s\\n' "$PPSS_NODE"; cat "$ITEM"; } > "$OUTPUT_DIR/$OUTPUT_FILE"
[ -e "$ITEM.xmp" ] || exit 0
mkdir -p "$OUTPUT_DIR/parts/deep"
{ printf '%s\\n' "$PPSS_NODE"; cat "$ITEM.xmp"; } > "$OUTPUT_DIR/parts/deep/$OUTPUT_FILE"
"""


def test_a_quarter_of_a_minute_of_faults_loses_and_breaks_nothing(lab: Lab) -> None:
    _break(lab, random.randrange(1_000_000), files=150, seconds=12)


@pytest.mark.chaos
def test_a_minute_of_faults_loses_and_breaks_nothing(lab: Lab) -> None:
    _break(lab, random.randrange(1_000_000), files=1_000, seconds=70)


def _break(lab: Lab, seed: int, *, files: int, seconds: float) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = [chance.choice(("", "", "d/", "d/e/", "f/g/h/i/")) + str(number) for number in range(files)]
    sizes = {name: chance.choice((50, 500, 5_000, 50_000, 300_000)) for name in names}
    companions = [name for name in names if chance.random() < 0.3]
    lab.master.write("tool", "shared")
    rules = ["--visibility", "2s", "--max-lost", "1000", "--verify", "--with", "tool"]
    staged = Staged(lab, sizes, *rules, command=_COMMAND, companions=companions)
    faults = Faults(lab, staged, chance)
    with staged.watch():
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            what = chance.choice(faults.all)
            host = chance.choice(lab.nodes)
            print(f"{seconds - (until - time.monotonic()):5.1f} s: {what.__name__} {host.name}")
            what(host)
            faults.pause(1.0)
            faults.restart_ended()
        faults.over()
        staged.wait()
        for host in lab.nodes:
            staged.worker(host, "--burst")  # sweeps up what was killed there
        staged.finish()


class Faults:
    """Each mends itself before it returns, or at the next one."""

    def __init__(self, lab: Lab, staged: Staged, chance: random.Random) -> None:
        self._staged = staged
        self._chance = chance
        self._master = lab.master
        self._workers = {host.name: self._worker(host) for host in lab.hosts.values()}
        self.all: list[Callable[[Host], None]] = [
            self.cut,
            self.freeze,
            self.sleep_of_a_laptop,
            self.power_cut,
            self.kill_worker,
            self.bad_line,
            self.kill_gates,
            self.kill_logins,
            self.kill_server,
            self.master_sleeps,
            self.master_loses_power,
        ]

    def pause(self, most_seconds: float) -> None:
        time.sleep(self._chance.uniform(0, most_seconds))

    def over(self) -> None:
        """All hosts are well and have a worker."""
        for host in (*self._staged.lab.nodes, self._master):
            host.heal()
        self.restart_ended()

    def restart_ended(self) -> None:
        """A worker that could not begin for a fault is started again; none ends by itself once it works."""
        for name, worker in list(self._workers.items()):
            if worker.process.poll() is not None:
                assert worker.process.returncode == 3 and "←" not in worker.said, worker.said
                self._renew(self._staged.lab[name])

    def cut(self, host: Host) -> None:
        host.cut()
        self.pause(4.0)
        host.heal()

    def freeze(self, host: Host) -> None:
        host.freeze()
        self.pause(4.0)
        host.thaw()

    def sleep_of_a_laptop(self, host: Host) -> None:
        host.freeze()
        host.cut()
        self.pause(4.0)
        if self._chance.random() < 0.5:
            self._kill("sshd: ppss")
        host.heal()
        host.thaw()

    def power_cut(self, host: Host) -> None:
        host.kill()
        self.pause(1.0)
        host.start()
        self._renew(host)

    def kill_worker(self, host: Host) -> None:
        if self._workers[host.name].process.poll() is None:
            self._workers[host.name].signal("KILL")
        self._renew(host)

    def bad_line(self, host: Host) -> None:
        host.loss(5)
        host.delay(40)
        self.pause(2.0)
        host.heal()

    def kill_gates(self, host: Host) -> None:
        self._kill(GATES)

    def kill_logins(self, host: Host) -> None:
        self._kill("sshd: ppss")

    def kill_server(self, host: Host) -> None:
        self._kill(SERVER)

    def master_sleeps(self, host: Host) -> None:
        self._master.freeze()
        self.pause(3.0)
        self._master.thaw()

    def master_loses_power(self, host: Host) -> None:
        self._master.kill()
        self._master.start()
        self._renew(self._master)

    def _kill(self, pattern: str) -> None:
        found = pids(self._master, pattern)
        self._master.run(["kill", "-9", *found], user="root", check=False)

    def _worker(self, host: Host) -> Worker:
        return self._staged.worker(host, "-p", "1" if host is self._master else "3")

    def _renew(self, host: Host) -> None:
        old = self._workers[host.name]
        old.process.wait(SECONDS)
        self._staged.workers.remove(old)
        self._workers[host.name] = self._worker(host)
