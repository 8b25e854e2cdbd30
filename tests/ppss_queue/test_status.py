"""Looking at the items of a run: in every state, over thousands of them, with hostile names, after a purge."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ppss_queue import scripts, status
from ppss_queue.address import Address
from ppss_queue.calls import Calls, read_claim
from ppss_queue.connection import Connection
from ppss_queue.errors import UnknownItem, UnknownRun
from ppss_queue.keys import Keys
from ppss_queue.model import STATES, Item, ItemView, Lease, Outcome, RunSpec, State
from ppss_queue.rq_form import encode_item, kept_output
from ppss_queue.rules import RetryRule
from ppss_queue.store import CHUNK, Store

KEYS = Keys()
CALLS = Calls(KEYS, "w", "nonce")
HOSTILE = os.fsdecode(b"  <b>$(id)\n\xff\\ ")
FAILED = Outcome(exit_code=6, seconds=2.5, node="big1", slot=2, last_line="bad")
SUCCEEDED = Outcome(exit_code=0, seconds=0.5, result='{"a":1}')


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    with Connection.open(Address.parse(address)) as connection:
        yield Store(connection, KEYS)


def make(store: Store, *names: str, roots: tuple[str, ...] = ("",)) -> None:
    """Run `r`; each item may be retried once."""
    assert store.create("r", RunSpec(command="true", retry=RetryRule(1), roots=roots))
    for first in range(0, len(names), 500):
        store.add("r", [encode_item(name, len(roots) - 1) for name in names[first : first + 500]])
    store.open("r")


def start(store: Store, count: int = 1) -> list[Lease]:
    leases = list(read_claim(scripts.run(store.connection, CALLS.claim(count, count))).leases)
    assert len(leases) == count
    scripts.run(store.connection, CALLS.start("r", [(lease, 1) for lease in leases]))
    return leases


def end(
    store: Store, lease: Lease, outcome: Outcome, delay: float | None = None, printed: bytes = b""
) -> None:
    kept = kept_output(printed) if printed else b""
    if outcome.exit_code:
        call = CALLS.fail("r", [(lease, outcome, delay, kept)])
    else:
        call = CALLS.ack("r", [(lease, outcome, kept)])
    assert scripts.run(store.connection, call) == []


@pytest.fixture
def mixed(store: Store) -> Store:
    """Run `r` with one item in each state, named after it, and a ready one with a hostile name."""
    make(store, "leased", "failed", "succeeded", "delayed", "cancelled", "ready", HOSTILE)
    _, failed, succeeded, delayed, _ = start(store, 5)
    end(store, failed, FAILED, printed=b"so\nbad\n")
    end(store, succeeded, SUCCEEDED, printed=b"fine\n")
    end(store, delayed, Outcome(exit_code=1), delay=1000.0)
    store.cancel_items("r", [5])
    return store


def names(views: Iterator[ItemView] | list[ItemView]) -> list[str]:
    return [view.name for view in views]


def test_all_items_are_shown_in_input_order_with_their_state_and_outcome(mixed: Store) -> None:
    views = list(status.items(mixed, "r"))
    assert [view.seq for view in views] == [1, 2, 3, 4, 5, 6, 7]
    assert [str(view.state) for view in views[:6]] == names(views[:6])
    assert views[1] == ItemView(Item(2, "failed"), State.FAILED, 1, 0, FAILED)
    assert views[2] == ItemView(Item(3, "succeeded"), State.SUCCEEDED, 1, 0, SUCCEEDED)
    assert views[2].result == {"a": 1}
    assert views[5] == ItemView(Item(6, "ready"), State.READY, 0, 0, Outcome())


@pytest.mark.parametrize("state", STATES)
def test_the_items_of_a_state_are_those_that_its_count_counts(mixed: Store, state: State) -> None:
    (counts,) = mixed.counts(["r"])
    found = list(status.items(mixed, "r", state))
    assert len(found) == getattr(counts, state) == (2 if state is State.READY else 1)
    assert found[0].name == state
    assert {view.state for view in found} == {state}


def test_the_counts_of_all_states_sum_up_to_the_total(mixed: Store) -> None:
    (counts,) = mixed.counts(["r"])
    assert sum(getattr(counts, state) for state in STATES) == counts.total == 7
    assert counts.left == counts.ready + counts.leased + counts.delayed == 4
    assert counts.work_seconds == 3.0


def test_thousands_of_items_come_in_order_and_once_whatever_the_chunks(store: Store) -> None:
    wanted = [f"item {number}" for number in range(2 * CHUNK + 7)]
    make(store, *wanted)
    assert names(status.items(store, "r")) == wanted
    assert names(status.items(store, "r", State.READY)) == wanted


def test_hostile_names_are_shown_and_found_byte_for_byte(mixed: Store) -> None:
    assert names(status.view(mixed, "r", [7])) == [HOSTILE]
    assert status.find(mixed, "r", [HOSTILE]) == [7]


def test_the_root_of_a_file_is_shown(store: Store) -> None:
    make(store, "a/b", roots=("/x", "/data"))
    assert [view.item for view in status.items(store, "r")] == [Item(1, "a/b", 1)]


def test_an_item_is_found_by_name_by_number_and_each_of_those_that_share_a_name(store: Store) -> None:
    make(store, "a", "b", "a", "#2")
    assert status.find(store, "r", ["b"]) == [2]
    assert status.find(store, "r", ["#3"]) == [3]
    assert status.find(store, "r", ["a"]) == [1, 3]
    assert sorted(status.find(store, "r", ["#4", "a", "b"])) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["nothing", "#0", "#8", "#99999999999999999999", "#" + "9" * 5000, "#²", "#", "", "READY"]
)
def test_an_item_that_is_not_there_is_refused_by_its_name(mixed: Store, name: str) -> None:
    with pytest.raises(UnknownItem) as caught:
        status.find(mixed, "r", ["ready", name])
    shown = name if name in ("#0", "#8") else f"'{name}'"
    assert str(caught.value) == f"Run r has no item {shown}. See which there are: ppss items r"


@pytest.mark.parametrize("name", ["x", "#1"])
def test_items_of_a_run_that_is_not_there_are_refused_by_the_run(store: Store, name: str) -> None:
    with pytest.raises(UnknownRun, match="no run 'r'"):
        status.find(store, "r", [name])
    with pytest.raises(UnknownRun, match="no run 'r'"):
        list(status.items(store, "r"))


def test_items_deleted_from_a_dashboard_are_left_out(mixed: Store) -> None:
    mixed.connection.execute("DEL", KEYS.job("r-0000006"))
    assert [view.seq for view in status.items(mixed, "r")] == [1, 2, 3, 4, 5, 7]
    assert [view.seq for view in status.items(mixed, "r", State.READY)] == [7]
    assert status.view(mixed, "r", [6]) == []


def test_an_item_that_waits_in_a_worker_for_its_start_is_leased(store: Store) -> None:
    make(store, "a", "b")
    scripts.run(store.connection, CALLS.claim(1, 1))
    assert [str(view.state) for view in status.items(store, "r")] == ["leased", "ready"]
    assert names(status.items(store, "r", State.LEASED)) == ["a"]


def test_a_lease_that_ran_out_is_still_shown_as_leased(mixed: Store) -> None:
    """Until another claim takes the item, its worker may still come back."""
    wip = KEYS.registry("wip", "r")
    (member,) = mixed.connection.execute("ZRANGE", wip, 0, -1)  # type: ignore
    mixed.connection.execute("ZADD", wip, "XX", 3_155_760_000, member)
    assert names(status.items(mixed, "r", State.LEASED)) == ["leased"]


def test_the_output_that_was_kept_is_there_of_failed_and_of_succeeded_items(mixed: Store) -> None:
    assert status.output(mixed, "r", 2) == "so\nbad\n"
    assert status.output(mixed, "r", 3) == "fine\n"
    assert status.output(mixed, "r", 6) == status.output(mixed, "r", 99) == ""


def test_the_output_of_an_item_that_failed_in_silence_is_empty(store: Store) -> None:
    """RQ's dashboard is given a text in its place; that is not what the item printed."""
    make(store, "a")
    end(store, *start(store), FAILED)
    assert status.output(store, "r", 1) == ""


def test_the_output_is_that_of_the_last_attempt(store: Store) -> None:
    make(store, "a")
    end(store, *start(store), FAILED, printed=b"first\n")
    store.retry("r")
    end(store, *start(store), SUCCEEDED, printed=b"second\n")
    assert status.output(store, "r", 1) == "second\n"
