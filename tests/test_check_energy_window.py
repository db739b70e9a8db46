"""Power over windows that sensors cannot see, of work that they missed, and values that are missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, numbered, predicted, run, whats

from calibration.records import METRICS
from validate.checks.energy_window import window_of

BARE = dict.fromkeys(METRICS)
ORIN = {"gpu": "orin-agx-64gb", "model": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "engine_version": "0.8.6"}


def said(*records):
    return found("energy_window", by_hand(numbered(records)))


def prefill(seconds, watts, flags="whole_run_power", **more):
    """One prompt on a Jetson, its rail sampled once a second."""
    facts = {"ttft_s_mean": seconds, "e2e_s_mean": seconds, "power_w": watts, "power_scope": "gpu_soc_rail"}
    one = {"load": "static_batch", "concurrency": 1, "num_requests": 1, "output_tok": 1, "flags": flags}
    return run(**ORIN | one | BARE | facts | more)


def test_the_clean_run_lasts_long_enough():
    assert said(run()) == []


def test_prefills_between_the_samples_of_a_sensor():
    """ER-POWER: 5.7 W for 0.38 s, 16 W for 1 s, 25 W for 3.5 s, where the same prefill draws 38.9 W when it is seen."""
    findings = said(prefill(0.375, 5.714), prefill(1.0, 15.88), prefill(3.512, 25.97), prefill(60.0, 38.9))
    short = findings[0]
    assert (short.check, short.fault, short.severity) == ("energy_window.short", "F9", "fail")
    assert short.runs == ("r0", "r1", "r2") and short.metrics == ("power_w",)
    assert short.evidence["window_s"] == 0.375 and "1 s" in short.advice
    assert whats(findings[1:]) == {"energy_window.whole_run"} and not findings[1].alarm


@pytest.mark.parametrize(("seconds", "speaks"), [(4.99, True), (5.0, False)])
def test_five_seconds_are_enough(seconds, speaks):
    assert ("energy_window.short" in whats(said(prefill(seconds, 30.0)))) is speaks


def test_repeats_are_part_of_the_window():
    assert "energy_window.short" in whats(said(prefill(2.6, 30.0)))
    assert "energy_window.short" not in whats(said(prefill(2.6, 30.0, flags="repetitions:2")))
    assert "energy_window.short" not in whats(said(prefill(0.05, 30.0, flags="repetitions:32")))
    assert "energy_window.short" in whats(said(prefill(0.05, 30.0, flags="repetitions:31")))
    assert "energy_window.short" not in whats(
        said(prefill(2.6, 30.0, rel_noise=0.02))
    )  # a spread between runs: two of them at least


@pytest.mark.parametrize(
    ("figures", "seconds"),
    [
        ({"duration_s": 12.0, "e2e_s_mean": 3.0}, 12.0),
        ({"load": "static_batch", "tpot_s_mean": 0.02, "ttft_s_mean": 0.1}, 0.1 + 499 * 0.02),
        ({"output_tok_per_s": 8000.0}, 10.0),
        ({"ttft_s_median": 0.5, "itl_s_median": 0.01}, 10 * (0.5 + 499 * 0.01)),
        ({"load": "burst", "flags": "steady_window", "output_tok_per_s": 8000.0}, (160 - 64) * 500 / 8000),
    ],
)
def test_a_window_is_found_by_what_is_known(figures, seconds):
    assert window_of(run(**BARE | {"power_w": 300.0} | figures)).seconds == pytest.approx(seconds)


def test_a_window_that_nothing_tells_is_unverified():
    (finding,) = said(run(**BARE | {"power_w": 300.0}))
    assert (finding.check, finding.alarm) == ("energy_window.unverified", False) and "unverified" in finding.says


@given(st.floats(0.001, 100), st.integers(1, 100))
def test_a_longer_or_more_often_repeated_window_is_never_worse(seconds, runs):
    def short(s, n):
        return "energy_window.short" in whats(said(prefill(s, 30.0, flags=f"repetitions:{n}")))

    assert short(seconds, runs) >= short(2 * seconds, runs)
    assert short(seconds, runs) >= short(seconds, runs + 1)


def busy(watts, **figures):
    """10 ms a step at 500 W simulated, on a device that idles at about 70 W."""
    facts = {"power_w": watts, "tpot_s_mean": 0.010, "duration_s": 52.9} | figures
    return case(run(**BARE | facts), simulated={"power_w": 500.0, "tpot_s_mean": 0.010, "duration_s": 52.9})


def test_power_near_idle_of_a_device_that_computes():
    idle_w = busy(1.0).setup.device.power.idle_w
    watts = idle_w + 0.2 * (500 - idle_w)
    (finding,) = found("energy_window", by_hand([busy(watts)]))
    assert (finding.check, finding.severity) == ("energy_window.missed", "warn")
    assert finding.evidence["share"] == pytest.approx(0.2)
    assert found("energy_window", by_hand([busy(idle_w + 0.35 * (500 - idle_w))])) == []
    slow = busy(watts, tpot_s_mean=0.020)  # twice the time at that power: 40 % of the energy
    assert found("energy_window", by_hand([slow])) == []


@pytest.mark.parametrize("figures", [{"power_w": 1e-3}, {"energy_j_per_output_tok": 1e-9, "output_tok_per_s": 1500.0}])
def test_an_energy_of_next_to_nothing_is_a_missing_value(figures):
    """ENERGY-0J."""
    record = run(**BARE | {"duration_s": 52.9} | figures)
    findings = [f for f in said(record) if f.check == "energy_window.no_value"]
    assert [(f.fault, f.severity, f.layer) for f in findings] == [("F5", "fail", "definitions")]


def test_runs_that_cannot_be_simulated_are_still_timed():
    lost = case(prefill(0.4, 5.7, model="no/such-model"))
    assert lost.setup is None
    assert "energy_window.short" in whats(found("energy_window", by_hand([lost])))


def test_the_simulated_power_of_a_run_is_power():
    shown = predicted([run()])
    own = case(shown.cases[0].simulated)
    assert found("energy_window", by_hand([own])) == []
