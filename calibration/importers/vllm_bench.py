"""`vllm bench serve`, `latency` and `throughput`: result files of vLLM's own benchmarks.

Read from vllm/benchmarks/serve.py, latency.py, throughput.py and docs/benchmarking/cli.md of vLLM (2025 to 2026).
Summaries of `serve` are in milliseconds, its lists per request in seconds; times of the other two are in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import Spread, check_same, check_spread, spread
from calibration.importers.fields import Fields, SourceFile
from calibration.importers.names import state_model
from calibration.importers.row import Row, Skipped, put_load
from calibration.importers.streams import (
    Streams,
    check_at_once,
    check_totals,
    limit_reached,
    put_gaps,
    read_streams,
    refuse_without_text,
    summary,
)
from simulator.errors import UserError

MS = 1e-3


def read_serve(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """Rows of `vllm bench serve --save-result` (also `--append-result`: one JSON object per line)."""
    return [_serve(fields) for fields in source.each()]


def _serve(fields: Fields) -> Row:
    if fields.get("backend") == "tokenflight":
        raise UserError(f"{fields.where}: field 'backend' is 'tokenflight': a simulation, expected a measurement")
    refuse_without_text(fields)
    completed, streams = fields.count("completed"), read_streams(fields)
    row = Row(fields.where, "vllm_bench_serve", completed=completed)
    state_model(row, fields.text("model_id"))
    inputs, outputs, duration = check_totals(fields, streams)
    row.convert("input_tok", inputs / completed, "from total_input_tokens/completed")
    row.convert("output_tok", outputs / completed, "from total_output_tokens/completed")
    row.state(duration_s=duration, output_tok_per_s=fields.positive("output_throughput"))
    row.state(total_tok_per_s=fields.positive("total_token_throughput"))
    if streams is not None and streams.fixed_lengths:
        row.derive("length_spread", "fixed", "all lengths are equal")
    submitted = fields.count("num_prompts")  # asked for; a data set may have had fewer
    failed = fields.whole("failed") if fields.has("failed") else max(0, submitted - completed)
    submitted = completed + failed
    row.failures(failed, submitted)
    _put_arrivals(row, fields, submitted)
    speculative = _mark_unusual(row, fields)
    _put_times(row, fields, streams)
    put_gaps(row, streams, speculative)
    return row


def _put_arrivals(row: Row, fields: Fields, submitted: int) -> None:
    rate: float | None = None
    if fields.get("request_rate") not in ("inf", float("inf")):
        rate = fields.positive("request_rate")
    elif fields.has("ramp_up_strategy"):
        row.mark("ambiguous:ramp_up")
    if "max_concurrency" not in fields.data:
        fields.refuse("max_concurrency", "is missing, expected a number or null")
    even = fields.get("burstiness") == float("inf")  # evenly spaced
    poisson = rate is None or (not even and fields.number("burstiness") == 1.0)
    put_load(row, submitted, limit_reached(fields, rate), rate, poisson)
    check_at_once(row, fields)
    if fields.optional("probe_completed"):
        row.mark("ambiguous:probe_requests_beside")  # one-token requests at a rate of their own, in no other figure


def _mark_unusual(row: Row, fields: Fields) -> bool:
    """Note what no model of plain decoding of text can be held against; whether decoding was speculative."""
    if fields.optional("rtfx"):
        row.mark("suspect:multimodal_prompts")  # seconds of sound per second
    if fields.has("diffusion_committed_per_step"):
        row.mark("suspect:diffusion_decoding")
    speculative = fields.has("spec_decode_acceptance_length")
    if speculative:
        row.speculative(f"{fields.number('spec_decode_acceptance_length'):.3g} tokens per step")
    return speculative


def _put_times(row: Row, fields: Fields, streams: Streams | None) -> None:
    """TTFT and TPOT are the schema's by definition; end-to-end times are stated only where they were asked for."""
    ttft, tpot, e2e = (summary(fields, name) for name in ("ttft", "tpot", "e2el"))
    if ttft.mean is None or tpot.mean is None:
        fields.number("mean_ttft_ms" if ttft.mean is None else "mean_tpot_ms")
    if streams is not None:
        row.mark("summaries_recomputed")
        check_spread(fields.where, ttft.times(MS), "{}_ttft_ms/1000", spread(streams.ttft_s), "ttfts")
        if streams.e2e_s:
            check_spread(fields.where, tpot.times(MS), "{}_tpot_ms/1000", streams.tpot(), "latencies and ttfts")
            check_spread(fields.where, e2e.times(MS), "{}_e2el_ms/1000", spread(streams.e2e_s), "latencies")
        gaps = summary(fields, "itl")
        check_spread(fields.where, gaps.times(MS), "{}_itl_ms/1000", spread(streams.all_gaps_s), "itls")
    if row.not_streamed(tpot):
        ttft = Spread()
    for family, values in (("ttft_s", ttft), ("tpot_s", tpot)):
        if values.mean == 0.0:
            row.leave_empty(f"{family}_*", "0 in the file, so not measured")
        row.convert_spread(family, values.times(MS), "from ms")
    if e2e.mean:
        row.convert_spread("e2e_s", e2e.times(MS), "from ms")
    elif streams is not None and streams.e2e_s:
        row.derive_spread("e2e_s", spread(streams.e2e_s), "from latencies")
    elif streams is not None:
        row.derive_spread("e2e_s", spread(streams.to_last_chunk_s()), "from ttfts and itls")
    elif fields.has("latencies") and fields.get("failed") == 0:  # kept without --save-detailed; a failed one has 0
        row.derive_spread("e2e_s", spread(fields.numbers("latencies")), "from latencies")


def read_latency(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """Rows of `vllm bench latency`: one static batch, run again and again; lengths and batch are not in the file."""
    rows: list[Row | Skipped] = []
    for fields in source.each():
        row = Row(fields.where, "vllm_bench_latency")
        times = fields.numbers("latencies")
        if not times:
            fields.refuse("latencies", "is empty, expected a time per iteration")
        stated = Spread(fields.positive("avg_latency"), fields.optional("percentiles.50"),
                        fields.optional("percentiles.99"))  # fmt: skip
        own = spread(times)
        check_same(fields.where, ("avg_latency", stated.mean), ("the mean of latencies", own.mean))
        check_same(fields.where, ("percentiles.50", stated.median), ("the median of latencies", own.median))
        check_same(fields.where, ("percentiles.99", stated.p99), ("the p99 of latencies", own.p99))
        row.mark("summaries_recomputed")
        row.state(engine="vllm", load="static_batch", length_spread="fixed")
        row.convert_spread("e2e_s", stated, "from the time of the whole batch, whose requests end together")
        if len(times) > 1 and stated.mean:
            deviation = (sum((time - stated.mean) ** 2 for time in times) / (len(times) - 1)) ** 0.5
            row.derive("rel_noise", deviation / stated.mean, f"{len(times)} iterations of one process")
        rows.append(row)
    return rows


def read_throughput(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """Rows of `vllm bench throughput`: all requests at once, in process; prompts and outputs are counted together."""
    rows: list[Row | Skipped] = []
    for fields in source.each():
        row = Row(fields.where, "vllm_bench_throughput")
        requests, duration = fields.count("num_requests"), fields.positive("elapsed_time")
        tokens, rate = fields.positive("total_num_tokens"), fields.positive("tokens_per_second")
        check_same(fields.where, ("tokens_per_second", rate), ("total_num_tokens / elapsed_time", tokens / duration))
        check_same(fields.where, ("requests_per_second", fields.positive("requests_per_second")),
                   ("num_requests / elapsed_time", requests / duration))  # fmt: skip
        put_load(row, requests)
        row.state(duration_s=duration, total_tok_per_s=rate)
        _put_lengths(row, tokens / requests, given)
        rows.append(row)
    return rows


def _put_lengths(row: Row, tokens: float, given: Mapping[str, Any]) -> None:
    """One length follows from the other, which the user gives; with it the rate of output tokens."""
    known = {name: float(given[name]) for name in ("input_tok", "output_tok") if name in given}
    if len(known) == 1:
        ((name, value),) = known.items()
        other = "output_tok" if name == "input_tok" else "input_tok"
        if not value < tokens:
            raise UserError(f"{row.where}: {name} of {value:g} was given, expected less than the {tokens:g} of both")
        known[other] = tokens - value
        row.derive(other, known[other], f"total_num_tokens/num_requests - {name}")
    elif known:
        check_same(row.where, ("input_tok + output_tok as given", sum(known.values())),
                   ("total_num_tokens / num_requests", tokens))  # fmt: skip
    if known:
        rate = known["output_tok"] * row.columns["num_requests"] / row.columns["duration_s"]
        row.derive("output_tok_per_s", rate, "output_tok num_requests / duration_s")
    else:
        row.leave_empty("output_tok_per_s", "prompt and output tokens are counted together")
