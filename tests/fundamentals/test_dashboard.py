"""Stock rq-dashboard on a Redis of PPSS, over HTTP and in a browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import missing, wait_until
from redis import Redis
from rq_view import (
    FROZEN_STATES,
    LISTS,
    NAMES,
    WORKER,
    Frozen,
    frozen_run,
    get,
    get_json,
    our_dashboard,
    post,
    states,
    stock_dashboard,
    wait_until_idle,
    worker,
)

from ppss_queue import scripts
from ppss_queue.model import RunState
from ppss_queue.queue import Queue, connect
from ppss_queue.rq_form import shown

MARKED = 'document.title="pwned"'
HOSTILE = (
    f"<script>{MARKED}</script>",
    f"<img src=x onerror={MARKED}>",
    f'"><svg onload={MARKED}>',
    f"'-{MARKED}-'",
    f"javascript:{MARKED}",
    "&lt;b&gt; R&D <%= d.id %> {{7*7}}",
    "a\udcff\nb",
    f"</td></pre></script><img/src=x/onerror={MARKED}><iframe srcdoc='<script>parent.{MARKED}</script>'>",
)
"""Names in place of NAMES, so that each of RQ's lists has one."""
HOSTILE_OUTPUT = "".join(HOSTILE).encode("utf-8", "surrogateescape")


@pytest.fixture
def queue(address: str) -> Iterator[Queue]:
    with connect(address) as queue:
        yield queue


@pytest.fixture
def redis(address: str) -> Iterator[Redis]:
    with Redis.from_url(address) as redis:
        yield redis


# Looking


@pytest.mark.parametrize("names", [NAMES, HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize(
    "dashboard",
    [our_dashboard, stock_dashboard, lambda address: stock_dashboard(address, "--json")],
    ids=["ppss", "stock", "stock-json"],
)
def test_every_page_and_list_answers_and_shows_every_item(
    queue: Queue,
    redis: Redis,
    address: str,
    dashboard: Callable[[str], AbstractContextManager[str]],
    names: tuple[str, ...],
) -> None:
    frozen = frozen_run(queue, names, HOSTILE_OUTPUT)
    described = {name: shown(real) for name, real in zip(NAMES, names, strict=True)}
    run = frozen.run.id
    before = {key: redis.dump(key) for key in redis.keys("*")}
    with dashboard(address) as url:
        for page in ("/", "/0/view/queues", "/0/view/workers", "/0/view/jobs"):
            assert "RQ dashboard" in get(url + page)
        (row,) = get_json(f"{url}/0/data/queues.json")["queues"]
        assert (row["name"], row["count"]) == (run, 2)
        for name, expected in LISTS.items():
            if name != "queued":
                assert row[f"{name}_job_registry_count"] == len(expected), name
            for order in ("asc", "dsc"):
                assert run in get(f"{url}/0/view/jobs/{run}/{name}/8/{order}/1")
                listed = get_json(f"{url}/0/data/jobs/{run}/{name}/8/{order}/1.json")["jobs"]
                assert {job["description"] for job in listed} == {described[item] for item in expected}
        for name, job in frozen.jobs.items():
            assert job in get(f"{url}/0/view/job/{job}")
            page = get_json(f"{url}/0/data/job/{job}.json")
            assert (page["description"], page["origin"]) == (described[name], run)
            assert bool(page["exc_info"]) == (name == "failed")
        (shown_worker,) = get_json(f"{url}/0/data/workers.json")["workers"]
        assert (shown_worker["name"], shown_worker["state"], shown_worker["queues"]) == (
            WORKER,
            "busy",
            [run],
        )
        assert shown_worker["current_job"]["description"] == described["started"]
    assert {key: redis.dump(key) for key in redis.keys("*")} == before
    assert states(frozen.run.status()) == FROZEN_STATES


# Acting


def test_deleting_takes_effect_in_every_state_and_leaves_the_counts_whole(queue: Queue, address: str) -> None:
    frozen = frozen_run(queue)
    with our_dashboard(address) as url:
        for name in NAMES:
            assert post(f"{url}/job/{frozen.jobs[name]}/delete") == {"status": "OK"}
            states(frozen.run.status())
    assert _after_renewal(frozen) == {**dict.fromkeys(FROZEN_STATES, 0), "cancelled": len(NAMES)}
    queue.store.tidy()
    assert frozen.run.status().state is RunState.DONE


def test_emptying_a_list_takes_effect_and_leaves_the_counts_whole(queue: Queue, address: str) -> None:
    with our_dashboard(address) as url:
        for name, state in STATE_OF_LIST.items():
            frozen = frozen_run(queue)
            assert post(f"{url}/queue/{frozen.run.id}/{name}/empty") == {"status": "OK"}
            states(frozen.run.status())
            gone = FROZEN_STATES[state]
            cancelled = FROZEN_STATES["cancelled"] + (gone if state != "cancelled" else 0)
            assert _after_renewal(frozen) == {**FROZEN_STATES, state: 0, "cancelled": cancelled}, name


STATE_OF_LIST = {
    "queued": "ready",
    "started": "leased",
    "scheduled": "delayed",
    "finished": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
}


def _after_renewal(frozen: Frozen) -> dict[str, int]:
    """The states once the worker has renewed its leases: so it learns which items were deleted."""
    renew = frozen.calls.renew(frozen.run.id, (lease.member for lease in frozen.leases.values()))
    scripts.run(frozen.run._store.connection, renew)
    return states(frozen.run.status())


def test_compacting_a_queue_loses_nothing(queue: Queue, address: str) -> None:
    frozen = frozen_run(queue)
    with our_dashboard(address) as url:
        post(f"{url}/queue/{frozen.run.id}/compact")
    assert states(frozen.run.status()) == FROZEN_STATES


def test_requeued_items_of_a_finished_run_are_run_by_an_idle_worker(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    run = queue.enqueue(["a", "b", "c"], command=f': $ITEM; [ -e {flag} ] || {{ echo "no flag"; exit 1; }}')
    with worker(address, tmp_path / "state"), our_dashboard(address) as url:
        wait_until(lambda: states(run.status())["failed"] == 3, "all failed")
        assert run.status().state is RunState.DONE
        wait_until_idle(redis)
        flag.touch()
        assert post(f"{url}/job/{run.id}-0000002/requeue") == {"status": "OK"}
        wait_until(lambda: states(run.status())["succeeded"] == 1, "the requeued item ran")
        assert [item.name for item in run.items("succeeded")] == ["b"]
        wait_until_idle(redis)
        assert post(f"{url}/requeue/{run.id}") == {"count": 2, "status": "OK"}
        wait_until(lambda: states(run.status())["succeeded"] == 3, "all requeued items ran")
        wait_until(lambda: run.status().state is RunState.DONE, "the run is done again")
        listed = get_json(f"{url}/0/data/jobs/{run.id}/finished/8/asc/1.json")["jobs"]
        assert [job["exc_info"] for job in listed] == [None] * 3


def test_emptying_and_deleting_while_a_worker_works_take_effect_and_end_the_run(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    command = f": $ITEM; echo $$ > {pid}; exec sleep 600"
    run = queue.enqueue(["a", "b", "c"], command=command, visibility_seconds=3)
    with worker(address, tmp_path / "state"), our_dashboard(address) as url:
        wait_until(lambda: pid.exists() and pid.read_text(), "an item runs")
        process = Path("/proc") / pid.read_text().strip()
        wait_until(lambda: _worker_state(url)[0] == "busy", "the worker is shown as busy")
        _, shown_job = _worker_state(url)
        assert isinstance(shown_job, dict) and shown_job["job_id"] == f"{run.id}-0000001"
        post(f"{url}/queue/{run.id}/queued/empty")
        assert states(run.status())["cancelled"] == 2
        assert process.exists()
        post(f"{url}/job/{run.id}-0000001/delete")
        wait_until(lambda: not process.exists(), "the deleted item's command is killed")
        wait_until(lambda: run.status().state is RunState.DONE, "the run is done")
        assert states(run.status())["cancelled"] == 3
        wait_until(lambda: _worker_state(url) == ("idle", "idle"), "the worker is shown as idle")


def _worker_state(url: str) -> tuple[str, object]:
    (shown_worker,) = get_json(f"{url}/0/data/workers.json")["workers"]
    return shown_worker["state"], shown_worker["current_job"]


# In a browser


@pytest.fixture
def browser(tmp_path: Path) -> Callable[[str], str]:
    """Gives the DOM of a page after its scripts ran for three seconds of its own time."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("chromium: apt-get install chromium")

    def dom(url: str) -> str:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
            "--disable-background-networking --disable-component-update --virtual-time-budget=3000 --dump-dom"
        )
        shown = subprocess.run(
            [program, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", url],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=90,
        )  # fmt: skip
        return shown.stdout.decode()

    return dom


class _Text(HTMLParser):
    """The text and the title of a page; what stands in its scripts is no text."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.title = self.text = ""
        self._inside = ""
        self.feed(dom)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside != "script":
            self.text += data


def test_no_name_and_no_output_runs_a_script_in_a_browser(
    queue: Queue, redis: Redis, address: str, browser: Callable[[str], str]
) -> None:
    """job.html prints description and failure as they come, so they must come without markup."""
    frozen = frozen_run(queue, HOSTILE, HOSTILE_OUTPUT)
    hostile = dict(zip(NAMES, HOSTILE, strict=True))
    run, jobs = frozen.run.id, frozen.jobs
    with our_dashboard(address) as url:
        job_page = partial("{}/0/view/job/{}".format, url)
        for page, names in {
            f"{url}/0/view/jobs/{run}/queued/8/asc/1": ("ready", "later"),
            f"{url}/0/view/jobs/{run}/started/8/asc/1": ("unstarted", "started"),
            f"{url}/0/view/jobs/{run}/failed/8/asc/1": ("failed",),
            f"{url}/0/view/workers": (),
            job_page(jobs["cancelled"]): ("cancelled",),
            job_page(jobs["failed"]): ("failed",),
        }.items():
            seen = _Text(browser(page))
            assert seen.title == "RQ dashboard", page
            assert all(
                " ".join(shown(hostile[name]).split()) in " ".join(seen.text.split()) for name in names
            ), page
            if "failed" in names:
                assert "R&D" in seen.text and "onerror" in seen.text, "the output is there"
            assert run in seen.text
        # The other way round: that the browser would have run it had it been there.
        redis.hset(f"rq:job:{jobs['ready']}", "description", HOSTILE[1])
        assert _Text(browser(job_page(jobs["ready"]))).title == "pwned"
