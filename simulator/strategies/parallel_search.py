"""ParallelSearch: independent sub-queries in one turn of a search agent."""

from __future__ import annotations

from simulator.strategies.registry import Share, assumed, published, strategy
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds

SCRIPT = "the authors' evaluation script"


@strategy(
    title="search agent with parallel sub-queries (ParallelSearch)",
    source="arXiv:2508.09303",
    parameters={
        "mode": published(
            "parallel: all sub-queries of a question in one turn; sequential: one per turn, the baseline",
            "the method of the paper",
            choices=("parallel", "sequential"),
        ),
        "queries": assumed(
            "sub-queries that a question needs", "a comparison of two things, as in the paper's first figure"
        ),
        "split_rate": assumed(
            "share of questions that mode 'parallel' splits; it asks the others one sub-query per turn",
            "94.3 % on the parallel HotpotQA subset (Qwen2.5-7B-Instruct), as third-party notes quote the paper",
        ),
        "turns": published("turns that search at most; then the model must answer", SCRIPT),
        "turn_tok": assumed("tokens of a turn: reasoning, then the sub-queries or the answer", "a few sentences"),
        "turn_max_tok": published("where a turn is cut", SCRIPT),
        "passages_tok": assumed(
            "tokens found per sub-query", "three passages (published) of about a hundred words with their titles"
        ),
        "passages_max_tok": published("where what a turn has found is cut", SCRIPT),
        "retrieval_s": assumed(
            "seconds of one retrieval, whose sub-queries run as one batch", "a dense index on another machine"
        ),
    },
    assumptions=(
        "a batch of sub-queries takes as long as one",
        "every sub-query is needed, and none is asked twice",
    ),
    aliases=("parallelsearch",),
)
def parallel_search(
    run,
    mode: str = "parallel",
    queries: Lengths = "2",
    split_rate: Share = 0.943,
    turns: int = 4,
    turn_tok: Lengths = "lognormal:120:0.4",
    turn_max_tok: int = 500,
    passages_tok: Lengths = "uniform:380:520",
    passages_max_tok: int = 1000,
    retrieval_s: Seconds = "lognormal:0.3:0.4",
):
    """ParallelSearch (arXiv:2508.09303): a model answers a question with a search engine. In a turn it reasons and
    writes one or several sub-queries; they are retrieved as one batch, which takes no time on the GPU; the passages
    are appended, and the next turn reads them behind a context whose KV cache is a hit. When nothing is left to ask,
    or after `turns` turns, it answers. The sequential baseline asks one sub-query per turn.
    """
    left = queries.draw(run.rng)
    at_once = left if mode == "parallel" and run.chance(split_rate) else 1
    context = run.problem
    for turn in range(turns):
        if left == 0:
            break
        search = yield run.generate(context, "search", turn_tok, turn_max_tok)
        yield run.wait(retrieval_s, "retrieve")
        asked = min(left, at_once)
        found_tok = min(int(passages_tok.sample(run.rng, asked).sum()), passages_max_tok)
        context += run.text(search) + run.instruction(f"passages {turn}", found_tok)
        left -= asked
    return (yield run.generate(context, "answer", turn_tok, turn_max_tok))
