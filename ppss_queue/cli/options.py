"""Options: their types, their sections in the help, their environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from ppss_queue.errors import BadInput
from ppss_queue.units import count_slots, parse_bytes, parse_duration, parse_gpus, printable, shorten

"""A number of GPUs has no more."""
_NODE_CHARACTERS = 64
"""As long as Linux lets a host name be."""


class _Type(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """What our types share."""


class Duration(_Type):
    """A time with a unit, in seconds."""

    name = "time"

    def __init__(self, *, minimum_seconds: float = 0.0) -> None:
        self._minimum = minimum_seconds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value) if isinstance(value, int | float) else parse_duration(str(value))
        except BadInput as error:
            self.fail(str(error), param, ctx)
        if seconds < self._minimum:
            self.fail(f"'{value}' is too short. Give at least {self._minimum:g} s.", param, ctx)
        return seconds


class Bytes(_Type):
    """A size with a unit, in bytes; not 0."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            size = parse_bytes(str(value))
        except BadInput as error:
            self.fail(str(error), param, ctx)
        if not size:
            self.fail("'0' is too little. Give at least one byte.", param, ctx)
        return size


class Number(_Type):
    """A whole number within bounds."""

    name = "number"

    def __init__(self, low: int, high: int | None = None) -> None:
        self._low = low
        self._high = high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = self._low - 1
        if number < self._low or (self._high is not None and number > self._high):
            bounds = f"from {self._low} to {self._high}" if self._high is not None else f"from {self._low} up"
            self.fail(f"'{value}' is no number {bounds}.", param, ctx)
        return number


class Gpus(_Type):
    """`2`: GPUs 0 and 1; `0,3` or `GPU-5c3f...`: these."""

    name = "GPUs"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        try:
            return parse_gpus(str(value))
        except BadInput as error:
            self.fail(str(error), param, ctx)


class Slots(_Type):
    """`8`, `50%` of the cores, `-1`: all cores but one, `+1`: one more than there are cores."""

    name = "slots"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        try:
            return count_slots(text, cores_here())
        except (ValueError, OverflowError):
            self.fail(f"'{text}' is no number of slots. Write 8, 50% or -1 (all cores but one).", param, ctx)


class NodeName(_Type):
    """A word that tables can hold and log lines can be split at."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value)
        if not 0 < len(name) <= _NODE_CHARACTERS or not name.isprintable() or " " in name:
            shown = shorten(printable(name), _NODE_CHARACTERS)
            self.fail(
                f"'{shown}' can't name a machine. Give 1 to {_NODE_CHARACTERS} printable characters without blanks.",
                param,
                ctx,
            )
        return name


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Option(click.Option):
    """An option that the environment (PPSS_MAX_LOST) and ppss.toml (max-lost) can set."""

    def __init__(
        self,
        param_decls: Sequence[str] | None = None,
        *,
        section: str = "Options",
        once: bool = False,
        **attributes: Any,
    ) -> None:
        """`section`: where in the help. `once`: a second one would silently replace the first, so it is refused."""
        super().__init__(param_decls, **attributes)
        self.section = section
        self.once = once
        if self.envvar is None:
            self.envvar = f"PPSS_{self.long_name.replace('-', '_').upper()}"

    @property
    def long_name(self) -> str:
        """`max-lost` for --max-lost."""
        return next(name[2:] for name in self.opts if name.startswith("--"))

    @property
    def setting(self) -> str:
        """Its key in ppss.toml: the name of its variable, as an option is spelled."""
        return str(self.envvar).removeprefix("PPSS_").replace("_", "-").lower()


def option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` made of Option."""
    return click.option(*names, cls=Option, **attributes)


ACCEPT_NEW = "ppss.accept_new"
"""Where in a click context's `meta` it is noted that a host of which nothing is known is to be trusted."""


def _note_accept_new(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta[ACCEPT_NEW] = value


def url_option(verb: Any) -> Any:
    """--url, and --accept-new, which `open_queue` looks up itself."""
    url = option(
        "--url",
        metavar="ADDRESS",
        help="Redis to use: redis://, rediss://, unix://, redis+sentinel://, or ssh://[USER@]HOST for the own server "
        "of that user there. Default: your own server on this machine.",
    )
    return url(accept_new_option(verb))


accept_new_option = option(
    "--accept-new",
    is_flag=True,
    expose_value=False,
    callback=_note_accept_new,
    help="Over SSH, trust a host of which nothing is known yet; a changed key never is.",
)
"""For `accepts_new`."""


json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
