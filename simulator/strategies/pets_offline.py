"""PETS, offline: each sample goes to the question where it can tell most about the majority."""

from __future__ import annotations

import numpy as np

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import assumed, published, strategy
from simulator.strategies.voting import MOST_VOTES, Votes, answer_notes, check_limit, draw_shares, gain
from simulator.workload.lengths import Lengths

limit_note = published(
    "samples of one question at most", "pools of 64 answers in the authors' repository", most=MOST_VOTES
)


@strategy(
    title="optimal trajectory allocation over a question set (PETS, offline)",
    source="arXiv:2602.16745",
    parameters={
        "samples": assumed(
            "budget: samples per question, in the mean", "a quarter of 64: the paper saves up to three quarters"
        ),
        "at_once": published("questions per round that get one sample each", "the default of the authors' repository"),
        "limit": limit_note,
        **answer_notes,
        **solving_notes,
    },
    assumptions=(
        "the gain of a sample is computed exactly, where the authors' code estimates it from 500 draws",
        "a round ends with its slowest sample",
        "the answers of a question's samples are independent draws from that question's shares",
    ),
    questions=30,
)
def pets_offline(
    run,
    samples: int = 16,
    at_once: int = 1,
    limit: int = 64,
    answers: int = 4,
    concentration: float = 1.0,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
):
    """PETS, offline (arXiv:2602.16745): all questions are known. Each gets one sample; then, round by round, the
    `at_once` questions with the largest gain get one more, until the budget is spent. The gain is how much one more
    vote can at best raise the probability that the leading answer is the true majority, under a Dirichlet posterior.
    One sample at a time makes a chain as long as the whole budget.
    """
    check_limit("pets_offline", samples, limit)
    length = attempt(thinking_tok, answer_tok, budget_tok)
    questions = len(run.problems)
    votes = Votes(run.rng, draw_shares(run.rng, questions, answers, concentration))
    gains = np.zeros(questions)
    asked, left = list(range(questions)), samples * questions
    while asked:
        calls = yield run.all([run.generate(run.problems[question], "sample", length) for question in asked])
        votes.cast(asked, calls)
        left -= len(asked)
        for question in asked:
            full = votes.counts[question].sum() >= limit
            gains[question] = -1.0 if full else gain(votes.counts[question])
        ranked = np.argsort(-gains, kind="stable")[: min(at_once, left)]
        asked = [int(question) for question in ranked if gains[question] >= 0.0]
    return votes.winners()
