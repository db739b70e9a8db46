"""Open loops, traces and clocks of `calibrate collect`, from the command line to records; a server on loopback."""

import csv
import hashlib
import json
import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from misbehaving_server import Server
from simulated_backend import facts_of

from calibration.cli import calibrate
from calibration.collect import campaign
from calibration.collect.asked import asked_of
from calibration.collect.backends import BACKENDS, BackendOptions
from calibration.collect.campaign import Campaign
from calibration.collect.grid import LOADS, Grid, points_of_grid
from calibration.collect.journal import Entry, read_journal
from calibration.collect.loads import FEWEST, MOST, open_trace, requests_at, traced, traffic_of
from calibration.collect.open_loops import SHARES, chosen_rates, expect_open, server_of
from calibration.collect.planner import plan_grid
from calibration.collect.point import EngineFacts, Observation, Point, RequestTimes
from calibration.collect.statistics import in_chunks, latencies, rates
from calibration.collect.to_records import record_of
from calibration.collect.validity import CLIENT_SHARE, client_late_s, client_limits, overloaded, stationary
from calibration.points import usable
from calibration.records import read_records
from simulator.errors import UserError
from validate.cli import validate
from validate.predict import Predictor

pytest.importorskip("aiohttp")

MODEL, GPU = "Qwen/Qwen3-0.6B", "l4"
FAST_GPU = "h100"  # on which a token in a millisecond is possible, as the server on loopback gives it
OPEN = Point("open_loop", 1, 32, 8, 40, 20.0, held_out=True)
LENGTHS = ("--input-tok", "32", "--output-tok", "8")
QUICK = ("--repeats", "1", "--seconds-per-point", "0")
TIMED = "t_s,input_tok,output_tok\n0,10,3\n0.01,30,5\n0.02,20,2\n0.05,64,8\n"


@pytest.fixture(scope="module")
def server():
    with Server(token_s=0.001) as server:
        yield server


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "my trace.csv"
    path.write_text(TIMED)
    return path


def invoke(url, *words):
    fixed = ["collect", "--backend", "openai", "--base-url", url, "--model", MODEL, "--gpu", FAST_GPU]
    fixed += ["--meter", "none"]
    return CliRunner().invoke(calibrate, [*fixed, "--set", "weight_dtype=bf16", *map(str, words)])


def collect(server, folder, *words):
    return invoke(server.url, *QUICK, "--out", folder, *words)


def both_files(folder):
    return [record for name in ("runs.csv", "held_out.csv") for record in read_records(folder / name)]


def record(folder, result):
    assert result.exit_code == 0, result.output
    (found,) = both_files(folder)
    return found


# --- the command -----------------------------------------------------------------------------------------------------


def test_an_open_loop_becomes_a_record_that_validate_can_predict(server, tmp_path):
    found = record(
        tmp_path, collect(server, tmp_path, "--rate", 50, *LENGTHS, "--num-requests", 40, "--engine", "vllm:0.11.0")
    )
    assert (found.load, found.request_rate_rps, found.num_requests, found.concurrency) == ("open_loop", 50.0, 40, None)
    assert (found.engine, found.engine_version, found.length_spread) == ("vllm", "0.11.0", "fixed")
    assert {"held_out", "warm_up", "arrivals:poisson", "seed:0"} <= set(found.flag_list)
    assert found.flagged("client_lag_s:") and found.duration_s > 0.5 * 40 / 50
    prediction = Predictor().predict(msgspec.structs.replace(found, flags="held_out"))
    assert prediction.status in ("ok", "extrapolated")
    assert {"ttft_s_mean", "tpot_s_mean", "e2e_s_mean", "duration_s"} <= set(prediction.values)
    assert usable([found]) == []  # never fitted
    judged = CliRunner().invoke(validate, [str(tmp_path / "held_out.csv"), "--json"])
    assert judged.exit_code in (0, 1), judged.output  # 1: findings, as that this server is none
    (status,) = json.loads(judged.output)["status"]
    assert status in ("ok", "extrapolated")


def test_requests_go_out_as_the_simulator_draws_them(server, tmp_path):
    assert collect(server, tmp_path, "--rate", "80", *LENGTHS, "--num-requests", 30, "--seed", 5).exit_code == 0
    entry = read_journal(tmp_path / "journal.jsonl").entries[0]
    (seed,) = entry.environment["seeds"]
    due = np.array([r.due_s for r in entry.observations[0].requests]) - entry.observations[0].start_s
    assert due == pytest.approx(traffic_of(entry.point, seed).arrival_s, abs=1e-6)
    assert all(r.send_s >= r.due_s and r.asked_tok == 8 for r in entry.observations[0].requests)


def test_a_server_that_cannot_keep_up_is_overload(tmp_path):
    with Server(token_s=0.002, seats=2) as slow:  # about 100 requests per second
        result = collect(slow, tmp_path, "--rate", 500, *LENGTHS, "--num-requests", 80)
    assert "overload" in record(tmp_path, result).flag_list
    assert "overload: " in result.output


def test_a_trace_at_its_own_times(server, tmp_path, trace):
    found = record(tmp_path, collect(server, tmp_path, "--trace", trace, "--num-requests", 8, "--trace-speed", 0.5))
    assert (found.load, found.num_requests, found.length_spread) == ("open_loop", 8, "dataset:my-trace")
    assert (found.input_tok, found.output_tok) == (31.0, 4.5)
    # four requests in 0.05 s and a mean gap, twice, half as fast
    assert found.request_rate_rps == pytest.approx(7 / (2 * (0.05 * 4 / 3 + 0.05)), rel=1e-3)
    flags = set(found.flag_list)
    assert {f"trace_sha256:{hashlib.sha256(TIMED.encode()).hexdigest()}", "trace:my-trace", "seed:0"} <= flags
    assert {"trace_speed:0.5", "arrivals:trace", "input_cv:0.656", "output_cv:0.509"} <= flags
    assert "suspect:output_length" not in flags
    assert str(tmp_path) not in (tmp_path / "journal.jsonl").read_text()


def test_a_trace_sent_by_clients_is_fitted_and_one_at_once_is_a_burst(server, tmp_path, trace):
    result = collect(server, tmp_path / "c", "--trace", trace, "--batch", "2", "--num-requests", 6)
    found = record(tmp_path / "c", result)
    assert (found.load, found.concurrency, found.num_requests) == ("closed_loop", 2, 6)
    assert found.request_rate_rps is None and not found.flagged("arrivals:") and not found.flagged("held_out")
    assert found.input_tok == pytest.approx((2 * 10 + 2 * 30 + 20 + 64) / 6)
    found = record(tmp_path / "b", collect(server, tmp_path / "b", "--trace", trace, "--load", "burst", "--batch", 4))
    assert (found.load, found.num_requests, found.input_tok) == ("burst", 4, 31.0)


def test_lengths_without_times_come_at_random_and_answers_may_be_set(server, tmp_path):
    lengths = tmp_path / "l.csv"
    lengths.write_text("input_tok,output_tok\n10,300\n30,500\n")
    words = ("--trace", lengths, "--rate", 100, "--num-requests", 40, "--output-tok", 4)
    found = record(tmp_path / "m", collect(server, tmp_path / "m", *words))
    assert (found.output_tok, found.request_rate_rps) == (4.0, 100.0) and "arrivals:poisson" in found.flag_list


def test_after_a_kill_the_same_command_goes_on_and_another_trace_is_refused(server, tmp_path, trace):
    words = ("--trace", trace, "--rate", "40,80,160", "--num-requests", 8)
    assert collect(server, tmp_path / "m", *words).exit_code == 0
    path = tmp_path / "m" / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 40])  # killed in the middle of the last point
    result = collect(server, tmp_path / "m", *words, "--json")
    told = json.loads(result.output[result.output.index("{") :])
    assert (result.exit_code, told["measured"], told["left"]) == (0, 3, 0) and "going on: 2 of 3" in result.output
    trace.write_text(TIMED.replace("64", "65"))
    refused = collect(server, tmp_path / "m", *words)
    assert refused.exit_code == 2 and "was started with trace.sha256" in refused.output


def test_a_server_that_fails_in_an_open_loop_leaves_a_suspect_record_and_the_point_is_measured_again(tmp_path):
    with Server(token_s=0.001) as bad:
        words = ("--rate", "100", *LENGTHS, "--num-requests", 40)
        # The warm-up is 40 requests; before it come some by which the client learns what the server takes.
        bad.breaks(lambda n: "drops in the stream" if n > 70 else None)
        found = record(tmp_path, collect(bad, tmp_path, *words))
        assert "suspect:failed_requests" in found.flag_list
        bad.breaks(None)
        assert "suspect:failed_requests" not in record(tmp_path, collect(bad, tmp_path, *words)).flag_list


def test_what_serves_is_as_stated_where_the_server_does_not_say(tmp_path):
    cards = {"data": [{"id": "tiny", "max_model_len": 4096}]}
    with Server(token_s=0.001, pages={"/v1/models": (200, cards)}) as silent:
        words = ("--rate", "100", *LENGTHS, "--num-requests", 8, "--engine", "sglang:0.5")
        found = record(tmp_path, collect(silent, tmp_path, *words))
        assert (found.engine, found.engine_version) == ("sglang", "0.5")
    words = ("--rate", "100", *LENGTHS, "--num-requests", 8)
    with Server(token_s=0.001, pages={"/v1/models": (200, cards)}) as silent:
        found = record(
            tmp_path / "s",
            collect(silent, tmp_path / "s", *words, "--set", "engine=vllm", "--set", "engine_version=0.10"),
        )
        assert (found.engine, found.engine_version) == ("vllm", "0.10")  # not the number 0.1
    with Server(pages={"/version": (200, {"version": "0.11.2"})}) as vllm:
        assert record(
            tmp_path / "v", collect(vllm, tmp_path / "v", *words, "--engine", "vllm:0.11")
        ).engine_version == ("0.11.2")
        words = (*words, "--engine", "sglang:0.5")
        refused = collect(vllm, tmp_path / "n", *words)
        assert refused.exit_code == 2 and "the server says vllm, but sglang was stated" in refused.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--rate", "0", *LENGTHS), "expected requests per second above 0"),
        (("--rate", "1,-2", *LENGTHS), "expected requests per second above 0"),
        (("--rate", "nan", *LENGTHS), "expected requests per second above 0"),
        (("--rate", "1"), "an open loop needs --input-tok and --output-tok, or --trace"),
        (("--load", "open_loop"), "an open loop needs --input-tok and --output-tok, or --trace"),
        (("--rate", "1", "--batch", "2", *LENGTHS), "contradict each other"),
        (("--rate", "1", "--load", "closed_loop", *LENGTHS), "--rate goes with --load open_loop"),
        (("--load", "open_loop", "--batch", "2", *LENGTHS), "--batch has no use in an open loop"),
        (("--rate", "1", "--held-out", "2", *LENGTHS), "one or the other"),
        (("--load", "open_loop", "--minutes", "1e-4", *LENGTHS), "too short for an open loop"),
        (("--minutes", "nan"), "expected a number above 0"),
        (("--num-requests", "4"), "without --batch"),
        (("--num-requests", "2", "--batch", "4", *LENGTHS), "less than the 4 clients"),
        (("--num-requests", "2", "--batch", "4", "--load", "burst", *LENGTHS), "no use with --load burst"),
        (("--trace", "no.csv"), "does not exist"),
        (("--trace", "azure"), "unknown trace"),
        (("--trace", "LENGTHS"), "has no times, expected --rate"),
        (("--trace", "LENGTHS", "--trace-speed", "2"), "has no times"),
        (("--trace", "PROMPTS", "--batch", "2"), r"\(--output-tok\)"),
        (("--trace", "OTHER"), "row 1: found"),
        (("--trace", "TIMED", "--trace-format", "azure"), "'TIMESTAMP'"),
        (("--trace", "TIMED", "--trace-speed", "0"), "expected a number above 0"),
        (("--trace", "TIMED", "--trace-speed", "2", "--rate", "3"), "expected one of them"),
        (("--trace", "TIMED", "--trace-speed", "2", "--batch", "3"), "does not keep"),
        (("--trace", "TIMED", "--input-tok", "3"), "expected no --input-tok"),
        (("--trace", "TIMED", "--output-tok", "3,4"), "a single number"),
        (("--trace", "TIMED", "--load", "closed_loop"), "needs --batch: how many clients"),
        (("--trace", "TIMED", "--load", "static_batch", "--batch", "2"), "found static_batch"),
        (("--trace", "TIMED", "--set", "max_model_len=60", "--dry-run"), "72 tokens, max_model_len is 60"),
        (("--trace", "TIMED", "--set", "shared_prefix_tok=4"), "share_prefixes=true instead"),
        (("--trace-format", "csv"), "expected --trace beside it"),
        (("--set", "trace=t.csv"), "expected the option --trace"),
        (("--set", "share_prefixes=true", "--batch", "1", *LENGTHS), "for the prompts of a trace"),
    ],
)
def test_mistakes_are_one_sentence(server, tmp_path, words, sentence):
    files = {"TIMED": TIMED, "LENGTHS": "input_tok,output_tok\n1,2\n", "PROMPTS": "prompt\nhello\n", "OTHER": "a,b\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    result = collect(server, tmp_path / "m", *(tmp_path / f"{w}.csv" if w in files else w for w in words))
    assert result.exit_code == 2, result.output
    assert re.search(sentence, result.output), result.output
    said = [line for line in result.output.strip().split("\n") if not line.startswith("no power")]
    assert len(said) == 1 and not (tmp_path / "m" / "runs.csv").exists()


@pytest.mark.parametrize("backend", ["vllm", "transformers", "vllm-bench"])
def test_back_ends_say_which_loads_they_have(backend, trace):
    fixed = ["collect", "--backend", backend, "--model", MODEL, "--gpu", GPU, "--dry-run"]
    result = CliRunner().invoke(calibrate, [*fixed, "--trace", str(trace), "--batch", "2"])
    assert result.exit_code == 2 and "expected --backend openai with --trace" in result.output
    result = CliRunner().invoke(calibrate, [*fixed, "--rate", "2", *LENGTHS])
    if "open_loop" in LOADS[backend]:
        assert result.exit_code == 0 and "open_loop" in result.output
    else:
        assert result.exit_code == 2 and f"back-end {backend} runs static_batch" in result.output
        refused = CliRunner().invoke(calibrate, [*fixed, "--engine", "sglang:0.5"])
        assert refused.exit_code == 2 and "an engine of its own" in refused.output


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_server_and_predicts_how_long_arrivals_last():
    words = ("--rate", "0.5,2", *LENGTHS, "--repeats", 1, "--dry-run")
    told = json.loads(invoke("http://127.0.0.1:1", *words, "--json").output)
    seconds = {p["request_rate_rps"]: p["seconds"] for p in told["points"]}
    assert [p["num_requests"] for p in told["points"] if p["request_rate_rps"] == 2.0] == [120]
    assert seconds[2.0] == pytest.approx(60.0, rel=0.25) and seconds[0.5] == pytest.approx(FEWEST / 0.5, rel=0.3)
    assert told["parameters"] == {} and all(p["held_out"] for p in told["points"])
    text = invoke("http://127.0.0.1:1", *words).output
    assert "open_loop i32 o8 n120 q2.0 r0" in text and "validate" in text and "identified" not in text


def test_chosen_rates_are_shares_of_what_the_simulator_expects_and_fit_into_the_time():
    (lengths,) = points_of_grid(Grid((1,), (256,), (64,), (1.0,)), "open_loop")
    facts, how = facts_of(MODEL), {"budget_s": 300.0, "repeats": 3}
    points = chosen_rates([lengths], facts, GPU, None, **how)
    capacity = server_of(lengths, facts, GPU, None).capacity_rps(lengths)
    assert [p.request_rate_rps / capacity for p in points] == pytest.approx(SHARES, rel=0.01)
    found = expect_open(points, facts, GPU, None, lambda p: traffic_of(p, 0))
    plan = plan_grid(found, seconds_per_point=1.0, seed=0)
    assert len(plan.points) == len(SHARES) + 2 and plan.total_s <= 300.0
    assert all(p.held_out and 32 <= p.num_requests <= MOST for p in plan.points)
    assert chosen_rates([lengths], facts, GPU, None, **how) == points
    with pytest.raises(UserError, match=r"expected at least \d"):
        chosen_rates([lengths], facts, GPU, None, budget_s=1e-3, repeats=3)


def test_above_the_capacity_a_run_lasts_longer_than_its_arrivals():
    facts = facts_of(MODEL)
    (point,) = points_of_grid(Grid((1,), (256,), (64,), (1.0,)), "open_loop")
    capacity = server_of(point, facts, GPU, None).capacity_rps(point)
    slow, fast = (replace(point, request_rate_rps=share * capacity, num_requests=1000) for share in (0.3, 3.0))
    found = expect_open([slow, fast], facts, GPU, None, lambda p: traffic_of(p, 1))
    last = [float(traffic_of(p, 1).arrival_s[-1]) for p in (slow, fast)]
    assert found.seconds[0] < 1.1 * last[0] and found.seconds[1] > 2.0 * last[1]
    assert (found.warm_up_s < found.seconds).all()


def test_requests_that_nobody_counts_are_those_of_a_minute():
    assert requests_at(0.01) == FEWEST and requests_at(5.0) == 300 and requests_at(1e9) == requests_at(np.inf) == MOST


def test_a_trace_gives_its_points_means_and_the_longest_request(trace):
    opened = open_trace(str(trace))
    assert (opened.requests, opened.rate_rps) == (4, pytest.approx(3 / 0.05))
    points = points_of_grid(Grid((2, 4), (1,), (1,)), "burst")
    two, four = traced(points, opened)
    assert (two.input_tok, two.output_tok, two.most_tok) == (20, 4, 35)
    assert (four.input_tok, four.output_tok, four.most_tok) == (31, 4, 72)
    assert two.key != four.key and "my-trace" in two.key and four.length_spread == "dataset:my-trace"
    assert open_trace("azure-2023-conv").name == "azure-2023-conv"


def test_keys_of_other_loads_are_as_before():
    assert OPEN.key == "open_loop i32 o8 n40 q20.0 r0"
    assert Point("closed_loop", 4, 512, 64, 16).key == "closed_loop c4 i512 o64 n16 r0"


# --- the clock -------------------------------------------------------------------------------------------------------


def simulated(monkeypatch, folder, *more):
    monkeypatch.setitem(BACKENDS, "simulated", ("simulated_backend", ""))
    monkeypatch.setitem(LOADS, "simulated", ("static_batch",))
    words = ["collect", "--backend", "simulated", "--model", MODEL, "--gpu", GPU, "--meter", "none", "--out", folder]
    return [*map(str, words), *map(str, more)]


def test_when_the_time_is_used_up_points_are_left_for_the_same_command(tmp_path, monkeypatch):
    words = simulated(monkeypatch, tmp_path, "--minutes", 0.4)
    monkeypatch.setattr(campaign, "OVERRUN", 0.0)
    first = CliRunner().invoke(calibrate, words)
    planned = len(read_journal(tmp_path / "journal.jsonl").plan)
    assert first.exit_code == 1 and len(both_files(tmp_path)) == 1 and planned > 4
    assert f"{planned - 1} points left, as --minutes is used up; the same command goes on" in first.output
    second = CliRunner().invoke(calibrate, [*words, "--json"])
    told = json.loads(second.output[second.output.index("{") :])
    assert second.exit_code == 1 and (told["measured"], told["left"]) == (2, planned - 2)
    monkeypatch.undo()
    third = CliRunner().invoke(calibrate, simulated(monkeypatch, tmp_path, "--minutes", 0.4))
    assert third.exit_code == 0 and len(both_files(tmp_path)) == planned


def test_the_time_counts_by_the_clock_and_not_for_a_grid_of_ones_own(tmp_path, monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 10.0  # a point takes as long, by this clock
        return now[0]

    def measure(folder, *more):
        words = simulated(monkeypatch, folder, "--minutes", 0.5, *more)[1:]
        options = calibrate.commands["collect"].make_context("collect", words).params
        asked = asked_of({k: v for k, v in options.items() if k not in ("as_json", "dry_run", "out")})
        return Campaign(asked, clock).measure(tmp_path / folder, lambda *_: None, lambda _: None)

    found = measure("chosen")
    assert len(found.records) == 5 and found.left == found.planned - 5  # 1.5 x 30 s have passed before the sixth
    grid = measure("grid", "--batch", "1,2", "--input-tok", "16,32,64", "--output-tok", "1,4", "--seconds-per-point", 0)
    assert grid.left == 0 and len(grid.records) == 14


# --- what requests say -----------------------------------------------------------------------------------------------


def seen(ttft_s, tpot_s=0.01, lag_s=0.0, gap_s=0.05, output=5):
    """Requests one after the other with these times to first token; the other times may be one number for all."""
    ttft_s = np.asarray(ttft_s, dtype=float)
    tpot_s, lag_s = np.broadcast_to(tpot_s, ttft_s.shape), np.broadcast_to(lag_s, ttft_s.shape)
    requests = []
    for n, (first, each, late) in enumerate(zip(ttft_s.tolist(), tpot_s.tolist(), lag_s.tolist())):
        send = n * gap_s + late
        times = tuple(send + first + each * k for k in range(output))
        requests.append(RequestTimes(send, times, 32, output, due_s=n * gap_s))
    return Observation(tuple(requests), 0.0, max(r.token_s[-1] for r in requests))


def steady(n=80, seed=0):
    return np.random.default_rng(seed).normal(0.1, 0.01, n)


def test_a_growing_queue_is_overload_and_a_steady_one_is_not():
    assert overloaded(seen(np.linspace(0.1, 3.0, 80)))
    assert not overloaded(seen(steady()))
    assert not overloaded(seen(np.linspace(0.1, 0.19, 80)))  # less than twice as long
    assert not overloaded(seen(np.linspace(0.1, 3.0, 20)))  # too few to tell
    waits = steady()
    waits[40:60] += 1.0  # a crowd that came and went
    assert not overloaded(seen(waits))


def test_halves_that_differ_are_noticed_and_chance_is_not():
    times = steady()
    slower = np.where(np.arange(80) < 40, times, 1.3 * times)
    assert stationary(OPEN, seen(times)) and not stationary(OPEN, seen(slower))
    assert stationary(OPEN, seen(np.where(np.arange(80) < 40, times, 1.02 * times)))  # below what is noticeable
    decode = np.where(np.arange(80) < 40, 0.01, 0.012)
    assert not stationary(OPEN, seen(times, tpot_s=decode))  # without any scatter
    closed = replace(OPEN, load="closed_loop", concurrency=8, request_rate_rps=None)
    assert stationary(closed, seen(slower)) and not stationary(closed, seen(times, tpot_s=decode))
    assert stationary(replace(closed, load="static_batch"), seen(times, tpot_s=decode))
    ramp = np.where(np.arange(80) < 40, 0.05, 0.01)
    many = replace(closed, concurrency=40)
    assert stationary(many, seen(steady(), tpot_s=ramp))  # the first request of each client is left out
    assert not stationary(closed, seen(steady(), tpot_s=ramp))


def test_false_alarms_of_a_queue_below_its_capacity_are_few():
    """Of a queue with one server at half its capacity: at most one in ten, for each of the two flags."""
    rng, alarms = np.random.default_rng(7), np.zeros(2)
    for _ in range(100):
        arrival, service = np.cumsum(rng.exponential(1.0, 100)), 0.5 * rng.exponential(1.0, 100)
        end, waits = 0.0, []
        for at, needs in zip(arrival, service):
            end = max(at, end) + needs
            waits.append(end - at)
        run = seen(waits)
        alarms += (overloaded(run), not stationary(OPEN, run))
    assert (alarms <= 10).all(), alarms


@given(st.floats(0.01, 100.0), st.floats(-1e3, 1e3), st.integers(0, 3))
def test_what_is_said_does_not_depend_on_units_on_zero_or_on_the_order_of_rows(scale, shift, seed):
    rng = np.random.default_rng(seed)
    run = seen(
        np.linspace(0.1, 0.4 if seed % 2 else 0.1, 64) + rng.exponential(0.02, 64), lag_s=rng.exponential(0.01, 64)
    )

    def moved(at):
        return shift + scale * at

    rows = [
        replace(r, send_s=moved(r.send_s), due_s=moved(r.due_s), token_s=tuple(map(moved, r.token_s)))
        for r in run.requests
    ]
    rng.shuffle(rows)
    other = Observation(tuple(rows), moved(run.start_s), moved(run.end_s))
    assert overloaded(other) == overloaded(run) == bool(seed % 2)
    assert stationary(OPEN, other) == stationary(OPEN, run)
    assert client_limits([other]) == client_limits([run])
    assert client_late_s([other]) == pytest.approx(scale * client_late_s([run]), rel=1e-6, abs=1e-9)


def entry_of(*runs, point=OPEN, **settings):
    return Entry(point, runs, {}, {"warm_up": True, "seeds": [1]}, facts_of(MODEL, **settings))


MANIFEST = {"set": "20260101-abcdef12", "gpu": GPU, "seed": 3, "asked": {"backend": "openai"}}


def test_a_late_client_makes_a_run_suspect():
    times = steady()
    limit = CLIENT_SHARE * times.mean()
    late = seen(times, lag_s=1.1 * limit)
    assert client_limits([late]) and not client_limits([seen(times, lag_s=0.9 * limit)])
    queued = replace(seen(times, lag_s=0.6 * limit), client_queue_s=0.6 * limit)
    assert client_limits([queued]) and client_late_s([queued]) == pytest.approx(1.2 * limit)
    once = seen(times, lag_s=np.where(np.arange(80) == 3, 1.0, 0.0))
    assert not client_limits([once])  # the median: one stall is not what was measured
    unknown = replace(late, requests=tuple(replace(r, due_s=None) for r in late.requests))
    assert client_late_s([unknown]) is None and not client_limits([unknown])
    point = replace(OPEN, output_tok=5)
    flags = record_of(entry_of(late, point=point), MANIFEST).flag_list
    assert "suspect:client_limit" in flags and f"client_lag_s:{1.1 * limit:.2g}" in flags
    assert not record_of(entry_of(unknown, point=point), MANIFEST).flagged("client_lag_s:")


def test_labels_of_a_run_are_those_of_any_of_its_repetitions():
    fine, grows = seen(steady()), seen(np.linspace(0.1, 3.0, 80))
    flags = record_of(entry_of(fine, grows, point=replace(OPEN, output_tok=5)), MANIFEST).flag_list
    assert "overload" in flags and "not_stationary" in flags and not any(f.startswith("suspect:") for f in flags)
    closed = replace(OPEN, load="closed_loop", concurrency=2, request_rate_rps=None, output_tok=5)
    assert "overload" not in record_of(entry_of(grows, point=closed), MANIFEST).flag_list


def test_answers_of_a_trace_are_held_against_what_each_was_asked_for():
    run = seen(steady(40))
    asked = replace(run, requests=tuple(replace(r, asked_tok=5) for r in run.requests))
    assert "suspect:output_length" not in record_of(entry_of(asked), MANIFEST).flag_list
    assert "suspect:output_length" in record_of(entry_of(run), MANIFEST).flag_list  # the point says 8
    short = replace(asked, requests=(replace(asked.requests[0], asked_tok=6), *asked.requests[1:]))
    assert "suspect:output_length" in record_of(entry_of(short), MANIFEST).flag_list


def test_a_stream_with_fewer_events_than_tokens_came_in_chunks_though_nobody_says_so():
    whole = RequestTimes(0.0, (1.0, 1.1, 1.2), 10, 3)
    silent = RequestTimes(0.0, (1.0, 1.6), 10, 5)
    assert not in_chunks([Observation((whole,), 0.0, 2.0)])
    run = Observation((whole, silent), 0.0, 2.0)
    assert in_chunks([run]) and "itl_s_median" not in latencies([run])
    assert rates([run])["output_tok_per_s"] == pytest.approx(8 / 2.0)  # not five events
    assert not in_chunks([Observation((replace(silent, status="cut", output_tok=5),), 0.0, 2.0)])
    assert "chunked_stream" in record_of(entry_of(run), MANIFEST).flag_list


def test_what_an_open_loop_does_not_know_stays_empty():
    facts = EngineFacts("openai-compatible", None, MODEL, {}, None, None, None, {})
    found = record_of(Entry(OPEN, (seen(steady(40)),), {}, {}, facts), MANIFEST)
    assert found.concurrency is None and found.batch_mean is None and found.request_rate_rps == 20.0
    own = record_of(Entry(replace(OPEN, request_rate_rps=None), (seen(steady(40)),), {}, {}, facts), MANIFEST)
    assert own.request_rate_rps == pytest.approx(1 / 0.05)


def test_records_of_open_loops_can_be_written_and_read(server, tmp_path):
    assert collect(server, tmp_path, "--rate", "60", *LENGTHS, "--num-requests", 8).exit_code == 0
    with open(tmp_path / "held_out.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["load"], row["concurrency"], row["request_rate_rps"]) == ("open_loop", "", "60")


def test_a_back_end_is_told_of_the_engine_and_the_trace(trace, monkeypatch):
    words = ["--backend", "openai", "--base-url", "http://127.0.0.1:1", "--model", MODEL, "--gpu", GPU]
    more = ["--engine", "vllm:0.11.0", "--trace", str(trace), "--set", "max_num_seqs=9"]
    options = calibrate.commands["collect"].make_context("collect", [*words, *more]).params
    asked = asked_of(options)
    assert isinstance(asked.options, BackendOptions) and asked.options.trace.path == str(trace)
    assert asked.options.settings == {"engine": "vllm", "engine_version": "0.11.0", "max_num_seqs": 9}
    assert asked.to_dict()["trace"]["sha256"] == asked.trace.sha256 and str(trace.parent) not in str(asked.to_dict())
