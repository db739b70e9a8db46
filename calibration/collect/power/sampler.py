"""A thread that reads an instrument at its own pace, and the meter that puts a window around it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from calibration.collect.power.energy import Counters, Mark, PowerWindow, Reading, Sample
from calibration.collect.power.judge import MIN_WINDOW_S, NOT_STEADY, judge_window
from calibration.collect.power.sensors import Sensor

JOIN_S = 10.0  # a driver that does not answer for so long must not hold the program


class Instrument(Protocol):
    """A source of readings. `scope`: power_scope of the records; `of`: the rails that make up its power, if rails do.

    `why_no_power`: why readings have no power, if they never do; `notes`: labels of every window.
    """

    name: str
    scope: str
    of: str
    sensor: Sensor
    why_no_power: str | None
    notes: tuple[str, ...]

    def read(self) -> Reading:
        """What it says now."""
        ...

    def counters(self) -> Counters:
        """Its energy counters now."""
        ...

    def events(self) -> dict[str, int]:
        """Counts of throttling events so far, by reason; empty where the hardware does not count them."""
        ...

    def close(self) -> None:
        """Give the library back."""
        ...


class Meter(Protocol):
    """What measures power. `idle_power_w` is the baseline, None until measured (`measure_idle`).

    `idle_doubt`: why there is none, or what speaks against it; later windows note it.
    """

    name: str
    scope: str
    idle_power_w: float | None
    idle_doubt: str | None

    def start(self) -> None:
        """Begin a window. RuntimeError if one is open."""
        ...

    def stop(self) -> PowerWindow:
        """End the window. RuntimeError without one."""
        ...

    def close(self) -> None:
        """Drop an open window and give the instrument back."""
        ...


class Sampler:
    """Reads `read` every `period_s` in a thread of its own, on the monotonic clock.

    A reading that fails becomes a sample without power and with the reason. The thread is a daemon and ends with
    `stop`, so neither an exception nor Ctrl-C leaves it behind.
    """

    def __init__(
        self, read: Callable[[], Reading], period_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.read, self.period_s, self.clock = read, period_s, clock
        self.ended = threading.Event()
        self._samples: list[Sample] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the first sample, then one each period."""
        self.take()
        self._thread = threading.Thread(target=self._loop, name="power-sampler", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self.ended.set()
            raise

    def stop(self) -> tuple[Sample, ...]:
        """Take the last sample, end the thread, and give all samples in order of time.

        A thread whose reading does not come back is left to itself, and its instrument is not asked once more.
        """
        self.ended.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)
        if self._thread is not None and self._thread.is_alive():
            silent = Reading(power_w=None, failure=f"no answer for {JOIN_S:g} s")
            self._samples.append(Sample(at_s=self.clock(), **vars(silent)))
        else:
            self.take()
        return tuple(sorted(self._samples, key=lambda sample: sample.at_s))

    def take(self) -> None:
        """One sample, dated to the middle of its reading."""
        before = self.clock()
        try:
            reading = self.read()
        except Exception as error:  # whatever a driver raises must end neither the thread nor the measured run
            reading = Reading(power_w=None, failure=f"{type(error).__name__}: {error}")
        self._samples.append(Sample(at_s=(before + self.clock()) / 2, **vars(reading)))

    def _loop(self) -> None:
        due = self.clock() + self.period_s
        while not self.ended.wait(max(0.0, due - self.clock())):
            self.take()
            # Ticks that were missed are skipped, not made up for.
            due += self.period_s * max(1, -(-(self.clock() - due) // self.period_s))


class SamplingMeter:
    """A `Meter` on an instrument: counters at both ends, samples in between."""

    def __init__(
        self, instrument: Instrument, min_window_s: float = MIN_WINDOW_S,
        make_sampler: Callable[[Callable[[], Reading], float], Sampler] = Sampler,
    ) -> None:  # fmt: skip
        self.instrument, self.min_window_s = instrument, min_window_s
        self.name, self.scope = instrument.name, instrument.scope
        self.idle_power_w: float | None = None
        self.idle_doubt: str | None = None
        self._make_sampler = make_sampler
        self._sampler: Sampler | None = None
        self._begin: Mark | None = None
        self._finalizer: weakref.finalize | None = None

    def start(self) -> None:
        """Begin a window. RuntimeError if one is open."""
        if self._sampler is not None:
            raise RuntimeError("the meter already runs; stop it first")
        sampler = self._sampler = self._make_sampler(self.instrument.read, self.instrument.sensor.period_s)
        self._finalizer = weakref.finalize(self, sampler.ended.set)  # a dropped meter takes its thread with it
        try:
            sampler.start()
            events = self.instrument.events()
            self._begin = self._mark(sampler, events)
        except BaseException:
            self._end()
            raise

    def stop(self) -> PowerWindow:
        """End the window and judge it. RuntimeError without an open window."""
        sampler, begin = self._sampler, self._begin
        if sampler is None or begin is None:
            raise RuntimeError("the meter does not run; start it first")
        try:
            end = self._mark(sampler, {})
            end = Mark(end.at_s, end.counters, self.instrument.events())
        finally:
            samples = self._end()
        instrument = self.instrument
        notes = instrument.notes if self.idle_doubt is None else (*instrument.notes, self.idle_doubt)
        return judge_window(
            begin, end, samples, instrument.sensor, of=instrument.of, why_no_power=instrument.why_no_power,
            idle_power_w=self.idle_power_w, notes=notes, min_window_s=self.min_window_s,
        )  # fmt: skip

    def close(self) -> None:
        """Drop an open window and give the instrument back."""
        self._end()
        self.instrument.close()

    def _mark(self, sampler: Sampler, events: dict[str, int]) -> Mark:
        # Counters are read once at each end: read in a loop they fall behind.
        before = sampler.clock()
        counters = self.instrument.counters()
        return Mark((before + sampler.clock()) / 2, counters, events)

    def _end(self) -> tuple[Sample, ...]:
        """Close the window, if one is open, and give its samples."""
        sampler, self._sampler, self._begin = self._sampler, None, None
        if sampler is None:
            return ()
        if self._finalizer is not None:
            self._finalizer.detach()
        return sampler.stop()


class Measured:
    """Holds the window of a `measured` block once the block has ended."""

    window: PowerWindow | None = None


@contextmanager
def measured(meter: Meter) -> Iterator[Measured]:
    """A window around a block of code; `window` of what it gives is there after the block, also after an exception."""
    meter.start()
    result = Measured()
    try:
        yield result
    finally:
        result.window = meter.stop()


def measure_idle(meter: Meter, seconds: float = 10.0, pause: Callable[[float], object] = time.sleep) -> PowerWindow:
    """Measure for `seconds` while nothing runs, and keep the mean as the meter's `idle_power_w`.

    The window says why where there is no mean; then the baseline stays None, and later windows note the reason. They
    note, too, that power was not steady: something else may have used the device.
    """
    meter.idle_power_w = meter.idle_doubt = None
    with measured(meter) as result:
        pause(seconds)
    window = result.window
    assert window is not None
    meter.idle_power_w = window.mean_power_w
    doubts = [window.reason] if window.reason else [note for note in window.notes if note.startswith(NOT_STEADY)]
    meter.idle_doubt = f"idle baseline: {doubts[0]}" if doubts else None
    return window


def idle_power_w(meter: Meter, seconds: float = 10.0, pause: Callable[[float], object] = time.sleep) -> float | None:
    """Idle power in watts over `seconds`, None where the meter gives none (`measure_idle` has the reason)."""
    return measure_idle(meter, seconds, pause).mean_power_w
