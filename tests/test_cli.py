"""`simulate` as its users meet it: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec.structs import replace

import hwspecs
from calibration.write import profile_text
from simulator.cli.main import simulate
from simulator.device import list_devices, load_device
from simulator.errors import UserError
from simulator.instance import KV_ROOM_TOK, WEIGHTS_SHARE, WEIGHTS_SHARE_UNIFIED
from simulator.model import default_ladder, list_models, load_model
from simulator.profile import FittedOn
from simulator.profile_parts import compose
from simulator.scenario import Scenario, prepare, simulate_scenario
from simulator.strategies import get_strategy, list_strategies

SMALL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
FLY = ("--gpu", "orin", "--strategy", "pdr", "--model", SMALL, "--repetitions", "3")


@pytest.fixture
def run(capsys):
    """Call the program in this process: run(*args) -> code, out, err."""

    def call(*args: str) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            simulate.main(list(args), prog_name="simulate")
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return call


def program(*args: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "simulator.cli.main", *args]


def refused(result: SimpleNamespace) -> str:
    """The one sentence of a refusal."""
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("simulate: error: ")
    return lines[0].removeprefix("simulate: error: ")


# -- what it prints ------------------------------------------------------------------------------------------------


def test_table_names_every_quantity(run):
    result = run(*FLY)
    assert result.code == 0 and result.err == ""
    assert "\x1b" not in result.out
    for quantity in (
        "Wall time p50", "Wall time p90", "90 % interval", "Critical path", "Total written", "Total read", "Re-read",
        "B_seq", "B_total", "TTFT of the calls p50 / p90", "TPOT of the calls p50 / p90", "Peak memory", "weights",
        "KV", "Average power", "Energy p50", "Wh", "Energy per output token", "Cost p50", "Where the time goes",
        "memory", "compute", "attention", "launch", "host", "sampler", "draft x8", "distill x1", "answer x1",
        "Assumptions", "Calibration", "source:",
    ):  # fmt: skip
        assert quantity in result.out, quantity


def test_json_agrees_with_the_table_and_with_its_own_flights(run):
    table, found = run(*FLY).out, json.loads(run(*FLY, "--json").out)
    summary, flights = found["summary"], found["flights"]
    walls = [flight["wall_s"] for flight in flights]
    assert len(flights) == 3
    assert summary["wall_s_p50"] == pytest.approx(np.median(walls))
    for flight in flights:
        calls = flight["calls"]
        assert flight["wall_s"] == pytest.approx(max(call["finished_s"] for call in calls))
        assert flight["written_tok"] == sum(call["output_tok"] for call in calls)
        assert flight["b_total_tok"] == sum(call["output_tok"] + call["prompt_tok"] for call in calls)
        assert flight["energy_j"] == pytest.approx(np.dot(np.diff(flight["power_times_s"]), flight["power_w"]))
        assert sum(flight["shares_s"].values()) == pytest.approx(flight["wall_s"])
        assert flight["reread_tok"] <= flight["read_tok"]
    ttfts = [call["first_token_s"] - call["submitted_s"] for flight in flights for call in flight["calls"]]
    assert summary["ttft_s_p90"] == pytest.approx(np.percentile(ttfts, 90))
    assert summary["wall_s_lo"] < summary["wall_s_p50"] < summary["wall_s_hi"]
    written = float(re.search(r"Total written +([\d,]+) tok", table)[1].replace(",", ""))
    assert written == pytest.approx(summary["written_tok_p50"], abs=0.5)
    shown = float(re.search(r"Average power +([\d.]+) W", table)[1])
    assert shown == pytest.approx(summary["mean_power_w"], rel=0.005)
    share = float(re.search(r"memory +([\d.]+) %", table)[1]) / 100
    assert share == pytest.approx(found["bottleneck_share"]["memory"], abs=0.0005)


def test_same_seed_same_bytes_different_seed_not(run):
    first, again, other = (run(*FLY, "--json", "--seed", seed).out for seed in ("3", "3", "4"))
    assert first == again
    assert first != other


def test_step_by_step_gives_the_same_answer(run):
    fast, slow = (json.loads(run(*FLY, "--json", *more).out)["summary"] for more in ((), ("--step-by-step",)))
    for name, value in fast.items():
        assert slow[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("strategy", [found.name for found in list_strategies()])
def test_every_strategy_runs_with_its_defaults(run, strategy):
    found = json.loads(run("--gpu", "orin", "--strategy", strategy, "--repetitions", "1", "--json").out)
    assert found["strategy"] == strategy
    assert 0.0 < found["summary"]["wall_s_p50"] < 86400.0 * (get_strategy(strategy).questions or 1)
    assert found["power"]["idle_w"] <= found["summary"]["mean_power_w"] <= found["power"]["limit_w"] * 1.0001


def test_strategy_parameters_reach_the_strategy(run):
    found = json.loads(run(*FLY, "--width", "3", "--problem-tok", "100", "--thinking-tok", "50", "--json").out)
    calls = found["flights"][0]["calls"]
    assert [call["label"] for call in calls] == ["draft"] * 3 + ["distill", "answer"]
    assert calls[0]["prompt_tok"] == 100
    assert calls[0]["output_tok"] == 50 + 512


def test_a_slower_power_mode_takes_longer(run):
    fast, slow = (json.loads(run(*FLY, "--power-mode", mode, "--json").out) for mode in ("MAXN", "15W"))
    assert (fast["power_mode"], slow["power_mode"]) == ("MAXN", "15W")
    assert slow["summary"]["wall_s_p50"] > fast["summary"]["wall_s_p50"]


def test_cost_follows_the_given_rates(run):
    found = json.loads(run(*FLY, "--usd-per-hour", "36", "--usd-per-kwh", "1", "--json").out)
    expected = [flight["wall_s"] * 0.01 + flight["energy_j"] / 3.6e6 for flight in found["flights"]]
    assert found["summary"]["cost_usd_p50"] == pytest.approx(np.median(expected))


def test_engine_settings_reach_the_engine(run):
    found = json.loads(run(*FLY, "--max-num-seqs", "2", "--no-enable-prefix-caching", "--json").out)
    assert found["settings"]["max_num_seqs"] == 2
    assert {flight["peak_running"] for flight in found["flights"]} == {2}
    assert all(call["cached_tok"] == 0 for flight in found["flights"] for call in flight["calls"])


def test_weights_without_units_for_them_are_called_weight_only(run):
    text = run("--gpu", "a100", "--strategy", "single", "--model", SMALL, "--weights", "fp8", "--repetitions", "1").out
    assert "weight-only" in text


def test_plot_is_written_and_told_on_stderr(run, tmp_path):
    path = tmp_path / "flight.png"
    result = run(*FLY, "--json", "--plot", str(path))
    assert json.loads(result.out) and str(path) in result.err
    import matplotlib.image

    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (800, 1200)
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


# -- defaults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["orin", "h100", "orin-nano-8gb"])
def test_default_model_is_the_largest_that_leaves_room(gpu):
    setup = prepare(Scenario(gpu=gpu, strategy="single"))
    limit = (
        WEIGHTS_SHARE_UNIFIED if setup.device.memory.unified else WEIGHTS_SHARE
    ) * setup.device.memory.capacity_byte
    ladder = default_ladder()
    position = ladder.index(setup.model.name)
    assert setup.memory.weights_byte <= limit and setup.memory.kv_capacity_tok >= KV_ROOM_TOK
    larger = [load_model(name).parameters() for name in ladder[position + 1 :]]
    assert all(parameters * 2 > limit for parameters in larger)  # the ladder is 16 bit
    assert any("no --model given" in line and setup.model.name in line for line in setup.assumptions)


@pytest.mark.parametrize("gpu", [device.id for device in list_devices()])
def test_every_device_flies_with_the_defaults_of_strategies(gpu):
    for strategy in ("single", "best_of_n", "pdr", "beam_search", "hogwild"):
        result = simulate_scenario(Scenario(gpu=gpu, strategy=strategy, repetitions=1))
        assert result.summary()["wall_s_p50"] > 0 and result.peak_memory_byte() <= result.memory["capacity_byte"]


@pytest.mark.parametrize("gpu", [device.id for device in list_devices()])
def test_every_device_has_room_for_every_strategy(gpu):
    for strategy in list_strategies():
        if strategy.diffusion:  # there is no small diffusion model to choose by itself
            continue
        assert prepare(Scenario(gpu=gpu, strategy=strategy.name)).memory.kv_capacity_tok > 0


def test_default_model_grows_when_weights_shrink():
    sizes = [prepare(Scenario("orin", "single", weights=w)).model.parameters() for w in ("bf16", "int4")]
    assert sizes[0] < sizes[1]


def fitted_profile(folder: Path, gpu: str = "orin") -> Path:
    """A profile that claims to be fitted on few runs of a small model; its figures are the defaults."""
    device = load_device(gpu)
    fit = FittedOn(
        files=("runs.csv",), sha256="ab" * 32, rows=9, models=(SMALL,), weights=("bf16",), kv_caches=("bf16",),
        features=(), cuda_graphs=(True,), max_batch=8, max_context_tok=2000, max_prompt_tok=1000,
        min_parameters=1.4e9, max_parameters=1.9e9, power_modes=(device.power_mode,) if device.power_mode else (),
    )  # fmt: skip
    profile = replace(compose(device), id="mine", gpu=device.id, reference_gpu=None, idle_w=3.0, fitted_on=fit)
    path = folder / "mine.toml"
    path.write_text(profile_text(profile, "a test"))
    return path


def test_every_way_out_of_the_fitted_range_widens_the_interval(tmp_path):
    path = str(fitted_profile(tmp_path))

    def flown(**changes):
        short = {"thinking_tok": 200, "answer_tok": 100, "problem_tok": 100, **changes}
        scenario = Scenario("orin", "single", model=SMALL, repetitions=1, strategy_parameters=short, calibration=path)
        return simulate_scenario(scenario)

    inside, outside = flown(), flown(problem_tok=30000)
    assert inside.calibration["extrapolated"] == [] and inside.calibration["status"] == "fitted"
    ways = len(outside.calibration["extrapolated"])
    assert ways == 2  # context and prompt
    ratio = outside.interval_log_sd["tpot"] / inside.interval_log_sd["tpot"]
    assert ratio == pytest.approx((1 + ways) ** 0.5)  # every way adds the variance once


# -- several devices, other engines, other arithmetic ---------------------------------------------------------------

MOE, LARGE = "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"
H100 = ("--gpu", "h100", "--strategy", "single", "--repetitions", "1", "--thinking-tok", "64", "--answer-tok", "16")


def flown(run, *args: str) -> dict:
    result = run(*H100, *args, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_tensor_parallel_size_reaches_every_figure(run):
    one, two = (flown(run, "--model", SMALL, *more) for more in ((), ("--tensor-parallel-size", "2")))
    assert one["parallel"] == {"tp": 1, "pp": 1, "ep": 1, "dp": 1}
    assert two["parallel"] == {"tp": 2, "pp": 1, "ep": 1, "dp": 1}
    assert two["gpu_name"] == f"2 x {one['gpu_name']}"
    assert two["power"]["limit_w"] == 2 * one["power"]["limit_w"]
    assert two["power"]["idle_w"] == 2 * one["power"]["idle_w"]
    assert two["price"]["usd_per_hour"] == 2 * one["price"]["usd_per_hour"]
    assert one["memory"]["weights_byte"] / 2 <= two["memory"]["weights_byte"] < one["memory"]["weights_byte"]
    assert two["summary"]["mean_power_w"] > one["summary"]["mean_power_w"]
    assert "communication" in two["bottleneck_share"]
    assert one["bottleneck_share"].get("communication", 0.0) == 0.0 < two["bottleneck_share"]["communication"]
    assert any("2 devices: tensor parallel over 2" in line for line in two["assumptions"])


def test_a_model_that_needs_four_devices(run):
    assert "does not fit" in refused(run(*H100, "--model", LARGE))
    found = flown(run, "--model", LARGE, "--tensor-parallel-size", "4")
    assert found["memory"]["weights_byte"] < found["memory"]["capacity_byte"] / 2
    text = run(*H100, "--model", LARGE, "--tensor-parallel-size", "4").out
    assert "communication" in text and "4 x NVIDIA H100" in text


def test_the_default_model_grows_with_the_devices(run):
    one, four = (flown(run, "--tensor-parallel-size", n) for n in ("1", "4"))
    assert four["parameters"] > one["parameters"]


def test_pipeline_parallel_size(run):
    found = flown(run, "--model", LARGE, "--pipeline-parallel-size", "4")
    assert found["parallel"] == {"tp": 1, "pp": 4, "ep": 1, "dp": 1}
    assert any("4 pipeline stage(s)" in line for line in found["assumptions"])


def test_expert_parallel_holds_whole_experts(run):
    slices, whole = (
        flown(run, "--model", MOE, "--tensor-parallel-size", "4", *more) for more in ((), ("--enable-expert-parallel",))
    )
    assert slices["parallel"]["ep"] == 1 and whole["parallel"]["ep"] == 4
    assert whole["memory"]["weights_byte"] == pytest.approx(slices["memory"]["weights_byte"])
    assert any("expert parallel over 4" in line for line in whole["assumptions"])


def test_more_devices_than_a_node_has_are_told(run):
    found = flown(run, "--model", SMALL, "--pipeline-parallel-size", "16")
    assert any("8 NVIDIA H100" in line and "in a node" in line for line in found["assumptions"])


def test_activations_reach_the_arithmetic(run):
    native, weight_only, cast = (
        flown(run, "--model", SMALL, *more)
        for more in (("--weights", "fp8"), ("--weights", "fp8", "--activations", "bf16"), ("--activations", "fp32"))
    )
    assert native["precision"]["activations"] == "fp8" and weight_only["precision"]["activations"] == "bf16"
    assert cast["precision"] == {"weights": "bf16", "activations": "fp32", "kv_cache": "bf16"}
    assert cast["summary"]["tpot_s_p50"] > weight_only["summary"]["tpot_s_p50"]


@pytest.mark.parametrize(
    ("engine", "family"), [("vllm", "vllm"), ("vllm:0.7.3", "vllm-v0"), ("sglang", "sglang"), ("trtllm", "trtllm")]
)
def test_engines_bring_their_overheads(run, engine, family):
    found = flown(run, "--model", SMALL, "--engine", engine)
    assert found["calibration"]["engine"] == family
    assert not any("overheads are those of" in note for note in found["calibration"]["notes"])


def test_an_engine_that_nobody_knows_is_refused_with_those_that_are(run):
    result = run(*H100, "--model", SMALL, "--engine", "vlm:0.9")
    assert result.code == 2 and result.out == ""
    assert "unknown engine 'vlm'; nearest: vllm" in result.err and "megatron" in result.err


@pytest.mark.parametrize("gpu", ["h100", "orin"])
def test_every_engine_flies(run, gpu):
    for engine in ("vllm", "vllm:0.5.5", "vllm:0.8.6", "sglang", "trtllm", "llama.cpp", "megatron", "transformers"):
        result = run("--gpu", gpu, *H100[2:], "--model", SMALL, "--engine", engine, "--json")
        assert result.code == 0, (engine, result.err)
        assert json.loads(result.out)["summary"]["wall_s_p50"] > 0.0


@pytest.mark.parametrize("gpu", ["a100", "b200", "mi300x", "rtx-4090"])
@pytest.mark.parametrize("model", [SMALL, MOE, "google/gemma-3-4b-it", "nvidia/NVIDIA-Nemotron-Nano-9B-v2"])
def test_parallel_step_by_step_gives_the_same_answer(run, gpu, model):
    args = ("--gpu", gpu, "--strategy", "self_consistency", "--samples", "3", "--thinking-tok", "uniform:20:60",
            "--answer-tok", "9", "--model", model, "--tensor-parallel-size", "2", "--pipeline-parallel-size", "2",
            "--max-num-seqs", "8", "--repetitions", "1", "--json")  # fmt: skip
    fast, slow = (json.loads(run(*args, *more).out)["summary"] for more in ((), ("--step-by-step",)))
    for name, value in fast.items():
        assert slow[name] == pytest.approx(value, rel=1e-9), name


# -- a user's own files ---------------------------------------------------------------------------------------------


def own_gpu(folder: Path, **replaced: str) -> Path:
    """A copy of a bundled data sheet with other lines in it."""
    text = (Path(hwspecs.__file__).parent / "h100-sxm.toml").read_text()
    for key, line in replaced.items():
        text, count = re.subn(rf"(?m)^{key}\s*=.*$", line, text)
        assert count == 1, key
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_own_gpu_by_path(run, tmp_path):
    path = own_gpu(tmp_path, id='id = "mine"', bandwidth_byte_per_s="bandwidth_byte_per_s = 1.0e12")
    args = ("--strategy", "single", "--model", SMALL, "--repetitions", "1", "--json")
    mine, bundled = (json.loads(run("--gpu", gpu, *args).out) for gpu in (str(path), "h100"))
    assert mine["gpu"] == "mine"
    assert mine["summary"]["tpot_s_p50"] > bundled["summary"]["tpot_s_p50"]


def test_own_files_that_are_broken(run, tmp_path):
    torn = tmp_path / "torn.toml"
    torn.write_text("id = [")
    wrong = own_gpu(tmp_path, capacity_byte='capacity_byte = "much"')
    config = tmp_path / "config.json"
    config.write_text("{")
    profile = tmp_path / "profile.toml"
    profile.write_text('id = "x"')
    assert "torn.toml" in refused(run("--gpu", str(torn), "--strategy", "pdr"))
    assert "memory.capacity_byte" in refused(run("--gpu", str(wrong), "--strategy", "pdr"))
    assert "config.json" in refused(run("--gpu", "orin", "--strategy", "pdr", "--model", str(config)))
    assert "profile.toml" in refused(run(*FLY, "--calibration", str(profile)))


# -- what it refuses ------------------------------------------------------------------------------------------------

PDR = ("--gpu", "orin", "--strategy", "pdr")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--gpu", "oirn", "--strategy", "pdr"), "orin"),
        (("--gpu", "orin", "--strategy", "self_consistancy"), "self_consistency"),
        ((*PDR, "--model", "qwen3-9b"), "qwen3-8b"),
        (("--gpu", "orin"), "missing --strategy (see: simulate --list strategies)"),
        (("--strategy", "pdr"), "missing --gpu (see: simulate --list gpus)"),
        (("--seed", "3"), "missing --gpu"),
        (("orin", "pdr"), "unexpected argument 'orin'"),
        ((*PDR, "--modle", "x"), "--model"),
        ((*PDR, "--samples", "3"), "does not take --samples; it takes --problem-tok"),
        ((*PDR, "--width", "-3"), "whole number >= 1"),
        ((*PDR, "--width", "x"), "'x'"),
        ((*PDR, "--problem-tok", "-5"), "-5"),
        ((*PDR, "--problem-tok", "abc"), "lognormal:MEAN:SIGMA"),
        ((*PDR, "--problem-tok", "file:none.csv"), "none.csv"),
        ((*PDR, "--repetitions", "0"), "whole number >= 1"),
        ((*PDR, "--seed", "-1"), "whole number >= 0"),
        ((*PDR, "--max-num-seqs", "none"), "whole number >= 1"),
        ((*PDR, "--gpu-memory-utilization", "1.5"), "at most 1"),
        ((*PDR, "--gpu-memory-utilization", "nan"), "at most 1"),
        ((*PDR, "--kv-cache-dtype", "int4"), "fp8"),
        ((*PDR, "--weights", "int3"), "int4"),
        (("--gpu", "h100", "--strategy", "pdr", "--power-mode", "MAXN"), "has no power modes"),
        (("--gpu", "h100", "--strategy", "pdr", "--power-mode", "30W"), "expected above 70 W (idle)"),
        ((*PDR, "--power-mode", "31W"), "30W"),
        ((*PDR, "--max-model-len", "9999999"), "max_position_embeddings"),
        ((*PDR, "--max-model-len", "1000"), "max_model_len holds 1000"),
        ((*PDR, "--model", "r1-distill-llama-70b"), "does not fit"),
        ((*PDR, "--model", "llada-8b"), "diffusion"),
        ((*PDR, "--model", "./none.json"), "none.json"),
        ((*PDR, "--calibration", "none.toml"), "none.toml"),
        (("--gpu", "none.toml", "--strategy", "pdr"), "none.toml"),
        ((*H100, "--tensor-parallel-size", "0"), "whole number >= 1"),
        ((*H100, "--pipeline-parallel-size", "x"), "found 'x', expected a whole number >= 1"),
        ((*H100, "--model", SMALL, "--tensor-parallel-size", "5"), "12 heads cannot be split over tp = 5"),
        ((*H100, "--model", "microsoft/phi-4", "--tensor-parallel-size", "4"), "10 KV heads"),
        ((*H100, "--model", SMALL, "--pipeline-parallel-size", "99"), "28 layers cannot make 99 pipeline stages"),
        ((*H100, "--model", SMALL, "--tensor-parallel-size", "2", "--enable-expert-parallel"), "has no experts"),
        ((*H100, "--model", SMALL, "--enable-expert-parallel"), "has no experts"),
        ((*H100, "--model", LARGE, "--tensor-parallel-size", "2", "--max-model-len", "130000"), "KV cache holds"),
        ((*H100, "--activations", "int3"), "bf16"),
        ((*H100, "--model", SMALL, "--weights", "nvfp4", "--activations", "nvfp4"), "no fp4 units"),
        ((*H100, "--model", SMALL, "--weights", "int4", "--activations", "fp8"), "int4 weights need"),
        ((*H100, "--model", SMALL, "--engine", "vllm:latest"), "version 'latest'"),
        ((*H100, "--model", SMALL, "--engine", ":0.8"), "NAME[:VERSION]"),
        ((*H100, "--model", SMALL, "--engine", "vllm:"), "NAME[:VERSION]"),
        ((*H100, "--model", SMALL, "--engine", ""), "NAME[:VERSION]"),
        ((*PDR, "--usd-per-hour", "nan"), "finite number"),
        ((*PDR, "--usd-per-kwh", "-1"), ">= 0"),
        ((*PDR, "--plot", "flight.gif"), ".png, .svg, .pdf"),
        ((*PDR, "--plot", "no/such/folder/flight.png"), "does not exist"),
        (("--list", "gpus", "--plot", "flight.png"), "cannot be combined with --plot"),
        (("--list", "gpus", "--gpu", "orin"), "cannot be combined with --gpu"),
        (("--list", "planets"), "strategies"),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(run, args, expected):
    assert expected in refused(run(*args))


def test_python_callers_get_the_same_errors():
    with pytest.raises(UserError, match="repetitions"):
        Scenario("orin", "pdr", repetitions=0)
    with pytest.raises(UserError, match="seed"):
        Scenario("orin", "pdr", seed=-1)


def test_errors_of_our_own_keep_their_traceback(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("simulator.cli.main.simulate_scenario", broken)
    with pytest.raises(ZeroDivisionError):
        simulate.main(list(FLY), prog_name="simulate")


# -- lists and help -------------------------------------------------------------------------------------------------


def test_listed_calibration_is_the_one_that_flies(run):
    for row in json.loads(run("--list", "gpus", "--json").out):
        if row["calibration_status"] != "defaults":
            result = simulate_scenario(Scenario(row["name"], "single", model="qwen3-0.6b", repetitions=1))
            assert (result.calibration["id"], result.calibration["status"]) == (
                row["calibration"],
                row["calibration_status"],
            )


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("gpus", [device.id for device in list_devices()]),
        ("models", [model.name for model in list_models()]),
        ("strategies", [strategy.name for strategy in list_strategies()]),
    ],
)
def test_lists(run, what, names):
    table, rows = run("--list", what), json.loads(run("--list", what, "--json").out)
    assert table.code == 0 and "\x1b" not in table.out
    assert [row["name"] for row in rows] == names
    lines = [line for line in table.out.partition("\n\n")[0].splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in lines[1:]] == names


def test_help_teaches(run):
    result = run("--help")
    assert result.code == 0
    commands = [line.strip() for line in result.out.splitlines() if line.startswith("    simulate ")]
    assert 4 <= len(commands) <= 7
    assert "Where to look next" in result.out


def test_examples_of_the_help_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_gpu(tmp_path).rename(tmp_path / "my-gpu.toml")
    bundled = Path(sys.modules["simulator.model.registry"].CONFIGS) / f"{SMALL.replace('/', '--')}.json"
    (tmp_path / "config.json").write_bytes(bundled.read_bytes())
    for line in run("--help").out.splitlines():
        if line.startswith("    simulate "):
            words = line.split()[1:]
            fewer = [] if "--list" in words else ["--repetitions", "1"]
            result = run(*words, *fewer)
            assert result.code == 0, (line, result.err)


def test_no_arguments_show_the_way(run):
    result = run()
    assert result.code == 0
    assert "simulate --help" in result.out and "--gpu" in result.out


def test_version(run):
    assert re.search(r"\d+\.\d+", run("--version").out)


# -- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("--list", "models"), (*FLY, "--json")])
def test_closed_pipe_is_silent(args):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(program(*args), stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_interrupt_ends_with_130(run, monkeypatch):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10.0)

    monkeypatch.setattr("simulator.cli.main.simulate_scenario", interrupted)
    result = run(*FLY)
    assert result.code == 130
    assert result.out == "" and "Traceback" not in result.err


def test_output_does_not_depend_on_the_width():
    narrow, wide = (
        subprocess.run(program(*FLY), capture_output=True, timeout=60, env={**os.environ, "COLUMNS": width}).stdout
        for width in ("40", "200")
    )
    assert narrow == wide != b""


def test_a_flight_loads_no_heavy_library():
    heavy = ("matplotlib", "rich", "scipy", "sklearn", "pandas", "torch", "vllm", "pynvml")
    code = (
        "import sys\nfrom simulator.cli.main import simulate\n"
        f"try:\n    simulate.main({list(FLY)!r}, prog_name='simulate')\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
