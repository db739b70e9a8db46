"""What the strategies share: the length of one solving call and where its defaults come from."""

from __future__ import annotations

from simulator.strategies.registry import assumed
from simulator.workload.lengths import Lengths, parse_lengths

THINKING = "lognormal:2048:0.5"
ANSWER = "512"
BUDGET = 4096

thinking_note = assumed(
    "tokens that a solving call thinks before it answers",
    "a short-reasoning 8B model; lengths vary widely with model and task (Qwen3-8B writes 7.2k tokens in all on "
    "MATH500, 19.4k on AIME24, arXiv:2512.07843), and are close to lognormal",
)
answer_note = assumed("tokens of the answer behind the thoughts", "a worked solution of one page")
budget_note = assumed(
    "token budget b of one solving call: thoughts and answer are cut here",
    "twice the mean of the thoughts, so that about one call in twelve is cut",
)
solving_notes = {"thinking_tok": thinking_note, "answer_tok": answer_note, "budget_tok": budget_note}
instruction_note = assumed(
    "tokens of the instruction that tells a call how to read its prompt", "a short paragraph; templates are unpublished"
)


def attempt(thinking_tok: Lengths | str | int, answer_tok: Lengths | str | int, budget_tok: int) -> Lengths:
    """Output length of one solving call: thoughts, then the answer, cut at the budget."""
    return (parse_lengths(thinking_tok) + parse_lengths(answer_tok)).at_most(budget_tok)
