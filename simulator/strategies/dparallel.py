"""dParallel: a distilled diffusion model that is certain of many tokens at once."""

from __future__ import annotations

from simulator.strategies.diffusion import (
    SAMPLED_WHOLE,
    answer_note,
    block_note,
    certain_passes,
    check_blocks,
    check_rate,
    draw_answer,
    gen_note,
    unmask,
)
from simulator.strategies.registry import assumed, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="diffusion decoding by entropy threshold (dParallel)",
    source="arXiv:2509.26488",
    parameters={
        "gen_tok": gen_note,
        "block_tok": block_note,
        "tokens_per_pass": assumed(
            "tokens that a pass unmasks in the mean", "derived: LLaDA-8B on GSM8K: 256 tokens in 30 passes", least=1
        ),
        "answer_tok": answer_note,
    },
    assumptions=(
        SAMPLED_WHOLE,
        "passes of a block: 1 + Binomial, with the mean that tokens_per_pass says",
        "a block of nothing but padding takes one pass",
    ),
    diffusion=True,
)
def dparallel(run, gen_tok: int = 256, block_tok: int = 32, tokens_per_pass: float = 8.53, answer_tok: Lengths = "256"):
    """dParallel (arXiv:2509.26488): as LLaDA, but a pass unmasks every position of the block whose entropy is below a
    threshold (0.45 or 0.5), and the model was distilled to become certain of many positions at once. How many passes a
    block takes depends on the text; only their mean is published. There is no cache.
    """
    check_blocks("dparallel", gen_tok, block_tok)
    check_rate("dparallel", tokens_per_pass, block_tok)
    answer = draw_answer(run, answer_tok, gen_tok)
    passes = certain_passes(run.rng, answer, gen_tok, block_tok, tokens_per_pass)
    return (yield unmask(run, answer, gen_tok, block_tok, passes))
