"""F6, two views disagree: figures of one run that contradict each other."""

from __future__ import annotations

from calibration.records import RunRecord
from validate.cases import Case
from validate.self_test.changes import E2E, RATES, STATISTICS, scaled
from validate.self_test.choose import some_measured, with_figures
from validate.self_test.injection import Injector, Size

SOME = 5  # runs of a file


def _stopped_early(record: RunRecord, share: float) -> RunRecord | None:
    """Only this share of the answer was written; tokens are counted as asked for."""
    n = record.output_tok or 1.0
    figures = {}
    for which in STATISTICS:
        first, gap, whole = (getattr(record, f"{m}_s_{which}") for m in ("ttft", "tpot", "e2e"))
        if None not in (first, gap, whole) and n > 2:
            figures[f"e2e_s_{which}"] = whole - (1.0 - share) * gap * (n - 1.0)
    return with_figures(record, figures) if figures else None


def _clean_rate(case: Case) -> bool:
    return case.record.output_tok_per_s is not None


INJECTORS = (
    Injector(
        fault="F6",
        kind="answers that stopped early",
        view="record",
        apply=some_measured(_stopped_early, SOME),
        draws=2,
        materials=("server", "edge", "repeats"),
        also=("F8",),
        sizes=(Size(0.99, "0.99 written"), Size(0.9, "0.9 written", "SW-E2E"), Size(0.5, "half written", "SW-E2E")),
    ),
    Injector(
        fault="F6",
        kind="throughput of another window",
        view="record",
        draws=2,
        apply=some_measured(lambda r, size: scaled(r, RATES, size), SOME, _clean_rate),
        materials=("server", "repeats", "argonne", "mlenergy"),
        sizes=(Size(1.01, "x1.01"), Size(1.05, "x1.05"), Size(1.2, "x1.2"), Size(0.8, "x0.8"), Size(2, "x2")),
    ),
    Injector(
        fault="F6",
        kind="batch of another window",
        view="record",
        draws=2,
        materials=("server", "repeats", "mlenergy"),
        apply=some_measured(lambda r, size: scaled(r, ("batch_mean",), size), SOME),
        sizes=(Size(1.01, "x1.01"), Size(0.9, "x0.9"), Size(1.15, "x1.15"), Size(1.5, "x1.5")),
    ),
    Injector(
        fault="F6",
        kind="energy against power",
        view="record",
        draws=2,
        materials=("server", "repeats", "mlenergy", "edge"),
        apply=some_measured(lambda r, size: scaled(r, ("energy_j_per_output_tok",), size), SOME),
        sizes=(Size(1.01, "x1.01"), Size(1.08, "x1.08"), Size(1.3, "x1.3"), Size(0.5, "x0.5")),
    ),
    Injector(
        fault="F6",
        kind="one latency against its own row",
        apply=some_measured(lambda r, size: scaled(r, ("e2e_s_mean",), size), 1),
        materials=("modelcards_vllm",),
        draws=4,
        also=("F9",),
        sizes=(Size(1.02, "x1.02"), Size(1.3, "x1.3", "CARD-RAG"), Size(3.48, "x3.48", "CARD-RAG")),
    ),
    Injector(
        fault="F6",
        kind="end to end against its parts",
        view="record",
        draws=2,
        materials=("server", "repeats", "edge"),
        apply=some_measured(lambda r, size: scaled(r, E2E, size), SOME),
        sizes=(Size(1.01, "x1.01"), Size(1.1, "x1.1"), Size(0.7, "x0.7"), Size(2, "x2")),
    ),
)
