"""The sequence of engine steps that a measured run consists of, apart from how long each of them takes.

A run is scheduled once, in step-time; any physics then prices its steps in one call, and the metrics of the schema
follow from sums. Every time is that of an *edge*: edge e is the start of row e and the end of row e - 1, at
cumsum(seconds * repeat). So means are linear in the seconds of the rows, and a fit can use a few dozen weighted rows
in place of thousands (`Trajectory.condensed`).

    trajectory = trajectory_of(record, model, settings, kv_blocks)
    cost = physics.price(trajectory.steps)
    values = metrics(trajectory, cost.seconds, cost.joules)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.records import RunRecord
from calibration.workloads import Workload, workload_of
from simulator.engine.settings import EngineSettings
from simulator.engine.token_clock import Requests, Schedule, TokenClock, prefill_keys, schedule, steps_of
from simulator.errors import UserError
from simulator.keys import KeyRule, key_rules
from simulator.model import Model
from simulator.steps import Steps

ARRIVAL_SEED = 20240301  # of Poisson arrivals where the caller gives none
CONDENSED = ("ttft_s_mean", "tpot_s_mean", "itl_s_median", "output_tok_per_s")
BAND = 0.01  # a quantile over requests is the mean of the requests within this share of ranks around it
NEAR = 0.2  # groups of steps whose durations differ by less are taken for one continuous spread
_SPANS = {
    "ttft_s": ("submitted", "first_token"),
    "tpot_s": ("first_token", "finished"),
    "e2e_s": ("submitted", "finished"),
}
_QUANTILES = {"median": 0.5, "p99": 0.99}
_RATES = ("output_tok_per_s", "total_tok_per_s", "batch_mean")
_POWER = ("power_w", "energy_j_per_output_tok")


@dataclass(frozen=True)
class Trajectory:
    """S rows of equal steps and what N requests did in them. Replicas are alike: rows are those of one replica.

    Edges count rows: 0 <= edge <= S. Windows are (first edge, last edge).
    """

    steps: Steps  # (S,) rows; a row is the mean of its steps
    repeat: np.ndarray  # (S,) steps in the row
    running: np.ndarray  # (S,) sequences in each step, decoding and prefilling
    gaps: np.ndarray  # (S,) gaps between tokens of one sequence that last one step of this row
    resumed: np.ndarray  # (G, 2) edges of gaps that a preemption tore open
    submitted: np.ndarray  # (N,) edges, all four
    scheduled: np.ndarray
    first_token: np.ndarray
    finished: np.ndarray
    prompt_tok: np.ndarray  # (N,)
    output_tok: np.ndarray  # (N,)
    cached_tok: np.ndarray  # (N,) prompt tokens that came from the prefix cache
    preemptions: np.ndarray  # (N,)
    window: tuple[int, int]  # while the server is full: requests wait for a seat or for KV blocks; (0, 0): never
    rate_window: tuple[int, int]  # what throughput and mean batch cover
    power_window: tuple[int, int]  # what power and energy cover
    tpot_of_window: bool = False  # tpot_s_mean is mean batch / throughput in rate_window
    replicas: int = 1
    submitted_s: np.ndarray | None = None  # (N,) arrival times where they are not edges (open loop)
    assumptions: tuple[str, ...] = ()

    @property
    def output_rows(self) -> np.ndarray:
        """Tokens written in each row, shape (S,)."""
        return self.steps.sampled * self.repeat

    def edges_s(self, seconds: np.ndarray) -> np.ndarray:
        """Time of each edge for `seconds` (S,) per step, shape (S + 1,)."""
        return np.concatenate(([0.0], np.cumsum(seconds * self.repeat)))

    def condensed(
        self, names: Sequence[str] = CONDENSED, max_rows: int = 60, reference_s: np.ndarray | None = None
    ) -> Condensed:
        """A few weighted rows that give the metrics `names`; see `Condensed`."""
        return _condense(self, tuple(names), max_rows, reference_s)


# -- from records and requests ---------------------------------------------------------------------------------


def trajectory_of(
    record: RunRecord,
    model: Model,
    settings: EngineSettings,
    kv_blocks: int,
    dp: int = 1,
    async_scheduling: bool | None = None,
) -> Trajectory:
    """The trajectory of a measured run. `settings` and `kv_blocks` are those of one of `dp` equal replicas.

    async_scheduling None: as the record's flags say. UserError if the run cannot be scheduled.
    """
    if record.load == "open_loop":
        raise UserError(f"run '{record.run_id}': an open loop depends on real time, use simulate_open_loop")
    workload = workload_of(record, _room(model, settings), dp)
    ahead = record.flagged("async_scheduling") if async_scheduling is None else async_scheduling
    found = run_requests(workload.requests, settings, kv_blocks, key_rules(model), ahead)
    return _as_recorded(found, record, workload, dp)


def run_requests(
    requests: Requests,
    settings: EngineSettings,
    kv_blocks: int,
    rules: Sequence[KeyRule],
    async_scheduling: bool = False,
) -> Trajectory:
    """The trajectory of any requests; throughput and power cover the whole run."""
    return _trajectory(requests, schedule(requests, settings, kv_blocks, async_scheduling), rules)


def _room(model: Model, settings: EngineSettings) -> int | None:
    """Most tokens of one sequence."""
    limits = [limit for limit in (settings.max_model_len, model.max_position_embeddings) if limit]
    return min(limits) if limits else None


def _trajectory(requests: Requests, plan: Schedule, rules: Sequence[KeyRule], cut: bool = True) -> Trajectory:
    steps, repeat, row = steps_of(plan, rules) if cut else steps_of(plan, rules, np.inf)
    joined = np.bincount(row[plan.joined], minlength=len(repeat))
    full = np.flatnonzero(plan.full)
    whole = (0, len(repeat))
    return Trajectory(
        steps=steps,
        repeat=repeat,
        running=steps.decode_sequences + steps.prefill_sequences,
        gaps=steps.decode_sequences * repeat - joined,
        resumed=row[plan.resumed],
        submitted=row[plan.submitted],
        scheduled=row[plan.scheduled],
        first_token=row[plan.first_token],
        finished=row[plan.finished],
        prompt_tok=requests.prompt_tok,
        output_tok=requests.output_tok,
        cached_tok=plan.cached_tok,
        preemptions=plan.preemptions,
        window=(int(row[full[0]]), int(row[full[-1] + 1])) if len(full) else (0, 0),
        rate_window=whole,
        power_window=whole,
    )


def _as_recorded(trajectory: Trajectory, record: RunRecord, workload: Workload, dp: int) -> Trajectory:
    """The trajectory with the windows that the source of `record` took its figures over."""
    window, rate, power = trajectory.window, trajectory.rate_window, trajectory.power_window
    if "steady_window" in record.flag_list and window[1] > window[0]:
        rate = power = window
    elif record.flagged("steady_window"):  # nobody ever waits: from the last first token on
        last = int(trajectory.first_token.max())
        power = (last, power[1]) if last < power[1] else power
    return replace(
        trajectory,
        rate_window=rate,
        power_window=power,
        tpot_of_window="derived:tpot_s_mean" in record.flag_list and "steady_window" in record.flag_list,
        replicas=dp,
        assumptions=workload.assumptions,
    )


# -- arrivals in real time -------------------------------------------------------------------------------------


def simulate_open_loop(
    record: RunRecord,
    model: Model,
    settings: EngineSettings,
    kv_blocks: int,
    physics: Any,
    seed: int = ARRIVAL_SEED,
    dp: int = 1,
    async_scheduling: bool | None = None,
) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    """(trajectory, seconds (S,), joules (S,)) of a run with Poisson arrivals at the record's request_rate_rps.

    The scheduler runs in the real time of `physics`. Rows without sequences are gaps in which the server waits; they
    draw `physics.idle_power_w` where physics has one. The three fit `metrics`.
    """
    if not record.request_rate_rps:
        raise UserError(f"run '{record.run_id}': request_rate_rps not stated")
    workload = workload_of(record, _room(model, settings), dp)
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(dp / record.request_rate_rps, len(workload.requests)))
    ahead = record.flagged("async_scheduling") if async_scheduling is None else async_scheduling
    found, seconds, joules = run_arrivals(
        workload.requests, arrivals, settings, kv_blocks, key_rules(model), physics, ahead
    )
    return _as_recorded(found, record, workload, dp), seconds, joules


def run_arrivals(
    requests: Requests,
    arrival_s: np.ndarray,
    settings: EngineSettings,
    kv_blocks: int,
    rules: Sequence[KeyRule],
    physics: Any,
    async_scheduling: bool = False,
) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    """As `simulate_open_loop`, for requests that arrive at `arrival_s` (N,), ascending."""
    if len(arrival_s) != len(requests) or (np.diff(arrival_s) < 0).any():
        raise ValueError("arrival_s needs one ascending time per request")
    clock = TokenClock(replace(requests, in_flight=0), settings, kv_blocks, async_scheduling)
    times, now, rows = [*arrival_s.tolist(), np.inf], 0.0, []
    idle_w = float(getattr(physics, "idle_power_w", 0.0))
    coming = 0
    while True:
        while times[coming] <= now:
            clock.arrive()
            coming += 1
        if clock.done:
            if coming == len(requests):
                break
            rows.append((times[coming] - now, idle_w * (times[coming] - now)))
            now = times[coming]
            clock.idle()
            continue
        steps = clock.plan()
        if steps == 0:
            continue
        steps, seconds, joules = _priced(clock, steps, times[coming] - now, rules, physics)
        clock.advance(steps)
        rows.append((seconds, joules))
        now += seconds * steps
    found = _trajectory(requests, clock.schedule(), rules, cut=False)
    seconds, joules = np.array(rows).T
    return replace(found, submitted_s=np.asarray(arrival_s, dtype=float)), seconds, joules


def _priced(
    clock: TokenClock, steps: int, until_s: float, rules: Sequence[KeyRule], physics: Any
) -> tuple[int, float, float]:
    """(steps to take, mean seconds, mean joules) of the planned batch.

    At most as many steps as leave the keys about the same, and none that starts after an arrival in `until_s` that
    could join. Costs are linear between the first and the last step.
    """
    contexts = clock.contexts()
    steps = min(steps, max(1, int(0.1 * contexts.mean()))) if len(contexts) else steps
    cost = physics.price(_rows(clock.planned_chunks(), contexts, clock.planned_joins(), steps, rules))
    seconds, joules = (np.asarray(values, dtype=float) for values in (cost.seconds, cost.joules))
    if steps > 1 and clock.open_to_arrivals and until_s < np.inf:
        slope = (seconds[1] - seconds[0]) / (steps - 1)
        ends = np.cumsum(seconds[0] + slope * np.arange(steps))
        taken = min(steps, int(np.searchsorted(ends, until_s)) + 1)
        share = (taken - 1) / (steps - 1)
        seconds, joules = ([x[0], x[0] + share * (x[1] - x[0])] for x in (seconds, joules))
        steps = taken
    return steps, float(np.mean(seconds)), float(np.mean(joules))


def _rows(
    chunks: list[tuple[int, int, bool]],
    contexts: np.ndarray,
    joins: list[int],
    steps: int,
    rules: Sequence[KeyRule],
) -> Steps:
    """The first and the last of `steps` equal batches, or the only one."""
    contexts = np.concatenate((contexts, np.array(joins, dtype=np.int64)))
    new, cached, completes = (np.array([chunk[j] for chunk in chunks], dtype=np.int64) for j in range(3))
    read = [prefill_keys(rule, new, cached) for rule in rules]
    offsets = (0,) if steps == 1 else (0, steps - 1)
    keys = [[float(rule.decode_keys(contexts + j, 1)[0]) if len(contexts) else 0.0 for rule in rules] for j in offsets]
    once = np.ones(len(offsets))
    return Steps(
        decode_sequences=len(contexts) * once,
        decode_keys=np.array(keys).reshape(len(offsets), len(rules)),
        prefill_sequences=len(chunks) * once,
        prefill_tok=new.sum() * once,
        prefill_cached_tok=cached.sum() * once,
        prefill_pairs=np.outer(once, [pairs.sum() for pairs, _ in read]),
        prefill_keys=np.outer(once, [keys.sum() for _, keys in read]),
        sampled=(len(contexts) + completes.sum()) * once,
    )


# -- metrics ---------------------------------------------------------------------------------------------------


def metrics(trajectory: Trajectory, seconds: np.ndarray, joules: np.ndarray | None = None) -> dict[str, float]:
    """Every metric of the schema that the trajectory defines, by column name, and `prefill_share`.

    `seconds` and `joules` (S,): of one step of each row, on one replica. Power sums over the replicas. Latencies cover
    the whole run, throughput and power the windows of the trajectory; total_tok_per_s counts prompts at the rate of
    outputs. `prefill_share` is the share of the time in steps with prefill.
    """
    spent = np.asarray(seconds, dtype=float) * trajectory.repeat
    edges = np.concatenate(([0.0], np.cumsum(spent)))
    values: dict[str, float] = {}
    for name in _SPANS:
        found = _request_times(trajectory, name, edges)
        if len(found):
            values[f"{name}_mean"] = float(found.mean())
            for which, q in _QUANTILES.items():
                values[f"{name}_{which}"] = float(np.percentile(found, 100.0 * q))
    values |= _token_gaps(trajectory, np.asarray(seconds, dtype=float), edges)
    values["duration_s"] = float(edges[-1])
    values["prefill_share"] = float(spent[trajectory.steps.prefill_tok > 0].sum() / edges[-1])
    values |= _rates(trajectory, spent)
    if trajectory.tpot_of_window:
        values["tpot_s_mean"] = values["batch_mean"] / values["output_tok_per_s"]
    if joules is not None:
        within = slice(*trajectory.power_window)
        energy = float((joules * trajectory.repeat)[within].sum())
        values["power_w"] = trajectory.replicas * energy / float(spent[within].sum())
        written = float(trajectory.output_rows[within].sum())
        if written:
            values["energy_j_per_output_tok"] = energy / written
    return values


def _request_times(trajectory: Trajectory, name: str, edges: np.ndarray) -> np.ndarray:
    """`ttft_s`, `tpot_s` or `e2e_s` of each request that has one."""
    start, end = _SPANS[name]
    began = edges[getattr(trajectory, start)]
    if start == "submitted" and trajectory.submitted_s is not None:
        began = trajectory.submitted_s
    times = edges[getattr(trajectory, end)] - began
    if name != "tpot_s":
        return times
    several = trajectory.output_tok > 1
    return times[several] / (trajectory.output_tok[several] - 1)


def _token_gaps(trajectory: Trajectory, seconds: np.ndarray, edges: np.ndarray) -> dict[str, float]:
    torn = edges[trajectory.resumed[:, 1]] - edges[trajectory.resumed[:, 0]]
    gaps = np.concatenate((seconds, torn))
    counts = np.concatenate((trajectory.gaps, np.ones(len(torn))))
    total = counts.sum()
    if not total:
        return {}
    found = {f"itl_s_{which}": repeated_quantile(gaps, counts, q) for which, q in _QUANTILES.items()}
    return {"itl_s_mean": float(gaps @ counts / total)} | found


def repeated_quantile(values: np.ndarray, counts: np.ndarray, q: float) -> float:
    """`np.quantile(np.repeat(values, counts), q)` without the repetition."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order])
    position = q * (ends[-1] - 1)
    low, high = (values[order][np.searchsorted(ends, x, side="right")] for x in (np.floor(position), np.ceil(position)))
    return float(low + (high - low) * (position - np.floor(position)))


def _rates(trajectory: Trajectory, spent: np.ndarray) -> dict[str, float]:
    within = slice(*trajectory.rate_window)
    time_s = float(spent[within].sum())
    rate = trajectory.replicas * float(trajectory.output_rows[within].sum()) / time_s
    read, written = float(trajectory.prompt_tok.sum()), float(trajectory.output_tok.sum())
    return {
        "output_tok_per_s": rate,
        "total_tok_per_s": rate * (1.0 + read / written),
        "batch_mean": trajectory.replicas * float(trajectory.running[within] @ spent[within]) / time_s,
    }


# -- linear weights and condensed rows -------------------------------------------------------------------------


def linear_weights(trajectory: Trajectory, name: str, reference_s: np.ndarray | None = None) -> np.ndarray:
    """Weights (S,) with metric = weights @ seconds: means of ttft, tpot, e2e and itl, and duration_s. Exact.

    For the median and p99 of ttft, tpot and e2e the mean over the requests whose rank is within `BAND` of the quantile
    when rows take `reference_s` (S,) (default: a rough guess): close while other costs keep the ranks about the same.
    """
    _refuse_open_loop(trajectory)
    if name == "duration_s":
        return trajectory.repeat.astype(float)
    if name == "tpot_s_mean" and trajectory.tpot_of_window:  # batch / (tokens / time) = sum(running * time) / tokens
        weights = trajectory.running * trajectory.repeat * _inside(trajectory, trajectory.rate_window)
        return weights / (trajectory.output_rows @ _inside(trajectory, trajectory.rate_window))
    if name == "itl_s_mean":
        torn = np.ones(len(trajectory.resumed))
        total = trajectory.gaps.sum() + len(torn)
        return (trajectory.gaps + _span_weights(trajectory, *trajectory.resumed.T, torn)) / total
    span, _, which = name.rpartition("_")
    if span not in _SPANS or which not in ("mean", *_QUANTILES):
        raise ValueError(f"'{name}' is not linear in the seconds of the rows")
    factor = np.ones(len(trajectory.output_tok))
    if span == "tpot_s":
        factor = np.where(trajectory.output_tok > 1, 1.0 / np.maximum(trajectory.output_tok - 1, 1), 0.0)
    chosen = trajectory.output_tok > 1 if span == "tpot_s" else factor > 0
    if which != "mean":
        chosen = _around_quantile(trajectory, span, chosen, _QUANTILES[which], reference_s)
    start, end = (getattr(trajectory, edge) for edge in _SPANS[span])
    return _span_weights(trajectory, start, end, factor * chosen / max(1, chosen.sum()))


def _refuse_open_loop(trajectory: Trajectory) -> None:
    if trajectory.submitted_s is not None:
        raise ValueError("the batches of an open loop depend on the seconds: its metrics are not linear in them")


def _span_weights(trajectory: Trajectory, start: np.ndarray, end: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights (S,) of sum(weight * (time of end - time of start)) over pairs of edges."""
    n = len(trajectory.repeat)
    open_now = np.cumsum(np.bincount(start, weight, n + 1) - np.bincount(end, weight, n + 1))[:-1]
    return np.where(np.abs(open_now) > 1e-12 * max(1e-300, weight.sum()), open_now, 0.0) * trajectory.repeat


def _inside(trajectory: Trajectory, window: tuple[int, int]) -> np.ndarray:
    rows = np.arange(len(trajectory.repeat))
    return ((rows >= window[0]) & (rows < window[1])).astype(float)


def _around_quantile(
    trajectory: Trajectory, span: str, chosen: np.ndarray, q: float, reference_s: np.ndarray | None
) -> np.ndarray:
    """Which requests (bool, (N,)) have ranks around a quantile; at least the nearest one."""
    seconds = _rough_seconds(trajectory.steps) if reference_s is None else reference_s
    candidates = np.flatnonzero(chosen)
    order = candidates[np.argsort(_request_times(trajectory, span, trajectory.edges_s(seconds)), kind="stable")]
    centre = q * (len(order) - 1)
    half = min(BAND * len(order), centre, len(order) - 1 - centre)
    found = np.zeros(len(chosen), dtype=bool)
    found[order[int(np.ceil(centre - max(half, 0.5))) : int(np.floor(centre + max(half, 0.5))) + 1]] = True
    return found


def _rough_seconds(steps: Steps) -> np.ndarray:
    """Something like a duration: reading the weights costs as much as 300 tokens or 300,000 keys do."""
    return 1.0 + steps.new_tok / 300.0 + (steps.decode_keys.sum(axis=1) + steps.prefill_keys.sum(axis=1)) / 3e5


@dataclass(frozen=True)
class Condensed:
    """R rows that stand for a trajectory: `metrics` of their prices are close to those of all rows.

    Rows of one weighting group similar steps; each is their weighted mean. So a metric that is a mean over time or
    over requests is exact for costs that are affine within each group, and off in second order otherwise.
    """

    steps: Steps  # (R,) rows
    weights: dict[str, np.ndarray]  # (R,) by metric: metric = weights @ seconds; linear metrics only
    time: dict[str, np.ndarray]  # (R,) by metric: weights @ seconds is the time that a rate or the power divides by
    gaps: np.ndarray  # (R,) token gaps for the quantiles of itl; zero outside their rows
    running: np.ndarray  # (R,)
    names: tuple[str, ...]
    tokens: dict[str, float]  # by metric of rate or power: tokens written in its time, one replica
    replicas: int
    read_per_written: float  # prompt tokens per output token

    def metrics(self, seconds: np.ndarray, joules: np.ndarray | None = None) -> dict[str, float]:
        """The metrics `names` (those of power only with `joules`) for seconds and joules (R,) of the rows."""
        values: dict[str, float] = {}
        for name in self.names:
            if name in self.weights:
                values[name] = float(self.weights[name] @ seconds)
            elif name.startswith("itl_s_"):
                values[name] = _smooth_quantile(seconds, self.gaps, _QUANTILES[name.rpartition("_")[2]])
            elif name in _RATES or joules is not None:
                values[name] = self._rate(name, seconds, joules)
        return values

    def _rate(self, name: str, seconds: np.ndarray, joules: np.ndarray | None) -> float:
        repeat = self.time[name]
        if name == "batch_mean":
            return self.replicas * float((repeat * self.running) @ seconds / (repeat @ seconds))
        if name == "power_w":
            return self.replicas * float(repeat @ joules / (repeat @ seconds))
        if name == "energy_j_per_output_tok":
            return float(repeat @ joules) / self.tokens[name]
        read = self.read_per_written if name == "total_tok_per_s" else 0.0
        return self.replicas * self.tokens[name] * (1.0 + read) / float(repeat @ seconds)


def _smooth_quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    """Quantile of groups whose members spread around `values`: linear in rank from the middle of a group to its ends.

    At an end the quantile is half way to the next group if that one is near (`NEAR`); otherwise it jumps there, as
    between steps with and without prefill.
    """
    some = weights > 0
    order = np.argsort(values[some], kind="stable")
    value, weight = values[some][order], weights[some][order]
    ends = np.cumsum(weight) / weight.sum()
    i = min(int(np.searchsorted(ends, q)), len(value) - 1)
    begin = ends[i - 1] if i else 0.0
    other = i + (1 if q > (begin + ends[i]) / 2.0 else -1)
    if not 0 <= other < len(value) or abs(value[other] - value[i]) > NEAR * value[i]:
        return float(value[i])
    share = abs(2.0 * (q - begin) / (ends[i] - begin) - 1.0)  # 0 in the middle of the group, 1 at its end
    return float(value[i] + share * (value[other] - value[i]) / 2.0)


def _condense(
    trajectory: Trajectory, names: tuple[str, ...], max_rows: int, reference_s: np.ndarray | None
) -> Condensed:
    _refuse_open_loop(trajectory)
    wanted = {name: _weighting(trajectory, name, reference_s) for name in names}
    names = tuple(name for name in names if wanted[name].any())  # without any token gap there is no tpot
    blocks: list[np.ndarray] = []  # distinct weightings, each of sum 1
    block_of: dict[str, int] = {}
    for name in names:
        share = wanted[name] / wanted[name].sum()
        same = (i for i, block in enumerate(blocks) if np.allclose(block, share, rtol=1e-9, atol=1e-15))
        block_of[name] = next(same, len(blocks))
        if block_of[name] == len(blocks):
            blocks.append(share)
    if max_rows < 2 * len(blocks):
        raise ValueError(f"{len(blocks)} kinds of weights need at least {2 * len(blocks)} rows, got {max_rows}")
    features = _features(trajectory.steps)
    kind = (trajectory.steps.prefill_tok > 0) + 2 * (trajectory.steps.decode_sequences > 0)
    parts, running, shares = [], [], []
    for block in blocks:
        group = _groups(features, kind, block, max_rows // len(blocks))
        weight = np.bincount(group[block > 0], block[block > 0])
        parts.append(_means(trajectory.steps, group, block, weight))
        running.append(np.bincount(group[block > 0], (block * trajectory.running)[block > 0]) / weight)
        shares.append(weight)
    places = np.cumsum([0, *(len(share) for share in shares)])

    def spread(name: str) -> np.ndarray:
        i, out = block_of[name], np.zeros(places[-1])
        out[places[i] : places[i + 1]] = shares[i] * wanted[name].sum()
        return out

    linear = [name for name in names if name not in (*_RATES, *_POWER) and not _is_gap_quantile(name)]
    timed = [name for name in names if name in (*_RATES, *_POWER)]
    gaps = [name for name in names if _is_gap_quantile(name)]
    return Condensed(
        steps=Steps.concatenate(parts),
        weights={name: spread(name) for name in linear},
        time={name: spread(name) for name in timed},
        gaps=spread(gaps[0]) if gaps else np.zeros(places[-1]),
        running=np.concatenate(running),
        names=names,
        tokens={name: float(trajectory.output_rows[slice(*_window(trajectory, name))].sum()) for name in timed},
        replicas=trajectory.replicas,
        read_per_written=float(trajectory.prompt_tok.sum() / trajectory.output_tok.sum()),
    )


def _is_gap_quantile(name: str) -> bool:
    return name in ("itl_s_median", "itl_s_p99")


def _window(trajectory: Trajectory, name: str) -> tuple[int, int]:
    return trajectory.power_window if name in _POWER else trajectory.rate_window


def _weighting(trajectory: Trajectory, name: str, reference_s: np.ndarray | None) -> np.ndarray:
    """How much each row counts for a metric, shape (S,), >= 0."""
    if name in (*_RATES, *_POWER):
        return trajectory.repeat * _inside(trajectory, _window(trajectory, name))
    if _is_gap_quantile(name):
        return trajectory.gaps.astype(float)
    return linear_weights(trajectory, name, reference_s)


def _features(steps: Steps) -> np.ndarray:
    """What the cost of a step depends on, as logarithms above a floor: similar rows lie close together, (S, F)."""
    columns = (
        steps.decode_sequences,
        steps.prefill_tok,
        steps.decode_keys.sum(axis=1),
        steps.prefill_pairs.sum(axis=1),
    )
    return np.stack([np.log(column + 0.2 * column.mean() + 1e-9) for column in columns], axis=1)


def _groups(features: np.ndarray, kind: np.ndarray, weight: np.ndarray, most: int) -> np.ndarray:
    """Group number of each row, shape (S,): at most `most` groups, cut where weighted rows differ most.

    Rows of different `kind` (S,) stay apart as far as possible. Groups are halved at their mean along the feature that
    varies most, the worst group first.
    """
    group = np.zeros(len(weight), dtype=np.int64)
    rows = np.flatnonzero(weight)
    kinds = [rows[kind[rows] == which] for which in np.unique(kind[rows])]
    pending = [_spread_of(features, weight, rows) for rows in (kinds if len(kinds) <= most else [rows])]
    while len(pending) < most:
        worst = max(range(len(pending)), key=lambda i: pending[i][0])
        error, feature, rows = pending[worst]
        if error <= 1e-12:
            break
        values = features[rows, feature]
        left = values <= np.average(values, weights=weight[rows])
        pending[worst] = _spread_of(features, weight, rows[left])
        pending.append(_spread_of(features, weight, rows[~left]))
    for number, (_, _, rows) in enumerate(pending):
        group[rows] = number
    return group


def _spread_of(features: np.ndarray, weight: np.ndarray, rows: np.ndarray) -> tuple[float, int, np.ndarray]:
    """(weighted sum of squares along the worst feature, that feature, rows)."""
    values, w = features[rows], weight[rows]
    squares = w @ (values - w @ values / w.sum()) ** 2
    flat = values.max(axis=0) - values.min(axis=0) < 1e-9
    squares = np.where(flat, 0.0, squares)
    worst = int(np.argmax(squares))
    return float(squares[worst]), worst, rows


def _means(steps: Steps, group: np.ndarray, weight: np.ndarray, total: np.ndarray) -> Steps:
    """Weighted mean row of each group."""
    some = weight > 0

    def mean(column: np.ndarray) -> np.ndarray:
        if column.ndim == 2:
            columns = [mean(column[:, k]) for k in range(column.shape[1])]
            return np.stack(columns, axis=1) if columns else np.empty((len(total), 0))
        return np.bincount(group[some], (weight * column)[some], len(total)) / total

    return Steps(*(mean(getattr(steps, name)) for name in Steps.__dataclass_fields__))
