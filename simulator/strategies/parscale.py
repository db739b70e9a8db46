"""ParScale: one chain of thought on a model that computes parallel streams."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="parallel streams in every pass (ParScale)",
    source="arXiv:2505.10475",
    parameters={
        "streams": published("parallel streams P of the model", "the headline of the paper: P = 8", most=64),
        **solving_notes,
    },
    assumptions=(
        "P copies of every sequence pass through the layers, each behind 48 learned prefix tokens; embedding and "
        "output head are computed once (published)",
        "the model takes the shape of the one named, with an aggregation of (h + 1) h P parameters on top (published)",
    ),
    streams="streams",
)
def parscale(
    run,
    streams: int = 8,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
):
    """ParScale (arXiv:2505.10475): every forward pass carries P copies of the sequence, told apart by prefixes of their
    own, and a small network merges the outputs into one token. The text is as long as without; each step computes and
    keeps P times as much behind the same weights. The chain itself is that of a single chain of thought.
    """
    return (yield run.generate(run.problem, "answer", attempt(thinking_tok, answer_tok, budget_tok)))
