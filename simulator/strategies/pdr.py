"""Parallel-distill-refine."""

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
    title="parallel-distill-refine",
    source="arXiv:2510.01123",
    parameters={
        "rounds": assumed(
            "rounds R, the last of which writes the answer", "R of the reported points is unknown; 2 is the least"
        ),
        "width": assumed(
            "drafts M per round before the last", "M of the reported points is unknown; as many as self_consistency"
        ),
        **solving_notes,
        "workspace_tok": assumed("tokens that a distilling call writes", "unpublished; a page of notes"),
        "kappa_tok": assumed("limit kappa of the workspace, where it is cut", "kappa is unknown; twice the workspace"),
        "instruction_tok": instruction_note,
    },
    assumptions=(
        "the last round has one draft, M_R = 1, which is the answer (published)",
        "distilling is one call that summarises all drafts without thinking; the paper also has top-k and random-k",
        "drafts are read whole, thoughts included",
    ),
    aliases=("parallel_distill_refine",),
)
def pdr(
    run,
    rounds: int = 2,
    width: int = 8,
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
    workspace_tok: Lengths = "512",
    kappa_tok: int = 1024,
    instruction_tok: int = 64,
):
    """Parallel-distill-refine (arXiv:2510.01123): in each round but the last, `width` drafts are written in parallel
    from problem + workspace, each cut at the budget b; when the slowest has ended, one call reads the problem and all
    drafts and distills them into a new workspace of at most kappa tokens. The last round writes one draft, the answer.
    """
    length = attempt(thinking_tok, answer_tok, budget_tok)
    distill = run.instruction("distill", instruction_tok)
    workspace = run.empty()
    for _ in range(rounds - 1):
        drafts = yield run.all(run.samples(width, run.problem + workspace, "draft", length))
        prompt = run.problem + run.text(drafts) + distill
        workspace = run.text((yield run.generate(prompt, "distill", workspace_tok, max_tok=kappa_tok)))
    return (yield run.generate(run.problem + workspace, "answer", length))
