"""ThreadWeaver: sequential text with blocks of parallel threads, joined as text."""

from __future__ import annotations

import numpy as np

from simulator.strategies.registry import Share, assumed, published, strategy
from simulator.workload.lengths import Lengths

SELF_TRAINED = "Table 8, self-trained trajectories"


@strategy(
    title="adaptive parallel threads (ThreadWeaver)",
    source="arXiv:2512.07843",
    parameters={
        "sequential_tok": assumed(
            "tokens that an answer without parallel blocks has",
            "derived: mean of 7.2k on MATH500 with Qwen3-8B, Table 1; the spread is assumed",
        ),
        "block_users": published("share of answers that use parallel blocks at all", "85.2 % on AIME24, Table 2"),
        "growth": assumed(
            "tokens of an answer with blocks over those of one without: outlines, and threads that repeat each other",
            f"derived: 11,176 over 10,377 tokens, {SELF_TRAINED} against sequential ones",
            most=10.0,
        ),
        "blocks": published("parallel blocks per answer that uses them", f"4.00 in the mean, {SELF_TRAINED}"),
        "block_share": published("share of such an answer's tokens inside blocks", f"0.68, {SELF_TRAINED}"),
        "threads": published("threads per block, in the mean", f"2.46, {SELF_TRAINED}", 1, 64),
        "thread_spread": assumed(
            "standard deviation of the logarithm of the thread lengths inside a block",
            f"derived: 11,176 tokens with 9,153 on the critical path ({SELF_TRAINED}) mean that the longest of 2.46 "
            "threads has 73 % of its block, as lognormal lengths of this spread have",
            most=5.0,
        ),
        "marker_tok": assumed("tokens of a marker that the client writes", "'<Thread> 2:' and the like"),
    },
    assumptions=(
        "text outside blocks is spread evenly before, between and behind them, and all blocks have the same length",
        "lengths of threads are lognormal (the paper gives means only); the longest thread closes its block",
        "the client takes no time between two requests",
    ),
    aliases=("thread_weaver",),
)
def threadweaver(
    run,
    sequential_tok: Lengths = "lognormal:7200:0.5",
    block_users: Share = 0.852,
    growth: float = 1.077,
    blocks: int = 4,
    block_share: Share = 0.68,
    threads: float = 2.46,
    thread_spread: float = 1.45,
    marker_tok: int = 4,
):
    """ThreadWeaver (arXiv:2512.07843): the model writes on its own until it opens a parallel block; the client then
    sends one request per thread, which share the context so far, waits for the slowest thread (a barrier), and appends
    the texts of all threads to the context. The engine finds the context and the first thread in its prefix cache; the
    second to last thread are prefilled again. Some answers never open a block and are one chain of thought.
    """
    tokens = sequential_tok.draw(run.rng)
    if not run.chance(block_users):
        return (yield run.generate(run.problem, "answer", tokens))
    tokens = round(growth * tokens)
    inside = round(block_share * tokens)
    segments = split_tokens(tokens - inside, np.ones(blocks + 1))
    context = run.problem
    for segment_tok, block_tok in zip(segments, split_tokens(inside, np.ones(blocks))):
        context += run.text((yield run.generate(context, "segment", segment_tok)))
        width = int(threads) + run.chance(threads % 1.0)
        lengths = split_tokens(block_tok, np.exp(thread_spread * run.rng.standard_normal(width)))
        starts = [run.instruction(f"thread {number}", marker_tok) for number in range(width)]
        written = yield run.all(run.generate(context + start, "thread", n) for start, n in zip(starts, lengths))
        for start, thread in zip(starts, written):
            context += start + run.text(thread)
        context += run.instruction("end of threads", marker_tok)
    return (yield run.generate(context, "answer", segments[-1]))


def split_tokens(tokens: int, weights: np.ndarray) -> list[int]:
    """`tokens` in whole parts: one for each part, the rest in proportion to `weights` (n,)."""
    edges = np.rint(np.cumsum(weights) / np.sum(weights) * max(0, tokens - len(weights)))
    return [1 + int(part) for part in np.diff(edges, prepend=0.0)]
