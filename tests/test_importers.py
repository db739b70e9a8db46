"""Importers: files in each tool's own format give the schema's definitions, and anything else one sentence.

The files in tests/imports were written by hand from the documents that docs/importing.md names; those of ML.ENERGY and
the times of the first InferenceX row are the published figures that the shipped records were made from.
"""

import copy
import json
import math
import random
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.cli import Calibrate
from calibration.commands import import_runs
from calibration.importers import definitions
from calibration.importers.fields import Fields, SourceFile, read_source
from calibration.importers.given import read_given
from calibration.importers.names import device_id, image_version
from calibration.importers.row import Row, put_load
from calibration.importers.table import record_of, write_rows
from calibration.importers.tools import KINDS, TOOLS, import_source
from calibration.records import COLUMNS, METRICS, read_records
from calibration.vendored import DIRECTORY
from simulator.errors import UserError

FILES = Path(__file__).parent / "imports"
NAMES = sorted(path.name for path in FILES.iterdir())


def documents(name):
    return list(copy.deepcopy(read_source(FILES / name).documents))


def imported(source, tool="auto", **given_columns):
    """The rows of a file by name, of documents, or of a source."""
    if isinstance(source, str):
        source = read_source(FILES / source)
    elif isinstance(source, list):
        source = SourceFile("mutated.json", tuple(source))
    return [row for _, row in import_source(source, tool, given_columns).rows]


def the(name, index=0, **given_columns):
    return imported(name, **given_columns)[index]


def flags(row, prefix):
    return [flag.removeprefix(prefix) for flag in row.flags if flag.startswith(prefix)]


def refused(source, tool="auto", **given_columns):
    with pytest.raises(UserError) as error:
        imported(source, tool, **given_columns)
    message = str(error.value)
    assert "\n" not in message
    return message


# What each file says, in the schema's definitions and in SI.
EXPECTED = [
    ("vllm_serve.json", 0, {"source": "vllm_bench_serve", "model": "meta-llama/Llama-3.1-8B-Instruct",
                            "load": "open_loop", "request_rate_rps": 4.0, "num_requests": 200, "input_tok": 1024.0,
                            "output_tok": 128.0, "ttft_s_mean": 0.0612, "ttft_s_p99": 0.1217, "tpot_s_mean": 0.00984,
                            "tpot_s_median": 0.00971, "itl_s_mean": None, "e2e_s_mean": None, "duration_s": 52.5,
                            "output_tok_per_s": 487.619048, "engine": None, "gpu": None, "length_spread": None}),
    ("vllm_serve_detailed.json", 0, {"load": "closed_loop", "concurrency": 2.0, "num_requests": 6,
                                     "length_spread": "fixed", "ttft_s_mean": 0.06, "tpot_s_mean": 0.0112,
                                     "itl_s_mean": 0.0112, "itl_s_median": 0.0112, "e2e_s_mean": 0.1496,
                                     "input_tok": 512.0, "output_tok": 9.0}),
    ("vllm_serve_chunks.json", 0, {"tpot_s_mean": 0.0028, "itl_s_mean": None, "itl_s_p99": None}),
    ("vllm_latency.json", 0, {"source": "vllm_bench_latency", "engine": "vllm", "load": "static_batch",
                              "e2e_s_mean": 1.2025, "e2e_s_median": 1.2025, "concurrency": None, "input_tok": None}),
    ("vllm_throughput.json", 0, {"source": "vllm_bench_throughput", "load": "burst", "num_requests": 100,
                                 "total_tok_per_s": 3200.0, "output_tok_per_s": None, "duration_s": 20.0}),
    ("guidellm_v2.json", 0, {"source": "guidellm", "model": "Qwen/Qwen3-8B", "load": "closed_loop", "concurrency": 2.0,
                             "input_tok": 256.0, "output_tok": 26.0, "length_spread": None, "ttft_s_mean": 0.0645,
                             "tpot_s_mean": 0.0106, "itl_s_mean": 0.01076, "itl_s_median": None,
                             "e2e_s_mean": 0.3345, "output_tok_per_s": 104 / 1.606}),
    ("guidellm_v2.json", 1, {"load": "open_loop", "request_rate_rps": 2.5, "num_requests": 6, "tpot_s_mean": 0.0098}),
    ("guidellm_v1.json", 0, {"load": "closed_loop", "concurrency": 1.0, "tpot_s_mean": 0.0094, "tpot_s_p99": 0.0098,
                             "itl_s_mean": 0.0094, "ttft_s_median": 0.053, "length_spread": "fixed"}),
    ("guidellm_v1.json", 1, {"load": "burst", "num_requests": 3, "tpot_s_mean": None, "itl_s_mean": 0.0125714286}),
    ("aiperf_summary.json", 0, {"source": "aiperf", "gpu": "h100-sxm", "model": "Qwen/Qwen3-8B",
                                "load": "closed_loop", "concurrency": 2.0, "num_requests": 8, "input_tok": 550.0,
                                "output_tok": 101.0, "ttft_s_mean": 0.03325, "tpot_s_mean": 0.007075,
                                "itl_s_mean": None, "power_w": None}),
    ("aiperf_summary_early.json", 0, {"load": "open_loop", "request_rate_rps": 2.0, "tpot_s_mean": 0.007075}),
    ("aiperf_records.jsonl", 0, {"load": None, "model": None, "num_requests": 9, "ttft_s_mean": 0.03325,
                                 "tpot_s_mean": 0.007075, "itl_s_mean": 0.007075, "itl_s_p99": 0.00715}),
    ("genai_perf.json", 0, {"source": "genai_perf", "load": "closed_loop", "concurrency": 2.0,
                            "tpot_s_mean": 0.007075, "ttft_s_mean": 0.03325}),
    ("sglang.jsonl", 0, {"source": "sglang_bench_serving", "engine": "sglang", "engine_version": "0.5.6", "tp": 1,
                         "load": "closed_loop", "concurrency": 2.0, "length_spread": "fixed", "ttft_s_mean": 0.06,
                         "tpot_s_mean": 0.0112, "itl_s_mean": 0.0112, "e2e_s_mean": 0.1496}),
    ("sglang.jsonl", 1, {"engine": None, "model": None, "load": "open_loop", "request_rate_rps": 5.0,
                         "length_spread": "dataset:sharegpt", "itl_s_mean": None}),
    ("llama_bench.json", 0, {"source": "llama_bench", "engine": "llama.cpp", "engine_version": "b5163",
                             "gpu": "rtx-4090", "weight_dtype": "int4", "kv_dtype": "fp16", "input_tok": 512.0,
                             "output_tok": 1.0, "ttft_s_mean": 0.06, "tpot_s_mean": None}),
    ("llama_bench.json", 1, {"input_tok": 1.0, "output_tok": 129.0, "tpot_s_mean": 0.0075, "ttft_s_mean": None}),
    ("llama_bench.json", 2, {"input_tok": 4096.0, "output_tok": 129.0, "tpot_s_mean": 0.009}),
    ("llama_bench.json", 3, {"input_tok": 512.0, "output_tok": 129.0, "e2e_s_mean": 1.021, "tpot_s_mean": None}),
    ("inferencex.json", 0, {"source": "inferencex", "gpu": "h200-sxm", "n_gpus": 4, "tp": 4, "weight_dtype": "fp8",
                            "engine": "vllm", "engine_version": "0.16.0", "load": "closed_loop", "concurrency": 8.0,
                            "input_tok": 7372.8, "output_tok": 921.6, "length_spread": "uniform:0.8",
                            "ttft_s_mean": 0.415894512, "tpot_s_mean": 0.0156052382, "total_tok_per_s": 4184.0,
                            "itl_s_mean": None, "power_w": 1621.0, "energy_j_per_output_tok": 3.4875}),
    ("inferencex.json", 1, {"gpu": "mi355x", "weight_dtype": None, "engine": "sglang", "engine_version": None}),
    ("mlenergy_task.json", 1, {"source": "mlenergy", "gpu": "b200-sxm", "n_gpus": 4, "tp": 4, "ep": 4, "dp": 1,
                               "weight_dtype": "bf16", "load": "burst", "max_num_seqs": 8, "power_scope": "board",
                               "itl_s_median": 0.01900674100, "batch_mean": 7.99923954, "input_tok": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "index", "expected"), EXPECTED, ids=lambda value: str(value)[:24])
def test_files_of_every_tool_give_the_schema_s_definitions(name, index, expected):
    row = the(name, index)
    record = record_of("id", row)
    for column, value in expected.items():
        if isinstance(value, float):
            assert record[column] == pytest.approx(value, rel=1e-6), column
        else:
            assert record.get(column) == value, column


def test_every_kind_of_file_has_a_fixture():
    kinds = {import_source(read_source(FILES / name), "auto", {}).kind.title for name in NAMES}
    assert kinds == {kind.title for kind in KINDS}
    assert set(TOOLS) | {"auto"} == set(import_runs._TOOLS)


@pytest.mark.parametrize(
    ("name", "index", "flag"),
    [
        ("vllm_serve.json", 0, "converted:ttft_s_*:from ms"),
        ("vllm_serve.json", 0,
         "empty:itl_s_*:gaps between chunks, tokens per chunk not stated without lists per request"),
        ("vllm_serve_detailed.json", 0, "converted:itl_s_*:from gaps between chunks of one token each"),
        ("vllm_serve_detailed.json", 0, "summaries_recomputed"),
        ("vllm_serve_chunks.json", 0, "suspect:speculative_decoding"),
        ("guidellm_v2.json", 0, "converted:tpot_s_*:from inter_token_latency_ms of each request = (last-first)/(n-1)"),
        ("guidellm_v2.json", 0, "converted:output_tok_per_s:from output tokens / duration"),
        ("guidellm_v2.json", 1, "incomplete:1"),
        ("guidellm_v1.json", 0, "converted:itl_s_mean:from inter_token_latency_ms, its token-weighted mean"),
        ("guidellm_v1.json", 2, "ambiguous:arrivals_not_poisson"),
        ("aiperf_summary.json", 0, "converted:tpot_s_*:from inter_token_latency in ms = (end-TTFT)/(n-1)"),
        ("aiperf_summary.json", 0, "lengths_by_client_tokenizer"),
        ("aiperf_records.jsonl", 0, "failed:1 of 9"),
        ("aiperf_records.jsonl", 0, "suspect:failed_requests"),
        ("sglang.jsonl", 1, "speculative:3.2 tokens per step"),
        ("llama_bench.json", 1, "converted:tpot_s_*:from avg_ns/n_gen, without sampling"),
        ("inferencex.json", 0, "converted:input_tok:from isl, the mean of uniform [0.8 isl, isl]"),
        ("inferencex.json", 1, "no_data_sheet:mi355x"),
        ("inferencex.json", 1, "ambiguous:dp_attention"),
        ("mlenergy_model.json", 0, "steady_window"),
        ("mlenergy_task.json", 1, "converted:tp:from num_gpus/data_parallel"),
    ],
)  # fmt: skip
def test_conversions_stand_in_the_flags(name, index, flag):
    assert flag in the(name, index).flags


def test_rows_of_ml_energy_equal_the_shipped_ones():
    shipped = {r.run_id: r for r in read_records(DIRECTORY / "mlenergy.csv")}
    for index, batch in enumerate((8, 16)):
        record = shipped[f"mlenergy-qwen3-30b-a3b-thinking-2507-bf16-h100x1-tp1ep1dp1-gpqa-b{batch}-r1"]
        row = the("mlenergy_model.json", index)
        for name, value in record.measured().items():
            assert row.columns[name] == pytest.approx(value, rel=1e-7), name
        for name in ("gpu", "n_gpus", "tp", "ep", "dp", "model", "weight_dtype", "load", "max_num_seqs",
                     "concurrency", "length_spread", "power_scope"):  # fmt: skip
            assert row.columns[name] == getattr(record, name), name


def test_a_row_of_inferencex_equals_the_shipped_one():
    record = next(r for r in read_records(DIRECTORY / "inferencex.csv") if r.run_id.endswith("8192x1024-c8-cfg606"))
    row = the("inferencex.json")
    for name in ("gpu", "n_gpus", "tp", "pp", "ep", "model", "engine", "engine_version", "load", "concurrency",
                 "input_tok", "output_tok", "length_spread", "ttft_s_mean", "tpot_s_mean"):  # fmt: skip
        assert row.columns[name] == pytest.approx(getattr(record, name)), name


def change(name, index, path, value):
    """Documents of a file with one field changed; ... drops the field."""
    found = documents(name)
    target = found[index]
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part) if part.isdigit() else part]
    last = int(last) if last.isdigit() else last
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return found


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "index", "path", "value", "complaint"),
    [
        # missing, of the wrong type, impossible
        ("vllm_serve.json", 0, "mean_tpot_ms", ..., "mutated.json: field 'mean_tpot_ms' is missing, expected a number"),
        ("vllm_serve.json", 0, "max_concurrency", ..., "field 'max_concurrency' is missing"),
        ("vllm_serve.json", 0, "completed", None, "field 'completed' is null"),
        ("vllm_serve.json", 0, "completed", 0, "field 'completed' is 0, expected more than 0"),
        ("vllm_serve.json", 0, "duration", "52", "field 'duration' is '52', expected a number"),
        ("vllm_serve.json", 0, "mean_ttft_ms", NAN, "field 'mean_ttft_ms' is NaN, expected a finite number"),
        ("vllm_serve.json", 0, "p99_ttft_ms", -3.0, "field 'p99_ttft_ms' is -3.0, expected a number of at least 0"),
        ("vllm_serve.json", 0, "p99_ttft_ms", math.inf, "expected a finite number below"),
        ("vllm_serve.json", 0, "duration", 10**400, "expected a finite number below"),
        ("vllm_serve.json", 0, "backend", "tokenflight", "a simulation, expected a measurement"),
        ("guidellm_v2.json", 0, "benchmarks.1.metrics.time_to_first_token_ms", ...,
         "mutated.json, benchmark 2: field 'metrics.time_to_first_token_ms.successful' is missing"),
        ("guidellm_v2.json", 0, "benchmarks.0.config.strategy.type_", "bursty", "expected synchronous, concurrent"),
        ("aiperf_summary.json", 0, "request_latency.unit", "furlongs", "is 'furlongs', expected a unit of time"),
        ("aiperf_summary.json", 0, "telemetry_data.endpoints.localhost:9400.gpus.gpu_0.metrics.nvidia_power_usage.unit",
         "mW", "field 'telemetry_data.endpoints.localhost:9400.gpus.gpu_0.metrics.nvidia_power_usage.unit' is 'mW'"),
        ("genai_perf.json", 0, "input_config.perf_analyzer.stimulus", ..., "perf_analyzer.stimulus' is missing"),
        ("sglang.jsonl", 1, "mean_e2e_latency_ms", ..., "json, result 2: field 'mean_e2e_latency_ms' is missing"),
        ("llama_bench.json", 2, "samples_ns", [], "test 3: field 'samples_ns' is empty or holds a 0"),
        ("inferencex.json", 0, "osl", ..., "mutated.json, result 1: field 'osl' is missing"),
        ("mlenergy_model.json", 0, "task", "text-to-image", "expected a task that writes text"),
        # unknown versions
        ("guidellm_v2.json", 0, "metadata.version", 3, "field 'metadata.version' is 3, expected one of 1, 2"),
        ("guidellm_v2.json", 0, "metadata.version", ..., "field 'metadata.version' is missing, expected 1 or 2"),
        ("aiperf_summary.json", 0, "schema_version", "2.0", "field 'schema_version' is '2.0', expected one of 1.0"),
        ("inferencex.json", 0, "power_metric_schema_version", 1, "'power_metric_schema_version' is 1, expected 2"),
        # summaries that do not follow from the lists, by name
        ("vllm_serve_detailed.json", 0, "mean_ttft_ms", 63.0,
         "mean_ttft_ms/1000 is 0.063 but the mean of ttfts gives 0.06"),
        ("vllm_serve_detailed.json", 0, "median_itl_ms", 9.0, "the median of itls gives 0.0112"),
        ("vllm_serve_detailed.json", 0, "p99_e2el_ms", 150.0, "the p99 of latencies gives"),
        ("vllm_serve_detailed.json", 0, "total_output_tokens", 60, "output_throughput is"),
        ("vllm_serve_detailed.json", 0, "ttfts", [0.05] * 5, "field 'output_lens' has 6 entries, expected 5"),
        ("vllm_latency.json", 0, "avg_latency", 1.3, "avg_latency is 1.3 but the mean of latencies gives 1.2025"),
        ("vllm_throughput.json", 0, "tokens_per_second", 3000.0, "total_num_tokens / elapsed_time gives 3200"),
        ("guidellm_v2.json", 0, "benchmarks.0.metrics.inter_token_latency_ms.successful.mean", 10.6,
         "inter_token_latency_ms.successful.mean is 10.6 but the requests' mean gives 10.76"),
        ("guidellm_v2.json", 0, "benchmarks.0.requests.successful.2.time_per_output_token_ms", 10.8, "time_per_output"),
        ("guidellm_v1.json", 0, "benchmarks.0.metrics.time_per_output_token_ms.successful.mean", 9.4,
         "time_per_output_token_ms without the first token gives"),
        ("aiperf_summary.json", 0, "output_token_throughput.avg", 300.0, "request_count output_sequence_length"),
        ("aiperf_records.jsonl", 3, "metrics.inter_token_latency.value", 9.0, "record 4: inter_token_latency is 0.009"),
        ("genai_perf.json", 0, "request_throughput.avg", 2.0, "request_count is 8 but request_throughput duration"),
        ("sglang.jsonl", 0, "concurrency", 2.5, "concurrency is 2.5 but mean_e2e_latency_ms completed / duration"),
        ("llama_bench.json", 0, "avg_ts", 8000.0, "avg_ts is 8000 but tokens per second of samples_ns"),
        ("inferencex.json", 0, "mean_intvty", 70.0, "mean_intvty is 70 but 1 / mean_tpot gives"),
        ("mlenergy_model.json", 0, "configurations.1.energy_per_token_joules", 0.7,
         "mutated.json, configuration 2: energy_per_token_joules is 0.7"),
        # milliseconds and seconds mixed up
        ("vllm_serve.json", 0, "mean_ttft_ms", 5e6, "ttft_s_mean would be 5000 s, expected 0.0001 to 3600 s; millisec"),
        ("vllm_serve.json", 0, "mean_ttft_ms", 61200.0, "ttft_s_mean would be 61.2 s in a run of 52.5 s"),
        ("vllm_serve.json", 0, "mean_tpot_ms", 0.00984, "tpot_s_mean would be 9.84e-06 s"),
        ("aiperf_summary.json", 0, "time_to_first_token.unit", "s", "ttft_s_mean would be 33.25 s in a run of"),
        ("sglang.jsonl", 0, "max_concurrency", 1, "keep 1 clients busy beyond the run"),
    ],
)  # fmt: skip
def test_bad_fields_are_refused_by_name(name, index, path, value, complaint):
    tool = import_source(read_source(FILES / name), "auto", {}).kind.tool
    assert complaint in refused(change(name, index, path, value), tool)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON: the file is empty"),
        ("model,ttft\nx,1\n", "line 1, column 1: not JSON"),
        ('{"a": 1', "not JSON"),
        ('{"a": 1}\n{"a": \n', "line 2, column"),
        ("[]", "the list is empty"),
        ("3", "holds 3, expected a JSON object"),
        ('[{"a": 1}, 4]', "entry 2: holds 4"),
        ('{"a": 1, "a": 2}', "field 'a' stands twice in one object"),
        ("[" * 100_000, "not JSON that can be read"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON that can be read"),
        ('{"a": 1}', "looks like no known tool's result file"),
    ],
)
def test_what_is_no_result_file_is_refused(tmp_path, text, complaint):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        import_source(read_source(path), "auto", {})
    assert complaint in str(error.value) and str(path) in str(error.value)


def test_bytes_that_are_no_text_and_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    for path in (tmp_path / "x.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError):
            read_source(path)


def test_the_wrong_tool_is_said_with_the_right_one():
    assert "looks like a GuideLLM benchmarks.json file, expected vllm; give --tool guidellm" in refused(
        "guidellm_v2.json", "vllm"
    )
    assert "has none of the fields of mlenergy" in refused([{"a": 1}], "mlenergy")
    pytorch = [{"benchmark": {"name": "vLLM benchmark", "extra_info": {}}, "model": {}, "metric": {}}]
    assert "PyTorch's benchmark format" in refused(pytorch)


def test_a_tool_named_reads_a_file_that_lacks_most_fields():
    found = documents("vllm_serve.json")
    for name in ("num_prompts", "request_rate", "completed", "total_token_throughput"):
        del found[0][name]
    assert "looks like no known tool" in refused(found)
    assert "field 'completed' is missing" in refused(found, "vllm")


# Gaps between chunks are gaps between tokens only where every chunk carries one token.


def test_chunks_of_several_tokens_are_no_tokens():
    found = documents("vllm_serve_chunks.json")
    for name in [name for name in found[0] if name.startswith("spec_decode")]:
        del found[0][name]
    (row,) = imported(found)
    assert "itl_s_mean" not in row.columns and not flags(row, "suspect:")
    assert flags(row, "empty:") == ["itl_s_*:gaps between chunks, 0.25 of them per token"]
    assert flags(row, "ambiguous:") == ["several_tokens_per_chunk"]  # perhaps speculative decoding
    records = documents("aiperf_records.jsonl")
    for record in records[:-1]:
        record["metrics"]["inter_chunk_latency"]["value"] = [7.0] * 50
    assert flags(imported(records)[0], "empty:") == ["itl_s_*:gaps between chunks, 0.5 of them per token"]


@pytest.mark.parametrize(("gaps", "one"), [(800, True), (793, True), (790, False), (400, False), (0, False)])
def test_one_token_per_chunk_holds_to_a_per_cent(gaps, one):
    assert definitions.one_token_per_chunk(gaps, output_tok=808, requests=8) is one


# GuideLLM: weights, times that include the first token, requests outside the window


def test_requests_that_are_not_in_the_window_are_not_counted():
    found = documents("guidellm_v2.json")
    benchmark = found[0]["benchmarks"][0]
    early = copy.deepcopy(benchmark["requests"]["successful"][0])
    early |= {"request_start_time": benchmark["start_time"] - 9, "request_end_time": benchmark["start_time"] - 8,
              "time_to_first_token_ms": 900.0}  # fmt: skip
    benchmark["requests"]["successful"].insert(0, early)
    row = imported(found)[0]
    assert "summaries_recomputed" in row.flags and row.columns["ttft_s_mean"] == pytest.approx(0.0645)


def test_a_time_that_includes_the_first_token_is_converted():
    found = documents("guidellm_v1.json")
    del found[0]["benchmarks"][0]["metrics"]["inter_token_latency_ms"]
    row = imported(found)[0]
    assert row.columns["tpot_s_mean"] == pytest.approx(0.0094, rel=1e-6)
    assert "tpot_s_median" not in row.columns and "itl_s_mean" not in row.columns
    assert "converted:tpot_s_mean:from (last-start)/n to (last-first)/(n-1) with TTFT" in row.flags
    del found[0]["benchmarks"][0]["metrics"]["time_per_output_token_ms"]
    assert "field 'metrics.inter_token_latency_ms' is missing" in refused(found)


def test_requests_without_a_stream_are_no_zeros():
    found = documents("guidellm_v2.json")
    benchmark = found[0]["benchmarks"][1]
    quiet, *rest = benchmark["requests"]["successful"]  # all of one length, so of one weight
    quiet |= {"time_to_first_token_ms": None, "inter_token_latency_ms": None}
    for name in ("time_to_first_token_ms", "inter_token_latency_ms"):
        values = [0.0, *(r[name] for r in rest)]  # the tool counts what is missing as 0
        summary = benchmark["metrics"][name]["successful"]
        summary |= {"mean": float(np.mean(values)), "median": sorted(values)[2]}
    row = imported(found)[1]
    assert row.columns["ttft_s_mean"] == pytest.approx(np.mean([r["time_to_first_token_ms"] for r in rest]) / 1e3)


def test_a_client_that_was_late_is_suspect():
    found = documents("guidellm_v2.json")
    found[0]["benchmarks"][1]["scheduler_metrics"]["request_targeted_start_delay_avg"] = 0.02
    assert flags(imported(found)[1], "suspect:") == ["client_limit"]
    found[0]["benchmarks"][1]["scheduler_metrics"]["request_targeted_start_delay_avg"] = -1.0
    assert not flags(imported(found)[1], "suspect:")


def test_a_window_cut_out_of_a_run_keeps_the_tool_s_rates():
    found = documents("guidellm_v2.json")
    found[0]["benchmarks"][0]["warmup_duration"] = 2.0
    row = imported(found)[0]
    rate = found[0]["benchmarks"][0]["metrics"]["output_tokens_per_second"]["successful"]["mean"]
    assert "steady_window" in row.flags and row.columns["output_tok_per_s"] == rate


# Loads


@pytest.mark.parametrize(
    ("arguments", "columns", "ambiguous"),
    [
        ({"requests": 64}, {"load": "burst", "num_requests": 64}, False),
        ({"requests": 64, "clients": 8}, {"load": "closed_loop", "concurrency": 8.0, "num_requests": 64}, False),
        ({"requests": 8, "clients": 8}, {"load": "burst", "num_requests": 8}, False),
        ({"requests": 1, "clients": 1}, {"load": "closed_loop", "concurrency": 1.0, "num_requests": 1}, False),
        ({"requests": 9, "rate": 2.0}, {"load": "open_loop", "request_rate_rps": 2.0, "num_requests": 9}, False),
        ({"requests": 9, "rate": 2.0, "poisson": False}, {"load": "open_loop", "request_rate_rps": 2.0}, True),
        ({"requests": 9, "rate": 2.0, "clients": 4}, {"load": "open_loop"}, True),
    ],
)
def test_loads_in_the_schema_s_words(arguments, columns, ambiguous):
    row = Row("here", "tool")
    put_load(row, **arguments)
    assert columns.items() <= row.columns.items() and bool(flags(row, "ambiguous:")) is ambiguous


@pytest.mark.parametrize(
    ("changes", "load", "ambiguous"),
    [
        ({"request_rate": "inf", "max_concurrent_requests": 200}, "burst", []),
        ({"request_rate": "inf", "max_concurrent_requests": 19}, "burst", ["arrivals_not_at_once"]),  # a trace replayed
        (
            {"request_rate": "inf", "max_concurrent_requests": None, "start_times": [5.0, 40.0]},
            "burst",
            ["arrivals_not_at_once"],
        ),
        ({"request_rate": "inf", "max_concurrent_requests": None, "start_times": [0.0, 40.0, 40.1]}, "burst", []),
        ({"request_rate": "inf", "max_concurrency": 16}, "closed_loop", []),
        ({"burstiness": 0.5}, "open_loop", ["arrivals_not_poisson"]),
        ({"burstiness": math.inf}, "open_loop", ["arrivals_not_poisson"]),  # evenly spaced
        ({"probe_completed": 40, "probe_failed": 0}, "open_loop", ["probe_requests_beside"]),
        ({"max_concurrency": 10}, "open_loop", ["rate_with_limit_of_10_at_a_time"]),
        ({"max_concurrency": 64}, "open_loop", []),  # at most 19 were under way: the limit was never reached
        ({"request_rate": "inf", "max_concurrent_requests": 200, "ramp_up_strategy": "linear"}, "burst", ["ramp_up"]),
    ],
)
def test_arrivals_of_vllm_serve(changes, load, ambiguous):
    found = documents("vllm_serve.json")
    found[0] |= changes
    (row,) = imported(found)
    assert row.columns["load"] == load and flags(row, "ambiguous:") == ambiguous


@pytest.mark.parametrize(
    ("phase", "load"),
    [
        ({"name": "profiling", "type": "poisson", "rate": 3.0}, "open_loop"),
        ({"name": "profiling", "type": "concurrency", "concurrency": 4}, "closed_loop"),
        ({"name": "profiling", "type": "user_centric"}, None),
        ({"name": "profiling", "type": "poisson", "rate_series": {"points": [[0, 1], [60, 9]]}}, None),
        ({"name": "profiling", "type": "gamma", "rate": 3.0, "smoothness": 1.0}, "open_loop"),
    ],
)
def test_phases_of_aiperf(phase, load):
    found = documents("aiperf_summary.json")
    found[0]["input_config"]["phases"] = [phase]
    assert imported(found)[0].columns.get("load") == load and ("rate_series" in phase) is bool(
        flags(imported(found)[0], "ambiguous:")
    )
    found[0]["input_config"]["phases"] = [phase, {**phase, "name": "again"}]
    assert flags(imported(found)[0], "empty:load") == [":2 profiling phases in one export"]


def test_end_to_end_times_come_from_the_lists_where_nobody_asked_for_them():
    found = documents("vllm_serve_detailed.json")
    for name in ("mean_e2el_ms", "median_e2el_ms", "p99_e2el_ms"):
        del found[0][name]
    row = imported(found)[0]
    assert row.columns["e2e_s_mean"] == pytest.approx(0.1496) and "derived:e2e_s_*:from latencies" in row.flags
    for name in ("ttfts", "itls", "output_lens", "input_lens"):  # as saved without --save-detailed
        del found[0][name]
    assert imported(found)[0].columns["e2e_s_mean"] == pytest.approx(0.1496)
    found[0]["failed"] = 1
    assert "e2e_s_mean" not in imported(found)[0].columns
    older = documents("vllm_serve_detailed.json")
    for name in ("mean_e2el_ms", "median_e2el_ms", "p99_e2el_ms", "latencies"):
        del older[0][name]
    row = imported(older)[0]
    assert row.columns["e2e_s_mean"] == pytest.approx(0.1496) and "derived:e2e_s_*:from ttfts and itls" in row.flags


def test_failures_and_cuts_make_a_run_suspect():
    found = documents("vllm_serve.json")
    found[0] |= {"num_prompts": 201, "failed": 1}
    assert flags(imported(found)[0], "failed:") == ["1 of 201"] and not flags(imported(found)[0], "suspect:")
    found[0] |= {"num_prompts": 220, "failed": 20}
    assert flags(imported(found)[0], "suspect:") == ["failed_requests"]
    found[0] |= {"num_prompts": 1000, "failed": 0}  # the data set had only 200
    (row,) = imported(found)
    assert row.columns["num_requests"] == 200 and not flags(row, "failed:")
    del found[0]["failed"]  # as before 0.11
    assert flags(imported(found)[0], "failed:") == ["800 of 1000"]


# What the user states


def test_what_is_given_fills_gaps_and_is_flagged():
    row = the("vllm_serve.json", gpu="h100-sxm", engine="vllm", tp=1)
    assert (row.columns["gpu"], row.columns["tp"]) == ("h100-sxm", 1) and flags(row, "given:") == ["gpu+engine+tp"]


def test_what_is_given_may_not_contradict_the_file():
    assert "states concurrency 2.0, but 8 was given" in refused("vllm_serve_detailed.json", concurrency=8)
    assert the("vllm_serve_detailed.json", input_tok=510.0).columns["input_tok"] == 512.0
    row = the("vllm_serve.json", model="/models/llama")
    assert row.columns["model"] == "/models/llama" and "meta-llama" in flags(row, "given:")[0]


def test_one_length_gives_the_other_and_the_rate_of_output():
    row = the("vllm_throughput.json", input_tok=512.0)
    assert (row.columns["output_tok"], row.columns["output_tok_per_s"]) == (128.0, 640.0)
    assert "derived:output_tok:total_num_tokens/num_requests - input_tok" in row.flags
    assert "expected less than the 640 of both" in refused("vllm_throughput.json", input_tok=640.0)
    both = refused("vllm_throughput.json", input_tok=512.0, output_tok=64.0)
    assert "input_tok + output_tok as given is 576 but total_num_tokens / num_requests gives 640" in both


def test_power_counts_only_where_the_gpus_are_known():
    row = the("aiperf_summary.json", tp=1)
    assert row.columns["power_w"] == 412.5 and row.columns["power_scope"] == "board" and "whole_run_power" in row.flags
    assert row.columns["energy_j_per_output_tok"] == pytest.approx(412.5 / row.columns["output_tok_per_s"])
    assert the("genai_perf.json", n_gpus=2).columns["power_w"] == 600.0
    assert "power_w" not in the("genai_perf.json", tp=4).columns


@pytest.mark.parametrize(
    ("options", "settings_given", "complaint"),
    [
        ({"gpu": "h1000"}, (), "unknown GPU 'h1000'"),
        ({"engine": "vllm:"}, (), "expected NAME or NAME:VERSION"),
        ({"engine": "my engine"}, (), "expected NAME or NAME:VERSION"),
        ({"tp": "two"}, (), "tp 'two': expected a whole number"),
        ({"tp": "0"}, (), "expected a number above 0"),
        ({"tp": "null"}, (), "tp 'null': expected a whole number"),
        ({"concurrency": "nan"}, (), "expected a number above 0"),
        ({"weight_dtype": "q4"}, (), "unknown weight_dtype 'q4'"),
        ({"load": "batch"}, (), "expected one of static_batch"),
        ({}, ("tp",), "expected COLUMN=VALUE"),
        ({}, ("batch=3",), "unknown column 'batch'"),
        ({}, ("ttft_s_mean=0.1",), "--set ttft_s_mean: is measured"),
        ({}, ("prefix_caching=maybe",), "expected true or false"),
    ],
)
def test_statements_that_make_no_sense_are_refused(options, settings_given, complaint):
    with pytest.raises(UserError) as error:
        read_given(options, settings_given)
    assert complaint in str(error.value)


def test_statements_are_typed():
    given_columns = read_given(
        {"gpu": "H100", "engine": "TRT:1.2", "tp": "2"}, ("prefix_caching=true", "max_num_seqs=64", "source=lab")
    )
    assert given_columns == {"gpu": "h100-sxm", "engine": "trtllm", "engine_version": "1.2", "tp": 2,
                             "prefix_caching": True, "max_num_seqs": 64, "source": "lab"}  # fmt: skip


# The command


@click.group(cls=Calibrate)
def program():
    pass


import_runs.register(program)


def run(*arguments):
    return CliRunner().invoke(program, ["import", *map(str, arguments)], prog_name="calibrate")


def test_imported_files_can_be_read_as_records(tmp_path):
    out = tmp_path / "runs.csv"
    others = ("llama_bench.json", "inferencex.json", "sglang.jsonl", "aiperf_records.jsonl")  # state an engine, no load
    files = [FILES / name for name in NAMES if name not in others]
    result = run(*files, "--gpu", "h100", "--model", "Qwen/Qwen3-8B", "--engine", "vllm:0.11.0", "--out", out)
    assert result.exit_code == 0, result.output
    records = read_records(out)
    assert len(records) == 17 and {r.gpu for r in records} == {"h100-sxm"}
    assert all(r.flagged("given:") and r.measured() for r in records)
    again = run(FILES / "aiperf_records.jsonl", "--gpu", "h100", "--model", "m", "--load", "closed_loop",
                "--concurrency", "2", "--out", out, "--append")  # fmt: skip
    assert again.exit_code == 0 and again.output.endswith(f"added 1 run: {out}\n") and len(read_records(out)) == 18


def test_the_report_says_what_was_found_converted_and_left_open(tmp_path):
    result = run(FILES / "vllm_serve.json", "--gpu", "h100", "--out", tmp_path / "runs.csv")
    lines = [line.strip() for line in result.output.splitlines()]
    assert any(line.startswith("vllm_bench_serve-") and "ttft_s_mean 0.0612" in line for line in lines)
    assert "converted ttft_s_* from ms" in lines and "given     gpu" in lines
    assert "not stated engine (--engine), engine_version (--set), weight_dtype (--weights), tp (--tp)" in lines
    bare = run(FILES / "vllm_latency.json", "--out", tmp_path / "bare.csv").output
    assert "cannot read this row without gpu, model" in bare and "concurrency (--concurrency)" in bare


def test_json_has_the_same(tmp_path):
    result = run(FILES / "llama_bench.json", "--out", tmp_path / "runs.csv", "--json")
    (file,) = json.loads(result.output)["files"]
    assert file["tool"] == "llama-bench" and len(file["runs"]) == 4
    assert file["runs"][0]["record"]["ttft_s_mean"] == pytest.approx(0.06) and "model" in file["runs"][0]["missing"]
    assert file["skipped"][0]["reason"].startswith("a prompt behind 4096 tokens")


def test_nothing_is_overwritten_and_no_run_comes_twice(tmp_path):
    out, copied = tmp_path / "runs.csv", tmp_path / "copy.json"
    assert run(FILES / "vllm_serve.json", "--out", out).exit_code == 0
    before = out.read_bytes()
    for arguments, complaint in (
        ((FILES / "vllm_latency.json", "--out", out), "exists; give another --out, or --append"),
        ((FILES / "vllm_serve.json", "--out", out, "--append"), "already, expected runs that are not in it"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and complaint in result.stderr and out.read_bytes() == before
    copied.write_bytes((FILES / "vllm_latency.json").read_bytes())
    twins = run(FILES / "vllm_latency.json", copied, "--out", tmp_path / "other.csv")
    assert twins.exit_code == 2 and "is the run of" in twins.stderr
    assert not (tmp_path / "other.csv").exists()


def test_only_a_run_file_can_be_added_to(tmp_path):
    out = tmp_path / "notes.csv"
    out.write_text("a,b\n1,2\n")
    result = run(FILES / "vllm_serve.json", "--out", out, "--append")
    assert result.exit_code == 2 and "other columns than docs/records.md" in result.stderr
    assert out.read_text() == "a,b\n1,2\n"


def test_a_run_file_without_a_last_line_break_is_added_to(tmp_path):
    out = tmp_path / "runs.csv"
    run(FILES / "vllm_serve.json", "--gpu", "h100", "--out", out)
    out.write_text(out.read_text().rstrip("\n"))
    run(FILES / "vllm_serve_detailed.json", "--gpu", "h100", "--out", out, "--append")
    assert len(read_records(out)) == 2 and out.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_one_bad_file_means_no_output(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    result = run(FILES / "vllm_serve.json", tmp_path / "bad.json", "--out", tmp_path / "runs.csv")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and not list(tmp_path.glob("*.csv"))
    assert run(FILES / "vllm_serve.json", "--out", tmp_path / "none" / "runs.csv").exit_code == 2
    alone = [documents("inferencex.json")[2]]
    (tmp_path / "split.json").write_text(json.dumps(alone))
    result = run(tmp_path / "split.json", "--tool", "inferencex", "--out", tmp_path / "runs.csv")
    assert result.exit_code == 2 and "nothing to import" in result.stderr


def test_ids_depend_on_the_content_only(tmp_path):
    for name, directory in (("a.json", "one"), ("b.json", "two")):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / name).write_bytes((FILES / "guidellm_v2.json").read_bytes())
    ids = [
        [run_id for run_id, _ in import_source(read_source(path), "auto", {}).rows]
        for path in (tmp_path / "one" / "a.json", tmp_path / "two" / "b.json")
    ]
    assert ids[0] == ids[1] and len(set(ids[0])) == 2


# What the tools' own sources say of their files


def test_one_request_at_a_time_is_the_default_of_aiperf():
    found = documents("aiperf_summary.json")
    found[0]["input_config"]["phases"] = [{"name": "profiling", "type": "concurrency", "requests": 8}]
    found[0]["benchmark_duration"]["avg"] = 8 * 0.741
    for name, tokens in (("output_token_throughput", 101), ("total_token_throughput", 651)):
        found[0][name]["avg"] = tokens / 0.741
    (row,) = imported(found)
    assert row.columns["concurrency"] == 1.0 and "derived:concurrency:1 where the file has none" in row.flags


@pytest.mark.parametrize(
    ("models", "expected"),
    [(["a/b"], "a/b"), ([{"name": "a/b"}], "a/b"), ({"items": [{"name": "a/b"}]}, "a/b"), (["a", "b"], None)],
)
def test_models_of_aiperf(models, expected):
    found = documents("aiperf_summary.json")
    found[0]["input_config"]["models"] = models
    assert imported(found)[0].columns.get("model") == expected


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"concurrency_ramp": {"duration": 30}}, "ambiguous:concurrency_ramp"),
        ({"prefill_concurrency": 1}, "ambiguous:prefill_concurrency"),
        ({"cancellation": {"rate": 10.0}}, "suspect:cancelled"),
        ({"timing_mode": "agentic_replay"}, "ambiguous:timing_mode"),
    ],
)
def test_unsteady_phases_of_aiperf_are_flagged(changes, flag):
    found = documents("aiperf_summary.json")
    found[0]["input_config"]["phases"][-1] |= changes
    assert flag in imported(found)[0].flags


@pytest.mark.parametrize(
    ("loadgen", "load", "ambiguous"),
    [
        ({"request_rate": 2.0, "request_rate_mode": "poisson"}, "open_loop", []),
        ({"request_rate": 2.0, "arrival_pattern": "constant"}, "open_loop", ["arrivals_not_poisson"]),
        ({"request_rate": 2.0, "arrival_smoothness": 3.0}, "open_loop", ["arrivals_not_poisson"]),
        ({"concurrency": 2, "request_rate_mode": "concurrency_burst"}, "closed_loop", []),
        ({"user_centric_rate": 2.0}, None, []),
    ],
)
def test_loads_of_the_first_versions_of_aiperf(loadgen, load, ambiguous):
    found = documents("aiperf_summary_early.json")
    found[0]["input_config"]["loadgen"] = loadgen
    (row,) = imported(found)
    assert row.columns.get("load") == load and flags(row, "ambiguous:") == ambiguous


def test_answers_that_came_at_once_have_no_first_token():
    sglang = documents("sglang.jsonl")[1:]
    for statistic in ("mean", "median", "p99"):
        sglang[0][f"{statistic}_ttft_ms"] = sglang[0][f"{statistic}_e2e_latency_ms"]
        sglang[0][f"{statistic}_tpot_ms"] = sglang[0][f"{statistic}_itl_ms"] = 0.0
    genai = documents("genai_perf.json")
    genai[0]["time_to_first_token"] = genai[0]["request_latency"]
    del genai[0]["inter_token_latency"]
    for found in (sglang, genai):
        (row,) = imported(found)
        assert not any(name.startswith(("ttft", "tpot")) for name in row.columns) and row.columns["e2e_s_mean"] > 0
        assert any(flag.startswith("ttft_s_*:") for flag in flags(row, "empty:"))


def test_gaps_that_the_client_shared_out_have_a_mean_only():
    found = documents("sglang.jsonl")[:1]
    gaps = [0.011, 0.011, 0.011, 0.0112, 0.0112, 0.0112, 0.0114, 0.0112]
    found[0]["itls"] = [gaps] * 6
    for name, value in (("mean", np.mean(gaps)), ("median", 0.0112), ("p99", np.percentile(gaps * 6, 99))):
        found[0][f"{name}_itl_ms"] = value * 1e3
    (row,) = imported(found)
    assert row.columns["itl_s_mean"] == pytest.approx(np.mean(gaps)) and "itl_s_p99" not in row.columns
    assert flags(row, "empty:itl_s_median")


def test_a_request_without_output_completed_all_the_same():
    found = documents("vllm_serve_detailed.json")
    one = found[0]
    one["output_lens"][5], one["itls"][5], one["latencies"][5] = 0, [], one["ttfts"][5]
    one |= {"total_output_tokens": 45, "output_throughput": 45 / one["duration"],
            "total_token_throughput": (45 + 3072) / one["duration"]}  # fmt: skip
    several = [(e - t) / 8 for e, t in zip(one["latencies"][:5], one["ttfts"])]
    for name, values in (("tpot", several), ("e2el", one["latencies"]), ("itl", np.concatenate(one["itls"]))):
        one |= {f"mean_{name}_ms": np.mean(values) * 1e3, f"median_{name}_ms": np.median(values) * 1e3,
                f"p99_{name}_ms": np.percentile(values, 99) * 1e3}  # fmt: skip
    (row,) = imported(found)
    assert row.columns["output_tok"] == 7.5 and row.columns["ttft_s_mean"] == pytest.approx(0.06)
    one["errors"] = ["", "", "", "", "", "Bad Gateway"]
    assert "field 'completed' is 6, expected 5 as in 'output_lens'" in refused(found)


SERVER = {"version": "0.5.9", "model_path": "Qwen/Qwen3-8B", "tp_size": 8, "pp_size": 1, "ep_size": 8, "dp_size": 8,
          "enable_dp_attention": False, "disable_radix_cache": True, "speculative_algorithm": None,
          "api_key": "sk-secret"}  # fmt: skip


@pytest.mark.parametrize(
    ("server", "expected", "flag"),
    [
        ({}, {"engine": "sglang", "engine_version": "0.5.9", "tp": 8, "ep": 8, "dp": 8, "prefix_caching": False}, None),
        ({"enable_dp_attention": True}, {"tp": 8, "dp": None, "n_gpus": 8}, "ambiguous:dp_attention"),
        ({"speculative_algorithm": "EAGLE3"}, {}, "suspect:speculative_decoding"),
        ({"tp_size": None}, {"engine": None, "model": None}, None),  # another engine's answer
    ],
)
def test_what_an_sglang_server_says_of_itself(server, expected, flag):
    found = documents("sglang.jsonl")[1:]
    found[0] |= {"backend": "sglang-oai-chat", "accept_length": None, "server_info": SERVER | server}
    (row,) = imported(found)
    assert {name: row.columns.get(name) for name in expected} == expected
    assert (flag in row.flags) if flag else not flags(row, "ambiguous:")


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"dataset_name": "image"}, "suspect:multimodal_prompts"),
        ({"total_input_vision_tokens": 900}, "suspect:multimodal_prompts"),
        ({"dataset_name": "generated-shared-prefix"}, "ambiguous:shared_prefixes"),
        ({"dataset_name": "mooncake", "request_rate": math.inf}, "ambiguous:trace_replay"),
        ({"cache_report": {"total_cached_tokens": 2000}}, "suspect:cached_prompt"),
        ({}, "failures_not_in_file"),
    ],
)
def test_prompts_and_arrivals_of_sglang_that_are_unusual(changes, flag):
    found = documents("sglang.jsonl")[1:]
    found[0] |= changes
    assert flag in imported(found)[0].flags


def test_an_sglang_server_in_two_parts_is_skipped():
    found = documents("sglang.jsonl")
    found[0]["server_info"] = {"prefill": [{}], "decode": [{}]}
    result = import_source(SourceFile("mutated.json", tuple(found)), "auto", {})
    assert len(result.rows) == 1 and "result 1" in result.skipped[0].where


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vllm_serve.json", {"backend": "openai-embeddings", "total_input_sequences": 200}),
        ("vllm_serve.json", {"backend": "vllm-rerank"}),
        ("sglang.jsonl", {"backend": "sglang-embedding", "total_output_tokens": 0}),
    ],
)
def test_servers_that_write_no_text_are_refused(name, changes):
    found = documents(name)[:1]
    found[0] |= changes
    assert "is a run of a server that writes no text" in refused(found)


def test_endpoints_without_output_tokens_are_refused_by_field():
    guidellm = documents("guidellm_v2.json")
    guidellm[0]["benchmarks"][0]["metrics"]["output_token_count"]["successful"]["mean"] = 0.0  # embeddings
    assert "field 'metrics.output_token_count.successful.mean' is 0" in refused(guidellm)
    for name, tool in (("aiperf_summary.json", "aiperf"), ("genai_perf.json", "genai-perf")):
        found = change(name, 0, "output_sequence_length", ...)
        assert "field 'output_sequence_length.avg' is missing" in refused(found, tool)


@pytest.mark.parametrize(
    ("name", "path", "value", "flag"),
    [
        ("vllm_serve.json", "rtfx", 12.5, "suspect:multimodal_prompts"),
        ("vllm_serve.json", "diffusion_committed_per_step", 3.1, "suspect:diffusion_decoding"),
        ("aiperf_summary.json", "num_images", {"unit": "images", "avg": 1.0}, "suspect:multimodal_prompts"),
        ("genai_perf.json", "input_config.endpoint.type", "multimodal", "suspect:multimodal_prompts"),
        ("guidellm_v2.json", "benchmarks.0.config.strategy.rampup_duration", 5.0, "ambiguous:ramp_up"),
        ("guidellm_v2.json", "benchmarks.0.metrics.image",
         {"images": {"input": {"successful": {"mean": 1.0}}}, "pixels": None}, "suspect:multimodal_prompts"),
        ("guidellm_v2.json", "benchmarks.0.metrics.iter_tokens_per_iteration", {"successful": {"mean": 2.5}},
         "ambiguous:several_tokens_per_chunk"),
        ("guidellm_v2.json", "benchmarks.0.requests.successful.0.cached_tokens", 128, "suspect:cached_prompt"),
        ("inferencex.json", "dcp_size", 4, "ambiguous:context_parallel"),
        ("inferencex.json", "power_valid", 0, "empty:power_w:power_valid is 0"),
        ("llama_bench.json", "tensor_buft_overrides", "exps=CPU", "suspect:partly_on_cpu"),
    ],
)  # fmt: skip
def test_what_no_model_of_plain_decoding_covers_is_flagged(name, path, value, flag):
    assert flag not in the(name).flags
    assert flag in imported(change(name, 0, path, value))[0].flags


def test_empty_answers_of_genai_perf_count_as_failures():
    found = documents("genai_perf.json")
    found[0]["request_throughput"]["avg"] *= 10 / 8  # counts all, request_count only the 8 that said something
    (row,) = imported(found)
    assert flags(row, "failed:") == ["2 of 10"] and flags(row, "suspect:") == ["failed_requests"]


def test_early_exports_of_genai_perf_are_refused_with_the_version():
    found = change("genai_perf.json", 0, "request_count", ...)
    assert "field 'request_count' is missing, expected an export of GenAI-Perf 0.0.13 or later" in refused(found)


def test_an_agentic_run_of_inferencex_is_skipped_not_the_whole_list():
    found = documents("inferencex.json")
    found[1] = {name: found[1][name] for name in ("hw", "conc", "framework", "precision", "tp", "ep", "model")}
    found[1]["scenario_type"] = "agentic-coding"
    result = import_source(SourceFile("mutated.json", tuple(found)), "auto", {})
    assert len(result.rows) == 1 and "agentic-coding" in result.skipped[0].reason
    assert "field 'tput_per_gpu' is missing" in refused(change("inferencex.json", 0, "tput_per_gpu", ...))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"n_gpus": 2, "pp": 2, "tp": None}),
        ({"split_mode": "row"}, {"n_gpus": 2, "tp": 2, "pp": None}),
        ({"split_mode": "none"}, {"n_gpus": 1, "tp": None, "pp": None}),
        ({"devices": "CUDA1"}, {"n_gpus": 1, "tp": None, "pp": None}),
        ({"gpu_info": "NVIDIA GeForce RTX 4090, NVIDIA L40S"}, {"gpu": None, "n_gpus": None}),
    ],
)
def test_llama_bench_lists_gpus_that_it_does_not_use(changes, expected):
    found = documents("llama_bench.json")[:1]
    found[0] |= {"gpu_info": "NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 4090"} | changes
    (row,) = imported(found)
    assert {name: row.columns.get(name) for name in expected} == expected
    found[0]["n_prompt"] = 512.7
    assert "field 'n_prompt' is 512.7, expected a whole number" in refused(found)


# What never gets into a record


SECRET = "sk-1234567890"


def spoiled(value, key=""):
    """A document whose texts are all secrets, but for those that the reader needs to find its way."""
    if isinstance(value, dict):
        extra = {"api_key": SECRET, "headers": {"Authorization": f"Bearer {SECRET}"}, "cli_command": SECRET}
        gpus = key in ("gpus", "endpoints") or "gpu0" in value  # maps, whose keys are names
        return {name: spoiled(child, name) for name, child in value.items()} | ({} if gpus else extra)
    if isinstance(value, list):
        return [spoiled(child, key) for child in value]
    private = ("generated_texts", "errors", "output", "prompt", "target", "url", "urls", "request_args", "tag", "label",
               "tokenizer_id", "model_filename", "date", "request_id", "x_request_id", "worker_id")  # fmt: skip
    return f"https://user:{SECRET}@host/" if key in private and isinstance(value, str) and value else value


@pytest.mark.parametrize("name", NAMES)
def test_prompts_answers_and_keys_stay_out_of_records_and_report(name, tmp_path):
    path = tmp_path / "spoiled.jsonl"
    path.write_text("".join(json.dumps(spoiled(document)) + "\n" for document in documents(name)))
    result = run(path, "--out", tmp_path / "runs.csv")
    assert result.exit_code == 0 and SECRET in path.read_text(), result.output
    assert SECRET not in (tmp_path / "runs.csv").read_text() + result.output
    assert "text" not in {cell for line in (tmp_path / "runs.csv").read_text().splitlines() for cell in line.split(",")}


def test_addresses_and_paths_are_no_names():
    row = imported(change("vllm_serve.json", 0, "model_id", f"https://user:{SECRET}@host/v1"))[0]
    assert "model" not in row.columns and SECRET not in str(row.flags)
    row = imported(change("llama_bench.json", 0, "gpu_info", "../../h100.toml"))[0]
    assert "gpu" not in row.columns and flags(row, "empty:gpu") == [":a path in the file, no name"]


@pytest.mark.parametrize("text", ["a\nb", "\ud800", "a\u2028b", "x" * 501])
def test_texts_that_do_not_print_are_refused(text):
    assert "expected printable text" in refused(change("vllm_serve.json", 0, "model_id", text))


# Files that grow, and files that are the same


def test_a_line_with_other_line_separators_is_one_line(tmp_path):
    path = tmp_path / "records.jsonl"
    records = documents("aiperf_records.jsonl")
    records[-1]["error"]["message"] = "split\u2028here\x85and here"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    assert imported(read_source(path))[0].columns["num_requests"] == 9


def test_a_file_that_grew_does_not_bring_its_old_runs_again(tmp_path):
    path, out = tmp_path / "results.jsonl", tmp_path / "runs.csv"
    first, second = (json.dumps(document) + "\n" for document in documents("sglang.jsonl"))
    path.write_text(first)
    assert run(path, "--out", out).exit_code == 0
    path.write_text(first + second)
    again = run(path, "--out", out, "--append")
    assert again.exit_code == 2 and "already, expected runs that are not in it" in again.stderr
    path.write_text(second)
    assert run(path, "--out", out, "--append").exit_code == 0
    path.write_text(first + first)
    twice = run(path, "--out", tmp_path / "other.csv")
    assert twice.exit_code == 2 and "result 2: is the run of" in twice.stderr and "result 1 again" in twice.stderr


def test_formatting_does_not_make_a_run_another(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(documents("vllm_serve.json")[0], indent=7, sort_keys=True))
    ids = [import_source(read_source(p), "auto", {}).rows[0][0] for p in (path, FILES / "vllm_serve.json")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("gpu_memory_utilization=5", "gpu_memory_utilization would be 5, expected a number from 1e-06 to 1"),
        ("tp=2000000000", "tp would be 2e+09"),
        ("length_spread=normal", "length_spread 'normal': expected fixed, uniform:R"),
        ("length_spread=uniform:2", "length_spread 'uniform:2'"),
    ],
)
def test_statements_that_the_run_file_would_not_take_are_refused(setting, complaint, tmp_path):
    result = run(FILES / "vllm_serve.json", "--set", setting, "--out", tmp_path / "runs.csv")
    assert result.exit_code == 2 and complaint in result.stderr and not (tmp_path / "runs.csv").exists()


def test_files_nested_beyond_reason_are_refused():
    document = {}
    for _ in range(100_000):
        document = {"a": document}
    with pytest.raises(UserError, match="x: not JSON that can be read: thousands of brackets"):
        SourceFile("x", (document,)).digest  # noqa: B018, computed on access


# Names


def test_names_of_gpus_and_versions():
    assert device_id("NVIDIA H100 80GB HBM3") == "h100-sxm" and device_id("../h100.toml") is None
    found = documents("llama_bench.json")
    found[0]["gpu_info"] = "orin-of-tomorrow"  # not an Orin that we know
    assert imported(found)[0].columns["gpu"] == "orin-of-tomorrow"
    assert image_version("vllm/vllm-openai:v0.13.0-cu130") == "0.13.0"
    assert image_version("lmsysorg/sglang:v0.5.8.post1-cu130-amd64") == "0.5.8.post1"
    assert image_version("vllm/vllm-openai:nightly-dev-cu13.0.1-426e59f") is None


# Properties


@given(st.floats(1e-3, 10), st.floats(1e-4, 1), st.integers(2, 5000))
def test_a_time_with_the_first_token_comes_back_without_it(ttft, step, tokens):
    last = ttft + (tokens - 1) * step
    assert definitions.tpot_without_first(last / tokens, ttft, tokens) == pytest.approx(step, rel=1e-6)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(1, 9)), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_weights_count_a_value_so_often(pairs, share):
    repeated = sorted(value for value, weight in pairs for _ in range(weight))
    low, high = definitions.weighted_quantiles(*zip(*pairs), share)
    place = min(max(math.ceil(share * len(repeated) - 1e-5 * len(repeated)) - 1, 0), len(repeated) - 1)
    assert low <= repeated[place] <= high
    assert definitions.weighted_mean(*zip(*pairs)) == pytest.approx(np.mean(repeated))


def test_a_path_through_anything_is_missing_not_an_error():
    fields = Fields({"a": [1], "b": {"c": None}, "d": {"e.f": {}}}, "here")
    assert [fields.get(path) for path in ("a.b", "b.c.d", "b.c", "x")] == [None] * 4
    with pytest.raises(UserError, match=r"field 'd\.e\.f' is missing"):
        fields.number("d.e.f")


JUNK = [None, True, -1, 0, 1, 3, 1e-9, 1e9, 1e300, NAN, math.inf, 10**400, "", "x", "nan", [], [1], [[]], [None], {},
        {"a": 1}, "inf", "1.5", "a\nb", "\ud800", "x;y", "https://user:secret@host/x", "../h100.toml", "a" * 600,
        {"\n": 1}]  # fmt: skip


def places(value, path=()):
    """Every place in a document."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def mutate(found, rng):
    """One to three places changed, dropped, or doubled."""
    for _ in range(rng.randint(1, 3)):
        *parents, last = rng.choice(list(places(found)) or [(0,)])
        target = found
        for part in parents:
            target = target[part]
        if rng.random() < 0.25 and parents:
            del target[last]
        elif isinstance(target[last], float) and rng.random() < 0.5:
            target[last] = target[last] * rng.choice([0.0, 1e-3, 0.5, 2, 1e3, -1])
        else:
            target[last] = copy.deepcopy(rng.choice(JUNK))


def check_readable(rows, path):
    """Write rows, what they leave open filled in, and read them as `validate` does."""
    path.unlink(missing_ok=True)
    open_columns = {"gpu": "h100-sxm", "model": "m", "load": "burst"}
    write_rows(path, [open_columns | record_of(f"r{i}", row) for i, row in enumerate(rows)], append=False)
    assert len(read_records(path)) == len(rows)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_documents_give_readable_records_or_one_sentence(name, tmp_path):
    original = documents(name)
    tool = import_source(read_source(FILES / name), "auto", {}).kind.tool
    done = 0
    for seed in range(100):
        rng = random.Random(seed)
        found = copy.deepcopy(original)
        mutate(found, rng)
        if not all(isinstance(one, dict) for one in found):
            continue  # the reader of files refuses these
        try:
            rows = imported(found, tool if seed % 2 else "auto", tp=1)
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 600
            continue
        done += 1
        check_readable(rows, tmp_path / "runs.csv")
        for row in rows:
            assert all(math.isfinite(row.columns[m]) and row.columns[m] > 0 for m in METRICS if m in row.columns)
            assert all(";" not in flag and "\n" not in flag for flag in row.flags)
    assert done < 100  # some must have been refused


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.binary(min_size=0, max_size=3))
def test_mutated_bytes_never_end_in_a_traceback(tmp_path_factory, name, seed, junk):
    content = bytearray((FILES / name).read_bytes())
    place = seed % len(content)
    content[place : place + 1 + seed % 5] = junk
    path = tmp_path_factory.mktemp("bytes") / "x.json"
    path.write_bytes(bytes(content))
    try:
        import_source(read_source(path), "auto", {})
    except UserError as error:
        assert "\n" not in str(error)
