"""What a plan has to serve: requests by rate, from a trace or from clients, and the share of one replica of it.

Replicas share nothing, and routing takes turns: replica 0 of N gets every N-th request. So one replica with these
requests is an exact part of the whole deployment, and stands for it. Of synthetic traffic every replica is given as
many requests as the others; of a trace, as many replicas are simulated as it takes to have enough requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from simulator.errors import UserError
from simulator.workload.arrivals import Arrivals, Burst, Constant, Gamma, Piecewise, Poisson
from simulator.workload.loads import Lengthlike, Prompts, SharedPrefix, burst
from simulator.workload.traffic import Parts, Traffic, counted

DEFAULT_REQUESTS = 2000  # of one replica: twenty lie beyond a 99th percentile
ENLARGED = 4  # times as many are drawn, for servers that hold many requests at once (`simulator.planning.capacity.lab`)
CLIENT_TURNS = 10  # requests per client, as InferenceX has them
LEAST_OF_TRACE = 1000  # requests of a trace that are simulated, spread over as few replicas as have so many
MOST_DRAWN = 20_000_000


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests and when they come: `process` (open loop), `arrival_s` (a trace) or `clients` (closed loop).

    prompt_tok, output_tok (n,): of a trace its requests; otherwise drawn, `requests` of them for a usual run.
    """

    prompt_tok: np.ndarray
    output_tok: np.ndarray
    requests: int
    process: Arrivals | None = None
    arrival_s: np.ndarray | None = None
    clients: int = 0
    shared_prefix: tuple[Parts, ...] | None = None
    priority: np.ndarray | None = None
    seed: int = 0
    title: str = ""
    assumptions: tuple[str, ...] = ()
    reserve: float = 1.0  # the load that is planned for, as a multiple of this one

    @cached_property
    def rate_per_s(self) -> float:
        """Mean rate of all requests in the long run; NaN with clients, who wait for their answers."""
        if self.clients:
            return math.nan
        if self.arrival_s is not None:
            return len(self.arrival_s) / float(self.arrival_s[-1])
        if isinstance(self.process, Piecewise):
            duration_s, rate = np.array(self.process.pieces).T
            return float(duration_s @ rate / duration_s.sum())
        return self.process.rate_per_s

    @property
    def planned_rate_per_s(self) -> float:
        """The rate that a deployment has to bear, reserve included."""
        return self.rate_per_s * self.reserve

    @property
    def longest_tok(self) -> int:
        """Tokens of the longest request."""
        return int((self.prompt_tok + self.output_tok).max())

    @cached_property
    def new_prompt_tok(self) -> np.ndarray:
        """(n,) the fewest prompt tokens that a server with an endless prefix cache has to compute."""
        if self.shared_prefix is None:
            return self.prompt_tok
        shared = np.array([sum(tokens for _, tokens in parts) for parts in self.shared_prefix])
        return np.maximum(1, self.prompt_tok - shared)

    def simulated_replicas(self, replicas: int) -> int:
        """How many of `replicas` are simulated together: one, but for traces enough to have enough requests."""
        if self.arrival_s is None:
            return 1
        each = len(self.prompt_tok) / replicas
        return min(replicas, math.ceil(min(LEAST_OF_TRACE, len(self.prompt_tok)) / each))

    def of_replicas(self, replicas: int, load: float = 1.0, enlarged: bool = False) -> Traffic:
        """What the first `simulated_replicas` of `replicas` get when everything comes `load` times as fast.

        `load` is a multiple of the planned load.
        """
        load *= self.reserve
        if self.clients:
            clients = max(1, math.ceil(self.clients * load / replicas - 1e-9))
            n = min(len(self.prompt_tok), max(self.requests, CLIENT_TURNS * clients))
            return self._traffic(slice(0, n), None, clients)
        if self.arrival_s is not None:
            part = self.simulated_replicas(replicas)
            chosen = np.flatnonzero(np.arange(len(self.prompt_tok)) % replicas < part)
            return self._traffic(chosen, self.arrival_s[chosen] / load, 0)
        n = self.requests * (ENLARGED if enlarged else 1)
        if n * replicas > MOST_DRAWN:
            raise UserError(f"{replicas:,} replicas with {n:,} requests each are too many to draw; lower --requests")
        times = self.process.times(n * replicas, np.random.default_rng([self.seed, 1]))[::replicas]
        return self._traffic(slice(0, n), times / load, 0)

    def whole(self, load: float = 1.0, enlarged: bool = False) -> Traffic:
        """All of it, for deployments whose replicas depend on each other."""
        if self.clients or self.arrival_s is not None:
            return self.of_replicas(1, load)
        load *= self.reserve
        n = self.requests * (ENLARGED if enlarged else 1)
        times = self.process.times(n, np.random.default_rng([self.seed, 1]))
        return self._traffic(slice(0, n), times / load, 0)

    def _traffic(self, chosen, arrival_s: np.ndarray | None, clients: int) -> Traffic:
        shared, priority = self.shared_prefix, self.priority
        if shared is not None:
            shared = tuple(shared[i] for i in np.arange(len(self.prompt_tok))[chosen])
        return Traffic(
            self.prompt_tok[chosen],
            self.output_tok[chosen],
            arrival_s,
            clients,
            shared,
            None if priority is None else priority[chosen],
        )

    def setup_traffic(self) -> Traffic:
        """All lengths at once: what an engine is set up for."""
        return Traffic(self.prompt_tok, self.output_tok, np.zeros(len(self.prompt_tok)))


def open_workload(
    process: Arrivals, prompt: Prompts, output: Lengthlike, requests: int = DEFAULT_REQUESTS, seed: int = 0
) -> Workload:
    """Requests that arrive by a process, whatever the servers do. UserError for a burst."""
    if isinstance(process, Burst):
        raise UserError("a plan needs requests that arrive over time: found rate inf, expected requests per second")
    if not isinstance(process, (Poisson, Gamma, Constant, Piecewise)):
        raise UserError(f"arrivals of kind {type(process).__name__} cannot be planned for")
    drawn = _drawn(requests * ENLARGED, prompt, output, seed)
    return Workload(
        *drawn[:2], requests, process=process, shared_prefix=drawn[2], seed=seed, title=process.phrase(),
        assumptions=_prefix_notes(prompt),
    )  # fmt: skip


def closed_workload(
    clients: int, prompt: Prompts, output: Lengthlike, requests: int = DEFAULT_REQUESTS, seed: int = 0
) -> Workload:
    """So many clients in all, each of whom sends the next request when the last one has ended."""
    n = max(requests, CLIENT_TURNS * clients * ENLARGED)
    drawn = _drawn(n, prompt, output, seed)
    return Workload(
        *drawn[:2], requests, clients=clients, shared_prefix=drawn[2], seed=seed,
        title=f"{counted(clients, 'client')} in a closed loop", assumptions=_prefix_notes(prompt),
    )  # fmt: skip


def open_lengths(process: Arrivals, texts: Traffic, requests: int = DEFAULT_REQUESTS, seed: int = 0) -> Workload:
    """Requests with the prompts and answers of `texts`, again and again, that arrive by a process."""
    prompt, output, shared = _again(texts, requests * ENLARGED)
    checked = open_workload(process, 1, 1, 1, seed)
    return replace(
        checked, prompt_tok=prompt, output_tok=output, shared_prefix=shared, requests=requests,
        title=f"{texts.title}, {process.phrase()}", assumptions=texts.assumptions,
    )  # fmt: skip


def closed_lengths(clients: int, texts: Traffic, requests: int = DEFAULT_REQUESTS, seed: int = 0) -> Workload:
    """The same from so many clients in a closed loop."""
    prompt, output, shared = _again(texts, max(requests, CLIENT_TURNS * clients * ENLARGED))
    return Workload(
        prompt, output, requests, clients=clients, shared_prefix=shared, seed=seed,
        title=f"{texts.title}, {counted(clients, 'client')}", assumptions=texts.assumptions,
    )  # fmt: skip


def _again(texts: Traffic, n: int):
    """n prompts, answers and shared beginnings, in the order of the trace and from its start again."""
    index = np.arange(n) % len(texts)
    shared = None if texts.shared_prefix is None else tuple(texts.shared_prefix[i] for i in index)
    return texts.prompt_tok[index], texts.output_tok[index], shared


def trace_workload(traffic: Traffic, seed: int = 0) -> Workload:
    """The requests of a trace at the times that it says. UserError when it lasts no time."""
    if traffic.arrival_s is None:
        raise UserError("a plan for a trace needs its times, or a --rate for its lengths")
    if not float(traffic.arrival_s[-1]) > 0.0:
        raise UserError("a plan needs requests that arrive over time, and all of this trace come at once")
    return Workload(
        traffic.prompt_tok, traffic.output_tok, len(traffic), arrival_s=traffic.arrival_s,
        shared_prefix=traffic.shared_prefix, priority=traffic.priority, seed=seed, title=traffic.title,
        assumptions=traffic.assumptions,
    )  # fmt: skip


def _drawn(n: int, prompt: Prompts, output: Lengthlike, seed: int):
    texts = burst(n, prompt, output, np.random.default_rng([seed, 0]))
    return texts.prompt_tok, texts.output_tok, texts.shared_prefix


def _prefix_notes(prompt: Prompts) -> tuple[str, ...]:
    if not isinstance(prompt, SharedPrefix):
        return ()
    return (f"prompts begin with one of {prompt.groups} texts of {prompt.tokens:,} tokens",)
