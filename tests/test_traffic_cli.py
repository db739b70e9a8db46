"""`simulate traffic` as its users meet it: what it asks, what it prints, what it writes and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from served_cases import LIMITS, poisson, result_of, serve

from simulator.cli.main import simulate
from simulator.cli.traffic_loads import asked_rate, build_traffic, goodput
from simulator.errors import UserError
from simulator.report.plain import render_plain
from simulator.report.traffic_figure import SIZE_INCH, save_traffic_figure
from simulator.report.traffic_table import build_traffic_report
from simulator.traffic import scenario as engine
from simulator.traffic.metrics import Goodput

ASK = ("--gpu", "h100", "--model", "llama-3.1-8b", "--rate", "4", "--requests", "60", "--input", "64", "--output", "8")


@pytest.fixture
def run(capsys):
    """Call the program in this process: run(*args) -> code, out, err."""

    def call(*args: str) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            simulate.main(["traffic", *args], prog_name="simulate")
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return call


@pytest.fixture
def asked(monkeypatch):
    """The scenarios that the command line asked for; every answer is the same hand-made run of 60 requests."""
    scenarios = []

    def simulate_traffic(scenario, progress=None):
        scenarios.append(scenario)
        progress(60, 60)
        return result_of(poisson().served, traffic=scenario.traffic.title)

    monkeypatch.setattr(engine, "simulate_traffic", simulate_traffic)
    return scenarios


def refused(result: SimpleNamespace) -> str:
    """The one sentence of a refusal."""
    assert result.code == 2 and result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("simulate: error: ")
    return lines[0].removeprefix("simulate: error: ")


# -- what it prints ------------------------------------------------------------------------------------------------


def test_table_names_every_quantity(run, asked):
    result = run(*ASK, "--goodput", "ttft:50", "tpot:11.2")
    assert result.code == 0 and result.err == "" and "\x1b" not in result.out
    for quantity in (
        "TTFT", "TPOT", "ITL", "End to end", "Queue", "p50 / p90 / p99", "90 % interval", "Duration", "Requests",
        "Output", "Prompts and output", "Goodput", "Running batch", "Waiting requests", "KV cache in use",
        "Prefix cache hits", "Preemptions", "Average power", "Energy per request", "Energy per output token", "Cost",
        "Cost per million output tok", "Where the time goes", "steps with prefill", "Assumptions", "Calibration",
    ):  # fmt: skip
        assert quantity in result.out, quantity
    assert "Replicas (" not in result.out and "WARNING" not in result.out


def test_json_is_the_result_and_the_same_bytes_again(run, asked):
    first, again = run(*ASK, "--json"), run(*ASK, "--json")
    found = json.loads(first.out)
    assert first.out == again.out
    assert found["summary"]["ttft_s_p50"] == pytest.approx(result_of(poisson().served).summary()["ttft_s_p50"])
    assert "requests" not in found
    detailed = json.loads(run(*ASK, "--json", "--detail").out)
    assert len(detailed["requests"]) == 60


def test_files_are_written_and_told_on_stderr(run, asked, tmp_path):
    paths = {name: tmp_path / name for name in ("bench.json", "requests.csv", "steps.csv", "plot.svg")}
    result = run(
        *ASK, "--burstiness", "0.5", "--detail", "--goodput", "e2el:300",
        "--bench-json", str(paths["bench.json"]), "--requests-csv", str(paths["requests.csv"]),
        "--steps-csv", str(paths["steps.csv"]), "--plot", str(paths["plot.svg"]),
    )  # fmt: skip
    assert result.code == 0
    for path in paths.values():
        assert f"wrote {path}" in result.err and path.stat().st_size > 1000
    bench = json.loads(paths["bench.json"].read_text())
    assert (bench["request_rate"], bench["burstiness"], len(bench["ttfts"])) == (4.0, 0.5, 60)
    assert 0.0 < bench["request_goodput"] < bench["request_throughput"]
    with paths["requests.csv"].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 60


def test_replicas_get_a_table():
    text = render_plain(build_traffic_report(result_of(poisson(replicas=3).served, routing="least_loaded")))
    assert "on Box 1, 3 replicas" in text and "routing least_loaded" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("0 ", "1 ", "2 "))]
    assert [row[2] for row in rows] == ["20", "20", "20"]


def test_warnings_come_first():
    crowded = serve(np.arange(200) * 0.01, [50] * 199 + [10**6], [20] * 200, max_model_len=4096).served
    result = result_of(crowded, settings={"max_model_len": 4096, "max_num_seqs": 4})
    outside = replace(result, calibration={**result.calibration, "extrapolated": ["batch of 512 sequences"]})
    text = render_plain(build_traffic_report(outside))
    order = ["the server is overloaded", "1 of 200 requests were refused", "batch of 512 sequences", "Latency of"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_run_in_which_all_are_refused_says_so_and_shows_no_numbers():
    text = render_plain(build_traffic_report(result_of(serve([0.0], [99], [9], max_model_len=50).served)))
    assert text.splitlines()[0].endswith("every request was refused.") and "nan" not in text


@pytest.mark.parametrize("columns", [60, 200])
def test_terminal_report_shows_the_same_facts(columns, monkeypatch, capsys):
    from simulator.report.terminal import print_report

    monkeypatch.setenv("COLUMNS", str(columns))
    print_report(build_traffic_report(result_of(poisson(replicas=2).served, goodput=LIMITS)))
    out = capsys.readouterr().out
    for word in ("TTFT", "Goodput", "Replicas", "Assumptions"):
        assert word in out


# -- what it asks ---------------------------------------------------------------------------------------------------


def test_options_reach_the_scenario(run, asked):
    run(
        *ASK, "--weights", "fp8", "--max-num-seqs", "32", "--scheduling-policy", "priority", "--no-async-scheduling",
        "--data-parallel-size", "2", "--routing", "prefix_aware", "--prefill-replicas", "1", "--kv-transfer-gb-per-s",
        "50", "--tensor-parallel-size", "2", "--seed", "3", "--usd-per-hour", "2", "--step-by-step",
        "--kv-cache-dtype", "fp8",
    )  # fmt: skip
    (scenario,) = asked
    assert (scenario.gpu, scenario.model, scenario.weights, scenario.kv_cache) == ("h100", "llama-3.1-8b", "fp8", "fp8")
    wanted = {"max_num_seqs": 32, "scheduling_policy": "priority", "async_scheduling": False}
    assert dict(scenario.engine_settings) == wanted
    assert (scenario.data_parallel_size, scenario.routing, scenario.prefill_replicas) == (2, "prefix_aware", 1)
    assert (scenario.kv_transfer_gb_per_s, scenario.tensor_parallel_size, scenario.seed) == (50.0, 2, 3)
    assert (scenario.usd_per_hour, scenario.step_by_step, scenario.speculative) == (2.0, True, None)
    assert len(scenario.traffic) == 60 and scenario.traffic.prompt_tok.tolist() == [64] * 60


def test_speculative_options_reach_the_scenario(run, asked):
    run(*ASK, "--speculative-tokens", "3", "--acceptance-rate", "0.7")
    run(*ASK, "--speculative-tokens", "3", "--acceptance-rate", "0.7", "--speculative-model", "qwen3-0.6b")
    first, second = (scenario.speculative for scenario in asked)
    assert (first.num_speculative_tokens, first.acceptance_rate, first.method) == (3, 0.7, "ngram")
    assert (second.method, second.model) == ("draft", "qwen3-0.6b")


def values(**given):
    """The values of the options of what arrives, None where not given."""
    names = (
        "trace", "rate", "concurrency", "load", "requests", "input_lengths", "output_lengths", "burstiness",
        "shared_prefix_tok", "prefix_groups", "trace_format", "window", "time_scale", "trace_rate", "trace_block_tok",
    )  # fmt: skip
    return {**dict.fromkeys(names), "repeat": False, "seed": 0, **given}


LENGTHS = {"input_lengths": "100", "output_lengths": "10"}


@pytest.mark.parametrize(
    ("given", "requests", "clients"),
    [
        ({"rate": "5"}, 1000, 0),
        ({"rate": "gamma:5:0.5", "requests": 30}, 30, 0),
        ({"concurrency": 8, "requests": 30}, 30, 8),
        ({"load": "burst", "requests": 30}, 30, 0),
        ({"load": "static_batch", "concurrency": 8}, 8, 0),
        ({"load": "static_batch", "requests": 8}, 8, 0),
        ({"load": "parallel_sampling", "concurrency": 4}, 4, 0),
    ],
)
def test_the_load_follows_from_what_is_given(given, requests, clients):
    traffic = build_traffic(values(**LENGTHS, **given))
    assert (len(traffic), traffic.clients) == (requests, clients)
    if given.get("load"):
        assert traffic.arrival_s.max() == 0.0


def test_traces_by_name_and_by_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("t_s,input_tok,output_tok\n0,10,5\n2,20,6\n4,30,7\n")
    own = build_traffic(values(trace=str(path), time_scale=0.5))
    assert own.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert build_traffic(values(trace=str(path), concurrency=2)).clients == 2
    assert build_traffic(values(trace=str(path), window="1:5")).prompt_tok.tolist() == [20, 30]
    assert len(build_traffic(values(trace="azure-2023-conv", requests=50))) == 50


def test_goodput_is_in_vllms_words():
    assert goodput(("ttft:500", "tpot:50")) == Goodput(ttft_s=0.5, tpot_s=0.05)
    assert goodput(("e2el:20000,ttft:1",)) == Goodput(e2e_s=20.0, ttft_s=0.001)
    assert goodput(()) is None
    for wrong in ("itl:5", "ttft", "ttft:x", "ttft:-1", "ttft:nan"):
        with pytest.raises(UserError, match="--goodput"):
            goodput((wrong,))


def test_the_asked_rate_is_what_vllm_would_have_been_asked():
    assert asked_rate(values(rate="5")) == (5.0, 1.0)
    assert asked_rate(values(rate="5", burstiness=0.5)) == (5.0, 0.5)
    assert asked_rate(values(rate="inf")) == (float("inf"), 1.0)
    assert asked_rate(values(concurrency=5)) == (None, 1.0)


# -- what it refuses ------------------------------------------------------------------------------------------------

MODEL = ("--gpu", "h100", "--model", "llama-3.1-8b")
TEXTS = ("--input", "64", "--output", "8")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--rate", "4", *TEXTS), "missing --gpu (see: simulate --list gpus)"),
        ((*MODEL, *TEXTS), "missing what arrives: --rate, --concurrency, --trace or --load"),
        ((*MODEL, "--rate", "4"), "missing --input and --output"),
        ((*MODEL, "--rate", "4", "--input", "5"), "missing --output"),
        ((*MODEL, *TEXTS, "--rate", "4", "--concurrency", "3"), "contradict"),
        ((*MODEL, *TEXTS, "--load", "burst", "--rate", "3"), "--rate has no use with --load burst"),
        ((*MODEL, *TEXTS, "--load", "open_loop"), "missing --rate"),
        ((*MODEL, *TEXTS, "--load", "closed_loop"), "missing --concurrency"),
        ((*MODEL, *TEXTS, "--load", "static_batch"), "missing --concurrency"),
        ((*MODEL, *TEXTS, "--load", "static_batch", "--concurrency", "3", "--requests", "4"), "both say how large"),
        ((*MODEL, *TEXTS, "--rate", "gamma:4:1", "--burstiness", "2"), "--burstiness goes with a plain --rate"),
        ((*MODEL, *TEXTS, "--rate", "fast"), "arrivals 'fast'"),
        ((*MODEL, *TEXTS, "--rate", "4", "--time-scale", "2"), "--time-scale is for a --trace"),
        ((*MODEL, "--trace", "azure-2023-conv", "--input", "5"), "--input is not for a --trace"),
        ((*MODEL, "--trace", "azure-2023-conf"), "unknown trace 'azure-2023-conf'; nearest: azure-2023-conv"),
        ((*MODEL, "--trace", "azure-2023-conv", "--time-scale", "0"), "--time-scale must be"),
        ((*MODEL, "--trace", "azure-2023-conv", "--window", "a:b"), "expected FROM:TO"),
        ((*MODEL, "--trace", "azure-2023-conv", "--load", "burst"), "--load burst is not for a --trace"),
        ((*ASK, "--goodput", "itl:4"), "--goodput: found 'itl:4'"),
        ((*ASK, "tpot:4"), "unexpected argument 'tpot:4'"),
        ((*ASK, "--detail"), "--detail says what --json and --bench-json hold"),
        ((*ASK, "--acceptance-rate", "0.5"), "--acceptance-rate needs --speculative-tokens"),
        ((*ASK, "--speculative-tokens", "2"), "missing --acceptance-rate"),
        ((*ASK, "--speculative-tokens", "2", "--acceptance-rate", "2"), "must be from 0 to 1"),
        ((*ASK, "--speculative-tokens", "2", "--acceptance-rate", "0.5", "--speculative-method", "draft"), "needs one"),
        ((*ASK, "--kv-transfer-gb-per-s", "2"), "--prefill-replicas"),
        ((*ASK, "--plot", "x.gif"), "--plot x.gif"),
        ((*ASK, "--requests-csv", "/nowhere/x.csv"), "--requests-csv /nowhere/x.csv: the folder"),
        ((*ASK, "--routing", "best"), "simulate traffic --help"),
        ((*ASK, "--list", "traces"), "--list simulates nothing"),
    ],
)
def test_mistakes_are_one_sentence(run, asked, args, words):
    assert words in refused(run(*args))
    assert asked == []


def test_options_before_the_command_are_told_where_they_go(capsys):
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--gpu", "orin", "traffic"], prog_name="simulate")
    assert ended.value.code == 2 and "simulate traffic --gpu" in capsys.readouterr().err


def test_lists_and_help(run):
    assert "azure-2023-conv" in run("--list", "traces").out
    assert json.loads(run("--list", "traces", "--json").out)[0]["name"] == "azure-2023-conv"
    text = run("--help").out
    for words in ("Traces:", "Replicas:", "Speculative decoding:", "Examples:", "--goodput", "--trace azure-2023-conv"):
        assert words in text
    assert "--strategy" not in text
    assert run().out.startswith("Usage: simulate traffic")


def test_flying_a_strategy_imports_nothing_of_traffic():
    code = (
        "import sys; from simulator.cli.main import simulate\n"
        "simulate.main(['--gpu', 'orin', '--strategy', 'single', '--repetitions', '1'], standalone_mode=False)\n"
        "slow = ('simulator.traffic', 'simulator.cli.traffic', 'simulator.workload.loads', 'matplotlib', 'pandas')\n"
        "wrong = [name for name in sys.modules if name.startswith(slow)]\n"
        "assert not wrong, wrong"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        result_of(poisson(n=10).served, goodput=LIMITS),
        result_of(poisson(n=300, replicas=4).served),
        result_of(poisson(n=400, rate=200.0).served, goodput=Goodput(ttft_s=100.0)),
        result_of(serve([0.0], [10], [1]).served),
        result_of(serve([0.0], [10_000], [1], max_model_len=10).served),
    ],
    ids=["few", "replicas", "overloaded", "one token", "all refused"],
)
def test_pictures_show_something(result, tmp_path):
    import matplotlib.image

    path = save_traffic_figure(result, tmp_path / "traffic.png")
    picture = matplotlib.image.imread(path)
    assert picture.shape[:2] == (int(100 * SIZE_INCH[1]), int(100 * SIZE_INCH[0]))
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50


def test_the_same_result_gives_the_same_picture(tmp_path):
    result = result_of(poisson(n=30).served)
    first, second = (save_traffic_figure(result, tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
