"""`simulate plan`: what it prints, what it refuses, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulator.cli.plan import plan
from simulator.errors import UserError

LOAD = ["--rate", "20", "--input", "300", "--output", "40", "--requests", "150"]
SPACE = ["--gpu", "l4,l40s", "--tensor-parallel-size", "1", "--replicas", "1..4", "--max-num-seqs", "32,128",
         "--max-num-batched-tokens", "2048", "--top", "2"]  # fmt: skip
BASE = ["--model", "qwen3-0.6b", *LOAD, *SPACE]
EDGE = ["--edge", "--gpu", "orin", "--strategy", "pdr", "--model", "qwen3-0.6b", "--weights", "int4", "--vary",
        "width=2,4", "--vary", "thinking_tok=64", "--power-mode", "30W,MAXN", "--repetitions", "1"]  # fmt: skip


EXAMPLE = Path(__file__).parent.parent / "examples" / "capacity_for_azure.py"


def run(*args: str):
    return CliRunner().invoke(plan, list(args), catch_exceptions=False)


def refused(*args: str) -> str:
    """The sentence behind exit code 2."""
    with pytest.raises(UserError) as error:
        plan.main(list(args), standalone_mode=False)
    return str(error.value)


def test_a_plan_and_its_picture(tmp_path):
    picture = tmp_path / "plan.png"
    done = run(*BASE, "--slo", "ttft_p99=500ms", "--plot", str(picture))
    assert done.exit_code == 0 and picture.stat().st_size > 10_000
    for part in ("per million output tokens", "vllm serve Qwen/Qwen3-0.6B", "Finalists", "16 candidates", "l40s:"):
        assert part in done.output
    assert done.output.index("vllm serve") < done.output.index("Finalists") < done.output.index("Assumptions")


def test_json_holds_everything_and_is_deterministic():
    args = (*BASE, "--slo", "ttft_p99=500ms", "--price", "l40s=0.01", "--json")
    first, second = run(*args), run(*args)
    assert first.output == second.output
    found = json.loads(first.output)
    best = found["options"][0]
    assert found["feasible"] and best["hardware"]["gpu"] == "l40s" and best["usd_per_h"] == pytest.approx(0.01)
    assert best["command"]["line"].startswith("vllm serve") and best["calibration"]["id"]
    assert sum(found["reasons"].values()) == found["candidates"] == 16
    assert found["seed"] == 0 and found["version"] and found["space"]["replicas"] == [1, 2, 3, 4]


def test_infeasible_exits_with_1_and_says_what_would_do():
    done = run(*BASE, "--slo", "ttft_p99=5ms")
    assert done.exit_code == 1
    assert "What would do:" in done.output and "instead of 5 ms would do with" in done.output


def test_electricity_and_energy_limits_count():
    dear = json.loads(run(*BASE, "--slo", "energy_per_answer=1kJ", "--usd-per-kwh", "100", "--json").output)
    assert dear["options"][0]["usd_per_h"] > 1.0


def test_disaggregated_and_clients_and_traces(tmp_path):
    apart = [*BASE, "--prefill-replicas", "1", "--kv-transfer-gb-per-s", "20", "--slo", "tpot_p99=50ms"]
    assert "--kv-transfer-config" in run(*apart).output
    clients = ["--model", "qwen3-0.6b", "--concurrency", "40", *LOAD[2:], *SPACE, "--slo", "tpot_p90=12ms"]
    assert "40 clients in a closed loop" in run(*clients).output
    rows = "\n".join(f"{0.05 * i:.2f},200,20" for i in range(300))
    trace = tmp_path / "trace.csv"
    trace.write_text(f"t_s,input_tok,output_tok\n{rows}\n")
    traced = run("--model", "qwen3-0.6b", "--trace", str(trace), *SPACE, "--slo", "ttft_p99=1s")
    assert traced.exit_code == 0 and "(20.0" in traced.output
    lengths = run("--model", "qwen3-0.6b", "--trace", str(trace), "--rate", "5", "--requests", "150", *SPACE)
    assert "Poisson arrivals at 5/s" in lengths.output


def test_the_edge(tmp_path):
    picture, table = tmp_path / "edge.svg", tmp_path / "accuracy.csv"
    done = run(*EDGE, "--slo", "wall_p90=60s", "--power-cap", "40W", "--plot", str(picture))
    assert done.exit_code == 0 and "compute behind an answer" in done.output and picture.exists()
    table.write_text("strategy,width,accuracy\npdr,2,0.7\npdr,4,0.6\n")
    best = json.loads(run(*EDGE, "--accuracy", str(table), "--json").output)["options"][0]
    assert best["settings"]["width"] == "2" and best["score"] == pytest.approx(0.7)
    assert run(*EDGE, "--slo", "wall_p90=10ms").exit_code == 1


def test_questions_per_hour():
    asked = ["--model", "qwen3-0.6b", "--strategy", "self_consistency", "--vary", "samples=2", "--gpu", "l4",
             "--tensor-parallel-size", "1", "--max-num-seqs", "8", "--slo", "wall_p90=60s"]  # fmt: skip
    done = run(*asked, "--questions-per-hour", "300")
    assert done.exit_code == 0 and "per answer at 300 questions per hour" in done.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--rate", "4", "--input", "3", "--output", "3"], "missing --model"),
        (["--model", "qwen3-0.6b"], "missing what has to be served"),
        (["--model", "qwen3-0.6b", "--rate", "4"], "missing --input or --output"),
        ([*BASE, "--rate", "0"], "rate in requests per second"),
        ([*BASE, "--rate", "inf"], "arrive over time"),
        ([*BASE, "--concurrency", "4"], "contradict"),
        ([*BASE, "--window", "0:10"], "is for a --trace"),
        ([*BASE, "--gpu", "h1000"], "nearest: h100"),
        ([*BASE, "--model", "qwen3-0.5b"], "unknown model"),
        ([*BASE, "--model", "qwen3-0.6b,qwen3-4b"], "expected one"),
        ([*BASE, "--slo", "ttft=1s"], "unknown limit"),
        ([*BASE, "--slo", "ttft_p99=0s"], "more than zero"),
        ([*BASE, "--power-cap", "-3W"], "more than zero"),
        ([*BASE, "--price", "l4=cheap"], "--price"),
        ([*BASE, "--plot", "plan.doc"], "--plot"),
        ([*BASE, "--edge"], "--edge needs --strategy"),
        ([*BASE, "--accuracy", "scale"], "--accuracy needs --strategy"),
        ([*BASE, "--strategy", "pdr"], "is for requests"),
        (["--model", "qwen3-0.6b", "--strategy", "pdr"], "missing --questions-per-hour"),
        (["--edge", "--strategy", "pdr"], "missing --gpu"),
        ([*EDGE, "--replicas", "2"], "is for servers"),
        ([*EDGE, "--vary", "width=2"], "given twice"),
        ([*EDGE, "--vary", "widht=2"], "unknown parameter"),
        ([*EDGE, "--benchmark", "AIME"], "there is none"),
        ([*EDGE, "--objective", "accuracy"], "needs the accuracies"),
    ],
)
def test_mistakes_are_told_in_one_sentence(args, says):
    told = refused(*args)
    assert says in told and "\n" not in told


def test_bad_lists_are_told_by_click():
    done = run(*BASE, "--replicas", "0")
    assert done.exit_code == 2 and "whole number >= 1" in done.output
    assert "ends before it begins" in run(*BASE, "--tensor-parallel-size", "8..1").output
    assert run().output.startswith("Usage:") and "What all candidates share" in run("--help").output


@pytest.mark.slow
def test_the_example_prices_slack_and_draws_it(tmp_path):
    picture = tmp_path / "azure.png"
    done = subprocess.run([sys.executable, str(EXAMPLE), str(picture)], capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if " x (" in line]
    prices = [float(line.partition(")  ")[2].split()[0]) for line in rows if line.startswith("ttft")]
    assert len(prices) == 3 and prices == sorted(prices)  # tighter limits are never cheaper
    assert "vllm serve" in done.stdout and picture.stat().st_size > 20_000 and done.stderr == ""
    assert len(EXAMPLE.read_text().splitlines()) < 60
