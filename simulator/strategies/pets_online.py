"""PETS, online: a question's difficulty says at its arrival how many samples it gets."""

from __future__ import annotations

import numpy as np

from simulator.errors import UserError
from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.pets_offline import limit_note
from simulator.strategies.registry import published, strategy
from simulator.strategies.voting import (
    Votes,
    answer_notes,
    check_limit,
    cluster_budgets,
    clusters,
    draw_shares,
    separation,
)
from simulator.workload.lengths import Lengths


@strategy(
    title="optimal trajectory allocation for a stream of questions (PETS, online)",
    source="arXiv:2602.16745",
    parameters={
        "samples": published("budget: samples per question, in the mean", "the default of the authors' repository"),
        "least": published("samples of one question at least", "the authors' repository"),
        "limit": limit_note,
        "training": published("questions from which the budgets are learnt beforehand", "the authors' repository"),
        "difficulties": published("classes of difficulty, each with its own budget", "the authors' repository"),
        **answer_notes,
        **solving_notes,
    },
    assumptions=(
        "a question arrives when the one before it is answered",
        "its difficulty is known at arrival (the oracle setting of the authors' code)",
        "the training questions were sampled before; their samples are not part of the flight",
        "k samples find the majority with probability Phi(separation * sqrt(k)), by the normal approximation",
    ),
    questions=30,
)
def pets_online(
    run,
    samples: int = 16,
    least: int = 4,
    limit: int = 64,
    training: int = 30,
    difficulties: int = 5,
    answers: int = 4,
    concentration: float = 1.0,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
):
    """PETS, online (arXiv:2602.16745): questions arrive one by one and are given their samples at once. Beforehand,
    training questions are grouped into classes of difficulty, and one sample after the other is given to the class
    whose majority gains most by it, until the mean budget is reached. An arriving question gets the budget of its
    class in one parallel wave.
    """
    check_limit("pets_online", samples, limit)
    if least > samples:
        raise UserError(
            f"strategy 'pets_online', parameter 'least': found {least}, expected at most samples = {samples}"
        )
    length = attempt(thinking_tok, answer_tok, budget_tok)
    known = separation(draw_shares(run.rng, training, answers, concentration))
    centres, weights = clusters(known, difficulties)
    budgets = cluster_budgets(centres, weights, samples, least, limit)
    shares = draw_shares(run.rng, len(run.problems), answers, concentration)
    classes = np.abs(separation(shares)[:, None] - centres).argmin(axis=1)
    votes = Votes(run.rng, shares)
    for question, problem in enumerate(run.problems):
        budget = int(budgets[classes[question]])
        calls = yield run.all(run.samples(budget, problem, "sample", length))
        votes.cast([question] * budget, calls)
    return votes.winners()
