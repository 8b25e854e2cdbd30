"""All of it at once: 600 real files on four hosts, of which one is far, one has no Python, and one loses its power."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

from helpers import wait_until
from hosts.lab import Lab
from hosts.nodes import PYTHON, Nodes, listing
from hosts.ssh import pids, ppss

FILES = 600
LIST = f"""
n1 python={PYTHON} slots=2 tags=far
n2 python={PYTHON} slots=2
n3 mode=ssh slots=2
"""
COMMAND = 'gzip -nc "$ITEM" >{out}; sleep 0.2; echo "$PPSS_NODE"'


def real_files() -> dict[str, bytes]:
    """Of Python's own library."""
    root = Path(os.__file__).parent
    found = islice((path for path in sorted(root.rglob("*.py")) if path.stat().st_size), FILES)
    return {os.fspath(path.relative_to(root)): path.read_bytes() for path in found}


def test_every_output_of_600_files_is_right_and_once_and_erase_leaves_the_hosts_as_they_were(
    farm: Lab, wheels: bytes
) -> None:
    Nodes(farm, wheels).prepare()
    master, far, dying, bare = farm.master, farm["n1"], farm["n2"], farm["n3"]
    for node in farm.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    bare.run(["sh", "-c", "rm -f /usr/bin/python3* /usr/local/bin/python3*"], user="root")
    far.delay(80)
    before = {node.name: listing(node) for node in farm.nodes}
    keys = master.read(".ssh/authorized_keys")
    files = real_files()
    assert len(files) == FILES
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"in/{name}")
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    master.run(["tar", "x"], stdin=packed.getvalue())
    master.write("nodes", LIST)

    argv = ["ppss", "run", "in", "-n", "nodes", "-o", "out", "-p", "1", "--visibility", "10s", "-c", COMMAND]
    process = master.popen(argv)
    wait_until(lambda: all(pids(node, "gzip|sleep 0.2") for node in (far, dying, bare)), "all take part", 90)
    dying.kill()
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0

    with tarfile.open(
        fileobj=io.BytesIO(os.fsencode(master.run(["tar", "c", "out"]).stdout)), mode="r"
    ) as tar:
        found = {
            entry.name.removeprefix("out/"): gzip.decompress(tar.extractfile(entry).read())  # type: ignore[union-attr]
            for entry in tar
            if entry.isfile()
        }
    assert found == files, "every output, each right, nothing else"
    status = json.loads(ppss(master, "status", "last", "--json").out)
    assert (status["succeeded"], status["total"]) == (FILES, FILES)
    told = Counter(out.split())
    # What the dead node had printed of its two slots' items may have come before their outcomes could.
    assert FILES <= sum(told.values()) <= FILES + 2
    assert {b"master", b"n1", b"n2", b"n3"} == set(told)

    dying.start()
    done = ppss(master, "nodes", "erase", "--yes", "n1", "n2", "-n", "nodes")
    assert done.code == 0, done
    assert {node.name: listing(node) for node in farm.nodes} == before
    assert master.read(".ssh/authorized_keys") == keys
    for node in farm.nodes:
        assert not pids(node, "ppss|gzip"), node.name
