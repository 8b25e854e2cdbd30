"""What a machine has, which GPUs are free among all workers, and the room that is left for items."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import nvidia_smi
from ppss_worker import capacity
from ppss_worker.gpus import GpuLocks
from ppss_worker.hand import Hand
from ppss_worker.hosts import Slot
from ppss_worker.offer import Offer
from ppss_worker.room import Room
from ppss_worker.rooms import OVERTAKERS, Rooms

from ppss_queue.errors import MachineFailed
from ppss_queue.model import Item, Lease
from ppss_queue.resources import NOTHING, Resources

ONE_CPU = Resources(cpus=1)

HOLDER = """
import sys, time
from pathlib import Path
from ppss_worker.gpus import GpuLocks
print(*GpuLocks(sys.argv[2:], Path(sys.argv[1])).take(len(sys.argv) - 2), flush=True)
time.sleep(60)
"""


def holder(directory: Path, *names: str) -> subprocess.Popen[str]:
    """Another worker, which holds these GPUs."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), *names],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline().split() == list(names)
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


# GPUs


def test_a_gpu_is_held_by_one_of_all_workers_until_it_dies(tmp_path: Path) -> None:
    locks = GpuLocks(["0", "1", "MIG-a/1/0"], tmp_path / "new" / "gpus")
    other = holder(tmp_path / "new" / "gpus", "1")
    assert (locks.count_free(), locks.count_elsewhere()) == (2, 1)
    assert locks.take(3) is None
    assert locks.count_free() == 2, "it holds all of them or none"
    assert locks.take(1) == ("0",)
    assert (locks.count_free(), locks.count_elsewhere()) == (1, 1)
    kill(other)
    assert locks.take(2) == ("1", "MIG-a/1/0")
    locks.give_back(["1"])
    kill(holder(tmp_path / "new" / "gpus", "1"))
    locks.close()
    kill(holder(tmp_path / "new" / "gpus", "0", "1", "MIG-a/1/0"))


def test_a_directory_in_which_no_gpu_can_be_locked_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineFailed, match=r"no GPU can be locked in '.*/file/gpus'"):
        GpuLocks(["0"], tmp_path / "file" / "gpus").count_free()


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0,2", ("0", "2")), ("", ()), ("-1", ()), ("1,-1,0", ("1",)), ("GPU-5c, MIG-7", ("GPU-5c", "MIG-7"))],
)
def test_a_worker_offers_only_gpus_that_it_may_see_itself(
    visible: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", "seq 0 7"))
    assert capacity.gpus() == names


@pytest.mark.parametrize(
    ("text", "names"), [("seq 0 2", ("0", "1", "2")), ("echo No devices were found; exit 6", ()), (":", ())]
)
def test_gpus_are_those_that_nvidia_smi_finds(
    text: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", text))
    assert capacity.gpus() == names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo NVIDIA-SMI has failed; exit 9", r"failed: NVIDIA-SMI has failed$"),
        ("exit 3", r"failed: exit 3$"),
        ("echo what is this", r"failed: what is this$"),
        ("sleep 60 & wait", r"did not answer within 0\.2 s$"),
    ],
)
def test_an_nvidia_smi_that_fails_or_hangs_tells_of_no_gpus(
    text: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path / "bin", text))
    monkeypatch.setattr(capacity, "_NVIDIA_SMI_SECONDS", 0.2 if "sleep" in text else 20.0)
    with pytest.raises(MachineFailed, match=why):
        capacity.gpus()


# CPUs and memory


def cgroup(directory: Path, file: str, **limits: str) -> tuple[Path, Path]:
    """What /proc/self/cgroup and /sys/fs/cgroup may look like; `limits` by directory, `__` for `/`."""
    for name, text in limits.items():
        place = directory / "fs" / name.replace("__", "/") / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text + "\n")
    (directory / "proc").write_text("3:cpu,cpuacct:/a/b\n2:memory:/a/b\n1:name=systemd:/x\n0::/a/b\n")
    return directory / "proc", directory / "fs"


def test_cores_are_what_affinity_and_all_cgroups_above_leave(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert capacity.cpus(tmp_path / "none", tmp_path / "none") == cores
    assert capacity.cpus(*cgroup(tmp_path, "cpu.max", a__b="max 100000", a="150000 100000")) == 1
    assert capacity.cpus(*cgroup(tmp_path, "cpu.max", a="50000 100000")) == 1, "at least one"
    assert capacity.cpus(*cgroup(tmp_path, "cpu.max", a="900000000 100000")) == cores


def test_cores_and_memory_are_limited_by_the_older_cgroups_too(tmp_path: Path) -> None:
    cgroup(tmp_path, "cpu.cfs_period_us", cpu__a="100000")
    assert capacity.cpus(*cgroup(tmp_path, "cpu.cfs_quota_us", cpu__a="100000")) == 1
    limits = {"memory__a": str(2**20), "memory__a__b": str(2**63 - 4096)}
    assert capacity.memory_bytes(*cgroup(tmp_path, "memory.limit_in_bytes", **limits)) == 2**20


def test_memory_is_that_of_the_machine_or_what_a_cgroup_leaves(tmp_path: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert capacity.memory_bytes(tmp_path / "none", tmp_path / "none") == whole
    assert capacity.memory_bytes(*cgroup(tmp_path, "memory.max", a__b="max", a="1048576")) == 2**20
    limit = tmp_path / "fs" / "memory.max"  # of the container, which is all that it sees
    limit.write_text("4096\n")
    assert capacity.memory_bytes(*cgroup(tmp_path, "memory.max")) == 4096


def test_what_is_said_goes_before_what_the_machine_has() -> None:
    assert Offer.here(["5"], 100, 2**50) == Offer(("5",), 100, 2**50)
    assert Offer.here([]).total == Resources(0, capacity.cpus(), capacity.memory_bytes())


# Room


class _Host:
    """A host of which only its slots and its room matter."""

    def __init__(self, name: str, room: Room | None = None, slots: int = 4, *, here: bool = False) -> None:
        self.name = name
        self.room = room
        self.slots = slots
        self.is_here = here
        self.is_usable = True
        self.is_awaited = False


def rooms_of(*hosts: _Host) -> Rooms:
    rooms = Rooms()
    rooms.hosts += hosts
    return rooms


def leases(count: int, run: str = "r", failed_on: str = "") -> list[Lease]:
    return [Lease(run, "1-n", Item(seq, str(seq)), 0, 0, failed_on) for seq in range(1, count + 1)]


def test_room_is_what_is_left_and_comes_back(tmp_path: Path) -> None:
    room = Room(Offer(("0", "1"), 4, 100), tmp_path)
    assert room.free == Resources(2, 4, 100)
    assert room.take(Resources(1, 3, 60)) == ("0",)
    assert room.free == Resources(1, 1, 40)
    assert room.take(Resources(cpus=2)) is None
    assert room.take(Resources(1, 1, 40)) == ("1",)
    assert room.free == NOTHING
    room.give_back(Resources(1, 3, 60), ("0",))
    room.give_back(Resources(1, 1, 40), ("1",))
    assert room.free == room.total


def test_room_is_kept_for_a_run_that_too_many_items_overtook(tmp_path: Path) -> None:
    rooms = rooms_of(*(_Host(str(cpus), Room(Offer(cpus=cpus), tmp_path)) for cpus in (20, 100)))
    big, huge, small = Resources(cpus=2), Resources(cpus=50), ONE_CPU
    rooms.wait({"big": big, "huge": huge})
    for _ in range(OVERTAKERS):
        assert not rooms.kept_for
        assert rooms.take("small", ONE_CPU, rooms.hosts)
        rooms.wait({"huge": huge, "big": big, "small": small})
    assert rooms.kept_for in ("big", "huge"), "not the run that is served"
    rooms.wait({"huge": huge, "small": small})
    assert rooms.kept_for == "huge", "the other has nothing left to do here"
    assert rooms.free == (Resources(cpus=100), Resources(cpus=20 - OVERTAKERS)), (
        "where it will fit comes first"
    )
    assert rooms.take("huge", ONE_CPU, rooms.hosts)
    assert not rooms.kept_for
    assert [room.cpus for room in rooms.free] == [20 - OVERTAKERS - 1, 100]


def test_only_hosts_that_can_have_items_have_room_and_one_that_has_yet_to_tell_may_fit_all(
    tmp_path: Path,
) -> None:
    big = _Host("big", Room(Offer(("0",), cpus=8), tmp_path))
    small, quiet = _Host("small", Room(Offer(cpus=2), tmp_path)), _Host("quiet")
    rooms = rooms_of(big, small, quiet)
    assert rooms.free == (Resources(gpus=1, cpus=8), Resources(cpus=2))
    big.is_usable = False
    assert rooms.free == (Resources(cpus=2),)
    assert rooms.fits(Resources(cpus=8)), "it is paused, perhaps"
    assert not rooms.fits(Resources(cpus=9))
    assert (
        rooms.shortage(Resources(gpus=1, cpus=9))
        == "9 CPUs, but big offers 8; 1 GPU and 9 CPUs, but small offers 0 and 2"
    )
    quiet.is_awaited = True
    assert rooms.fits(Resources(cpus=9))
    assert rooms_of(_Host("never seen")).fits(Resources(cpus=9)), "who knows"


def test_an_item_that_needs_this_machine_gets_none_of_the_slots_elsewhere() -> None:
    this, other = _Host("here", here=True), _Host("elsewhere")
    hand = Hand(rooms_of(this, other))
    here, elsewhere = Slot(2, this), Slot(1, other)
    hand.free(here, elsewhere)
    first, second, third = leases(3)
    hand.add([first], here_only=True)
    hand.add([second])
    assert hand.deal() == [(first, here), (second, elsewhere)]
    hand.free(elsewhere)
    hand.add([third], here_only=True)
    assert hand.deal() == []
    assert hand.without(elsewhere.host) == [elsewhere]
    hand.free(here)
    assert hand.deal() == [(third, here)]


def test_a_hand_gives_room_back_when_an_item_ends_is_handed_back_or_lost(tmp_path: Path) -> None:
    room = Room(Offer(("7",), 4), tmp_path)
    this = _Host("here", room, here=True)
    hand = Hand(rooms_of(this))
    first, second, third = leases(3)
    assert hand.reserve(first, Resources(1, 2)) and hand.reserve(second, ONE_CPU)
    assert not hand.reserve(third, Resources(gpus=1))
    hand.add([first, second, third])
    one, two = Slot(1, this), Slot(2, this)
    assert not hand.vacate(one)
    hand.free(one)
    assert hand.deal() == [(first, one)]
    assert (hand.gpus(one), hand.gpus(two), room.free) == (("7",), (), Resources(0, 1))
    assert hand.give_up() == [second, third]
    assert room.free == Resources(0, 2)
    assert hand.vacate(one) and not hand.gpus(one)
    assert room.free == room.total
    assert hand.reserve(second, ONE_CPU)
    hand.expect([second])
    hand.lose({second.member})
    assert room.free == room.total


def test_an_item_gets_a_slot_where_its_room_is(tmp_path: Path) -> None:
    a, b = _Host("a", Room(Offer(cpus=2), tmp_path)), _Host("b", Room(Offer(("7",), cpus=2), tmp_path))
    hand = Hand(rooms_of(a, b))
    slots = [Slot(number, host) for number in (1, 2) for host in (a, b)]
    hand.free(*slots)
    gpu, first, second, third = leases(4)
    assert hand.reserve(gpu, Resources(gpus=1, cpus=1))
    assert all(hand.reserve(lease, ONE_CPU) for lease in (first, second, third))
    hand.add([first, second, gpu, third])
    dealt = dict(hand.deal())
    assert dealt[gpu].host is b and hand.gpus(dealt[gpu]) == ("7",)
    assert [slot.host for slot in dealt.values()].count(a) == 2
    assert not hand.reserve(leases(5)[4], ONE_CPU)


def test_an_item_moves_its_room_to_the_host_that_has_a_slot_first(tmp_path: Path) -> None:
    a, b = _Host("a", Room(Offer(cpus=2), tmp_path)), _Host("b", Room(Offer(cpus=1), tmp_path))
    hand = Hand(rooms_of(a, b))
    hand.free(Slot(1, a))
    first, second, third = leases(3)
    assert all(hand.reserve(lease, ONE_CPU) for lease in (first, second))
    hand.add([first, second])
    assert hand.deal() == [(first, Slot(1, a))]
    assert hand.reserve(third, ONE_CPU)
    hand.add([third])
    hand.free(Slot(2, a))
    assert [lease for lease, slot in hand.deal() if slot.host is a] == [second]
    hand.free(Slot(1, b))
    assert hand.deal() == [(third, Slot(1, b))]
    for slot in (Slot(1, a), Slot(2, a), Slot(1, b)):
        assert hand.vacate(slot)
    assert (a.room.free, b.room.free) == (Resources(cpus=2), Resources(cpus=1))


def test_an_item_gets_room_where_it_did_not_fail_if_it_can(tmp_path: Path) -> None:
    a, b = _Host("a", Room(Offer(cpus=2), tmp_path)), _Host("b", Room(Offer(cpus=1), tmp_path))
    hand = Hand(rooms_of(a, b))
    hand.free(Slot(1, a), Slot(2, a), Slot(3, b))
    one, two = leases(2, failed_on="a")
    assert hand.reserve(one, ONE_CPU) and hand.reserve(two, ONE_CPU)
    hand.add([one, two])
    assert dict(hand.deal()) == {one: Slot(3, b), two: Slot(1, a)}, "there is no other room"
