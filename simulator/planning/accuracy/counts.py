"""How likely so many hits are. scipy.stats has these too, and takes seconds to load; its special functions do not."""

from __future__ import annotations

import numpy as np


def binomial(hits: np.ndarray, trials: np.ndarray | int, chance: np.ndarray | float) -> np.ndarray:
    """Chance of so many hits in independent trials; shapes as numpy broadcasts them, 0 beyond the trials."""
    from scipy.special import xlog1py, xlogy  # heavy: only where they are needed

    missed = np.maximum(trials - hits, 0)
    return np.exp(log_choose(trials, hits) + xlogy(hits, chance) + xlog1py(missed, -np.asarray(chance)))


def hypergeometric(hits: np.ndarray, good: np.ndarray, total: np.ndarray, taken: int) -> np.ndarray:
    """Chance of so many good ones among `taken` of `total` without replacement, `good` of which are good."""
    return np.exp(log_choose(good, hits) + log_choose(total - good, taken - hits) - log_choose(total, taken))


def beta_binomial(hits: np.ndarray, trials: int, a: float, b: float) -> np.ndarray:
    """Chance of so many hits in trials whose common chance is drawn from Beta(a, b)."""
    from scipy.special import betaln  # heavy: only where it is needed

    return np.exp(log_choose(trials, hits) + betaln(hits + a, trials - hits + b) - betaln(a, b))


def log_choose(n: np.ndarray | int, k: np.ndarray | int) -> np.ndarray:
    """log of n over k for whole numbers n >= 0; minus infinity for k outside 0 to n."""
    from scipy.special import gammaln  # heavy: only where it is needed

    n, k = np.asarray(n), np.asarray(k)
    inside = (k >= 0) & (k <= n)
    return np.where(
        inside,
        gammaln(n + 1.0) - gammaln(np.where(inside, k, 0) + 1.0) - gammaln(np.where(inside, n - k, 0) + 1.0),
        -np.inf,
    )
