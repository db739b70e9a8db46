"""Votes over answers: how sure a majority is, and which question of a set should be sampled next.

A simulator does not know what a sample answers. Every question gets a distribution over its possible answers, drawn
from a symmetric Dirichlet distribution, and every sample draws its answer from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from simulator.errors import UserError
from simulator.strategies.registry import assumed

answer_notes = {
    "answers": assumed(
        "different answers that the samples of a question can give", "the four choices of GPQA and MMLU", least=2
    ),
    "concentration": assumed(
        "parameter of the symmetric Dirichlet distribution from which a question's answer shares are drawn",
        "at 1 every split of the shares is equally likely; below, samples agree more often, above, less",
        least=0.01,
        most=1000,
    ),
}


def check_limit(strategy: str, samples: int, limit: int) -> None:
    """UserError when the budget is more than all questions may take."""
    if samples > limit:
        raise UserError(
            f"strategy '{strategy}', parameter 'samples': found {samples}, expected at most limit = {limit}, because "
            "no question may get more"
        )


def draw_shares(rng: np.random.Generator, questions: int, answers: int, concentration: float) -> np.ndarray:
    """Shares of the answers, shape (questions, answers); rows add up to 1."""
    return rng.dirichlet(np.full(answers, float(concentration)), size=questions)


class Votes:
    """The votes of a question set: what each sample answered, counted by question and answer."""

    def __init__(self, rng: np.random.Generator, shares: np.ndarray) -> None:
        self.counts = np.zeros(shares.shape, dtype=np.int64)
        self._rng, self._ends = rng, np.cumsum(shares, axis=1)[:, :-1]
        self._first: dict[tuple[int, int], object] = {}

    def cast(self, questions: Sequence[int], calls: Sequence[object]) -> None:
        """Draw what each finished call answers to its question, and count it."""
        for question, call in zip(questions, calls, strict=True):
            answer = int(np.searchsorted(self._ends[question], self._rng.random(), side="right"))
            self.counts[question, answer] += 1
            self._first.setdefault((question, answer), call)

    def winners(self) -> list:
        """For every question the first call that gave its most frequent answer."""
        return [self._first[question, int(answer)] for question, answer in enumerate(self.counts.argmax(axis=1))]


# -- how sure a majority is ----------------------------------------------------------------------------------


def top_two(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Votes of the leading answer and of the runner-up, for every row of `counts`."""
    ranked = np.sort(counts, axis=-1)
    return ranked[..., -1], ranked[..., -2]


def agreement(counts: np.ndarray, wanted: np.ndarray) -> float:
    """Share of the questions whose majority is the answer wanted; one of k answers with equal votes counts 1/k."""
    leads = counts == counts.max(axis=1, keepdims=True)
    return float((leads[np.arange(wanted.size), wanted] / leads.sum(axis=1)).mean())


def beta_doubt(counts: np.ndarray) -> np.ndarray:
    """Probability that the runner-up is more likely than the leader, if all ratios of the two are alike beforehand.

    The stopping rule of adaptive consistency (arXiv:2305.11860): Beta(lead + 1, second + 1) below one half.
    """
    from scipy.special import betainc  # heavy: only where it is needed

    lead, second = top_two(counts)
    return betainc(lead + 1.0, second + 1.0, 0.5)


def martingale_doubt(counts: np.ndarray) -> np.ndarray:
    """Density of Beta(lead + 1, second + 1) at one half, at most 1.

    One over the density is the prior-posterior-ratio martingale of PPR-1v1 (arXiv:2109.05047), which stops as soon as
    the density is below the error allowed: the density stands for a probability of error.
    """
    from scipy.special import betaln  # heavy: only where it is needed

    lead, second = top_two(counts)
    return np.minimum(1.0, np.exp(-(lead + second) * math.log(2.0) - betaln(lead + 1.0, second + 1.0)))


def least_settled(counts: np.ndarray, budget: int, at_once: int, limit: int, confidence: float) -> list[int]:
    """Questions that get the next samples by Blend-ASC, at most `at_once`; none when all is done.

    Questions are ranked by the weighted mean of both doubts; the weight goes from the Beta posterior's to the
    martingale's as the budget is spent. Left out are those whose leader is right with `confidence`, which are frozen,
    and those that have `limit` samples. If fewer are open than samples are due, the most doubtful get more than one.
    """
    taken = counts.sum(axis=1)
    spent, early = int(taken.sum()), beta_doubt(counts)
    late = spent / budget
    doubt = (1.0 - late) * early + late * martingale_doubt(counts)
    is_open = np.flatnonzero((early > 1.0 - confidence) & (taken < limit))
    ranked = is_open[np.argsort(-doubt[is_open], kind="stable")]
    due, chosen = min(at_once, budget - spent), []
    while len(chosen) < due and ranked.size:
        chosen += ranked[: due - len(chosen)].tolist()
        taken[ranked] += 1
        ranked = ranked[taken[ranked] < limit]
    return chosen


# -- what one more sample is expected to bring (PETS offline) ----------------------------------------------------

MOST_VOTES = 400  # of one question
# Square roots of gamma variates: in these, all gamma densities are about as wide. 24**2 is more than eight standard
# deviations above MOST_VOTES.
GRID = np.linspace(0.0, 24.0, 961)


@lru_cache(maxsize=MOST_VOTES + 2)
def _gamma_below(alpha: int) -> np.ndarray:
    """Gamma(alpha) distribution function on the grid."""
    from scipy.special import gammainc  # heavy: only where it is needed

    return gammainc(alpha, GRID**2)


@lru_cache(maxsize=1 << 16)
def mode_certainty(alpha: tuple[int, ...]) -> float:
    """Largest probability that any one answer is the most likely, under Dirichlet(alpha); alpha in falling order.

    A Dirichlet vector is a scaled vector of gamma variates, so this is the integral of the density of the first one
    times the distribution functions of the others. arXiv:2602.16745 estimates it from 500 draws.
    """
    others = math.prod((_gamma_below(other) for other in alpha[1:]), start=np.ones_like(GRID))
    return float(np.sum(np.diff(_gamma_below(alpha[0])) * (others[1:] + others[:-1]) / 2.0))


@lru_cache(maxsize=1 << 16)
def optimistic_gain(counts: tuple[int, ...]) -> float:
    """How much one more sample can raise `mode_certainty` at best, from a flat prior; counts in falling order."""
    alpha = [count + 1 for count in counts]
    best = 0.0
    for answer in range(len(alpha)):
        more = sorted((a + (i == answer) for i, a in enumerate(alpha)), reverse=True)
        best = max(best, mode_certainty(tuple(more)))
    return best - mode_certainty(tuple(alpha))


def gain(counts: np.ndarray) -> float:
    """`optimistic_gain` of one question's votes in any order."""
    return optimistic_gain(tuple(sorted(counts.tolist(), reverse=True)))


# -- budgets by difficulty (PETS online) -------------------------------------------------------------------------


def separation(shares: np.ndarray) -> np.ndarray:
    """How far the two most likely answers are apart, in standard deviations of one vote.

    A majority of k samples is right with probability Phi(separation * sqrt(k)), by the normal approximation.
    """
    first, second = top_two(shares)
    apart = first - second
    return apart / np.sqrt(np.maximum(first + second - apart**2, 1e-12))


def clusters(values: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in one dimension from quantiles: centres in rising order and the share of the values in each."""
    number = min(number, np.unique(values).size)
    centres = np.quantile(values, (np.arange(number) + 0.5) / number)
    for _ in range(100):
        nearest = np.abs(values[:, None] - centres).argmin(axis=1)
        moved = np.array([values[nearest == i].mean() if (nearest == i).any() else centres[i] for i in range(number)])
        if np.allclose(moved, centres):
            break
        centres = moved
    shares = np.bincount(nearest, minlength=number) / values.size
    return centres[shares > 0], shares[shares > 0]


def cluster_budgets(centres: np.ndarray, shares: np.ndarray, mean: float, least: int, most: int) -> np.ndarray:
    """Samples per question of every cluster: one by one to the cluster whose majority gains most by it.

    A cluster that cannot be raised without passing `mean` samples per question is left out from then on.
    """
    from scipy.special import ndtr  # heavy: only where it is needed

    budgets = np.full(centres.size, least)
    spent = float(least)
    rising = np.ones(centres.size, dtype=bool)
    while rising.any():
        gains = ndtr(centres * np.sqrt(budgets + 1.0)) - ndtr(centres * np.sqrt(budgets))
        best = int(np.argmax(np.where(rising, gains, -1.0)))
        if budgets[best] < most and spent + shares[best] <= mean + 1e-9:
            budgets[best] += 1
            spent += shares[best]
        else:
            rising[best] = False
    return budgets
