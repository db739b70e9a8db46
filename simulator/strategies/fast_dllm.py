"""Fast-dLLM: an approximate cache per block, and parallel decoding above a confidence threshold."""

from __future__ import annotations

from simulator.strategies.diffusion import (
    CACHES,
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
from simulator.strategies.registry import published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="diffusion decoding with block caches (Fast-dLLM)",
    source="arXiv:2505.22618",
    parameters={
        "gen_tok": gen_note,
        "block_tok": block_note,
        "cache": published(
            "what a pass within a block need not compute: none, the prefix, or prefix and suffix (dual)",
            "the paper uses the prefix cache unless it says otherwise",
            choices=CACHES,
        ),
        "tokens_per_pass": published(
            "tokens that a pass unmasks in the mean while there is text to unmask; 1 is without parallel decoding",
            "LLaDA-8B on GSM8K, 256 tokens, threshold 0.9, with cache: 3.01 tokens per step",
            least=1,
        ),
        "answer_tok": answer_note,
    },
    assumptions=(
        SAMPLED_WHOLE,
        "passes of a block: 1 + Binomial, with the mean that tokens_per_pass says; 2 + Binomial with a cache, since "
        "the released code computes a block once more behind the pass that refreshes the cache",
        "a block of nothing but padding takes the fewest passes: one, or two with a cache",
    ),
    aliases=("fastdllm",),
    diffusion=True,
)
def fast_dllm(
    run,
    gen_tok: int = 256,
    block_tok: int = 32,
    cache: str = "prefix",
    tokens_per_pass: float = 3.01,
    answer_tok: Lengths = "256",
):
    """Fast-dLLM (arXiv:2505.22618): the first pass of a block computes the whole sequence and keeps its keys and
    values; the other passes of the block compute only the block and what is behind it (prefix cache), or the block
    alone (dual cache). A pass unmasks every position whose confidence is above a threshold (0.9), at least one. How
    many that are depends on the text: the mean is a parameter.
    """
    check_blocks("fast_dllm", gen_tok, block_tok)
    check_rate("fast_dllm", tokens_per_pass, block_tok)
    answer = draw_answer(run, answer_tok, gen_tok)
    least = 1 if cache == "none" else 2
    passes = certain_passes(run.rng, answer, gen_tok, block_tok, tokens_per_pass, least)
    return (yield unmask(run, answer, gen_tok, block_tok, passes, cache))
