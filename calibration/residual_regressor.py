"""A learnt correction on top of the physics: does it predict models that it has not seen any better?

It is never applied by itself: `verdict` says what it would do, profiles do not hold it. It learns
log(measured / predicted) of the predictions with their model left out, and is judged on architectures that it was not
trained on. One caveat: the physics behind a training row has seen the architecture that is judged (leaving out pairs
would take a fit for each pair), so the verdict is, if anything, too kind to the regressor.

On the runs that ship it does not help: `calibrate fit calibration/data/runs/argonne.csv --gpu a100-sxm-40gb --out
FILE.toml --residual-regressor` gives a median of 6.6 % with it and 5.0 % without (p90 17.9 and 14.7 %). Neither do
other widths, ridges and gradient-boosted trees, on these runs or on those of vLLM 0.8 to 0.13 and V0: what the physics
leaves over belongs to single models, and other models do not tell it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import StandardScaler

from calibration.family_fit import FamilyFit, Prediction
from calibration.points import architecture_key, spread_kind
from calibration.setup import Setup
from simulator.precision import WEIGHT_BYTE

FEATURES = (
    "log batch", "log context_tok", "log prompt_tok", "log parameters", "log predicted_s", "log tp",
    "weight_byte", "sparse", "first token", "first token behind others", "whole request",
)  # fmt: skip
_THROUGHPUT = "output_tok_per_s"  # learnt as its inverse, seconds per token
_LARGEST = 1.0  # a row off by more than a factor e has another cause than a trend; it shall not make one
_FEWEST = 3  # architectures: with two, a trend over one would be judged on the other
# By chance alone, half the corrections lower the median a little.
_WORTH = 0.98


class ResidualRegressor(RegressorMixin, BaseEstimator):
    """Kernel ridge regression of log(measured / predicted) on standardised `FEATURES`.

    A Gaussian kernel, so that the correction falls to none (a factor of 1) away from what it was trained on, where a
    tree would carry on its last value. alpha: ridge, in units of a row's weight (mean 1); width: of the kernel, in
    standard deviations of a feature per square root of their number. Both were set once, before any run was looked at:
    alpha 1 is as much noise as signal. Nothing is random.
    """

    def __init__(self, alpha: float = 1.0, width: float = 1.0) -> None:
        self.alpha, self.width = alpha, width

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> ResidualRegressor:
        """Learn from features (rows, len(FEATURES)) and log(measured / predicted) (rows,)."""
        weight = np.ones(len(y)) if sample_weight is None else sample_weight / np.mean(sample_weight)
        self.scaler_ = StandardScaler().fit(X)
        gamma = 0.5 / (self.width**2 * X.shape[1])
        self.ridge_ = KernelRidge(alpha=self.alpha, kernel="rbf", gamma=gamma)
        self.ridge_.fit(self.scaler_.transform(X), np.clip(y, -_LARGEST, _LARGEST), sample_weight=weight)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """log of the factor that predicted seconds are to be multiplied by, (rows,)."""
        return self.ridge_.predict(self.scaler_.transform(X))


class Residuals(NamedTuple):
    """Left-out predictions of times (seconds, or seconds per token) as rows to learn from."""

    features: np.ndarray  # (rows, len(FEATURES))
    log_ratio: np.ndarray  # (rows,) log(measured / predicted) of seconds
    sign: np.ndarray  # (rows,) 1; -1 where the metric is a rate
    weight: np.ndarray  # (rows,) a set of rows (model, GPU, metric, campaign) counts as the root of its size
    architectures: tuple[Hashable, ...]
    kinds: np.ndarray  # (rows,) str, as `points.spread_kind`


class Verdict(NamedTuple):
    """|predicted / measured - 1| of every row without and with the correction, and how many architectures gain."""

    without: np.ndarray
    corrected: np.ndarray
    kinds: np.ndarray
    better: int
    architectures: int

    @property
    def helps(self) -> bool:
        """Median clearly lower, 90th percentile not higher, and better for most architectures, not for a large one."""
        median = np.median(self.corrected) < _WORTH * np.median(self.without)
        tail = np.quantile(self.corrected, 0.9) <= np.quantile(self.without, 0.9)
        return bool(median and tail and 2 * self.better > self.architectures)


def features(setup: Setup, metric: str, predicted_s: float) -> list[float]:
    """`FEATURES` of one metric of a run, predicted_s in seconds (per token for rates)."""
    kind = spread_kind(setup, metric)
    logarithms = (
        setup.batch, setup.input_tok + setup.output_tok, setup.input_tok, setup.model.parameters(), predicted_s,
        setup.parallel.tp,
    )  # fmt: skip
    plain = (
        WEIGHT_BYTE[setup.precision.weights], setup.model.sparse, kind == "ttft", kind == "ttft_served",
        metric.startswith("e2e"),
    )  # fmt: skip
    return [*np.log(np.array(logarithms, float)).tolist(), *map(float, plain)]


def residuals_of(predictions: Sequence[Prediction]) -> Residuals:
    """The left-out predictions of times and rates; power and energy are not learnt."""
    rows = [p for p in predictions if p.left_out and not p.metric.startswith(("power", "energy"))]
    sign = np.array([-1.0 if p.metric == _THROUGHPUT else 1.0 for p in rows])
    sets = [(p.setup.record.source, p.setup.device.id, p.setup.record.model, p.metric, p.setup.record.campaign)
            for p in rows]  # fmt: skip
    sizes = {one: sets.count(one) for one in set(sets)}
    x = [features(p.setup, p.metric, p.left_out**s) for p, s in zip(rows, sign.tolist())]
    return Residuals(
        np.array(x).reshape(len(rows), len(FEATURES)),
        sign * np.log([p.measured / p.left_out for p in rows]),
        sign,
        np.array([sizes[one] ** -0.5 for one in sets]),
        tuple(architecture_key(p.setup) for p in rows),
        np.array([spread_kind(p.setup, p.metric) for p in rows]),
    )


def left_out_corrections(data: Residuals) -> np.ndarray:
    """The correction (log of a factor on seconds) of every row, learnt from rows of other architectures."""
    index = _index(data.architectures)
    out = np.empty(len(index))
    for group in range(int(index.max()) + 1):
        test = index == group
        model = ResidualRegressor().fit(data.features[~test], data.log_ratio[~test], data.weight[~test])
        out[test] = model.predict(data.features[test])
    return out


def judge_regressor(data: Residuals) -> Verdict:
    """Errors without and with the correction, architecture by architecture."""
    index = _index(data.architectures)
    without = np.abs(np.expm1(-data.sign * data.log_ratio))
    corrected = np.abs(np.expm1(-data.sign * (data.log_ratio - left_out_corrections(data))))
    groups = [index == group for group in range(int(index.max()) + 1)]
    better = sum(bool(np.median(corrected[rows]) < np.median(without[rows])) for rows in groups)
    return Verdict(without, corrected, data.kinds, better, len(groups))


def verdict(fit: FamilyFit) -> str:
    """A few lines: left-out errors of times without and with a learnt correction, and whether it is worth having."""
    data = residuals_of(fit.predictions)
    number = len(set(data.architectures))
    if number < _FEWEST:
        return f"residual regressor: not tried, {number} architectures left out, expected at least {_FEWEST}"
    found = judge_regressor(data)
    lines = [f"residual regressor, errors of {number} architectures left out of physics and regressor alike:"]
    for kind in ("all", *np.unique(found.kinds)):
        rows = np.ones(len(found.kinds), bool) if kind == "all" else found.kinds == kind
        both = " -> ".join(_percent(errors[rows]) for errors in (found.without, found.corrected))
        lines.append(f"  {kind:12} {rows.sum():6,} rows  {both}")
    said = "helps" if found.helps else "does not help"
    lines.append(f"  it {said} (better for {found.better} of {number} architectures); the profile does not contain it")
    return "\n".join(lines)


def _index(groups: Sequence[Hashable]) -> np.ndarray:
    """Number of each row's group, in order of appearance."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def _percent(errors: np.ndarray) -> str:
    return f"median {100 * np.median(errors):.1f}% p90 {100 * np.quantile(errors, 0.9):.1f}%"
