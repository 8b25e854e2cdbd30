"""Python functions as commands, in real workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue.model import ItemView, State
from ppss_queue.rules import RetryRule

if TYPE_CHECKING:
    from conftest import Site

MODULE = '''
import os, sys, time, subprocess

def upper(item):
    print("printed", item)
    return {"text": item.upper(), "pid": os.getpid()}

def environment(item):
    return [os.environ[name] for name in ("ITEM", "PPSS_ITEM", "PPSS_ATTEMPT", "PPSS_SEQ", "CARRIED")]

class Tools:
    @staticmethod
    def nothing(item):
        pass

def do(item):
    """What the item says."""
    if item == "raise":
        print("before")
        raise ValueError("bad\\nvalue")
    if item.startswith("exit "):
        sys.exit(eval(item[5:]))
    if item == "die":
        os._exit(4)
    if item == "die well":
        os._exit(0)
    if item == "kill":
        os.kill(os.getpid(), 9)
    if item == "object":
        return object()
    if item == "large":
        return "x" * 70_000
    if item in ("nan", "infinite"):
        return {"in": [float(item[:3])]}
    if item == "hang":
        child = subprocess.Popen(["sleep", "1000"])
        open("hang.pid", "w").write(str(child.pid))
        time.sleep(1000)
    if item == "deaf":
        import signal
        signal.signal(signal.SIGTERM, lambda *_: None)
        time.sleep(0.7)
        time.sleep(1000)
    return item

def write(item):
    with open(os.path.join(os.environ["OUTPUT_DIR"], os.environ["OUTPUT_FILE"]), "w") as file:
        file.write(item)
    if item == "bad":
        raise RuntimeError("no")
'''


@pytest.fixture(autouse=True)
def module(site: Site) -> None:
    (site.directory / "functions.py").write_text(MODULE)


def _done(site: Site, items: list[str], function: str = "do", **options: object) -> dict[str, ItemView]:
    run = site.enqueue(items, f"python:functions:{function}", **options)
    site.burst("-p", "1")
    return {view.name: view for view in run.items()}


def test_the_result_of_each_item_comes_back_from_one_process(site: Site) -> None:
    views = _done(site, ["a b", "ü", "$(touch x)", "\udcff"], "upper")
    results = {name: view.result for name, view in views.items()}
    assert {name: result["text"] for name, result in results.items()} == {  # type: ignore[index]
        "a b": "A B",
        "ü": "Ü",
        "$(touch x)": "$(TOUCH X)",
        "\udcff": "\udcff",
    }
    assert len({result["pid"] for result in results.values()}) == 1  # type: ignore[index]
    assert views["a b"].last_line == "printed a b"
    assert not (site.directory / "x").exists()


def test_a_function_sees_the_variables_of_its_item(site: Site) -> None:
    views = _done(site, ["a", "b"], "environment", environment={"CARRIED": "over"})
    assert views["a"].result == ["a", "a", "1", "1", "over"]
    assert views["b"].result == ["b", "b", "1", "2", "over"]


def test_a_function_may_be_an_attribute_and_return_nothing(site: Site) -> None:
    view = _done(site, ["a"], "Tools.nothing")["a"]
    assert (view.state, view.result) == (State.SUCCEEDED, None)


def test_an_exception_fails_its_item_and_no_other(site: Site) -> None:
    views = _done(site, ["raise", "fine"])
    failed = views["raise"]
    assert (failed.state, failed.exit_code) == (State.FAILED, 1)
    assert failed.outcome.reason == "ValueError: bad\nvalue"
    assert failed.result is None
    assert views["fine"].result == "fine"
    kept = site.queue.run("last").log("raise")
    assert kept.startswith("before\nTraceback (most recent call last):")
    assert 'raise ValueError("bad' in kept


@pytest.mark.parametrize("where", ["when it is called", "when it is imported"])
def test_a_traceback_begins_with_the_users_code(site: Site, where: str) -> None:
    failing = "def fail():\n    1 / 0\n"
    call = "def do(item):\n    fail()\n" if where == "when it is called" else "fail()\n"
    (site.directory / "functions.py").write_text(failing + call)
    _done(site, ["a"])
    kept = site.queue.run("last").log("a").splitlines()
    files = [line.split('"')[1] for line in kept if line.startswith("  File ")]
    assert files == [str(site.directory / "functions.py")] * 2
    assert (kept[0], kept[-1]) == (
        "Traceback (most recent call last):",
        "ZeroDivisionError: division by zero",
    )


def test_a_function_that_is_not_there_is_told_without_a_traceback(site: Site) -> None:
    site.enqueue(["a"], "python:no_such_module:do")
    site.burst("-p", "1")
    assert site.queue.run("last").log("a") == "ModuleNotFoundError: No module named 'no_such_module'\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [("3", 3), ("", 0), ("None", 0), ("True", 1), ("'some text'", 1), ("256 + 7", 7), ("-1", 255)],
)
def test_sys_exit_ends_the_item_as_it_would_end_a_program(site: Site, code: str, expected: int) -> None:
    views = _done(site, [f"exit {code or 'None'}", "fine"])
    view = views[f"exit {code or 'None'}"]
    assert (view.state, view.exit_code) == (State.FAILED if expected else State.SUCCEEDED, expected)
    assert views["fine"].result == "fine"
    if "text" in code:
        assert view.last_line == "some text"


def test_a_function_that_ends_its_process_fails_and_the_next_item_gets_a_new_one(site: Site) -> None:
    views = _done(site, ["die", "fine", "kill", "die well", "also fine"])
    assert (views["die"].state, views["die"].exit_code) == (State.FAILED, 4)
    assert (views["kill"].state, views["kill"].outcome.signal) == (State.FAILED, 9)
    assert (views["die well"].state, views["die well"].outcome.reason) == (
        State.FAILED,
        "its process ended before it returned",
    )
    assert (views["fine"].result, views["also fine"].result) == ("fine", "also fine")


def test_a_function_over_its_time_is_killed_with_its_children_and_the_next_item_works(site: Site) -> None:
    views = _done(site, ["hang", "fine"], timeout_seconds=1)
    assert views["hang"].outcome.reason == "timed out after 1.0 s"
    assert views["fine"].result == "fine"
    assert not any(map(site.alive, site.pids("hang.pid", 1)))


def test_a_function_that_catches_sigterm_is_killed_after_the_grace_time(site: Site) -> None:
    views = _done(site, ["deaf", "fine"], timeout_seconds=0.5, grace_seconds=0.5)
    assert (views["deaf"].outcome.reason, views["deaf"].outcome.signal) == ("timed out after 500 ms", 9)
    assert views["fine"].result == "fine"


def test_results_that_are_no_json_or_too_large_fail_with_a_reason(site: Site) -> None:
    views = _done(site, ["object", "large", "nan", "infinite", "fine"])
    assert views["object"].outcome.reason == "TypeError: Object of type object is not JSON serializable"
    assert (
        views["large"].outcome.reason
        == "ValueError: the result is 70,002 bytes of JSON; at most 65,536 are kept"
    )
    assert views["nan"].outcome.reason.startswith("ValueError: the result is no JSON: Out of range float")  # type: ignore[union-attr]
    assert views["infinite"].state is views["nan"].state is State.FAILED and views["nan"].result is None
    assert {views["object"].state, views["large"].state} == {State.FAILED}
    assert views["fine"].result == "fine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:do", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("functions:absent", "AttributeError: module 'functions' has no attribute 'absent'"),
        ("functions:__name__", "TypeError: functions:__name__ can't be called"),
    ],
)
def test_a_function_that_can_not_be_imported_fails_the_items(site: Site, name: str, reason: str) -> None:
    run = site.enqueue(["a", "b"], f"python:{name}")
    site.burst("-p", "1")
    assert [(view.state, view.outcome.reason) for view in run.items()] == [(State.FAILED, reason)] * 2


def test_a_failed_function_is_retried(site: Site) -> None:
    (site.directory / "functions.py").write_text(
        "import os\ndef do(item):\n    assert os.environ['PPSS_ATTEMPT'] == '3'\n    return 'at last'\n"
    )
    view = _done(site, ["a"], retry=RetryRule(2, 0.01))["a"]
    assert (view.result, view.attempts) == ("at last", 3)


def test_files_that_a_function_writes_appear_only_if_it_succeeded(site: Site) -> None:
    output = site.directory / "out"
    views = _done(site, ["good", "bad"], "write", output=str(output))
    assert [path.name for path in output.iterdir()] == ["good"]
    assert views["bad"].outcome.reason == "RuntimeError: no"


def test_processes_of_functions_do_not_pile_up_with_the_runs(site: Site) -> None:
    worker = site.worker("-p", "1")
    for number in range(4):
        run = site.enqueue(["a"], "python:functions:environment", environment={"CARRIED": str(number)})
        run.wait(8)
        assert site.item(run, "a").result == ["a", "a", "1", "1", str(number)]
    wait_until(lambda: len(_hosts(worker.pid)) <= 1, "processes of earlier runs end")


def _hosts(parent: int) -> list[str]:
    """Living children of a worker that run functions."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = file.read().split()
    found = []
    for child in children:
        try:
            with open(f"/proc/{child}/cmdline", "rb") as file:
                if b"ppss_worker.function_host" in file.read():
                    found.append(child)
        except OSError:
            continue
    return found


def test_no_function_outlives_its_worker(site: Site) -> None:
    site.enqueue(["hang"], "python:functions:do")
    worker = site.worker("-p", "1")
    pids = site.pids("hang.pid", 1)
    pids += map(int, _hosts(worker.pid))
    worker.kill()
    site.wait_gone(pids)
