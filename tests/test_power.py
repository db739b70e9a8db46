"""Power meters: the arithmetic of windows as laws, and the instruments on a fake NVML, a fake amdsmi, a fake sysfs."""

from __future__ import annotations

import gc
import inspect
import itertools
import signal
import subprocess
import sys
import threading
from enum import IntEnum

import msgspec
import numpy as np
import pynvml
import pytest
from fake_nvml import MODULE_SCOPE, FakeClock, FakeGpu, FakeNvml
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.collect.power import (
    Nothing,
    PowerWindow,
    find_meter,
    idle_power_w,
    jetson_facts,
    measure_idle,
    measured,
    nvml_facts,
)
from calibration.collect.power import sampler as sampler_module
from calibration.collect.power.amd import AmdInstrument
from calibration.collect.power.energy import (
    Counter,
    Counters,
    Mark,
    Reading,
    Sample,
    clock_ranges,
    counter_energy_j,
    longest_gap_s,
    time_weighted_mean,
)
from calibration.collect.power.jetson import JetsonInstrument, find_rails, power_mode
from calibration.collect.power.judge import judge_window
from calibration.collect.power.nothing import Unavailable
from calibration.collect.power.nvml import NvmlInstrument
from calibration.collect.power.sampler import Sampler, SamplingMeter
from calibration.collect.power.sensors import FASTEST_PERIOD_S, NVIDIA_SENSORS, Sensor, nvidia_sensor
from calibration.collect.power.throttle import labelling, nvml_words, rejecting
from calibration.collect.power.visible import CUDA, HIP, physical
from simulator.errors import UserError

ENERGY, FIELDS, USAGE = "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"
EVENTS, THROTTLE = "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
SENSOR = Sensor(0.1, 0.1, 1.0, "test")
NO_COUNTER = Counters({}, "no counter")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def nvml_of(monkeypatch, clock):
    """A meter on fake GPUs: `nvml_of(FakeGpu(...), ...)`; the fake stands where pynvml is imported."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def build(*gpus: FakeGpu, devices=None, environ=None, **meter) -> SamplingMeter:
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*gpus))
        instrument = NvmlInstrument(range(len(gpus)) if devices is None else devices, environ or {})
        return SamplingMeter(instrument, make_sampler=clock.sampler, **meter)

    return build


def window_of(meter: SamplingMeter, clock: FakeClock, seconds: float = 10.0) -> PowerWindow:
    with measured(meter) as result:
        clock.run(seconds)
    return result.window


# --- arithmetic -------------------------------------------------------------------------------------------------------

times = st.lists(st.floats(0, 100), min_size=1, max_size=30, unique=True).map(sorted)


@given(times, st.floats(1, 1000), st.floats(0, 50), st.floats(0.1, 50))
def test_the_mean_of_constant_power_is_that_power(at, watts, start, length):
    assert time_weighted_mean(at, [watts] * len(at), start, start + length) == pytest.approx(watts)


@given(times, st.data())
def test_means_lie_within_the_samples_and_energies_of_parts_add_up(at, data):
    watts = data.draw(st.lists(st.floats(0, 1000), min_size=len(at), max_size=len(at)))
    first, second, third = 5.0, data.draw(st.floats(6, 94)), 95.0
    mean = time_weighted_mean(at, watts, first, third)
    assert min(watts) - 1e-6 <= mean <= max(watts) + 1e-6
    parts = [time_weighted_mean(at, watts, a, b) * (b - a) for a, b in ((first, second), (second, third))]
    assert sum(parts) == pytest.approx(mean * (third - first), abs=1e-6)


def test_a_burst_of_readings_weighs_only_its_time():
    at = [*np.linspace(0, 1, 500), 2.0, 3.0, 4.0]
    watts = [500.0] * 500 + [100.0] * 3
    assert np.mean(watts) > 490
    assert time_weighted_mean(at, watts, 0, 4) == pytest.approx((500 + 300 + 200) / 4)


def test_a_mean_without_samples_or_time_is_refused():
    for at, watts, end in (([], [], 1.0), ([0.5], [1.0], 0.0)):
        with pytest.raises(ValueError, match="at least one sample"):
            time_weighted_mean(at, watts, 0.0, end)


@pytest.mark.parametrize(("at", "gap"), [([], 10), ([5.0], 5), ([0, 3, 4, 10], 6), ([-5, 12], 10), ([1, 2], 8)])
def test_longest_gap(at, gap):
    assert longest_gap_s(at, 0.0, 10.0) == gap


@given(st.integers(0, 2**33), st.integers(1, 2**33))
def test_a_counter_that_counts_on_gives_its_difference(start, ticks):
    joules, reason = counter_energy_j(Counter(start, 1e-3), Counter(start + ticks, 1e-3), None)
    assert joules == pytest.approx(ticks * 1e-3)
    assert reason is None


@given(st.sampled_from([32, 64]), st.integers(1, 10**7), st.floats(0, 1), st.floats(0.85, 1.15))
def test_a_wrapped_counter_gives_the_energy_that_the_samples_confirm(bits, ticks, share, error):
    start = (1 << bits) - 1 - int(share * (ticks - 1))
    end = (start + ticks) % (1 << bits)
    assert end < start
    joules, reason = counter_energy_j(Counter(start, 1e-3), Counter(end, 1e-3), ticks * 1e-3 * error)
    assert (joules, reason) == (pytest.approx(ticks * 1e-3), None)


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.one_of(st.none(), st.floats(1, 1e4)))
def test_a_counter_that_went_back_is_never_a_number_that_nothing_confirms(start, back, expected):
    joules, reason = counter_energy_j(Counter(start + back, 1e-3), Counter(start, 1e-3), expected)
    if joules is None:
        assert "went back" in reason
    else:
        assert expected is not None
        assert joules == pytest.approx(expected, rel=0.2)


def test_a_counter_that_was_past_32_bits_cannot_have_wrapped_there():
    ticks = (1 << 32) - 1000
    start, end = Counter(1 << 33, 1e-3), Counter((1 << 33) - 1000, 1e-3)
    assert counter_energy_j(start, end, ticks * 1e-3)[0] is None


def test_a_counter_that_stands_still_is_not_zero_joules():
    assert counter_energy_j(Counter(5, 1e-3), Counter(5, 1e-3), 100.0) == (None, "the energy counter stood still")


def mark(at, ticks=None):
    return Mark(at, NO_COUNTER if ticks is None else Counters({"gpu0": Counter(ticks, 1e-3)}))


def sample(at, watts, **more):
    return Sample(at_s=at, power_w=watts, parts_w={} if watts is None else {"gpu0": watts}, **more)


@settings(deadline=None, max_examples=50)
@given(st.floats(1, 1500), st.floats(5, 600), st.integers(1, 4))
def test_energy_is_power_times_time_by_either_method(watts, seconds, gpus):
    at = np.linspace(0, seconds, 60)
    samples = [Sample(at_s=t, power_w=gpus * watts, parts_w={f"gpu{i}": watts for i in range(gpus)}) for t in at]
    by_samples = judge_window(mark(0), mark(seconds), samples, SENSOR)
    assert (by_samples.method, by_samples.reason) == ("mean of samples", None)
    assert by_samples.energy_j == pytest.approx(gpus * watts * seconds)
    ends = [
        Mark(t, Counters({f"gpu{i}": Counter(7 + round(watts * t * 1e6), 1e-6) for i in range(gpus)}))
        for t in (0.0, seconds)
    ]
    by_counter = judge_window(*ends, samples, SENSOR)
    assert (by_counter.method, by_counter.notes) == ("energy counter", ())
    assert by_counter.energy_j == pytest.approx(by_samples.energy_j, rel=1e-5)
    assert by_counter.mean_power_w * seconds == pytest.approx(by_counter.energy_j)
    assert by_counter.parts_w == {f"gpu{i}": pytest.approx(watts) for i in range(gpus)}


def test_counter_and_samples_agree_on_a_noisy_trace():
    rng = np.random.default_rng(7)
    at = np.sort(rng.uniform(0, 30, 300))
    watts = 400 + rng.normal(0, 20, at.size)
    samples = [sample(t, w) for t, w in zip(at, watts)]
    window = judge_window(mark(0, 10**6), mark(30, 10**6 + 400 * 30 * 1000), samples, SENSOR)
    assert (window.method, window.energy_j, window.notes) == ("energy counter", 12_000, ())
    assert window.sampled_j == pytest.approx(12_000, rel=0.01)


@pytest.mark.parametrize(("gain", "method", "label"), [
    (1.04, "energy counter", None),
    (1.30, "energy counter", "differ by 30%"),
    (0.75, "energy counter", "differ by 25%"),
    (10.0, "mean of samples", "cannot be right"),
    (0.03, "mean of samples", "cannot be right"),
])  # fmt: skip
def test_two_views_that_disagree_are_said_to(gain, method, label):
    samples = [sample(t, 300.0) for t in range(11)]
    window = judge_window(mark(0, 1), mark(10, 1 + round(gain * 3_000_000)), samples, SENSOR)
    assert window.method == method
    assert window.energy_j == pytest.approx(3000 * (gain if method == "energy counter" else 1))
    assert [label in note for note in window.notes] == ([True] if label else [])
    assert (window.counter_j, window.sampled_j) == (pytest.approx(3000 * gain), pytest.approx(3000))


def test_a_short_window_has_no_number_but_keeps_what_was_read():
    samples = [sample(t / 10, 300.0) for t in range(21)]
    window = judge_window(mark(0, 1), mark(2, 600_001), samples, SENSOR)
    assert (window.energy_j, window.mean_power_w, window.method) == (None, None, "none")
    assert window.reason == "the window of 2 s is shorter than the 5 s that a sensor needs"
    assert len(window.samples) == 21
    assert (window.counter_j, window.sampled_j) == (600.0, pytest.approx(600.0))


def test_a_sensor_that_sees_part_of_the_time_labels_its_mean():
    samples = [sample(t / 10, 300.0) for t in range(101)]
    blind = Sensor(0.1, 0.025, 0.25, "test")
    window = judge_window(mark(0), mark(10), samples, blind)
    assert window.notes == ("no counter", "the sensor sees 25% of the time: the mean holds for a steady load")
    counted = judge_window(mark(0, 1), mark(10, 3_000_001), samples, blind)
    assert counted.notes == ()  # the counter misses nothing


def test_a_load_that_is_not_steady_is_labelled():
    samples = [sample(t / 10, 300.0 if t < 50 else 400.0) for t in range(101)]
    window = judge_window(mark(0), mark(10), samples, SENSOR)
    assert window.energy_j == pytest.approx(3500, rel=0.01)
    assert any(note.startswith("not steady: 30") for note in window.notes)


def test_readings_that_cover_the_time_before_the_window_are_left_out():
    samples = [sample(t / 10, 100.0 if t < 10 else 300.0) for t in range(61)]
    averaged = judge_window(mark(0), mark(6), samples, Sensor(0.1, 1.0, 1.0, "test"))
    assert averaged.energy_j == pytest.approx(1800)
    assert judge_window(mark(0), mark(6), samples, SENSOR).energy_j < 1750


def test_failed_readings_are_counted_and_a_long_gap_refuses_the_samples():
    some = [sample(t / 10, 300.0 if t % 7 else None, failure=None if t % 7 else "Timeout") for t in range(101)]
    window = judge_window(mark(0), mark(10), some, SENSOR)
    assert window.energy_j == pytest.approx(3000)
    assert "15 of 101 readings failed: Timeout" in window.notes
    half = [sample(t / 10, 300.0 if t < 50 else None, failure=None if t < 50 else "GPU is lost") for t in range(101)]
    window = judge_window(mark(0), mark(10), half, SENSOR)
    assert (window.energy_j, window.method) == (None, "none")
    assert window.reason == "no counter; no reading of power for 5.1 of 10 s: GPU is lost"


def test_zero_watts_are_no_measurement():
    window = judge_window(mark(0), mark(10), [sample(t, 0.0) for t in range(11)], SENSOR)
    assert window.energy_j is None
    assert "0 W, which nothing that runs draws" in window.reason


def test_power_below_the_idle_baseline_is_labelled():
    samples = [sample(t, 50.0) for t in range(11)]
    assert judge_window(mark(0), mark(10), samples, SENSOR, idle_power_w=51.0).notes == ("no counter",)
    low = judge_window(mark(0), mark(10), samples, SENSOR, idle_power_w=70.0)
    assert low.notes[-1] == "mean power of 50 W is below the idle baseline of 70 W"
    assert low.idle_power_w == 70.0


def test_clocks_are_least_and_median_and_temperature_the_highest():
    samples = [
        sample(t, 300.0, clocks_hz={"sm": hz, "memory": 2e9}, temperature_c=c)
        for t, (hz, c) in enumerate([(1.7e9, 50), (1.2e9, 55), (1.8e9, 61), (1.75e9, 60), (1.7e9, None), (1.7e9, 58)])
    ]
    window = judge_window(mark(0), mark(5), samples, SENSOR)
    assert window.clocks_hz == {"sm": (1.2e9, 1.7e9), "memory": (2e9, 2e9)}
    assert window.temperature_c == 61
    assert clock_ranges([sample(0, 300.0)]) == {}


def test_what_was_seen_outside_the_window_does_not_count():
    before = sample(-1, 300.0, throttle=("hardware slowdown",), temperature_c=90, clocks_hz={"sm": 1e8})
    inside = [sample(t, 300.0, throttle=("idle",), temperature_c=60, clocks_hz={"sm": 1e9}) for t in range(7)]
    after = sample(7, 300.0, throttle=("sync boost",), temperature_c=91, clocks_hz={"sm": 1e8})
    window = judge_window(mark(0), mark(6), [before, *inside, after], SENSOR)
    assert (window.throttle_reasons, window.temperature_c) == (("idle",), 60)
    assert window.clocks_hz == {"sm": (1e9, 1e9)}
    assert len(window.samples) == 9


def test_a_window_survives_json():
    window = judge_window(
        mark(0, 5), mark(6, 1_800_005), [sample(t, 300.0, throttle=("idle",)) for t in range(7)], SENSOR
    )
    assert msgspec.json.decode(msgspec.json.encode(window), type=PowerWindow) == window


# --- throttling -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 0x3FF))
def test_throttle_bits_become_words_and_the_right_ones_reject(bits):
    words = nvml_words(bits)
    assert len(words) == bits.bit_count()
    assert bool(rejecting(words)) == bool(bits & (0x8 | 0x20 | 0x40 | 0x80))
    assert bool(labelling(words)) == bool(bits & (0x2 | 0x4 | 0x10 | 0x100 | 0x200))
    assert not set(rejecting(words)) & set(labelling(words))


@given(st.lists(st.integers(0, 0xFFF), min_size=1, max_size=6))
def test_words_of_or_ed_bits_are_the_union_of_words(masks):
    together = 0
    for mask in masks:
        together |= mask
    assert set(nvml_words(together)) == {word for mask in masks for word in nvml_words(mask)}


def test_bits_are_those_of_nvml_and_unknown_ones_label():
    bits = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown | 1 << 40
    words = nvml_words(bits)
    assert words == ("software power cap", "hardware thermal slowdown", "unknown reason 0x10000000000")
    assert rejecting(words) == ("hardware thermal slowdown",)
    assert labelling(words) == ("software power cap", "unknown reason 0x10000000000")


# --- the fake is as the real one --------------------------------------------------------------------------------------


def test_the_fake_has_the_call_surface_of_pynvml():
    faked = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert len(faked) > 20
    for name in faked:
        real = inspect.signature(getattr(pynvml, name))
        fake = [p for p in inspect.signature(getattr(FakeNvml, name)).parameters if p != "self"]
        needed = [p.name for p in real.parameters.values() if p.default is p.empty]
        if needed != ["args", "kwargs"]:  # a decorator hides some signatures
            assert len(fake) == len(needed), name


def test_constants_are_those_of_pynvml():
    from calibration.collect.power import nvml

    assert (nvml.POWER_AVERAGE, nvml.POWER_INSTANT) == (
        pynvml.NVML_FI_DEV_POWER_AVERAGE,
        pynvml.NVML_FI_DEV_POWER_INSTANT,
    )
    assert nvml.CLOCKS == {"sm": pynvml.NVML_CLOCK_SM, "memory": pynvml.NVML_CLOCK_MEM}
    assert pynvml.NVML_TEMPERATURE_GPU == nvml.TEMPERATURE_SENSOR
    members = [name for name, _ in pynvml.c_nvmlValue_t._fields_]
    assert set(nvml._MEMBERS) == set(members)
    assert nvml._MEMBERS[pynvml.NVML_VALUE_TYPE_UNSIGNED_INT] == "uiVal"
    assert nvml._MEMBERS[pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG] == "ullVal"


# --- NVML -------------------------------------------------------------------------------------------------------------


def test_one_gpu_by_its_counter(nvml_of, clock):
    meter = nvml_of(FakeGpu(clock))
    window = window_of(meter, clock, 10.0)
    assert (meter.name, meter.scope) == ("nvml", "board")
    assert (window.method, window.reason, window.notes) == ("energy counter", None, ())
    assert window.seconds == pytest.approx(10.0)
    assert window.energy_j == pytest.approx(3000, rel=0.02)
    assert window.mean_power_w == pytest.approx(300, rel=0.02)
    assert window.clocks_hz == {"sm": (1.755e9, 1.755e9), "memory": (2.619e9, 2.619e9)}
    assert (window.temperature_c, window.throttle_reasons) == (61, ())
    assert len(window.samples) == pytest.approx(102, abs=1)
    assert all(s.power_w == s.instant_w == 300.0 for s in window.samples)


def test_the_counter_is_read_once_at_each_end(nvml_of, clock):
    meter = nvml_of(FakeGpu(clock))
    before = meter.instrument.nvml.calls.count(ENERGY)
    window_of(meter, clock, 10.0)
    assert meter.instrument.nvml.calls.count(ENERGY) - before == 2


def test_several_gpus_are_summed(nvml_of, clock):
    gpus = [FakeGpu(clock, power_w=lambda t, w=w: w, sm_mhz=lambda t, w=w: int(w)) for w in (200.0, 300.0, 450.0)]
    window = window_of(nvml_of(*gpus), clock)
    assert window.energy_j == pytest.approx(9500, rel=0.02)
    assert window.parts_w == {"gpu0": pytest.approx(200), "gpu1": pytest.approx(300), "gpu2": pytest.approx(450)}
    assert window.clocks_hz["sm"] == (200e6, 200e6)  # the slowest holds the others up


def test_one_gpu_without_a_reading_leaves_no_partial_sum(nvml_of, clock):
    no_counter = window_of(nvml_of(FakeGpu(clock), FakeGpu(clock, refuse={ENERGY})), clock)
    assert (no_counter.method, no_counter.energy_j) == ("mean of samples", pytest.approx(6000))
    assert no_counter.notes == (f"gpu1: {ENERGY}: Not Supported",)
    no_power = window_of(nvml_of(FakeGpu(clock), FakeGpu(clock, refuse={FIELDS, USAGE})), clock)
    assert (no_power.method, no_power.energy_j) == ("energy counter", pytest.approx(6000, rel=0.02))
    assert no_power.notes == (f"no samples to check it with: gpu1: {USAGE}: Not Supported",)
    with pytest.raises(Unavailable, match=f"NVML: gpu1: {USAGE}: Not Supported; gpu0: {ENERGY}: Not Supported"):
        nvml_of(FakeGpu(clock, refuse={ENERGY}), FakeGpu(clock, refuse={FIELDS, USAGE}))


CALLS = sorted(name for name in vars(FakeNvml) if name.startswith("nvmlDeviceGet") and "Handle" not in name)
REFUSABLE = [name for name in CALLS if name not in ("nvmlDeviceGetCount", "nvmlDeviceGetName", "nvmlDeviceGetUUID")]


@pytest.mark.parametrize("refused", REFUSABLE)
def test_a_call_that_is_not_supported_leaves_a_gap_and_no_zero(nvml_of, clock, refused):
    meter = nvml_of(FakeGpu(clock, refuse={refused}))
    window = window_of(meter, clock)
    assert window.energy_j == pytest.approx(3000, rel=0.02)
    assert window.method == ("mean of samples" if refused == ENERGY else "energy counter")
    assert all(s.power_w for s in window.samples)
    assert (window.clocks_hz == {}) == (refused == "nvmlDeviceGetClockInfo")
    facts = nvml_facts(0, {})
    gaps = [name for name, value in facts.items() if value is None]
    assert set(gaps) <= set(facts["not_known"])
    assert all("Not Supported" in reason for reason in facts["not_known"].values())


@given(st.sets(st.sampled_from(REFUSABLE)))
@settings(deadline=None, max_examples=40)
def test_whatever_is_refused_energy_is_right_or_absent_with_a_reason(refused):
    clock = FakeClock()
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeNvml(FakeGpu(clock, refuse=set(refused)))
        patch.setitem(sys.modules, "pynvml", fake)
        try:
            meter = SamplingMeter(NvmlInstrument([0], {}), make_sampler=clock.sampler)
        except Unavailable as error:
            assert refused >= {ENERGY, FIELDS, USAGE}
            assert str(error) == f"NVML: gpu0: {USAGE}: Not Supported; gpu0: {ENERGY}: Not Supported"
        else:
            assert window_of(meter, clock).energy_j == pytest.approx(3000, rel=0.02)
            meter.close()
        assert fake.users == 0


@pytest.mark.parametrize(("refuse", "scope", "averaged", "expected_scope"), [
    (set(), 0, True, "board"),
    ({"field 185"}, 0, False, "board"),
    ({FIELDS}, 0, True, "board"),  # PowerUsage of a Hopper is an average
    (set(), MODULE_SCOPE, True, "module"),
])  # fmt: skip
def test_the_best_power_reading_that_answers_is_used(nvml_of, clock, refuse, scope, averaged, expected_scope):
    meter = nvml_of(FakeGpu(clock, refuse={ENERGY, *refuse}, scope=scope))
    (gpu,) = meter.instrument.gpus
    assert (gpu.averaged, meter.scope) == (averaged, expected_scope)
    assert (gpu.instant is not None) == (averaged and FIELDS not in refuse)
    window = window_of(meter, clock)
    assert window.energy_j == pytest.approx(3000)
    assert ("the sensor sees 25% of the time: the mean holds for a steady load" in window.notes) == (not averaged)


def test_a_power_field_that_says_zero_is_not_used(nvml_of, clock):
    window = window_of(nvml_of(FakeGpu(clock, zero_fields=True, refuse={ENERGY})), clock)
    assert (window.energy_j, window.samples[0].instant_w) == (pytest.approx(3000), None)
    with pytest.raises(Unavailable, match=USAGE):
        nvml_of(FakeGpu(clock, zero_fields=True, refuse={ENERGY, USAGE}))


def test_a_window_that_starts_from_idle_is_not_pulled_down_by_the_averaged_field(nvml_of, clock):
    begin_s = clock() + 20
    meter = nvml_of(FakeGpu(clock, power_w=lambda t: 500.0 if t >= begin_s else 70.0, refuse={ENERGY}))
    clock.run(20)
    window = window_of(meter, clock, 6.0)
    assert window.samples[0].power_w == pytest.approx(70, rel=0.05)
    assert window.energy_j == pytest.approx(3000, rel=0.01)


@settings(deadline=None, max_examples=15)
@given(st.floats(60, 200), st.floats(250, 700), st.floats(0.3, 3.0), st.floats(5, 12))
def test_counter_and_samples_agree_on_any_square_wave_that_the_average_sees(low, high, period, seconds):
    clock = FakeClock()
    with pytest.MonkeyPatch.context() as patch:
        gpu = FakeGpu(clock, power_w=lambda t: high if (t / period) % 1 < 0.5 else low)
        patch.setitem(sys.modules, "pynvml", FakeNvml(gpu))
        meter = SamplingMeter(NvmlInstrument([0], {}), make_sampler=clock.sampler)
        clock.run(2.0)
        window = window_of(meter, clock, seconds)
    true_j = gpu.used_j(window.end_s) - gpu.used_j(window.start_s)
    assert window.energy_j == pytest.approx(true_j, abs=0.12 * high)  # a tick of the counter
    # The second that the average needs to settle is taken to be as the rest: off by half a period of the wave at most.
    assert window.sampled_j == pytest.approx(true_j, abs=(1.0 + period) * (high - low))


def test_a_counter_of_32_bits_wraps_within_the_window(nvml_of, clock):
    window = window_of(nvml_of(FakeGpu(clock, counter_j=2**32 / 1e3 - 1000, counter_bits=32)), clock)
    assert (window.method, window.energy_j) == ("energy counter", pytest.approx(3000, rel=0.02))


def test_a_driver_that_is_reloaded_in_the_window_leaves_the_samples(nvml_of, clock):
    window = window_of(nvml_of(FakeGpu(clock, reset_s=clock() + 4)), clock)
    assert (window.method, window.energy_j, window.counter_j) == ("mean of samples", pytest.approx(3000), None)
    assert "gpu0: the energy counter went back (the driver was reloaded, or it wrapped)" in window.notes


@pytest.mark.parametrize(("at", "words"), [(50_000.0, "stood still"), (0.0, "stands at 0")])
def test_a_dead_counter_is_not_zero_joules(nvml_of, clock, at, words):
    window = window_of(nvml_of(FakeGpu(clock, counter_gain=0.0, counter_j=at)), clock)
    assert (window.method, window.energy_j) == ("mean of samples", pytest.approx(3000))
    assert any(words in note for note in window.notes)


@pytest.mark.parametrize("refuse", [set(), {EVENTS}])
def test_throttling_is_gathered_over_the_window(nvml_of, clock, refuse):
    begin_s = clock()

    def bits(at_s):
        return 0x4 | (0x40 if 3.0 < at_s - begin_s < 3.2 else 0) | (0x8 if at_s < begin_s else 0)

    window = window_of(nvml_of(FakeGpu(clock, throttle=bits, refuse=refuse), FakeGpu(clock)), clock)
    assert window.throttle_reasons == ("software power cap", "hardware thermal slowdown")
    assert (window.rejects, window.labels) == (("hardware thermal slowdown",), ("software power cap",))
    assert window.energy_j is not None  # the number stands; the point does not


def test_throttling_that_cannot_be_asked_is_not_no_throttling(nvml_of, clock):
    window = window_of(nvml_of(FakeGpu(clock, refuse={EVENTS, THROTTLE})), clock)
    assert window.notes == (f"whether gpu0 throttles is not known: {EVENTS}: Not Supported",)


def test_temperature_by_the_older_call(nvml_of, clock):
    assert (
        window_of(nvml_of(FakeGpu(clock, refuse={"nvmlDeviceGetTemperatureV"}, celsius=44)), clock).temperature_c == 44
    )


def test_a_gpu_that_stops_answering(nvml_of, clock):
    gpu = FakeGpu(clock)
    meter = nvml_of(gpu)
    with measured(meter) as result:
        clock.run(6.0)
        gpu.refuse |= set(REFUSABLE)
        clock.run(6.0)
    window = result.window
    assert (window.energy_j, window.method) == (None, "none")
    assert f"gpu0: {ENERGY}: Not Supported" in window.reason
    assert "no reading of power for 6" in window.reason
    assert 50 < sum(s.power_w is not None for s in window.samples) < 70


def test_idle_is_measured_before_and_kept_with_later_windows(nvml_of, clock):
    begin_s = clock()
    meter = nvml_of(FakeGpu(clock, power_w=lambda t: 80.0 if t < begin_s + 11 else 400.0))
    assert meter.idle_power_w is None
    assert idle_power_w(meter, 10.0, pause=clock.run) == pytest.approx(80, rel=0.02)
    clock.run(3.0)
    window = window_of(meter, clock)
    assert window.idle_power_w == meter.idle_power_w == pytest.approx(80, rel=0.02)
    assert window.mean_power_w == pytest.approx(400, rel=0.02)
    short = measure_idle(meter, 1.0, pause=clock.run)
    assert (short.mean_power_w, short.idle_power_w, meter.idle_power_w) == (None, None, None)
    assert "shorter than the 5 s" in short.reason


def test_what_speaks_against_the_idle_baseline_goes_with_every_window(nvml_of, clock):
    begin_s = clock()
    gpu = FakeGpu(clock, power_w=lambda t: 300.0 if 8.0 < t - begin_s < 9.5 else 80.0)
    meter = nvml_of(gpu)
    measure_idle(meter, 1.0, pause=clock.run)
    assert window_of(meter, clock, 5.0).notes[0].startswith("idle baseline: the window of 1 s is shorter")
    measure_idle(meter, 6.0, pause=clock.run)  # somebody used the GPU meanwhile
    assert meter.idle_power_w > 100
    assert any(note.startswith("idle baseline: not steady: ") for note in window_of(meter, clock).notes)
    measure_idle(meter, 6.0, pause=clock.run)
    assert meter.idle_doubt is None and window_of(meter, clock).notes == ()


def test_a_split_gpu_and_gpus_of_several_kinds_are_labelled(nvml_of, clock):
    split = nvml_of(FakeGpu(clock, mig=True)).instrument
    assert split.notes == ("gpu0 is split by MIG: power is that of the whole GPU",)
    mixed = (FakeGpu(clock), FakeGpu(clock, name="NVIDIA L4", uuid="GPU-22222222-bbbb", capability=(8, 9)))
    assert "CUDA_DEVICE_ORDER" in nvml_of(*mixed, devices=[0]).instrument.notes[0]
    assert nvml_of(*mixed, devices=[0], environ={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).instrument.notes == ()
    assert nvml_of(*mixed, devices=["GPU-22222222-bbbb"]).instrument.notes == ()


def test_a_part_of_a_split_gpu_has_the_power_of_the_whole_and_says_so(nvml_of, clock):
    part = "MIG-5c0d5e6b-0000-1111-2222-333344445555"
    gpus = FakeGpu(clock, power_w=lambda t: 100.0), FakeGpu(clock, uuid="GPU-2222-bbbb", mig=True, parts=(part,))
    environ = {"CUDA_VISIBLE_DEVICES": part}
    meter = nvml_of(*gpus, devices=[0], environ=environ)
    assert meter.instrument.notes == ("gpu0 is split by MIG: power is that of the whole GPU",)
    assert window_of(meter, clock).parts_w == {"gpu0": pytest.approx(300)}
    facts = nvml_facts(0, environ)
    assert facts["mig"] is True and facts["compute_capability"] == "9.0" and facts["energy_counter"] is True


# --- which GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("devices", "environ", "expected"), [
    ([0], {}, [("gpu0", 0)]),
    ([1, 0], {"CUDA_VISIBLE_DEVICES": "2, 3"}, [("gpu1", 3), ("gpu0", 2)]),
    ([0], {"CUDA_VISIBLE_DEVICES": "GPU-ab,1"}, [("gpu0", "GPU-ab")]),
    (["GPU-cd"], {"CUDA_VISIBLE_DEVICES": "1"}, [("gpuGPU-cd", "GPU-cd")]),
])  # fmt: skip
def test_gpu_numbers_are_those_of_the_program(devices, environ, expected):
    assert physical(devices, CUDA, environ) == expected


def test_hip_goes_before_cuda():
    assert physical([0], HIP, {"HIP_VISIBLE_DEVICES": "5", "CUDA_VISIBLE_DEVICES": "4"}) == [("gpu0", 5)]
    assert physical([0], HIP, {"CUDA_VISIBLE_DEVICES": "4"}) == [("gpu0", 4)]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=8), st.integers(0, 9))
def test_the_list_of_visible_gpus_ends_at_the_first_that_is_none(shown, number):
    environ = {"CUDA_VISIBLE_DEVICES": ",".join([*map(str, shown), "-1", "0", "1"])}
    if number < len(shown):
        assert physical([number], CUDA, environ) == [(f"gpu{number}", shown[number])]
    else:
        with pytest.raises(UserError, match=f"shows {len(shown)}"):
            physical([number], CUDA, environ)


def test_power_is_that_of_the_visible_gpu(nvml_of, clock):
    gpus = [FakeGpu(clock, power_w=lambda t, w=w: w, uuid=f"GPU-{w:.0f}-aaaa") for w in (100.0, 200.0, 300.0)]
    for environ, watts in (
        ({}, 100),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, 300),
        ({"CUDA_VISIBLE_DEVICES": "GPU-200"}, 200),
    ):
        window = window_of(nvml_of(*gpus, devices=[0], environ=environ), clock)
        assert window.parts_w == {"gpu0": pytest.approx(watts)}


def test_a_gpu_that_is_not_there_is_the_users_mistake(nvml_of, clock):
    for device, words in ((3, "there is no GPU 3: NVML knows 1"), ("GPU-99", "GPU 'GPU-99' cannot be opened")):
        with pytest.raises(UserError, match=words):
            nvml_of(FakeGpu(clock), devices=[device])
        assert sys.modules["pynvml"].users == 0
    with pytest.raises(Unavailable, match="CUDA_VISIBLE_DEVICES='' shows no GPU"):
        nvml_of(FakeGpu(clock), environ={"CUDA_VISIBLE_DEVICES": ""})


# --- sensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "capability", "averaged", "expected"), [
    ("Tesla V100-SXM2-32GB", (7, 0), False, (0.02, 0.01, 0.5)),
    ("Tesla T4", (7, 5), False, (0.1, 0.1, 1.0)),
    ("NVIDIA A100-SXM4-80GB", (8, 0), False, (0.1, 0.025, 0.25)),
    ("NVIDIA GeForce RTX 3090", (8, 6), False, (0.1, 0.1, 1.0)),
    ("NVIDIA L4", (8, 9), True, (0.1, 1.0, 1.0)),
    ("NVIDIA H100 PCIe", (9, 0), False, (0.1, 0.025, 0.25)),
    ("NVIDIA H100 PCIe", (9, 0), True, (0.1, 1.0, 1.0)),
    ("NVIDIA GH200 480GB", (9, 0), False, (0.1, 0.02, 0.2)),
    ("NVIDIA B200", (10, 0), True, (0.1, 1.0, 1.0)),
    ("something", None, False, (0.1, 0.1, None)),
    ("something", (8, 0), True, (0.1, 1.0, None)),
])  # fmt: skip
def test_sensors_by_part(name, capability, averaged, expected):
    sensor = nvidia_sensor(name, capability, averaged)
    assert (sensor.update_s, sensor.averaging_s, sensor.observed) == expected
    assert sensor.source


def test_the_table_of_sensors_is_sound():
    keys = [(first, averaged) for first, averaged, _ in NVIDIA_SENSORS]
    assert len(set(keys)) == len(keys)
    for _, averaged, sensor in NVIDIA_SENSORS:
        assert sensor.period_s >= max(FASTEST_PERIOD_S, sensor.update_s)
        assert sensor.observed is None or sensor.observed == min(1.0, sensor.averaging_s / sensor.update_s)
        assert averaged == (sensor.averaging_s >= 1.0)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_for_provenance(nvml_of, clock):
    nvml_of(FakeGpu(clock))
    assert nvml_facts(0, {}) == {
        "driver_version": "580.65.06", "cuda_driver_version": "13.0", "name": "NVIDIA H100 80GB HBM3",
        "uuid": "GPU-11111111-aaaa", "vbios": "96.00.74.00.01", "compute_capability": "9.0", "power_limit_w": 650.0,
        "default_power_limit_w": 700.0, "persistence_mode": True, "ecc": True, "mig": False, "max_sm_clock_hz": 1.98e9,
        "max_memory_clock_hz": 2.619e9, "application_sm_clock_hz": 1.98e9, "power_scope": "board",
        "power_is_averaged": True, "energy_counter": True, "not_known": {},
    }  # fmt: skip


def test_facts_without_power_or_counter(nvml_of, clock):
    gpu = FakeGpu(clock)
    nvml_of(gpu)
    gpu.refuse = {FIELDS, USAGE, ENERGY}
    facts = nvml_facts(0, {})
    assert (facts["power_scope"], facts["power_is_averaged"], facts["energy_counter"]) == (None, None, False)
    assert set(facts["not_known"]) == {"power_scope", "power_is_averaged", "energy_counter"}


# --- finding a meter --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_amd(monkeypatch):
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # import fails


def test_without_a_driver_there_is_nothing_and_the_reasons(monkeypatch, no_amd, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    meter = find_meter(root=tmp_path)
    assert isinstance(meter, Nothing)
    assert meter.reason.startswith("NVML: Driver Not Loaded; AMD: ")
    assert meter.reason.endswith("Jetson: no INA3221 power monitor in sysfs")
    with measured(meter) as result:
        pass
    window = result.window
    assert (window.energy_j, window.mean_power_w, window.method) == (None, None, "none")
    assert window.reason == meter.reason
    assert window.seconds >= 0
    assert idle_power_w(meter, 0.0) is None
    assert nvml_facts() == {"reason": "NVML: Driver Not Loaded"}


def test_the_real_pynvml_on_a_machine_without_a_gpu(no_amd, tmp_path):
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        assert find_meter(root=tmp_path).reason.startswith(f"NVML: {error}")
        assert nvml_facts() == {"reason": f"NVML: {error}"}
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has a driver")


@pytest.mark.parametrize("fake", [FakeNvml(), None])
def test_no_gpu_and_no_package(monkeypatch, no_amd, tmp_path, fake):
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    words = "NVML: it knows no GPU" if fake else "NVML: import of pynvml"
    assert find_meter(root=tmp_path).reason.startswith(words)
    assert nvml_facts()["reason"].startswith(words)
    assert fake is None or fake.users == 0


def test_a_meter_that_is_asked_for_must_work(monkeypatch, no_amd, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    for name, words in (("nvml", "NVML Shared Library Not Found"), ("amd", "AMD: "), ("jetson", "no INA3221")):
        with pytest.raises(UserError, match=f"power meter '{name}' does not work here: .*{words}"):
            find_meter(name, root=tmp_path)
    for name in ("nvlm", "nvml:0", ""):
        with pytest.raises(UserError, match="expected one of nvml, amd, jetson, none, or jetson:RAIL"):
            find_meter(name, root=tmp_path)
    assert find_meter("none").reason == "no power meter was asked for"


def test_nvml_is_found_first_and_given_back(nvml_of, clock, no_amd, tmp_path):
    nvml_of(FakeGpu(clock), FakeGpu(clock))
    fake = sys.modules["pynvml"]
    users = fake.users
    for device, gpus in ((0, 1), ([0, 1], 2), ("GPU-11111111-aaaa", 1)):
        meter = find_meter(device=device, root=tmp_path)
        assert (meter.name, len(meter.instrument.gpus)) == ("nvml", gpus)
        meter.start()
        assert fake.users == users + 1
        meter.close()
        assert (fake.users, samplers()) == (users, [])


def test_importing_the_package_imports_no_driver():
    code = (
        "import sys, calibration.collect.power\n"
        "assert not {'pynvml', 'amdsmi', 'torch', 'vllm', 'httpx'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# --- AMD --------------------------------------------------------------------------------------------------------------


class FakeAmdsmi:
    """The calls of amdsmi that the meter makes. `gpus`: per handle, what differs from a healthy MI300X."""

    AmdSmiInitFlags = IntEnum("AmdSmiInitFlags", "INIT_AMD_GPUS")
    AmdSmiClkType = IntEnum("AmdSmiClkType", "GFX MEM")
    AmdSmiTemperatureType = IntEnum("AmdSmiTemperatureType", "HOTSPOT")
    AmdSmiTemperatureMetric = IntEnum("AmdSmiTemperatureMetric", "CURRENT")

    class AmdSmiException(Exception):
        pass

    def __init__(self, clock, *gpus, init_error=None):
        self.clock, self.gpus, self.init_error, self.users = clock, gpus, init_error, 0

    def _get(self, handle, name, default):
        value = self.gpus[handle].get(name, default)
        if value == "refused":
            raise self.AmdSmiException("Error code:\n\t2 | NOT_SUPPORTED")
        return value

    def amdsmi_init(self, flag):
        if self.init_error:
            raise self.AmdSmiException(self.init_error)
        self.users += 1

    def amdsmi_shut_down(self):
        self.users -= 1

    def amdsmi_get_processor_handles(self):
        return list(range(len(self.gpus)))

    def amdsmi_get_gpu_enumeration_info(self, handle):
        return {"hip_id": self._get(handle, "hip_id", handle), "hip_uuid": f"GPU-{handle}abc"}

    def amdsmi_get_power_info(self, handle):
        return self._get(handle, "power", {"current_socket_power": 600, "average_socket_power": "N/A"})

    def amdsmi_get_energy_count(self, handle):
        gain = self._get(handle, "energy", 1.0)
        ticks = round(1e6 + gain * 600 * (self.clock() - 1000) / 15.259e-6)
        ticks = self.gpus[handle].get("ticks", ticks)
        return {"energy_accumulator": ticks, "counter_resolution": 15.259, "timestamp": 0}

    def amdsmi_get_clock_info(self, handle, kind):
        return self._get(handle, "clock", {"clk": 2100 if kind == self.AmdSmiClkType.GFX else 1300})

    def amdsmi_get_temp_metric(self, handle, kind, metric):
        return self._get(handle, "celsius", 70)

    def amdsmi_get_violation_status(self, handle):
        grown = int(self.clock() - 1000)
        return self._get(handle, "violations", {"acc_ppt_pwr": 5 + grown, "acc_hbm_thrm": 9, "acc_vr_thrm": "N/A"})


@pytest.fixture
def amd_of(monkeypatch, clock):
    def build(*gpus, devices=None, environ=None):
        monkeypatch.setitem(sys.modules, "amdsmi", FakeAmdsmi(clock, *gpus))
        instrument = AmdInstrument(range(len(gpus)) if devices is None else devices, environ or {})
        return SamplingMeter(instrument, make_sampler=clock.sampler)

    return build


def test_amd_by_its_counter(amd_of, clock):
    window = window_of(amd_of({}, {"celsius": 85_000}), clock)
    assert (window.method, window.energy_j) == ("energy counter", pytest.approx(12_000, rel=1e-3))
    assert window.parts_w == {"gpu0": 600.0, "gpu1": 600.0}
    assert window.clocks_hz == {"sm": (2.1e9, 2.1e9), "memory": (1.3e9, 1.3e9)}
    assert window.temperature_c == 85.0  # one version says thousandths
    assert (window.throttle_reasons, window.labels, window.rejects) == (("package power limit",),) * 2 + ((),)


def test_amd_throttling_of_any_gpu_counts(amd_of, clock):
    calm = {"violations": {"acc_ppt_pwr": 70, "acc_socket_thrm": 3}}
    window = window_of(amd_of({}, calm), clock)
    assert window.throttle_reasons == ("package power limit",)
    assert window_of(amd_of(calm, calm), clock).throttle_reasons == ()


def test_amd_counter_known_to_be_wrong_gives_way_to_samples(amd_of, clock):
    window = window_of(amd_of({"energy": 0.01}), clock)
    assert (window.method, window.energy_j) == ("mean of samples", pytest.approx(6000))
    assert any("the counter cannot be right" in note for note in window.notes)


@pytest.mark.parametrize(("power", "watts"), [
    ({"current_socket_power": "N/A", "average_socket_power": 300}, 300),
    ({"current_socket_power": 0, "average_socket_power": 300}, 300),
    ({"average_socket_power": 250}, 250),
    ({"socket_power": 410, "current_socket_power": "N/A"}, 410),
])  # fmt: skip
def test_amd_power_fields_by_part(amd_of, clock, power, watts):
    window = window_of(amd_of({"power": power, "energy": "refused", "violations": "refused"}), clock)
    assert (window.method, window.mean_power_w) == ("mean of samples", pytest.approx(watts))
    assert window.notes[0] == "whether the GPU throttles is not known: amdsmi counts no violations"
    assert "NOT_SUPPORTED" in window.notes[1]


@pytest.mark.parametrize("unknown", [2**16 - 1, 2**32 - 1, 2**64 - 1])
def test_amd_numbers_that_stand_for_not_known_are_none(amd_of, clock, unknown):
    power = {"current_socket_power": unknown, "average_socket_power": 300}
    gpu = {"power": power, "clock": {"clk": unknown}, "celsius": unknown, "ticks": unknown, "violations": "refused"}
    window = window_of(amd_of(gpu), clock)
    assert (window.method, window.mean_power_w, window.counter_j) == ("mean of samples", pytest.approx(300), None)
    assert (window.clocks_hz, window.temperature_c) == ({}, None)
    with pytest.raises(Unavailable, match=f"amdsmi_get_power_info: N/A; gpu0: the energy counter stands at {unknown}"):
        amd_of(gpu | {"power": {"socket_power": unknown}})


@pytest.mark.parametrize(("power", "words"), [
    ("refused", "NOT_SUPPORTED"), ({"current_socket_power": 0}, "0 W"), ({"current_socket_power": "N/A"}, "N/A"),
])  # fmt: skip
def test_amd_without_power_and_counter_is_not_there(amd_of, power, words):
    with pytest.raises(Unavailable, match=words):
        amd_of({"power": power, "energy": "refused"})
    assert sys.modules["amdsmi"].users == 0


def test_amd_gpus_are_those_of_hip(amd_of):
    gpus = ({"hip_id": 1}, {"hip_id": 0})
    assert amd_of(*gpus, devices=[0]).instrument.handles == {"gpu0": 1}
    assert amd_of(*gpus, devices=[0], environ={"HIP_VISIBLE_DEVICES": "1"}).instrument.handles == {"gpu0": 0}
    assert list(amd_of(*gpus, devices=["GPU-1abc"]).instrument.handles.values()) == [1]
    assert amd_of({"hip_id": "N/A"}, {"hip_id": "N/A"}, devices=[1]).instrument.handles == {"gpu1": 1}
    with pytest.raises(UserError, match="there is no GPU 2: amdsmi knows 2"):
        amd_of(*gpus, devices=[2])


def test_amd_that_cannot_be_loaded(monkeypatch, clock):
    with pytest.raises(Unavailable, match="amdsmi knows no GPU"):
        monkeypatch.setitem(sys.modules, "amdsmi", FakeAmdsmi(clock))
        AmdInstrument([0], {})
    monkeypatch.setitem(sys.modules, "amdsmi", FakeAmdsmi(clock, {}, init_error="Error code:\n\t34 | no driver"))
    with pytest.raises(Unavailable, match=r"AMD: Error code: 34 \| no driver"):
        AmdInstrument([0], {})


def test_amd_library_of_another_version(monkeypatch, tmp_path):
    (tmp_path / "amdsmi.py").write_text("print('noise')\nraise OSError('libamd_smi.so: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    with pytest.raises(Unavailable, match=r"AMD: amdsmi cannot be loaded: OSError: libamd_smi\.so"):
        AmdInstrument([0], {})


# --- Jetson -----------------------------------------------------------------------------------------------------------


class Board:
    """Builds the files of a Jetson under a root."""

    def __init__(self, root):
        self.root = root

    def write(self, path, content):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{content}\n")
        return self

    def monitor(self, number, rails):
        """An INA3221 as JetPack 5 and newer show it; `rails`: channel -> (label, mV, mA)."""
        folder = f"sys/class/hwmon/hwmon{number}"
        self.write(f"{folder}/name", "ina3221")
        for channel, (label, millivolts, milliamperes) in rails.items():
            self.write(f"{folder}/in{channel}_label", label)
            self.write(f"{folder}/in{channel}_input", millivolts)
            self.write(f"{folder}/curr{channel}_input", milliamperes)
        return self

    def mode(self, number=2):
        conf = "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n< PM_CONFIG DEFAULT=0 >"
        self.write("etc/nvpmodel.conf", conf)
        return self if number is None else self.write("var/lib/nvpmodel/status", f"pmode:{number:04d}")


@pytest.fixture
def agx(tmp_path):
    """An AGX Orin: two monitors, no input rail."""
    board = Board(tmp_path)
    board.monitor(1, {1: ("VDD_GPU_SOC", 12_000, 1500), 2: ("VDD_CPU_CV", 12_000, 400), 3: ("VIN_SYS_5V0", 5000, 900),
                      7: ("total of shunts", 99, 99)})  # fmt: skip
    board.monitor(2, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 200), 3: ("NC", 0, 0)})
    board.write("sys/class/hwmon/hwmon0/name", "pwmfan")
    board.write("sys/class/hwmon/hwmon0/in1_label", "not a rail")
    for event in (1, 2, 3):
        board.write(f"sys/class/hwmon/hwmon3/oc{event}_event_cnt", 10)
    board.write("sys/class/devfreq/17000000.gpu/cur_freq", 1_300_500_000)
    board.write("sys/class/devfreq/17000000.gpu/min_freq", 306_000_000)
    board.write("sys/class/devfreq/17000000.gpu/max_freq", 1_300_500_000)
    board.write("sys/class/devfreq/15340000.vic/cur_freq", 1)
    board.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal")
    board.write("sys/class/thermal/thermal_zone0/temp", 70_000)
    board.write("sys/class/thermal/thermal_zone1/type", "gpu-thermal")
    board.write("sys/class/thermal/thermal_zone1/temp", 55_500)
    board.write("sys/class/thermal/cooling_device3/type", "gpu-throttle-alert")
    board.write("sys/class/thermal/cooling_device3/cur_state", 0)
    return board.mode()


@pytest.fixture
def nano(tmp_path):
    """An Orin Nano: one monitor with the input rail."""
    rails = {1: ("VDD_IN", 5000, 2400), 2: ("VDD_CPU_GPU_CV", 5000, 1000), 3: ("VDD_SOC", 5000, 500)}
    return Board(tmp_path).monitor(0, rails)


def jetson(board, clock, rail=None):
    return SamplingMeter(JetsonInstrument(board.root, rail), make_sampler=clock.sampler)


def test_the_input_rail_is_the_module(nano, clock):
    meter = jetson(nano, clock)
    window = window_of(meter, clock)
    assert (meter.name, meter.scope) == ("jetson", "module")
    assert (window.method, window.mean_power_w) == ("mean of samples of VDD_IN", pytest.approx(12.0))
    assert window.energy_j == pytest.approx(120.0)
    assert window.parts_w == {
        name: pytest.approx(w) for name, w in (("VDD_IN", 12), ("VDD_CPU_GPU_CV", 5), ("VDD_SOC", 2.5))
    }
    assert window.notes == (
        "whether the board throttles is not known: no such file in sysfs", "Jetson has no energy counter"
    )  # fmt: skip


def test_without_an_input_rail_the_module_is_the_sum_of_rails_that_do_not_feed_each_other(agx, clock):
    window = window_of(jetson(agx, clock), clock)
    assert window.method == "mean of samples of VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    assert window.mean_power_w == pytest.approx(18.0 + 4.8 + 4.5)
    assert window.parts_w["VDDQ_VDD2_1V8AO"] == pytest.approx(1.0)
    assert "NC" not in window.parts_w
    assert len(window.parts_w) == 4
    assert window.notes[0] == "power mode MODE_30W"
    assert (window.clocks_hz, window.temperature_c) == ({"sm": (1.3005e9, 1.3005e9)}, 55.5)
    assert window.throttle_reasons == ()


@pytest.mark.parametrize(("rail", "scope", "watts"), [
    ("VDD_GPU_SOC", "gpu_soc_rail", 18.0),
    ("VDD_CPU_CV", "cpu_cv_rail", 4.8),
    ("VDDQ_VDD2_1V8AO", "vddq_vdd2_1v8ao_rail", 1.0),
])  # fmt: skip
def test_one_rail_alone(agx, clock, rail, scope, watts):
    meter = jetson(agx, clock, rail)
    window = window_of(meter, clock)
    assert (meter.scope, window.method) == (scope, f"mean of samples of {rail}")
    assert window.mean_power_w == pytest.approx(watts)


def test_scopes_are_those_of_the_records(nano, clock):
    assert jetson(nano, clock, "VDD_CPU_GPU_CV").scope == "cpu_gpu_cv_rail"
    assert jetson(nano, clock, "VDD_IN").scope == "module"
    with pytest.raises(UserError, match="unknown power rail 'VDD_CPU_GPU'; nearest: VDD_CPU_GPU_CV"):
        jetson(nano, clock, "VDD_CPU_GPU")


def test_a_rail_that_cannot_be_read_leaves_no_partial_sum(agx, clock):
    meter = jetson(agx, clock)
    with measured(meter) as result:
        clock.run(4.0)
        agx.write("sys/class/hwmon/hwmon1/curr2_input", "")
        clock.run(4.0)
    window = result.window
    assert (window.energy_j, window.method) == (None, "none")
    assert "rail VDD_CPU_CV cannot be read" in window.reason
    assert window.samples[-1].power_w is None
    assert window.samples[-1].parts_w["VDD_GPU_SOC"] == pytest.approx(18.0)


def test_power_that_changes_is_weighted_by_time(nano, clock):
    meter = jetson(nano, clock)
    with measured(meter) as result:
        clock.run(6.0)
        nano.write("sys/class/hwmon/hwmon0/curr1_input", 4800)
        clock.run(2.0)
    assert result.window.energy_j == pytest.approx(6 * 12 + 2 * 24, rel=0.02)


def test_jetson_throttling_by_counts_and_alerts(agx, clock):
    meter = jetson(agx, clock)
    with measured(meter) as result:
        clock.run(3.0)
        agx.write("sys/class/thermal/cooling_device3/cur_state", 1)
        agx.write("sys/class/hwmon/hwmon3/oc3_event_cnt", 12)
        clock.run(3.0)
    assert result.window.throttle_reasons == ("thermal throttling", "instantaneous over-current")
    assert (result.window.rejects, result.window.labels) == (("thermal throttling",), ("instantaneous over-current",))


def test_rails_through_several_links_count_once(tmp_path):
    board = Board(tmp_path)
    real = tmp_path / "sys/devices/i2c/1-0040/hwmon/hwmon0"
    board.write("sys/devices/i2c/1-0040/hwmon/hwmon0/name", "ina3221")
    for name, value in (("in1_label", "VDD_IN"), ("in1_input", 5000), ("curr1_input", 1000)):
        board.write(f"sys/devices/i2c/1-0040/hwmon/hwmon0/{name}", value)
    for link in ("sys/class/hwmon/hwmon0", "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon0"):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(real)
    (rail,) = find_rails(tmp_path)
    assert (rail.name, rail.power_w()) == ("VDD_IN", 5.0)


def test_a_channel_that_is_switched_off_is_no_rail(nano):
    nano.write("sys/class/hwmon/hwmon0/in3_enable", 0).write("sys/class/hwmon/hwmon0/in2_enable", 1)
    assert [rail.name for rail in find_rails(nano.root)] == ["VDD_CPU_GPU_CV", "VDD_IN"]


def test_the_files_of_jetpack_4(tmp_path):
    board, folder = Board(tmp_path), "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for channel, (name, milliwatts) in enumerate((("POM_5V_IN", 4500), ("POM_5V_GPU", 1200), ("NC", 0))):
        board.write(f"{folder}/rail_name_{channel}", name).write(f"{folder}/in_power{channel}_input", milliwatts)
    instrument = JetsonInstrument(tmp_path)
    assert (instrument.of, instrument.read().power_w) == ("POM_5V_IN", 4.5)
    assert instrument.read().parts_w == {"POM_5V_IN": 4.5, "POM_5V_GPU": 1.2}


@pytest.mark.parametrize(("number", "expected"), [(2, "MODE_30W"), (0, "MAXN"), (None, "MAXN"), (7, "7")])
def test_power_mode(tmp_path, number, expected):
    assert power_mode(Board(tmp_path).mode(number).root) == expected


def test_power_mode_that_nobody_knows(tmp_path):
    assert power_mode(tmp_path) is None
    assert power_mode(Board(tmp_path).write("var/lib/nvpmodel/status", "pmode:0003").root) == "3"


def test_facts_of_a_board(agx):
    agx.write("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    agx.write("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic")
    assert jetson_facts(agx.root) == {
        "name": "NVIDIA Jetson AGX Orin Developer Kit", "driver_version": "L4T 36.4.3", "power_mode": "MODE_30W",
        "min_sm_clock_hz": 306e6, "max_sm_clock_hz": 1.3005e9, "clocks_locked": False,
        "rails": ["VDDQ_VDD2_1V8AO", "VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"],
    }  # fmt: skip
    agx.write("sys/class/devfreq/17000000.gpu/min_freq", 1_300_500_000)
    assert jetson_facts(agx.root)["clocks_locked"] is True


def test_facts_of_no_board(tmp_path):
    assert jetson_facts(tmp_path) == {
        "name": None, "driver_version": None, "power_mode": None, "min_sm_clock_hz": None, "max_sm_clock_hz": None,
        "clocks_locked": None, "rails": [],
    }  # fmt: skip


def test_a_gpu_that_is_switched_off_has_no_temperature(agx):
    agx.write("sys/class/thermal/thermal_zone1/temp", -256_000)
    assert JetsonInstrument(agx.root).read().temperature_c is None


def test_jetson_is_found_where_nvml_answers_not_supported(monkeypatch, no_amd, clock, agx):
    gpu = FakeGpu(clock, name="Orin (nvgpu)", capability=(8, 7), refuse=set(REFUSABLE))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_meter(root=agx.root).name == "jetson"
    gpu.refuse = set()
    assert find_meter("jetson", root=agx.root).name == "jetson"
    gpu.refuse = set(REFUSABLE)
    meter = find_meter("jetson:VDD_GPU_SOC", root=agx.root)
    assert (meter.scope, meter.instrument.of) == ("gpu_soc_rail", "VDD_GPU_SOC")
    assert sys.modules["pynvml"].users == 0


# --- the thread -------------------------------------------------------------------------------------------------------


def samplers():
    return [thread for thread in threading.enumerate() if thread.name == "power-sampler"]


class Steady:
    """An instrument that counts its readings."""

    name, scope, of, why_no_power, notes = "steady", "board", "", None, ()
    sensor = Sensor(0.05, 0.05, 1.0, "test")

    def __init__(self, failing=None):
        self.readings, self.enough, self.failing, self.closed = 0, threading.Event(), failing, False

    def read(self):
        self.readings += 1
        if self.readings >= 4:
            self.enough.set()
        if self.failing == "read":
            raise OSError("the bus is busy")
        return Reading(power_w=100.0, parts_w={"gpu0": 100.0})

    def counters(self):
        if self.failing == "counters":
            raise OSError("the bus is busy")
        return NO_COUNTER

    def events(self):
        if self.failing == "events":
            raise KeyboardInterrupt
        return {}

    def close(self):
        self.closed = True


def test_the_thread_samples_by_itself_and_ends_with_the_window():
    meter = SamplingMeter(Steady(), min_window_s=0.0)
    meter.start()
    assert len(samplers()) == 1
    assert meter.instrument.enough.wait(60)
    window = meter.stop()
    assert samplers() == []
    at = [s.at_s for s in window.samples]
    assert at == sorted(at)
    assert at[0] <= window.start_s < window.end_s <= at[-1]
    assert len(at) >= 4
    assert {s.power_w for s in window.samples} == {100.0}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_measured_code_ends_the_thread_and_keeps_the_window(error):
    meter = SamplingMeter(Steady(), min_window_s=0.0)
    with pytest.raises(error), measured(meter) as result:
        raise error
    assert samplers() == []
    assert [s.power_w for s in result.window.samples[:2]] == [100.0, 100.0]


def test_ctrl_c_ends_the_thread():
    meter = SamplingMeter(Steady(), min_window_s=0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), measured(meter) as result:
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert samplers() == []
    assert result.window is not None


@pytest.mark.parametrize(("failing", "error"), [("counters", OSError), ("events", KeyboardInterrupt)])
def test_a_start_that_fails_leaves_no_thread_and_no_window(failing, error):
    meter = SamplingMeter(Steady(failing))
    with pytest.raises(error):
        meter.start()
    assert samplers() == []
    with pytest.raises(RuntimeError, match="does not run"):
        meter.stop()


@pytest.mark.parametrize(("failing", "error"), [("counters", OSError), ("events", KeyboardInterrupt)])
def test_a_stop_that_fails_leaves_no_thread_and_the_meter_usable(failing, error):
    meter = SamplingMeter(Steady(), min_window_s=0.0)
    meter.start()
    meter.instrument.failing = failing
    with pytest.raises(error):
        meter.stop()
    assert samplers() == []
    meter.instrument.failing = None
    with measured(meter) as result:
        pass
    assert result.window.parts_w == {"gpu0": 100.0}


def test_readings_that_raise_do_not_end_the_thread():
    meter = SamplingMeter(Steady("read"), min_window_s=0.0)
    meter.start()
    assert meter.instrument.enough.wait(60)
    window = meter.stop()
    assert window.energy_j is None
    assert window.reason == "no counter; OSError: the bus is busy"
    assert {s.failure for s in window.samples} == {"OSError: the bus is busy"}


@pytest.mark.parametrize("make", [lambda: SamplingMeter(Steady()), lambda: Nothing("no reason")])
def test_windows_do_not_nest(make):
    meter = make()
    with pytest.raises(RuntimeError, match="does not run"):
        meter.stop()
    meter.start()
    with pytest.raises(RuntimeError, match="already runs"):
        meter.start()
    meter.stop()
    meter.start()
    meter.close()
    with pytest.raises(RuntimeError, match="does not run"):
        meter.stop()
    assert samplers() == []


def test_a_meter_that_is_dropped_takes_its_thread_with_it():
    meter = SamplingMeter(Steady())
    meter.start()
    (thread,) = samplers()
    del meter
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_a_driver_that_does_not_come_back_does_not_hold_the_program(monkeypatch):
    monkeypatch.setattr(sampler_module, "JOIN_S", 0.05)
    answered, asked, first = threading.Event(), threading.Event(), [True]

    def read():
        if first:
            first.clear()
            return Reading(power_w=100.0)
        asked.set()
        answered.wait(30)  # not for ever: a program that asks once more must fail here, not stand still
        return Reading(power_w=200.0)

    sampler = Sampler(read, 0.001)
    sampler.start()
    assert asked.wait(60)
    samples = sampler.stop()
    assert [(s.power_w, s.failure) for s in samples] == [(100.0, None), (None, "no answer for 0.05 s")]
    answered.set()
    sampler._thread.join(60)
    assert len(samples) == 2 and samplers() == []


def test_a_program_ends_with_a_sampler_running():
    code = (
        "from calibration.collect.power.sampler import Reading, Sampler\n"
        "Sampler(lambda: Reading(power_w=1.0), 0.01).start()\n"
        "raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 7


class _PassingTime:
    """An event on which waiting takes no real time."""

    def __init__(self, clock, end_s):
        self.clock, self.end_s = clock, end_s

    def wait(self, seconds):
        self.clock.now_s += seconds
        return self.clock.now_s >= self.end_s

    def set(self):
        self.end_s = self.clock.now_s


@settings(max_examples=30)
@given(st.floats(0.0, 0.9))
def test_slow_readings_skip_ticks_and_stay_in_step(reading_s):
    clock = FakeClock(0.0)

    def read():
        clock.now_s += reading_s
        return Reading(power_w=1.0)

    sampler = Sampler(read, 0.25, clock)
    sampler.ended = _PassingTime(clock, 20.0)
    sampler._loop()
    begins = [s.at_s - reading_s / 2 for s in sampler._samples]
    steps = [b / 0.25 for b in begins]
    assert steps == pytest.approx([round(step) for step in steps], abs=1e-6)
    assert all(later - earlier >= max(reading_s, 0.25) - 1e-9 for earlier, later in itertools.pairwise(begins))
    assert len(begins) >= 20 / (reading_s + 0.25) - 2
