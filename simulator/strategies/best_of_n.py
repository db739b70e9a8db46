"""Best of n: many samples, a judge's score for each, the best one wins."""

from __future__ import annotations

from simulator.strategies.common import (
    ANSWER,
    BUDGET,
    THINKING,
    attempt,
    instruction_note,
    solving_notes,
)
from simulator.strategies.registry import assumed, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="best of n with a judge",
    source="arXiv:2110.14168",
    parameters={
        "samples": assumed(
            "samples drawn from the one prompt",
            "as many as self_consistency takes; arXiv:2506.20544 draws 5, arXiv:2110.14168 draws 100",
        ),
        **solving_notes,
        "judge_tok": assumed("tokens that the judge writes per sample", "a score of one or two digits in a phrase"),
        "instruction_tok": instruction_note,
    },
    assumptions=(
        "the judge scores without thinking, and starts when all samples are there",
        "a judge's prompt begins with the problem and the sample, so that their KV cache is reused where the judge is "
        "the model that wrote them",
        "every sample is equally likely to win",
    ),
    aliases=("bon",),
    roles={"reward": "the judge or reward model that scores each sample"},
)
def best_of_n(
    run,
    samples: int = 8,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
    judge_tok: Lengths = "8",
    instruction_tok: int = 64,
):
    """Best of n (arXiv:2110.14168; with a language model as judge as in arXiv:2506.20544): `samples` calls fork from
    one prompt; when all have ended, one short scoring call per sample reads problem and sample, all of them in one
    batch; the sample with the best score is the answer.
    """
    length = attempt(thinking_tok, answer_tok, budget_tok)
    drafts = yield run.all(run.samples(samples, run.problem, "sample", length))
    question = run.instruction("judge", instruction_tok)
    verdicts = yield run.all(
        run.generate(run.problem + run.text(draft) + question, "judge", judge_tok, role="reward") for draft in drafts
    )
    return run.pick(verdicts)
