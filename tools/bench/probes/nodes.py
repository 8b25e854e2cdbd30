"""Many nodes on one Redis: nodes.py ADDRESS NODES SLOTS ITEMS IDLE ITEM; the last two in ms.

ITEMS a slot, each ITEM long on average; before them the nodes are idle for IDLE. Each has a worker's two connections
and says on them what a worker says, to the letter; only its commands are timers. A few processes do this for all.
"""

from __future__ import annotations

import heapq
import multiprocessing
import random
import resource
import select
import time
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Barrier, Event

from leases import DONE, KEYS, Client, probe
from ppss_worker.machine import machine_facts, take_name

from ppss_queue.calls import read_claim
from ppss_queue.changes import ChangeListener
from ppss_queue.model import Lease
from ppss_queue.node_views import nodes as look_at_nodes
from ppss_queue.run import Run
from ppss_queue.scripts import Call

_PROCESSES = 2
_HEARTBEAT_SECONDS = _RENEW_SECONDS = 10.0
"""As in ppss_worker/leases.py, and a third of the visibility timeout."""
_SHOWN_SECONDS = 0.02
"""After which an item is shown as running: ppss_worker/outbox.py."""
_TRICKLED = 5
_LOOKS_EACH_SECONDS = 0.5


class _Node:
    """The worker of one node."""

    def __init__(self, address: str, number: int, slots: int, timers: _Timers, item_seconds: float) -> None:
        name = f"node{number:04}.1-bench"
        self._client = Client(address, name)
        self.connection, self._calls = self._client.connection, self._client.calls
        self._keeper = self.connection.clone(name="ppss-leases")
        self._control = ChangeListener(self._keeper, [KEYS.control])
        watched = (KEYS.wake, KEYS.suspended, KEYS.queue(""), KEYS.registry("scheduled", ""))
        self._wake = ChangeListener(self.connection, watched)
        self._timers, self._item_seconds = timers, item_seconds
        self._node, self._slots = name.partition(".")[0], slots
        self._idle, self._held, self._ended = slots, dict[str, Lease](), list[Lease]()
        self._dry = True
        """Waits for changes: the last claim gave nothing."""
        self._asked: list[str] = []
        """What is on its way, by name; `claim` is the last of it."""
        self.done = 0

    def register(self) -> None:
        take_name(self._keeper, KEYS, self._node)
        self._control.on()
        self._wake.on()
        self._beat()
        self._timers.after(random.uniform(0, _HEARTBEAT_SECONDS), self._beat_on)
        self._timers.after(random.uniform(0, _RENEW_SECONDS), self._renew_on)

    def hear(self) -> None:
        """Takes in what has come on the connection for work: answers, and that something changed."""
        heard = True
        while heard:  # until nothing is left: of what was read with something else, poll does not tell
            self.connection.readable()
            woken = bool(self._wake.changes())
            heard = woken or self.connection.buffered
            while self.connection.buffered:
                self._answered()
            if woken:  # is there an item for it?
                self._claim()

    def _answered(self) -> None:
        reply = self.connection.take()
        if isinstance(reply, Exception):
            raise reply
        if self._asked.pop(0) == "claim":
            self._begin(read_claim(reply).leases)

    def _claim(self) -> None:
        if self._idle and "claim" not in self._asked:
            self._ask("claim", self._calls.claim(self._idle, self._idle))

    def _begin(self, leases: tuple[Lease, ...]) -> None:
        if not leases:
            if self._ended:
                self._report()
            if not self._dry:  # listen first, then look again
                self._dry = True
                self._wake.on()
                self._claim()
            return
        if self._dry:
            self._dry = False
            self._wake.off()
        self.connection.post(
            [word for lease in leases for word in (("CLIENT", "REPLY", "SKIP"), self._calls.begin(lease))]
        )
        self._timers.after(_SHOWN_SECONDS, lambda: self._show(leases))
        for lease in leases:
            self._idle -= 1
            self._held[lease.member] = lease
            took = self._item_seconds * random.uniform(0.75, 1.25)
            self._timers.after(took, lambda lease=lease: self._end(lease))
        if self._ended:
            self._report()

    def _show(self, leases: tuple[Lease, ...]) -> None:
        self._ask("start", self._calls.start(leases[0].run, [(lease, 1) for lease in leases]))

    def _end(self, lease: Lease) -> None:
        del self._held[lease.member]
        self._ended.append(lease)
        self._idle += 1
        if "claim" not in self._asked:
            self._report()

    def _report(self) -> None:
        ended, self._ended = self._ended, []
        self.done += len(ended)
        self._ask("ack", self._calls.ack(ended[0].run, [(lease, DONE, b"") for lease in ended]))
        self._claim()

    def _ask(self, what: str, call: Call) -> None:
        self._asked.append(what)
        self.connection.send([call.command])

    def _beat(self) -> None:
        worker = {
            "hostname": self._node,
            "pid": 1,
            "version": "1.0.0",
            "python_version": "3.13.1",
            "queues": "work",
        }
        worker |= {
            "node": self._node,
            "slots": self._slots,
            "leased": len(self._held),
            "rate": "2.000",
            "stopping": 0,
        }
        self._keep(self._calls.heartbeat(worker, machine_facts(None)))

    def _beat_on(self) -> None:
        self._beat()
        self._timers.after(_HEARTBEAT_SECONDS, self._beat_on)

    def _renew_on(self) -> None:
        if self._held:
            run = next(iter(self._held.values())).run
            self._keep(self._calls.renew(run, list(self._held)))
        self._timers.after(_RENEW_SECONDS, self._renew_on)

    def _keep(self, call: Call) -> None:
        self._keeper.execute(*call.command)


class _Timers:
    """What is to be done later."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._count, do))

    def run(self) -> float:
        """Does what is due; the seconds until the next."""
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        return self._due[0][0] - time.monotonic() if self._due else 1.0


def _crowd(
    address: str,
    numbers: range,
    slots: int,
    item_seconds: float,
    ready: Barrier,
    over: Event,
    found: multiprocessing.SimpleQueue[list[int]],
) -> None:
    """The nodes of one process."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    timers = _Timers()
    nodes = [_Node(address, number, slots, timers, item_seconds) for number in numbers]
    poll, on_input = select.poll(), dict[int, Callable[[], None]]()
    for node in nodes:
        try:
            node.register()
        except BaseException:
            ready.abort()  # nobody need wait for this process
            raise
        on_input[node.connection.fileno()] = node.hear
    for descriptor in on_input:
        poll.register(descriptor, select.POLLIN)
    ready.wait(60)
    while not over.is_set():
        for descriptor, _ in poll.poll(max(0.0, min(timers.run(), 0.1)) * 1000):
            on_input[descriptor]()
    found.put([node.done for node in nodes])


def measure(
    address: str, nodes: int, slots: int, items: int, idle_ms: int, item_ms: int
) -> Mapping[str, float]:
    client = Client(address)
    client.fill("warm", iter(["1", "2"]))
    client.drain(1)  # Redis knows the scripts from now on
    client.call(client.calls.heartbeat({"node": "bench"}))
    client.call(client.calls.start("warm", []))
    client.call(client.calls.renew("warm", []))
    client.fill("work", (f"item {number}" for number in range(nodes * slots * items)), opened=False)
    client.fill("trickle", iter(()))
    ready, over, found = multiprocessing.Barrier(_PROCESSES + 1), multiprocessing.Event(), []
    memory, cpu = _settled_memory(client), client.server_cpu_seconds()
    for part in range(_PROCESSES):
        queue: multiprocessing.SimpleQueue[list[int]] = multiprocessing.SimpleQueue()
        words = (address, range(part, nodes, _PROCESSES), slots, item_ms / 1000, ready, over, queue)
        multiprocessing.Process(target=_crowd, args=words, daemon=True).start()
        found.append(queue)
    ready.wait(60)
    registered = client.server_cpu_seconds() - cpu
    idle = _used(client, idle_ms / 1000)
    memory = _settled_memory(client) - memory
    trickled = _trickled(client, item_ms / 1000)
    cpu, began = client.server_cpu_seconds(), time.perf_counter()
    client.store.open("work")
    of_nodes, of_run = _watched(client)
    seconds, cpu = time.perf_counter() - began, client.server_cpu_seconds() - cpu
    over.set()
    done = [count for queue in found for count in queue.get()]
    return {
        "idle": idle * 100,
        "fair": max(done) / max(min(done), 1),
        "p50": of_nodes[len(of_nodes) // 2] * 1000,
        "p99": of_nodes[int(len(of_nodes) * 0.99)] * 1000,
        "run": of_run[len(of_run) // 2] * 1000,
        "register": registered / nodes * 1000,
        "trickle": trickled * 1000,
        "memory": memory / nodes / 1000,
        "rate": nodes * slots * items / seconds,
        "cpu": cpu / seconds * 100,
    }


def _memory(client: Client) -> int:
    """Bytes, with the buffers of clients."""
    return int(client.info("memory")["used_memory"])


def _settled_memory(client: Client) -> int:
    """When nothing is freed any more: what is flushed goes in the background."""
    before = 0
    while abs((memory := _memory(client)) - before) > 20_000:
        before = memory
        time.sleep(0.2)
    return memory


def _used(client: Client, seconds: float) -> float:
    """CPU of the server for that long, as a share of a core."""
    cpu, began = client.server_cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    return (client.server_cpu_seconds() - cpu) / (time.perf_counter() - began)


def _trickled(client: Client, pause_seconds: float) -> float:
    """CPU seconds of the server for one item, of which all idle nodes hear and which one gets."""
    run, cpu = Run(client.store, "trickle"), client.server_cpu_seconds()
    for number in range(_TRICKLED):
        run.add([f"item {number}"])
        time.sleep(pause_seconds)
    while run.status().left:
        time.sleep(0.05)
    return (client.server_cpu_seconds() - cpu) / _TRICKLED


def _watched(client: Client) -> tuple[list[float], list[float]]:
    """Until the work is done: how long each look at all nodes took, and each at the run; seconds, sorted."""
    run = Run(client.store, "work")
    of_nodes, of_run = list[float](), list[float]()
    while True:
        began = time.perf_counter()
        look_at_nodes(client.store)
        between = time.perf_counter()
        counts = run.status()
        of_nodes.append(between - began)
        of_run.append(time.perf_counter() - between)
        if not counts.left:
            return sorted(of_nodes), sorted(of_run)
        time.sleep(_LOOKS_EACH_SECONDS)


probe(measure)
