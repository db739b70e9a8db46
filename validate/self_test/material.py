"""Clean runs to inject faults into: parts of the shipped files and simulated campaigns, sampled through the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import msgspec
import numpy as np

from calibration.records import RunRecord, read_records
from calibration.vendored import DIRECTORY
from validate.cases import Case, Evidence
from validate.self_test import synthetic
from validate.self_test.bench import Bench
from validate.self_test.changes import RATES, TIMES, scaled
from validate.suite import with_cases

FILES = tuple(sorted(path.name for path in DIRECTORY.glob("*.csv")))
OTHER_CACHE = 0.005  # log sd of its KV capacity and mean batch: sums of what is known
OTHER_SIMULATOR = 0.02  # log sd of a sound simulator of somebody else around the measurement
SIDES = ("measurement", "simulated")
LARGE = 9  # runs: smaller groups are not drawn


@dataclass(frozen=True)
class Part:
    """Part of a shipped file that is injected into: groups of runs that share `columns`, so many, so many runs in all.

    needs: a metric that its runs measured.
    """

    file: str
    columns: tuple[str, ...]
    groups: int
    runs: int
    needs: str = ""


PARTS = {
    "mlenergy": Part("mlenergy.csv", ("model", "tp"), 3, 36),
    "inferencex": Part("inferencex.csv", ("model", "gpu", "tp"), 2, 60),
    "argonne": Part("argonne.csv", ("model", "tp"), 2, 40),
    "modelcards_vllm": Part("modelcards_vllm.csv", ("gpu",), 1, 63),
    "edgereasoning": Part("edgereasoning.csv", ("model",), 1, 60, "power_w"),
    "prefill": Part("edgereasoning.csv", ("model", "flags"), 2, 70, "ttft_s_mean"),
    "helm": Part("helm.csv", ("model",), 1, 60),
}


@dataclass(frozen=True)
class Material:
    """One clean file. real: measured by somebody; else simulated and disturbed.

    sides: by the side that is to be spoilt, "measurement" beside our own simulation, "simulated" beside a sound
    simulator of somebody else, which speaks for every measured metric.
    """

    name: str
    real: bool
    sides: dict[str, Evidence]


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers of their own for each purpose, whatever else is drawn."""
    return np.random.default_rng([seed, *(crc32(name.encode()) for name in names)])


def clean(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Without the runs that their source or we hold for suspect, and without those whose configuration is in doubt."""
    return [r for r in records if not r.flagged("suspect:") and not r.flagged("ambiguous:")]


def unlabelled(record: RunRecord) -> RunRecord:
    """The run without the flags that tell which is suspect: no check may need them."""
    kept = [flag for flag in record.flag_list if not flag.startswith(("suspect:", "ambiguous:"))]
    return msgspec.structs.replace(record, flags=";".join(kept) or None)


def shipped(name: str) -> list[RunRecord]:
    """All runs of one file that ships, in order."""
    return read_records(DIRECTORY / name)


def part_of(evidence: Evidence, name: str, seed: int) -> Material:
    """A small file out of the clean runs of a shipped one: some groups of runs, drawn."""
    rng, part = generator(seed, name), PARTS[name]
    found: dict[tuple, list[Case]] = {}
    for case in evidence.cases:
        if not part.needs or part.needs in case.measured:
            found.setdefault(tuple(getattr(case.record, column) for column in part.columns), []).append(case)
    large = [members for members in found.values() if len(members) >= LARGE and members[0].simulated is not None]
    chosen = [large[i] for i in sorted(rng.choice(len(large), min(part.groups, len(large)), replace=False).tolist())]
    cases = [case for members in chosen for case in members]
    if len(cases) > part.runs:
        cases = [cases[i] for i in sorted(rng.choice(len(cases), part.runs, replace=False).tolist())]
    ids = {case.id for case in cases}
    return _material(name, replace(with_cases(evidence, cases), fitted=evidence.fitted & ids), True, rng)


def campaign(name: str, bench: Bench, seed: int) -> Material:
    """A simulated campaign."""
    rng = generator(seed, name)
    evidence = bench.evidence(synthetic.campaign(name, bench, rng), f"{name}.csv")
    return _material(name, evidence, False, rng)


def _material(name: str, evidence: Evidence, real: bool, rng: np.random.Generator) -> Material:
    theirs = [replace(case, simulated=_theirs(case, rng)) for case in evidence.cases]
    others = replace(with_cases(evidence, theirs), own=False)
    return Material(name, real, dict(zip(SIDES, (evidence, others))))


def _theirs(case: Case, rng: np.random.Generator) -> RunRecord:
    """Figures of a sound simulator: one error for the times of a run, one for its power."""
    whole, power, cache = np.exp(rng.normal(0.0, (OTHER_SIMULATOR, OTHER_SIMULATOR, OTHER_CACHE))).tolist()
    record = scaled(scaled(case.record, TIMES, whole), RATES, 1.0 / whole)
    record = scaled(scaled(record, ("power_w",), power), ("energy_j_per_output_tok",), power * whole)
    # Fewer sequences at a time than measured, never more than there are.
    return scaled(scaled(record, ("kv_capacity_tok",), cache), ("batch_mean",), min(cache, 1.0 / cache))
