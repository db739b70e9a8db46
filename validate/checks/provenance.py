"""F11: what a record must say so that its figures can be made again. What is not said is unverified, never wrong."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.records import METRICS, RunRecord
from calibration.sources import source_of
from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.wording import counted

# A campaign of `calibrate collect` keeps driver, clocks, host, seeds and command in its manifest, beside its records.
MANIFEST = "set:"
DRAW = ("trace_sha256:", "seed:")  # flags that say which requests were drawn
# What a simulated record cannot be without, so that stating them says nothing of the configuration.
_REQUIRED = frozenset({"run_id", "source", "gpu", "model", "load"})
_LATENCIES = tuple(name for name in METRICS if name.startswith(("ttft", "tpot", "itl", "e2e")))


def check(evidence: Evidence) -> Iterator[Finding]:
    """Notes, one for each set of things that runs do not state."""
    yield from _unstated(evidence)
    yield from _means_only(evidence)
    if not evidence.own:
        yield from _bare_figures(evidence)


def _unstated(evidence: Evidence) -> Iterator[Finding]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for case in evidence.cases:
        if missing := _missing(case.record):
            groups.setdefault(missing, []).append(case.id)
    for missing, runs in groups.items():
        yield Finding(
            check="provenance.unstated", layer="provenance", fault="F11", severity="note", confidence="certain",
            runs=tuple(runs), says=f"unverified: {counted(len(runs), 'run')} do not state {_and(missing)}",
            evidence={"missing": ", ".join(missing), "runs": len(runs)},
            next="record them with the runs (`calibrate collect` does), or add the source's address and commit",
        )  # fmt: skip


def _missing(record: RunRecord) -> tuple[str, ...]:
    """What is needed to measure a run again and is stated neither by the record nor by its source."""
    source, manifest = source_of(record.source), record.flagged(MANIFEST)
    drawn = (record.length_spread or "").startswith(("dataset:", "uniform:"))
    powered = record.power_w is not None or record.energy_j_per_output_tok is not None
    needed = {
        "address and commit of the source": manifest or bool(source.url and source.commit),
        "engine": bool(record.engine),
        "engine version": bool(record.engine_version or source.engine_version),
        "driver and clocks": manifest,
        "the requests that were drawn (file or seed)": manifest or not drawn or any(map(record.flagged, DRAW)),
        "scope of the power": bool(record.power_scope) or not powered,
    }
    return tuple(name for name, stated in needed.items() if not stated)


def _means_only(evidence: Evidence) -> Iterator[Finding]:
    """R3: a mean without a percentile or a spread hides how requests and repeats scatter."""
    runs = tuple(case.id for case in evidence.cases if _only_means(case))
    if runs:
        yield Finding(
            check="provenance.means_only", layer="provenance", fault="F11", severity="note", confidence="certain",
            runs=runs, says=f"unverified: {counted(len(runs), 'run')} give mean latencies only, without percentiles "
            "or repeats",
            evidence={"runs": len(runs)},
            next="keep the times of the requests, or measure each configuration at least five times",
        )  # fmt: skip


def _only_means(case: Case) -> bool:
    found = [name for name in _LATENCIES if name in case.measured]
    return bool(found) and case.record.rel_noise is None and all(name.endswith("_mean") for name in found)


def _bare_figures(evidence: Evidence) -> Iterator[Finding]:
    """Figures of another simulator that do not say of which configuration."""
    runs = tuple(case.id for case in evidence.cases if case.simulated is not None and not _stated(case.simulated))
    if runs:
        yield Finding(
            check="provenance.bare_figures", layer="provenance", fault="F11", severity="note", confidence="certain",
            runs=runs, also=("F1",),
            says=f"unverified: the simulated side of {counted(len(runs), 'run')} gives figures and no setting of "
            "what was "
            "simulated beside GPU and model",
            evidence={"runs": len(runs)},
            next="write the simulator's resolved configuration into the file: types, split, limits, KV capacity",
        )  # fmt: skip


def _stated(record: RunRecord) -> list[str]:
    """Columns with a configuration or a load in them."""
    free = {*_REQUIRED, *METRICS, "flags", "rel_noise", "power_scope"}
    return [name for name in RunRecord.__struct_fields__ if name not in free and getattr(record, name) is not None]


def _and(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
