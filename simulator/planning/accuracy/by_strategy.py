"""What the success of single samples says of a strategy: something for few of them, nothing for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simulator.errors import UserError
from simulator.planning.accuracy.selection import coverage, mean_success, verifier
from simulator.planning.accuracy.success import Estimate, Success


@dataclass(frozen=True)
class Selection:
    """How answers are compared and checked, as the user says.

    wrong_answers: over how many wrong answers wrong samples spread evenly; 1, all agree, is the worst case of a vote.
    verifier: (FN, FP), the chances that the selector of `best_of_n` rejects a correct sample and accepts a wrong one.
    """

    wrong_answers: int = 1
    verifier: tuple[float, float] | None = None


Found = tuple[Estimate, str]
Rule = Callable[[Success, Mapping[str, Any], Selection], Found | str]


def derived(strategy: str, parameters: Mapping[str, Any], success: Success, selection: Selection) -> Found | str:
    """(accuracy, what it rests on) of a strategy with all its parameters; or a sentence on why nothing follows."""
    rule = RULES.get(strategy)
    if rule is None:
        known = ", ".join(sorted(RULES))
        return (
            f"the success of single samples says nothing of '{strategy}' (it does of {known}); give its accuracy itself"
        )
    return rule(success, parameters, selection)


def parse_verifier(text: str) -> tuple[float, float]:
    """FN:FP as two shares; "perfect" is 0:0. UserError on anything else."""
    parts = "0:0" if str(text).strip() == "perfect" else str(text)
    try:
        false_negative, false_positive = (float(part) for part in parts.split(":"))
    except ValueError:
        false_negative = false_positive = -1.0
    if not (0.0 <= false_negative <= 1.0 and 0.0 <= false_positive <= 1.0):
        raise UserError(
            f"verifier '{text}': expected FN:FP, the shares of correct samples rejected and of wrong ones accepted, as "
            "0.05:0.2, or 'perfect'"
        )
    return false_negative, false_positive


def _single(success: Success, _: Mapping[str, Any], __: Selection) -> Found:
    return success.accuracy(mean_success(1)), f"one sample, success {success.text}"


def _vote(success: Success, parameters: Mapping[str, Any], selection: Selection) -> Found:
    samples = int(parameters["samples"])
    if success.wrong is not None:
        spread = "wrong answers as in the file"
    elif selection.wrong_answers == 1:
        spread = "all wrong samples agree: a lower bound"
    else:
        spread = f"wrong samples spread evenly over {selection.wrong_answers} answers"
    told = f"majority of {samples} samples, ties by lot, {spread}; success {success.text}"
    return success.vote(samples, selection.wrong_answers), told


def _best_of_n(success: Success, parameters: Mapping[str, Any], selection: Selection) -> Found | str:
    if selection.verifier is None:
        return "what best_of_n achieves depends on how its judge errs: give verifier=FN:FP, or verifier=perfect"
    samples = int(parameters["samples"])
    if selection.verifier == (0.0, 0.0):
        return success.accuracy(coverage(samples)), f"coverage (pass@{samples}), success {success.text}"
    return _verified(success, samples, *selection.verifier)


def _resample(success: Success, parameters: Mapping[str, Any], _: Selection) -> Found:
    rates = (float(parameters[name]) for name in ("false_negative", "false_positive"))
    return _verified(success, int(parameters["attempts"]), *rates)


def _verified(success: Success, samples: int, false_negative: float, false_positive: float) -> Found:
    ceiling = success.ceiling(false_negative, false_positive)
    found = success.accuracy(verifier(samples, false_negative, false_positive))
    return found, (
        f"{samples} samples at most, a verifier with FN {false_negative:g} and FP {false_positive:g}; more samples "
        f"tend to {100.0 * ceiling:.1f} %; success {success.text}"
    )


RULES: dict[str, Rule] = {
    "single": _single,
    "self_consistency": _vote,
    "budget_forcing": _vote,
    "best_of_n": _best_of_n,
    "resample": _resample,
}
