"""llama.cpp's `llama-bench -o json` (or jsonl): prompt tests, generation tests and both together, one sequence each.

Read from tools/llama-bench/README.md and llama-bench.cpp of llama.cpp. A test repeats n_gen single-token steps after
n_depth tokens of context, without sampling and without tokenisation; so n_gen steps lie between n_gen + 1 tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from calibration.importers.definitions import Spread, check_same, spread
from calibration.importers.fields import Fields, SourceFile
from calibration.importers.names import dtype, state_gpu
from calibration.importers.row import Row, Skipped

NS = 1e-9


def read(source: SourceFile, given: Mapping[str, Any]) -> list[Row | Skipped]:
    """One row per test."""
    return [_test(fields) for fields in source.each("test")]


def _test(fields: Fields) -> Row | Skipped:
    prompt, generated = (fields.whole(name) for name in ("n_prompt", "n_gen"))
    depth = fields.whole("n_depth") if fields.has("n_depth") else 0  # builds of before April 2025 have no depth
    if fields.flag("embeddings"):
        return Skipped(fields.where, "an embedding test, no text is generated")
    if prompt and depth:
        return Skipped(fields.where, f"a prompt behind {depth} tokens of context: the records have no column for that")
    if not prompt and not generated:
        fields.refuse("n_gen", "is 0 as n_prompt is, expected a test of at least one token")
    row = Row(fields.where, "llama_bench")
    row.state(engine="llama.cpp", engine_version=f"b{fields.count('build_number')}", load="static_batch")
    row.state(concurrency=1.0, length_spread="fixed")
    _put_format(row, fields)
    _put_device(row, fields)
    _put_times(row, fields, prompt, generated, depth)
    return row


def _put_format(row: Row, fields: Fields) -> None:
    """Weights out of the model's description ("qwen2 7B Q4_K - Medium"), the cache out of its two types."""
    described = fields.text("model_type")
    found = re.search(r"\b(?:BF16|F16|F32|MXFP4|(?:I?Q\d\w*))\b", described)
    if found:
        name = re.sub(r"_[SML]$", "", found.group(0))
        if known := dtype(name):
            row.convert("weight_dtype", known, f"from {name}")
        else:
            row.leave_empty("weight_dtype", f"{name} has no name in the schema")
    keys, values = fields.text("type_k"), fields.text("type_v")
    if keys == values and dtype(keys):
        row.convert("kv_dtype", dtype(keys), f"from {keys}")


def _put_device(row: Row, fields: Fields) -> None:
    """The file lists all GPUs of the machine, whether or not they were used."""
    names = [name.strip() for name in (fields.optional_text("gpu_info") or "").split(",") if name.strip()]
    split, devices = fields.optional_text("split_mode"), fields.optional_text("devices") or "auto"
    if names and len(set(names)) == 1:
        state_gpu(row, names[0])
        used = 1 if split == "none" else len(names) if devices == "auto" else len(devices.split("/"))
        row.state(n_gpus=used)
        if used > 1:  # whole layers per device, unless rows of each layer were split
            row.state(**{"pp" if split == "layer" else "tp": used})
    elif names:
        row.leave_empty("gpu", "GPUs of several kinds")
    layers = fields.get("n_gpu_layers")
    on_cpu = fields.text("backends") == "CPU" or layers == 0 or devices == "none"
    moved = (fields.optional_text("tensor_buft_overrides") or "none") != "none"  # tensors put into other memory
    if on_cpu or moved or fields.flag("no_kv_offload") or fields.optional("n_cpu_moe"):
        row.mark("suspect:partly_on_cpu")
    elif isinstance(layers, int) and 0 < layers < 99:
        row.mark(f"n_gpu_layers:{layers}")


def _put_times(row: Row, fields: Fields, prompt: int, generated: int, depth: int) -> None:
    samples, mean = fields.numbers("samples_ns"), fields.positive("avg_ns")
    if not samples or min(samples) == 0.0:
        fields.refuse("samples_ns", "is empty or holds a 0, expected a time per repetition")
    own = spread(samples)
    check_same(fields.where, ("avg_ns", mean), ("the mean of samples_ns", own.mean))
    rates = [1e9 * (prompt + generated) / sample for sample in samples]
    check_same(
        fields.where, ("avg_ts", fields.positive("avg_ts")), ("tokens per second of samples_ns", spread(rates).mean)
    )
    row.mark("summaries_recomputed")
    seconds = Spread(own.mean, own.median).times(NS)  # a handful of repetitions has no 99th percentile
    row.convert("output_tok", generated + 1.0, "from n_gen+1: n_gen steps follow a token that is there")
    if not generated:
        row.state(input_tok=float(prompt))
        row.convert_spread("ttft_s", seconds, "from avg_ns of a prompt test, without sampling")
    elif prompt:
        row.state(input_tok=float(prompt))
        row.convert_spread("e2e_s", seconds, "from avg_ns of prompt and n_gen steps, without sampling")
    else:
        row.convert("input_tok", float(max(depth, 1)), "from n_depth, 1 stands for the start token")
        row.convert_spread("tpot_s", seconds.times(1.0 / generated), "from avg_ns/n_gen, without sampling")
    if len(samples) > 1 and own.mean:
        row.derive("rel_noise", fields.number("stddev_ns") / own.mean, f"{len(samples)} repetitions of one process")
