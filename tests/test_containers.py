"""docker-compose.yml and the units of systemd, as their own programs read them; `make containers` runs the former."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import missing

from ppss_queue.cli.frame import cli

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ROOT / "workers"
UNITS = sorted(WORKERS.rglob("*.service"))
SETTINGS = {"VALKEY_PASSWORD": "one", "DASHBOARD_PASSWORD": "two", "FILES_DIR": "/srv/files"}


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(f"{name} (apt-get install {package})")
    return found


def _compose(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`docker-compose config` with just these settings."""
    program = _program("docker-compose", "docker-compose")
    return subprocess.run(
        [program, "-f", ROOT / "docker-compose.yml", "--project-directory", directory, "config"],
        env={"PATH": os.environ["PATH"], "HOME": os.fspath(directory), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_compose_checks_every_service_and_publishes_none_to_other_machines(tmp_path: Path) -> None:
    done = _compose(tmp_path, **SETTINGS)
    assert done.returncode == 0, done.stderr
    services = re.findall(r"^  (\w+):\n((?:    .*\n)+)", done.stdout, re.MULTILINE)
    assert {name for name, _ in services} == {"valkey", "worker", "dashboard"}
    for name, service in services:
        assert "\n    healthcheck:\n" in service, name
    published = re.findall(r"^ +- (\S*:\d+:\d+)/tcp$", done.stdout, re.MULTILINE)
    assert sorted(published) == ["127.0.0.1:6379:6379", "127.0.0.1:9181:9181"]
    assert "- --requirepass\n    - one\n" in done.stdout
    assert "RQ_DASHBOARD_PASSWORD: two\n" in done.stdout
    assert f"- {tmp_path}/data:/data:rw\n" in done.stdout
    assert "- /srv/files:/srv/files:rw\n" in done.stdout


@pytest.mark.parametrize("missing", SETTINGS)
def test_compose_names_the_setting_that_is_missing(missing: str, tmp_path: Path) -> None:
    done = _compose(tmp_path, **{name: value for name, value in SETTINGS.items() if name != missing})
    assert done.returncode != 0
    assert f"set {missing} in .env, a filled-in copy of .env.example" in done.stderr


def test_the_example_of_settings_names_those_of_compose_and_no_option_of_ppss() -> None:
    """An exported PPSS_* would be an option of every `ppss` that is typed."""
    settings = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert settings >= set(SETTINGS)
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    assert settings <= used
    assert not [name for name in used if name.startswith("PPSS_")]
    environment = re.findall(r"^ +PPSS_(\w+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    worker = cli.get_command(None, "worker")  # type: ignore[attr-defined]
    options = {name for parameter in worker.params for name in parameter.opts}
    assert {f"--{name.lower().replace('_', '-')}" for name in environment} <= options


def test_the_image_is_built_from_all_that_the_wheel_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for name in (
        "ppss_queue",
        "workers/ppss_worker",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "requirements.lock",
    ):
        assert f"!{name}" in ignored
        assert (ROOT / name).exists()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(WORKERS)))
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    program = _program("systemd-analyze", "systemd")
    text = unit.read_text()
    started = set(re.findall(r"[^\s=']+/ppss(?= )", text))
    assert len(started) == 1
    copy = tmp_path / unit.name
    copy.write_text(text.replace(started.pop(), "/bin/true"))
    of_user = ["--user"] if unit.parent.name == "user" else []
    done = subprocess.run(
        [program, "verify", "--man=no", *of_user, copy],
        env={**os.environ, "XDG_RUNTIME_DIR": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_unit_of_a_worker_drains_it_and_no_other_process_is_told() -> None:
    workers = [unit.read_text() for unit in UNITS if unit.name == "ppss-worker.service"]
    assert len(workers) == 2
    for text in workers:
        assert "\nKillMode=mixed\n" in text and "\nTimeoutStopSec=1h\n" in text
