"""`simulate traffic` as its users meet it: what it asks, what it prints, what it writes and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from served_cases import LIMITS, poisson, result_of, serve

from simulator.cli.main import simulate
from simulator.cli.traffic_loads import asked_rate, build_traffic, goodput
from simulator.device import load_device
from simulator.errors import UserError
from simulator.profile import Operation
from simulator.profile_choice import load_calibration
from simulator.report.plain import render_plain
from simulator.report.traffic_figure import SIZE_INCH, draw_traffic, save_traffic_figure
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
    order = ["the server is overloaded", "1 of 200 requests was refused", "batch of 512 sequences", "Latency of"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"max_model_len": 400}, "max_model_len of 400 tokens (the longest 109)"),
        ({"max_model_len": None}, "the KV cache of 160 tokens (the longest 109)"),
        (
            {"max_model_len": 99, "max_num_batched_tokens": 64, "enable_chunked_prefill": False},
            "max_num_batched_tokens, without chunked prefill, of 64 tokens (the longest 109)",
        ),
    ],
)
def test_the_limit_behind_a_refusal_is_named(settings, limit):
    served = serve([0.0, 1.0], [99, 5], [10, 5], max_model_len=50).served
    served = replace(served, kv_blocks=(160 if settings["max_model_len"] is None else 1600) // served.block_size)
    text = render_plain(build_traffic_report(result_of(served, settings=settings)))
    assert f"1 of 2 requests was refused: prompt and output together are longer than {limit}" in text


def test_a_batch_larger_than_the_seats_is_told():
    together = serve([0.0] * 9, [50] * 9, [20] * 9).served
    told = "all 9 requests arrive at once, but at most 4 run together (max_num_seqs 4)"
    assert told in render_plain(build_traffic_report(result_of(together)))
    assert "4 run together" not in render_plain(build_traffic_report(result_of(together, clients=9)))
    for served in (serve([0.0] * 4, [50] * 4, [20] * 4).served, poisson().served):
        assert "run together" not in render_plain(build_traffic_report(result_of(served)))


def test_a_version_that_is_not_known_is_no_question_mark():
    plain = result_of(poisson().served)
    for title, shown in (
        ("Box with vllm 0.18.0, ?", "box.vllm: Box with vllm 0.18.0\n"),
        ("Box with vllm ?", "box.vllm: Box with vllm\n"),
        ("Box", "box.vllm: Box (engine vllm)\n"),
    ):
        result = replace(plain, calibration={**plain.calibration, "title": title})
        assert shown in render_plain(build_traffic_report(result))


def test_the_range_of_a_fit_is_in_billions():
    fitted = load_calibration(load_device("h100"))
    sizes = msgspec.structs.replace(fitted.fitted_on, min_parameters=116.8e9, max_parameters=2_290e9)
    run = Operation(parameters=8.03e9, weights="bf16", batch=1, context_tok=1, prompt_tok=1)
    said = msgspec.structs.replace(fitted, fitted_on=sizes).extrapolations(run)
    assert "model of 8.03 B parameters; fitted on 117-2,290 B" in said


def test_slow_tokens_are_in_seconds_and_tiny_rates_have_an_exponent():
    slow = serve([0.0, 1e10], [10, 10], [3, 3]).served
    requests = replace(slow.requests, finished_s=slow.requests.first_token_s + 100.0)
    text = render_plain(build_traffic_report(result_of(replace(slow, requests=requests))))
    assert "TPOT p50 50.0 s" in text and "e-10 output tok/s" in text and "0.0000000" not in text
    assert "50.0 / 50.0 / 50.0 s" in text


def test_a_run_in_which_all_are_refused_says_so_and_shows_no_numbers():
    text = render_plain(build_traffic_report(result_of(serve([0.0], [99], [9], max_model_len=50).served)))
    assert text.splitlines()[0].endswith("every request was refused.")
    assert all(word not in text for word in ("nan", "- req/s", "- - -", "not stated", "of so few"))


def test_outputs_of_one_token_have_no_tpot():
    text = render_plain(build_traffic_report(result_of(serve([0.0], [10], [1]).served)))
    assert "TPOT" not in text.splitlines()[0] and "TTFT p50" in text.splitlines()[0]


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
    for window in ("1:5", "1:"):
        assert build_traffic(values(trace=str(path), window=window)).prompt_tok.tolist() == [20, 30]
    assert build_traffic(values(trace=str(path), window=":3")).prompt_tok.tolist() == [10, 20]
    assert len(build_traffic(values(trace="azure-2023-conv", requests=50))) == 50


def test_numbers_may_have_an_exponent(run, asked):
    run(*MODEL, "--rate", "4e0", "--input", "1e3", "--output", "1e1", "--requests", "6e1")
    (scenario,) = asked
    assert scenario.traffic.prompt_tok.tolist() == [1000] * 60 and scenario.traffic.output_tok[0] == 10


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"rate": "inf", "requests": 1}, "1 request, all at once"),
        ({"rate": "4", "burstiness": 2.0, "requests": 9}, "9 requests, gamma arrivals at 4/s with burstiness 2"),
        ({"rate": "constant:4", "requests": 9}, "9 requests, evenly spaced at 4/s"),
        ({"concurrency": 1, "requests": 1}, "1 client, 1 request"),
        ({"load": "burst", "requests": 1}, "a burst of 1 request"),
        ({"load": "parallel_sampling", "concurrency": 1}, "1 sample of one prompt"),
    ],
)
def test_titles_are_words(given, title):
    assert build_traffic(values(**LENGTHS, **given)).title == title


def test_a_shared_prefix_stands_before_the_prompt():
    traffic = build_traffic(values(**LENGTHS, rate="4", requests=9, shared_prefix_tok=30, prefix_groups=2))
    assert traffic.prompt_tok.tolist() == [130] * 9 and len(set(traffic.shared_prefix)) == 2
    assert build_traffic(values(**LENGTHS, rate="4", requests=9, shared_prefix_tok=0)).shared_prefix is None


def test_offline_has_other_limits_and_no_client(run):
    def served(*more):
        return json.loads(run("--gpu", "a100", *ASK[2:], "--json", *more).out)

    online, offline = served(), served("--offline")
    assert online["settings"]["max_num_batched_tokens"] == 2048 and not online["settings"]["offline"]
    assert offline["settings"]["max_num_batched_tokens"] == 8192 and offline["settings"]["offline"]
    assert offline["summary"]["ttft_s_min"] < online["summary"]["ttft_s_min"]
    assert any(line.startswith("offline: nothing lies between") for line in offline["assumptions"])


def test_without_chunked_prefill_no_prompt_is_split(run, tmp_path):
    def prefills(*more):
        path = tmp_path / "steps.csv"
        result = run(
            *MODEL, "--rate", "inf", "--requests", "20", "--input", "1500", "--output", "4", "--no-async-scheduling",
            "--max-num-batched-tokens", "2048", "--max-num-seqs", "64", "--max-model-len", "2048", *more,
            "--steps-csv", str(path),
        )  # fmt: skip
        assert result.code == 0, result.err
        with path.open(newline="") as file:
            rows = [(int(row["prefill_tok"]), int(row["steps"])) for row in csv.DictReader(file)]
        return [tokens for tokens, steps in rows for _ in range(steps) if tokens]

    assert prefills("--no-enable-chunked-prefill") == [1500] * 20
    assert set(prefills("--enable-chunked-prefill")) - {1500} and sum(prefills()) == 20 * 1500


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
TRACE = (*MODEL, "--trace", "azure-2023-conv")
SPECULATIVE = ("--speculative-tokens", "2", "--acceptance-rate", "0.5")


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
        ((*TRACE, "--time-scale", "0"), "'--time-scale': found '0', expected a number from"),
        ((*MODEL, "--trace", "azure-2023-conv", "--window", "a:b"), "expected FROM:TO"),
        ((*MODEL, "--trace", "azure-2023-conv", "--load", "burst"), "--load burst is not for a --trace"),
        ((*ASK, "--goodput", "itl:4"), "--goodput: found 'itl:4'"),
        ((*ASK, "tpot:4"), "unexpected argument 'tpot:4'"),
        ((*ASK, "--detail"), "--detail says what --json and --bench-json hold"),
        ((*ASK, "--acceptance-rate", "0.5"), "--acceptance-rate needs --speculative-tokens"),
        ((*ASK, "--speculative-tokens", "2"), "missing --acceptance-rate"),
        ((*ASK, "--speculative-tokens", "2", "--acceptance-rate", "2"), "a number from 0 to 1"),
        ((*ASK, *SPECULATIVE, "--speculative-method", "draft"), "without --speculative-model: a draft needs a model"),
        ((*ASK, *SPECULATIVE, "--speculative-method", "ngram", "--speculative-model", "x"), "ngram with --speculative"),
        ((*ASK, "--kv-transfer-gb-per-s", "2"), "--prefill-replicas"),
        ((*ASK, "--plot", "x.gif"), "--plot x.gif"),
        ((*ASK, "--requests-csv", "/nowhere/x.csv"), "--requests-csv /nowhere/x.csv: the folder"),
        ((*ASK, "--routing", "best"), "simulate traffic --help"),
        ((*ASK, "--goodput"), "requires an argument; see: simulate traffic --help"),
        ((*ASK, "--list", "traces"), "--list simulates nothing"),
        ((*ASK, "--requests-csv", ""), "--requests-csv: the file name is empty"),
        ((*ASK, "--plot", ""), "--plot: the file name is empty"),
        ((*TRACE, "--rate", "4", "--time-scale", "2"), "--time-scale changes the times of the trace, which --rate"),
        ((*TRACE, "--concurrency", "4", "--trace-rate", "2"), "--trace-rate changes the times of the trace, which --c"),
        ((*TRACE, "--time-scale", "1", "--trace-rate", "2"), "--time-scale and --trace-rate both change"),
        ((*TRACE, "--time-scale", "1e9"), "'--time-scale': found '1e9', expected a number from 1e-06 to 1e+06"),
        ((*TRACE, "--trace-rate", "-1"), "'--trace-rate': found '-1'"),
        ((*MODEL, "--trace", "sharegpt"), "expected arrivals (--rate) or clients (--concurrency)"),
        ((*MODEL, "--trace", "sharegpt", "--rate", "2", "--window", "0:5"), "--window"),
        ((*TRACE, "--window", "5"), "--window: found '5', expected FROM:TO"),
        ((*TRACE, "--window", ":"), "--window: found ':', expected FROM:TO"),
        ((*TRACE, "--window", "9:5"), "--window: found '9:5', expected FROM:TO"),
        ((*TRACE, "--window", "9999:"), "has no request from 9999 s on; found a trace of"),
        ((*TRACE, "--window", "nan:5"), "--window: found 'nan:5'"),
        ((*TRACE, "--requests", "9999999"), "--repeat"),
        ((*ASK, "--kv-transfer-gb-per-s", "-2"), "'--kv-transfer-gb-per-s': found '-2', expected a finite number"),
        ((*ASK, "--usd-per-hour", "-1"), "'--usd-per-hour': found '-1', expected a finite number >= 0"),
        ((*ASK, "--data-parallel-size", "99999"), "'--data-parallel-size': found '99999', expected a whole"),
        ((*ASK, "--speculative-tokens", "2", "--acceptance-rate", "x"), "'--acceptance-rate': found 'x'"),
        ((*ASK, *SPECULATIVE, "--prefill-replicas", "1"), "--speculative-tokens together with --prefill-replicas"),
        ((*MODEL, *TEXTS, "--rate", "inf", "--burstiness", "2"), "found --rate inf"),
        ((*MODEL, *TEXTS, "--rate", "4", "--burstiness", "-2"), "'--burstiness': found '-2'"),
        ((*MODEL, *TEXTS, "--rate", "-3"), "--rate: the rate in requests per second must be"),
        ((*MODEL, *TEXTS, "--rate", "3", "--requests", "1e8"), "found '1e8', expected a whole number from 1 to"),
        ((*MODEL, "--rate", "3", "--input", "1.5", "--output", "8"), "--input: length '1.5'"),
        ((*MODEL, *TEXTS, "--rate", "4", "--prefix-groups", "2"), "--prefix-groups needs --shared-prefix-tok"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(run, asked, args, words):
    assert words in refused(run(*args))
    assert asked == []


OUTPUTS = ("--requests-csv", "--steps-csv", "--bench-json", "--plot")


@pytest.mark.parametrize(("first", "second"), list(combinations(OUTPUTS, 2)))
def test_two_outputs_in_one_file_are_refused(run, asked, tmp_path, first, second):
    path, same = tmp_path / "a.png", tmp_path / "folder" / ".." / "a.png"
    (tmp_path / "folder").mkdir()
    assert "expected a file of its own" in refused(run(*ASK, first, str(path), second, str(same)))
    assert asked == [] and not path.exists()


def test_an_output_does_not_overwrite_what_is_read(run, asked, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("t_s,input_tok,output_tok\n0,10,5\n")
    said = refused(run(*MODEL, "--trace", str(path), "--requests-csv", str(path)))
    assert said.endswith("this is also the file of --trace, expected a file of its own")
    assert path.read_text().startswith("t_s") and asked == []


def test_several_outputs_may_go_nowhere(run, asked):
    assert run(*ASK, "--requests-csv", "/dev/null", "--steps-csv", "/dev/null").code == 0


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


@pytest.mark.parametrize(
    ("limit_s", "arrows", "lines"), [(0.05, 0, 1), (100.0, 1, 0), (1e-4, 0, 1)], ids=["near", "far", "below"]
)
def test_a_limit_is_a_line_or_an_arrow_at_the_edge_and_legends_lie_outside(limit_s, arrows, lines):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCH, layout="constrained")
    draw_traffic(result_of(poisson(n=30).served, goodput=Goodput(ttft_s=limit_s)), figure)
    FigureCanvasAgg(figure).draw()
    panel = next(axes for axes in figure.axes if "TTFT" in axes.get_xlabel())
    (limit,) = (line for line in panel.lines if line.get_label().startswith("limit"))
    assert len([text for text in panel.texts if text.arrow_patch is not None]) == arrows
    assert bool(len(limit.get_xdata())) == bool(lines)
    assert panel.get_legend().get_window_extent().y0 > panel.get_window_extent().y1 - 2


def test_the_same_result_gives_the_same_picture(tmp_path):
    result = result_of(poisson(n=30).served)
    first, second = (save_traffic_figure(result, tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
