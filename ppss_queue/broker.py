"""The RQ seam: the only module that imports rq, and its dashboard.

RQ's keys themselves are written by the scripts in `lua/` (keys.py lists them), since an item moves between
RQ's lists and our leases in one step.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NoReturn

from ppss_queue.errors import BadInput

DASHBOARD_PORT = 9181
"""Where rq-dashboard listens when nobody says otherwise."""


def use_ppss_worker(*_args: object, **_kwargs: object) -> NoReturn:
    """The function that every item names in RQ's `data` (`rq_form.RQ_DATA`): a stock `rq worker` meets it.

    Raises BadInput: that worker fails the items that it took, with this sentence.
    """
    raise BadInput(
        "This queue belongs to PPSS, whose items are not RQ jobs: stop this 'rq worker', "
        "start 'ppss worker', and bring back the items that failed here with 'ppss retry'."
    )


def serve_dashboard(
    url: str,
    *,
    host: str = "127.0.0.1",
    port: int = DASHBOARD_PORT,
    on_ready: Callable[[str], None],
) -> None:
    """Serves rq-dashboard for the Redis at `url` until Ctrl-C; `on_ready` gets its address once it listens.

    It asks for no password and can delete items, so it listens on this machine alone unless `host` says
    otherwise. Port 0 takes a free one. Raises BadInput if it is not installed or can't listen there.
    """
    try:
        from rq_dashboard.cli import make_flask_app  # type: ignore[import-untyped]
        from rq_dashboard.web import config, setup_rq_connection  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise BadInput(
            f"The dashboard is not installed ('{error.name}' is missing): pip install 'ppss-queue[dashboard]'"
        ) from None
    import logging

    from rq.serializers import JSONSerializer
    from werkzeug.serving import make_server

    app = make_flask_app(config=None, username=None, password=None, url_prefix="")
    app.config["RQ_DASHBOARD_REDIS_URL"] = url
    config.serializer = JSONSerializer  # never unpickle what is in Redis
    setup_rq_connection(app)
    # Silent: a line per request, and a traceback per page of an item that was deleted meanwhile.
    for name in ("werkzeug", app.name):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _listen(host, port) as listener:  # werkzeug itself would print and exit if the port is taken
        server = make_server(host, port, app, threaded=True, fd=listener.fileno())
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{server.port}")
        server.serve_forever()  # returns at Ctrl-C


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(
            f"The dashboard can't listen at {host}:{port} ({reason}). Give another --host or --port."
        ) from None
