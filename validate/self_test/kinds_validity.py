"""F9, invalid run: too short, not warm, throttled, limited by its client, or read by a sensor that cannot."""

from __future__ import annotations

import msgspec
import numpy as np

from calibration.records import RunRecord
from validate.cases import Case, Evidence
from validate.self_test.bench import Bench
from validate.self_test.changes import RATES, repowered, scaled, slower
from validate.self_test.choose import as_run_under, draw, measured, replaced, some_measured, with_figures
from validate.self_test.injection import Injected, Injector, Size
from validate.self_test.synthetic import disturbed, open_run

replace = msgspec.structs.replace
SENSOR_S = 1.0  # a usage call averages over a second
ARRIVALS = ((512, 256), (2048, 128), (1024, 512))


def _warm_up(record: RunRecord, share: float) -> RunRecord | None:
    """The first request waits for compilation: `share` of the run's time on top."""
    if record.duration_s is None or not record.num_requests or record.ttft_s_mean is None:
        return None
    extra_s = share * record.duration_s
    with_first = min(record.concurrency or 1.0, record.num_requests)  # those in flight with it wait, too
    figures = {
        n: getattr(record, n) + extra_s * with_first / record.num_requests for n in ("ttft_s_mean", "e2e_s_mean")
    }
    if with_first >= 0.01 * record.num_requests:
        figures |= {
            n: getattr(record, n) + extra_s for n in ("ttft_s_p99", "e2e_s_p99") if getattr(record, n) is not None
        }
    out = scaled(with_figures(record, figures), RATES, 1.0 / (1.0 + share))
    longer = scaled(out, ("duration_s", "energy_j_per_output_tok"), 1.0 + share)  # compiling keeps the board busy
    return scaled(longer, ("batch_mean",), 1.0 / (1.0 + share))


def _short_window(bench: Bench, evidence: Evidence, per_seat: float, rng: np.random.Generator) -> Injected | None:
    """So few requests for a seat that the server is hardly ever full; figures as of such a run."""
    fitting = [c for c in evidence.cases if c.record.load == "burst" and (c.record.max_num_seqs or 0) >= 8]

    def change(case: Case) -> RunRecord | None:
        short = replace(case.record, num_requests=max(1, round(per_seat * case.record.max_num_seqs)))
        figures = as_run_under(bench, case, short)
        return None if figures is None else replace(figures, num_requests=short.num_requests)

    return replaced(bench, evidence, draw(fitting, 5, rng), change, 3)


def _averaged(bench: Bench, evidence: Evidence, window_s: float, rng: np.random.Generator) -> Injected | None:
    """Power by a sensor that averages longer than the run lasts: the rest of its window is idle."""

    def change(case: Case) -> RunRecord | None:
        record, power_w = case.record, case.prediction.outcome.values.get("power_w")
        if case.setup is None or power_w is None or record.duration_s is None or record.duration_s >= window_s:
            return None
        idle_w = case.setup.device.power.idle_w
        read_w = idle_w + (power_w - idle_w) * record.duration_s / window_s
        return replace(record, power_w=read_w, power_scope=case.prediction.power_scope)

    return replaced(bench, evidence, evidence.cases, change, 3)


def _throttled(bench: Bench, evidence: Evidence, factor: float, rng: np.random.Generator) -> Injected | None:
    """The second half of the campaign at lower clocks."""
    late = evidence.cases[len(evidence.cases) // 2 :]
    return replaced(bench, evidence, late, lambda case: repowered(slower(case.record, factor), factor**-1.5), 3)


def _client_limit(bench: Bench, evidence: Evidence, share: float, rng: np.random.Generator) -> Injected | None:
    """No more tokens per second than one client can take, on whatever GPU."""
    rates = [c.record.output_tok_per_s for c in evidence.cases if c.record.output_tok_per_s is not None]
    if len(rates) < 3:
        return None
    limit = share if share > 1.0 else share * max(rates)

    def change(case: Case) -> RunRecord | None:
        rate = case.record.output_tok_per_s
        if rate is None or rate <= limit:
            return None
        noise = float(np.exp(rng.normal(0.0, 0.01)))
        return slower(case.record, rate / limit * noise)

    return replaced(bench, evidence, evidence.cases, change, 3)


def _overload(bench: Bench, evidence: Evidence, rate_rps: float, rng: np.random.Generator) -> Injected | None:
    """Further runs whose requests arrive faster than they are served: TTFT is the queue's."""
    records = disturbed([open_run(rate_rps, i, o) for i, o in ARRIVALS], f"overload-{rate_rps:g}", bench, rng)
    cases = [bench.case(record) for record in records]
    return Injected(bench.added(evidence, cases), tuple(case.id for case in cases))


def _capped(record: RunRecord, factor: float) -> RunRecord:
    return repowered(slower(record, factor), factor**-1.5)


def _outlier(record: RunRecord, factor: float) -> RunRecord:
    return slower(record, factor)


_OUTLIER = (Size(1.02, "x1.02"), Size(1.3, "x1.3"), Size(2, "x2"), Size(22.49 / 2.9, "22.5 for 2.9 s", "ER-OUTLIER"))
INJECTORS = (
    Injector(
        fault="F9",
        kind="warm-up counted",
        view="record",
        apply=measured(_warm_up),
        materials=("server", "repeats", "node"),
        sizes=(Size(0.002, "0.2 % of the run"), Size(0.05, "5 %"), Size(0.2, "20 %"), Size(1, "as long as the run")),
    ),
    Injector(
        fault="F9",
        kind="short steady window",
        apply=_short_window,
        draws=2,
        materials=("mlenergy",),
        sizes=(
            Size(2.5, "2.5 per seat", "MLE-SHORT"),
            Size(1.5, "1.5 per seat", "MLE-SHORT"),
            Size(0.75, "0.75 per seat", "MLE-SHORT"),
        ),
    ),
    Injector(
        fault="F9",
        kind="outlier",
        apply=some_measured(_outlier),
        draws=3,
        sizes=_OUTLIER,
        materials=("prefill", "argonne", "modelcards_vllm", "helm", "server"),
    ),
    Injector(
        fault="F9",
        kind="average longer than the run",
        apply=_averaged,
        materials=("short",),
        also=("F5",),
        sizes=(Size(SENSOR_S, "1 s", "NVML-AVG"), Size(5 * SENSOR_S, "5 s", "ER-POWER")),
    ),
    Injector(
        fault="F9",
        kind="power diluted by idle",
        apply=measured(repowered),
        materials=("repeats", "server", "mlenergy"),
        sizes=(Size(0.99, "x0.99"), Size(0.92, "-8 %", "DILUTE"), Size(0.8, "-20 %"), Size(0.5, "-50 %")),
    ),
    Injector(
        fault="F9",
        kind="energy counter polled too fast",
        view="record",
        also=("F6",),
        materials=("server", "mlenergy", "edge"),
        apply=measured(lambda r, size: scaled(r, ("energy_j_per_output_tok",), size)),
        sizes=(
            Size(0.984, "-1.6 %", "NVML-FAST"),
            Size(0.867, "-13.3 %", "NVML-FAST"),
            Size(0.244, "-75.6 %", "NVML-FAST"),
            Size(0.046, "-95.4 %", "NVML-FAST"),
        ),
    ),
    Injector(
        fault="F9",
        kind="clocks capped",
        apply=measured(_capped),
        also=("F1", "F2"),
        materials=("server", "repeats", "mlenergy", "edge"),
        sizes=(Size(1.01, "x1.01"), Size(1.128, "x1.13"), Size(1.3, "x1.3"), Size(2, "x2")),
    ),
    Injector(
        fault="F9",
        kind="throttled from the middle on",
        apply=_throttled,
        also=("F1", "F2"),
        materials=("repeats", "server", "mlenergy"),
        sizes=(Size(1.01, "x1.01"), Size(1.15, "x1.15"), Size(1.3, "x1.3"), Size(2, "x2")),
    ),
    Injector(
        fault="F9",
        kind="limited by the client",
        apply=_client_limit,
        materials=("fleet",),
        also=("F7",),
        sizes=(Size(0.98, "0.98 of the best"), Size(0.5, "0.5 of the best"), Size(2400, "2.4 k tok/s", "CLIENT")),
    ),
    Injector(
        fault="F9",
        kind="overload",
        apply=_overload,
        label="validity.queueing",
        materials=("open loop",),
        draws=2,
        sizes=(Size(60, "60 requests/s", "LSS-QUEUE"), Size(300, "300 requests/s", "LSS-QUEUE")),
    ),
)
