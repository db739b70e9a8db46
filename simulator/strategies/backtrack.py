"""One long search trace, or as many direct solutions as the same FLOPs pay for."""

from __future__ import annotations

from simulator.errors import UserError
from simulator.strategies.registry import MAX_CALLS, assumed, published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="sequential search against parallel sampling at equal FLOPs",
    source="arXiv:2504.07052",
    parameters={
        "mode": assumed(
            "sequential: one long trace that backtracks; parallel: direct solutions for the same FLOPs",
            "the paper compares both",
            choices=("sequential", "parallel"),
        ),
        "trace_tok": published("tokens of the long trace", "the longest traces of CountDown, authors' repository"),
        "direct_tok": published("tokens of a direct solution", "CountDown, authors' repository"),
    },
    assumptions=(
        "FLOPs include attention, which grows with the square of a trace's length",
        "direct solutions share the KV cache of the problem, so that its FLOPs count once",
        "picking the best direct solution costs nothing, as in the paper",
    ),
    aliases=("sequential_search",),
)
def backtrack(run, mode: str = "sequential", trace_tok: Lengths = "4096", direct_tok: Lengths = "212"):
    """To Backtrack or Not to Backtrack (arXiv:2504.07052): a model that searches writes one long trace with its errors
    and returns; a model that answers directly is sampled n times in parallel, and the best sample counts. n is what
    the FLOPs of the long trace pay for, so that both cost the same compute and differ in time.
    """
    trace = trace_tok.draw(run.rng)
    if mode == "sequential":
        return (yield run.generate(run.problem, "trace", trace))
    lengths = direct_lengths(run, trace, direct_tok)
    return (yield run.all([run.generate(run.problem, "direct", tokens) for tokens in lengths]))


def direct_lengths(run, trace: int, direct_tok: Lengths) -> list[int]:
    """Tokens of the direct solutions that the FLOPs of a trace pay for together; one at least."""
    problem = run.problem.tokens
    left = run.flop(problem, trace)
    lengths: list[int] = []
    while True:
        tokens = direct_tok.draw(run.rng)
        left -= run.flop(problem, tokens, cached_tok=problem if lengths else 0)
        if lengths and left < 0.0:
            return lengths
        lengths.append(tokens)
        if len(lengths) > MAX_CALLS:
            raise UserError(
                f"strategy 'backtrack', parameter 'direct_tok': found '{direct_tok}', expected solutions so long that "
                f"a trace of {trace} tokens pays for at most {MAX_CALLS:,}"
            )
