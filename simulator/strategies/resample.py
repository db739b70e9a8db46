"""Resampling: attempts until a verifier that can err accepts one."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import Share, assumed, published, strategy
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds

MODEL = "the model of arXiv:2411.17501 in the authors' repository"


def acceptance(correct: float, false_negative: float, false_positive: float) -> float:
    """Probability that one attempt is accepted: p (1 - FN) + (1 - p) FP, p that it is correct."""
    return correct * (1.0 - false_negative) + (1.0 - correct) * false_positive


@strategy(
    title="resampling with an imperfect verifier",
    source="arXiv:2411.17501",
    parameters={
        "attempts": assumed("attempts K at most", "the best K is often below 10 (arXiv:2411.17501)"),
        "at_once": published("attempts that run side by side", "one after the other in arXiv:2411.17501"),
        "hard": published("share of hard problems", MODEL),
        "correct_easy": published("probability that an attempt at an easy problem is correct", MODEL),
        "correct_hard": published("probability that an attempt at a hard problem is correct", MODEL),
        "false_negative": published("probability that a correct attempt is rejected", MODEL),
        "false_positive": published("probability that a wrong attempt is accepted", MODEL),
        "verify_s": assumed("seconds that the verifier takes, off the GPU", "a suite of unit tests; unpublished"),
        **solving_notes,
    },
    assumptions=(
        "attempts do not read one another, nor what the verifier says",
        "attempts that run side by side all run to their end, also when one of them is accepted",
        "if none is accepted, the last attempt is the answer",
    ),
    aliases=("resampling", "flaws"),
)
def resample(
    run,
    attempts: int = 10,
    at_once: int = 1,
    hard: Share = 0.42,
    correct_easy: Share = 0.87,
    correct_hard: Share = 0.13,
    false_negative: Share = 0.0,
    false_positive: Share = 0.25,
    verify_s: Seconds = "2",
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
):
    """Resampling (The Limits of Inference Scaling Through Resampling, arXiv:2411.17501): a verifier such as a suite of
    unit tests checks each attempt, and the next one is made until one is accepted or `attempts` have been made. The
    verifier errs both ways, so that an accepted attempt may be wrong; problems are easy or hard. With `at_once` > 1
    attempts are made in waves, which is faster and wastes what runs beside an accepted one.
    """
    length = attempt(thinking_tok, answer_tok, budget_tok)
    correct = correct_hard if run.chance(hard) else correct_easy
    accepted = acceptance(correct, false_negative, false_positive)

    def tried():
        call = yield run.generate(run.problem, "attempt", length)
        yield run.wait(verify_s, "verify")
        return call, run.chance(accepted)

    for made in range(0, attempts, at_once):
        wave = yield run.branches(tried() for _ in range(min(at_once, attempts - made)))
        for call, passes in wave:
            if passes:
                return run.accept(call)
    return call
