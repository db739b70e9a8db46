"""What the diffusion strategies share: blocks of masked positions, the passes that unmask them, and what caches save.

A diffusion LLM fills gen_length masked positions behind the prompt, block by block. Every forward pass unmasks some of
a block's positions. How many are certain enough depends on the text, so passes are drawn: a block of n tokens takes
1 + Binomial(n - 1, q) passes, as if each further token needed a pass of its own with probability q. The mean is exactly
n / tokens_per_pass.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.errors import UserError
from simulator.schedule import Call, Pass, Run
from simulator.strategies.registry import assumed, published
from simulator.workload.lengths import Lengths, parse_lengths

CACHES = ("none", "prefix", "dual")

gen_note = published("gen_length: masked positions behind the prompt", "the default of the LLaDA evaluations: 256")
block_note = published(
    "block_length: positions that are unmasked before the next block begins", "the default of the evaluations: 32"
)
answer_note = assumed(
    "tokens until the end-of-sequence token, at most gen_tok; what is behind them is padding, not output",
    "answers fill the default gen_length",
)
SAMPLED_WHOLE = "a pass computes the logits of all its positions, as the published codes do"


def check_blocks(name: str, gen_tok: int, block_tok: int) -> int:
    """How many blocks there are; UserError when gen_tok is not a multiple of block_tok."""
    if gen_tok % block_tok:
        raise UserError(
            f"strategy '{name}', parameter 'gen_tok': found {gen_tok}, expected a multiple of block_tok {block_tok}"
        )
    return gen_tok // block_tok


def check_rate(name: str, tokens_per_pass: float, block_tok: int) -> None:
    """UserError when a pass would have to unmask more than a block."""
    if tokens_per_pass > block_tok:
        raise UserError(
            f"strategy '{name}', parameter 'tokens_per_pass': found {tokens_per_pass:g}, expected at most block_tok "
            f"{block_tok}, as a pass unmasks one block"
        )


def draw_answer(run: Run, answer_tok: Lengths | str | int, gen_tok: int) -> int:
    """Tokens until the end-of-sequence token."""
    return min(parse_lengths(answer_tok).draw(run.rng), gen_tok)


def certain_passes(
    rng: np.random.Generator, answer_tok: int, gen_tok: int, block_tok: int, tokens_per_pass: float, least: int = 1
) -> list[int]:
    """Passes of each block where certainty decides: text at `tokens_per_pass` in the mean, `least` for padding."""
    drawn = []
    for first in range(0, gen_tok, block_tok):
        text_tok = min(max(0, answer_tok - first), block_tok)
        further = text_tok - least
        share = (text_tok / tokens_per_pass - least) / further if further > 0 else 0.0
        drawn.append(least + int(rng.binomial(max(0, further), min(1.0, max(0.0, share)))))
    return drawn


def fixed_passes(gen_tok: int, block_tok: int, tokens_per_pass: int) -> list[int]:
    """Passes of each block where every pass unmasks as many tokens."""
    return [math.ceil(block_tok / tokens_per_pass)] * (gen_tok // block_tok)


def stages(prompt_tok: int, gen_tok: int, block_tok: int, passes: list[int], cache: str = "none") -> list[Pass]:
    """The forward passes that unmask all blocks, `passes` of them per block.

    cache: "none" computes the whole sequence in every pass. Otherwise the first pass of a block does, which refreshes
    the keys and values of everything; the others compute the block and what is behind it ("prefix"), or the block
    alone ("dual").
    """
    whole = prompt_tok + gen_tok
    if cache == "none":
        return [Pass(sum(passes), whole)]
    found = []
    for number, count in enumerate(passes):
        behind = block_tok if cache == "dual" else gen_tok - number * block_tok
        found.append(Pass(1, whole))
        if count > 1:
            found.append(Pass(count - 1, behind, whole - behind))
    return found


def unmask(run: Run, answer_tok: int, gen_tok: int, block_tok: int, passes: list[int], cache: str = "none") -> Call:
    """The call that answers the problem in these passes."""
    return run.passes(run.problem, "answer", answer_tok, stages(run.problem.tokens, gen_tok, block_tok, passes, cache))
