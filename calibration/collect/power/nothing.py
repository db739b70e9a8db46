"""No power meter: the fields stay empty and the reason is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable

from calibration.collect.power.energy import PowerWindow


class Unavailable(Exception):
    """An instrument that is not there or gives neither power nor energy; the message is the reason, one clause."""


class Nothing:
    """A `Meter` that measures nothing but the time, and says why."""

    name, scope = "none", ""

    def __init__(self, reason: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason = reason
        self.idle_power_w: float | None = None
        self.idle_doubt: str | None = None
        self._clock = clock
        self._start_s: float | None = None

    def start(self) -> None:
        """Begin a window. RuntimeError if one is open."""
        if self._start_s is not None:
            raise RuntimeError("the meter already runs; stop it first")
        self._start_s = self._clock()

    def stop(self) -> PowerWindow:
        """A window without numbers. RuntimeError without an open window."""
        if self._start_s is None:
            raise RuntimeError("the meter does not run; start it first")
        start_s, end_s, self._start_s = self._start_s, self._clock(), None
        return PowerWindow(end_s - start_s, None, None, "none", self.reason, start_s=start_s, end_s=end_s)

    def close(self) -> None:
        """Drop an open window."""
        self._start_s = None
