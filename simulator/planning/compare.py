"""Strategies, models, precisions or GPUs on one task: figures, differences, Pareto front, the best within limits.

study = build_study({"gpu": "orin"}, [{"strategy": "single"}, {"strategy": "pdr", "width": 8}])
comparison = compare(study)
comparison.entries[1].outcome.figures["wall_s_p50"], comparison.differences, comparison.choice
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from simulator.errors import UserError
from simulator.planning.accuracy.by_strategy import Selection, derived, parse_verifier
from simulator.planning.accuracy.given import AccuracyTable, read_accuracy
from simulator.planning.accuracy.success import Estimate, Success, parse_success
from simulator.planning.differences import FIGURES, Difference, difference
from simulator.planning.pareto import dominators
from simulator.planning.points import Outcome, answer
from simulator.planning.study import Candidate, Study
from simulator.planning.within import Choice, choose
from simulator.profile import Z90

OBJECTIVES = ("wall_s_p50", "energy_j_p50", "cost_usd_p50", "peak_memory_byte")  # less is better
SEED = 20_240_611  # of the bootstrap, beside the seed of the study


@dataclass(frozen=True)
class Entry:
    """A candidate and what became of it. basis: what the accuracy rests on, or why there is none."""

    candidate: Candidate
    outcome: Outcome
    accuracy: Estimate | None = None
    basis: str = ""

    @property
    def name(self) -> str:
        """Of the candidate."""
        return self.candidate.name

    def figures(self) -> dict[str, float]:
        """Those of the outcome, and the accuracy if there is one."""
        accuracy = {} if self.accuracy is None else {"accuracy": self.accuracy.value}
        return {**self.outcome.figures, **accuracy}


@dataclass(frozen=True)
class AccuracyGap:
    """Accuracy of a candidate minus that of the reference, with its 90 % interval. paired: by questions."""

    candidate: str
    reference: str
    gap: float
    low: float
    high: float
    paired: bool

    @property
    def verdict(self) -> str:
        """ "less", "more", or "none" when the interval holds 0."""
        if self.low <= 0.0 <= self.high:
            return "none"
        return "less" if self.high < 0.0 else "more"


@dataclass(frozen=True)
class Comparison:
    """The answer to a study. dominated_by: candidate -> those that beat it in all `objectives`.

    Not in it: candidates that did not fly, and those whose accuracy is not known where that of others is.
    """

    study: Study
    entries: tuple[Entry, ...]
    differences: tuple[Difference, ...]
    accuracy_gaps: tuple[AccuracyGap, ...]
    objectives: tuple[str, ...]
    dominated_by: dict[str, tuple[str, ...]]
    clearly_dominated: tuple[str, ...]  # by one that is nowhere more, and somewhere less by more than the intervals
    choice: Choice | None
    as_good: tuple[str, ...]  # as the best one, as far as the intervals tell, and within the limits, too
    notes: tuple[str, ...]

    @property
    def flown(self) -> tuple[Entry, ...]:
        """Those that could be simulated."""
        return tuple(entry for entry in self.entries if entry.outcome.ok)

    @property
    def front(self) -> tuple[str, ...]:
        """Names of those that nobody beats in everything."""
        return tuple(name for name, by in self.dominated_by.items() if not by)

    def of(self, name: str) -> Entry:
        """The entry of a candidate."""
        return next(entry for entry in self.entries if entry.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: settings, figures, calibration, seed and version of every candidate included."""
        return {
            "against": self.study.against,
            "objectives": list(self.objectives),
            "front": list(self.front),
            "within": {limit.figure: limit.value for limit in self.study.within},
            "choice": None if self.choice is None else {**asdict(self.choice), "as_good": list(self.as_good)},
            "notes": list(self.notes),
            "differences": [each.to_dict() for each in self.differences],
            "accuracy_gaps": [{**asdict(gap), "verdict": gap.verdict} for gap in self.accuracy_gaps],
            "candidates": [self._entry(entry) for entry in self.entries],
        }

    def _entry(self, entry: Entry) -> dict[str, Any]:
        accuracy = entry.accuracy
        told = None if accuracy is None else {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high}
        return {
            "name": entry.name,
            "accuracy": told,
            "accuracy_basis": entry.basis,
            "dominated_by": list(self.dominated_by.get(entry.name, ())),
            "clearly_dominated": entry.name in self.clearly_dominated,
            **entry.outcome.to_dict(),
        }


def compare(study: Study, progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Simulate every candidate and hold them against each other. UserError if none can be simulated.

    A candidate that cannot be simulated is kept with its reason. progress(done, total): of candidates.
    """
    # Before minutes are spent on simulating:
    sources = [_Said.read(candidate) for candidate in study.candidates]
    _check_known(study, sources)
    entries = []
    for candidate, said in zip(study.candidates, sources):
        outcome = answer(candidate.settings, keep_going=True)
        entries.append(said.entry(candidate, outcome) if outcome.ok else Entry(candidate, outcome))
        if progress is not None:
            progress(len(entries), len(study.candidates))
    return compared(study, tuple(entries))


def compared(study: Study, entries: tuple[Entry, ...]) -> Comparison:
    """The comparison of candidates that have flown."""
    flown = [entry for entry in entries if entry.outcome.ok]
    if not flown:
        raise UserError(f"none of the candidates can be simulated; '{entries[0].name}': {entries[0].outcome.reason}")
    reference = next(entry for entry in entries if entry.name == study.against)
    notes: list[str] = []
    if not reference.outcome.ok:
        notes.append(f"differences are to '{flown[0].name}', because '{reference.name}' cannot be simulated")
        reference = flown[0]
    others = [entry for entry in flown if entry is not reference]
    rng = np.random.default_rng([SEED, int(reference.outcome.facts["seed"])])
    found = [_difference(entry, reference, figure, rng) for entry in others for figure in FIGURES]
    objectives = _objectives(flown, notes)
    dominated = _dominated(flown, objectives)
    choice = _choice(study, flown)
    return Comparison(
        study=replace(study, against=reference.name),
        entries=entries,
        differences=tuple(each for each in found if each is not None),
        accuracy_gaps=tuple(
            _gap(entry, reference) for entry in others if entry.accuracy is not None and reference.accuracy is not None
        ),
        objectives=objectives,
        dominated_by=dominated,
        clearly_dominated=tuple(
            entry.name
            for entry in flown
            if any(_clearly(_by_name(flown, by), entry, objectives, rng) for by in dominated.get(entry.name, ()))
        ),
        choice=choice,
        as_good=_as_good(choice, flown, rng),
        notes=tuple(notes),
    )


def _by_name(entries: list[Entry], name: str) -> Entry:
    return next(entry for entry in entries if entry.name == name)


def _difference(entry: Entry, reference: Entry, figure: str, rng: np.random.Generator) -> Difference | None:
    return difference((entry.name, entry.outcome), (reference.name, reference.outcome), figure, rng)


# -- Pareto front --------------------------------------------------------------------------------------------------


def _objectives(flown: list[Entry], notes: list[str]) -> tuple[str, ...]:
    """Figures that every candidate has, which others are left out is noted; accuracy as soon as one has it."""
    kept = []
    for figure in OBJECTIVES:
        lacking = [entry.name for entry in flown if not math.isfinite(entry.figures().get(figure, math.nan))]
        if lacking:
            notes.append(f"{figure} is left out of the Pareto front: not known of {', '.join(lacking)}")
        else:
            kept.append(figure)
    return (*kept, *(["accuracy"] if any(entry.accuracy is not None for entry in flown) else []))


def _dominated(flown: list[Entry], objectives: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    judged = [entry for entry in flown if entry.accuracy is not None or "accuracy" not in objectives]
    signs = [-1.0 if figure == "accuracy" else 1.0 for figure in objectives]
    values = np.array([[sign * entry.figures()[f] for sign, f in zip(signs, objectives)] for entry in judged])
    names = [entry.name for entry in judged]
    return {name: tuple(names[i] for i in by) for name, by in zip(names, dominators(values))}


def _clearly(better: Entry, worse: Entry, objectives: tuple[str, ...], rng: np.random.Generator) -> bool:
    """Whether `better` beats `worse` somewhere by more than the interval of the difference."""
    found = [_difference(better, worse, figure, rng) for figure in objectives if figure in FIGURES]
    gaps = [_gap(better, worse)] if "accuracy" in objectives else []
    return any(each is not None and each.verdict == "less" for each in found) or any(g.verdict == "more" for g in gaps)


# -- accuracy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """What is said of a candidate's accuracy: a value, a table, or the success of single samples."""

    value: float | None
    table: AccuracyTable | None
    success: Success | None
    selection: Selection

    @classmethod
    def read(cls, candidate: Candidate) -> _Said:
        """UserError, with the candidate's name, for what cannot be read or contradicts itself."""
        try:
            return cls._read(candidate.said)
        except UserError as error:
            raise UserError(f"candidate '{candidate.name}': {error}") from None

    @classmethod
    def _read(cls, said: Mapping[str, Any]) -> _Said:
        value, table = None, None
        if said.get("accuracy") is not None:
            value = _share(said["accuracy"])
            table = read_accuracy(str(said["accuracy"]), said.get("benchmark")) if value is None else None
        if said.get("benchmark") is not None and table is None:
            raise UserError("benchmark names one of an accuracy table, and there is no table")
        success = None if said.get("success") is None else parse_success(said["success"])
        verifier = None if said.get("verifier") is None else parse_verifier(said["verifier"])
        return cls(value, table, success, Selection(_wrong_answers(said.get("wrong_answers", 1)), verifier))

    @property
    def something(self) -> bool:
        """Whether anything is said from which an accuracy may follow."""
        return any(each is not None for each in (self.value, self.table, self.success))

    def entry(self, candidate: Candidate, outcome: Outcome) -> Entry:
        """The entry of a candidate that flew. An accuracy that is given counts before one that follows."""
        facts = candidate_facts(candidate, outcome)
        found = None
        if self.value is not None:
            found = Estimate(self.value, self.value, self.value), "given"
        elif self.table is not None:
            found = self.table.of(facts, candidate.name)
        reason = "" if found or self.table is None else f"no row of '{self.table.name}' is about it"
        if found is None and self.success is not None:
            follows = derived(facts["strategy"], facts, self.success, self.selection)
            found, reason = (None, follows) if isinstance(follows, str) else (follows, "")
        return Entry(candidate, outcome, *found) if found else Entry(candidate, outcome, None, reason)


def candidate_facts(candidate: Candidate, outcome: Outcome) -> dict[str, Any]:
    """Settings as given, names as the result spells them, and every parameter of the strategy with its value."""
    facts = outcome.facts
    precision = {("kv_cache_dtype" if k == "kv_cache" else k): v for k, v in facts["precision"].items()}
    named = {name: facts[name] for name in ("gpu", "model", "strategy", "power_mode")}
    return {**candidate.settings, **outcome.settings, **precision, **facts["strategy_parameters"], **named}


def _share(value: Any) -> float | None:
    """A number from 0 to 1; None for a text that is no number: the name of a table. UserError for other numbers."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not 0.0 <= number <= 1.0:
        raise UserError(f"accuracy is {value}, expected a number from 0 to 1, or a table")
    return number


def _wrong_answers(value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if not 1 <= number <= 1000:
        raise UserError(f"wrong_answers is '{value}', expected a whole number from 1 to 1000")
    return number


def _gap(entry: Entry, reference: Entry) -> AccuracyGap:
    """By questions where both have the same ones, else as if independent; intervals as `Estimate` states them."""
    ours, theirs = entry.accuracy, reference.accuracy
    assert ours is not None and theirs is not None
    gap = ours.value - theirs.value
    same = entry.candidate.said.get("success") == reference.candidate.said.get("success")
    if same and ours.per_question is not None and theirs.per_question is not None:
        apart = ours.per_question - theirs.per_question
        half = Z90 * float(apart.std(ddof=1)) / math.sqrt(len(apart))
        return AccuracyGap(entry.name, reference.name, gap, gap - half, gap + half, True)
    low = gap - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = gap + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return AccuracyGap(entry.name, reference.name, gap, low, high, False)


# -- the best within limits ----------------------------------------------------------------------------------------


def _choice(study: Study, flown: list[Entry]) -> Choice | None:
    """None where nobody asked: no limits, and nothing to be best in."""
    if not study.within and study.best is None:
        return None
    figures = {entry.name: entry.figures() for entry in flown}
    known = any("accuracy" in own for own in figures.values())
    return choose(figures, study.within, study.best or ("accuracy" if known else "wall_s_p50"))


def _as_good(choice: Choice | None, flown: list[Entry], rng: np.random.Generator) -> tuple[str, ...]:
    """Candidates within the limits whose difference to the best, in what it is best in, is below the interval."""
    if choice is None or choice.best is None:
        return ()
    best, found = _by_name(flown, choice.best), []
    for entry in (entry for entry in flown if entry.name in choice.feasible and entry is not best):
        if choice.wanted == "accuracy":
            apart = _gap(entry, best) if entry.accuracy is not None else None
        else:
            apart = _difference(entry, best, choice.wanted, rng) if choice.wanted in FIGURES else None
        if apart is not None and apart.verdict == "none":
            found.append(entry.name)
    return tuple(found)


def _check_known(study: Study, sources: list[_Said]) -> None:
    """UserError when accuracy is asked for and nobody said anything of it."""
    asked = study.best == "accuracy" or any(limit.figure == "accuracy" for limit in study.within)
    if asked and not any(said.something for said in sources):
        raise UserError(
            "accuracy is asked for, and nothing says it of any candidate; expected accuracy=VALUE or TABLE, or success"
        )
