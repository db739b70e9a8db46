"""Limits of resampling: attempts until an imperfect verifier accepts, and how many are worth making."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import number

TITLE = "The Limits of Inference Scaling Through Resampling (fLaws, arXiv:2411.17501)"
ABOUT = (
    "Resampling until a verifier that errs accepts. The authors' repository states a model of easy and hard problems; "
    "its rejection probabilities are printed, the rest follows from it. Token counts are not published."
)
MODEL = "resampling model"  # what the notebook states, in numbers.csv
SOURCE = "github:benediktstroebl/inference-scaling-limits, notebooks/limits_to_inference_scaling_model.ipynb"
FLIGHTS = 3000


@dataclass(frozen=True)
class Kind:
    """Problems of one kind: their share, the chance that an attempt is correct, and the printed chance of rejection."""

    name: str
    share: float
    correct: float
    rejected: float

    @property
    def mean_attempts(self) -> float:
        """Mean of the geometric distribution cut at ATTEMPTS."""
        return (1.0 - self.rejected**ATTEMPTS) / (1.0 - self.rejected)

    @property
    def true_share(self) -> float:
        """Share of correct ones among the accepted; the verifier accepts every correct one."""
        return self.correct / (1.0 - self.rejected)


def _stated(metric: str, config: str = "") -> float:
    return number(strategy=MODEL, metric=metric, config=config).value


def _kind(name: str) -> Kind:
    metrics = ("share of problems", "probability that an attempt is correct", "probability of rejection")
    return Kind(name, *(_stated(metric, name) for metric in metrics))


ATTEMPTS = int(_stated("largest number of attempts"))  # the notebook's largest K
KINDS = (_kind("easy"), _kind("hard"))
# Best K by the notebook's formula, by the cost of a false positive. At 0.7 it is 3, by too little for flights to tell.
BEST = {cost: int(_stated("best number of attempts", f"cost of a false positive {cost:g}")) for cost in (1.0, 2.0)}


COSTS = {1.0: "as much as", 2.0: "twice what"}


def compare() -> list[Comparison]:
    """Printed and derived counts, and the best number of attempts."""
    attempts = {kind.name: _fly(kind) for kind in KINDS}
    found = []
    for kind in KINDS:
        flown = attempts[kind.name]
        found += [
            _row(f"accepted at the first attempt, {kind.name}", "ratio", 1.0 - kind.rejected, np.mean(flown == 1)),
            _row(f"attempts, {ATTEMPTS} at most, {kind.name}", "calls", kind.mean_attempts, flown.mean()),
        ]
    best = {cost: _best_flown(attempts, cost) for cost in BEST}
    return [*found, *(_best(cost, best[cost]) for cost in BEST), _bound(max(best.values()))]


def _fly(kind: Kind) -> np.ndarray:
    """Attempts per flight, shape (FLIGHTS,)."""
    scenario = Scenario(
        gpu="h100-sxm",
        model="Qwen/Qwen3-8B",
        strategy="resample",
        strategy_parameters={
            "attempts": ATTEMPTS, "hard": float(kind.name == "hard"), "problem_tok": 16, "thinking_tok": 1,
            "answer_tok": 1,
        },
        repetitions=FLIGHTS,
    )  # fmt: skip
    return np.array([len(flight.calls) for flight in simulate_scenario(scenario).flights])


def _row(quantity: str, unit: str, published: float, simulated: float) -> Comparison:
    return Comparison(
        "resample",
        quantity,
        unit,
        published,
        float(simulated),
        0.10,
        status="derived",
        source=SOURCE,
        setup=f"--strategy resample attempts={ATTEMPTS}, {FLIGHTS:,} flights of each kind",
        assumed=("input: the chances that an attempt is correct and that the verifier errs, as the notebook states",),
        kind="arithmetic",
    )


def _best_flown(attempts: dict[str, np.ndarray], cost: float) -> int:
    """Number of attempts with the largest mean benefit, from the flown numbers of attempts."""
    tried = np.arange(1, ATTEMPTS)  # a flight of ATTEMPTS does not say whether the last one was accepted
    value = np.zeros(tried.size)
    for kind in KINDS:
        accepted = np.array([np.mean(attempts[kind.name] == k) for k in tried])
        value += kind.share * accepted * (kind.true_share - cost * (1.0 - kind.true_share))
    return int(tried[np.argmax(np.cumsum(value))])


def _best(cost: float, flown: int) -> Comparison:
    return Comparison(
        "resample",
        f"best number of attempts, if a false positive costs {COSTS[cost]} a correct answer brings",
        "calls",
        BEST[cost],
        flown,
        0.0,
        status="derived",
        source=SOURCE,
        setup=f"--strategy resample attempts={ATTEMPTS}, {FLIGHTS:,} flights of each kind",
        assumed=("input: the notebook's probabilities and costs; output: how many attempts were flown",),
        kind="arithmetic",
    )


def _bound(flown: int) -> Comparison:
    published = number(strategy="resampling with imperfect verifier", metric="optimal number of samples")
    return Comparison(
        "resample",
        f"best number of attempts, {published.config}: {published.text}",
        published.unit,
        10.0,
        flown,
        None,
        relation="at most",
        status=published.status,
        source=published.source,
        setup="the largest of those above",
        assumed=("easy and hard problems of the notebook in place of HumanEval's",),
        reason="the claim is about samples of HumanEval and MBPP that the repository does not hold; of the best K that "
        "its outputs print, those for costly false positives are below 10, others are not",
        kind="arithmetic",
    )
