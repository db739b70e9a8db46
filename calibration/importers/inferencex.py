"""InferenceX: rows as utils/process_result.py writes them (`agg_*.json`, one row or a list of them).

Read from utils/process_result.py, utils/bench_serving/benchmark_serving.py, utils/aggregate_power.py and the workflow
templates of SemiAnalysisAI/InferenceX (2026). Times are in seconds, rates per GPU; `isl` and `osl` are the largest
lengths of a uniform draw on [0.8 L, L]; `intvty` is 1 / TPOT, so its p99 is the interactivity at the p99 of TPOT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import Spread, check_same
from calibration.importers.fields import Fields, SourceFile, shown
from calibration.importers.names import dtype, engine_name, image_version, state_gpu, state_model
from calibration.importers.row import Row, Skipped

RANGE = 0.8  # RANDOM_RANGE_RATIO of the workflows: lengths are uniform on [0.8 L, L]
POWER_VERSION = 2  # utils/aggregate_power.py: earlier energies were of one role of a deployment


def read(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """One row per result; deployments that split prefill from decode are skipped."""
    return [_result(fields) for fields in source.each()]


def _result(fields: Fields) -> Row | Skipped:
    if fields.flag("is_multinode") or fields.flag("disagg"):
        return Skipped(
            fields.where, "prefill and decode on machines of their own: the records have no columns for that"
        )
    if fields.has("scenario_type"):
        return Skipped(fields.where, f"a {fields.text('scenario_type')} run: its lengths are not in the file")
    row = Row(fields.where, "inferencex")
    state_model(row, fields.text("model"))
    row.state(load="closed_loop", concurrency=float(fields.count("conc")))
    state_gpu(row, fields.text("hw"), runner=True)
    gpus = _put_deployment(row, fields)
    for name, column in (("isl", "input_tok"), ("osl", "output_tok")):
        largest = fields.positive(name)
        row.convert(column, 0.5 * (1.0 + RANGE) * largest, f"from {name}, the mean of uniform [0.8 {name}, {name}]")
    row.state(length_spread=f"uniform:{RANGE:g}")
    for column, name in (("total_tok_per_s", "tput_per_gpu"), ("output_tok_per_s", "output_tput_per_gpu")):
        if fields.has(name) or name == "tput_per_gpu":  # the second came later
            row.convert(column, fields.positive(name) * gpus, f"from {name} times {gpus} GPUs")
    _put_times(row, fields)
    _put_power(row, fields, gpus)
    return row


def _put_deployment(row: Row, fields: Fields) -> int:
    """Engine, formats and parallelism; how many GPUs there are."""
    precision = fields.text("precision")
    if known := dtype(precision):
        row.state(weight_dtype=known)
    else:
        row.leave_empty("weight_dtype", f"precision {precision} may be any of several formats")
    row.state(engine=engine_name(fields.text("framework")))
    if version := image_version(fields.optional_text("image")):
        row.convert("engine_version", version, "from image")
    tp, pp, ep = (fields.optional_count(name) or 1 for name in ("tp", "pp", "ep"))
    gpus = fields.count("tp") * pp * (fields.optional_count("pcp_size") or 1)
    row.state(tp=tp, pp=pp, ep=ep, n_gpus=gpus)
    if str(fields.get("dp_attention")).lower() == "true":
        row.mark("ambiguous:dp_attention")
    if any((fields.optional_count(f"{name}_size") or 1) > 1 for name in ("dcp", "pcp")):
        row.mark("ambiguous:context_parallel")
    method = fields.optional_text("spec_decoding") or "none"
    if method != "none":
        row.speculative(method)
    return gpus


def _put_times(row: Row, fields: Fields) -> None:
    for name in ("mean_ttft", "mean_tpot"):
        fields.positive(name)
    for name, family in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("e2el", "e2e_s")):
        values = Spread(*(fields.optional(f"{statistic}_{name}") for statistic in ("mean", "median", "p99")))
        row.state(**{f"{family}_{statistic}": value for statistic, value in values.times(1.0).items()})
    for statistic in ("mean", "median", "p99"):
        rate, time = fields.optional(f"{statistic}_intvty"), fields.optional(f"{statistic}_tpot")
        if rate and time:
            check_same(fields.where, (f"{statistic}_intvty", rate), (f"1 / {statistic}_tpot", 1.0 / time))
    if fields.has("mean_itl"):
        row.leave_empty("itl_s_*", "gaps between chunks, tokens per chunk not stated")


def _put_power(row: Row, fields: Fields, gpus: int) -> None:
    if not fields.optional("power_valid"):
        if fields.has("power_valid"):
            row.leave_empty("power_w", "power_valid is 0")
        return
    version = fields.get("power_metric_schema_version")
    if version != POWER_VERSION:
        fields.refuse("power_metric_schema_version", f"is {shown(version)}, expected {POWER_VERSION}")
    power = fields.positive("avg_total_gpu_power_w")
    each = fields.optional("avg_power_w")
    check_same(fields.where, ("avg_total_gpu_power_w", power),
               (f"avg_power_w times {gpus} GPUs", None if each is None else each * gpus))  # fmt: skip
    row.state(power_w=power, power_scope="board", energy_j_per_output_tok=fields.positive("joules_per_output_token"))
    row.mark("whole_run_power")
