"""A few dozen weighted rows in place of the thousands of a trajectory: what a fit prices again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.trajectory import Trajectory
from calibration.trajectory_metrics import QUANTILES, SPANS, request_times
from simulator.steps import Steps

CONDENSED = ("ttft_s_mean", "tpot_s_mean", "itl_s_median", "output_tok_per_s")
BAND = 0.01  # a quantile over requests is the mean of the requests within this share of ranks around it
NEAR = 0.2  # groups of steps whose durations differ by less are taken for one continuous spread
RATES = ("output_tok_per_s", "total_tok_per_s", "batch_mean")
POWER = ("power_w", "energy_j_per_output_tok")


def linear_weights(trajectory: Trajectory, name: str, reference_s: np.ndarray | None = None) -> np.ndarray:
    """Weights (S,) with metric = weights @ seconds: means of ttft, tpot, e2e and itl, and duration_s. Exact.

    For the median and p99 of ttft, tpot and e2e the mean over the requests whose rank is within `BAND` of the quantile
    when rows take `reference_s` (S,) (default: a rough guess): close while other costs keep the ranks about the same.
    """
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
    if span not in SPANS or which not in ("mean", *QUANTILES):
        raise ValueError(f"'{name}' is not linear in the seconds of the rows")
    factor = np.ones(len(trajectory.output_tok))
    if span == "tpot_s":
        factor = np.where(trajectory.output_tok > 1, 1.0 / np.maximum(trajectory.output_tok - 1, 1), 0.0)
    chosen = trajectory.output_tok > 1 if span == "tpot_s" else factor > 0
    if which != "mean":
        chosen = _around_quantile(trajectory, span, chosen, QUANTILES[which], reference_s)
    start, end = (getattr(trajectory, edge) for edge in SPANS[span])
    each = factor * chosen / max(1, chosen.sum())
    return _span_weights(trajectory, start, end, each) + (0.0 if span == "tpot_s" else _lag_weights(trajectory, each))


def _lag_weights(trajectory: Trajectory, each: np.ndarray) -> np.ndarray:
    """Weights (S,) of what requests wait before their edge, each weighted `each` (N,): see `follow_lag_steps`."""
    follow = trajectory.submitted > 0
    rows = len(trajectory.repeat)
    row = np.minimum(trajectory.submitted[follow], rows - 1)
    return trajectory.follow_lag_steps * np.bincount(row, each[follow], rows)


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
    order = candidates[np.argsort(request_times(trajectory, span, trajectory.edges_s(seconds)), kind="stable")]
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
        """The metrics `names` (those of power only with `joules`). (R,) seconds of the rows, joules of all replicas."""
        values: dict[str, float] = {}
        for name in self.names:
            if name in self.weights:
                values[name] = float(self.weights[name] @ seconds)
            elif name.startswith("itl_s_"):
                values[name] = _smooth_quantile(seconds, self.gaps, QUANTILES[name.rpartition("_")[2]])
            elif name in RATES or joules is not None:
                values[name] = self._rate(name, seconds, joules)
        return values

    def _rate(self, name: str, seconds: np.ndarray, joules: np.ndarray | None) -> float:
        repeat = self.time[name]
        if name == "batch_mean":
            return self.replicas * float((repeat * self.running) @ seconds / (repeat @ seconds))
        if name == "power_w":
            return float(repeat @ joules / (repeat @ seconds))
        if name == "energy_j_per_output_tok":
            return float(repeat @ joules) / (self.replicas * self.tokens[name])
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


def condensed(
    trajectory: Trajectory,
    names: Sequence[str] = CONDENSED,
    max_rows: int = 60,
    reference_s: np.ndarray | None = None,
) -> Condensed:
    """A few weighted rows that give the metrics `names`. `reference_s` (S,): see `linear_weights`."""
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

    linear = [name for name in names if name not in (*RATES, *POWER) and not _is_gap_quantile(name)]
    timed = [name for name in names if name in (*RATES, *POWER)]
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
    return trajectory.power_window if name in POWER else trajectory.rate_window


def _weighting(trajectory: Trajectory, name: str, reference_s: np.ndarray | None) -> np.ndarray:
    """How much each row counts for a metric, shape (S,), >= 0."""
    if name in (*RATES, *POWER):
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
