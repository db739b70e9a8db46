"""Hedged sampling: how many calls the selectors take."""

from __future__ import annotations

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import number

TITLE = "When Life Gives You Samples (arXiv:2506.20544)"
ABOUT = (
    "Five samples, one of them greedy, and a selector. The paper gives win rates and the number of calls; no lengths, "
    "hardware or seconds."
)
SAMPLES = 5  # "just five samples", abstract
CHOPS_CALLS = 1  # checklisted ONE-pass selection


def compare() -> list[Comparison]:
    """Calls of the one-pass selector; the win rate, which no simulator of cost can say."""
    gain = number(strategy="hedged sampling + selection")
    flight = simulate_scenario(
        Scenario(
            gpu="h100-sxm",
            model="Qwen/Qwen3-8B",
            strategy="hedged",
            repetitions=1,
            strategy_parameters={"samples": SAMPLES},
        )
    ).flights[0]
    return [
        Comparison(
            "hedged",
            "selection calls of CHOPS over five samples",
            "calls",
            CHOPS_CALLS,
            sum(call.label == "judge" for call in flight.calls),
            0.0,
            status="derived",
            source=f"the selector's name, {gain.source}",
            setup=f"--strategy hedged --samples {SAMPLES} --selector chops",
            assumed=("input: five samples; compared is that one call reads them all, whatever their number",),
            kind="arithmetic",
        ),
        Comparison(
            "hedged",
            f"win-rate gain, {gain.config}",
            gain.unit,
            gain.value,
            None,
            None,
            status=gain.status,
            source=gain.source,
            reason="quality of answers is not simulated",
        ),
    ]
