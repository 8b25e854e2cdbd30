"""The benchmark's arithmetic, its delay, and that nothing of it stays; what it measures is never asserted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ppss_queue.address import Address
from ppss_queue.connection import Connection
from tools.bench import report
from tools.bench.figures import Figure, Measured, number
from tools.bench.hosts import pair
from tools.bench.network import delayed, tcp_server
from tools.bench.processes import Broken, Missing, output, seconds, started
from tools.bench.rounds import Result, Row
from tools.bench.rows import ROWS
from tools.bench.rows.workers import best_list_schedule
from tools.bench.site import HERE


def test_a_list_schedule_gives_the_next_item_to_whoever_is_free_first() -> None:
    assert best_list_schedule([3, 1, 1, 1, 4], 2) == 7
    assert best_list_schedule([1, 1, 1, 1], 4) == 1


def test_a_goal_is_judged_by_the_median() -> None:
    assert Measured(Figure("a", "a", at_least=1.0), [0.5, 1.0, 9.0]).met == "yes"
    assert Measured(Figure("a", "a", at_most=1.0), [0.5, 1.1, 1.2]).met == "no"
    assert Measured(Figure("a", "a"), [1.0]).met == ""


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.1234, "0.123"), (4.5, "4.5"), (78.94, "78.9"), (12345.6, "12,346")]
)
def test_numbers_show_the_digits_that_count(value: float, shown: str) -> None:
    assert number(value) == shown


def test_every_figure_of_a_row_has_a_key_of_its_own() -> None:
    for row in ROWS.values():
        assert len({figure.key for figure in row.figures}) == len(row.figures), row.title


def test_the_report_tells_losses_as_plainly_as_wins() -> None:
    lost, won, slower = (
        Figure("lost", "what is lost", at_least=2.0),
        Figure("won", "what is won", at_least=1.0),
        Figure("slower", "what is slower", "cat"),
    )
    row = Row(1, "a row", (lost, won, slower), "true", lambda this: {})
    values = [Measured(lost, [1.0]), Measured(won, [1.5]), Measured(slower, [0.5])]
    page = report.page([Result(row, values), Result(row, problem="it | broke")], [], ["a machine"])
    losses = page.partition("### Losses")[2].partition("## To repeat")[0]
    assert "what is lost: 1 x, where the goal is >= 2" in losses
    assert "what is slower against `cat`: 0.5 x, slower." in losses
    assert "it / broke" in losses
    assert "what is won" not in losses


def test_a_command_that_fails_or_hangs_is_no_measurement() -> None:
    with pytest.raises(Broken, match="ended with 3: bad"):
        seconds(["sh", "-c", "echo bad >&2; exit 3"])
    with pytest.raises(Broken, match="not done in time"):
        output(["sleep", "60"], limit=0.05)


def test_what_is_interrupted_leaves_no_process(tmp_path: Path) -> None:
    """Grandchildren die too: a pool has workers."""
    with (
        pytest.raises(KeyboardInterrupt),
        started(["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"]),
    ):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        raise KeyboardInterrupt
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_delay_proxy_adds_a_round_trip_and_keeps_the_bytes() -> None:
    value = os.urandom(300_000)
    with tcp_server() as port, delayed(port, 60) as address, Connection.open(Address.parse(address)) as far:
        began = time.monotonic()
        far.execute("SET", "key", value)
        assert time.monotonic() - began >= 0.06
        assert far.execute("GET", "key") == value


def test_rows_that_need_hosts_say_why_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for program in Path("/usr/bin").iterdir():
        if program.name != "ssh":
            (tmp_path / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(
            Missing, match=r"NOT MEASURED: no lab of hosts here: .* apt-get install openssh-client"
        ),
        pair(HERE),
    ):
        pass
