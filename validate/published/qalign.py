"""QAlign: the shape of a chain; the paper publishes no count or second to hold it against."""

from __future__ import annotations

import numpy as np

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import number

TITLE = "QAlign (arXiv:2504.03790)"
ABOUT = (
    "A Metropolis-Hastings chain that rewrites the end of an answer and scores it. The paper reports accuracy over "
    "FLOPs in figures; it gives no seconds and no table of tokens, so nothing here is judged."
)
REPETITIONS = 2


def compare() -> list[Comparison]:
    """One row of plausibility."""
    published = number(strategy="QAlign")
    scenario = Scenario(gpu="h100-sxm", model="meta-llama/Meta-Llama-3-8B", strategy="qalign", repetitions=REPETITIONS)
    rewritten, scored = [], []
    for flight in simulate_scenario(scenario).flights:
        problem_tok = flight.calls[0].prompt_tok
        rewritten += [call.output_tok for call in flight.calls if call.label == "rewrite"]
        scored += [call.prompt_tok - problem_tok for call in flight.calls if call.label == "score"]
    return [
        Comparison(
            "qalign",
            "tokens written by a step over tokens of an answer",
            "ratio",
            published.value,
            float(np.mean(rewritten) / np.mean(scored)),
            None,
            status=published.status,
            source=f"{published.source}: a step costs half a sample, thanks to the KV cache",
            setup=f"--strategy qalign, {REPETITIONS} chains of 1024 steps, beta 0.5, answers cut at 800 tokens",
            assumed=("lengths of answers", "rewards and how a rewrite changes them"),
            reason="plausibility only: follows from a cut that is uniform over the answer, and no run is published",
            kind="arithmetic",
        )
    ]
