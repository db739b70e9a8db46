"""DeepPrune: tokens of a benchmark after pruning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number

TITLE = "DeepPrune (arXiv:2510.08483)"
ABOUT = (
    "512 traces per question, cut at 500 tokens and clustered by a judge; some of the largest cluster finish. How many "
    "(K2) is not published, and it decides the total: one cell tells it, and of the eight others, which are predicted "
    "with it, one is met."
)
PROBLEMS = {"AIME24": 30, "AIME25": 30, "GPQA": 198}
MODELS = ("DeepSeek-8B", "Qwen3-32B", "GPT-OSS-20B")
ORIGIN = ("Qwen3-32B", "AIME24")  # the cell whose total gives K2
TRACES, CUT_TOK, FINISHING = 512, 500, 50
NEAR = ("DeepSeek-8B", "AIME24")  # the one that is within the target
TOLERANCE = 0.10
DERIVED_K2 = "input: this cell's total is where K2 = 50 comes from, so it is not counted"
UNKNOWN = (
    "K, K1, K2 and K3 are not published; behind a cut at 500 tokens the totals imply 31 (Qwen3-32B, AIME25) to 212 "
    "(GPT-OSS-20B, GPQA) finishing traces, and no one number comes within 10 % of more than three cells; a later cut "
    "would fit up to five (near 2,500 tokens), but is not stated and contradicts Qwen3-32B on GPQA (at most 986)"
)


@dataclass(frozen=True)
class Question:
    """Tokens of one question, in the mean: those of the traces, and what the judge read of it."""

    traces_tok: float
    judge_tok: float
    judge_calls: int


def compare() -> list[Comparison]:
    """Nine totals, from the mean length of a trace of each."""
    return [_total(model, benchmark) for model in MODELS for benchmark in PROBLEMS]


def _total(model: str, benchmark: str) -> Comparison:
    published, length = _published(model, benchmark), _trace_tok(model, benchmark)
    question = _question(round(length))
    origin = (model, benchmark) == ORIGIN
    return Comparison(
        "deepprune",
        f"total tokens, {model}, {benchmark}",
        "tok",
        published.value,
        question.traces_tok * PROBLEMS[benchmark],
        None if origin else TOLERANCE,
        status=published.status,
        source=published.source,
        setup=f"--strategy deepprune trace_tok={length:.0f} (input: the consensus of 512 traces on {benchmark}) "
        f"finishing={FINISHING}; not counted, as in the paper: {question.judge_calls} calls of the judge per question, "
        f"which read {question.judge_tok:,.0f} tokens",
        assumed=(
            f"K2 = {FINISHING}, from the total of {' on '.join(ORIGIN)}",
            "K = 16, one comparison per cluster",
            "the cut is at 500 tokens; the best setting of the judge has segments around 25 reasoning words",
        ),
        reason=DERIVED_K2 if origin else "",
        known_miss="" if origin or (model, benchmark) == NEAR else UNKNOWN,
    )


def _published(model: str, benchmark: str, strategy: str = "DeepPrune") -> Number:
    config = f"{benchmark} ({PROBLEMS[benchmark]} problems), whole benchmark"
    return number(strategy=strategy, model=model, config=config, metric="total tokens")


def _trace_tok(model: str, benchmark: str) -> float:
    """Mean tokens of a trace that runs to its end."""
    return _published(model, benchmark, "cons@512 (Tsinghua run)").value / (PROBLEMS[benchmark] * TRACES)


@cache
def _question(trace_tok: int) -> Question:
    """One question with traces of one length: the total has no spread, whichever traces finish."""
    flight = simulate_scenario(
        Scenario(
            gpu="h100-sxm",
            model="Qwen/Qwen3-8B",
            strategy="deepprune",
            strategy_parameters={"traces": TRACES, "cut_tok": CUT_TOK, "trace_tok": trace_tok, "finishing": FINISHING},
            repetitions=1,
        )
    ).flights[0]
    judged = [call for call in flight.calls if call.label == "judge"]
    written = sum(call.output_tok for call in flight.calls if call.label != "judge")
    return Question(written, sum(call.prompt_tok for call in judged), len(judged))
