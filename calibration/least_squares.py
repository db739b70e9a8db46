"""Robust bounded least squares of positive parameters on a logarithmic scale, with priors and a covariance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.kernels.spec import ParameterSpec

# A parameter whose posterior spread exceeds this share of its prior spread was not identified by the data.
IDENTIFIED_BELOW = 0.8
_TINY = 1e-15  # where a bound is 0: the logarithm needs a floor
_STEP = 1e-4  # of the logarithms, for differences: far above rounding, far below every prior's spread


@dataclass(frozen=True)
class Solution:
    """Fitted values by name, with the spread of their logarithms, correlations, and how the search went."""

    values: dict[str, float]
    log_sd: dict[str, float]
    correlation: np.ndarray  # in the order of `values`
    evaluations: int
    converged: bool
    not_identified: tuple[str, ...]


def robust(residuals: np.ndarray) -> np.ndarray:
    """Residuals whose squares are the soft-L1 loss 2 (sqrt(1 + r^2) - 1), so that outliers pull linearly."""
    return np.sign(residuals) * np.sqrt(2.0 * (np.sqrt(1.0 + residuals**2) - 1.0))


def fit_parameters(
    start: Mapping[str, float],
    specs: Mapping[str, ParameterSpec],
    errors: Callable[[dict[str, float]], np.ndarray],
    progress: Callable[[int, None], None] | None = None,
    max_evaluations: int = 60,
    begin: Mapping[str, float] | None = None,
    tolerance: float = 1e-6,
) -> Solution:
    """Maximum a posteriori of the parameters in `start` (their prior medians); the search begins at `begin` or there.

    It ends when a step changes the sum of squares, or the parameters, by less than `tolerance`, relatively.

    `errors(values)` returns log(predicted / measured) of every point divided by the point's standard deviation. Bounds
    and prior spreads come from `specs`; every name in `start` must have one with log_sd > 0.
    """
    from scipy.optimize import least_squares

    names: Sequence[str] = list(start)
    prior = np.log([max(start[name], _TINY) for name in names])
    spread = np.array([specs[name].log_sd for name in names])
    lower = np.log([max(specs[name].lower, _TINY) for name in names])
    upper = np.log([specs[name].upper for name in names])
    calls = 0

    def residuals(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if progress:
            progress(calls, None)
        found = errors(dict(zip(names, np.exp(x).tolist())))
        return np.concatenate((robust(found), (x - prior) / spread))

    first = prior if begin is None else np.log([max(begin[name], _TINY) for name in names])

    def jacobian(x: np.ndarray) -> np.ndarray:
        here = residuals(x)
        columns = []
        for i in range(len(x)):
            step = _STEP if x[i] + _STEP < upper[i] else -_STEP
            columns.append((residuals(x + step * (np.arange(len(x)) == i)) - here) / step)
        return np.stack(columns, axis=1)

    solution = least_squares(
        residuals, np.clip(first, lower + 1e-9, upper - 1e-9), jacobian, bounds=(lower, upper), x_scale=spread,
        xtol=tolerance, ftol=tolerance, max_nfev=max_evaluations,
    )  # fmt: skip
    covariance = np.linalg.inv(solution.jac.T @ solution.jac)
    posterior = np.sqrt(np.diag(covariance))
    log_sd = dict(zip(names, posterior.tolist()))
    return Solution(
        values=dict(zip(names, np.exp(solution.x).tolist())),
        log_sd=log_sd,
        correlation=covariance / np.outer(posterior, posterior),
        evaluations=calls,
        converged=solution.status > 0,
        not_identified=tuple(n for n in names if log_sd[n] > IDENTIFIED_BELOW * specs[n].log_sd),
    )
