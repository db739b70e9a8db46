"""One chain of thought."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="single chain of thought",
    source="arXiv:2201.11903",
    parameters={**solving_notes},
    aliases=("cot", "chain_of_thought"),
)
def single(run, thinking_tok: Lengths = THINKING, answer_tok: Lengths = ANSWER, budget_tok: int = BUDGET):
    """Chain of thought (arXiv:2201.11903): one call reads the problem, thinks, and answers. Nothing runs in
    parallel, so this is the latency floor per token and the yardstick for every other strategy.
    """
    return (yield run.generate(run.problem, "answer", attempt(thinking_tok, answer_tok, budget_tok)))
