"""Runs that do not measure what they are taken for: short windows, clients that limit, queues, what collectors saw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, numbered, run, whats

from calibration.records import METRICS
from validate.checks.validity import SEEN, prompt_floor_s, seats

BARE = dict.fromkeys(METRICS)


def said(*records):
    return found("validity", by_hand(numbered(records)))


def alarms(findings):
    return [f for f in findings if f.alarm]


def test_the_clean_run_is_valid():
    assert said(run()) == []


@pytest.mark.parametrize(("flag", "severity"), [(row[0], row[1]) for row in SEEN])
def test_what_a_collector_saw_is_said(flag, severity):
    record = run(flags=f"warm_up;{flag}{'software_power_cap' if flag.endswith(':') else ''}")
    (finding,) = said(record, run())
    assert (finding.fault, finding.severity, finding.confidence) == ("F9", severity, "certain")
    assert finding.runs == ("r0",) and "collector" in finding.says and flag in finding.evidence["flags"]


def test_flags_are_whole_words():
    assert said(run(flags="warm_up;preempted_never;suspect:throttled_perhaps;overload2")) == []


@pytest.mark.parametrize(("lag", "speaks"), [("0.014", False), ("0.016", True), ("", False), ("soon", False)])
def test_a_client_may_be_late_by_a_twentieth_of_ttft(lag, speaks):
    """TTFT is 0.3 s."""
    assert ("validity.client_late" in whats(said(run(flags=f"warm_up;client_lag_s:{lag}")))) is speaks


# --- windows ----------------------------------------------------------------------------------------------------------


def window(requests, limit, **more):
    facts = {"load": "burst", "num_requests": requests, "max_num_seqs": limit, "concurrency": limit}
    figures = BARE | {"output_tok_per_s": 2000.0, "tpot_s_mean": 0.01, "flags": "warm_up;steady_window"}
    return run(**facts | figures | more)


@pytest.mark.parametrize(
    ("requests", "limit", "dp", "severity"),
    [(198, 192, 1, "fail"), (396, 256, 1, "fail"), (2048, 768, 1, "warn"), (198, 64, 1, None), (2048, 96, 8, "warn"),
     (1024, 4, 8, None)],
)  # fmt: skip
def test_a_steady_window_needs_three_requests_per_seat(requests, limit, dp, severity):
    """MLE-SHORT: 198 prompts for a batch of hundreds; the limit is per replica."""
    findings = said(window(requests, limit, dp=dp, concurrency=limit * dp))
    assert [f.severity for f in findings] == ([severity] if severity else [])
    if severity:
        assert findings[0].check == "validity.short_window" and "tpot_s_mean" in findings[0].metrics
        assert findings[0].evidence["requests_per_seat"] == pytest.approx(requests / (limit * dp))


def test_only_figures_of_a_window_can_be_of_a_short_one():
    assert said(window(198, 192, flags="warm_up")) == []


def test_seats_that_the_cache_has_no_room_for_do_not_count():
    assert seats(window(1024, 512)) == 512
    assert seats(window(1024, 512, batch_mean=100.0)) == 100
    assert seats(window(1024, 512, batch_mean=470.0)) == 512
    assert said(window(1024, 512, batch_mean=100.0)) == []
    assert seats(run(max_num_seqs=None, concurrency=None, batch_mean=None)) is None


@given(st.integers(1, 5000), st.integers(1, 500), st.integers(1, 8))
def test_more_requests_never_make_a_window_shorter(requests, limit, dp):
    def rank(n):
        found_now = said(window(n, limit, dp=dp))
        return {"fail": 2, "warn": 1}[found_now[0].severity] if found_now else 0

    assert rank(requests) >= rank(requests + 100)


@pytest.mark.parametrize(("requests", "speaks"), [(31, True), (32, False)])
def test_a_loop_of_one_round_is_a_burst(requests, speaks):
    assert ("validity.short_loop" in whats(said(run(num_requests=requests)))) is speaks
    assert "validity.short_loop" not in whats(said(run(num_requests=1, concurrency=1)))


# --- queues -----------------------------------------------------------------------------------------------------------


def test_ttft_that_is_mostly_waiting_is_labelled_and_no_alarm():
    """LSS-QUEUE: 87 to 100 % of the mean TTFT is queueing."""
    record = run(load="burst", num_requests=1000, ttft_s_mean=13.0, ttft_s_median=12.9)
    (finding,) = said(record)
    assert (finding.check, finding.severity) == ("validity.queueing", "note") and "overload" in finding.says
    alone = prompt_floor_s(case(record).setup)
    # 8.2 G parameters less the embedding read at 3.35 TB/s outlast 512 tokens at 989 Tflop/s: 4.5 ms and 7.8 ms
    assert 0.006 < alone < 0.009
    assert said(run(load="burst", num_requests=1000, ttft_s_mean=9 * alone)) == []
    assert said(run(ttft_s_mean=13.0)) == []  # clients of a loop wait for each other


def open_loop(duration, rate=10.0, requests=1000, **more):
    return run(
        **{"load": "open_loop", "request_rate_rps": rate, "num_requests": requests, "concurrency": None},
        **BARE | {"duration_s": duration, "ttft_s_mean": 0.05} | more,
    )


def test_a_queue_that_grew():
    """1000 requests at 10 per second arrive in 100 s; 200 s to serve them is 5 per second."""
    assert said(open_loop(108.0)) == []
    (finding,) = said(open_loop(200.0))
    assert (finding.check, finding.severity) == ("validity.behind", "warn") and "5 of 10 requests" in finding.says
    few = open_loop(8.0, requests=20)  # two seconds of arrivals, give or take, and the time that the last ones take
    assert whats(said(few)) == {"validity.behind"}
    assert found("validity", by_hand([case(few, simulated={}, floor={"e2e_s_mean": 3.0})])) == []


# --- the client as the limit ------------------------------------------------------------------------------------------

DEVICES = {"h100-pcie": 1.0, "h200-sxm": 2.4, "b200-sxm": 4.0, "mi300x": 2.6}


def curves(plateau, floor=9000.0, knee=4.0, loads=(1, 2, 4, 8, 16)):
    """Throughput of each device over the clients: linear up to `plateau(device)`, reached at `knee` clients."""
    return by_hand(
        case(
            run(run_id=f"{gpu}-{c}", gpu=gpu, concurrency=c, num_requests=10 * c,
                **BARE | {"output_tok_per_s": plateau(gpu) * min(1.0, c / knee)}),
            simulated={}, floor={"output_tok_per_s": floor * speed},
        )
        for gpu, speed in DEVICES.items() for c in loads
    )  # fmt: skip


def test_unlike_devices_that_stop_at_one_throughput():
    """CLIENT: 2.1 to 2.6 thousand tokens/s on H100 PCIe, H200, B200 and MI300X alike."""
    stops = dict(zip(DEVICES, (2100.0, 2600.0, 2500.0, 2300.0)))
    (finding,) = found("validity", curves(stops.get))
    assert (finding.check, finding.fault, finding.severity) == ("validity.same_plateau", "F9", "warn")
    assert len(finding.runs) == 4 and finding.evidence["floor_ratio"] == pytest.approx(4.0)


def test_plateaus_that_follow_the_devices_or_the_load_are_none():
    assert found("validity", curves(lambda gpu: 2100 * DEVICES[gpu])) == []
    assert found("validity", curves(lambda gpu: 2100.0, knee=16.0)) == []  # still rising with the load
    assert found("validity", curves(lambda gpu: 2100.0, floor=2500.0)) == []  # near what the slowest can do
    stops = dict(zip(DEVICES, (2100.0, 2700.0, 2500.0, 2300.0)))
    assert found("validity", curves(stops.get)) == []


# --- notes ------------------------------------------------------------------------------------------------------------


def test_what_is_not_recorded_is_a_note_and_no_alarm():
    findings = said(run(flags=None), run(num_requests=80, rel_noise=0.2))
    assert {f.check for f in findings} == {"validity.warm_up", "validity.noisy"}
    assert alarms(findings) == []
    notes = {f.check: f for f in findings}
    assert notes["validity.warm_up"].runs == ("r0",) and "unverified" in notes["validity.warm_up"].says


def test_runs_that_cannot_be_simulated_are_judged_by_what_they_state():
    lost = case(window(198, 192, model="no/such-model"))
    assert lost.setup is None
    assert "validity.short_window" in whats(found("validity", by_hand([lost])))
