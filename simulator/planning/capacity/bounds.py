"""What a deployment cannot do better than: bounds from step costs alone, for pruning before anything is simulated.

Two kinds, both optimistic:

**Alone.** A request that has the server to itself waits for nobody: its prompt is computed in whole chunks, then every
token takes a step of a batch of one. No request is faster in company, so a quantile over all requests of what each
takes alone is a lower bound of that quantile under load.

**Capacity.** A step that decodes b sequences and computes c prompt tokens takes t(b, c). Whatever a scheduler does, in
the long run it uses some mixture of such steps, so the least time in which the work of a request can be done is a
linear program over the numbers x of steps of each kind (a fluid relaxation):

    least  sum x t    with  sum x b >= D,  sum x c >= P

D and P: output tokens after the first and uncached prompt tokens per request. Contexts and (query, key) pairs come in
proportion. b is limited by max_num_seqs and by the KV cache, c by max_num_batched_tokens. A limit on latency adds one
row. TPOT of a share q of the requests at most X: their sequence-seconds are at most X times their tokens,
sum x b (t - X) <= 0, where of the demand only the smallest q n requests count, because the others may be dropped. End
to end at most Y (Little's law): sum x b t <= sum over them of (Y - TTFT alone). ITL: steps longer than X may give no
more than 1 - q of the tokens.

The rate that this time allows is an upper bound of what one replica sustains, as far as step costs are additive in
keys and pairs and monotonic in b and c; `MARGIN` covers stairs (tiles, recorded graphs) and the grid of b and c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from simulator.batch import PrefillChunk
from simulator.instance import Instance
from simulator.planning.capacity.limits import Limit
from simulator.planning.capacity.workload import Workload
from simulator.steps import Steps

MARGIN = 0.05  # by which the capacity is raised and times alone are lowered
SEQUENCES_RATIO, TOKENS_RATIO = 1.25, 1.5  # of successive points of the grid
# Quantiles of the prompt lengths at which a request alone is priced; one in between takes no less than the one before.
ALONE_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


def _geometric(first: int, last: int, ratio: float) -> list[int]:
    """Whole numbers from `first` to `last`; from 16 on multiples of 8, which tiles and recorded graphs favour."""
    points, value = [], float(first)
    while value < last:
        whole = round(value) if value < 16 else round(value / 8) * 8
        points.append(whole)
        value = max(value * ratio, value + 1)
    return sorted({point for point in points if point < last} | ({last} if last >= first else set()))


@dataclass(frozen=True)
class Demand:
    """Per request that arrives: tokens to decode and to prefill, and what comes with each of them."""

    decode_tok: float
    prefill_tok: float
    decode_keys: np.ndarray  # (K,) keys per decoded token by rule
    pairs: np.ndarray  # (K,) per prompt token
    prompt_tok: float  # mean prompt
    context_tok: float  # mean tokens in the cache of a decoding sequence


class DemandModel:
    """`Demand` of a workload for the key rules of a model, whole or of the least demanding share of its requests."""

    def __init__(self, workload: Workload, rules: Sequence) -> None:
        prompt, output, new = workload.prompt_tok, workload.output_tok, workload.new_prompt_tok
        self.decode = (output - 1).astype(float)
        self.prefill = new.astype(float)
        self.context = self.decode * (prompt + output / 2.0)
        self.keys = [self._decode_keys(rule, prompt, output) for rule in rules]
        self.pairs = [self._pairs(rule, new, prompt) for rule in rules]
        self.shared = workload.shared_prefix is not None

    @staticmethod
    def _decode_keys(rule, prompt: np.ndarray, output: np.ndarray) -> np.ndarray:
        """Keys read by all decode steps of each request: exact for whole contexts, otherwise by three moments of it."""
        if rule.window_tok is None:
            return (output - 1) * (prompt + output / 2.0)
        moments = [np.array([rule.keys_at(int(c)) for c in prompt + share * output]) for share in (0.0, 0.5, 1.0)]
        return (output - 1) * np.mean(moments, axis=0)

    @staticmethod
    def _pairs(rule, new: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        lengths, back = np.unique(np.stack([new, prompt - new]), axis=1, return_inverse=True)
        pairs = np.array([rule.keys_read(PrefillChunk(int(n), int(cached)))[0] for n, cached in lengths.T])
        return pairs[np.ravel(back)]

    def of(self, share: float = 1.0) -> Demand:
        """Of the smallest `share` of the requests in everything, per request of all."""
        n = len(self.decode)
        good = math.ceil(share * n - 1e-9)

        def total(values: np.ndarray) -> float:
            return float(values.sum() if good == n else np.partition(values, good - 1)[:good].sum()) / n

        decode, prefill = total(self.decode), total(self.prefill)
        return Demand(
            decode,
            prefill,
            np.array([total(keys) for keys in self.keys]) / max(decode, 1e-12),
            np.array([total(pairs) for pairs in self.pairs]) / max(prefill, 1e-12),
            float(self.prefill.mean()),
            total(self.context) / max(decode, 1e-12),
        )


@dataclass(frozen=True)
class Kinds:
    """Kinds of steps: b decoding sequences, c prompt tokens, t seconds; arrays of shape (S,)."""

    b: np.ndarray
    c: np.ndarray
    t: np.ndarray


def step_kinds(instance: Instance, demand: Demand, most_sequences: int, most_tok: int, shared: bool) -> Kinds:
    """All kinds of steps that a replica may take, priced; contexts are those of the mean decoded token."""
    seats = most_sequences
    if not shared and demand.context_tok > 0.0 and instance.memory.kv_byte_per_tok > 0.0:
        seats = min(seats, max(1, math.ceil(instance.memory.kv_capacity_tok / demand.context_tok)))
    budget = most_tok * instance.parallel.pp
    sequences = [0, *_geometric(1, min(seats, budget), SEQUENCES_RATIO)] if demand.decode_tok > 0.0 else [0]
    tokens = [0, *_geometric(min(16, budget), budget, TOKENS_RATIO)] if demand.prefill_tok > 0.0 else [0]
    points = {(b, c) for b in sequences for c in tokens if b + c <= budget}
    points |= {(b, budget - b) for b in sequences if demand.prefill_tok > 0.0}
    points.discard((0, 0))
    b, c = np.array(sorted(points), dtype=float).T
    prompts = np.where(c > 0.0, np.maximum(1.0, c / demand.prompt_tok), 0.0)
    rules = len(demand.decode_keys)
    keys, pairs = b[:, None] * demand.decode_keys, c[:, None] * demand.pairs
    read = np.repeat(c[:, None], rules, axis=1)
    t = instance.step_model.price(Steps(b, keys, prompts, c, 0.0 * c, pairs, read, b)).seconds
    return Kinds(b, c, t)


def least_time_s(kinds: Kinds, demand: Demand, limit: Limit | None = None, alone_s: float = 0.0) -> float:
    """Seconds of a replica per request of all, see above; infinite where the limit cannot be met.

    alone_s: mean TTFT alone, for limits from end to end.
    """
    b, c, t = kinds.b, kinds.c, kinds.t
    rows, ends = [-b, -c], [-demand.decode_tok, -demand.prefill_tok]
    if limit is not None:
        row, end = _limit_row(kinds, demand, limit, alone_s)
        rows.append(row)
        ends.append(end)
    wanted = [i for i, (row, end) in enumerate(zip(rows, ends)) if i > 1 or end < 0.0]
    if not any(i < 2 for i in wanted):
        return 0.0
    solved = linprog(t, A_ub=np.array([rows[i] for i in wanted]), b_ub=[ends[i] for i in wanted], method="highs")
    return float(solved.fun) if solved.status == 0 else math.inf


def _limit_row(kinds: Kinds, demand: Demand, limit: Limit, alone_s: float) -> tuple[np.ndarray, float]:
    b, t, x = kinds.b, kinds.t, limit.value
    if limit.latency == "tpot":
        return b * (t - x), 0.0
    if limit.latency == "itl":
        if limit.quantile is None:
            return b * (t - x), 0.0
        return b * ((t > x) - (1.0 - limit.quantile)), 0.0
    share = 1.0 if limit.quantile is None else limit.quantile
    return b * t, share * (x - alone_s)


def bounding_limits(limits: Sequence[Limit]) -> list[tuple[Limit, float]]:
    """(limit, share of the requests whose demand counts) of those that bound the capacity.

    A mean of TPOT over requests weights short answers like long ones, so it bounds nothing by tokens.
    """
    found = []
    for limit in limits:
        if limit.latency == "itl":
            found.append((limit, 1.0))  # over tokens: none may be dropped
        elif limit.latency == "e2e" or (limit.latency == "tpot" and limit.quantile is not None):
            found.append((limit, 1.0 if limit.quantile is None else limit.quantile))
    return found


@dataclass(frozen=True)
class Alone:
    """Seconds of every request (n,) that has the server to itself."""

    ttft_s: np.ndarray
    token_s: np.ndarray  # a decode step behind its prompt, a bound of its TPOT
    e2e_s: np.ndarray

    def figure(self, limit: Limit, output_tok: np.ndarray) -> float:
        """Lower bound of the figure that a limit is about; 0 where nothing is known."""
        if limit.latency == "itl":
            return float(self.token_s.min())
        values = {"ttft": self.ttft_s, "tpot": self.token_s[output_tok > 1], "e2e": self.e2e_s}.get(limit.latency)
        if values is None or not len(values):
            return 0.0
        return float(values.mean() if limit.quantile is None else np.quantile(values, limit.quantile))


def alone(instance: Instance, workload: Workload, most_tok: int) -> Alone:
    """Every request by itself on an idle server, in steps of at most `most_tok` prompt tokens."""
    prompt, new, output = workload.prompt_tok, workload.new_prompt_tok, workload.output_tok
    budget = most_tok * instance.parallel.pp
    points = np.unique(np.quantile(new, ALONE_SHARES).astype(int))
    known_s = _prefill_s(instance, points, budget)
    prefill_s = known_s[np.searchsorted(points, new, side="right") - 1]
    contexts = np.unique(np.quantile(prompt, ALONE_SHARES).astype(int))
    rules = instance.step_model.rules
    keys = np.array([[rule.keys_at(int(context)) for rule in rules] for context in contexts], dtype=float)
    one, none = np.ones(len(contexts)), np.zeros(len(contexts))
    keys = keys.reshape(len(contexts), len(rules))
    step_s = instance.step_model.price(Steps(one, keys, none, none, none, 0.0 * keys, 0.0 * keys, one)).seconds
    token_s = step_s[np.searchsorted(contexts, prompt, side="right") - 1]
    engine = instance.calibration.parameters.engine
    ttft_s = engine.request_s + engine.prompt_tok_s * new + prefill_s
    scale = 1.0 - MARGIN
    return Alone(scale * ttft_s, scale * token_s, scale * (ttft_s + (output - 1) * token_s))


def _prefill_s(instance: Instance, prompts: np.ndarray, budget: int) -> np.ndarray:
    """Seconds of each prompt alone, in chunks of `budget` tokens."""
    chunks = [
        (i, PrefillChunk(min(budget, int(p) - start), start))
        for i, p in enumerate(prompts)
        for start in range(0, int(p), budget)
    ]
    rules = instance.step_model.rules
    read = np.array([[rule.keys_read(chunk) for rule in rules] for _, chunk in chunks], dtype=float)
    read = read.reshape(len(chunks), len(rules), 2)
    new = np.array([chunk.new_tok for _, chunk in chunks], dtype=float)
    cached = np.array([chunk.cached_tok for _, chunk in chunks], dtype=float)
    one, none = np.ones(len(chunks)), np.zeros(len(chunks))
    steps = Steps(none, 0.0 * read[..., 0], one, new, cached, read[..., 0], read[..., 1], none)
    seconds = instance.step_model.price(steps).seconds
    return np.bincount([i for i, _ in chunks], weights=seconds, minlength=len(prompts))
