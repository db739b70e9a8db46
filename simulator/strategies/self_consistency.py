"""Self-consistency: many samples of one prompt and a majority vote."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="self-consistency (majority vote)",
    source="arXiv:2203.11171",
    parameters={
        "samples": published(
            "samples drawn from the one prompt", "the majority-of-8 baseline of arXiv:2512.00466, Qwen3-32B on AIME25"
        ),
        **solving_notes,
    },
    assumptions=(
        "the majority vote takes no time on the GPU",
        "the vote waits for the longest sample, whose tokens are B_seq",
    ),
    aliases=("sc", "majority", "majority_vote"),
)
def self_consistency(
    run, samples: int = 8, thinking_tok: Lengths = THINKING, answer_tok: Lengths = ANSWER, budget_tok: int = BUDGET
):
    """Self-consistency (arXiv:2203.11171): `samples` calls fork from one prompt, whose KV cache they share, each
    thinks and answers on its own, and a majority vote over the answers waits for the slowest.
    """
    length = attempt(thinking_tok, answer_tok, budget_tok)
    return (yield run.all(run.samples(samples, run.problem, "sample", length)))
