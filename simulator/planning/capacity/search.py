"""Branch and bound over candidate deployments: the cheapest ones that a simulation confirms.

Every variant (a deployment but for its number of replicas) has a bound of the rate that one replica sustains, so a
least number of replicas and a least price. The candidate with the least price is taken next, whatever it belongs to:
hardware that has only been bounded with its loosest engine settings is split into its variants; a variant is
simulated. If it misses, more replicas of it come back at their price; if it holds, nothing cheaper can, because all
that is cheaper has been ruled out. More replicas are taken to serve the same requests no worse: between a number that
misses and one that holds, those in between are found by bisection.

The order depends on prices and bounds alone, and simulations are done in rounds of `ROUND`, so the answer is the same
on any number of processes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.device import load_device
from simulator.instance import Instance
from simulator.planning.capacity.candidates import Engine, Hardware, Space, Variant
from simulator.planning.capacity.lab import OVERLOAD, Bound, Lab, Trial, fits, in_process
from simulator.planning.capacity.processes import in_order

ROUND = 6  # simulations of one round
GROWTH = 1.12  # of the number of replicas, after one that misses
FINALISTS = 5
DEAREST = 3.0  # times the best price: dearer runners-up are not looked for
# Why a candidate was not chosen, in the order of the report.
SPLIT, NODE, MEMORY, LENGTH = "cannot be split so", "more GPUs than a node has", "does not fit", "requests too long"
ALONE, FEW, MISSED, MORE, DEAR, UNTRIED, TOO_MANY = (
    "too slow even alone", "too few replicas by bound", "missed in simulation", "more replicas than needed",
    "dearer than the finalists", "another setting did as well", "more GPUs than allowed",
)  # fmt: skip


@dataclass
class Progress:
    """What is known of one variant; places are indices into `allowed`."""

    variant: Variant
    allowed: tuple[int, ...]
    bound: Bound
    failed: int  # the largest place that is ruled out
    held: int | None = None  # the smallest place that holds
    tries: int = 0
    trials: dict[int, Trial] = field(default_factory=dict)

    @property
    def dead(self) -> bool:
        """Whether every number of replicas is ruled out."""
        return self.failed >= len(self.allowed) - 1

    @property
    def settled(self) -> bool:
        """Whether the smallest number that holds is known."""
        return self.held is not None and self.held == self.failed + 1

    def next_place(self) -> int:
        """Which number of replicas to try: the least that is open, more after misses, or halfway to one that holds."""
        first = self.failed + 1
        if self.held is not None:
            return (first + self.held) // 2
        if not self.tries:
            return first
        wanted = self.allowed[first] * GROWTH ** (self.tries - 1)
        return min(len(self.allowed) - 1, max(first, bisect_left(self.allowed, math.floor(wanted))))

    def learn(self, place: int, trial: Trial) -> None:
        """Take in what a simulation said."""
        self.tries += 1
        self.trials[place] = trial
        if trial.met:
            self.held = place
        else:
            self.failed = max(self.failed, place)


@dataclass(frozen=True)
class Confirmed:
    """A deployment that holds in simulation, and the price [USD/h] at the power it draws."""

    variant: Variant
    replicas: int
    usd_per_h: float
    bound: Bound
    trial: Trial


@dataclass
class Found:
    """The outcome of a search. reasons: candidates by reason; by_gpu: the same by GPU. misses: best tries."""

    confirmed: list[Confirmed] = field(default_factory=list)  # by price, then as found
    ties: list[Confirmed] = field(default_factory=list)  # as cheap as the best, the best included
    reasons: dict[str, Counter] = field(default_factory=dict)  # GPU -> reason -> candidates
    by_limit: Counter = field(default_factory=Counter)  # limit -> candidates that its bound rules out
    sentences: dict[Hardware, str] = field(default_factory=dict)  # why hardware cannot serve the model
    bounds: dict[Variant, Bound] = field(default_factory=dict)  # of those that no number of replicas can help
    misses: list[Trial] = field(default_factory=list)
    simulations: int = 0

    def count(self, gpu: str, reason: str, candidates: int) -> None:
        """Book so many candidates."""
        if candidates:
            self.reasons.setdefault(gpu, Counter())[reason] += candidates

    def total(self) -> Counter:
        """Candidates by reason, over all GPUs."""
        return sum(self.reasons.values(), Counter())


def search(
    lab: Lab,
    jobs: int = 1,
    finalists: int = FINALISTS,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Found:
    """The cheapest confirmed deployments of `lab.space`, at most one per hardware but for `ties`. See the module."""
    return _Search(lab, jobs, finalists, on_progress).run()


class _Search:
    def __init__(self, lab: Lab, jobs: int, finalists: int, on_progress: Callable | None) -> None:
        self._lab, self._jobs, self._finalists, self._on_progress = lab, jobs, finalists, on_progress
        self._found = Found()
        self._queue: list[tuple[float, float, int, Any]] = []  # (least price, -rate by bound, order, what)
        self._order = 0
        self._open: dict[Variant, Progress] = {}
        self._best: dict[Hardware, Confirmed] = {}

    def run(self) -> Found:
        """Search to the end."""
        space = self._lab.space
        space.prices  # noqa: B018  (a GPU without a price is told before anything is built)
        self._build_all(space.hardware)
        while True:
            batch = self._next_round()
            if not batch:
                break
            trials = run_all(self._lab, self._jobs, trial_of, [(p.variant, p.allowed[place]) for p, place in batch])
            for (progress, place), trial in zip(batch, trials):
                self._found.simulations += 1
                progress.learn(place, trial)
                if not trial.met:
                    self._found.misses.append(trial)
                self._queue_again(progress)
            self._tell()
        self._close()
        return self._found

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._found.simulations, None)

    # -- bounding ----------------------------------------------------------------------------------------------

    def _build_all(self, hardware: Sequence[Hardware]) -> None:
        """Bound all hardware with its loosest settings; what cannot serve at all is booked."""
        possible = [each for each in hardware if self._possible(each)]
        for each, outcome in zip(possible, run_all(self._lab, self._jobs, loosest_of, [(h,) for h in possible])):
            if isinstance(outcome, str):
                self._found.sentences[each] = outcome
                self._found.count(each.gpu, _why_not(outcome), self._number(each))
                continue
            bound, idle_w = outcome
            price = self._hardware_price(each, bound, idle_w)
            if price is None:
                self._rule_out(each, bound)
                continue
            self._push(price, bound.rate_per_s / each.devices, (each, bound))

    def _possible(self, hardware: Hardware) -> bool:
        node = load_device(hardware.gpu, hardware.power_mode).interconnect.gpus_per_node
        if hardware.devices > node:
            self._found.sentences[hardware] = f"{hardware.gpu}: {node} of them are in a node"
            self._found.count(hardware.gpu, NODE, self._number(hardware))
            return False
        return True

    def _number(self, hardware: Hardware) -> int:
        return len(self._lab.space.engines) * len(self._lab.space.replicas)

    def _hardware_price(self, hardware: Hardware, bound: Bound, idle_w: float) -> float | None:
        """The least price of any of its variants; None when none can do."""
        space = self._lab.space
        prices = []
        for engine in {Engine(prefill_replicas=engine.prefill_replicas) for engine in space.engines}:
            place, allowed = self._least_place(Variant(hardware, engine), bound)
            if place is not None:
                n = allowed[place]
                prices.append(space.usd_per_h(Variant(hardware, engine), n, idle_w * (n + engine.prefill_replicas)))
        return min(prices, default=None)

    def _least_place(self, variant: Variant, bound: Bound) -> tuple[int | None, tuple[int, ...]]:
        """(place of the least number of replicas that the bound allows, allowed numbers)."""
        allowed, limits = self._lab.space.allowed(variant), self._lab.limits
        if any(bound.alone[limit.name] > limit.value for limit in limits):
            return None, allowed
        rate, prefill = self._lab.workload.planned_rate_per_s, variant.engine.prefill_replicas
        if prefill and rate > prefill * bound.prefill_rate_per_s:
            return None, allowed
        if not bound.rate_per_s > 0.0:
            return None, allowed
        least = 1 if math.isnan(rate) else math.ceil(rate / bound.rate_per_s - 1e-9)
        place = bisect_left(allowed, least)
        return (place if place < len(allowed) else None), allowed

    def _rule_out(self, hardware: Hardware, bound: Bound) -> None:
        """Book all candidates of hardware whose bound says that nothing helps."""
        self._found.bounds[Variant(hardware, Engine())] = bound
        for engine in self._lab.space.engines:
            self._book_bound(Variant(hardware, engine), bound)

    def _book_bound(self, variant: Variant, bound: Bound) -> None:
        space, gpu = self._lab.space, variant.hardware.gpu
        allowed = space.allowed(variant)
        self._found.count(gpu, TOO_MANY, len(space.replicas) - len(allowed))
        slow = [limit.name for limit in self._lab.limits if bound.alone[limit.name] > limit.value]
        if not slow and not bound.rate_per_s > 0.0:
            slow = [bound.tightest]
        self._found.by_limit[slow[0] if slow else OVERLOAD] += len(allowed)
        self._found.count(gpu, ALONE if slow else FEW, len(allowed))

    # -- the queue ---------------------------------------------------------------------------------------------

    def _push(self, price: float, rate: float, what: Any) -> None:
        heapq.heappush(self._queue, (price, -rate, self._order, what))
        self._order += 1

    def _ceiling(self) -> float:
        """The price above which nothing is looked for: that of the last finalist, or far beyond the best."""
        prices = sorted(each.usd_per_h for each in self._best.values())
        if not prices:
            return math.inf
        last = prices[self._finalists - 1] if len(prices) >= self._finalists else math.inf
        return max(prices[0], min(last, DEAREST * prices[0]))

    def _next_round(self) -> list[tuple[Progress, int]]:
        """The next simulations, in order of price; hardware in between is split into its variants."""
        batch: list[tuple[Progress, int]] = []
        while self._queue and len(batch) < ROUND and self._queue[0][0] <= self._ceiling() * (1.0 + 1e-12):
            price, _, _, what = heapq.heappop(self._queue)
            if not isinstance(what, Progress):
                self._split(*what)
                continue
            own = self._best.get(what.variant.hardware)
            if what.settled:
                self._confirm(what)
                continue
            if own is not None and price >= own.usd_per_h * (1.0 - 1e-12) and not self._could_tie(own, price):
                continue
            batch.append((what, what.next_place()))
        return batch

    def _could_tie(self, own: Confirmed, price: float) -> bool:
        """Whether another setting of confirmed hardware is worth a look: as cheap as the best of all."""
        best = min(each.usd_per_h for each in self._best.values())
        return price <= best * (1.0 + 1e-12) and own.usd_per_h <= best * (1.0 + 1e-12)

    def _split(self, hardware: Hardware, loosest: Bound) -> None:
        """Bound every variant of hardware with its own settings and queue it."""
        engines = self._lab.space.engines
        outcomes = run_all(self._lab, 1, bounded_of, [(hardware, engine) for engine in engines])
        for engine, outcome in zip(engines, outcomes):
            variant = Variant(hardware, engine)
            if isinstance(outcome, str):
                self._found.sentences[hardware] = outcome
                self._found.count(hardware.gpu, _why_not(outcome), len(self._lab.space.replicas))
                continue
            bound, idle_w = outcome
            place, allowed = self._least_place(variant, bound)
            if place is None:
                self._found.bounds[variant] = bound
                self._book_bound(variant, bound)
                continue
            progress = Progress(variant, allowed, bound, place - 1)
            self._open[variant] = progress
            self._queue_again(progress, idle_w)

    def _queue_again(self, progress: Progress, idle_w: float = 0.0) -> None:
        """Put a variant back at the least price that it can still have."""
        if progress.dead:
            return
        n = progress.allowed[progress.failed + 1]
        power_w = idle_w * progress.variant.replicas(n)
        if progress.settled:
            power_w = progress.trials[progress.held].figures["mean_power_w"]
        price = self._lab.space.usd_per_h(progress.variant, n, power_w)
        self._push(price, progress.bound.rate_per_s / progress.variant.hardware.devices, progress)

    def _confirm(self, progress: Progress) -> None:
        variant, trial = progress.variant, progress.trials[progress.held]
        n = progress.allowed[progress.held]
        price = self._lab.space.usd_per_h(variant, n, trial.figures["mean_power_w"])
        confirmed = Confirmed(variant, n, price, progress.bound, trial)
        own = self._best.get(variant.hardware)
        best = min((each.usd_per_h for each in self._best.values()), default=math.inf)
        if price <= best * (1.0 + 1e-12):
            self._found.ties.append(confirmed)
        # A round also holds dearer candidates, which may be confirmed before a cheaper one of the same hardware.
        if own is None or price < own.usd_per_h * (1.0 - 1e-12):
            self._best[variant.hardware] = confirmed

    # -- the end -----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Book what is left, and put the confirmed in order."""
        found, space = self._found, self._lab.space
        for _, _, _, what in self._queue:
            if not isinstance(what, Progress):
                for engine in space.engines:
                    variant = Variant(what[0], engine)
                    found.count(what[0].gpu, TOO_MANY, len(space.replicas) - len(space.allowed(variant)))
                    found.count(what[0].gpu, DEAR, len(space.allowed(variant)))
        for progress in self._open.values():
            self._book(progress)
        ordered = sorted(self._best.values(), key=lambda each: each.usd_per_h)
        cheapest = ordered[0].usd_per_h if ordered else math.inf
        found.confirmed = [each for each in ordered if each.usd_per_h <= DEAREST * cheapest][: self._finalists]
        found.ties = [tie for tie in found.ties if tie.usd_per_h <= cheapest * (1.0 + 1e-12)]

    def _book(self, progress: Progress) -> None:
        """Why each number of replicas of a variant was not chosen."""
        space, found, gpu = self._lab.space, self._found, progress.variant.hardware.gpu
        simulated = sum(not trial.met for trial in progress.trials.values())
        first = len(progress.allowed) if progress.held is None else progress.held
        by_bound = self._least_place(progress.variant, progress.bound)[0] or 0
        found.count(gpu, TOO_MANY, len(space.replicas) - len(progress.allowed))
        found.count(gpu, FEW, by_bound)
        below = progress.failed + 1 - by_bound
        found.count(gpu, MISSED, max(below, simulated))
        if progress.settled:
            found.count(gpu, MORE, len(progress.allowed) - first - 1)
            found.count(gpu, "confirmed", 1)
        else:
            rest = len(progress.allowed) - by_bound - max(below, simulated)
            held = progress.variant.hardware in self._best
            found.count(gpu, UNTRIED if held else DEAR, rest)


def _why_not(sentence: str) -> str:
    """The reason behind a sentence of `build_instance`."""
    if "does not fit" in sentence or "KV cache holds" in sentence:
        return MEMORY
    return LENGTH if sentence.startswith("requests") else SPLIT


# -- what is done in processes ---------------------------------------------------------------------------------


def run_all(lab: Lab, jobs: int, work: Callable, arguments: Sequence[tuple]) -> list:
    """`work(lab, *each)` for all arguments, in their order, on so many processes."""
    if jobs == 1:
        return [work(lab, *each) for each in arguments]
    return in_order(_in_process, [(lab, work, each) for each in arguments], jobs)


def _in_process(lab: Lab, work: Callable, arguments: tuple) -> Any:
    return work(in_process(lab), *arguments)


def bounded_of(lab: Lab, hardware: Hardware, engine: Engine) -> tuple[Bound, float] | str:
    """(bound, idle power of a replica [W]) of a variant, or why there is none."""
    found = fits(lab, hardware, engine)
    if isinstance(found, str):
        return found
    room = min(found.settings.max_model_len or found.memory.kv_capacity_tok, found.memory.kv_capacity_tok)
    if lab.workload.longest_tok > room:
        return f"requests of up to {lab.workload.longest_tok:,} tokens are longer than the {room:,} that fit"
    return lab.bound(found, engine.prefill_replicas), found.step_model.idle_power_w


def loosest_of(lab: Lab, hardware: Hardware) -> tuple[Bound, float] | str:
    """The same with the best of every setting: the most sequences and tokens, the most KV cache, the most graphs."""
    engines = lab.space.engines
    sizes = [(engine.max_num_seqs or 0, engine.max_num_batched_tokens or 0, engine) for engine in engines]
    extremes = dict.fromkeys(engine._replace(prefill_replicas=0) for _, _, engine in (min(sizes), max(sizes)))
    extremes |= dict.fromkeys(Engine(*each) for each in _unset(lab.space))
    outcomes = {engine: fits(lab, hardware, engine) for engine in extremes}
    built = {engine: each for engine, each in outcomes.items() if isinstance(each, Instance)}
    if not built:
        return next(iter(outcomes.values()))
    room = max(_room(each) for each in built.values())
    if lab.workload.longest_tok > room:
        return f"requests of up to {lab.workload.longest_tok:,} tokens are longer than the {room:,} that fit"
    sequences = max(each.settings.max_num_seqs for each in built.values())
    tokens = max(each.settings.max_num_batched_tokens for each in built.values())
    roomiest = max(built.values(), key=lambda each: each.memory.kv_blocks)
    graphs = max(built.values(), key=lambda each: (each.step_model.graphs.sizes or (math.inf,))[-1])
    settings = replace(roomiest.settings, max_num_seqs=sequences, max_num_batched_tokens=max(tokens, sequences))
    loosest = replace(graphs, settings=settings, memory=roomiest.memory)
    several = max(engine.prefill_replicas for engine in engines)
    together = [lab.bound(loosest)] if any(not engine.prefill_replicas for engine in engines) else []
    apart = [lab.bound(loosest, 1)] if several else []
    best = max((*together, *apart), key=lambda bound: bound.rate_per_s)
    return replace(best, prefill_rate_per_s=apart[0].prefill_rate_per_s if apart else math.inf), (
        loosest.step_model.idle_power_w
    )


def _unset(space: Space) -> set[tuple[int | None, int | None]]:
    """Settings of which one is left to the engine: how large that is, only an instance can tell."""
    axes = (space.max_num_seqs, space.max_num_batched_tokens)
    return {pair for pair in itertools.product(*axes) if None in pair}


def _room(instance: Instance) -> int:
    """Tokens of the longest request that an instance can serve."""
    capacity = instance.memory.kv_capacity_tok
    return min(instance.settings.max_model_len or capacity, capacity)


def trial_of(lab: Lab, variant: Variant, replicas: int) -> Trial:
    return lab.trial(variant, replicas)
