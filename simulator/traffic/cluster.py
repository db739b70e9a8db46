"""Traffic through one or several replicas: arrivals, clients that wait for answers, routing, hand-over of KV caches.

This is the event loop. Its events are arrivals at an engine and ends of stretches; at equal times, ends come first and
plans last, so that a plan sees everything that happened at its time.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.collector import collector_paused
from simulator.engine.batcher import Batcher, Request
from simulator.engine.batching import Batching
from simulator.engine.front_end import FrontEnd, tokenised_s
from simulator.engine.replica import ROW, Replica
from simulator.engine.routing import ROUTINGS
from simulator.engine.settings import EngineSettings
from simulator.step_table import StepTable
from simulator.traffic.served import RequestRecords, Served, StepRecords
from simulator.workload.traffic import Traffic

SERVE, PREFILL, DECODE = "serve", "prefill", "decode"  # what a replica does
TOKENISE, ARRIVE, FOLLOW = "tokenise", "arrive", "follow"  # what happens at a time that is known
_REPORTS = 200  # calls of `progress` in a run


@dataclass(frozen=True)
class Deployment:
    """What serves: `replicas` equal engines, or `prefill_replicas` that prefill for `replicas` that decode.

    `request_s` and `prompt_tok_s` lie between client and engine, per request and per prompt token: see
    `simulator.engine.front_end`; every replica that takes new requests has one front end. Disaggregated, the
    KV cache of a prompt takes transfer_start_s + prompt_tok * transfer_tok_s to the decoding replica; a prefilling
    replica sends one at a time.
    """

    costs: StepTable
    settings: EngineSettings
    kv_blocks: int
    replicas: int = 1
    routing: str = "round_robin"
    async_scheduling: bool = False
    request_s: float = 0.0
    prompt_tok_s: float = 0.0
    micro_batches: int = 1  # pipeline stages, each of which takes max_num_batched_tokens at a time
    prefill_replicas: int = 0
    transfer_start_s: float = 0.0
    transfer_tok_s: float = 0.0
    batcher: Callable[[Deployment], Batching] | None = None  # None: `Batcher`, which jumps from event to event

    def roles(self) -> tuple[str, ...]:
        """Of every replica, prefilling ones first."""
        if not self.prefill_replicas:
            return (SERVE,) * self.replicas
        return (PREFILL,) * self.prefill_replicas + (DECODE,) * self.replicas


def serve(traffic: Traffic, deployment: Deployment, progress: Callable[[int, int], None] | None = None) -> Served:
    """Run traffic to its end. Requests longer than max_model_len or than the KV cache are refused, as vLLM does."""
    with collector_paused():
        return _Run(traffic, deployment, progress).run()


class _Run:
    """The state of the event loop."""

    def __init__(self, traffic: Traffic, deployment: Deployment, progress: Callable[[int, int], None] | None) -> None:
        self._traffic, self._deployment, self._progress = traffic, deployment, progress
        self._roles = deployment.roles()
        self._replicas = [Replica(i, self._batcher(), deployment.costs, deployment.async_scheduling)
                          for i in range(len(self._roles))]  # fmt: skip
        route = ROUTINGS[deployment.routing]
        first = [r for r, role in zip(self._replicas, self._roles) if role != DECODE]
        self._route_new = route(first) if len(first) > 1 else lambda _, __: first[0]
        second = [r for r, role in zip(self._replicas, self._roles) if role == DECODE]
        self._route_decode = route(second) if second else None
        self._free_link_s = [0.0] * len(self._replicas)
        n = self._n = len(traffic)
        self._prompt = array("q", np.ascontiguousarray(traffic.prompt_tok, dtype=np.int64).tobytes())
        self._output = array("q", np.ascontiguousarray(traffic.output_tok, dtype=np.int64).tobytes())
        self._refused = self._too_long()
        self._shared = self._shared_blocks()
        nothing = array("d", [math.nan]) * n
        self._arrival, self._engine, self._scheduled, self._first, self._finished = (nothing[:] for _ in range(5))
        zeros = array("q", [0]) * n
        self._cached, self._recomputed, self._preemptions = zeros[:], zeros[:], zeros[:]
        self._replica_of = array("q", [-1]) * n
        self._pending: list[tuple[float, int, str, Any]] = []  # (time, order, what happens, to whom)
        self._front_ends = [FrontEnd(deployment.prompt_tok_s) for _ in first]
        self._order = self._next_client = 0  # of pending; the next request that a client sends
        self._ended, self._clients, self._report_every = 0, traffic.clients, max(1, n // _REPORTS)

    def _batcher(self) -> Batching:
        deployment = self._deployment
        if deployment.batcher is not None:
            return deployment.batcher(deployment)
        return Batcher(
            deployment.settings, deployment.kv_blocks, deployment.costs.rules, deployment.async_scheduling,
            deployment.micro_batches,
        )  # fmt: skip

    def _too_long(self) -> np.ndarray:
        settings, blocks = self._deployment.settings, self._deployment.kv_blocks
        room = blocks * settings.block_size
        total = self._traffic.prompt_tok + self._traffic.output_tok
        room = room if settings.max_model_len is None else min(room, settings.max_model_len)
        return total > (room if settings.enable_chunked_prefill else min(room, settings.max_num_batched_tokens))

    def _shared_blocks(self) -> list[int] | None:
        """Whole blocks of each prompt that may be those of others."""
        prefixes, settings = self._traffic.shared_prefix, self._deployment.settings
        if prefixes is None or not settings.enable_prefix_caching:
            return None
        size = settings.block_size
        return [sum(tokens for _, tokens in parts) // size for parts in prefixes]

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> Served:
        """All events, in order of time."""
        if self._traffic.arrival_s is None:
            self._closed_loop()
            return self._served(self._events(array("d"), array("q")))
        times, order = self._open_loop()
        if len(self._replicas) == 1:
            return self._served(self._events_of_one(times, order))
        return self._served(self._events(times, order))

    def _events(self, times: array, order: array) -> float:
        """Requests `order` arrive at `times`, others when something ends; returns when the last event happened."""
        replicas, pending = self._replicas, self._pending
        coming, n_open = 0, len(order)
        ends = [math.inf] * len(replicas)
        to_plan: dict[int, None] = {}
        now = 0.0
        while True:
            end = min(ends)
            arrival = times[coming] if coming < n_open else math.inf
            if pending and pending[0][0] < arrival:
                arrival = pending[0][0]
            event = end if end <= arrival else arrival
            if to_plan and event > now:
                for i in to_plan:
                    self._begin(replicas[i], now)
                    ends[i] = replicas[i].end_s
                to_plan.clear()
                continue
            if event == math.inf:
                return now
            now = event
            if end <= arrival:
                i = ends.index(end)
                self._complete(replicas[i], now)
                ends[i] = math.inf
                to_plan[i] = None
                continue
            if coming < n_open and times[coming] <= arrival:
                request = self._request(order[coming])
                coming += 1
                replica = self._route_new(request, now)
            else:
                _, _, what, whom = heapq.heappop(pending)
                if what == TOKENISE:
                    self._tokenise(whom, now)
                    continue
                request = whom
                replica = self._route_decode(request, now) if what == FOLLOW else self._route_new(request, now)
            replica.arrive(request, now)
            ends[replica.number] = replica.end_s
            if replica.end_s == math.inf:
                to_plan[replica.number] = None

    def _events_of_one(self, times: array, order: array) -> float:
        """The same where nothing but time brings requests, to one replica: each stretch knows who comes next."""
        replica, coming, n = self._replicas[0], 0, len(order)
        now, arrivals, scheduled = 0.0, replica.coming, self._scheduled
        while True:
            next_s = times[coming] if coming < n else math.inf
            for request in replica.begin(now, next_s):
                if math.isnan(scheduled[request.number]):
                    scheduled[request.number] = now
            end = replica.end_s
            if end == math.inf:
                if next_s == math.inf:
                    return now
                end = next_s  # idle until somebody comes
            while next_s <= end:
                arrivals.append((next_s, self._request(order[coming])))
                coming += 1
                next_s = times[coming] if coming < n else math.inf
            if replica.end_s != math.inf:
                self._complete(replica, end)
            now = end

    def _begin(self, replica: Replica, now: float) -> None:
        for request in replica.begin(now):
            if math.isnan(self._scheduled[request.number]):
                self._scheduled[request.number] = now

    def _open_loop(self) -> tuple[array, array]:
        """(times, request numbers) in the order in which requests reach an engine."""
        sent, deployment = np.asarray(self._traffic.arrival_s, dtype=float), self._deployment
        accepted = np.flatnonzero(~self._refused)
        engine = sent + deployment.request_s
        for which in range(len(self._front_ends)):  # taking turns
            own = accepted[which :: len(self._front_ends)]
            ready = tokenised_s(sent[own], self._traffic.prompt_tok[own], deployment.prompt_tok_s)
            engine[own] = ready + deployment.request_s
        self._arrival, self._engine = array("d", sent.tobytes()), array("d", engine.tobytes())
        order = accepted[np.argsort(engine[accepted], kind="stable")]
        self._ended = self._n - len(accepted)
        return array("d", engine[order].tobytes()), array("q", order.astype(np.int64).tobytes())

    def _closed_loop(self) -> None:
        """Nobody comes by himself: every client sends its first request now."""
        for _ in range(min(self._traffic.clients, self._n)):
            self._send_next(0.0)

    def _send_next(self, now: float) -> None:
        """A client whose last request has ended sends the next one; refused ones end at once."""
        while self._next_client < self._n:
            number = self._next_client
            self._next_client += 1
            self._arrival[number] = self._engine[number] = now
            if not self._refused[number]:
                which = number % len(self._front_ends)
                begins = self._front_ends[which].come(number, self._prompt[number], now)
                if begins is not None:
                    self._push(begins, TOKENISE, which)
                return
            self._end_one()

    def _tokenise(self, which: int, now: float) -> None:
        """A front end takes the prompts that wait for it."""
        numbers, ready_s, next_s = self._front_ends[which].tokenise(now)
        for number in numbers:
            self._engine[number] = ready_s + self._deployment.request_s
            self._push(self._engine[number], ARRIVE, self._request(number))
        if next_s is not None:
            self._push(next_s, TOKENISE, which)

    def _push(self, at_s: float, what: str, whom: Any) -> None:
        heapq.heappush(self._pending, (at_s, self._order, what, whom))
        self._order += 1

    def _request(self, number: int) -> Request:
        output = 1 if self._deployment.prefill_replicas else self._output[number]
        request = Request(number, self._prompt[number], output)
        if self._shared is not None and self._shared[number]:
            request.shared, request.parts = self._shared[number], self._traffic.shared_prefix[number]
        if self._traffic.priority is not None:
            request.priority = int(self._traffic.priority[number])
        return request

    def _complete(self, replica: Replica, now: float) -> None:
        batcher = replica.complete()
        role = self._roles[replica.number]
        if batcher.first and role != PREFILL:
            for request in batcher.first:
                self._first[request.number] = now
        for request in batcher.done:
            number = request.number
            if role != DECODE:
                self._cached[number] = request.cached_tok
            if request.preemptions:
                self._recomputed[number] += request.recomputed_tok
                self._preemptions[number] += request.preemptions
            if role == PREFILL:
                self._hand_over(request, replica, now)
            else:
                self._finished[number] = now
                self._replica_of[number] = replica.number
                self._end_one()
                if self._clients:
                    self._send_next(now)

    def _hand_over(self, request: Request, replica: Replica, now: float) -> None:
        """The KV cache of a prompt goes to a decoding replica, which computes the last token again, as in vLLM."""
        deployment, number = self._deployment, request.number
        begins = max(now, self._free_link_s[replica.number])
        ends = begins + deployment.transfer_start_s + deployment.transfer_tok_s * request.prompt_tok
        self._free_link_s[replica.number] = ends
        follower = Request(number, request.prompt_tok, self._output[number])
        follower.priority, follower.loaded_tok = request.priority, request.prompt_tok - 1
        self._push(ends, FOLLOW, follower)

    def _end_one(self) -> None:
        self._ended += 1
        if self._progress is not None and self._ended % self._report_every == 0:
            self._progress(self._ended, self._n)

    # -- the result ------------------------------------------------------------------------------------------

    def _served(self, end_s: float) -> Served:
        deployment = self._deployment
        float_columns = (self._arrival, self._engine, self._scheduled, self._first, self._finished)
        int_columns = (self._prompt, self._output, self._cached, self._recomputed, self._preemptions, self._replica_of)
        times = [np.frombuffer(column, dtype=float) for column in float_columns]
        counts = [np.frombuffer(column, dtype=np.int64) for column in int_columns]
        rows = np.concatenate([np.frombuffer(replica.rows, dtype=ROW) for replica in self._replicas])
        columns = {name: np.ascontiguousarray(rows[name]) for name in ROW.names}
        columns["gaps"] *= columns["steps"]
        lengths = [len(replica.rows) // ROW.itemsize for replica in self._replicas]
        return Served(
            requests=RequestRecords(*times, *counts, refused=self._refused),
            steps=StepRecords(replica=np.repeat(np.arange(len(lengths)), lengths), **columns),
            torn_gap_s=np.concatenate([np.frombuffer(r.torn_gap_s, dtype=float) for r in self._replicas]),
            end_s=end_s,
            replicas=len(self._replicas),
            kv_blocks=deployment.kv_blocks,
            block_size=deployment.settings.block_size,
            idle_power_w=deployment.costs.idle_power_w,
            roles=self._roles,
        )
