"""AIPerf: the summary `profile_export_aiperf.json` and the records per request `profile_export.jsonl`.

Read from docs/reference/json-export-schema.md (schema versions 1.0 to 1.5), docs/metrics-reference.md,
docs/tutorials/working-with-profile-exports.md and src/aiperf/config/phases.py of AIPerf. Its inter token latency is
(request latency - TTFT) / (n - 1) per request, so our TPOT; inter chunk latency is the gap between chunks, which may
hold several tokens. The configuration in the file has only what the user set, so defaults of the tool are filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import check_same, gaps_per_token, one_token_per_chunk, spread
from calibration.importers.fields import Fields, SourceFile, shown
from calibration.importers.names import state_gpu, state_model
from calibration.importers.nvidia_stats import put_lengths, put_power, put_times, time_unit, watts_of
from calibration.importers.row import Row, Skipped, put_load
from simulator.errors import UserError

SCHEMAS = ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5")
POWER = ("nvidia_power_usage", "gpu_power_usage", "amd_power_usage")
RATES = ("poisson", "constant", "gamma")
UNSTEADY = ("concurrency_ramp", "rate_ramp", "rate_series", "prefill_concurrency", "timing_mode", "adaptive_scale")
STEADY = "request_rate"  # the timing mode of all phases that have none
UNSTEADY_BEFORE = ("concurrency_ramp_duration", "request_rate_ramp_duration", "prefill_concurrency")  # in "loadgen"
PICTURES = ("num_images", "image_throughput", "image_latency", "video_throughput", "audio_throughput")


def read_summary(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """The row of a summary export."""
    return [_summary(fields, given) for fields in source.each()]


def _summary(fields: Fields, given: Mapping[str, Any]) -> Row:
    version = fields.get("schema_version")  # the first exports have none, and the shape of 1.0
    if version is not None and version not in SCHEMAS:
        fields.refuse("schema_version", f"is {shown(version)}, expected one of {', '.join(SCHEMAS)}")
    completed = fields.count("request_count.avg")
    row = Row(fields.where, "aiperf", completed=completed)
    failed = fields.optional("error_request_count.avg") or 0.0
    row.failures(failed, completed + failed)
    if fields.flag("was_cancelled"):
        row.mark("suspect:cancelled")
    if any(fields.has(metric) for metric in PICTURES):
        row.mark("suspect:multimodal_prompts")
    put_lengths(row, fields)
    duration = fields.positive("benchmark_duration.avg") * time_unit(fields, "benchmark_duration")
    rate, outputs = fields.positive("output_token_throughput.avg"), completed * row.columns["output_tok"]
    check_same(fields.where, ("output_token_throughput.avg", rate),
               ("request_count output_sequence_length / benchmark_duration", outputs / duration))  # fmt: skip
    row.convert("duration_s", duration, f"from benchmark_duration in {fields.text('benchmark_duration.unit')}")
    row.state(output_tok_per_s=rate, total_tok_per_s=fields.optional("total_token_throughput.avg"))
    if "total_tok_per_s" not in row.columns:
        both = completed * (row.columns["input_tok"] + row.columns["output_tok"])
        row.derive("total_tok_per_s", both / duration, "(input + output tokens) / duration")
    put_times(row, fields)
    row.state(num_requests=int(completed + failed))
    if fields.has("input_config"):
        _put_config(row, fields.section("input_config"), int(completed + failed))
    _put_telemetry(row, fields, given)
    return row


def _put_config(row: Row, config: Fields, requests: int) -> None:
    """Model and load: "loadgen" in the first versions, a list of "phases" later."""
    if config.has("phases"):
        state_model(row, _model(config, "models.items" if config.has("models.items") else "models"))
        phases = config.sections("phases", "phase")
        phases = [phase for phase in phases if "warmup" not in (phase.get("kind"), phase.get("name"))]
        if len(phases) == 1:
            _put_phase(row, phases[0], requests)
        else:
            row.leave_empty("load", f"{len(phases)} profiling phases in one export")
    elif config.has("loadgen"):
        state_model(row, _model(config, "endpoint.model_names"))
        _put_loadgen(row, config, requests)


def _model(config: Fields, path: str) -> str | None:
    """The one model of a run: names are strings, or objects with a name."""
    names = config.get(path)
    if not isinstance(names, list) or len(names) != 1:
        return None
    name = names[0].get("name") if isinstance(names[0], dict) else names[0]
    return config.text_of(name, f"{path}[0]")


def _put_loadgen(row: Row, config: Fields, requests: int) -> None:
    load = config.section("loadgen")
    if load.has("user_centric_rate") or config.flag("input.fixed_schedule"):
        row.leave_empty("load", "neither a rate nor a concurrency governed arrivals")
        return
    clients = load.optional_count("concurrency")
    if load.has("request_rate"):
        mode = load.optional_text("arrival_pattern") or load.optional_text("request_rate_mode") or "poisson"
        poisson = mode.lower() == "poisson" and not load.has("arrival_smoothness")
        put_load(row, requests, clients, load.positive("request_rate"), poisson)
    elif clients is not None:
        put_load(row, requests, clients)
    _mark_unsteady(row, load, UNSTEADY_BEFORE)


def _put_phase(row: Row, phase: Fields, requests: int) -> None:
    """Arrivals of the one profiling phase."""
    kind, clients = phase.text("type"), phase.optional_count("concurrency")
    if kind == "concurrency":
        if clients is None:
            row.mark("derived:concurrency:1 where the file has none")
        put_load(row, requests, clients or 1)
    elif kind not in RATES:
        row.leave_empty("load", f"arrivals of type {kind}")
    elif phase.has("rate_series"):
        row.leave_empty("load", "arrivals at a rate that changes")
    else:
        poisson = kind == "poisson" or (kind == "gamma" and phase.optional("smoothness") == 1.0)
        put_load(row, requests, clients, phase.positive("rate"), poisson)
    _mark_unsteady(row, phase, UNSTEADY)


def _mark_unsteady(row: Row, load: Fields, names: tuple[str, ...]) -> None:
    """Note what makes arrivals others than a steady rate or a steady number at a time."""
    for name in names:
        if load.get(name) not in (None, False, STEADY):
            row.mark(f"ambiguous:{name}")
    if load.get("cancellation") or load.get("request_cancellation_rate"):
        row.mark("suspect:cancelled")


def _put_telemetry(row: Row, fields: Fields, given: Mapping[str, Any]) -> None:
    """Names and mean power of the GPUs that the client could read."""
    watts, names = [], set()
    if not fields.has("telemetry_data.endpoints"):
        return
    endpoints = fields.section("telemetry_data.endpoints")
    for endpoint in endpoints.data:
        gpus = endpoints.child(endpoint).section("gpus")
        for gpu in gpus.data:
            block = gpus.child(gpu)
            names.add(block.text("gpu_name"))
            metric = next((name for name in POWER if block.has(f"metrics.{name}")), None)
            if metric is not None:
                watts.append(watts_of(block, f"metrics.{metric}"))
    if len(names) == 1:
        state_gpu(row, names.pop())
    put_power(row, watts, given, "telemetry_data")


def read_records(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """The one row that the records per request of a run give; model and load are not in this file."""
    done, failed = [], 0
    for record in source.each("record"):
        if record.text("metadata.benchmark_phase") != "profiling":
            continue
        if record.has("error") or record.flag("metadata.was_cancelled"):
            failed += 1
        else:
            done.append(record)
    if not done:
        raise UserError(f"{source.name}: no record of the profiling phase without error, expected completed requests")
    row = Row(source.name, "aiperf", completed=len(done))
    row.failures(failed, failed + len(done))
    _put_records(row, done)
    row.state(num_requests=failed + len(done))
    return [row]


def _put_records(row: Row, done: list[Fields]) -> None:
    inputs = [r.positive("metrics.input_sequence_length.value") for r in done]
    outputs = [r.positive("metrics.output_sequence_length.value") for r in done]
    row.derive("input_tok", sum(inputs) / len(done), "mean over records")
    row.derive("output_tok", sum(outputs) / len(done), "mean over records")
    row.mark("lengths_by_client_tokenizer")
    if len(set(inputs)) == len(set(outputs)) == 1:
        row.derive("length_spread", "fixed", "all lengths are equal")
    start = min(r.positive("metadata.request_start_ns") for r in done)
    end = max(r.positive("metadata.request_end_ns") for r in done)
    if not end > start:
        raise UserError(f"{row.where}: field 'metadata.request_end_ns' is not after request_start_ns, expected later")
    seconds = (end - start) * 1e-9
    row.derive("duration_s", seconds, "first request_start_ns to last request_end_ns")
    row.derive("output_tok_per_s", sum(outputs) / seconds, "output tokens / duration")
    row.derive("total_tok_per_s", (sum(inputs) + sum(outputs)) / seconds, "all tokens / duration")
    latency, first = [_value_s(r, "request_latency") for r in done], [_value_s(r, "time_to_first_token") for r in done]
    row.convert_spread("e2e_s", spread([v for v in latency if v]), "from request_latency of the records")
    row.convert_spread("ttft_s", spread([v for v in first if v]), "from time_to_first_token of the records")
    streamed = [(e - f) / (n - 1.0) for e, f, n in zip(latency, first, outputs) if e and f and n > 1]
    for record, end_s, first_s, tokens in zip(done, latency, first, outputs):
        if end_s and first_s and tokens > 1:
            own = ("(request_latency - time_to_first_token) / (n - 1)", (end_s - first_s) / (tokens - 1.0))
            check_same(record.where, ("inter_token_latency", _value_s(record, "inter_token_latency")), own)
    row.convert_spread("tpot_s", spread(streamed), "from (request_latency-TTFT)/(n-1) of the records")
    _put_chunks(row, done, outputs)


def _value_s(record: Fields, metric: str) -> float | None:
    """A time of one request in seconds; None when the record does not have it."""
    if not record.has(f"metrics.{metric}"):
        return None
    return record.number(f"metrics.{metric}.value") * time_unit(record, f"metrics.{metric}")


def _put_chunks(row: Row, done: list[Fields], outputs: list[float]) -> None:
    name = "metrics.inter_chunk_latency"
    gaps: list[float] = []
    for record in done:
        if record.has(name):
            unit = time_unit(record, name)
            gaps += [gap * unit for gap in record.numbers(f"{name}.value")]
    if not gaps:
        row.leave_empty("itl_s_*", "no inter_chunk_latency in the file")
    elif one_token_per_chunk(len(gaps), sum(outputs), len(done)):
        row.convert_spread("itl_s", spread(gaps), "from inter_chunk_latency, one token per chunk")
    else:
        row.chunks_of(gaps_per_token(len(gaps), sum(outputs), len(done)))
