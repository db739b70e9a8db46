"""ParallelBench: unmasking policies of diffusion models side by side."""

from __future__ import annotations

from simulator.errors import UserError
from simulator.strategies.diffusion import (
    CACHES,
    SAMPLED_WHOLE,
    answer_note,
    certain_passes,
    check_blocks,
    check_rate,
    draw_answer,
    fixed_passes,
    unmask,
)
from simulator.strategies.registry import published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="diffusion decoding by fixed number or threshold (ParallelBench)",
    source="arXiv:2510.04767",
    parameters={
        "gen_tok": published("max_tokens: masked positions behind the prompt", "the comparison with vLLM: 128"),
        "block_tok": published(
            "block_length: positions that are unmasked before the next block begins", "the comparison with vLLM: 128"
        ),
        "policy": published(
            "fixed: every pass unmasks the same number of tokens; threshold: those that are certain enough",
            "both are compared; steps 64 or 128 in the comparison with vLLM",
            choices=("fixed", "threshold"),
        ),
        "tokens_per_pass": published(
            "tokens that a pass unmasks: exactly (fixed) or in the mean (threshold)",
            "128 tokens in 64 steps, the comparison with vLLM",
            least=1,
        ),
        "cache": published(
            "what a pass within a block need not compute: none, the prefix, or prefix and suffix (dual)",
            "compared with and without; the grid has none",
            choices=CACHES,
        ),
        "answer_tok": answer_note,
    },
    assumptions=(
        SAMPLED_WHOLE,
        "threshold: passes of a block are 1 + Binomial, with the mean that tokens_per_pass says",
        "a cache is taken to be that of Fast-dLLM",
    ),
    aliases=("parallel_bench",),
    diffusion=True,
)
def parallelbench(
    run,
    gen_tok: int = 128,
    block_tok: int = 128,
    policy: str = "fixed",
    tokens_per_pass: float = 2.0,
    cache: str = "none",
    answer_tok: Lengths = "128",
):
    """ParallelBench (arXiv:2510.04767): what parallel decoding costs in quality depends on how a pass chooses the
    tokens that it unmasks. The top k of every pass make a fixed number of passes, whatever the text; a threshold on
    confidence makes as many as the text needs. Block length and tokens per pass span the trade-off.
    """
    check_blocks("parallelbench", gen_tok, block_tok)
    check_rate("parallelbench", tokens_per_pass, block_tok)
    answer = draw_answer(run, answer_tok, gen_tok)
    if policy == "threshold":
        least = 1 if cache == "none" else 2
        passes = certain_passes(run.rng, answer, gen_tok, block_tok, tokens_per_pass, least)
    elif tokens_per_pass != int(tokens_per_pass):
        raise UserError(
            f"strategy 'parallelbench', parameter 'tokens_per_pass': found {tokens_per_pass:g}, expected a whole "
            "number under policy fixed"
        )
    else:
        passes = fixed_passes(gen_tok, block_tok, int(tokens_per_pass))
    return (yield unmask(run, answer, gen_tok, block_tok, passes, cache))
