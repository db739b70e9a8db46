"""What AIPerf and GenAI-Perf exports share: a block of statistics per metric, each with its unit; GPU telemetry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import SECONDS, Spread
from calibration.importers.fields import Fields
from calibration.importers.row import Row


def time_unit(fields: Fields, metric: str) -> float:
    """Seconds per unit of a metric; the unit in the file counts, not the metric's name."""
    unit = fields.text(f"{metric}.unit")
    if unit not in SECONDS:
        fields.refuse(f"{metric}.unit", f"is '{unit}', expected a unit of time: {', '.join(SECONDS)}")
    return SECONDS[unit]


def times(fields: Fields, metric: str) -> Spread:
    """Mean, median and p99 of a time, in seconds."""
    block = Spread(
        fields.number(f"{metric}.avg"), fields.optional(f"{metric}.p50"), fields.optional(f"{metric}.p99")
    )  # fmt: skip
    return block.times(time_unit(fields, metric))


def put_times(row: Row, fields: Fields) -> None:
    """TTFT, TPOT and end-to-end times. Their "inter token latency" is one value per request: our TPOT."""
    unit, e2e = fields.text("request_latency.unit"), times(fields, "request_latency")
    row.convert_spread("e2e_s", e2e, f"from request_latency in {unit}")
    # Without streaming GenAI-Perf gives the one answer's time as that of the first token, and no inter token latency.
    whole = not fields.has("inter_token_latency") and row.columns["output_tok"] > 1.0
    for metric, family in (("time_to_first_token", "ttft_s"), ("inter_token_latency", "tpot_s")):
        if fields.has(metric) and not (whole and times(fields, metric).mean == e2e.mean):
            unit = fields.text(f"{metric}.unit")
            how = f"from {metric} in {unit}"
            row.convert_spread(
                family, times(fields, metric), how if family == "ttft_s" else f"{how} = (end-TTFT)/(n-1)"
            )
        else:
            row.leave_empty(f"{family}_*", f"no {metric}: answers were not streamed")
    row.leave_empty("itl_s_*", "no gaps between single tokens in the file")


def put_lengths(row: Row, fields: Fields) -> None:
    """Mean lengths, as the client's tokenizer counts them: without the tokens that a chat template adds."""
    row.state(input_tok=fields.positive("input_sequence_length.avg"))
    row.state(output_tok=fields.positive("output_sequence_length.avg"))
    row.mark("lengths_by_client_tokenizer")
    ends = [
        (fields.optional(f"{name}_sequence_length.min"), fields.optional(f"{name}_sequence_length.max"))
        for name in ("input", "output")
    ]
    if all(low is not None and low == high for low, high in ends):
        row.derive("length_spread", "fixed", "least and largest lengths are equal")


def put_power(row: Row, watts: list[float], given: Mapping[str, Any], path: str) -> None:
    """Mean power over the run, if the GPUs that were read are known to be those that served."""
    used = given.get("n_gpus") or given.get("tp")
    if not watts:
        return
    if used != len(watts):
        row.leave_empty("power_w", f"{path} has {len(watts)} GPUs, how many served is not stated")
        return
    row.convert("power_w", sum(watts), f"from {path}, summed over GPUs")
    row.state(power_scope="board")
    row.mark("whole_run_power")
    if rate := row.columns.get("output_tok_per_s"):
        row.derive("energy_j_per_output_tok", sum(watts) / rate, "power_w / output_tok_per_s")


def watts_of(block: Fields, path: str) -> float:
    """Mean power of one GPU in watts; another unit is refused."""
    unit = block.text(f"{path}.unit")
    if unit != "W":
        block.refuse(f"{path}.unit", f"is '{unit}', expected W")
    return block.number(f"{path}.avg")
