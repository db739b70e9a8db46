"""F2, unit, clock or scale: a constant factor between what was measured and what was written, or simulated."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from calibration.records import RunRecord
from validate.cases import Case
from validate.self_test.changes import GAPS, RATES, TIMES, retimed, scaled, slower
from validate.self_test.choose import measured, simulated, some_measured
from validate.self_test.injection import Apply, Injector, Size

SERVERS = ("server", "repeats", "mlenergy", "inferencex")
CLOCK = (Size(1.575, "x1.575", "MESS-01"), Size(0.7875, "x0.7875", "MESS-02"))


def _columns(names: Iterable[str]) -> Apply:
    return measured(lambda record, size: scaled(record, names, size))


def _per_gpu(names: Iterable[str]) -> Apply:
    def change(record: RunRecord, size: float) -> RunRecord | None:
        return scaled(record, names, 1.0 / record.n_gpus) if (record.n_gpus or 1) > 1 else None

    return measured(change, fewest=3)


def _of_replicas(record: RunRecord, factor: float) -> RunRecord:
    """Clients summed over replicas: each of them was served as one of half as many."""
    return msgspec.structs.replace(slower(record, factor), energy_j_per_output_tok=record.energy_j_per_output_tok)


def _faster_prefill(case: Case, factor: float) -> RunRecord:
    return retimed(case.simulated, ttft=factor)


INJECTORS = (
    Injector(
        fault="F2",
        kind="times between tokens, unit",
        apply=_columns(GAPS),
        materials=SERVERS,
        sizes=(Size(1e3, "ms for s"), Size(1e-3, "s for ms"), Size(1e6, "us for s")),
    ),
    Injector(
        fault="F2",
        kind="all times, unit",
        apply=_columns(TIMES),
        materials=("server", "argonne", "helm", "edge"),
        sizes=(Size(1e3, "ms for s"), Size(1e-3, "s for ms")),
    ),
    Injector(
        fault="F2",
        kind="one run in another unit",
        apply=some_measured(lambda r, size: scaled(r, TIMES, size)),
        materials=("server", "helm", "edgereasoning", "modelcards_vllm"),
        draws=2,
        sizes=(Size(1e3, "ms for s"), Size(60, "min for s")),
    ),
    Injector(
        fault="F2",
        kind="clock of all times",
        apply=measured(slower),
        materials=("repeats", "server", "edge", "mlenergy"),
        sizes=(Size(1.01, "x1.01"), Size(1.024, "x1.024"), Size(1.048576, "x1.049"), Size(1.073742, "x1.074"), *CLOCK),
    ),
    Injector(
        fault="F2",
        kind="factor on times between tokens",
        apply=_columns(GAPS),
        materials=SERVERS,
        sizes=(
            Size(1.024, "x1.024"),
            Size(1.048576, "x1.049"),
            Size(1.073742, "x1.074"),
            *CLOCK,
            Size(2, "x2", "AIC-ELEM"),
            Size(8, "x8"),
        ),
    ),
    Injector(
        fault="F2",
        kind="factor on times between tokens, pairs only",
        side="simulated",
        apply=simulated(lambda case, size: scaled(case.simulated, GAPS, size)),
        materials=("mlenergy", "inferencex"),
        sizes=(*CLOCK, Size(0.5, "x0.5", "AIC-ELEM"), Size(8, "x8")),
    ),
    Injector(
        fault="F2",
        kind="clients summed over replicas",
        apply=measured(_of_replicas),
        materials=("inferencex", "mlenergy"),
        sizes=(Size(2.1, "x2.1", "AIC-REPL"), Size(1.05, "x1.05")),
    ),
    Injector(
        fault="F2",
        kind="tokens/s per GPU for all",
        apply=_per_gpu(RATES),
        materials=("node", "mlenergy"),
        sizes=(Size(1, "1/n"),),
        view="record",
    ),
    Injector(
        fault="F2",
        kind="power of one GPU for all",
        apply=_per_gpu(("power_w",)),
        materials=("node", "mlenergy"),
        sizes=(Size(1, "1/n"),),
        view="record",
    ),
    Injector(
        fault="F2",
        kind="power, unit",
        apply=_columns(("power_w",)),
        materials=("server", "edge", "mlenergy"),
        sizes=(Size(1e3, "mW for W"), Size(1e-3, "kW for W")),
        view="record",
    ),
    Injector(
        fault="F2",
        kind="tokens/s, scale",
        apply=_columns(RATES),
        materials=("repeats", "argonne", "mlenergy"),
        sizes=(Size(1.024, "x1.024"), Size(2, "x2"), Size(60, "per minute")),
        view="record",
    ),
    Injector(
        fault="F2",
        kind="sparse peak taken as dense",
        side="simulated",
        apply=simulated(_faster_prefill),
        materials=("server", "inferencex", "edge"),
        sizes=(Size(0.99, "x0.99"), Size(0.9, "x0.9"), Size(733 / 1466, "1466 for 733 TFLOPS", "SPARSE")),
    ),
)
