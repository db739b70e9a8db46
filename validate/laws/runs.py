"""Runs of traffic that several laws look at: one lone request, closed loops, Poisson arrivals at shares of capacity.

Seats are few, so that a server saturates with few requests. All arrivals are one Poisson process of rate 1, stretched:
at every load the same requests come in the same order, and nothing but the load differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.traffic.metrics import steady_rates
from simulator.traffic.served import Served
from simulator.workload.traffic import Traffic
from validate.laws.subjects import OUTPUT_TOK, PROMPT_TOK, Subject

SEATS = 8
REQUESTS = 160
LOADS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
OVERLOAD = 1.3  # of capacity
BELOW_SATURATION = 0.7  # loads up to here are certainly below
CLIENTS = (1, 2, 4, 8, 16, 32)
FEW, MANY = 40, 144  # requests of closed loops with fewer clients than seats, and with more
SEED = 20240229


@dataclass(frozen=True)
class Lone:
    """One request alone on the server [s]."""

    ttft_s: float
    tpot_s: float
    e2e_s: float
    served: Served


class Runs:
    """Runs of one subject, each flown once."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.settings = replace(subject.deployment.settings, max_num_seqs=SEATS)

    @cached_property
    def lone(self) -> Lone:
        """PROMPT_TOK tokens read, OUTPUT_TOK written, nobody else there."""
        traffic = Traffic(np.array([PROMPT_TOK]), np.array([OUTPUT_TOK]), np.zeros(1))
        served = self.subject.run(traffic)
        first, last = served.requests.first_token_s[0], served.requests.finished_s[0]
        return Lone(float(first), float((last - first) / (OUTPUT_TOK - 1)), float(last), served)

    def texts(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(prompt, output) tokens of the first n requests: 128 to 384, and 32 to 96."""
        rng = np.random.default_rng(SEED)
        both = rng.integers((128, 32), (385, 97), size=(n, 2))
        return both[:, 0], both[:, 1]

    def closed(self, clients: int) -> Served:
        """`clients` clients, each of which sends its next request when its last one has ended."""
        if clients not in self._closed:
            traffic = Traffic(*self.texts(FEW if clients < SEATS else MANY), None, clients)
            self._closed[clients] = self.subject.run(traffic, settings=self.settings)
        return self._closed[clients]

    @cached_property
    def _closed(self) -> dict[int, Served]:
        return {}

    @cached_property
    def capacity_per_s(self) -> float:
        """Requests per second that the full server ends: all its clients at once, in the steady window."""
        return steady_rates(self.closed(CLIENTS[-1]))["steady_requests_per_s"]

    @cached_property
    def curve(self) -> dict[float, Served]:
        """By share of capacity: Poisson arrivals."""
        return {load: self._open(load) for load in (*LOADS, OVERLOAD)}

    def _open(self, load: float) -> Served:
        return self.subject.run(self.arrivals(load), settings=self.settings)

    def arrivals(self, load: float) -> Traffic:
        """Poisson arrivals at a share of capacity."""
        gaps = np.random.default_rng([SEED, 1]).exponential(size=REQUESTS)
        return Traffic(*self.texts(REQUESTS), np.cumsum(gaps) / (load * self.capacity_per_s))

    @cached_property
    def sparse(self) -> Served:
        """Lone requests one after the other, each long after the last one has ended."""
        n = 3
        times = 4.0 * self.lone.e2e_s * np.arange(n)
        return self.subject.run(Traffic(np.full(n, PROMPT_TOK), np.full(n, OUTPUT_TOK), times))

    @cached_property
    def tight(self) -> Served:
        """Twelve requests at once with KV blocks for about four: some lose their blocks and are computed again."""
        return self.subject.run(self.burst, settings=self.settings, kv_blocks=self.few_blocks)

    @property
    def burst(self) -> Traffic:
        """Twelve requests at once."""
        return Traffic(*self.texts(12), np.zeros(12))

    @property
    def few_blocks(self) -> int:
        """KV blocks for about four of the requests of `texts`."""
        return -(-4 * 384 // self.settings.block_size)


def percent(share: float) -> str:
    """'70 %'."""
    return f"{100.0 * share:.0f} %"


def mean_s(served: Served, what: str) -> float:
    """Mean over the requests of "ttft" or "e2e" [s]."""
    requests = served.requests
    end = requests.first_token_s if what == "ttft" else requests.finished_s
    return float((end - requests.arrival_s).mean())
