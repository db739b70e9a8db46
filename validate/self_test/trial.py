"""One injection: put a fault into clean runs, run the suite, see what it says that it did not say before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.profile import Z90
from validate.cases import Case, Evidence
from validate.finding import CONFIDENCES, LAYERS, SEVERITIES, Finding
from validate.noise import noise_floor
from validate.self_test.bench import Bench
from validate.self_test.changes import POWER
from validate.self_test.injection import LABELLED, Injected, Injector, Size
from validate.self_test.material import Material, generator
from validate.statistics import SENSOR_GAIN
from validate.suite import run_checks

MAD = 1.4826  # standard deviation of a normal distribution / its median absolute deviation
WHOLE = ""  # in the place of a run, of findings about a file as a whole
Said = frozenset[tuple[str, str, str, str]]  # (check, class, run, what a note says)


@dataclass(frozen=True)
class Trial:
    """What became of one injection.

    right, mentioned: whether the strongest, or any, new finding names the class. in_noise, in_floor: its size in units
    of what repeats, and of what clean runs of this view, differ by; None where no figure changed. check, named: of the
    strongest new finding, "" without one.
    """

    material: str
    detected: bool
    right: bool
    mentioned: bool
    runs: int
    in_noise: float | None
    in_floor: float | None
    check: str = ""
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Relative standard deviations of one side of a material, by metric."""

    repeats: dict[str, float]
    pairs: dict[str, float]


def said(findings: Iterable[Finding]) -> Said:
    """Who says what of which run."""
    return frozenset(_key(f, run) for f in findings for run in f.runs or (WHOLE,))


def _key(finding: Finding, run: str) -> tuple[str, str, str, str]:
    """An alarm of one check and class is the same however its numbers change; a note is what it says without them."""
    matter = "" if finding.alarm else re.sub(r"\d", "", finding.says)
    return finding.check, finding.fault, run, matter


def noise_of(evidence: Evidence) -> Noise:
    """What repeats differ by (of power, with what a sensor's gain is uncertain by), and what clean pairs may.

    Of a pair: repeats and the spread that the calibration claims for its own predictions, as their root sum of squares;
    no less than how far the clean pairs lie apart, which is all that is known of a simulator of somebody else.
    """
    floor = noise_floor([case.record for case in evidence.cases])
    repeats, pairs = {}, {}
    for metric in dict.fromkeys(name for case in evidence.cases for name in case.measured):
        ratios = [case.ratios[metric] for case in evidence.cases if case.ratios.get(metric, 0.0) > 0.0]
        apart = MAD * float(np.median(np.abs(np.log(ratios)))) if ratios else 0.0
        ends = [i for case in evidence.cases if (i := case.prediction.values.get(metric)) is not None]
        claimed = float(np.median([math.log(high / low) for _, low, high in ends])) / (2.0 * Z90) if ends else 0.0
        sensor = SENSOR_GAIN if metric in POWER else 0.0
        repeats[metric] = math.hypot(floor.of(metric), sensor)
        pairs[metric] = max(apart, math.hypot(repeats[metric], claimed if evidence.own else 0.0))
    return Noise(repeats, pairs)


def attempt(
    injector: Injector, size: Size, draw: int, material: Material, before: Said, noise: Noise, bench: Bench,
    checks: Sequence[str], seed: int,
) -> Trial | None:  # fmt: skip
    """Inject once. None where the material has not what the fault needs."""
    evidence = material.sides[injector.side]
    rng = generator(seed, injector.fault, injector.kind, size.text, material.name, str(draw))
    injected = injector.apply(bench, evidence, size.value, rng)
    if injected is None:
        return None
    findings = run_checks(injected.evidence, checks).findings
    new = new_findings(findings, injected.runs, before, injector)
    in_noise = None if injector.view == "label" else _units(evidence, injected, noise.repeats)
    in_floor = _units(evidence, injected, noise.pairs) if injector.view == "pair" else in_noise
    if not new:
        return Trial(material.name, False, False, False, len(injected.runs), in_noise, in_floor)
    first = strongest(new, injected.runs)
    named = (first.fault, *first.also)
    right = not injector.right.isdisjoint(named)
    mentioned = any(not injector.right.isdisjoint((f.fault, *f.also)) for f in new)
    return Trial(material.name, True, right, mentioned, len(injected.runs), in_noise, in_floor, first.check, named)


def new_findings(findings: Iterable[Finding], runs: Sequence[str], before: Said, injector: Injector) -> list[Finding]:
    """Alarms that name an injected run and did not before; of the classes that are only labelled, notes as well."""
    touched = set(runs)
    labels = injector.right if injector.fault in LABELLED else frozenset()
    return [
        f
        for f in findings
        if (f.alarm or f.fault in labels or f.check == injector.label)
        and any((run in touched or run == WHOLE) and _key(f, run) not in before for run in f.runs or (WHOLE,))
    ]


def strongest(findings: Sequence[Finding], runs: Sequence[str]) -> Finding:
    """By severity, confidence, number of injected runs, layer."""
    touched = set(runs)

    def rank(f: Finding) -> tuple[int, int, int, int]:
        covered = sum(run in touched for run in f.runs) if f.runs else len(touched)
        return SEVERITIES.index(f.severity), CONFIDENCES.index(f.confidence), -covered, LAYERS.index(f.layer)

    return min(findings, key=rank)


def _units(before: Evidence, injected: Injected, noise: dict[str, float]) -> float | None:
    """The size of an injection in standard deviations: of the figure that moved most, in the median run."""
    if injected.log_size is not None:
        return injected.log_size / float(np.median(list(noise.values())))
    after = injected.evidence.by_id
    moved = [_moved(before.by_id[run], after[run], noise) for run in injected.runs if run in before.by_id]
    found = [units for units in moved if units > 1e-9]
    return float(np.median(found)) if found else None


def _moved(old: Case, new: Case, noise: dict[str, float]) -> float:
    """Change of simulated / measured, or of the measured figure where nothing was simulated, in units of the noise."""
    largest = 0.0
    for metric, value in new.measured.items():
        if metric not in old.measured:
            continue
        change = np.log(value / old.measured[metric])
        if metric in old.ratios and metric in new.ratios:
            change = np.log(new.ratios[metric] / old.ratios[metric])
        largest = max(largest, abs(float(change)) / noise[metric])
    return largest
