"""GenAI-Perf: the summary `profile_export_genai_perf.json` (phased out in favour of AIPerf, whose shape it has).

Read from genai_perf/export_data/json_exporter.py, metrics/statistics.py, metrics/llm_metrics.py and docs/files.md of
triton-inference-server/perf_analyzer (0.0.13 to 0.0.16). Its inter token latency is (request latency - TTFT) / (n - 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import check_same
from calibration.importers.fields import Fields, SourceFile
from calibration.importers.names import state_model
from calibration.importers.nvidia_stats import put_lengths, put_power, put_times
from calibration.importers.row import Row, Skipped, put_load

MULTIMODAL = ("multimodal", "vision")


def read(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """The row of an export."""
    return [_export(fields, given) for fields in source.each()]


def _export(fields: Fields, given: Mapping[str, Any]) -> Row:
    if not fields.has("request_count"):
        fields.refuse("request_count", "is missing, expected an export of GenAI-Perf 0.0.13 or later")
    completed = fields.count("request_count.avg")
    row = Row(fields.where, "genai_perf", completed=completed)
    put_lengths(row, fields)
    rate = fields.positive("output_token_throughput.avg")
    duration = completed * row.columns["output_tok"] / rate
    submitted = round(duration * fields.positive("request_throughput.avg"))
    if submitted > completed:  # its request throughput counts empty answers, too; nothing else in the file does
        row.failures(submitted - completed, submitted)
    else:
        check_same(fields.where, ("request_count", completed), ("request_throughput duration", submitted))
    row.derive("duration_s", duration, "output tokens / output_token_throughput")
    row.state(output_tok_per_s=rate)
    both = completed * (row.columns["input_tok"] + row.columns["output_tok"])
    row.derive("total_tok_per_s", both / duration, "(input + output tokens) / duration")
    put_times(row, fields)
    _put_config(row, fields, max(completed, submitted))
    _put_telemetry(row, fields, given)
    return row


def _put_config(row: Row, fields: Fields, requests: int) -> None:
    names = fields.entries("input_config.model_names")
    if len(names) == 1:
        state_model(row, fields.text_of(names[0], "input_config.model_names[0]"))
    if fields.get("input_config.endpoint.type") in MULTIMODAL:
        row.mark("suspect:multimodal_prompts")
    stimulus = fields.section("input_config.perf_analyzer.stimulus")
    if stimulus.has("concurrency"):
        put_load(row, requests, stimulus.count("concurrency"))
    elif stimulus.has("request_rate"):
        # perf_analyzer spaces requests evenly unless it is told otherwise, which the export does not say.
        put_load(row, requests, None, stimulus.positive("request_rate"), poisson=False)
    else:
        row.state(num_requests=requests)
        row.leave_empty("load", "neither concurrency nor request_rate in the stimulus")


def _put_telemetry(row: Row, fields: Fields, given: Mapping[str, Any]) -> None:
    if not fields.has("telemetry_stats.gpu_power_usage"):
        return
    block = fields.section("telemetry_stats.gpu_power_usage")
    if block.text("unit") != "W":
        block.refuse("unit", f"is '{block.text('unit')}', expected W")
    gpus = [block.child(gpu) for gpu in block.data if gpu != "unit"]
    watts = [gpu.number("avg") for gpu in gpus if gpu.has("avg")]
    put_power(row, watts, given, "telemetry_stats")
