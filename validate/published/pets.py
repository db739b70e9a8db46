"""PETS: how many samples it saves, on answer distributions of our own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simulator.strategies.voting import agreement, cluster_budgets, clusters, draw_shares, gain, separation
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number

TITLE = "PETS (arXiv:2602.16745)"
ABOUT = (
    "Samples saved against the same number for every question, until the questions agree with the majority of their "
    "pools of 64 answers. The published figures are for GPQA, whose pools are not in the authors' repository."
)
QUESTIONS, ANSWERS, POOL, SETS = 60, 4, 64, 16
# Of the Dirichlet distribution that a question's answer shares are drawn from. At 1 every split is equally likely; at
# 0.1 the most frequent answer has 0.85 on average.
CONCENTRATIONS = (1.0, 0.1)
TRAINING, CLASSES, LEAST = 30, 5, 4
CHECKS = 4  # looks at the agreement per question's worth of samples
LEVELS = (1.0, 0.95)

Curve = list[tuple[float, float]]  # samples per question, agreement with the pools


@dataclass(frozen=True)
class QuestionSet:
    """Questions, their answer shares, and the pools of answers that samples are taken from in order."""

    shares: np.ndarray  # (questions, answers)
    pools: np.ndarray  # (questions, POOL)

    @classmethod
    def draw(cls, rng: np.random.Generator, concentration: float) -> QuestionSet:
        shares = draw_shares(rng, QUESTIONS, ANSWERS, concentration)
        return cls(shares, np.array([rng.choice(ANSWERS, size=POOL, p=row) for row in shares]))

    def votes(self, taken: np.ndarray | int) -> np.ndarray:
        """Votes of the first `taken` answers of every pool."""
        taken = np.broadcast_to(taken, QUESTIONS)
        return np.array([np.bincount(pool[:n], minlength=ANSWERS) for pool, n in zip(self.pools, taken)])

    @cached_property
    def wanted(self) -> np.ndarray:
        """The majorities of the pools."""
        return self.votes(POOL).argmax(axis=1)

    def uniform(self) -> Curve:
        """Agreement after the same number of samples for every question."""
        return [(float(n), agreement(self.votes(n), self.wanted)) for n in range(1, POOL + 1)]


def reached(curve: Curve, level: float) -> float:
    """Least samples per question from which on the agreement stays at the level; the whole pool if it never does."""
    least = float(POOL)
    for samples, agreed in reversed(curve):
        if agreed < level - 1e-9:
            break
        least = samples
    return least


def setup(sets: int) -> str:
    """What was drawn."""
    return (
        f"{sets} sets of {QUESTIONS} questions with pools of {POOL} answers, drawn without replacement; behind ± "
        "stands the standard error over sets"
    )


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, float]:
    """Sum of `over` (sets,) by sum of `under` (sets,), and its standard error: every set left out once (jackknife)."""
    without = (over.sum() - over) / (under.sum() - under)
    return float(over.sum() / under.sum()), float(np.sqrt((over.size - 1) * np.var(without)))


def distribution(concentration: float) -> str:
    """What is assumed about the answers."""
    return f"answer shares of every question from Dirichlet({concentration:g}) over {ANSWERS} answers"


def compare() -> list[Comparison]:
    """Offline and online, for perfect agreement (as published) and for 95 %, on two answer distributions."""
    found = []
    for concentration in CONCENTRATIONS:
        needed = _needed(concentration)
        for place, name in enumerate(("offline", "online"), start=1):
            published = number(strategy=f"PETS {name}", metric="sampling budget reduction")
            for at, level in enumerate(LEVELS):
                left, error = ratio(needed[:, place, at], needed[:, 0, at])
                found.append(_row(name, published, level, concentration, 1.0 - left, error))
    return found


def _needed(concentration: float) -> np.ndarray:
    """Samples per question, (sets, 3, levels): of the uniform budget, offline and online, at each of LEVELS."""
    rng = np.random.default_rng(0)
    needed = []
    for _ in range(SETS):
        questions = QuestionSet.draw(rng, concentration)
        curves = (questions.uniform(), _offline(questions), _online(rng, questions, concentration))
        needed.append([[reached(curve, level) for level in LEVELS] for curve in curves])
    return np.array(needed)


def _offline(questions: QuestionSet) -> Curve:
    """One sample at a time to the question with the largest gain."""
    taken = np.ones(QUESTIONS, dtype=int)
    counts = questions.votes(taken)
    gains = np.array([gain(row) for row in counts])
    curve = [(1.0, agreement(counts, questions.wanted))]
    for spent in range(QUESTIONS + 1, QUESTIONS * POOL + 1):
        question = int(np.argmax(gains))
        counts[question, questions.pools[question, taken[question]]] += 1
        taken[question] += 1
        gains[question] = gain(counts[question]) if taken[question] < POOL else -1.0
        if spent * CHECKS % QUESTIONS == 0:
            curve.append((spent / QUESTIONS, agreement(counts, questions.wanted)))
    return curve


def _online(rng: np.random.Generator, questions: QuestionSet, concentration: float) -> Curve:
    """Budgets by class of difficulty, for every mean budget."""
    centres, weights = clusters(separation(draw_shares(rng, TRAINING, ANSWERS, concentration)), CLASSES)
    classes = np.abs(separation(questions.shares)[:, None] - centres).argmin(axis=1)
    curve = []
    for mean in range(LEAST, POOL + 1):
        taken = cluster_budgets(centres, weights, mean, LEAST, POOL)[classes]
        curve.append((float(taken.mean()), agreement(questions.votes(taken), questions.wanted)))
    return curve


def _row(name: str, published: Number, level: float, concentration: float, share: float, error: float) -> Comparison:
    known = ("the difficulty of a question is known at its arrival",) if name == "online" else ()
    return Comparison(
        f"pets_{name}",
        f"samples saved {name}, GPQA, {100.0 * level:g} % agreement, Dirichlet({concentration:g})",
        published.unit,
        float(published.text.removeprefix("up to ")),
        100.0 * float(share),
        None,
        relation="at most",  # "up to"
        status=published.status,
        source=f"{published.source}: {published.text} %",
        setup=setup(SETS),
        assumed=(distribution(concentration), *known),
        reason="no target: published is a bound ('up to'), on answers that are not; the figure depends on how often "
        "samples agree and on the closest question of the set",
        spread=100.0 * error,
    )
