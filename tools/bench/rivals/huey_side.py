"""What a user of huey would write; huey_side.py LIST enqueues, starts the consumer and waits for the last item."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from huey import RedisHuey

huey = RedisHuey("rival", url=os.environ["HUEY_URL"], results=False)
DONE = "huey-done"


@huey.task()
def run_true(item: str) -> None:
    """One task."""
    subprocess.run(["true", item], check=True)
    huey.storage.conn.incr(DONE)


def main(items: str) -> None:
    import huey_side  # the name by which the consumer imports the task

    count = 0
    with open(items) as lines:
        for line in lines:
            huey_side.run_true(line.rstrip("\n"))
            count += 1
    argv = ["huey_consumer", "huey_side.huey", "-w", "2", "-k", "process", "-q"]
    here = os.path.dirname(os.path.abspath(__file__))
    with subprocess.Popen(argv, cwd=here, env={**os.environ, "PYTHONPATH": here}) as consumer:
        try:
            deadline = time.monotonic() + 240
            while int(huey.storage.conn.get(DONE) or 0) < count:
                if time.monotonic() > deadline or consumer.poll() is not None:
                    sys.exit("the consumer did not do its work")
                time.sleep(0.01)
        finally:
            consumer.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
