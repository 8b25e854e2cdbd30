"""What was odd while the sources were read: it stops nothing, and is told once all is known."""

from __future__ import annotations

from dataclasses import dataclass, field

_MAX_EXAMPLES = 3


@dataclass(slots=True)
class Notes:
    """Oddities met on the way: a count and the first examples per kind, however many there are."""

    _kinds: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, kind: str, example: str = "", count: int = 1) -> None:
        before, examples = self._kinds.get(kind, (0, []))
        if example and len(examples) < _MAX_EXAMPLES:
            examples.append(example)
        self._kinds[kind] = (before + count, examples)

    def lines(self) -> list[str]:
        """One line per kind, in the order in which they were met."""
        return [self._line(kind, count, examples) for kind, (count, examples) in self._kinds.items()]

    def _line(self, kind: str, count: int, examples: list[str]) -> str:
        more = count - len(examples)
        shown = [*examples, f"{more:,} more"] if examples and more else examples
        return f"{kind}: {', '.join(shown) if shown else f'{count:,}'}"
