"""RPC: fewer samples, weighed by how probable the model finds them."""

from __future__ import annotations

from simulator.strategies.common import ANSWER, BUDGET, THINKING, attempt, solving_notes
from simulator.strategies.registry import assumed, strategy
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds


@strategy(
    title="reasoning-pruned perplexity consistency (RPC)",
    source="arXiv:2502.00511",
    parameters={
        "samples": assumed(
            "samples drawn from the one prompt",
            "on MATH as accurate as 64 samples of self-consistency, as quoted in notes on arXiv:2510.15444",
        ),
        "prune_s": assumed(
            "seconds in which a CPU prunes and votes", "0.036 s per question, as quoted in notes on arXiv:2510.15444"
        ),
        **solving_notes,
    },
    assumptions=(
        "log-probabilities of the sampled tokens come with them at no cost",
        "pruning begins when all samples are there: it saves votes, no tokens",
    ),
)
def rpc(
    run,
    samples: int = 32,
    prune_s: Seconds = "0.036",
    thinking_tok: Lengths = THINKING,
    answer_tok: Lengths = ANSWER,
    budget_tok: int = BUDGET,
):
    """RPC (arXiv:2502.00511, also 2510.15444): `samples` calls fork from one prompt as in self-consistency. A mixture
    of two Weibull distributions is then fitted to the probabilities of the paths, improbable paths are pruned, and the
    rest vote with their probabilities. On the GPU this is self-consistency with fewer samples.
    """
    drafts = yield run.all(run.samples(samples, run.problem, "sample", attempt(thinking_tok, answer_tok, budget_tok)))
    yield run.wait(prune_s, "prune and vote")
    return drafts
