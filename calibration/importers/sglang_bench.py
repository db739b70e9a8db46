"""`python -m sglang.bench_serving --output-file`: one JSON object per line.

Read from docs/developer_guide/bench_serving.md, python/sglang/bench_serving.py (later benchmark/serving.py) and
srt/entrypoints/http_server.py of SGLang. Summaries are in milliseconds, lists per request (`--output-details`) in
seconds. A model is named only by a server that answered: `server_info` has its arguments (and its API key, which is
left alone), the scheduler's figures and the version. Its native client shares a chunk's gap out among its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import TOLERANCE, Spread, check_same, check_spread, spread
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

MS = 1e-3
# Where the client talks the engine's own protocol the engine is known; the OpenAI protocol is spoken by many.
ENGINES = {"sglang": "sglang", "sglang-native": "sglang", "trt": "trtllm"}
SYNTHETIC = ("random", "random-ids")
PICTURES = ("image", "mmmu")
REPLAYED = ("mooncake", "agentic-trace")  # sent at the trace's own times, whatever the rate says


def read(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """One row per line of the file."""
    return [_run(fields) for fields in source.each()]


def _run(fields: Fields) -> Row | Skipped:
    refuse_without_text(fields)
    if fields.has("server_info.prefill") or fields.has("server_info.decode"):
        return Skipped(fields.where, "prefill and decode on servers of their own: the records have no columns for that")
    completed, streams = fields.count("completed"), read_streams(fields)
    row = Row(fields.where, "sglang_bench_serving", completed=completed)
    inputs, outputs, duration = check_totals(fields, streams)
    row.state(engine=ENGINES.get(fields.text("backend")), duration_s=duration)
    speculative = _put_server(row, fields)
    row.convert("input_tok", inputs / completed, "from total_input_tokens/completed")
    row.convert("output_tok", outputs / completed, "from total_output_tokens/completed")
    row.state(output_tok_per_s=fields.positive("output_throughput"))
    if fields.has("total_throughput"):
        row.state(total_tok_per_s=fields.positive("total_throughput"))
    else:
        row.derive("total_tok_per_s", (inputs + outputs) / duration, "(input + output tokens) / duration")
    _put_spread_of_lengths(row, fields, streams)
    _put_arrivals(row, fields, completed, len(fields.entries("ttfts")) if fields.has("ttfts") else None)
    accepted = fields.optional("accept_length") or 0.0
    speculative = speculative or accepted > 0.0
    if speculative:
        row.speculative(f"{accepted:.3g} tokens per step" if accepted else "tokens per step not stated")
    _mark_prompts(row, fields, inputs)
    _put_times(row, fields, streams, speculative)
    put_gaps(row, streams, speculative)
    return row


def _put_server(row: Row, fields: Fields) -> bool:
    """What an SGLang server says of itself, where the client asked it; whether it decodes speculatively."""
    if not (fields.has("server_info.model_path") and fields.has("server_info.tp_size")):
        return False  # none, or that of another engine
    server = fields.section("server_info")
    row.state(engine="sglang", engine_version=server.optional_text("version"))
    state_model(row, server.optional_text("model_path"))
    tp, pp, dp = (server.optional_count(f"{name}_size") for name in ("tp", "pp", "dp"))
    row.state(tp=tp, pp=pp, ep=server.optional_count("ep_size"))
    if server.flag("enable_dp_attention") and (dp or 1) > 1:
        row.state(n_gpus=(tp or 1) * (pp or 1))  # its data parallelism is inside the tensor parallel group
        row.mark("ambiguous:dp_attention")
    else:
        row.state(dp=dp)
    if (no_cache := server.flag("disable_radix_cache")) is not None:
        row.state(prefix_caching=not no_cache)
    return server.has("speculative_algorithm")


def _mark_prompts(row: Row, fields: Fields, inputs: float) -> None:
    """Note prompts that are more than text of their own."""
    dataset = fields.text("dataset_name")
    if dataset in PICTURES or fields.optional("total_input_vision_tokens"):
        row.mark("suspect:multimodal_prompts")
    if dataset == "generated-shared-prefix":
        row.mark("ambiguous:shared_prefixes")
    cached = fields.optional("cache_report.total_cached_tokens") or 0.0
    if cached > TOLERANCE * inputs:
        row.mark("suspect:cached_prompt")


def _put_spread_of_lengths(row: Row, fields: Fields, streams: Streams | None) -> None:
    dataset = fields.text("dataset_name")
    if streams is not None and streams.fixed_lengths:
        row.derive("length_spread", "fixed", "all lengths are equal")
    elif dataset in SYNTHETIC and fields.has("random_range_ratio"):
        ratio = fields.number("random_range_ratio")
        if ratio <= 1.0:
            spread_name = "fixed" if ratio == 1.0 else f"uniform:{ratio:g}"
            row.convert("length_spread", spread_name, "from random_range_ratio")
    elif dataset not in SYNTHETIC:
        row.convert("length_spread", f"dataset:{dataset}", "from dataset_name")


def _put_arrivals(row: Row, fields: Fields, completed: int, submitted: int | None) -> None:
    """How many requests came, and when. Only the lists have those that failed."""
    if submitted is None:
        row.mark("failures_not_in_file")
    else:
        row.failures(max(0, submitted - completed), submitted)
    requests = submitted or completed
    rate = fields.get("request_rate")
    if rate == "trace" or fields.text("dataset_name") in REPLAYED:
        row.mark("ambiguous:trace_replay")
        row.state(load="open_loop", num_requests=requests)
        return
    # JSON as Python writes it has Infinity for "all at once".
    stated = None if rate in (float("inf"), "inf") else fields.positive("request_rate")
    put_load(row, requests, limit_reached(fields, stated), stated)
    check_at_once(row, fields)


def _put_times(row: Row, fields: Fields, streams: Streams | None, speculative: bool) -> None:
    ttft, tpot, e2e = (summary(fields, name) for name in ("ttft", "tpot", "e2e_latency"))
    for name, values in (("ttft", ttft), ("tpot", tpot), ("e2e_latency", e2e)):
        if values.mean is None:
            fields.number(f"mean_{name}_ms")
    if streams is not None:
        row.mark("summaries_recomputed")
        check_spread(fields.where, ttft.times(MS), "{}_ttft_ms/1000", spread(streams.ttft_s), "ttfts")
        if not speculative:  # there the summary is divided by the accepted tokens, the list is not
            gaps = summary(fields, "itl")
            check_spread(fields.where, gaps.times(MS), "{}_itl_ms/1000", spread(streams.all_gaps_s), "itls")
    if fields.has("concurrency") and e2e.mean:
        busy = e2e.mean * MS * fields.count("completed") / fields.positive("duration")
        check_same(fields.where, ("concurrency", fields.number("concurrency")),
                   ("mean_e2e_latency_ms completed / duration", busy))  # fmt: skip
    if row.not_streamed(tpot):
        ttft = Spread()
    for family, values in (("ttft_s", ttft), ("tpot_s", tpot), ("e2e_s", e2e)):
        if values.mean == 0.0:
            row.leave_empty(f"{family}_*", "0 in the file, so not measured")
        row.convert_spread(family, values.times(MS), "from ms")
