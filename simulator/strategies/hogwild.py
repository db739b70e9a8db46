"""Hogwild! Inference: workers in lock-step on one cache."""

from __future__ import annotations

from simulator.strategies.registry import assumed, published, strategy
from simulator.workload.lengths import Lengths


@strategy(
    title="lock-step workers on one cache (Hogwild! Inference)",
    source="arXiv:2504.06261",
    parameters={
        "workers": assumed("workers W that write at the same time", "the least; the paper has 2 to 4"),
        "steps": assumed(
            "forward passes until the workers have finished: tokens that each of them writes",
            "unpublished; a long chain of thought",
        ),
        "budget_tok": published("limit of the passes, where the workers are stopped", "16,384 on LIMO"),
        "answer_tok": assumed("tokens of the final answer behind the workers' texts", "a worked solution of one page"),
        "answer_max_tok": published("where the final answer is cut", "1,024 new tokens"),
        "instruction_tok": assumed(
            "tokens of the instruction that tells the workers how to collaborate", "the authors' template is about 250"
        ),
        "marker_tok": assumed("tokens of a worker's header and of the final prompt", "one line of text"),
    },
    assumptions=(
        "one length is drawn for all workers: they stop together",
        "the kernels read the cache once for all workers, as the authors' do; beside other calls, once for each",
        "blocks that move into the common history are not copied, so they cost nothing",
        "the self-check question that a random worker gets every 1,024 tokens is left out",
        "queries are rotated once per step: the further rotations, one per block and worker, are not priced",
    ),
    aliases=("hogwild_inference",),
)
def hogwild(
    run,
    workers: int = 2,
    steps: Lengths = "lognormal:4096:0.5",
    budget_tok: int = 16384,
    answer_tok: Lengths = "512",
    answer_max_tok: int = 1024,
    instruction_tok: int = 256,
    marker_tok: int = 8,
):
    """Hogwild! Inference (arXiv:2504.06261): W workers are one batch on one logical KV cache. Every forward pass
    advances all of them by one token, and each of them attends to all that any of them has written so far; every token
    is stored once. At the step budget the workers stop, and a short final pass that sees the whole cache writes the
    answer.
    """
    task = run.problem + run.instruction("collaborate", instruction_tok)
    headers = [run.instruction(f"worker {number}", marker_tok) for number in range(workers)]
    length = steps.at_most(budget_tok)
    team = yield run.together([run.generate(task + header, "worker", length, keep=True) for header in headers])
    prompt = task + run.instruction("answer", marker_tok)
    answer = yield run.generate(prompt, "answer", answer_tok, answer_max_tok, attend=team)
    run.release(team)
    return answer
