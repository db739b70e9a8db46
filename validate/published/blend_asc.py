"""Blend-ASC: how many samples it saves, on answer distributions of our own."""

from __future__ import annotations

import numpy as np

from simulator.strategies.voting import agreement, least_settled
from validate.published.comparison import Comparison
from validate.published.numbers import Number, numbers
from validate.published.pets import CONCENTRATIONS, POOL, QUESTIONS, QuestionSet, distribution, ratio, reached, setup

TITLE = "Optimal Self-Consistency (Blend-ASC, arXiv:2511.12309)"
ABOUT = (
    "Samples of self-consistency over those of Blend-ASC for the same agreement with the majorities of pools of "
    "answers. The published factor is a mean over models and tasks whose answer distributions are not printed."
)
LEVEL = 0.95
SETS = 7
MEANS = (2, 4, 6, 8, 12, 16, 20, 24, 32, 40)  # budgets tried, samples per question
UNKNOWN = (
    "no target: the figure depends on how often samples agree, which is not printed; the formula of the blend is not "
    "at hand either"
)


def compare() -> list[Comparison]:
    """The factor of the second version of the paper, and that of the first, which it replaces."""
    factors = {concentration: _saved(concentration) for concentration in CONCENTRATIONS}
    published = numbers(strategy="Blend-ASC", metric="sample reduction")
    return [_row(found, *item) for found in published for item in factors.items()]


def _saved(concentration: float) -> tuple[float, float]:
    """Samples of self-consistency over those of Blend-ASC for the same agreement, and the standard error over sets."""
    rng = np.random.default_rng(0)
    needed = []
    for _ in range(SETS):
        questions = QuestionSet.draw(rng, concentration)
        blend = reached([(float(mean), _agreement(questions, mean)) for mean in MEANS], LEVEL)
        needed.append((reached(questions.uniform(), LEVEL), blend))
    return ratio(*np.array(needed).T)


def _agreement(questions: QuestionSet, mean: int) -> float:
    """When the budget is spent; nothing is frozen, because the paper compares at equal budgets."""
    counts, taken = questions.votes(1), np.ones(QUESTIONS, dtype=int)
    while asked := least_settled(counts, mean * QUESTIONS, at_once=1, limit=POOL, confidence=1.0):
        counts[asked[0], questions.pools[asked[0], taken[asked[0]]]] += 1
        taken[asked[0]] += 1
    return agreement(counts, questions.wanted)


def _row(found: Number, concentration: float, factor: tuple[float, float]) -> Comparison:
    version = "v2" if "v2" in found.source else "v1"
    return Comparison(
        "blend_asc",
        f"sample reduction, {found.config} ({version}), Dirichlet({concentration:g})",
        found.unit,
        found.value,
        factor[0],
        None,
        status=found.status,
        source=found.source,
        setup=f"{setup(SETS)}; {100.0 * LEVEL:g} % agreement, at_once=1, limit={POOL}, confidence=1",
        assumed=(
            distribution(concentration),
            "the two rules are blended as a mean, weighted by the share of the budget spent",
        ),
        reason=UNKNOWN if version == "v2" else f"restated as 4.8 by the authors; {UNKNOWN}",
        spread=factor[1],
    )
