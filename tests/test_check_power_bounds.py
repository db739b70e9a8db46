"""B5: idle <= power <= limit, and energy in between."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, predicted, run, whats

from simulator.device import load_device
from validate.checks.power_bounds import IDLE_SCATTER, SENSOR_GAIN, seconds_per_token

POWER = load_device("h100-sxm").power
PER_TOKEN_S = seconds_per_token(run())


def alarms(**changes):
    return found("power_bounds", by_hand([case(run(**changes))]))


def test_a_clean_run_is_silent():
    assert alarms() == []


@pytest.mark.parametrize("devices", [1, 4])
def test_power_above_the_limit_of_all_devices(devices):
    split = {"n_gpus": devices, "tp": devices, "energy_j_per_output_tok": None}
    limit_w = devices * POWER.limit_w
    assert alarms(power_w=limit_w * (1.0 + SENSOR_GAIN) * 0.999, **split) == []
    [finding] = alarms(power_w=limit_w * (1.0 + SENSOR_GAIN) * 1.001, **split)
    assert (finding.check, finding.fault, finding.severity) == ("power_bounds.limit", "F3", "fail")
    assert finding.evidence["devices"] == devices and finding.metrics == ("power_w",)


def test_power_below_idle():
    edge = POWER.idle_w * (1.0 - IDLE_SCATTER)
    assert alarms(power_w=edge * 1.001, energy_j_per_output_tok=None) == []
    [finding] = alarms(power_w=edge * 0.999, energy_j_per_output_tok=None)
    assert finding.check == "power_bounds.idle" and "idle power of 1 device" in finding.says


def test_one_device_of_eight_was_summed():
    [finding] = alarms(n_gpus=8, tp=8, power_w=300.0, energy_j_per_output_tok=None)
    assert finding.check == "power_bounds.idle" and "fewer devices" in finding.advice


def test_a_cap_is_the_limit():
    assert alarms(power_mode="400W", power_w=410.0, energy_j_per_output_tok=None) == []
    [finding] = alarms(power_mode="400W", power_w=500.0, energy_j_per_output_tok=None)
    assert finding.evidence["bound"] == 400.0


@pytest.mark.parametrize(
    "scope, power_w, expected",
    [
        ("gpu_soc_rail", 5.0, set()),  # a rail may draw less than its board idles
        ("gpu_soc_rail", 800.0, {"power_bounds.limit"}),  # never more than its limit
        ("module", 5.0, {"power_bounds.idle"}),
        ("wall", 5.0, {"power_bounds.idle"}),
        ("wall", 1500.0, set()),  # the host is in it
        (None, 5.0, {"power_bounds.scope"}),  # not stated: a note
        (None, 800.0, {"power_bounds.scope", "power_bounds.limit"}),
    ],
)
def test_bounds_follow_the_scope(scope, power_w, expected):
    assert whats(alarms(power_scope=scope, power_w=power_w, energy_j_per_output_tok=None)) == expected


def test_an_unstated_scope_is_no_alarm():
    [note] = alarms(power_scope=None)
    assert not note.alarm and "unverified" in note.says
    assert alarms(power_scope=None, power_w=None, energy_j_per_output_tok=None) == []


def test_a_rail_has_the_idle_power_that_its_profile_measured():
    orin = run(
        gpu="orin-agx-64gb", model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B", power_mode="MAXN",
        power_scope="gpu_soc_rail", power_w=3.0, energy_j_per_output_tok=None, engine_version="0.8.6",
    )  # fmt: skip
    [finding] = [f for f in found("power_bounds", predicted([orin])) if f.evidence["side"] == "measured"]
    assert finding.check == "power_bounds.idle" and finding.evidence["bound"] == pytest.approx(5.517)


@pytest.mark.parametrize("factor, check", [(1.06, "energy_limit"), (1.04, ""), (0.95, ""), (0.88, "energy_idle")])
def test_energy_lies_between_idle_and_limit_times_time(factor, check):
    watts = POWER.idle_w if factor < 1.0 else POWER.limit_w
    findings = alarms(power_w=None, energy_j_per_output_tok=watts * factor * PER_TOKEN_S)
    assert whats(findings) == ({f"power_bounds.{check}"} if check else set())


def test_zero_is_no_energy():
    """ENERGY-0J: a counter that is not there was stored as 0."""
    [finding] = alarms(energy_j_per_output_tok=0.0)
    assert finding.confidence == "certain" and "missing is not zero" in finding.advice
    assert "F5" in finding.also and "no running device" in finding.says


def test_milliwatts_are_certain():
    [finding] = alarms(power_w=500e3, energy_j_per_output_tok=None)
    assert finding.confidence == "certain" and "milliwatts" in finding.advice


def test_both_sides_are_held_to_it():
    made = case(run(), simulated={"power_w": 900.0})
    [finding] = found("power_bounds", by_hand([made]))
    assert "this simulator's own" in finding.says and "internal error" in finding.advice
    [finding] = found("power_bounds", replace(by_hand([made]), own=False))
    assert finding.says.startswith("simulated power_w")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_odd_figures_never_raise(value):
    assert alarms(power_w=value, energy_j_per_output_tok=value, output_tok_per_s=value) == []


def test_unsupported_runs_are_passed_over():
    assert found("power_bounds", by_hand([case(run(input_tok=None, power_w=1e6))])) == []


def test_time_per_token_of_every_load():
    assert seconds_per_token(run()) == pytest.approx(52.9 / 80_000)
    assert seconds_per_token(run(output_tok_per_s=None)) == pytest.approx(52.9 / 80_000)
    static = run(output_tok_per_s=None, duration_s=None, load="static_batch", concurrency=4, e2e_s_mean=2.0)
    assert seconds_per_token(static) == pytest.approx(2.0 / 2000)
    assert seconds_per_token(run(output_tok_per_s=None, duration_s=None)) is None


@given(st.floats(POWER.idle_w, POWER.limit_w), st.integers(1, 8))
def test_whatever_lies_between_is_silent(power_w, devices):
    record = run(n_gpus=devices, dp=devices, concurrency=64, power_w=power_w * devices)
    per_token = power_w * devices * seconds_per_token(record)
    assert (
        found("power_bounds", by_hand([case(msgspec.structs.replace(record, energy_j_per_output_tok=per_token))])) == []
    )
