"""What an attempt brings to an agentless node, and asks for there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ppss_queue.command import ItemValues
from ppss_queue.errors import BadInput
from ppss_queue.model import RunSpec
from ppss_queue.replacements import expand
from ppss_worker.agentless import protocol
from ppss_worker.agentless.agent import Session
from ppss_worker.agentless.carrying import Carried, Link
from ppss_worker.agentless.home import Home
from ppss_worker.process import SpawnFailed
from ppss_worker.running import ItemRefused
from ppss_worker.runs import ActiveRun

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(slots=True)
class Visit:
    """An attempt on its way there. The files of --with come first: no other may have the place of one."""

    attempt: str
    session: Session
    home: Home
    files: list[Carried] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)
    """Hashes of the files of --with that come along, with the places to which."""

    def bring_shared(self, spec: RunSpec, there: Mapping[str, str]) -> None:
        """The files of --with; `there`: the places of those that are there already, by hash."""
        for file in spec.shared:
            place = there.get(file.sha256)
            if place is None:
                place = self.shared[file.sha256] = f"shared/{file.sha256}.{self.attempt}"
                source = os.path.join(spec.directory, file.path)
                self.files.append(Carried(source, place, file.mode & 0o555, file.sha256))
            self.links.append(Link(self._work(file.path), f"{self.session.directory}/{place}"))

    def bring_item(self, source: str, also: Sequence[str]) -> None:
        """The item's file and its companions, as far as they are there. Raises ItemRefused."""
        if not os.path.exists(source):
            raise ItemRefused(f"can't be brought to the node: No such file or directory: {source!r}")
        taken = {link.target for link in self.links}
        for path in (source, *(path for each in also if os.path.exists(path := expand(each, source)))):
            name = os.path.basename(path)
            if self._work(name) in taken:
                raise ItemRefused(
                    f"has two files with the name {name!r}, of which one is of --also or --with"
                )
            taken.add(self._work(name))
            self.files.append(Carried(path, self._work(name)))

    def _work(self, name: str) -> str:
        return f"{self.attempt}/work/{name}"


def refuse_names(environment: Iterable[str]) -> None:
    """Raises BadInput for a variable that bash can't export."""
    for name in environment:
        if not _NAME.fullmatch(name) and protocol.definition(name, "") is None:
            raise BadInput(f"bash on a node can't be given a variable with the name {name!r} (--env).")


def request_of(run: ActiveRun, values: ItemValues, own: Mapping[str, str], node: str, attempt: str) -> bytes:
    """The request for the command of an attempt; `own`: what it alone sees. Raises SpawnFailed."""
    assert run.command is not None
    invocation = run.command.bind(values)
    spec = run.spec
    carried = spec.environment
    functions = [text for name in carried if (text := protocol.definition(name, carried[name])) is not None]
    variables = {name: text for name, text in carried.items() if protocol.definition(name, text) is None}
    variables |= {"PPSS_RUN": run.id, "PPSS_NODE": node}
    variables |= {**own, **invocation.variables}
    wanted = []
    if spec.output is not None:
        wanted = [os.path.basename(expand(template, values.item)) for template in spec.returns]
    settings = [f"{name}={text}" for name, text in variables.items()]
    if any("\0" in text for text in (*functions, *settings, *invocation.argv)):
        raise SpawnFailed(
            1, f"{invocation.argv[0]!r} can't be started: a NUL byte in its arguments or environment."
        )
    return protocol.run_request(attempt, functions, settings, invocation.argv, wanted)
