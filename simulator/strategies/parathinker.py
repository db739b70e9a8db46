"""ParaThinker: parallel paths that end together, and a summary that attends to all of them."""

from __future__ import annotations

from simulator.strategies.common import THINKING, thinking_note
from simulator.strategies.registry import assumed, published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="native parallel thinking (ParaThinker)",
    source="arXiv:2509.04475",
    parameters={
        "paths": published("paths P that are thought side by side", "the headline of the paper: 8 paths"),
        "thinking_tok": thinking_note,
        "path_tok": published(
            "limit L_max of a path, where it is cut",
            "4K, a point of both figures (1K to 6K with 1.5B parameters, 4K to 24K with 7B)",
        ),
        "summary_tok": assumed("tokens of the summary, which holds the answer", "unpublished; one paragraph"),
        "marker_tok": assumed("tokens that open a path or the summary", "one special token, such as <think3>"),
    },
    assumptions=(
        "all paths stop in the step in which the first one ends (published)",
        "the learned embeddings that tell paths apart cost no time",
    ),
    aliases=("para_thinker", "native_parallel_thinking"),
)
def parathinker(
    run,
    paths: int = 8,
    thinking_tok: Lengths = THINKING,
    path_tok: int = 4096,
    summary_tok: Lengths = "256",
    marker_tok: int = 1,
):
    """ParaThinker (arXiv:2509.04475): P paths fork from the problem, whose KV cache they share, and each opens with a
    token of its own. As soon as the first path ends, or reaches L_max, all of them stop. The summary then attends to
    the KV caches of all paths, which are kept for it: nothing is prefilled again but its opening token.
    """
    openings = [run.problem + run.instruction(f"path {number}", marker_tok) for number in range(paths)]
    thinking = [run.generate(opening, "path", thinking_tok, path_tok, keep=True) for opening in openings]
    yield run.any(thinking)
    run.stop(thinking)
    thinking = yield run.all(thinking)
    summary = run.problem + run.instruction("summary", marker_tok)
    answer = yield run.generate(summary, "summary", summary_tok, attend=thinking)
    run.release(thinking)
    return answer
