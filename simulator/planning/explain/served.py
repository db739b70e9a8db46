"""What a watched run of traffic spent: on every stretch of steps, and on the time of every request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from simulator.planning.explain.accounts import (
    CAUSES,
    CONSUMERS,
    PHASES,
    STEP_PARTS,
    Meter,
)
from simulator.planning.explain.watch import Diary
from simulator.step import StepModel
from simulator.steps import Steps
from simulator.traffic.cluster import PREFILL
from simulator.traffic.served import Served

_AT_ONCE = 20_000  # rows that are priced together


@dataclass(frozen=True)
class Physics:
    """What prices a deployment's steps: the model as it verifies, and, with speculative decoding, its draft.

    drafted: tokens that the draft makes one after the other in front of a step.
    """

    target: StepModel
    draft: StepModel | None = None
    drafted: int = 0


@dataclass(frozen=True)
class Spent:
    """Arrays by kind ("causes", "parts": seconds; "joules") and name, (S,) each; sums over names are those served.

    prompts: (S,) bool, stretches that compute prompts.
    """

    values: dict[str, dict[str, np.ndarray]]
    prompts: np.ndarray

    def by_phase(self, kind: str) -> dict[str, dict[str, np.ndarray]]:
        """phase -> name -> (S,), 0 in stretches of the other phase."""
        masks = dict(zip(PHASES, (self.prompts, ~self.prompts)))
        return {
            phase: {name: np.where(mask, of, 0.0) for name, of in self.values[kind].items()}
            for phase, mask in masks.items()
        }


NAMES = {"causes": CAUSES, "parts": STEP_PARTS, "joules": CONSUMERS}


def spent_of(served: Served, diaries: Sequence[Diary], physics: Physics) -> Spent:
    """Price what the diaries say, and bring it to what the run took: tables of costs are interpolated."""
    steps = Steps.concatenate([diary.steps() for diary in diaries])
    values = {kind: {name: np.zeros(len(steps)) for name in names} for kind, names in NAMES.items()}
    for model, rows, where, times in _work(physics, steps):
        _add(values, Meter(model), rows, where, times)
    records = served.steps
    for kind, whole in (("causes", records.duration_s), ("parts", records.duration_s), ("joules", records.joules)):
        priced = sum(values[kind].values())
        scale = whole / np.where(priced > 0.0, priced, 1.0)
        values[kind] = {name: of * scale for name, of in values[kind].items()}
    return Spent(values, steps.prefill_sequences > 0)


def _work(physics: Physics, steps: Steps) -> Iterable[tuple[StepModel, Steps, np.ndarray, int]]:
    """(model, rows, which stretches they belong to, how often per step)."""
    own, draft = len(physics.target.rules), physics.draft
    yield physics.target, _of_rules(steps, slice(0, own)), np.arange(len(steps)), 1
    if draft is None:
        return
    theirs, nothing = _of_rules(steps, slice(own, None)), np.zeros(len(steps))
    empty = np.zeros_like(theirs.decode_keys)
    decoding = np.flatnonzero(steps.decode_sequences)
    alone = Steps(
        theirs.decode_sequences, theirs.decode_keys, nothing, nothing, nothing, empty, empty, theirs.decode_sequences
    )
    yield draft, alone.take(decoding), decoding, physics.drafted
    reading = np.flatnonzero(steps.prefill_sequences)
    completed = theirs.sampled - theirs.decode_sequences
    prompts = replace(theirs, decode_sequences=nothing, decode_keys=empty, sampled=completed)
    yield draft, prompts.take(reading), reading, 1


def _of_rules(steps: Steps, rules: slice) -> Steps:
    """The columns of some key rules only."""
    own = {f.name: getattr(steps, f.name) for f in fields(Steps)}
    return Steps(**{name: of[:, rules] if of.ndim == 2 else of for name, of in own.items()})


def _add(
    values: Mapping[str, Mapping[str, np.ndarray]], meter: Meter, rows: Steps, where: np.ndarray, times: int
) -> None:
    for begin in range(0, len(rows), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        _, account = meter.of_steps(rows.take(some))
        for kind in NAMES:
            for name, of in getattr(account, kind).items():
                values[kind][name][where[some]] += times * of


@dataclass(frozen=True)
class Stays:
    """Seconds of requests in engines, (N,) by phase and name: until their first token, and in all."""

    first: dict[str, dict[str, np.ndarray]]
    whole: dict[str, dict[str, np.ndarray]]


def stays_of(served: Served, diaries: Sequence[Diary], by_phase: dict[str, dict[str, np.ndarray]]) -> Stays:
    """What the engines spent while each request was in them; `by_phase`: seconds of stretches, all replicas."""
    n, bounds = len(served.requests), np.cumsum([0, *(diary.rows for diary in diaries)])
    visits = [_visits(diary, prefills) for diary, prefills in zip(diaries, _prefilling(served))]
    first, whole = ({phase: {} for phase in by_phase} for _ in range(2))
    for phase, named in by_phase.items():
        for name, of in named.items():
            until, all_ = np.zeros(n), np.zeros(n)
            for begin, end, (number, came, wrote, ended) in zip(bounds, bounds[1:], visits):
                sums = np.concatenate(([0.0], np.cumsum(of[begin:end])))
                until[number] += sums[wrote + 1] - sums[came]
                all_[number] += sums[ended + 1] - sums[came]
            first[phase][name], whole[phase][name] = until, all_
    return Stays(first, whole)


def _prefilling(served: Served) -> list[bool]:
    """Of each replica, whether it only prefills."""
    return [role == PREFILL for role in served.roles]


def _visits(diary: Diary, prefills: bool) -> tuple[np.ndarray, ...]:
    """(request, first row, row of the first token, last row), each (V,); prefill replicas write no first token."""
    numbers = list(diary.ended)
    came, ended = ([of[number] for number in numbers] for of in (diary.came, diary.ended))
    wrote = ended if prefills else [diary.first[number] for number in numbers]
    return tuple(np.array(column, dtype=np.int64) for column in (numbers, came, wrote, ended))
