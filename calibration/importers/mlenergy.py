"""ML.ENERGY leaderboard: `public/data/models/*.json` and `public/data/tasks/*.json`, a row per configuration.

Read from scripts/build_data.py and the data of ml-energy/leaderboard (February 2026) and from
mlenergy/benchmark/llm/benchmark.py and docs/analyzing-results.md of ml-energy/benchmark. All requests come at once;
throughput, batch, power and energy cover the steady window, gaps the whole run. The client adds a gap of 0 for every
further token of a chunk, so its gaps are per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import check_same
from calibration.importers.fields import Fields, SourceFile
from calibration.importers.names import dtype, state_gpu, state_model
from calibration.importers.row import Row, Skipped
from simulator.errors import UserError

MS = 1e-3
TEXT = ("gpqa", "lm-arena-chat", "sourcegraph-fim")
MULTIMODAL = ("image-chat", "video-chat")
PICTURES = ("text-to-image", "text-to-video")


def read(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """One row per configuration of the file."""
    rows: list[Row | Skipped] = []
    for fields in source.each("file"):
        task = fields.text("task")
        if task in PICTURES:
            fields.refuse("task", f"is '{task}', expected a task that writes text")
        if task not in (*TEXT, *MULTIMODAL):
            fields.refuse("task", f"is '{task}', expected one of {', '.join((*TEXT, *MULTIMODAL))}")
        configurations = fields.sections("configurations", "configuration")
        if not configurations:
            raise UserError(f"{fields.where}: field 'configurations' is empty, expected at least one")
        rows += [_configuration(one, fields, task) for one in configurations]
    return rows


def _configuration(fields: Fields, file: Fields, task: str) -> Row:
    row = Row(fields.where, "mlenergy")
    about = file if file.has("model_id") else fields  # a file per model says it once, a file per task in every row
    state_model(row, about.text("model_id"))
    precision = about.text("weight_precision")
    if known := dtype(precision):
        row.state(weight_dtype=known)
    else:
        row.leave_empty("weight_dtype", f"{precision} has no name in the schema")
    state_gpu(row, fields.text("gpu_model"))
    _put_split(row, fields)
    row.state(load="burst", max_num_seqs=fields.count("max_num_seqs"))
    row.derive("concurrency", float(fields.count("max_num_seqs")), "max_num_seqs: the server is kept full")
    row.state(length_spread=f"dataset:{task}", output_tok=fields.positive("avg_output_len"))
    if task in MULTIMODAL:
        row.mark("suspect:multimodal_prompts")
    _put_rates(row, fields)
    row.convert("itl_s_median", fields.positive("median_itl_ms") * MS, "from ms")
    row.convert("itl_s_p99", fields.positive("p99_itl_ms") * MS, "from ms")
    row.mark("itl_whole_run")
    return row


def _put_split(row: Row, fields: Fields) -> None:
    """Parallelism. With experts spread over devices the file calls tensor_parallel 1, while attention is split."""
    split = fields.section("parallelization") if fields.has("parallelization") else fields
    gpus, (tp, ep, dp) = fields.count("num_gpus"), (split.count(f"{n}_parallel") for n in ("tensor", "expert", "data"))
    row.state(n_gpus=gpus, tp=tp, ep=ep, dp=dp)
    if tp * dp < gpus and gpus % dp == 0:
        row.convert("tp", gpus // dp, "from num_gpus/data_parallel")


def _put_rates(row: Row, fields: Fields) -> None:
    """Everything of the steady window; power, energy per token and per request must tell the same story."""
    rate, batch = fields.positive("output_throughput_tokens_per_sec"), fields.positive("avg_batch_size")
    power, energy = fields.positive("avg_power_watts"), fields.positive("energy_per_token_joules")
    check_same(fields.where, ("energy_per_token_joules", energy),
               ("avg_power_watts / output_throughput_tokens_per_sec", power / rate))  # fmt: skip
    check_same(fields.where, ("energy_per_request_joules", fields.optional("energy_per_request_joules")),
               ("energy_per_token_joules avg_output_len", energy * fields.positive("avg_output_len")))  # fmt: skip
    row.state(output_tok_per_s=rate, batch_mean=batch, power_w=power, power_scope="board")
    row.state(energy_j_per_output_tok=energy)
    row.derive("tpot_s_mean", batch / rate, "avg_batch_size / output_throughput: prompts of others included")
    row.mark("steady_window")
