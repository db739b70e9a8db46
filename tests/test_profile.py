"""Which calibration a device gets, how it is scaled, and when it says that it should not be believed."""

import math
from pathlib import Path

import msgspec
import pytest

from simulator.device import list_devices, load_device
from simulator.errors import UserError
from simulator.parameters import GROUP_SPECS, SPECS, Parameters, flatten, with_values
from simulator.profile import Operation, read_profile
from simulator.profile_choice import at_device, load_calibration
from simulator.profile_parts import (
    compose,
    engine_families,
    engine_family,
    kernels_for,
    profiles_directory,
    version_number,
)

INSIDE = {
    "parameters": 4e9,
    "weights": "bf16",
    "batch": 8,
    "context_tok": 2000,
    "prompt_tok": 1000,
    "power_mode": "MAXN",
}
FITTED = [
    path
    for path in sorted(profiles_directory().glob("*.toml"))
    if path.name not in ("transfer.toml", "weight_only.toml")
]
ORIN = ("vllm", "0.8.6")


def orin(mode=None):
    return load_calibration(load_device("orin", mode), None, *ORIN)


@pytest.mark.parametrize("path", FITTED, ids=lambda p: p.name)
def test_every_shipped_profile_is_valid(path):
    profile = read_profile(path)
    assert profile.source and set(profile.log_sd) >= {"time", "ttft", "tpot", "power", "energy"}
    assert path.name == f"{profile.gpu}.{profile.engine}.toml" and profile.fitted_on.rows > 0
    assert len(profile.correlation) == len(profile.fitted)
    for name in profile.fitted:
        assert name in SPECS and profile.parameter_log_sd[name] > 0.0


@pytest.mark.parametrize("family", engine_families(), ids=lambda family: family.id)
def test_every_engine_family_is_valid_and_says_what_it_rests_on(family):
    assert family.source and {"time", "ttft", "energy"} <= set(family.log_sd)
    for values in (family.prior, family.parameters):
        for name, value in msgspec.structs.asdict(values).items():
            assert SPECS[f"engine.{name}"].lower <= value <= SPECS[f"engine.{name}"].upper


def test_parameter_tables_and_structs_name_the_same_things():
    fields = {field.name: field.type for field in msgspec.structs.fields(Parameters)}
    assert set(fields) == set(GROUP_SPECS)
    for group, struct in fields.items():
        assert tuple(GROUP_SPECS[group]) == struct.__struct_fields__, group
    assert all(spec.unit and spec.lower < spec.upper and spec.log_sd >= 0.0 for spec in SPECS.values())


def test_values_are_addressed_by_dotted_names():
    parameters = orin().parameters
    changed = with_values(parameters, {"gemm16.memory_fraction": 0.5, "engine.step_host_s": 1e-3})
    assert (changed.gemm16.memory_fraction, changed.engine.step_host_s) == (0.5, 1e-3)
    assert changed.decode == parameters.decode and set(flatten(changed)) == set(SPECS)


@pytest.mark.parametrize(
    ("gpu", "engine", "version", "expected"),
    [
        ("orin", *ORIN, "orin-agx-64gb.vllm-0.8"),
        ("orin", None, None, "orin-agx-64gb.vllm-0.8"),  # another version, but the board's own host
        ("orin-nx", None, None, "orin-agx-64gb.vllm-0.8"),
        ("orin-nano", "llama.cpp", None, "orin-nano-8gb.llama.cpp"),
        ("thor", None, None, "thor-agx-128gb+vllm"),
        ("h100", None, None, "h100-sxm.vllm"),
        ("h100", "vllm", "0.11.1", "h100-sxm.vllm-0.8"),
        ("h100", "vllm", "0.7.2", "h100-sxm.vllm-v0"),
        ("b200", None, None, "b200-sxm+vllm"),
        ("l40s", "sglang", "0.5", "l40s+sglang"),
        ("a6000", None, None, "a6000+vllm"),  # kernels seen under another engine
        ("rtx-3090", None, None, "ampere-8.6+vllm"),
        ("v100", None, None, "any+vllm"),
    ],
)
def test_lookup_goes_from_own_to_sibling_to_parts(gpu, engine, version, expected):
    assert load_calibration(load_device(gpu), None, engine, version).id == expected


@pytest.mark.parametrize("device", list_devices(), ids=lambda device: device.id)
def test_every_device_gets_a_calibration_under_every_engine(device):
    for family in engine_families():
        found = load_calibration(device, None, family.engine, family.since)
        assert found.source and 0.03 <= found.spread("tpot") < 1.0


def test_an_engine_that_nobody_knows_borrows_and_says_so():
    family, said = engine_family("mystery", "1.0")
    assert family.id == "vllm" and "mystery" in said
    assert any("mystery" in note for note in load_calibration(load_device("l40s"), None, "mystery").notes)


def test_families_divide_the_versions_of_an_engine_between_them():
    for version in ("0.4", "0.5.4", "0.6", "0.7.3", "0.8", "0.11.1", "0.14", "0.18.0", "1.2"):
        assert sum(family.holds("vllm", version) for family in engine_families()) == 1, version
    assert sum(family.holds("vllm", None) for family in engine_families()) == 1
    assert version_number("0.6.6.post1") == (0, 6, 6) < version_number("0.10")


def test_less_is_known_the_wider_the_interval():
    device = load_device("h100")
    own = load_calibration(device, None, "vllm", "0.11.1")
    composed = compose(device, "vllm", "0.11.1")
    foreign = load_calibration(load_device("v100"), None, "vllm", "0.11.1")
    assert own.spread("tpot") <= composed.spread("tpot") < foreign.spread("tpot")
    assert orin().spread("tpot") < load_calibration(load_device("orin-nx"), None, *ORIN).spread("tpot")


def test_what_was_thought_before_a_fit_does_not_depend_on_earlier_fits():
    device = load_device("h100")
    for family in engine_families():
        version = family.since or (family.before and "0.1")
        before = compose(device, family.engine, version, fitted=False)
        assert before.parameters.engine == family.prior
        for kind, sd in family.prior_log_sd.items():
            assert before.spread(kind) == pytest.approx(math.hypot(kernels_for(device).log_sd[kind], sd))


def test_kernels_of_a_composition_come_from_the_gpu_and_overheads_from_the_engine():
    old, new = (compose(load_device("b200"), "vllm", version).parameters for version in ("0.7", "0.18"))
    assert old.gemm16 == new.gemm16 and old.engine != new.engine
    other = compose(load_device("l40s"), "vllm", "0.18").parameters
    assert other.engine == new.engine and other.gemm16 != new.gemm16


def test_boards_with_slow_hosts_get_slower_overheads():
    thor = load_device("orin")
    assert kernels_for(thor).host_factor > 1.0
    slow, fast = (compose(device, "sglang").parameters.engine for device in (thor, load_device("h100")))
    assert slow.step_host_s == pytest.approx(kernels_for(thor).host_factor * fast.step_host_s)
    assert slow.small_kernel_s == fast.small_kernel_s


def test_inside_the_fitted_range_nothing_is_said():
    assert orin().extrapolations(Operation(**INSIDE)) == ()


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
        ({"tp": 2}, "tensor parallel over 2 devices"),
    ],
)
def test_each_way_out_of_the_range_is_named_and_doubles_the_variance(change, word):
    profile = orin()
    outside = profile.extrapolations(Operation(**(INSIDE | change)))
    assert len(outside) == 1 and word in outside[0]
    assert profile.spread("time", outside) == pytest.approx(math.sqrt(2) * profile.spread("time"))


def test_compositions_and_borrowed_profiles_say_so_without_widening_twice():
    for gpu in ("orin-nx", "thor", "b200"):
        profile = load_calibration(load_device(gpu))
        outside = profile.extrapolations(Operation(**INSIDE))
        assert outside and profile.spread("time", outside[:1]) == profile.spread("time")


def test_first_tokens_behind_others_are_no_surer_than_first_tokens_alone():
    for path in FITTED:
        profile = read_profile(path)
        if "ttft_served" not in profile.log_sd:
            assert profile.spread("ttft_served") == pytest.approx(1.5 * profile.spread("ttft"))


def test_blended_spread_lies_between_prefill_and_decode():
    profile = orin()
    assert profile.blended_spread(0.0) == profile.spread("tpot")
    assert profile.blended_spread(1.0) == profile.spread("ttft")


def test_slower_clocks_slow_host_and_kernel_starts_and_calm_the_silicon():
    full, slow = orin(), orin("15W")
    assert slow.parameters.engine.eager_launch_s == pytest.approx(
        full.parameters.engine.eager_launch_s * 2201.6 / 1113.6
    )
    clocks = load_device("orin").compute.clock_hz / load_device("orin", "15W").compute.clock_hz
    assert slow.parameters.gemm16.start_s == pytest.approx(full.parameters.gemm16.start_s * clocks)
    ratio = 6 * 408 / (16 * 1300.5)
    assert slow.parameters.power.busy_w == pytest.approx(full.parameters.power.busy_w * ratio)
    assert slow.parameters.gemm16.compute_fraction == full.parameters.gemm16.compute_fraction


def test_composed_power_is_scaled_to_the_board_once():
    """Busy power goes with the board's limit, then with silicon x clock of the mode, never with the mode's budget."""
    nx, slow = load_device("orin-nx", "MAXN"), load_device("orin-nx", "10W")
    family = compose(nx)
    full = at_device(family, nx).parameters.power.busy_w
    reference = load_device("orin")
    assert full == pytest.approx(family.parameters.power.busy_w * nx.power.limit_w / reference.power.limit_w)
    ratio = slow.compute.sm_count * slow.compute.clock_hz / (nx.compute.sm_count * nx.compute.clock_hz)
    assert at_device(family, slow).parameters.power.busy_w == pytest.approx(full * ratio)


def test_a_profile_of_another_gpu_is_refused():
    path = profiles_directory() / "orin-agx-64gb.vllm-0.8.toml"
    with pytest.raises(UserError, match="is for 'orin-agx-64gb'"):
        load_calibration(load_device("h100"), str(path))
    with pytest.raises(UserError, match="does not exist"):
        load_calibration(load_device("h100"), "none.toml")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("tpot = ", "tpot = -", "log_sd.tpot"),
        ("ttft = ", "ttft = nan #", "log_sd.ttft"),
        ("idle_w = ", "idle_w = -", "idle_w"),
    ],
)
def test_profiles_without_sense_are_refused(tmp_path, old, new, complaint):
    text = (profiles_directory() / "orin-agx-64gb.vllm-0.8.toml").read_text().replace(old, new, 1)
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
