"""F10 to F13: beyond the range of a fit, not repeatable, not independent, not modelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import retimed
from validate.self_test.choose import draw, replaced, resimulated, simulated
from validate.self_test.injection import Apply, Injected, Injector, Size
from validate.self_test.material import clean, shipped
from validate.self_test.synthetic import disturbed

replace = msgspec.structs.replace
FITTED_TO_TOK, LONGEST_TOK = 1100.0, 4096.0  # the published prefill fit of the labelled case ER-EXTRA


def _beyond_its_fit(case: Case, at_longest: float) -> RunRecord | None:
    """A quadratic in the prompt, fitted on short ones: right there, `at_longest` times off at 4096 tokens."""
    tok = case.record.input_tok or 0.0
    if tok <= FITTED_TO_TOK or case.simulated.ttft_s_mean is None:
        return None
    beyond = (tok - FITTED_TO_TOK) / (LONGEST_TOK - FITTED_TO_TOK)
    return retimed(case.simulated, ttft=1.0 + (at_longest - 1.0) * beyond**1.5)


def _other(fields: Callable[[RunRecord, float], dict[str, Any] | None]) -> Apply:
    """Runs of another configuration, measured as our own simulation says: nothing wrong with the figures."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        def change(case: Case) -> RunRecord | None:
            new = fields(case.record, size)
            if not new:
                return None
            blank = dict.fromkeys(case.measured)
            record = disturbed([replace(case.record, **blank | new)], case.id, bench, rng)[0]
            return replace(record, run_id=case.id)

        return replaced(bench, evidence, draw(evidence.cases, 5, rng), change, 3)

    return apply


def _longer(record: RunRecord, size: float) -> dict[str, Any] | None:
    longest = (record.input_tok or 1.0) * size + (record.output_tok or 1.0)
    return {"input_tok": record.input_tok * size, "max_model_len": round(longest) + 1}


def _silent(columns: tuple[str, ...]) -> Apply:
    """Runs whose record does not say these things."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        drawn = draw(
            [c for c in evidence.cases if any(getattr(c.record, n) is not None for n in columns)], round(size), rng
        )
        return replaced(bench, evidence, drawn, lambda case: replace(case.record, **dict.fromkeys(columns)), 1)

    return apply


def _of_the_fit(bench: Bench, evidence: Evidence, n: float, rng: np.random.Generator) -> Injected | None:
    """Rows that our calibration was fitted on, under other names, among those that test it."""
    name = "inferencex.csv" if evidence.cases[0].record.gpu != "orin-agx-64gb" else "edgereasoning.csv"
    rows = clean(shipped(name))
    cases = []
    for i in rng.permutation(len(rows)).tolist():
        case = bench.case(replace(rows[i], run_id=f"new-test-{len(cases)}"))
        if bench.fitted(case):
            cases.append(case)
        if len(cases) == round(n):
            return Injected(bench.added(evidence, cases), tuple(c.id for c in cases))
    return None


def _twice(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
    """Rows that stand in the file a second time, under another name."""
    n = max(1, round(share * len(evidence.cases))) if share < 1.0 else round(share)
    drawn = draw(evidence.cases, n, rng)
    copies = [bench.case(replace(c.record, run_id=f"{c.id}-again")) for c in drawn]
    runs = (*(c.id for c in drawn), *(c.id for c in copies))
    return Injected(bench.added(evidence, copies), runs)


def _copied(digits: int | None) -> Apply:
    """Simulated figures that are the measured ones, written with so many digits; None: with all."""

    def apply(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
        drawn = draw([c for c in evidence.cases if c.simulated], max(1, round(share * len(evidence.cases))), rng)
        new = {c.id: replace(c.simulated, **{n: _rounded(v, digits) for n, v in c.measured.items()}) for c in drawn}
        return resimulated(evidence, new, 1)

    return apply


def _rounded(value: float, digits: int | None) -> float:
    return value if digits is None else float(f"{value:.{digits}g}")


def _unmodelled(fields: dict[str, Any]) -> Apply:
    """Runs of a configuration that this version does not simulate."""

    def apply(bench: Bench, evidence: Evidence, size: float, rng: np.random.Generator) -> Injected | None:
        drawn = draw(evidence.cases, round(size), rng)
        return replaced(bench, evidence, drawn, lambda case: replace(case.record, **fields))

    return apply


_FEW = (Size(1, "1 run"), Size(5, "5 runs"))
INJECTORS = (
    Injector(
        fault="F10",
        kind="a fit beyond its prompts",
        side="simulated",
        apply=simulated(_beyond_its_fit),
        materials=("prefill", "edge"),
        also=("F7",),
        sizes=(Size(1.02, "x1.02 at 4096"), Size(1.5, "x1.5"), Size(12.4 / 3.51, "12.4 for 3.51 s", "ER-EXTRA")),
    ),
    Injector(
        fault="F10",
        view="label",
        kind="prompts beyond the calibration",
        apply=_other(_longer),
        materials=("edge", "server"),
        sizes=(Size(8, "x8"), Size(16, "x16")),
    ),
    Injector(
        fault="F10",
        view="label",
        kind="a GPU that was not calibrated",
        materials=("server", "repeats"),
        apply=_other(lambda r, size: {"gpu": "b200-sxm"}),
        sizes=(Size(1, "B200"),),
    ),
    Injector(
        fault="F11",
        view="label",
        kind="engine version not recorded",
        apply=_silent(("engine_version",)),
        materials=("server", "edge", "node"),
        sizes=_FEW,
    ),
    Injector(
        fault="F11",
        view="label",
        kind="engine not recorded",
        apply=_silent(("engine", "engine_version")),
        materials=("server", "edge", "node"),
        sizes=_FEW,
    ),
    Injector(
        fault="F11",
        view="label",
        kind="types and settings not recorded",
        materials=("server", "node"),
        sizes=_FEW,
        also=("F1",),
        apply=_silent(
            (
                "weight_dtype",
                "activation_dtype",
                "kv_dtype",
                "max_num_seqs",
                "max_num_batched_tokens",
                "prefix_caching",
                "cuda_graphs",
            )
        ),
    ),
    Injector(
        fault="F12",
        view="label",
        kind="rows of the fit as a test",
        apply=_of_the_fit,
        materials=("server", "edge"),
        draws=2,
        sizes=(Size(1, "1 row"), Size(5, "5 rows"), Size(20, "20 rows")),
    ),
    Injector(
        fault="F12",
        view="label",
        kind="one measurement twice",
        apply=_twice,
        materials=("server", "argonne", "inferencex"),
        draws=2,
        sizes=(Size(1, "1 row"), Size(0.2, "a fifth"), Size(0.99, "all")),
    ),
    Injector(
        fault="F12",
        view="label",
        kind="figures copied from the measurement",
        side="simulated",
        apply=_copied(None),
        materials=("server", "argonne", "inferencex"),
        sizes=(Size(0.1, "a tenth"), Size(0.5, "half"), Size(1, "all", "MESS-SHARED")),
    ),
    Injector(
        fault="F12",
        view="label",
        kind="copied and rounded",
        side="simulated",
        apply=_copied(3),
        materials=("server", "argonne", "inferencex"),
        sizes=(Size(0.5, "half, 3 digits"), Size(1, "all, 3 digits")),
    ),
    Injector(
        fault="F13",
        view="label",
        kind="a model that writes by diffusion",
        apply=_unmodelled({"model": "GSAI-ML/LLaDA-8B-Instruct"}),
        materials=("server", "edge"),
        sizes=_FEW,
    ),
    Injector(
        fault="F13",
        view="label",
        kind="a split that cannot be",
        apply=_unmodelled({"tp": 7, "n_gpus": 7}),
        materials=("server", "node"),
        sizes=_FEW,
    ),
)
