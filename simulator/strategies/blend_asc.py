"""Blend-ASC: a budget of samples shared by the questions that need them."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import Share, assumed, strategy
from simulator.strategies.voting import Votes, answer_notes, check_limit, draw_shares, least_settled
from simulator.workload.lengths import Lengths


@strategy(
    title="adaptive self-consistency over a question set (Blend-ASC)",
    source="arXiv:2511.12309",
    parameters={
        "samples": assumed(
            "budget: samples per question, in the mean", "any budget fits; as pets_offline has by default"
        ),
        "at_once": assumed(
            "samples per round, for different questions: 1 is version 1 of the paper", "its first version"
        ),
        "limit": assumed("samples of one question at most", "as PETS; without a limit one tie takes the whole budget"),
        "confidence": assumed(
            "probability that a question's leader is right, from which on it is frozen; 1 freezes none",
            "the threshold of adaptive consistency, arXiv:2305.11860",
        ),
        **answer_notes,
        **solving_notes,
    },
    assumptions=(
        "every question gets its first sample in one wave; a round ends with its slowest sample",
        "the rules are blended as a mean, weighted by the share of the budget spent; the paper's blend is not at hand",
        "the answers of a question's samples are independent draws from that question's shares",
    ),
    questions=30,
)
def blend_asc(
    run,
    samples: int = 16,
    at_once: int = 1,
    limit: int = 64,
    confidence: Share = 0.95,
    answers: int = 4,
    concentration: float = 1.0,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
):
    """Blend-ASC (arXiv:2511.12309): self-consistency on a question set, where each next sample goes to the question
    whose two leading answers are least separated. Doubt is measured by the Beta posterior of adaptive consistency while
    the budget is fresh and by the martingale of PPR-1v1 towards its end. Settled questions are frozen; all is over when
    every question is frozen or the budget is spent. Version 2 gives several samples at a time.
    """
    check_limit("blend_asc", samples, limit)
    length = attempt(thinking_tok, answer_tok, budget_tok)
    questions = len(run.problems)
    votes = Votes(run.rng, draw_shares(run.rng, questions, answers, concentration))
    asked = list(range(questions))
    while asked:
        calls = yield run.all([run.generate(run.problems[question], "sample", length) for question in asked])
        votes.cast(asked, calls)
        asked = least_settled(votes.counts, samples * questions, at_once, limit, confidence)
    return votes.winners()
