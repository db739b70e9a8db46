"""LLaDA's own decoding: a fixed number of full passes."""

from __future__ import annotations

from simulator.errors import UserError
from simulator.strategies.diffusion import (
    SAMPLED_WHOLE,
    answer_note,
    block_note,
    check_blocks,
    draw_answer,
    gen_note,
    unmask,
)
from simulator.strategies.registry import published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="diffusion decoding with fixed steps (LLaDA)",
    source="arXiv:2502.09992",
    parameters={
        "gen_tok": gen_note,
        "block_tok": block_note,
        "steps": published("forward passes over all blocks", "the baseline: one token per pass, 256"),
        "answer_tok": answer_note,
    },
    assumptions=(SAMPLED_WHOLE, "no pass is saved when the answer ends early"),
    diffusion=True,
)
def llada(run, gen_tok: int = 256, block_tok: int = 32, steps: int = 256, answer_tok: Lengths = "256"):
    """LLaDA (arXiv:2502.09992): gen_length masked positions stand behind the prompt and are unmasked block by block,
    the most certain first, as many per pass as the number of steps demands. Attention goes both ways, so there is no
    KV cache: every pass computes the whole sequence. Fewer steps than tokens are the few-step baseline.
    """
    blocks = check_blocks("llada", gen_tok, block_tok)
    if steps % blocks or steps > gen_tok:
        raise UserError(
            f"strategy 'llada', parameter 'steps': found {steps}, expected a multiple of the {blocks} blocks, at most "
            f"gen_tok {gen_tok}"
        )
    answer = draw_answer(run, answer_tok, gen_tok)
    return (yield unmask(run, answer, gen_tok, block_tok, [steps // blocks] * blocks))
