"""One GPU (or a group that serves one model together): whose step it runs, and what power it draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import simpy


class Gpu:
    """Engines that share a GPU take turns, step by step, first come first served. Its books cover all its time."""

    def __init__(self, env: simpy.Environment, idle_power_w: float) -> None:
        self.env, self.idle_power_w = env, idle_power_w
        self.energy_j = 0.0
        self._holder: Callable[[], None] | None = None  # tells who has the turn that somebody else wants it
        self._wanted: deque[tuple[simpy.Event, Callable[[], None]]] = deque()
        self._edges_s: list[float] = [env.now]
        self._power_w: list[float] = []

    # -- turns -----------------------------------------------------------------------------------------------

    @property
    def free(self) -> bool:
        return self._holder is None

    @property
    def wanted(self) -> bool:
        """Whether another engine waits for its turn."""
        return bool(self._wanted)

    def take(self, hurry: Callable[[], None]) -> None:
        """A free GPU is taken; `hurry` is called when somebody else wants it."""
        self._holder = hurry

    def ask(self, hurry: Callable[[], None]) -> simpy.Event:
        """An event that succeeds when a taken GPU has become the asker's."""
        turn = self.env.event()
        self._wanted.append((turn, hurry))
        self._holder()
        return turn

    def give_back(self) -> None:
        """The turn ends; the next one in line has it."""
        self._holder = None
        if self._wanted:
            turn, self._holder = self._wanted.popleft()
            turn.succeed()

    # -- books -----------------------------------------------------------------------------------------------

    def account(self, seconds: float, joules: float) -> None:
        """Work of so many seconds ends now; before it, since the last account, nothing ran."""
        self.account_idle(self.env.now - seconds)
        self.energy_j += joules
        self._edges_s.append(self.env.now)
        self._power_w.append(joules / seconds if seconds > 0 else 0.0)

    def account_idle(self, until_s: float) -> None:
        """Nothing ran from the last account until then."""
        gap = until_s - self._edges_s[-1]
        if gap > 1e-9 * max(1e-3, until_s):  # less is rounding of sums of steps
            self.energy_j += gap * self.idle_power_w
            self._edges_s.append(until_s)
            self._power_w.append(self.idle_power_w)

    def power_trace(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges in seconds, shape (k + 1,); mean watts between them, shape (k,))."""
        return np.array(self._edges_s), np.array(self._power_w)


def total_power(traces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The sum of several power traces that begin and end together, in the form of each."""
    if len(traces) == 1:
        return traces[0]
    edges = np.unique(np.concatenate([edges for edges, _ in traces]))
    middles = (edges[:-1] + edges[1:]) / 2.0
    power = np.zeros(len(middles))
    for own_edges, watts in traces:
        if len(watts):
            power += watts[np.clip(np.searchsorted(own_edges, middles) - 1, 0, len(watts) - 1)]
    return edges, power
