"""Data sheets and power modes: sources, dense peaks, published anchors, scaling laws, bad input."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hwspecs
from simulator.device import Device, PowerMode, list_devices, load_device
from simulator.errors import UserError

SHEETS = Path(hwspecs.__file__).parent
DEVICES = {device.id: device for device in list_devices()}
JETSONS = [d for d in DEVICES.values() if d.memory.unified]
ORINS = [d for d in JETSONS if d.compute_capability == "8.7"]

SHEET = """
id = "mine"
name = "My GPU"
vendor = "me"
architecture = "ampere"

[memory]
kind = "HBM"
capacity_byte = 1000
bandwidth_byte_per_s = 1e12

[compute]
sm_count = 10
clock_hz = 1e9
l2_byte = 100
peak_flop_per_s = { fp16 = 1e14, fp32 = 1e13 }

[power]
limit_w = 100
idle_w = 10
"""
MODES = """
[[power_modes]]
name = "FULL"
sm_count = 10
gpu_clock_hz = 1e9
memory_clock_hz = 2e9

[[power_modes]]
name = "LOW"
power_budget_w = 20
sm_count = 5
gpu_clock_hz = 4e8
memory_clock_hz = 5e8
"""
WITH_MODES = 'default_power_mode = "FULL"\n' + SHEET + MODES


def write(tmp_path: Path, text: str, name: str = "my.toml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def figures(device: Device) -> list[str]:
    """Dotted paths of every numeric field that a sheet states."""
    found = [
        f"{table}.{field}"
        for table in ("memory", "compute", "power", "interconnect", "price")
        for field in getattr(device, table).__struct_fields__
        if field != "board_limit_w"  # no sheet states it: it is the limit beside that of the mode in force
        if isinstance(getattr(getattr(device, table), field), int | float)
        and not isinstance(getattr(getattr(device, table), field), bool)
    ]
    found += [f"compute.peak_flop_per_s.{dtype}" for dtype in device.compute.peak_flop_per_s]
    return found + (["power_modes"] if device.power_modes else [])


# --- the bundled sheets -------------------------------------------------------------------------------------------


def test_ids_are_file_names():
    assert set(DEVICES) == {path.stem for path in SHEETS.glob("*.toml")}
    for path in SHEETS.glob("*.toml"):
        assert load_device(str(path)).id == path.stem


def test_names_and_aliases_are_unique_and_find_their_device():
    owner: dict[str, str] = {}
    for device in DEVICES.values():
        for name in (device.id, *device.aliases):
            assert name == name.lower()
            assert owner.setdefault(name, device.id) == device.id, f"{name} names two devices"
            assert load_device(name).id == device.id
        assert len(set(device.aliases)) == len(device.aliases)
        assert load_device(device.name).id == device.id


def test_every_device_of_the_measured_data_has_a_sheet():
    wanted = """orin-agx-64gb orin-agx-32gb orin-nx-16gb orin-nx-8gb orin-nano-8gb orin-nano-4gb thor-agx-128gb
        a100-sxm-40gb a100-sxm-80gb a100-pcie-40gb a100-pcie-80gb h100-sxm h100-pcie h100-nvl h200-sxm gh200 gh200-144gb
        b200-sxm gb200 b300-sxm l4 l40s a10 a40 a5000 a6000 rtx-3090 rtx-4090 rtx-5090 rtx-6000-ada rtx-pro-6000
        v100-sxm-16gb v100-sxm-32gb t4 mi300x"""
    assert set(wanted.split()) <= set(DEVICES)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_every_figure_has_a_source_and_every_source_a_figure(device: Device):
    stated = figures(device)
    for path in stated:
        parents = [path.rsplit(".", n)[0] for n in range(path.count(".") + 1)]
        assert any(device.sources.get(p, "").strip() for p in (path, *parents)), f"{path} has no source"
    for path, text in device.sources.items():
        assert "\n" not in text
        assert path == "price" or any(p == path or p.startswith(path + ".") for p in stated), f"{path} is not stated"


@pytest.mark.parametrize(
    "spoken, id",
    [
        ("orin", "orin-agx-64gb"),
        ("A100", "a100-sxm-80gb"),
        ("H100", "h100-sxm"),
        ("v100", "v100-sxm-32gb"),
        ("4090", "rtx-4090"),
        ("nano-super", "orin-nano-8gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("NVIDIA RTX A6000", "a6000"),
        ("rtx_4090", "rtx-4090"),
    ],
)
def test_spoken_and_nvml_names(spoken: str, id: str):
    assert load_device(spoken).id == id


# --- peaks are dense and obey the hardware ------------------------------------------------------------------------

GEFORCE = {"rtx-3090", "rtx-4090", "rtx-5090"}  # FP32 accumulation halves FP16/BF16/FP8, not INT8
INT8_CUT_BACK = {"b300-sxm", "gb300"}
SPARSE_ONLY = {  # figures that data sheets print with 2:4 sparsity; the dense ones are half
    "a100-sxm-80gb": {"bf16": 624e12, "int8": 1248e12},
    "h100-sxm": {"bf16": 1979e12, "fp8": 3958e12},
    "h100-nvl": {"bf16": 1671e12, "fp8": 3341e12},
    "h200-sxm": {"bf16": 1979e12, "fp8": 3958e12},
    "l40s": {"bf16": 733e12, "fp8": 1466e12},
    "b200-sxm": {"bf16": 4500e12, "fp8": 9000e12, "fp4": 18000e12},
    "orin-agx-64gb": {"int8": 170e12, "fp16": 85e12},
    "thor-agx-128gb": {"fp4": 2070e12, "fp8": 1035e12},
    "mi300x": {"bf16": 2615e12, "fp8": 5230e12},
    "rtx-4090": {"bf16": 330.4e12, "int8": 1321e12},
}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_narrow_types_run_at_multiples_of_sixteen_bit(device: Device):
    peak = device.compute.peak_flop_per_s
    assert peak.get("bf16", peak["fp16"]) == peak["fp16"]
    if "fp8" in peak:
        assert peak["fp8"] == pytest.approx(2 * peak["bf16"], rel=0.03)  # L40S: NVIDIA prints 362 and 733
    if "int8" in peak and device.id not in INT8_CUT_BACK:
        assert peak["int8"] == pytest.approx((4 if device.id in GEFORCE else 2) * peak["fp16"], rel=0.03)
    if "tf32" in peak:
        assert peak["tf32"] == pytest.approx(peak["fp16"] / 2, rel=0.02)
    if "int4" in peak:
        assert peak["int4"] == pytest.approx(2 * peak["int8"], rel=0.02)


@pytest.mark.parametrize("id, dtype, sparse", [(i, t, v) for i, peaks in SPARSE_ONLY.items() for t, v in peaks.items()])
def test_no_peak_is_the_sparse_figure(id: str, dtype: str, sparse: float):
    assert DEVICES[id].compute.peak_flop_per_s[dtype] == pytest.approx(sparse / 2, rel=0.03)


@pytest.mark.parametrize("device", ORINS, ids=lambda d: d.id)
def test_orin_peaks_follow_from_cores_and_clock(device: Device):
    """Per SM and clock: 4 tensor cores x 256 FMA, 128 CUDA cores x 1 FMA."""
    for mode in device.power_modes:
        at = device.at_mode(mode.name).compute
        assert at.peak_flop_per_s["fp16"] == pytest.approx(at.sm_count * 4 * 256 * 2 * at.clock_hz, rel=2e-3)
        assert at.peak_flop_per_s["fp32"] == pytest.approx(at.sm_count * 128 * 2 * at.clock_hz, rel=2e-3)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_vector_rate_follows_from_units_and_clock(device: Device):
    """64 FP32 lanes per SM on V100, T4, A100, A30; 128 on every other GPU here (MI300X: 128 with packed FP32)."""
    lanes = 64 if device.compute_capability in ("7.0", "7.5", "8.0") else 128
    compute = device.compute
    assert compute.peak_flop_per_s["fp32"] == pytest.approx(compute.sm_count * lanes * 2 * compute.clock_hz, rel=0.01)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_magnitudes_are_in_si(device: Device):
    assert 2e9 < device.memory.capacity_byte < 400e9
    assert 3e10 < device.memory.bandwidth_byte_per_s < 1e13
    assert 0.4e9 < device.compute.clock_hz < 3e9
    assert 1e6 < device.compute.l2_byte < 2e8
    assert 5e12 < device.compute.peak_flop_per_s["fp16"] < 4e15
    assert 0.02 < device.power.idle_w / device.power.limit_w < 0.3
    # ridge point in FLOP per byte: a slip of 1000 between GB and TFLOPS would leave this range
    assert 30 < device.compute.peak_flop_per_s["fp16"] / device.memory.bandwidth_byte_per_s < 1000
    if device.price.usd_per_hour or device.price.purchase_usd:
        assert device.price.date


# id: (bytes per second, dense bf16 or fp16 FLOP/s, GiB, watts); vendor figures
PUBLISHED = {
    "h100-sxm": (3.35e12, 989e12, 80, 700),
    "h200-sxm": (4.8e12, 989e12, 141, 700),
    "a100-sxm-80gb": (2.039e12, 312e12, 80, 400),
    "a100-sxm-40gb": (1.555e12, 312e12, 40, 400),
    "v100-sxm-32gb": (900e9, 125e12, 32, 300),
    "t4": (320e9, 65e12, 16, 70),
    "l4": (300e9, 121e12, 24, 72),
    "l40s": (864e9, 362e12, 48, 350),
    "a10": (600e9, 125e12, 24, 150),
    "a6000": (768e9, 154.8e12, 48, 300),
    "rtx-4090": (1008e9, 165.2e12, 24, 450),
    "rtx-5090": (1792e9, 209.5e12, 32, 575),
    "mi300x": (5.3e12, 1307e12, 192, 750),
    "orin-agx-64gb": (204.8e9, 42.6e12, 64, 60),
    "orin-nano-8gb": (102.4e9, 16.7e12, 8, 25),
    "orin-nx-16gb": (102.4e9, 15.04e12, 16, 25),
    "thor-agx-128gb": (273e9, 258e12, 128, 130),
}


@pytest.mark.parametrize("id", PUBLISHED)
def test_published_anchors(id: str):
    device, (bandwidth, peak, gib, watts) = DEVICES[id], PUBLISHED[id]
    assert device.memory.bandwidth_byte_per_s == pytest.approx(bandwidth, rel=0.01)
    assert device.compute.peak_flop_per_s["fp16"] == pytest.approx(peak, rel=0.01)
    assert device.memory.capacity_byte == gib * 1024**3
    assert device.power.limit_w == watts


def test_measured_orin_ceilings_lie_below_the_sheet():
    """ApxInf: 152.8 GB/s stream read and 34.1 TFLOPS BF16 GEMM at MAXN; also refutes sheets that say 21 TFLOPS."""
    orin = load_device("orin")
    assert 0.7 < 152.8e9 / orin.memory.bandwidth_byte_per_s < 1
    assert 0.7 < 34.1e12 / orin.compute.peak_flop_per_s["bf16"] < 1


# --- power modes --------------------------------------------------------------------------------------------------


def test_modes_are_a_jetson_matter_and_the_default_is_in_force():
    for device in DEVICES.values():
        assert bool(device.power_modes) == device.memory.unified
        assert device.power_mode == device.default_power_mode == ("MAXN" if device.memory.unified else None)


@pytest.mark.parametrize("device", JETSONS, ids=lambda d: d.id)
def test_default_mode_changes_nothing_and_round_trips(device: Device):
    assert device.at_mode("MAXN") == device
    for mode in device.power_modes:
        back = device.at_mode(mode.name).at_mode("MAXN")
        assert back.power == device.power
        assert back.memory.bandwidth_byte_per_s == pytest.approx(device.memory.bandwidth_byte_per_s)
        assert back.compute.peak_flop_per_s == pytest.approx(device.compute.peak_flop_per_s)


@pytest.mark.parametrize("device", JETSONS, ids=lambda d: d.id)
def test_no_mode_beats_the_largest_and_memory_never_grows(device: Device):
    top = max((device.at_mode(m.name) for m in device.power_modes), key=lambda d: d.compute.peak_flop_per_s["fp16"])
    assert top.power_mode in ("MAXN", "MAXN_SUPER", "40W")
    for mode in device.power_modes:
        at = device.at_mode(mode.name)
        assert at.power_mode == mode.name
        assert at.memory.bandwidth_byte_per_s <= device.memory.bandwidth_byte_per_s * (1 + 1e-12)
        assert at.memory.capacity_byte == device.memory.capacity_byte
        assert at.power.limit_w <= top.power.limit_w
        assert at.power.idle_w < at.power.limit_w
        if mode.name.endswith("W") and mode.name[:-1].isdigit():
            assert at.power.limit_w == int(mode.name[:-1])


def test_orin_modes_grow_with_the_budget():
    modes = [load_device("orin", name) for name in ("15W", "30W", "50W", "MAXN")]
    peaks = [d.compute.peak_flop_per_s["bf16"] for d in modes]
    rates = [d.memory.bandwidth_byte_per_s for d in modes]
    assert peaks == sorted(set(peaks))
    assert rates == sorted(rates)
    assert [d.power.limit_w for d in modes] == [15, 30, 50, 60]


def test_orin_15w_in_closed_form():
    low = load_device("orin", "15w")
    assert (low.compute.sm_count, low.compute.clock_hz, low.power_mode) == (6, 408e6, "15W")
    assert low.compute.peak_flop_per_s["bf16"] == pytest.approx(6 * 4 * 256 * 2 * 408e6, rel=2e-3)
    assert low.memory.bandwidth_byte_per_s == pytest.approx(204.8e9 * 2133 / 3199)


def test_nano_super_answers_to_both_names_and_matches_smolhub_clocks():
    assert load_device("orin-nano", "maxn_super") == load_device("orin-nano-8gb", "MAXN")
    assert load_device("orin-nano", "7W").compute.clock_hz == 408e6
    assert load_device("orin-nano", "15W").compute.clock_hz == 612e6
    assert load_device("orin-nano").compute.clock_hz == 1020e6


@given(st.integers(1, 10), st.floats(1e8, 1e9), st.floats(1e8, 2e9), st.floats(11, 100))
def test_any_mode_scales_with_its_clocks(sms: int, clock_hz: float, memory_hz: float, budget_w: float):
    base = DEVICES["orin-agx-64gb"]
    mode = PowerMode(name="x", sm_count=sms, gpu_clock_hz=clock_hz, memory_clock_hz=memory_hz, power_budget_w=budget_w)
    at = msgspec.structs.replace(base, power_modes=(*base.power_modes, mode)).at_mode("X")
    ratio = sms * clock_hz / (base.compute.sm_count * base.compute.clock_hz)
    for dtype, peak in base.compute.peak_flop_per_s.items():
        assert at.compute.peak_flop_per_s[dtype] == pytest.approx(peak * ratio)
    assert at.memory.bandwidth_byte_per_s == pytest.approx(base.memory.bandwidth_byte_per_s * memory_hz / 3199e6)
    assert at.power.limit_w == budget_w
    assert (at.memory.capacity_byte, at.compute.l2_byte) == (base.memory.capacity_byte, base.compute.l2_byte)


# --- a user's own sheet -------------------------------------------------------------------------------------------


def test_user_sheet_by_path(tmp_path: Path):
    device = load_device(write(tmp_path, SHEET))
    assert device.id == "mine"
    assert device.compute.peak_flop_per_s == {"fp16": 1e14, "fp32": 1e13}
    assert device.power_modes == () and device.power_mode is None
    assert load_device(Path(write(tmp_path, SHEET, "b.toml"))) == device
    assert load_device(write(tmp_path, "\ufeff" + SHEET, "bom.toml")) == device


def test_user_sheet_with_modes(tmp_path: Path):
    path = write(tmp_path, WITH_MODES)
    full, low = load_device(path), load_device(path, "low")
    assert (full.power_mode, full.power.limit_w) == ("FULL", 100)
    assert (low.compute.sm_count, low.power.limit_w) == (5, 20)
    assert low.compute.peak_flop_per_s["fp16"] == pytest.approx(0.2e14)
    assert low.memory.bandwidth_byte_per_s == pytest.approx(0.25e12)


# --- bad input: one sentence that names what, where and what was expected ------------------------------------------


def complaint(*args: str) -> str:
    with pytest.raises(UserError) as caught:
        load_device(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_gpu_names_the_nearest_and_the_list():
    text = complaint("h10O")
    assert "unknown GPU 'h10O'" in text and "h100" in text and "simulate --list gpus" in text
    assert "simulate --list gpus" in complaint("")


def test_unknown_mode_lists_the_modes():
    text = complaint("orin", "60W")
    assert "60W" in text and all(name in text for name in ("MAXN", "50W", "30W", "15W"))


def test_mode_on_a_device_without_modes():
    assert "h100-sxm" in complaint("h100", "MAXN") and "no power modes" in complaint("h100", "MAXN")


def test_missing_file_and_directory(tmp_path: Path):
    assert "nowhere.toml" in complaint(str(tmp_path / "nowhere.toml"))
    assert "does not exist" in complaint("nowhere.toml")
    assert "cannot be read" in complaint(str(tmp_path) + "/")


def test_broken_toml_gives_file_and_line(tmp_path: Path):
    text = complaint(write(tmp_path, 'id = "x"\nname = \n'))
    assert "my.toml" in text and "line 2" in text


def test_not_utf8(tmp_path: Path):
    path = tmp_path / "latin.toml"
    path.write_bytes('name = "Größe"'.encode("latin-1"))
    assert "UTF-8" in complaint(str(path))


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("capacity_byte = 1000", "", ["field memory", "capacity_byte"]),
        ("capacity_byte = 1000", 'capacity_byte = "1000"', ["memory.capacity_byte", "int", "str"]),
        ("capacity_byte = 1000", "capacity_byte = -1", ["memory.capacity_byte", ">= 1", "found -1"]),
        ("bandwidth_byte_per_s = 1e12", "bandwidth_byte_per_s = 0", ["memory.bandwidth_byte_per_s", "> 0"]),
        ("bandwidth_byte_per_s = 1e12", "bandwidth_byte_per_s = inf", ["memory.bandwidth_byte_per_s", "finite"]),
        ("clock_hz = 1e9", "clock_hz = nan", ["compute.clock_hz", "finite"]),
        ("clock_hz = 1e9", "clock_hz = 1e9\nclock_mhz = 1000", ["field compute", "clock_mhz"]),
        ("l2_byte = 100", "l2_byte = true", ["compute.l2_byte", "int", "bool"]),
        (
            "{ fp16 = 1e14, fp32 = 1e13 }",
            "{ fp16 = 1e14, fp17 = 1 }",
            ["compute.peak_flop_per_s: unknown", "bf16"],
        ),
        ("{ fp16 = 1e14, fp32 = 1e13 }", "{ fp16 = -1.0 }", ["compute.peak_flop_per_s", "> 0"]),
        ("{ fp16 = 1e14, fp32 = 1e13 }", "{ fp32 = 1e14 }", ["compute.peak_flop_per_s", "at least fp16"]),
        ("idle_w = 10", "idle_w = 200", ["power.idle_w", "200 W", "100 W"]),
        ('id = "mine"', "", ["id"]),
        ('id = "mine"', 'id = "mine"\npower_mode = "X"', ["power_mode"]),
        ('id = "mine"', 'id = "mine"\ndefault_power_mode = "X"', ["default_power_mode", "'X'"]),
    ],
)
def test_bad_fields_name_file_field_and_expectation(tmp_path: Path, old: str, new: str, says: list[str]):
    assert old in SHEET
    text = complaint(write(tmp_path, SHEET.replace(old, new)))
    for part in ["my.toml", *says]:
        assert part in text


@pytest.mark.parametrize(
    "old, new, says",
    [
        ('default_power_mode = "FULL"', "", ["default_power_mode", "FULL, LOW"]),
        ('default_power_mode = "FULL"', 'default_power_mode = "MAX"', ["'MAX'", "FULL, LOW"]),
        ('name = "LOW"', 'name = "full"', ["power_modes", "twice"]),
        ("sm_count = 10\ngpu_clock_hz", "sm_count = 9\ngpu_clock_hz", ["FULL", "9 SMs", "10 SMs"]),
        ("gpu_clock_hz = 4e8", "gpu_clock_hz = 0", ["power_modes", "gpu_clock_hz", "> 0"]),
    ],
)
def test_bad_modes(tmp_path: Path, old: str, new: str, says: list[str]):
    assert old in WITH_MODES
    text = complaint(write(tmp_path, WITH_MODES.replace(old, new)))
    for part in ["my.toml", *says]:
        assert part in text


def test_a_board_without_modes_takes_a_power_cap_in_watts():
    free, capped = load_device("h100"), load_device("h100", "450W")
    assert capped.power.limit_w == 450.0 and capped.power.board_limit_w == free.power.limit_w
    for cap in ("5000W", "1W"):
        with pytest.raises(UserError, match="power cap"):
            load_device("h100", cap)
