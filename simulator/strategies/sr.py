"""Sequential refinement: parallel-distill-refine with one draft per round."""

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
    title="sequential refinement",
    source="arXiv:2510.01123",
    parameters={
        "rounds": assumed("drafts written one after the other", "R of the reported points is unknown"),
        **solving_notes,
        "workspace_tok": assumed("tokens that a distilling call writes", "unpublished; a page of notes"),
        "kappa_tok": assumed("limit kappa of the workspace, where it is cut", "kappa is unknown; twice the workspace"),
        "instruction_tok": instruction_note,
    },
    assumptions=(
        "distilling is one call that summarises the draft without thinking",
        "drafts are read whole, thoughts included",
    ),
    aliases=("sequential_refinement",),
)
def sr(
    run,
    rounds: int = 3,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
    workspace_tok: Lengths = "512",
    kappa_tok: int = 1024,
    instruction_tok: int = 64,
):
    """Sequential refinement (arXiv:2510.01123): parallel-distill-refine with M = 1 in every round. The first draft
    reads the problem; each later one reads the problem, the draft before it and a workspace of at most kappa tokens
    distilled from that draft. The last draft is the answer.
    """
    length = attempt(thinking_tok, answer_tok, budget_tok)
    distill, refine = run.instruction("distill", instruction_tok), run.instruction("refine", instruction_tok)
    draft = yield run.generate(run.problem, "draft", length)
    for _ in range(rounds - 1):
        read = run.problem + run.text(draft)
        workspace = run.text((yield run.generate(read + distill, "distill", workspace_tok, max_tok=kappa_tok)))
        draft = yield run.generate(read + workspace + refine, "draft", length)
    return draft
