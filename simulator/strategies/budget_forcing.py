"""Budget forcing: samples of exactly so many tokens, and thoughts that are not allowed to end."""

from __future__ import annotations

from simulator.strategies.registry import assumed, published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="budget forcing",
    source="arXiv:2511.01866",
    parameters={
        "samples": published("samples of the one prompt, side by side", "arXiv:2511.01866 runs 1, 2, 4, 8, 16 and 32"),
        "budget_tok": published(
            "tokens that every sample writes, no more and no fewer", "the Jetson sweeps of the authors' repository"
        ),
        "waits": published(
            "times that a sample's end of thinking is suppressed, 'Wait' put in its place, and the sample goes on",
            "none in arXiv:2511.01866; s1 (arXiv:2501.19393) has 2, 4 and 6",
            least=0,
        ),
        "continuation_tok": assumed("tokens written behind each 'Wait'", "as many as the budget; unpublished"),
    },
    assumptions=(
        "the majority vote takes no time on the GPU",
        "'Wait' is one token; what stands before it is read again as a prefix-cache hit",
    ),
    aliases=("s1", "edge_reasoning"),
)
def budget_forcing(run, samples: int = 8, budget_tok: int = 256, waits: int = 0, continuation_tok: Lengths = "256"):
    """Budget forcing: `samples` calls fork from one prompt and each writes exactly `budget_tok` tokens, because the
    fewest and the most new tokens are both set to the budget (EdgeReasoning, arXiv:2511.01866). None ends early, so
    that nobody waits for stragglers; a majority vote follows. As in s1 (arXiv:2501.19393), each sample can be made to
    think on: `waits` times its end is suppressed and it continues behind the word 'Wait'.
    """
    if not waits:
        return (yield run.all(run.samples(samples, run.problem, "sample", budget_tok)))
    wait = run.instruction("wait", 1)

    def forced():
        call = yield run.generate(run.problem, "sample", budget_tok)
        written = run.text(call)
        for _ in range(waits):
            call = yield run.generate(run.problem + written + wait, "continuation", continuation_tok)
            written += wait + run.text(call)
        return call

    return (yield run.branches(forced() for _ in range(samples)))
