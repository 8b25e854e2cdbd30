"""Where the master of a service is, which its sentinels know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from ppss_queue.address import Address
from ppss_queue.errors import ConnectFailed, ServiceFailed

if TYPE_CHECKING:
    from ppss_queue.connection import Connection


def master_of(address: Address, to_sentinel: Callable[[Address], Connection]) -> Address:
    """The master's address, from the first sentinel that knows it; raises ConnectFailed if none does.

    `to_sentinel`: a connection there, to be opened and closed here.
    """
    failures: list[str] = []
    for sentinel in address.hosts:
        asked = Address("redis", (sentinel,), via=address.via)
        try:
            with to_sentinel(asked) as connection:
                connection.reopen()
                found = connection.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        except ServiceFailed as error:
            failures.append(str(error))
            continue
        if isinstance(found, list):
            host, port = (bytes(cast("bytes", part)).decode() for part in found)
            return replace(address, scheme="redis", hosts=((host, int(port)),), service="")
        failures.append(f"the sentinel at {asked.display()} knows no service {address.service!r}.")
    raise ConnectFailed(f"no sentinel of {address.display()} names a master: {failures[-1]}")
