"""Which profile a device gets, how it is scaled, and when it says that it should not be believed."""

import math
from pathlib import Path

import pytest

from simulator.device import load_device
from simulator.errors import UserError
from simulator.profile import PARAMETERS, Operation, Parameters, read_profile
from simulator.profile_choice import at_device, family_defaults, load_calibration, profiles_directory

INSIDE = {
    "parameters": 4e9,
    "weights": "bf16",
    "batch": 8,
    "context_tok": 2000,
    "prompt_tok": 1000,
    "power_mode": "MAXN",
}


@pytest.mark.parametrize("path", sorted(profiles_directory().glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_profile_is_valid(path):
    if path.name != "transfer.toml":
        profile = read_profile(path)
        assert profile.source and set(profile.log_sd) >= {"time", "ttft", "energy"}


def test_parameter_table_and_struct_name_the_same_things():
    assert tuple(PARAMETERS) == Parameters.__struct_fields__
    assert all(spec.unit and spec.lower < spec.upper for spec in PARAMETERS.values())


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("orin", "orin-agx-64gb.vllm"),
        ("orin-nano", "orin-agx-64gb.vllm"),
        ("thor", "default-jetson"),
        ("a100", "default-ampere"),
        ("a6000", "default-ampere-8.6"),
        ("h200", "default-hopper"),
        ("v100", "default"),
    ],
)
def test_lookup_goes_from_own_to_sibling_to_family_to_anything(gpu, expected):
    assert load_calibration(load_device(gpu)).id == expected


def test_less_is_known_the_wider_the_interval():
    own, sibling, family = (load_calibration(load_device(g)) for g in ("orin", "orin-nx", "thor"))
    assert own.spread("time") < sibling.spread("time") < family.spread("time")


def test_inside_the_fitted_range_nothing_is_said():
    assert load_calibration(load_device("orin")).extrapolations(Operation(**INSIDE)) == ()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"parameters": 70e9}, "70 B parameters"),
        ({"parameters": 0.5e9}, "0.5 B parameters"),
        ({"weights": "int4"}, "int4 weights"),
        ({"batch": 64}, "batch of 64 sequences"),
        ({"context_tok": 20_000}, "context of 20,000 tokens"),
        ({"prompt_tok": 9_000}, "prompt of 9,000 tokens"),
        ({"power_mode": "15W"}, "power mode 15W"),
        ({"kv_cache": "fp8"}, "fp8 KV cache"),
        ({"features": ("a mixture of experts",)}, "a mixture of experts"),
        ({"cuda_graphs": False}, "without CUDA graphs"),
    ],
)
def test_each_way_out_of_the_range_is_named_and_doubles_the_variance(change, word):
    profile = load_calibration(load_device("orin"))
    outside = profile.extrapolations(Operation(**(INSIDE | change)))
    assert len(outside) == 1 and word in outside[0]
    assert profile.spread("time", outside) == pytest.approx(math.sqrt(2) * profile.spread("time"))


def test_defaults_and_borrowed_profiles_say_so_without_widening_twice():
    for gpu in ("orin-nx", "thor", "h100"):
        profile = load_calibration(load_device(gpu))
        outside = profile.extrapolations(Operation(**INSIDE))
        assert outside and profile.spread("time", outside[:1]) == profile.spread("time")


def test_blended_spread_lies_between_prefill_and_decode():
    profile = load_calibration(load_device("orin"))
    assert profile.blended_spread(0.0) == profile.spread("tpot")
    assert profile.blended_spread(1.0) == profile.spread("ttft")


def test_slower_clocks_slow_the_host_and_calm_the_idle_silicon():
    full, slow = (load_calibration(load_device("orin", mode)) for mode in ("MAXN", "15W"))
    assert slow.parameters.eager_launch_s == pytest.approx(full.parameters.eager_launch_s * 2201.6 / 1113.6)
    ratio = 6 * 408 / (16 * 1300.5)
    assert slow.parameters.busy_w == pytest.approx(full.parameters.busy_w * ratio)
    assert slow.parameters.gemm_compute_fraction == full.parameters.gemm_compute_fraction


def test_family_defaults_are_scaled_to_the_board_once():
    """Busy power goes with the board's limit, then with silicon x clock of the mode, never with the mode's budget."""
    family = family_defaults(load_device("orin-nx"))
    nx, slow = load_device("orin-nx", "MAXN"), load_device("orin-nx", "10W")
    full = at_device(family, nx).parameters.busy_w
    orin = load_device("orin")
    assert full == pytest.approx(family.parameters.busy_w * nx.power.limit_w / orin.power.limit_w)
    ratio = slow.compute.sm_count * slow.compute.clock_hz / (nx.compute.sm_count * nx.compute.clock_hz)
    assert at_device(family, slow).parameters.busy_w == pytest.approx(full * ratio)


def test_a_profile_of_another_gpu_is_refused():
    path = profiles_directory() / "orin-agx-64gb.vllm.toml"
    with pytest.raises(UserError, match="is for 'orin-agx-64gb'"):
        load_calibration(load_device("h100"), str(path))
    with pytest.raises(UserError, match="does not exist"):
        load_calibration(load_device("h100"), "none.toml")


def test_jetson_defaults_are_for_modules_only():
    assert family_defaults(load_device("orin")).id == "default-jetson"
    assert family_defaults(load_device("gh200")).id == "default-hopper"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("tpot = ", "tpot = -", "log_sd.tpot"),
        ("ttft = ", "ttft = nan #", "log_sd.ttft"),
        ("idle_w = ", "idle_w = -", "idle_w"),
    ],
)
def test_profiles_without_sense_are_refused(tmp_path, old, new, complaint):
    text = (profiles_directory() / "orin-agx-64gb.vllm.toml").read_text().replace(old, new, 1)
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_profile(path)


def test_an_edited_copy_of_a_sheet_does_not_inherit_the_fitted_interval(tmp_path):
    """Whoever doubles the bandwidth in a copy asks about a board that nobody has measured."""
    import hwspecs

    text = (Path(hwspecs.__file__).parent / "orin-agx-64gb.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text)
    same = load_calibration(load_device(str(path)))
    path.write_text(text.replace("2.048e11", "4.096e11"))
    edited = load_calibration(load_device(str(path)))
    assert same.transferred is None and same.spread("time") < edited.spread("time")
    assert "other figures" in edited.extrapolations(Operation(**INSIDE))[0]
