"""The targets of fidelity (data/targets.toml), met or missed by judged predictions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from calibration.error_statistics import NO_INTERVAL, coverage_of, errors_of
from calibration.judged import Judged, family_of, split_apart

TARGETS = Path(__file__).parent / "data" / "targets.toml"


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which measurements a target is about; what is not stated selects all. `input_tok`: (smallest, largest)."""

    source: str | tuple[str, ...] = ()
    engine_family: str | tuple[str, ...] = ()
    gpu: str | tuple[str, ...] = ()
    model: str | tuple[str, ...] = ()
    metric: str | tuple[str, ...] = ()
    load: str | tuple[str, ...] = ()
    moe: bool | None = None
    flag: str = ""
    input_tok: tuple[float, float] | None = None

    def holds(self, row: Judged) -> bool:
        """Whether a measurement is among those selected."""
        own = {"load": row.record.load}
        for name in ("source", "engine_family", "gpu", "model", "metric", "load"):
            wanted, value = getattr(self, name), own.get(name) or getattr(row, name)
            if wanted and value not in ((wanted,) if isinstance(wanted, str) else wanted):
                return False
        if self.flag and not any(flag.startswith(self.flag) for flag in row.flags):
            return False
        if self.input_tok and not self.input_tok[0] <= (row.record.input_tok or 0.0) <= self.input_tok[1]:
            return False
        return self.moe is None or row.moe == self.moe


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One bound on one statistic of some measurements; see the comments of data/targets.toml."""

    id: str
    sentence: str
    statistic: str
    at_most: float | None = None
    at_least: float | None = None
    judged_on: str | tuple[str, ...] = "left_out"
    where: Where = Where()

    def limit(self) -> str:
        """The bound as text."""
        if self.at_least is None:
            return f"≤ {100 * self.at_most:g} %"
        if self.at_most is None:
            return f"≥ {100 * self.at_least:g} %"
        return f"{100 * self.at_least:g} to {100 * self.at_most:g} %"


@dataclass(frozen=True)
class Outcome:
    """A target held against the measurements. `value` is None without any; then it is neither met nor missed."""

    target: Target
    judged_on: str
    n: int
    value: float | None

    @property
    def verdict(self) -> str:
        """ "met", "missed" or "no data"."""
        if self.value is None:
            return "no data"
        high, low = self.target.at_most, self.target.at_least
        return "met" if (high is None or self.value <= high) and (low is None or self.value >= low) else "missed"


_STATISTICS = ("mean", "median", "p90", "bias", "coverage", "coverage_by_source")


def read_targets(path: Path = TARGETS) -> list[Target]:
    """The targets of a file, in order. ValueError on an unknown statistic, basis, or one without a bound."""
    targets = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8"))["target"], list[Target])
    for target in targets:
        where = f"{path}: target {target.id}"
        if target.statistic not in _STATISTICS:
            raise ValueError(f"{where}: statistic '{target.statistic}', expected one of {', '.join(_STATISTICS)}")
        if not set(_bases(target)) <= {"in_sample", "left_out"}:
            raise ValueError(f"{where}: judged_on '{target.judged_on}', expected in_sample or left_out")
        if target.at_most is None and target.at_least is None:
            raise ValueError(f"{where} has neither at_most nor at_least")
        if target.statistic.startswith("coverage") and _bases(target) != ("left_out",):
            raise ValueError(f"{where}: intervals are stated for left_out predictions only")
    return targets


def _bases(target: Target) -> tuple[str, ...]:
    return (target.judged_on,) if isinstance(target.judged_on, str) else target.judged_on


def outcomes(judged: Iterable[Judged], targets: Sequence[Target] | None = None) -> list[Outcome]:
    """Every target, held against the clean measurements; one outcome per basis that it is judged on."""
    clean = split_apart(judged)[0]
    out = []
    for target in read_targets() if targets is None else targets:
        chosen = [row for row in clean if target.where.holds(row)]
        for basis in _bases(target):
            found = [row for row in chosen if getattr(row, basis) is not None]
            if target.statistic.startswith("coverage"):
                found = [row for row in found if family_of(row) not in NO_INTERVAL]
            out.append(Outcome(target, basis, len(found), _statistic(target.statistic, basis, found)))
    return out


def _statistic(name: str, basis: str, rows: Sequence[Judged]) -> float | None:
    if name.startswith("coverage"):
        groups = {row.source if name == "coverage_by_source" else "": [] for row in rows}
        for row in rows:
            groups[row.source if name == "coverage_by_source" else ""].append(row)
        shares = [coverage_of(found) for found in groups.values()]
        return float(np.mean(shares)) if shares else None
    errors = errors_of((getattr(row, basis), row.measured) for row in rows)
    if errors is None:
        return None
    return abs(errors.bias) if name == "bias" else getattr(errors, "mape" if name == "mean" else name)
