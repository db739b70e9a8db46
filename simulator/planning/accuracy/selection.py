"""How one answer is selected of several samples: the chance that it is correct, given how many samples are.

Every rule here is a vector of shape (samples + 1,): entry c is the probability that the answer is correct when c of the
samples are. Times the distribution of c (`Success.correct_pmf`) it is the accuracy. The rules do not look at the order
of samples, so that samples drawn one by one until one is accepted come to the same as samples drawn side by side of
which a random accepted one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.errors import UserError
from simulator.planning.accuracy.counts import binomial
from simulator.strategies.resample import acceptance
from simulator.strategies.voting import agreement

MOST_SAMPLES = 512  # beyond, exact votes over many answers take seconds


def coverage(samples: int) -> np.ndarray:
    """Any correct sample will do: pass@k, the accuracy of a selector that cannot err."""
    return (np.arange(samples + 1) > 0).astype(float)


def mean_success(samples: int) -> np.ndarray:
    """One of the samples at random: the accuracy of a single sample."""
    return np.arange(samples + 1) / samples


def vote(samples: int, wrong_shares: Sequence[float] = (1.0,)) -> np.ndarray:
    """The most frequent answer wins; one of t answers with equally many votes wins 1/t.

    wrong_shares: how wrong samples are spread over the wrong answers, shares that add up to 1. One wrong answer, which
    all wrong samples agree on, is the worst case: the correct answer needs more than half. Exact: the votes of the
    wrong answers are multinomial; the most of them, and how many have as many as the correct one, by going through the
    answers one after the other.
    """
    shares = np.asarray(wrong_shares, dtype=float)
    if samples > MOST_SAMPLES and len(shares) > 1:
        raise UserError(
            f"an exact vote of {samples:,} samples over {len(shares)} wrong answers takes too long; expected at most "
            f"{MOST_SAMPLES} samples, or one wrong answer"
        )
    rest = np.cumsum(shares[::-1])[::-1]  # of an answer and those to come
    chances = np.minimum(1.0, np.divide(shares, rest, out=np.ones_like(shares), where=rest > 0.0))
    taken = [binomial_table(samples, chance) for chance in chances]
    return np.array([_wins(correct, samples - correct, taken) for correct in range(samples + 1)])


def _wins(correct: int, wrong: int, taken: Sequence[np.ndarray]) -> float:
    """Chance that `correct` votes beat `wrong` votes; taken[a][r, v]: chance that v of r votes left go to answer a."""
    if correct == 0 or correct * len(taken) < wrong:
        return 0.0
    if correct > wrong:
        return 1.0
    # left[t, r]: chance that r votes are left for the answers to come, that none had more than `correct`, t as many.
    most_ties = wrong // correct
    left = np.zeros((most_ties + 1, wrong + 1))
    left[0, wrong] = 1.0
    for table in taken:
        left = _one_answer(left, correct, table)
    return float(left[:, 0] @ (1.0 / np.arange(1, most_ties + 2)))


def _one_answer(left: np.ndarray, correct: int, taken: np.ndarray) -> np.ndarray:
    """The votes of one more wrong answer, which gets them with the chances `taken`."""
    most = left.shape[1] - 1
    out = np.zeros_like(left)
    for votes in range(correct + 1):
        flow = left[:, votes:] * taken[votes : most + 1, votes]
        if votes < correct:
            out[:, : most + 1 - votes] += flow
        else:
            out[1:, : most + 1 - votes] += flow[:-1]
    return out


def binomial_table(trials: int, chance: float) -> np.ndarray:
    """[n, k]: chance of k hits in n trials, for n and k up to `trials`."""
    n = np.arange(trials + 1)
    return binomial(n[None, :], n[:, None], chance)


def verifier(samples: int, false_negative: float = 0.0, false_positive: float = 0.0) -> np.ndarray:
    """A verifier accepts correct samples but for a share FN and wrong ones with chance FP; an accepted one is taken.

    If it accepts none, any sample is taken: `resample` answers with its last one. Of A correct and B wrong accepted
    ones a correct one is taken with chance A / (A + B), whose mean is the integral over y from 0 to 1 of the derivative
    with respect to A's share of the generating function, c t (1 - t + t y)^(c-1) (1 - f + f y)^(k-c) with t = 1 - FN
    and f = FP; a polynomial of degree k - 1, which Gauss's rule integrates without error.
    """
    nodes, widths = np.polynomial.legendre.leggauss((samples + 1) // 2 + 1)
    y, weight = (nodes + 1.0) / 2.0, widths / 2.0
    correct = np.arange(samples + 1)[:, None]
    true_rate = 1.0 - false_negative
    of_correct = correct * true_rate * (1.0 - true_rate + true_rate * y) ** np.maximum(correct - 1, 0)
    of_wrong = (1.0 - false_positive + false_positive * y) ** (samples - correct)
    taken = (of_correct * of_wrong) @ weight
    correct = correct[:, 0]
    nothing = false_negative**correct * (1.0 - false_positive) ** (samples - correct)
    return taken + nothing * correct / samples


def resampled(
    success: np.ndarray | float, attempts: int, false_negative: float, false_positive: float
) -> np.ndarray | float:
    """Accuracy of resampling questions whose attempts succeed with these chances, in closed form (arXiv:2411.17501).

    With a = p (1 - FN) + (1 - p) FP: (1 - (1 - a)^K) p (1 - FN) / a, and for K rejected ones the last of them.
    """
    p = np.asarray(success, dtype=float)
    accepted = acceptance(p, false_negative, false_positive)
    rejected = 1.0 - accepted
    found = ceiling(p, false_negative, false_positive) * (1.0 - rejected**attempts)
    return found + rejected ** (attempts - 1) * p * false_negative


def ceiling(success: np.ndarray | float, false_negative: float, false_positive: float) -> np.ndarray:
    """Accuracy that no number of attempts passes: the correct ones' share of what the verifier accepts.

    p (1 - FN) / (p (1 - FN) + (1 - p) FP) of each question (the false-positive ceiling of "Inference Scaling fLaws",
    arXiv:2411.17501). Where the verifier accepts nothing, the answer is a rejected attempt.
    """
    p = np.asarray(success, dtype=float)
    accepted = acceptance(p, false_negative, false_positive)
    share = np.divide(p * (1.0 - false_negative), accepted, out=np.array(p, dtype=float), where=accepted > 0.0)
    return share


# -- by chance, for what is too large to be exact -------------------------------------------------------------------


def drawn_vote(
    success: float, samples: int, wrong_shares: Sequence[float], rng: np.random.Generator, draws: int = 20_000
) -> tuple[float, float]:
    """(accuracy, its standard error at most) of a vote, from so many drawn votes."""
    wrong = np.asarray(wrong_shares, dtype=float)
    chances = np.append((1.0 - success) * wrong / wrong.sum(), success)
    counts = rng.multinomial(samples, chances, size=draws)
    won = agreement(counts, np.full(draws, len(wrong)))
    return won, float(np.sqrt(won * (1.0 - won) / draws))


def drawn_verifier(
    success: float,
    samples: int,
    false_negative: float,
    false_positive: float,
    rng: np.random.Generator,
    draws: int = 20_000,
) -> tuple[float, float]:
    """(accuracy, its standard error) of a verifier that errs, from so many drawn runs of attempts one by one."""
    correct = rng.random((draws, samples)) < success
    passes = rng.random((draws, samples)) < np.where(correct, 1.0 - false_negative, false_positive)
    chosen = np.where(passes.any(axis=1), passes.argmax(axis=1), samples - 1)
    values = correct[np.arange(draws), chosen].astype(float)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(draws))
