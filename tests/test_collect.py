"""Measuring: what a client saw becomes records, journals survive kills, a plan leads to a fit that holds."""

import csv
import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import simulated_backend
from click.testing import CliRunner
from simulated_backend import SimulatedBackend, facts_of

import hwspecs
from calibration.cli import calibrate
from calibration.collect import provenance
from calibration.collect.asked import asked_of
from calibration.collect.backends import BACKENDS, BackendOptions, open_backend
from calibration.collect.board import check_board, check_same_board
from calibration.collect.grid import LOADS
from calibration.collect.journal import Contents, Entry, Journal, check_same, read_journal
from calibration.collect.point import BackendError, EngineFacts, Observation, Point, RequestTimes
from calibration.collect.power import PowerWindow, Sample
from calibration.collect.power.energy import Counter, Counters, Mark
from calibration.collect.power.judge import judge_window
from calibration.collect.power.sensors import Sensor
from calibration.collect.session import FAILURES_IN_A_ROW, MOST_REPETITIONS, Session, run_seed
from calibration.collect.statistics import in_flight, latencies, rates
from calibration.collect.to_records import (
    record_of,
    records_of,
    relative_spread,
    replace_file,
    with_noise,
    write_records,
)
from calibration.records import COLUMNS, read_records
from simulator.device import load_device
from simulator.errors import UserError
from validate.cli import validate

MODEL = "Qwen/Qwen3-0.6B"
GRID = ("--batch", "1,4", "--input-tok", "32,256", "--output-tok", "1,16", "--seconds-per-point", "0")  # 10 points
BATCH = Point("static_batch", 2, 100, 3, 2)


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    """The made-up back-end, known to the command for one test."""
    monkeypatch.setitem(BACKENDS, "simulated", ("simulated_backend", ""))
    monkeypatch.setitem(LOADS, "simulated", ("static_batch", "closed_loop", "open_loop"))


def command(folder, *more):
    words = ["collect", "--backend", "simulated", "--model", MODEL, "--gpu", "l4", "--meter", "none"]
    return [*words, "--out", str(folder), *map(str, more)]


def collect(folder, *more):
    return CliRunner().invoke(calibrate, command(folder, *more))


def requests(*rows):
    """(send, token times) -> requests of 100 prompt tokens."""
    return tuple(RequestTimes(send, tuple(times), 100, len(times)) for send, times in rows)


def entry_of(*observations, point=BATCH, power=None, **settings):
    return Entry(point, observations, power or {}, {"warm_up": True, "seeds": [1]}, facts_of(MODEL, **settings))


def manifest_of(**asked):
    return {"set": "20260101-abcdef12", "gpu": "l4", "seed": 3, "asked": {"backend": "simulated", **asked}}


SEEN = Observation(requests((10.0, [10.5, 10.7, 11.0]), (10.1, [10.6, 10.9, 11.1])), 10.0, 12.0)


# --- definitions -----------------------------------------------------------------------------------------------------


def test_latencies_follow_the_definitions():
    found = latencies([SEEN])
    assert found["ttft_s_mean"] == pytest.approx(0.5) and found["ttft_s_p99"] == pytest.approx(0.5)
    assert found["tpot_s_mean"] == pytest.approx((0.5 / 2 + 0.5 / 2) / 2)
    assert found["e2e_s_mean"] == pytest.approx(1.0) and found["e2e_s_median"] == pytest.approx(1.0)
    assert found["itl_s_mean"] == pytest.approx((0.2 + 0.3 + 0.3 + 0.2) / 4)
    assert found["itl_s_p99"] == pytest.approx(np.percentile([0.2, 0.3, 0.3, 0.2], 99))


def test_rates_count_what_arrived_in_the_window():
    assert rates([SEEN]) == pytest.approx({"duration_s": 2.0, "output_tok_per_s": 3.0, "total_tok_per_s": 103.0})
    late = replace(SEEN, start_s=10.55, end_s=11.05)  # two first tokens and the last one lie outside
    assert rates([late])["output_tok_per_s"] == pytest.approx(4 / 0.5)
    assert in_flight([SEEN]) == pytest.approx((1.0 + 1.0) / 2.0)


def test_repetitions_are_taken_together():
    again = replace(SEEN, requests=requests((20.0, [21.0, 21.5, 22.0])), start_s=20.0, end_s=22.0)
    found = latencies([SEEN, again])
    assert found["ttft_s_mean"] == pytest.approx((0.5 + 0.5 + 1.0) / 3)
    assert rates([SEEN, again])["duration_s"] == pytest.approx(2.0)
    assert rates([SEEN, again])["output_tok_per_s"] == pytest.approx(9 / 4.0)


def test_single_gaps_are_not_claimed_where_tokens_came_in_chunks():
    chunked = RequestTimes(0.0, (1.0, 1.6), 10, 5, tokens_per_event=(2, 3))
    found = latencies([Observation((chunked,), 0.0, 2.0)])
    assert found["itl_s_mean"] == found["tpot_s_mean"] == pytest.approx(0.6 / 4)
    assert "itl_s_median" not in found
    record = record_of(entry_of(Observation((chunked,), 0.0, 2.0)), manifest_of())
    assert "chunked_stream" in record.flag_list and record.output_tok_per_s == pytest.approx(2.5)


def test_a_prompt_alone_has_no_rate_of_writing():
    alone = Observation(requests((0.0, [0.5])), 0.0, 0.5)
    assert set(rates([alone])) == {"duration_s"} and "tpot_s_mean" not in latencies([alone])


def test_requests_that_failed_count_in_no_latency_and_make_the_run_suspect():
    bad = RequestTimes(10.0, (10.1,), 100, 1, status="failed: connection reset")
    cut = RequestTimes(10.0, (10.1, 10.2), 100, 2, status="cut")
    record = record_of(entry_of(replace(SEEN, requests=(*SEEN.requests, bad, cut))), manifest_of())
    assert record.ttft_s_mean == pytest.approx(0.5)
    assert {"suspect:failed_requests", "suspect:cut"} <= set(record.flag_list)
    short = record_of(entry_of(Observation(requests((0.0, [1.0, 2.0])), 0.0, 2.0)), manifest_of())
    assert "suspect:output_length" in short.flag_list  # asked for three tokens
    cached = replace(SEEN, requests=tuple(replace(r, cached_tok=16) for r in SEEN.requests))
    assert "suspect:cached_prompt" in record_of(entry_of(cached), manifest_of()).flag_list


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_states_the_resolved_configuration():
    record = record_of(entry_of(SEEN), manifest_of())
    assert (record.gpu, record.model, record.engine, record.engine_version) == ("l4", MODEL, "vllm", "0.11.0")
    assert (record.load, record.concurrency, record.num_requests) == ("static_batch", 2, 2)
    assert (record.max_num_seqs, record.max_num_batched_tokens, record.prefix_caching) == (256, 8192, False)
    assert record.kv_capacity_tok == 11_000 * 16 and record.length_spread == "fixed" and record.cuda_graphs is True
    assert record.campaign == "set:20260101-abcdef12" and "warm_up" in record.flag_list
    assert record.batch_mean == pytest.approx(1.0)
    eager = record_of(entry_of(SEEN, point=replace(BATCH, cuda_graphs=False)), manifest_of())
    assert eager.cuda_graphs is False and eager.run_id != record.run_id


def test_what_is_not_known_stays_empty():
    facts = EngineFacts("openai-compatible", None, MODEL, {}, None, None, None, {})
    record = record_of(Entry(BATCH, (SEEN,), {}, {}, facts), manifest_of())
    for name in ("weight_dtype", "max_num_seqs", "prefix_caching", "cuda_graphs", "kv_capacity_tok", "batch_mean"):
        assert getattr(record, name) is None, name
    assert record.power_w is None and record.rel_noise is None and "warm_up" not in record.flag_list


def test_running_requests_are_not_claimed_where_some_may_wait():
    assert record_of(entry_of(SEEN, max_num_seqs=1), manifest_of()).batch_mean is None
    assert record_of(entry_of(SEEN, max_num_batched_tokens=150), manifest_of()).batch_mean is None
    assert record_of(entry_of(SEEN, num_gpu_blocks=10), manifest_of()).batch_mean is None


def test_an_engine_without_a_token_limit_takes_whole_batches():
    record = record_of(entry_of(SEEN, chunked_prefill=False, max_num_batched_tokens=None), manifest_of())
    assert record.max_num_batched_tokens == 200


def test_the_full_sampler_and_capture_sizes_are_flags_that_the_simulator_reads():
    flags = record_of(entry_of(SEEN, sampling="top_p", max_cudagraph_capture_size=512), manifest_of()).flag_list
    assert {"sampling:top_p", "cudagraph_max:512"} <= set(flags)
    greedy = record_of(entry_of(SEEN, sampling="greedy", async_scheduling=True), manifest_of())
    assert not greedy.flagged("sampling:") and "async_scheduling" in greedy.flag_list


def window(**fields):
    known = {"seconds": 2.1, "energy_j": 420.0, "mean_power_w": 200.0, "method": "energy counter", "reason": None}
    found = msgspec.to_builtins(PowerWindow(**{**known, **fields}))
    return {"meter": "nvml", "scope": "board", **found}


def test_power_is_energy_over_the_window_and_none_where_the_meter_has_no_number():
    record = record_of(entry_of(SEEN, power=window()), manifest_of())
    assert record.power_w == pytest.approx(200.0) and record.power_scope == "board"
    assert record.energy_j_per_output_tok == pytest.approx(420.0 / 6) and not record.flagged("power:")
    silent = window(energy_j=None, mean_power_w=None, method="none", reason="NotSupported")
    assert record_of(entry_of(SEEN, power=silent), manifest_of()).power_w is None
    assert record_of(entry_of(SEEN), manifest_of()).energy_j_per_output_tok is None


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"counter_j": 420.0, "sampled_j": 390.0}, []),
        ({"counter_j": 420.0, "sampled_j": 370.0}, ["power:views_differ"]),
        ({"counter_j": 420.0, "sampled_j": 480.0}, ["power:views_differ"]),
        ({"counter_j": 420.0, "sampled_j": None}, []),
        ({"notes": ("not steady: 150 W in the first half, 250 W in the second",)}, ["power:not_steady"]),
        ({"notes": ("idle baseline: not steady: 15 W in the first half, 25 W in the second",)}, []),
        ({"seconds": 2.2}, []),
        ({"seconds": 2.3, "counter_j": 420.0, "sampled_j": 370.0}, ["power:gaps"]),
        ({"seconds": 2.3, "energy_j": None, "method": "none"}, []),
    ],
)
def test_what_speaks_against_a_power_is_flagged_and_one_with_gaps_is_none(fields, flags):
    power = window(**fields)
    record = record_of(entry_of(SEEN, power=power), manifest_of())
    assert [flag for flag in record.flag_list if flag.startswith("power:")] == flags
    given = power["energy_j"] is not None and flags != ["power:gaps"]
    assert (record.power_w is not None) is (record.energy_j_per_output_tok is not None) is given
    dummy = record_of(entry_of(SEEN, power=power), manifest_of(dummy_weights=True))
    assert dummy.power_w is None and not dummy.flagged("power:")


def test_the_flag_of_views_that_differ_is_that_of_the_meter_s_own_label():
    for counter_j in range(60, 185, 5):  # the samples say 120 J
        sensor = Sensor(update_s=0.1, averaging_s=0.1, observed=1.0, source="made up")
        marks = [
            Mark(t, Counters({"gpu0": Counter(round(ticks), 1e-3)})) for t, ticks in ((0, 7), (10, 7 + 1e3 * counter_j))
        ]
        samples = [Sample(at_s=0.1 * n, power_w=12.0) for n in range(101)]
        found = judge_window(*marks, samples, sensor)
        seen = replace(SEEN, start_s=0.0, end_s=10.0)
        power = {"meter": "nvml", "scope": "board", **msgspec.to_builtins(found)}
        flagged = record_of(entry_of(seen, power=power), manifest_of()).flagged("power:views_differ")
        labelled = any("differ" in note or "cannot be right" in note for note in found.notes)
        assert flagged is labelled is (not 108.0 <= counter_j <= 132.0), counter_j


def held_up(seen, factor=1.0):
    """The same run, slower, with the note of a back-end that saw other work on the machine."""
    later = tuple(
        replace(r, token_s=tuple(r.send_s + factor * (t - r.send_s) for t in r.token_s)) for r in seen.requests
    )
    return replace(seen, requests=later, notes=("disturbed: other work held up a thread for 30% of the time",))


def test_runs_that_were_held_up_count_only_where_there_is_no_other():
    alone = record_of(entry_of(SEEN, SEEN), manifest_of())
    mixed = record_of(entry_of(held_up(SEEN, 1.9), SEEN, held_up(SEEN, 1.5), SEEN), manifest_of())
    for name, value in msgspec.structs.asdict(alone).items():
        assert name == "flags" or getattr(mixed, name) == value, name
    assert set(mixed.flag_list) - set(alone.flag_list) == {"disturbed_runs:2"} and "repetitions:2" in mixed.flag_list
    every = record_of(entry_of(held_up(SEEN, 1.5), held_up(SEEN, 1.5)), manifest_of())
    assert "suspect:disturbed" in every.flag_list and not every.flagged("disturbed_runs")
    assert every.ttft_s_mean == pytest.approx(1.5 * alone.ttft_s_mean) and not alone.flagged("suspect:")


def test_a_point_of_which_all_runs_were_held_up_is_measured_again():
    contents = Contents({**manifest_of(), "plan": [BATCH]}, [entry_of(held_up(SEEN))])
    assert contents.done == frozenset()
    contents.entries.append(entry_of(held_up(SEEN), SEEN))
    assert contents.done == {BATCH.key} and not records_of(contents)[0].flagged("suspect:")


def test_power_over_a_window_that_held_runs_which_do_not_count_is_none():
    several = [SEEN] * 9
    few = record_of(entry_of(*several, held_up(SEEN), power=window(seconds=20.0)), manifest_of())
    assert few.power_w == pytest.approx(420.0 / 20.0)  # nine tenths of the window
    many = record_of(entry_of(*several, *[held_up(SEEN)] * 2, power=window(seconds=22.0)), manifest_of())
    assert many.power_w is None and "power:gaps" in many.flag_list


def test_dummy_weights_give_times_but_no_power():
    record = record_of(entry_of(SEEN, power=window()), manifest_of(dummy_weights=True))
    assert record.power_w is None and "dummy_weights" in record.flag_list and record.ttft_s_mean is not None
    assert "dummy_weights" in record_of(entry_of(SEEN, dummy_weights=True), manifest_of()).flag_list


def test_heat_makes_a_run_suspect_and_a_power_cap_labels_it():
    hot = entry_of(SEEN, power=window(throttle_reasons=("software thermal slowdown",)))
    assert "suspect:throttled" in record_of(hot, manifest_of()).flag_list
    capped = record_of(entry_of(SEEN, power=window(throttle_reasons=("software power cap",))), manifest_of())
    assert "clocks:software_power_cap" in capped.flag_list and not capped.flagged("suspect:")


def test_repeats_give_the_noise_of_their_configuration_and_of_no_other():
    def slower(factor):
        return Observation(requests((0.0, [0.5, 0.5 + 0.1 * factor, 0.5 + 0.2 * factor])), 0.0, 1.0)

    entries = [entry_of(slower(f), point=replace(BATCH, repeat=n)) for n, f in enumerate((1.0, 1.02, 0.98))]
    other = replace(BATCH, input_tok=200)
    rows = [(e.point, record_of(e, manifest_of())) for e in (*entries, entry_of(slower(1.0), point=other))]
    *repeats, alone = with_noise(rows)
    assert [r.rel_noise for r in repeats] == pytest.approx([np.std([1.0, 1.02, 0.98], ddof=1)] * 3)
    assert alone.rel_noise is None


def test_held_out_runs_get_a_file_of_their_own_and_files_have_the_columns_of_the_schema(tmp_path):
    held = entry_of(SEEN, point=replace(BATCH, input_tok=64, held_out=True))
    write_records(tmp_path, [record_of(e, manifest_of()) for e in (entry_of(SEEN), held)])
    (fit,), (check,) = read_records(tmp_path / "runs.csv"), read_records(tmp_path / "held_out.csv")
    assert "held_out" in check.flag_list and "held_out" not in fit.flag_list
    with open(tmp_path / "runs.csv", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    for name, value in msgspec.structs.asdict(record_of(entry_of(SEEN), manifest_of())).items():
        wanted = pytest.approx(value, rel=1e-8) if isinstance(value, float) else value
        assert getattr(fit, name) == wanted, name


def test_a_stream_that_came_all_at_once_is_suspect_and_its_record_can_be_read(tmp_path):
    at_once = Observation(requests((0.0, [0.5, 0.5, 0.5]), (0.0, [0.6, 0.6, 0.6])), 0.0, 0.6)
    records = [record_of(entry_of(at_once, point=replace(BATCH, repeat=n)), manifest_of()) for n in range(2)]
    assert records[0].tpot_s_mean is None and records[0].ttft_s_mean == pytest.approx(0.55)
    assert "suspect:buffered_stream" in records[0].flag_list and relative_spread(records) == 0.0
    write_records(tmp_path, records)
    assert len(read_records(tmp_path / "runs.csv")) == 2


def test_records_that_nobody_could_read_never_replace_those_that_are_there(tmp_path):
    write_records(tmp_path, [record_of(entry_of(SEEN), manifest_of())])
    with pytest.raises(UserError, match="gpu_memory_utilization"):
        write_records(tmp_path, [record_of(entry_of(SEEN, gpu_memory_utilization=7.0), manifest_of())])
    assert len(read_records(tmp_path / "runs.csv")) == 1
    assert sorted(os.listdir(tmp_path)) == ["held_out.csv", "runs.csv"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    replace_file(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["runs.csv"]


# --- points and journals ---------------------------------------------------------------------------------------------


def test_keys_are_stable_and_tell_points_apart():
    assert Point("static_batch", 4, 512, 64, 4).key == "static_batch c4 i512 o64 r0"
    points = [
        BATCH, replace(BATCH, concurrency=3), replace(BATCH, input_tok=3), replace(BATCH, output_tok=9),
        replace(BATCH, num_requests=9), replace(BATCH, request_rate_rps=0.5), replace(BATCH, repeat=1),
        replace(BATCH, cuda_graphs=True), replace(BATCH, cuda_graphs=False), replace(BATCH, load="burst"),
    ]  # fmt: skip
    assert len({point.key for point in points}) == len(points)
    assert replace(BATCH, repeat=1).configuration == BATCH.configuration


def write_journal(path, points=3):
    plan = [replace(BATCH, input_tok=10 * n + 10) for n in range(points)]
    manifest = {**manifest_of(seed=1), "facts": facts_of(MODEL), "plan": plan}
    with Journal(path) as journal:
        journal.start(manifest)
        journal.engine(facts_of(MODEL, num_gpu_blocks=99), {"time": "now"})
        for point in plan:
            journal.measured(point, (SEEN, SEEN), window(), {"seeds": [1, 2]})
        journal.failed(replace(BATCH, repeat=7), "out of\n memory")
    return plan


def test_a_journal_gives_back_what_was_written(tmp_path):
    plan = write_journal(tmp_path / "j")
    found = read_journal(tmp_path / "j")
    assert found.plan == plan and found.torn == 0 and found.done == {point.key for point in plan}
    assert [entry.point for entry in found.entries] == plan and found.entries[0].observations == (SEEN, SEEN)
    assert found.entries[0].facts.settings["num_gpu_blocks"] == 99  # of the engine as it was then
    assert found.entries[0].power["energy_j"] == 420.0 and found.starts == [{"time": "now"}]
    assert found.failures[0].reason == "out of memory"


def test_a_journal_that_ends_anywhere_is_read_and_gone_on_with(tmp_path):
    write_journal(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    lines = [0, *(n + 1 for n, byte in enumerate(content) if byte == 10)]
    for cut in [*lines[:-1], *random.Random(1).sample(range(len(content)), 60)]:
        path = tmp_path / "torn"
        path.write_bytes(content[:cut])
        found = read_journal(path)
        whole = sum(end <= cut for end in lines[1:])
        assert (0 if found is None else 1 + len(found.starts) + len(found.entries) + len(found.failures)) == whole
        with Journal(path) as journal:
            if found is None:
                journal.start({**manifest_of(), "facts": facts_of(MODEL), "plan": []})
            journal.measured(replace(BATCH, repeat=50), (SEEN,), {}, {})
        again = read_journal(path)
        assert path.read_bytes().startswith(content[:cut]) and again.entries[-1].point.repeat == 50
        assert len(again.entries) == (0 if found is None else len(found.entries)) + 1


def test_two_collectors_cannot_write_one_journal(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(UserError, match="another collector"), Journal(tmp_path / "j"):
        pass
    with Journal(tmp_path / "j"):
        pass


def test_other_files_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "text").write_text("hello\nthere\n")
    (tmp_path / "json").write_text('{"points": 3}\n')
    (tmp_path / "later").write_text('{"journal":2,"manifest":{}}\n')
    for name in ("text", "json", "later"):
        with pytest.raises(UserError, match="journal"):
            read_journal(tmp_path / name)
    with pytest.raises(UserError, match="cannot be written"), Journal(tmp_path / "no" / "j"):
        pass


def test_the_first_differing_field_is_named_and_volatile_ones_are_not_compared():
    check_same({"a": {"num_gpu_blocks": 1, "b": 2}}, {"a": {"num_gpu_blocks": 9, "b": 2}}, "'j'")
    with pytest.raises(UserError, match=r"'j' was started with a\.b = 2, now it is 3"):
        check_same({"a": {"b": 2}}, {"a": {"b": 3}}, "'j'")
    with pytest.raises(UserError, match="seed"):
        check_same({}, {"seed": 0}, "'j'")


def test_of_a_point_that_was_measured_again_the_last_one_counts():
    bad = replace(SEEN, requests=(replace(SEEN.requests[0], status="failed: reset"), SEEN.requests[1]))
    contents = Contents({**manifest_of(), "plan": []}, [entry_of(bad)])
    assert contents.done == frozenset()  # to be measured again
    contents.entries.append(entry_of(SEEN))
    assert contents.done == {BATCH.key} and not records_of(contents)[0].flagged("suspect:")


# --- sessions --------------------------------------------------------------------------------------------------------


class Meter:
    """Counts windows; the power of each is known."""

    name, scope = "made up", "board"

    def __init__(self):
        self.windows, self.open = 0, False

    def start(self):
        assert not self.open
        self.open = True

    def stop(self):
        assert self.open
        self.open, self.windows = False, self.windows + 1
        return PowerWindow(6.0, 600.0, 100.0, "energy counter", None)


def session(tmp_path, backend, points, **options):
    with Journal(tmp_path / "j") as journal:
        journal.start({**manifest_of(), "facts": backend.facts(), "plan": points})
        made = Session(backend, journal, backend.facts(), **options)
        try:
            reasons = made.run(points, frozenset())
        finally:
            found = read_journal(tmp_path / "j")
    return found, reasons


def test_a_session_warms_up_once_and_repeats_until_the_window_is_long_enough(tmp_path):
    backend, meter, seen = SimulatedBackend(facts_of(MODEL)), Meter(), []
    points = [BATCH, replace(BATCH, repeat=1), replace(BATCH, output_tok=100)]
    found, reasons = session(
        tmp_path, backend, points, seconds_per_point=0.3, meter=meter, on_measured=seen.append, seed=4
    )
    assert reasons == [] and backend.warmed == [BATCH.configuration, points[2].configuration]
    lengths = [[o.end_s - o.start_s for o in entry.observations] for entry in found.entries]
    assert all(sum(times) >= 0.3 > sum(times[:-1]) for times in lengths)
    assert meter.windows == 3 and found.entries[0].power["energy_j"] == 600.0
    assert found.entries[1].environment["seeds"][0] == run_seed(4, points[1], 0) != run_seed(4, points[0], 0)
    assert [entry.point for entry in seen] == points
    short, _ = session(tmp_path / "..", backend, [BATCH], seconds_per_point=1e9)
    assert len(short.entries[0].observations) == MOST_REPETITIONS


def test_one_failing_point_is_noted_and_the_next_ones_are_measured(tmp_path):
    class Picky(SimulatedBackend):
        def run(self, point, seed):
            if point.input_tok == 20:
                raise BackendError("out of memory")
            if point.input_tok == 40:
                raise UserError("no such length")
            return super().run(point, seed)

    points = [replace(BATCH, input_tok=n) for n in (10, 20, 30, 40)]
    found, reasons = session(tmp_path, Picky(facts_of(MODEL)), points)
    assert found.done == {points[0].key, points[2].key}
    assert [failure.reason for failure in found.failures] == ["out of memory", "no such length"]
    assert reasons == [f"{points[1].key}: out of memory", f"{points[3].key}: no such length"]


def test_a_dead_server_ends_the_session_and_leaves_a_readable_journal(tmp_path):
    points = [replace(BATCH, input_tok=n) for n in range(10, 90, 10)]
    with pytest.raises(BackendError, match="points in a row"):
        session(tmp_path, SimulatedBackend(facts_of(MODEL), die_at=4), points, seconds_per_point=0.0)
    found = read_journal(tmp_path / "j")
    assert len(found.entries) == 3 and len(found.failures) == FAILURES_IN_A_ROW


def test_a_run_in_which_no_request_ended_is_a_failure(tmp_path):
    class Refusing(SimulatedBackend):
        def run(self, point, seed):
            failed = RequestTimes(0.0, (), 10, 0, status="failed: HTTP 500")
            return Observation((failed,), 0.0, 1.0)

    found, reasons = session(tmp_path, Refusing(facts_of(MODEL)), [BATCH])
    assert not found.entries and "HTTP 500" in reasons[0]


def test_an_engine_that_was_configured_anew_is_recorded_with_its_points(tmp_path):
    class Changing(SimulatedBackend):
        def facts(self):
            return facts_of(MODEL, num_gpu_blocks=9 if self.warmed else 8)

    found, _ = session(tmp_path, Changing(facts_of(MODEL)), [BATCH])
    assert found.entries[0].facts.settings["num_gpu_blocks"] == 9


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_whole_way_from_plan_to_validated_fit(tmp_path):
    result = collect(tmp_path / "m", "--minutes", 1.2, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output[result.output.index("{") :])
    assert told["failed"] == {} and told["to_fit"] >= 15 and told["held_out"] >= 2
    assert 0.0 < told["noise_floor"] < 0.02
    profile = tmp_path / "p.toml"
    runs, held = tmp_path / "m" / "runs.csv", tmp_path / "m" / "held_out.csv"
    fitted = CliRunner().invoke(calibrate, ["fit", str(runs), "--gpu", "l4", "--out", str(profile), "--json"])
    assert fitted.exit_code == 0, fitted.output
    rows = {row["name"]: row for row in json.loads(fitted.output[fitted.output.index("{") :])["parameters"]}
    for name, true in simulated_backend.TRUTH.items():
        row = rows[name.rpartition("/")[2]]
        off, before = abs(np.log(row["fitted"] / true)), abs(np.log(row["prior"] / true))
        assert off < 2.0 * row["log_sd"] and off < 0.7 * before and row["identified"], (name, off, before)
    checked = CliRunner().invoke(validate, [str(held), "--profile", str(profile), "--json"])
    assert checked.exit_code in (0, 1), checked.output  # 1: findings; none of them says that the runs are no good
    told_by_validate = json.loads(checked.output)
    assert not [finding for finding in told_by_validate["findings"] if finding["severity"] == "fail"]
    errors = {row["metric"]: row for row in told_by_validate["errors"]}
    for metric in ("ttft_s_mean", "tpot_s_mean", "e2e_s_mean"):
        assert errors[metric]["n"] == told["held_out"] and errors[metric]["median"] < 0.03, errors[metric]


def test_an_interrupted_measurement_ends_with_130_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert collect(whole, *GRID).exit_code == 0
    original, calls = SimulatedBackend.run, []

    def interrupted(self, point, seed):
        calls.append(point)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, point, seed)

    closed = []
    monkeypatch.setattr(SimulatedBackend, "close", lambda self: closed.append(True))
    monkeypatch.setattr(SimulatedBackend, "run", interrupted)
    with pytest.raises(SystemExit) as left:
        calibrate.main(command(parts, *GRID))
    assert left.value.code == 130 and closed
    assert len(read_records(parts / "runs.csv")) == 3
    with gzip.open(parts / "samples.jsonl.gz", "rt") as file:
        assert len({row["run_id"] for row in map(json.loads, file) if "run_id" in row}) == 3
    monkeypatch.setattr(SimulatedBackend, "run", original)
    result = collect(parts, *GRID)
    assert result.exit_code == 0 and "going on: 3 of 10" in result.output
    keys = [r.run_id.partition("-static")[2] for r in read_records(whole / "runs.csv")]
    assert sorted(keys) == sorted(r.run_id.partition("-static")[2] for r in read_records(parts / "runs.csv"))
    again = collect(parts, *GRID)
    assert again.exit_code == 0 and "10 of 10 points measured" in again.output


def test_another_measurement_in_the_same_folder_is_refused_with_the_field(tmp_path):
    assert collect(tmp_path / "m", *GRID).exit_code == 0
    changes = {
        "seed": ("--seed", 5),
        "dtype": ("--dtype", "fp16"),
        "settings.max_num_seqs": ("--set", "max_num_seqs=9"),
    }
    for field, more in changes.items():
        result = collect(tmp_path / "m", *GRID, *more)
        assert result.exit_code == 2 and f"was started with {field}" in result.output


def test_a_server_that_dies_leaves_records_and_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMULATED_DIE_AT", "4")
    result = collect(tmp_path / "m", *GRID)
    assert result.exit_code == 2 and "the server has died" in result.output
    assert len(read_records(tmp_path / "m" / "runs.csv")) == 3
    monkeypatch.delenv("SIMULATED_DIE_AT")
    assert "10 of 10" in collect(tmp_path / "m", *GRID).output


def test_a_point_that_fails_gives_exit_code_1_and_is_tried_again(tmp_path, monkeypatch):
    original = SimulatedBackend.run

    def picky(self, point, seed):
        if point.input_tok == 256 and point.concurrency == 4 and point.output_tok == 16:
            raise BackendError("out of memory")
        return original(self, point, seed)

    monkeypatch.setattr(SimulatedBackend, "run", picky)
    result = collect(tmp_path / "m", *GRID)
    assert result.exit_code == 1 and "not measured: static_batch c4 i256 o16 r0: out of memory" in result.output
    monkeypatch.setattr(SimulatedBackend, "run", original)
    assert collect(tmp_path / "m", *GRID).exit_code == 0


def test_samples_hold_the_raw_times_from_which_records_can_be_made_again(tmp_path):
    assert collect(tmp_path / "m", *GRID).exit_code == 0
    with gzip.open(tmp_path / "m" / "samples.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert rows[0]["manifest"]["asked"]["model"] == MODEL and rows[0]["starts"][0]["software"]["python"]
    for record in read_records(tmp_path / "m" / "runs.csv"):
        mine = [row for row in rows[1:] if row.get("run_id") == record.run_id and "token_s" in row]
        found = np.mean([row["token_s"][0] - row["send_s"] for row in mine])
        assert found == pytest.approx(record.ttft_s_mean, rel=1e-6)


def test_nothing_of_a_key_of_a_person_or_of_other_folders_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    monkeypatch.setenv("HF_TOKEN", "hf-secret-2")
    monkeypatch.setenv("VLLM_API_KEY", "secret-3")
    monkeypatch.setenv("VLLM_USE_V1", "1")
    monkeypatch.setattr(sys, "argv", ["calibrate", "collect", "--base-url", "http://me:secret-4@host:1/v1?k=secret-5"])
    assert collect(tmp_path / "m", *GRID, "--base-url", "http://me:secret-4@127.0.0.1:1/v1?k=secret-5").exit_code == 0
    content = (tmp_path / "m" / "journal.jsonl").read_text() + (tmp_path / "m" / "runs.csv").read_text()
    assert "secret" not in content and str(tmp_path) not in content and "VLLM_USE_V1" in content
    assert os.environ.get("USER", "root") + "@" not in content
    refused = collect(tmp_path / "n", *GRID, "--set", "api_key=1")
    assert refused.exit_code == 2 and "from the environment only" in refused.output


def test_dry_run_shows_points_time_and_what_they_identify_and_writes_nothing(tmp_path):
    result = collect(tmp_path / "m", "--dry-run", "--minutes", 2)
    assert result.exit_code == 0 and "A/A repeat" in result.output and "minutes" in result.output
    assert "gemm16.memory_fraction" in result.output and not (tmp_path / "m").exists()
    told = json.loads(collect(tmp_path / "m", "--dry-run", "--minutes", 2, "--json").output)
    assert 0 < told["total_s"] <= 120 and {"key", "seconds", "held_out"} <= set(told["points"][0])


def test_the_processor_at_hand_is_a_device_with_a_sheet_in_the_folder(tmp_path, monkeypatch):
    asked = []

    def sheet(folder, threads=None):
        asked.append((folder, threads))
        path = folder / "host-cpu.toml"
        folder.mkdir(exist_ok=True)
        path.write_text((Path(hwspecs.__file__).parent / "l4.toml").read_text().replace('id = "l4"', 'id = "host-cpu"'))
        return path

    monkeypatch.setattr("calibration.collect.asked.ensure_host_sheet", sheet)
    words = ["--backend", "transformers", "--model", MODEL, "--gpu", "host-cpu", "--set", "threads=2"]
    options = calibrate.commands["collect"].make_context("collect", words).params
    found = asked_of(options, tmp_path / "m")
    assert asked == [(tmp_path / "m", 2)] and found.where == "cpu" and found.gpu == str(tmp_path / "m/host-cpu.toml")
    assert found.to_dict()["gpu"] == "host-cpu" and found.instance.weights == "fp32" and found.load == "static_batch"
    with pytest.raises(UserError, match="--gpu host-cpu needs --out"):
        asked_of(options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--backend", "vlm"), "unknown back-end 'vlm'; nearest: vllm"),
        (("--gpu", "h1000"), "unknown GPU"),
        (("--batch", "1,2"), "without --input-tok"),
        (("--set", "max_num_seqs"), "expected NAME=VALUE"),
        (("--minutes", "0.001"), "too short"),
        (("--engine", "vlm"), "unknown engine"),
        (("--batch", "1", "--input-tok", "99999", "--output-tok", "1"), "no point of the grid"),
        ((*GRID, "--held-out", "3"), "one or the other"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, words, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        calibrate.main(command(tmp_path / "m", *words))
    said = capsys.readouterr().err
    assert left.value.code == 2 and sentence in said and said.count("\n") <= 2


def test_a_back_end_without_its_package_says_what_to_install(monkeypatch):
    options = BackendOptions(model=MODEL, gpu="l4")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BackendError, match="needs the package 'vllm', which is not installed; try: pip install vllm"):
        open_backend("vllm", options)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(BackendError, match="needs the program vllm"):
        open_backend("vllm-bench", options)


def test_nothing_heavy_is_imported_before_it_is_needed():
    modules = "campaign, backends.vllm_engine, backends.vllm_bench, provenance, power"
    program = "import sys, calibration.cli\n" + "\n".join(
        f"import calibration.collect.{name.strip()}" for name in modules.split(",")
    )
    heavy = "{'torch', 'vllm', 'transformers', 'pynvml', 'amdsmi', 'aiohttp', 'httpx'}"
    program += f"\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- provenance ------------------------------------------------------------------------------------------------------


def test_only_variables_that_steer_engines_are_recorded():
    found = provenance.variables(
        {"VLLM_USE_V1": "1", "VLLM_API_KEY": "k", "HF_TOKEN": "t", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "0"}
    )
    assert found == {"CUDA_VISIBLE_DEVICES": "0", "VLLM_USE_V1": "1"}
    assert provenance.looks_secret("api_key") and provenance.looks_secret("hf_token")
    assert not provenance.looks_secret("max_num_batched_tokens")


def test_commands_are_recorded_without_folders_and_credentials():
    words = ["collect", "--model", "/home/me/models/config.json", "--base-url", "http://a:b@host:8000/v1?key=1"]
    assert provenance.command_line(words) == "calibrate collect --model config.json --base-url http://host:8000/v1"


def test_a_board_that_is_not_the_one_of_the_sheet_is_noticed():
    h100 = load_device("h100-sxm")
    right = {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "power_limit_w": 700.0, "mig": False}
    assert check_board(h100, {"gpus": [right]}) == []
    assert "compute capability 8.0" in check_board(h100, {"gpus": [{**right, "compute_capability": "8.0"}]})[0]
    assert "350 W" in check_board(h100, {"gpus": [{**right, "power_limit_w": 350.0}]})[0]
    assert "MIG" in check_board(h100, {"gpus": [{**right, "mig": True}]})[0]
    orin = load_device("orin-agx-64gb", "30W")
    with pytest.raises(UserError, match="power mode MAXN, expected"):
        check_board(orin, {"jetson": {"power_mode": "MAXN"}})
    assert check_board(orin, {"jetson": {"power_mode": orin.power_mode, "clocks_locked": True}}) == []
    assert "jetson_clocks" in check_board(orin, {"jetson": {"clocks_locked": False}})[0]


def board(**facts):
    known = {"name": "NVIDIA L4", "vbios": "95.04", "power_limit_w": 72.0, "ecc": True, "driver_version": "580.1"}
    return {"gpus": [{**known, **facts}]}


@pytest.mark.parametrize(
    ("fact", "other"), [("power_limit_w", 60.0), ("vbios", "95.05"), ("ecc", False), ("name", "NVIDIA L40S")]
)
def test_a_measurement_does_not_go_on_with_another_board(fact, other):
    with pytest.raises(UserError, match=f"the board's {fact} was .* when this measurement began, now it is {other}"):
        check_same_board(board(), board(**{fact: other}))
    assert check_same_board(board(), board(**{fact: None})) == []  # not known: not compared
    modes = [{"jetson": {"power_mode": mode, "clocks_locked": True}} for mode in ("MAXN", "30W")]
    with pytest.raises(UserError, match="power_mode was MAXN"):
        check_same_board(*modes)
    assert check_same_board(modes[0], modes[0]) == check_same_board(board(), {"reason": "no driver"}) == []


def test_another_driver_is_said():
    (said,) = check_same_board(board(), board(driver_version="590.2"))
    assert "driver_version was 580.1" in said and "now it is 590.2" in said


def test_a_resumption_on_a_board_with_another_power_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "board", lambda devices: board())
    monkeypatch.setenv("SIMULATED_DIE_AT", "4")
    assert collect(tmp_path / "m", *GRID).exit_code == 2
    monkeypatch.delenv("SIMULATED_DIE_AT")
    monkeypatch.setattr(provenance, "board", lambda devices: board(power_limit_w=60.0))
    refused = collect(tmp_path / "m", *GRID)
    assert refused.exit_code == 2 and "power_limit_w was 72.0" in refused.output
    assert len(read_records(tmp_path / "m" / "runs.csv")) == 3
    monkeypatch.setattr(provenance, "board", lambda devices: board(driver_version="590.2"))
    result = collect(tmp_path / "m", *GRID)
    assert result.exit_code == 0 and "warning: the board's driver_version" in result.output


def test_every_start_has_a_salt_of_its_own_and_the_journal_knows_it(tmp_path, monkeypatch):
    salts, original = [], simulated_backend.open_backend
    monkeypatch.setattr(
        simulated_backend, "open_backend", lambda options: salts.append(options.salt) or original(options)
    )
    monkeypatch.setenv("SIMULATED_DIE_AT", "4")
    for folder in ("a", "a", "b"):
        collect(tmp_path / folder, *GRID)
    assert len(set(salts)) == 3
    found = read_journal(tmp_path / "a" / "journal.jsonl")
    assert [start["salt"] for start in found.starts] == salts[:2]
    assert salts[:2] == [f"{found.manifest['set']}/{n}" for n in (0, 1)]


# --- kills -----------------------------------------------------------------------------------------------------------


def start(folder, *more):
    """The collector in a process of its own: a fork, so that many can be started in a second."""

    def main():
        os.environ["SIMULATED_DELAY_S"] = "0.01"
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        calibrate.main(command(folder, *more), prog_name="calibrate")

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def size_of(folder):
    path = folder / "journal.jsonl"
    return path.stat().st_size if path.exists() else 0


def measured_keys(folder):
    found = read_journal(folder / "journal.jsonl")
    return [] if found is None else [entry.point.key for entry in found.entries]


def test_kills_at_random_moments_lose_nothing_and_never_corrupt_a_record(tmp_path):
    """Killed again and again, at moments that are drawn; what the journal held stays, records are always whole."""
    draw, folder, known, kills = random.Random(7), tmp_path / "m", [], 0
    grid = ("--batch", "1,2,4", "--input-tok", "16,64,256", "--output-tok", "1,8", "--seconds-per-point", 0)
    for _ in range(14):
        collector, wanted = start(folder, *grid), size_of(folder) + draw.randint(0, 8_000)
        while collector.is_alive() and size_of(folder) < wanted:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.01)
        collector.kill()
        collector.join()
        kills += collector.exitcode == -signal.SIGKILL
        now = measured_keys(folder) if size_of(folder) else []
        assert now[: len(known)] == known and len(now) == len(set(now)), "a measured point was lost or measured twice"
        if (folder / "runs.csv").exists():
            kept = read_records(folder / "runs.csv")  # reads or raises
            assert len(kept) >= len(now) - 1  # one point may have been on its way from the journal
        known = now
    assert kills >= 3 and known
    collector = start(folder, *grid)
    collector.join()
    assert collector.exitcode == 0 and measured_keys(folder)[: len(known)] == known
    assert len(measured_keys(folder)) == len(read_records(folder / "runs.csv")) == 20
    with gzip.open(folder / "samples.jsonl.gz", "rt") as file:
        assert len({row["run_id"] for row in map(json.loads, file) if "run_id" in row}) == 20


def test_a_request_to_end_closes_the_engine_and_writes_the_records(tmp_path):
    folder = tmp_path / "m"
    collector = start(folder, "--minutes", 3)
    while collector.is_alive() and (not size_of(folder) or len(measured_keys(folder)) < 2):
        time.sleep(0.01)
    collector.terminate()
    collector.join()
    rows = [r for name in ("runs.csv", "held_out.csv") for r in read_records(folder / name)]
    assert collector.exitcode == 130 and len(rows) == len(measured_keys(folder)) >= 2
    assert (folder / "samples.jsonl.gz").exists()
