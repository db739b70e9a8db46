"""V1-Infer: how many judge calls a tournament spends."""

from __future__ import annotations

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import number

TITLE = "V1-Infer (arXiv:2603.04304)"
ABOUT = (
    "Sixteen solutions and a tournament of pairwise judge calls. The paper gives call budgets and accuracies; neither "
    "hardware nor seconds."
)
SAMPLES = 16


def compare() -> list[Comparison]:
    """The budget of judge calls, and what the follow-up says of their tokens."""
    budget = number(strategy="V1-Infer", metric="verification budget")
    follow_up = number(strategy="CAPS vs V1 pairwise")
    flights = simulate_scenario(
        Scenario(
            gpu="h100-sxm",
            model="Qwen/Qwen3-4B-Instruct-2507",
            strategy="v1",
            strategy_parameters={"samples": SAMPLES, "budget_multiplier": budget.value},
            repetitions=3,
        )
    ).flights
    judged = [sum(call.label == "judge" for call in flight.calls) for flight in flights]
    return [
        Comparison(
            "v1",
            "judge calls for 16 solutions",
            "calls",
            budget.value * SAMPLES,
            sum(judged) / len(judged),
            0.0,
            status="derived",
            source=f"3.0 x N, {budget.source}",
            setup=f"--strategy v1 --samples {SAMPLES} --budget-multiplier {budget.value:g}",
            assumed=("input: the budget multiplier; compared is whether coverage and Swiss rounds spend it exactly",),
            kind="arithmetic",
        ),
        Comparison(
            "v1",
            "judge tokens of the follow-up CAPS against V1-Infer, code",
            "%",
            follow_up.value,
            None,
            None,
            status=follow_up.status,
            source=follow_up.source,
            reason="CAPS is not in the library; the figure shows what share of V1-Infer's judge tokens can be saved",
        ),
    ]
