"""The files of kernels that ship: they load, they are what the tables say, and their spreads are in order."""

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.commands import kernels as command
from calibration.kernels import build, power, report, tables
from simulator.device import list_devices, load_device
from simulator.kernels.gemm import GemmParameters, gemm_time
from simulator.parameters import SPECS
from simulator.profile import MAX_LOG_SD
from simulator.profile_parts import compose, kernels_for, profiles_directory, read_engine, read_kernels

FOLDER = profiles_directory() / "kernels"
FILES = sorted(path.stem for path in FOLDER.glob("*.toml"))
FAMILY_OF = {"a100-sxm-80gb": "ampere", "h100-sxm": "hopper", "h200-sxm": "hopper", "b200-sxm": "blackwell",
             "l40s": "ada", "rtx-pro-6000": "blackwell-12.0"}  # fmt: skip


def device_id(device) -> str:
    return device if isinstance(device, str) else device.id


DEVICES = [device_id(device) for device in list_devices()]


def shipped(name):
    return read_kernels(FOLDER / f"{name}.toml")


def test_every_recipe_ships_and_nothing_else():
    assert set(build.RECIPES) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_values_are_within_their_specifications(name):
    file = shipped(name)
    assert file.id == name
    load_device(file.reference_gpu)
    for group, values in file.parameters.items():
        for key, value in values.items():
            spec = SPECS[f"{group}.{key}"]
            assert spec.lower <= value <= spec.upper, f"{group}.{key}"
    assert {"time", "tpot", "ttft", "energy", "power"} <= set(file.log_sd)
    assert all(0.0 < sd <= MAX_LOG_SD for sd in file.log_sd.values())


@pytest.mark.parametrize("name", FILES)
def test_source_names_tables_versions_and_judgements(name):
    source = shipped(name).source
    assert "AIConfigurator 0.12.0" in source and "vLLM 0.24.0" in source
    assert ("judgement" in source) == bool(build.RECIPES[name].adjust)


def test_every_device_composes_with_every_engine():
    engines = [read_engine(path) for path in (profiles_directory() / "engines").glob("*.toml")]
    assert engines
    for gpu in DEVICES:
        device = load_device(gpu)
        for engine in engines:
            version = engine.since or (None if engine.before is None else "0.1")
            calibration = compose(device, engine.engine, version)
            assert calibration.engine == engine.id
            assert calibration.log_sd["time"] >= kernels_for(device).log_sd["time"]


def test_devices_get_the_most_specific_file():
    found = {gpu: kernels_for(load_device(gpu)).id for gpu in DEVICES}
    for gpu, name in {
        "h100-sxm": "h100-sxm", "h100-pcie": "hopper", "a6000": "ampere-8.6", "a100-pcie-40gb": "ampere", "l4": "ada",
        "gb200": "blackwell", "rtx-5090": "blackwell-12.0", "orin-agx-64gb": "jetson", "mi300x": "any", "t4": "any",
        "thor-agx-128gb": "thor-agx-128gb",
    }.items():  # fmt: skip
        assert found[gpu] == name, gpu


@pytest.mark.parametrize("group", ["decode", "moe16"])
@pytest.mark.parametrize("gpu", ["h100-sxm", "rtx-pro-6000"])
def test_a_refit_reproduces_the_shipped_file(gpu, group):
    again = build.fit_group(group, (gpu,))
    assert again.solution.converged
    for name in again.solution.values:
        assert again.values[name] == pytest.approx(shipped(gpu).parameters[group][name], rel=2e-3), name


@pytest.mark.parametrize("group", [g for g in build.TABLED_GROUPS if g.startswith("moe")] + ["gemm8"])
def test_a_group_without_table_is_that_of_all_gpus(group):
    if build.has_table(group, "a100-sxm-80gb"):
        return
    assert shipped("a100-sxm-80gb").parameters[group] == shipped("any").parameters[group]


def test_spreads_widen_from_own_table_to_family_to_any():
    for kind in ("time", "tpot", "ttft", "energy", "power"):
        anything = shipped("any").log_sd[kind]
        for gpu, family in FAMILY_OF.items():
            assert shipped(gpu).log_sd[kind] < shipped(family).log_sd[kind] < anything, (gpu, kind)
        for name in ("ampere-8.6", "jetson", "thor-agx-128gb"):
            assert max(shipped(f).log_sd[kind] for f in ("hopper", "blackwell-12.0")) < shipped(name).log_sd[kind]
            assert shipped(name).log_sd[kind] < anything


def test_the_gddr_ampere_takes_only_memory_and_links_from_ada():
    ampere, ada, mixed = (shipped(name).parameters for name in ("ampere", "ada", "ampere-8.6"))
    assert mixed["gemm16"]["memory_fraction"] == ada["gemm16"]["memory_fraction"]
    assert mixed["decode"]["bandwidth_fraction"] == ada["decode"]["bandwidth_fraction"]
    assert mixed["collective"] == ada["collective"]
    for name in ("compute_fraction", "sustained_fraction", "tile_overhead", "start_s"):
        assert mixed["gemm16"][name] == ampere["gemm16"][name]


def utilisation_power(name, rows):
    """(share of the board's limit, of peak FLOP/s) that a 16-bit product of `rows` x 8192 x 8192 draws and reaches."""
    file, size = shipped(name), 8192.0
    device = load_device(file.reference_gpu)
    p, energy = GemmParameters(**file.parameters["gemm16"]), file.parameters["power"]
    time = gemm_time(rows, size, size, weight_byte=2.0, activation="bf16", device=device, p=p).seconds
    byte, flop = 2.0 * (size * size + 2.0 * rows * size), 2.0 * rows * size * size
    watts = device.power.idle_w + energy["busy_w"] + (energy["byte_j"] * byte + energy["flop_j"] * flop) / float(time)
    return watts / device.power.limit_w, flop / float(time) / device.compute.peak_flop_per_s["fp16"]


@pytest.mark.parametrize("name", sorted(set(FILES) - {"h100-sxm", "jetson", "thor-agx-128gb"}))
def test_large_products_draw_about_the_limit_and_streaming_less(name):
    # H100: figures of decoding servers, far below the peak. Jetson modules: a rail is not the board, LPDDR draws less
    product, _ = utilisation_power(name, 8192.0)
    stream, _ = utilisation_power(name, 1.0)
    assert 0.75 < product < 1.05
    assert 0.45 < stream < 0.95


def test_power_tables_tell_the_energy_of_bytes_and_flops():
    for gpu in ("h200-sxm", "b200-sxm"):
        stated = shipped(gpu).parameters["power"]
        found = power.fit_power(gpu, power.rule_power(load_device(gpu), shipped(gpu).parameters["gemm16"]))
        assert not found.not_identified
        assert found.values["byte_j"] == pytest.approx(stated["byte_j"], rel=2e-3)
        assert stated["flop_j"] <= 1.002 * found.values["flop_j"]  # less where products would exceed the limit


def test_text_reads_back_as_the_same_file(tmp_path):
    file = shipped("l40s")
    (tmp_path / "l40s.toml").write_text(build.kernels_text(file))
    assert read_kernels(tmp_path / "l40s.toml") == file
    assert (FOLDER / "l40s.toml").read_text() == build.kernels_text(file)


def test_models_beat_the_plain_roofline():
    errors = report.roofline_errors("decode", "h100-sxm")
    own = build.errors_of("decode", "h100-sxm", shipped("h100-sxm").parameters["decode"])
    assert np.median(errors) < -0.3
    assert np.median(np.abs(own)) < 0.06


def test_markdown_has_one_line_per_row():
    row = {"gpu": "l40s", "group": "decode", "operator": "attention, decode", "class": "16 bit", "n": 1241,
           "in_bias": 0.006, "in_median": 0.058, "in_p90": 0.199, "held_bias": 0.006, "held_median": 0.058,
           "held_p90": 0.203, "roofline_median": 0.34}  # fmt: skip
    lines = report.markdown([row]).splitlines()
    assert lines[2] == (
        "| l40s | attention, decode | 16 bit | 1,241 | +0.6 / 5.8 / 19.9 % | +0.6 / 5.8 / 20.3 % | 34 % |"
    )
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "a6000"], "unknown GPU with operator tables 'a6000'"),
        (["--gpu", "l40s", "--out", str(FOLDER)], "exists"),
    ],
)
def test_mistakes_are_found_before_any_work(arguments, message):
    result = CliRunner().invoke(command.kernels, arguments)
    assert message in str(result.exception)


def test_parameter_table_names_what_is_not_identified():
    fits = {"decode": build.fit_group("decode", ("l40s",))}
    lines = command.parameter_table("l40s", fits)
    assert len(lines) == 1 + len(fits["decode"].solution.values)
    assert any(line.endswith("no") and "decode.block_width_s" in line for line in lines)


def test_parallel_keeps_the_order():
    seen = []
    found = list(build.parallel(str.upper, ("b", "a"), 1, lambda done, total: seen.append((done, total))))
    assert found == ["B", "A"]
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_every_table_is_used():
    assert {gpu for recipe in build.RECIPES.values() for gpu in recipe.gpus} == set(tables.GPUS)
