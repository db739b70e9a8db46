"""The command `validate`: statuses, independence of order, in-sample rows found by content, honest statistics."""

import csv
import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.points import usable
from calibration.records import COLUMNS, read_records
from calibration.vendored import DIRECTORY, fitted_run_ids
from simulator.device import load_device
from simulator.profile_choice import load_calibration
from validate.cli import validate
from validate.errors import error_line
from validate.predict import Predictor

ROW = {
    "run_id": "a",
    "source": "me",
    "gpu": "orin-agx-64gb",
    "power_mode": "MAXN",
    "model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "weight_dtype": "bf16",
    "engine": "vllm",
    "engine_version": "0.8.6",
    "load": "static_batch",
    "concurrency": "1",
    "input_tok": "512",
    "output_tok": "256",
    "ttft_s_mean": "0.1",
    "tpot_s_mean": "0.025",
    "power_w": "25.4",
    "power_scope": "gpu_soc_rail",
    "flags": "steady_window_power",
}


def runs(tmp_path, *changes):
    path = tmp_path / "runs.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for index, change in enumerate(changes):
            writer.writerow(ROW | {"run_id": f"r{index}"} | change)
    return path


def predict(tmp_path, *changes):
    return Predictor().predict_all(read_records(runs(tmp_path, *changes)))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"batch_mean": "1.0"}, "ok"),
        ({"load": "closed_loop", "concurrency": "8", "num_requests": "40"}, "ok"),
        ({"load": "burst", "concurrency": "", "num_requests": "20"}, "ok"),
        ({"load": "open_loop", "request_rate_rps": "0.05", "num_requests": "20"}, "ok"),
        ({"length_spread": "uniform:0.8"}, "ok"),
        ({"engine_version": ""}, "ok"),
        ({"tp": "2"}, "extrapolated"),
        ({"tp": "5"}, "unsupported: deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B: 12 heads cannot be split over tp = 5"),
        ({"ep": "2", "tp": "2"}, "extrapolated"),
        ({"load": "open_loop"}, "unsupported: open_loop without request_rate_rps"),
        ({"concurrency": ""}, "unsupported: concurrency not stated"),
        ({"input_tok": ""}, "unsupported: input_tok or output_tok not stated"),
        ({"length_spread": "normal"}, "unsupported: run 'r0': length_spread is 'normal'"),
        ({"max_model_len": "600"}, "extrapolated"),
        ({"gpu": "warp"}, "unsupported: unknown GPU 'warp'"),
        ({"gpu": "h100-sxm"}, "extrapolated"),
        ({"gpu": "h100-sxm", "power_mode": ""}, "extrapolated"),
        ({"weight_dtype": "int4"}, "extrapolated"),
        ({"kv_dtype": "int8"}, "extrapolated"),
        ({"cuda_graphs": "false"}, "extrapolated"),
        ({"engine": "sglang"}, "extrapolated"),
        ({"power_mode": "15W"}, "extrapolated"),
    ],
)
def test_status_of_a_run(tmp_path, change, status):
    (found,) = predict(tmp_path, change)
    assert found.status.startswith(status)
    assert bool(found.values) is not status.startswith("unsupported")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("concurrency", "0"),
        ("concurrency", "nan"),
        ("input_tok", "inf"),
        ("output_tok", "-1"),
        ("tp", "0"),
        ("gpu_memory_utilization", "1.5"),
        ("tpot_s_mean", "1e-320"),
        ("engine", "v" * 5000),
    ],
)
def test_cells_without_sense_are_refused_with_line_and_column(tmp_path, column, value):
    result = CliRunner().invoke(validate, [str(runs(tmp_path, {column: value}))])
    assert result.exit_code == 2 and f"line 2, column {column}" in result.stderr


def test_what_simulate_refuses_is_not_guessed(tmp_path):
    found = predict(tmp_path, {"model": "llada-8b"}, {"concurrency": "1000000"})
    assert [p.status.partition(":")[0] for p in found] == ["unsupported"] * 2


def test_a_gpu_may_be_named_by_its_alias(tmp_path):
    by_id, by_alias = predict(tmp_path, {}, {"gpu": "Orin"})
    assert by_id.values == by_alias.values and by_id.device == by_alias.device == "orin-agx-64gb"
    assert len(usable(read_records(runs(tmp_path, {"gpu": "orin"})), "orin-agx-64gb")) == 1


def test_predictions_do_not_depend_on_the_order_of_rows(tmp_path):
    changes = ({}, {"power_mode": "15W"}, {"weight_dtype": "int4"}, {"power_mode": "30W"})
    forward = predict(tmp_path, *changes)
    backward = predict(tmp_path, *changes[::-1])
    assert [p.values for p in forward] == [p.values for p in backward[::-1]]
    maxn, slowest, _, slow = (p.values["tpot_s_mean"][0] for p in forward)
    assert maxn < slow < slowest


def test_predictions_file_has_a_row_per_run_and_only_measured_metrics(tmp_path):
    path, out = runs(tmp_path, {}, {"tp": "5"}, {"ttft_s_mean": ""}), tmp_path / "p.csv"
    result = CliRunner().invoke(validate, [str(path), "--predictions", str(out)])
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["run_id"] for row in rows] == ["r0", "r1", "r2"]
    metrics = ("ttft_s_mean", "tpot_s_mean", "power_w")
    assert list(rows[0]) == ["run_id", "status", *(f"{m}{s}" for m in metrics for s in ("", "_lo", "_hi"))]
    assert rows[1]["tpot_s_mean"] == "" and rows[2]["ttft_s_mean"] == ""
    for metric in metrics:
        low, value, high = (float(rows[0][metric + s]) for s in ("_lo", "", "_hi"))
        assert low < value < high


@pytest.mark.parametrize("load", [{"load": "closed_loop"}, {"load": "open_loop", "request_rate_rps": 2.0}])
def test_two_replicas_draw_the_power_of_two(tmp_path, load):
    row = {"power_w": 500.0, "energy_j_per_output_tok": 1.0, "num_requests": 64, "concurrency": 8} | load
    twice = {"dp": 2, "n_gpus": 2, "num_requests": 128, "concurrency": 16}
    twice |= {"request_rate_rps": 2 * load["request_rate_rps"]} if "request_rate_rps" in load else {}
    one, two = (p.values for p in predict(tmp_path, row, row | twice))
    assert two["power_w"][0] == pytest.approx(2 * one["power_w"][0], rel=0.05)
    assert two["energy_j_per_output_tok"][0] == pytest.approx(one["energy_j_per_output_tok"][0], rel=0.05)


def test_rows_that_were_fitted_are_recognised_under_another_name():
    records = read_records(DIRECTORY / "edgereasoning.csv")
    profile = load_calibration(load_device("orin"), None, "vllm", "0.8.6")
    fitted = fitted_run_ids(records, [profile])
    clean = {record.run_id for record in records if not record.flagged("suspect:")}
    assert fitted >= clean and len(clean) == 370
    renamed = msgspec.structs.replace(records[0], run_id="mine", flags=None)
    assert fitted_run_ids([renamed], [profile]) == {"mine"}
    changed = msgspec.structs.replace(renamed, ttft_s_mean=0.5)
    assert fitted_run_ids([changed], [profile]) == set()


def test_power_of_another_rail_is_set_apart(tmp_path):
    result = CliRunner().invoke(validate, [str(runs(tmp_path, {"power_scope": "wall"})), "--json"])
    report = json.loads(result.output)
    groups = {line["group"]: line["metric"] for line in report["errors"]}
    assert any("wall power against gpu_soc_rail" in group for group, metric in groups.items() if metric == "power_w")


def test_repeated_requests_of_one_client_take_as_long_together(tmp_path):
    loop = {"load": "closed_loop", "duration_s": "10"}
    once, many = predict(tmp_path, loop | {"num_requests": "1"}, loop | {"num_requests": "20"})
    assert many.values["duration_s"][0] == pytest.approx(20 * once.values["duration_s"][0], rel=0.01)  # lengths differ


def test_error_statistics_by_hand():
    line = error_line("g", "m", [(1.0, 1.1, 0.9, 1.2), (2.0, 1.8, 1.7, 1.9), (4.0, 4.0, 3.0, 5.0)])
    assert (line.n, line.bias, line.median) == (3, pytest.approx(0.0), pytest.approx(0.1))
    assert line.mean == pytest.approx(0.2 / 3) and line.p90 == pytest.approx(np.percentile([0.1, 0.1, 0.0], 90))
    assert line.covered == pytest.approx(2 / 3)


@pytest.mark.parametrize("arguments", [["none.csv"], [], ["--profile", "none.toml"]])
def test_bad_use_ends_with_one_sentence_and_code_2(tmp_path, arguments):
    given = arguments if "--profile" not in arguments else [str(runs(tmp_path, {})), *arguments]
    result = CliRunner().invoke(validate, given)
    assert result.exit_code == 2
    assert result.stderr.startswith("validate: error: ") and result.stderr.count("\n") == 1
