"""Every key in Redis that PPSS reads or writes. `lua/lib.lua` builds the same names.

Ours, under `ppss:` (P), with who may see what:

| key                | type   | what                                                                        |
|--------------------|--------|-----------------------------------------------------------------------------|
| P schema           | string | version of this layout; permanent                                           |
| P rq               | string | prefix of RQ's keys that the runs were made with; permanent                 |
| P tokens           | int    | counter of claims, first half of every token; permanent                     |
| P wake             | int    | touched when something may have become claimable; permanent                 |
| P control          | int    | touched when a run was paused ..., or a node told something: workers look   |
| P runs             | zset   | run -> time of creation                                                     |
| P names            | hash   | --name -> run                                                               |
| P filling          | zset   | run -> time until which its enqueuer is believed alive                      |
| P open             | zset   | run -> stride pass; a claim looks only here                                 |
| P ended            | zset   | run -> time at which it may be purged                                       |
| P run:<run>        | hash   | version spec state total created ended weight ... (create.lua)              |
| P events:<run>     | stream | one entry per terminal move: s(eq) t (state) a(ttempt)                      |
| P outputs:<run>    | hash   | output file -> item that wrote it                                           |
| P told:<run>       | stream | what items printed on other workers, until `ppss run` has printed it        |
| P doubts:<run>     | hash   | item -> node that it failed on: another one is to try it (doubt.lua)        |
| P record:<run>     | hash   | node -> such doubts that were the item's fault; node! -> that were its own  |
| P nodes            | zset   | node -> when a worker of it was last heard of; until it retires, or a day    |
| P node:<node>      | hash   | what is wished of it: paused (why) slots stop (when) how id (whose it is)    |
| P facts:<node>     | hash   | what its machine told last: id hostname version cores load ...; a day        |
| P crew:<node>      | set    | names of its workers                                                        |

RQ's, under `rq:` (R), written so that RQ's own tools show the same items: see broker.py.
A lease *is* the member `<job>:<token>` of `R wip:<run>`; its score is the deadline plus 100 years (200 once the item
has begun), which
RQ's clean-up never reaches.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

SCHEMA_VERSION = 1
HUNDRED_YEARS_SECONDS = 3_155_760_000


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names below two prefixes."""

    ours: str = "ppss:"
    rq: str = "rq:"

    @classmethod
    def from_environment(cls) -> Keys:
        """Honours RQ_KEY_PREFIX, as RQ itself does."""
        return cls(rq=os.environ.get("RQ_KEY_PREFIX", "rq") + ":")

    @property
    def prefixes(self) -> tuple[str, str]:
        """KEYS of every Lua script."""
        return self.ours, self.rq

    @property
    def schema(self) -> str:
        return self.ours + "schema"

    @property
    def rq_prefix(self) -> str:
        return self.ours + "rq"

    @property
    def wake(self) -> str:
        return self.ours + "wake"

    @property
    def control(self) -> str:
        return self.ours + "control"

    @property
    def filling(self) -> str:
        return self.ours + "filling"

    @property
    def runs(self) -> str:
        return self.ours + "runs"

    @property
    def nodes(self) -> str:
        return self.ours + "nodes"

    @property
    def names(self) -> str:
        return self.ours + "names"

    @property
    def types(self) -> dict[str, str]:
        """What Redis must say of the keys that do not belong to one run, where they are there."""
        ours = {
            "runs": "zset",
            "names": "hash",
            "filling": "zset",
            "open": "zset",
            "ended": "zset",
            "nodes": "zset",
        }
        strings = dict.fromkeys(("schema", "rq", "tokens", "wake", "control"), "string")
        return {
            **{self.ours + name: kind for name, kind in {**ours, **strings}.items()},
            self.rq + "queues": "set",
            self.rq + "workers": "set",
        }

    @property
    def permanent(self) -> frozenset[str]:
        """What stays when no run is left."""
        return frozenset(self.ours + name for name in ("schema", "rq", "tokens", "wake", "control"))

    def run(self, run: str) -> str:
        return f"{self.ours}run:{run}"

    def node(self, node: str) -> str:
        return f"{self.ours}node:{node}"

    def facts(self, node: str) -> str:
        return f"{self.ours}facts:{node}"

    def crew(self, node: str) -> str:
        return f"{self.ours}crew:{node}"

    def events(self, run: str) -> str:
        return f"{self.ours}events:{run}"

    def queue(self, run: str) -> str:
        """The ready list."""
        return f"{self.rq}queue:{run}"

    def job(self, job: str) -> str:
        return f"{self.rq}job:{job}"

    def registry(self, name: str, run: str) -> str:
        """RQ's sorted sets: wip (leased), scheduled (delayed), finished, failed, canceled."""
        return f"{self.rq}{name}:{run}"

    def results(self, job: str) -> str:
        return f"{self.rq}results:{job}"

    def executions(self, job: str) -> str:
        return f"{self.rq}executions:{job}"

    def execution(self, job: str, token: str) -> str:
        return f"{self.rq}execution:{job}:{token}"

    def worker(self, worker: str) -> str:
        return f"{self.rq}worker:{worker}"

    @property
    def workers(self) -> str:
        return self.rq + "workers"

    @property
    def suspended(self) -> str:
        return self.rq + "suspended"
