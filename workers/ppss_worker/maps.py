"""Paths of the master under which this node sees the same files elsewhere, over NFS or SMB (--map FROM=TO)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ppss_queue.errors import BadInput
from ppss_queue.model import RunSpec


@dataclass(frozen=True, slots=True)
class PathMaps:
    """Pairs of absolute directories: on the master, and here. The longest that fits counts."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> PathMaps:
        """`/data=/mnt/data`. Raises BadInput."""
        pairs = []
        for text in texts:
            source, equals, target = text.partition("=")
            if not equals or not source.startswith("/") or not target.startswith("/"):
                raise BadInput(
                    f"'{text}' maps nothing. Write two absolute directories: --map /data=/mnt/data"
                )
            if not os.path.isdir(target):
                raise BadInput(f"'{target}' of --map '{text}' is no directory on this node. Mount it first.")
            pairs.append((os.path.normpath(source), os.path.normpath(target)))
        return cls(tuple(sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)))

    def path(self, path: str) -> str | None:
        """Where this path of the master is here; None if no pair fits."""
        for source, target in self.pairs:
            if path == source or path.startswith(source.rstrip("/") + "/"):
                return target + path[len(source.rstrip("/")) :]
        return None

    def applied(self, spec: RunSpec) -> tuple[RunSpec, bool]:
        """The run as this node sees it, and whether all its files and its outputs are within reach here."""
        if not self.pairs:
            return spec, False
        roots = [self.path(root) if root else "" for root in spec.roots]
        output = self.path(spec.output) if spec.output is not None else None
        whole = (
            None not in roots and (spec.output is None or output is not None) and (any(roots) or bool(output))
        )
        if spec.stage and not whole:  # a part of it can't be copied and the other not
            return spec, False
        seen = tuple(root if here is None else here for here, root in zip(roots, spec.roots, strict=True))
        directory = self.path(spec.directory) or spec.directory
        return replace(spec, roots=seen, output=output or spec.output, directory=directory), whole


NO_MAPS = PathMaps()
