"""How likely single samples are correct: a number, a beta distribution over questions, or a CSV file by question.

What follows from it goes through one vector: how many of k samples of a question are correct (`correct_pmf`), times one
of the rules of `simulator.planning.accuracy.selection`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from simulator.errors import UserError
from simulator.planning.accuracy.counts import beta_binomial, binomial, hypergeometric
from simulator.planning.accuracy.selection import ceiling, vote
from simulator.profile import Z90

NODES = 64  # of the quadrature over a beta distribution
SYNTAX = "a number from 0 to 1, beta:A:B, or a CSV file by question"


@dataclass(frozen=True)
class Estimate:
    """An accuracy from 0 to 1. per_question (questions,): its values by question; None where nobody gave questions."""

    value: float
    low: float
    high: float
    per_question: np.ndarray | None = None


class Success(ABC):
    """The chances of success of single samples. text: as it was given; questions: by name, empty where there are none.

    wrong: how the wrong samples of each question are spread over wrong answers; None where nobody said.
    """

    text: str
    questions: tuple[str, ...] = ()
    wrong: tuple[np.ndarray, ...] | None = None

    @abstractmethod
    def correct_pmf(self, samples: int) -> np.ndarray:
        """[q, c]: chance that c of so many samples of question q are correct, shape (questions or 1, samples + 1)."""

    @abstractmethod
    def chances(self) -> tuple[np.ndarray, np.ndarray]:
        """(chances of success, their weights) over which a mean may be taken; shapes (n,), weights add up to 1."""

    def accuracy(self, rule: np.ndarray) -> Estimate:
        """Accuracy under a rule of selection, shape (samples + 1,); 90 % interval over the choice of questions."""
        return self._estimate(self.correct_pmf(len(rule) - 1) @ rule)

    def vote(self, samples: int, wrong_answers: int = 1) -> Estimate:
        """Accuracy of a majority vote; wrong samples as the file says, else spread evenly over so many answers."""
        if self.wrong is None:
            return self.accuracy(vote(samples, np.full(wrong_answers, 1.0 / wrong_answers)))
        pmf = self.correct_pmf(samples)
        rules = np.array([vote(samples, tuple(shares)) for shares in self.wrong])
        return self._estimate((pmf * rules).sum(axis=1))

    def ceiling(self, false_negative: float, false_positive: float) -> float:
        """Accuracy that a verifier with these error rates does not pass, however many samples; mean over questions."""
        chance, weight = self.chances()
        return float(weight @ ceiling(chance, false_negative, false_positive))

    def _estimate(self, values: np.ndarray) -> Estimate:
        mean = float(np.clip(values.mean(), 0.0, 1.0))
        if len(values) < 2:
            return Estimate(mean, mean, mean)
        half = Z90 * float(values.std(ddof=1)) / math.sqrt(len(values))
        return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), values)


@dataclass(frozen=True)
class Known(Success):
    """Chances by question, shape (questions,); one chance stands for all questions."""

    text: str
    p: np.ndarray
    questions: tuple[str, ...] = ()
    wrong: tuple[np.ndarray, ...] | None = None

    def correct_pmf(self, samples: int) -> np.ndarray:
        return binomial(np.arange(samples + 1), samples, self.p[:, None])

    def chances(self) -> tuple[np.ndarray, np.ndarray]:
        return self.p, np.full(len(self.p), 1.0 / len(self.p))


@dataclass(frozen=True)
class Counted(Success):
    """c of n drawn samples of each question were correct, shapes (questions,).

    k samples are taken as k of the n without replacement, which is without bias for any k up to the smallest n: for
    pass@k it is 1 - C(n - c, k) / C(n, k), the estimator of Chen et al. (arXiv:2107.03374, equation 1).
    """

    text: str
    n: np.ndarray
    c: np.ndarray
    questions: tuple[str, ...] = ()

    def correct_pmf(self, samples: int) -> np.ndarray:
        if samples > self.n.min():
            least = int(self.n.argmin())
            raise UserError(
                f"{self.text}: question '{self.questions[least]}' has n = {self.n[least]} samples, which say nothing "
                f"without bias of {samples}; expected n >= {samples}, or a column p"
            )
        return hypergeometric(np.arange(samples + 1), self.c[:, None], self.n[:, None], samples)

    def chances(self) -> tuple[np.ndarray, np.ndarray]:
        return self.c / self.n, np.full(len(self.n), 1.0 / len(self.n))


@dataclass(frozen=True)
class Beta(Success):
    """Chances that are spread over questions as Beta(a, b); so are the correct ones of k beta-binomial."""

    text: str
    a: float
    b: float

    def correct_pmf(self, samples: int) -> np.ndarray:
        return beta_binomial(np.arange(samples + 1), samples, self.a, self.b)[None, :]

    def chances(self) -> tuple[np.ndarray, np.ndarray]:
        from scipy.special import roots_jacobi  # heavy: only where it is needed

        nodes, weights = roots_jacobi(NODES, self.b - 1.0, self.a - 1.0)
        return (nodes + 1.0) / 2.0, weights / weights.sum()


def parse_success(text: str | float) -> Success:
    """What a user says of single samples: a number, beta:A:B, or a file (`read_success`). UserError if it is none."""
    from pathlib import Path

    from simulator.planning.accuracy.success_file import read_success

    said = str(text).strip()
    if said.startswith("beta:"):
        return _beta(said)
    try:
        chance = float(said)
    except ValueError:
        if Path(said).exists() or said.lower().endswith(".csv") or "/" in said:
            return read_success(said)
        raise UserError(f"success '{said}': expected {SYNTAX}") from None
    if not 0.0 <= chance <= 1.0:
        raise UserError(f"success '{said}': expected {SYNTAX}")
    return Known(said, np.array([chance]))


def _beta(said: str) -> Beta:
    try:
        a, b = (float(part) for part in said.removeprefix("beta:").split(":"))
    except ValueError:
        raise UserError(f"success '{said}': expected beta:A:B, two numbers above 0, as beta:2:3") from None
    if not (0.0 < a <= 1e6 and 0.0 < b <= 1e6):
        raise UserError(f"success '{said}': expected beta:A:B with A and B above 0, at most 1e6")
    return Beta(said, a, b)
