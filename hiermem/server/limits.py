"""Rates of requests: each client has a bucket that fills evenly."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

_CLIENTS = 10_000  # the least recent ones are forgotten


class RateLimit:
    """A limit of requests by client; for one thread.

    Args:
        per_minute: that a bucket gains, and at most holds; 0: any number.
        clock: in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = per_minute, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: float = 1.0) -> int:
        """Take from a client's bucket; 0, or the seconds to wait until there is enough."""
        if not self._most:
            return 0
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._most), now))
        left = min(float(self._most), left + (now - then) * self._most / 60)
        enough = left >= cost
        self._buckets[client] = (left - cost if enough else left, now)
        while len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if enough else math.ceil((cost - left) * 60 / self._most)
