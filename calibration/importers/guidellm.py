"""GuideLLM's `benchmarks.json`: one benchmark per strategy of a profile.

Read from src/guidellm/benchmark/schemas/, src/guidellm/schemas/ and docs/guides/metrics.md of GuideLLM; report version
1 is that of GuideLLM 0.5 and 0.6, version 2 that of 0.7. Three of its definitions are not the schema's:
`inter_token_latency_ms` is our TPOT of a request, but its distribution counts a request n - 1 times, so its mean is the
mean gap over all tokens (our itl_s_mean); `time_per_output_token_ms` includes the first token; and
`output_tokens_per_second` runs from the first token to the last, not over the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import (
    SEVERAL,
    TOLERANCE,
    Spread,
    check_same,
    spread,
    tpot_without_first,
    weighted_mean,
)
from calibration.importers.fields import Fields, SourceFile, shown
from calibration.importers.guidellm_requests import Request, check_summaries, read_requests
from calibration.importers.names import state_model
from calibration.importers.row import Row, Skipped, put_load

VERSIONS = (1, 2)
MS = 1e-3
BESIDE_TEXT = ("image", "video", "audio")
LAG_SHARE = 0.05  # of mean TTFT: a client later than that measured itself


def read(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """One row per benchmark of the report."""
    rows: list[Row | Skipped] = []
    for report in source.each("report"):
        version = report.get("metadata.version")
        if version is None:
            report.refuse("metadata.version", "is missing, expected 1 or 2 (reports of GuideLLM before 0.5 have none)")
        if version not in VERSIONS or isinstance(version, bool):
            report.refuse("metadata.version", f"is {shown(version)}, expected one of {', '.join(map(str, VERSIONS))}")
        benchmarks = report.sections("benchmarks", "benchmark")
        if not benchmarks:
            report.refuse("benchmarks", "is empty, expected at least one benchmark")
        rows += [_benchmark(fields, report) for fields in benchmarks]
    return rows


def _benchmark(fields: Fields, report: Fields) -> Row | Skipped:
    metrics = fields.section("metrics")
    finished = metrics.number("request_totals.successful")
    if finished < 1:
        return Skipped(fields.where, "no request finished")
    row = Row(fields.where, "guidellm", completed=int(finished))
    state_model(row, _model(fields, report))
    duration = fields.positive("duration")
    outputs = metrics.section("output_token_count.successful")
    mean_in, mean_out = metrics.positive("prompt_token_count.successful.mean"), outputs.positive("mean")
    row.state(duration_s=duration, input_tok=mean_in, output_tok=mean_out)
    fixed = all(_fixed(metrics.section(f"{name}_token_count.successful")) for name in ("prompt", "output"))
    if fixed:
        row.derive("length_spread", "fixed", "least and largest lengths are equal")
    failed, cut = (metrics.optional(f"request_totals.{name}") or 0.0 for name in ("errored", "incomplete"))
    row.failures(failed, finished + cut + failed)
    if cut:
        row.mark(f"incomplete:{cut:g}")  # still running when the time was up
    _put_arrivals(row, fields, metrics, int(finished + cut + failed))
    _put_rates(row, fields, metrics, finished, duration)
    requests = read_requests(fields, int(finished))
    _put_times(row, fields, metrics, requests, fixed)
    _mark_prompts(row, metrics, requests)
    if (metrics.optional("iter_tokens_per_iteration.successful.mean") or 1.0) * SEVERAL > 1.0:
        row.mark("ambiguous:several_tokens_per_chunk")
    _check_client(row, fields)
    return row


def _mark_prompts(row: Row, metrics: Fields, requests: list[Request] | None) -> None:
    """Note prompts that are more than text, or that the server had in its prefix cache."""
    for kind in BESIDE_TEXT:
        blocks = metrics.get(kind)
        for name in blocks if isinstance(blocks, dict) else ():
            if metrics.optional(f"{kind}.{name}.input.successful.mean"):
                row.mark("suspect:multimodal_prompts")
    if requests and sum(r.cached_tok for r in requests) > TOLERANCE * row.columns["input_tok"] * len(requests):
        row.mark("suspect:cached_prompt")


def _model(fields: Fields, report: Fields) -> str | None:
    """The model's name, which moved between versions of the report."""
    places = [(report, p) for p in ("config.spec.backend.model", "args.model", "args.backend_kwargs.model")]
    for where, path in [*places, (fields, "config.backend.model")]:
        if name := where.optional_text(path):
            return name
    return None


def _fixed(distribution: Fields) -> bool:
    return distribution.number("min") == distribution.number("max")


def _put_arrivals(row: Row, fields: Fields, metrics: Fields, requests: int) -> None:
    strategy = fields.section("config.strategy")
    if strategy.optional("rampup_duration"):
        row.mark("ambiguous:ramp_up")
    kind, limit = strategy.text("type_"), strategy.optional_count("max_concurrency")
    if kind == "synchronous":
        put_load(row, requests, clients=1)
    elif kind == "concurrent":
        put_load(row, requests, clients=strategy.count("streams"))
    elif kind == "throughput":
        put_load(row, requests, clients=limit)
    elif kind in ("constant", "poisson"):
        # Every strategy gets a limit from the client's worker processes; it matters only where it was reached.
        peak = metrics.number("request_concurrency.successful.max")
        reached = limit if limit is not None and peak >= limit else None
        put_load(row, requests, reached, strategy.positive("rate"), poisson=kind == "poisson")
    elif kind == "trace":
        row.state(load="open_loop", num_requests=requests)
        row.mark("ambiguous:trace_replay")
    else:
        strategy.refuse(
            "type_", f"is '{kind}', expected synchronous, concurrent, throughput, constant, poisson or trace"
        )


def _put_rates(row: Row, fields: Fields, metrics: Fields, finished: float, duration: float) -> None:
    """Tokens per second over the run; in a run cut down to its middle the tool's own rate."""
    if fields.optional("warmup_duration") or fields.optional("cooldown_duration"):
        row.mark("steady_window")
        row.completed = None  # requests reach over the window's ends
        for name, path in (("output_tok_per_s", "output_tokens_per_second"), ("total_tok_per_s", "tokens_per_second")):
            row.state(**{name: metrics.positive(f"{path}.successful.mean")})
        return
    tokens = finished * row.columns["output_tok"]
    row.convert("output_tok_per_s", tokens / duration, "from output tokens / duration")
    both = finished * (row.columns["input_tok"] + row.columns["output_tok"])
    row.convert("total_tok_per_s", both / duration, "from prompt and output tokens / duration")


def _put_times(row: Row, fields: Fields, metrics: Fields, requests: list[Request] | None, fixed: bool) -> None:
    ttft, e2e = _distribution(metrics, "time_to_first_token_ms"), _distribution(metrics, "request_latency")
    itl, tpot = _token_times(metrics)
    if requests is not None:
        row.mark("summaries_recomputed")
        check_summaries(fields.where, requests, ttft, itl, tpot, e2e)
        check_same(fields.where, ("output_token_count.successful.mean", row.columns["output_tok"]),
                   ("the requests' mean", spread([r.output_tok for r in requests]).mean))  # fmt: skip
        _put_from_requests(row, requests)
        return
    row.mark("requests_not_all_in_file")
    row.convert_spread("ttft_s", ttft.times(MS), "from ms")
    row.convert_spread("e2e_s", e2e.times(1.0), "from request_latency, which is in s")
    if itl.mean:
        row.convert("itl_s_mean", itl.mean * MS, "from inter_token_latency_ms, its token-weighted mean")
    if not fixed:
        row.leave_empty("tpot_s_*", "the file's times per token count a request once per token, and lengths differ")
        return
    without = None
    if tpot.mean and ttft.mean and row.columns["output_tok"] > 1:
        without = tpot_without_first(tpot.mean, ttft.mean, row.columns["output_tok"])
    if itl.mean:
        check_same(fields.where, ("inter_token_latency_ms.successful.mean", itl.mean),
                   ("time_per_output_token_ms without the first token", without))  # fmt: skip
        row.convert_spread("tpot_s", itl.times(MS), "from inter_token_latency_ms = (last-first)/(n-1)")
    elif without is not None:
        row.convert("tpot_s_mean", without * MS, "from (last-start)/n to (last-first)/(n-1) with TTFT")


def _distribution(metrics: Fields, name: str) -> Spread:
    part = metrics.section(f"{name}.successful")
    return Spread(part.number("mean"), part.number("median"), part.number("percentiles.p99"))


def _token_times(metrics: Fields) -> tuple[Spread, Spread]:
    """Time per token without and with the first; a report may have been trimmed to one of them."""
    names = ("inter_token_latency_ms", "time_per_output_token_ms")
    if not any(metrics.has(name) for name in names):
        metrics.section(names[0])
    without, including = (_distribution(metrics, name) if metrics.has(name) else Spread() for name in names)
    return without, including


def _put_from_requests(row: Row, requests: list[Request]) -> None:
    """The schema's statistics: every request once, requests without a value left out; all gaps for the ITL's mean."""
    ttfts = [r.ttft_ms * MS for r in requests if r.ttft_ms is not None]
    row.convert_spread("ttft_s", spread(ttfts), "from time_to_first_token_ms of the requests")
    row.convert_spread("e2e_s", spread([r.e2e_s for r in requests if r.e2e_s]), "from request_latency of the requests")
    several = [r for r in requests if r.time_per_token_ms]
    if not several:
        row.leave_empty("tpot_s_*", "no request streamed its tokens")
        return
    per_request = [r.time_per_token_ms * MS for r in several]
    how = "from inter_token_latency_ms of each request = (last-first)/(n-1)"
    if any(r.itl_ms is None for r in several):
        how = "from time_per_output_token_ms = (last-start)/n to (last-first)/(n-1)"
    row.convert_spread("tpot_s", spread(per_request), how)
    mean = weighted_mean(per_request, [r.output_tok - 1.0 for r in several])
    row.convert("itl_s_mean", mean, "from time between first and last token over all gaps")
    row.leave_empty("itl_s_median+itl_s_p99", "gaps between single tokens are not in the file")


def _check_client(row: Row, fields: Fields) -> None:
    """A client that sent requests later than it meant to measured its own queue, too. -1: not known."""
    lag = fields.get("scheduler_metrics.request_targeted_start_delay_avg")
    ttft = row.columns.get("ttft_s_mean")
    if row.columns["load"] == "open_loop" and isinstance(lag, int | float) and ttft and lag > LAG_SHARE * ttft:
        row.mark(f"client_lag_s:{lag:.3g}")
        row.mark("suspect:client_limit")
