"""Fit every engine family to the measured runs that ship: what the shipped profiles and the ledger are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from calibration.family_fit import FamilyFit, fit_family
from calibration.points import usable
from calibration.records import RunRecord, read_records
from calibration.setup import Setup
from calibration.vendored import DIRECTORY
from simulator.profile_parts import kernels_for

FEW_RUNS = 12  # an engine with fewer runs on record keeps its priors: they say more than five odd runs


def shipped_records() -> tuple[list[RunRecord], tuple[str, ...]]:
    """All measured runs in the repository, and the names of their files."""
    paths = sorted(DIRECTORY.glob("*.csv"))
    return [record for path in paths for record in read_records(path)], tuple(path.name for path in paths)


def fit_groups(setups: Iterable[Setup]) -> dict[tuple[str, float], list[Setup]]:
    """Runs that share overheads: one engine family on one kind of host (servers, or boards with slower ones)."""
    groups: dict[tuple[str, float], list[Setup]] = {}
    for setup in setups:
        groups.setdefault((setup.family.id, kernels_for(setup.device).host_factor), []).append(setup)
    return dict(sorted(groups.items()))


def fit_all(
    records: Sequence[RunRecord],
    families: Sequence[str] = (),
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[FamilyFit]:
    """One fit per group of `fit_groups`, of the named engine families or of all."""
    groups = [g for key, g in fit_groups(usable(records)).items() if not families or key[0] in families]
    total, done, out = sum(map(len, groups)), 0, []
    for group in groups:

        def count(part: int, whole: int, done: int = done, size: int = len(group)) -> None:
            if progress:
                progress(done + size * part // whole, total)

        out.append(fit_family(group, jobs=jobs, progress=count, few=FEW_RUNS))
        done += len(group)
    return out


def on_servers(fit: FamilyFit) -> bool:
    """Whether a fit speaks for an engine on ordinary servers, and not for a board of its own."""
    return kernels_for(fit.fleet.setups[0].device).host_factor == 1.0


def used_files(fit: FamilyFit, gpu: str, folder: Path = DIRECTORY) -> tuple[str, ...]:
    """Names of the shipped files that hold the rows a GPU's profile was fitted on."""
    ids = {setup.record.run_id for setup in fit.fleet.setups if setup.device.id == gpu}
    return tuple(p.name for p in sorted(folder.glob("*.csv")) if any(r.run_id in ids for r in read_records(p)))
