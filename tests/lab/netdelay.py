#!/usr/bin/env python3
"""Relay Ethernet frames between two new TAP devices: late, with losses, or slowly.

usage: netdelay.py TAP TAP DELAY_MS LOSS_PERCENT RATE_MBIT

DELAY_MS is added to the round trip, half of it each way. Each way loses LOSS_PERCENT of its
frames and carries RATE_MBIT; 0 means no loss, no limit. Prints its pid once both devices
exist; they vanish with it. For kernels without `tc netem`.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x0002 | 0x1000
MAX_FRAME_BYTES = 65536
QUEUE_SECONDS = 0.2  # what a slow link holds back before it drops, as a home router would
MIN_QUEUE_BYTES = 32768  # but never less than this, or TCP cannot get going on a very slow link


class Way:
    """The frames on their way from one device to the other, oldest first."""

    def __init__(self, source, target, delay_seconds, loss, bytes_per_second):
        self.source, self.target = source, target
        self.delay_seconds, self.loss, self.bytes_per_second = delay_seconds, loss, bytes_per_second
        self.max_queue_bytes = max(MIN_QUEUE_BYTES, bytes_per_second * QUEUE_SECONDS)
        self.link_free_at = 0.0
        self.frames = deque()  # (when due, frame)

    def take(self, frame, now):
        if random.random() < self.loss:
            return
        leaves_at = now
        if self.bytes_per_second:
            starts_at = max(now, self.link_free_at)
            if (starts_at - now) * self.bytes_per_second > self.max_queue_bytes:
                return
            leaves_at = self.link_free_at = starts_at + len(frame) / self.bytes_per_second
        self.frames.append((leaves_at + self.delay_seconds, frame))

    def deliver(self, now):
        while self.frames and self.frames[0][0] <= now:
            with suppress(OSError):  # the device is down or full: the frame is lost, as on a wire
                os.write(self.target, self.frames.popleft()[1])


def open_tap(name):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI))
    return tap


def relay(ways):
    by_source = {way.source: way for way in ways}
    while True:
        due = min((way.frames[0][0] for way in ways if way.frames), default=None)
        wait_seconds = None if due is None else max(0.0, due - time.monotonic())
        for source in select.select(by_source, [], [], wait_seconds)[0]:
            by_source[source].take(os.read(source, MAX_FRAME_BYTES), time.monotonic())
        for way in ways:
            way.deliver(time.monotonic())


def main(near_name, far_name, delay_ms, loss_percent, rate_mbit):
    near, far = open_tap(near_name), open_tap(far_name)
    link = float(delay_ms) / 2000, float(loss_percent) / 100, float(rate_mbit) * 125_000
    print(os.getpid(), flush=True)
    relay([Way(near, far, *link), Way(far, near, *link)])


if __name__ == "__main__":
    main(*sys.argv[1:])
