"""ParallelSearch: how many model calls a question takes."""

from __future__ import annotations

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import number

TITLE = "ParallelSearch (arXiv:2508.09303)"
ABOUT = (
    "A search agent that asks independent sub-queries in one turn, beside one that asks them one by one. The paper "
    "counts model calls and turns; it gives no seconds."
)
SPLIT = number(strategy="ParallelSearch", metric="questions that are split")
SETUP = {"queries": "2", "split_rate": SPLIT.value / 100.0}
REPETITIONS = 300
ASSUMED = (
    "input: a parallelisable question needs two sub-queries, as in the paper's first figure",
    f"input: {SPLIT.text} % of the questions are split, the paper's figure for Qwen2.5-7B-Instruct on the parallel "
    "HotpotQA subset as third-party notes quote it; the figure compared may be a mean over several subsets",
    "no turn is wasted: every search asks what has not been asked",
)

UNJUDGED = (
    "not judged: it rests on a figure that only third parties quote (94.3 %). The target would be 10 %. Two turns "
    "instead of three are 66.7 %, questions that are not split raise it"
)


def compare() -> list[Comparison]:
    """Calls against the sequential baseline, and turns."""
    parallel, sequential = mean_calls("parallel"), mean_calls("sequential")
    calls = number(strategy="ParallelSearch", metric="LLM calls vs sequential")
    turns = number(strategy="ParallelSearch", metric="mean turns")
    flown = (
        f"--strategy parallel_search --queries 2 --split-rate {SETUP['split_rate']:g} --repetitions {REPETITIONS}, "
        "in both modes"
    )
    return [
        Comparison(
            "parallel_search",
            "model calls against one sub-query per turn, parallelisable questions",
            "%",
            calls.value,
            100.0 * parallel / sequential,
            None,
            status=calls.status,
            source=calls.source,
            setup=flown,
            assumed=ASSUMED,
            reason=UNJUDGED,
        ),
        Comparison(
            "parallel_search",
            "mean turns, parallel HotpotQA subset",
            "turns",
            turns.value,
            parallel,
            None,
            status=turns.status,
            source=turns.source,
            setup=flown,
            assumed=ASSUMED,
            reason="known from third-party notes only; the target would be 10 %",
        ),
    ]


def mean_calls(mode: str) -> float:
    """Model calls per question: searches and the answer."""
    scenario = Scenario(
        gpu="h100-sxm",
        model="Qwen/Qwen2.5-7B-Instruct",
        strategy="parallel_search",
        strategy_parameters={**SETUP, "mode": mode},
        repetitions=REPETITIONS,
    )
    flights = simulate_scenario(scenario).flights
    return sum(len(flight.calls) for flight in flights) / len(flights)
