"""The data sheet of the processor at hand, and what is thought of processors before their runs are fitted."""

import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from calibration.collect import host_sheet
from calibration.collect.backends import torch_quiet
from calibration.collect.host_sheet import (
    FILE,
    GPU,
    Figure,
    Rates,
    best_seconds,
    ensure_host_sheet,
    measure_rates,
    sheet_text,
    write_host_sheet,
)
from calibration.collect.point import BackendError
from calibration.family_fit import fit_family
from calibration.joint_fit import has_tables
from calibration.points import usable
from calibration.records import RunRecord
from calibration.regressor import prior_calibrations
from calibration.replay import replay
from calibration.setup import resolve, step_model
from simulator.device import load_device
from simulator.errors import UserError
from simulator.parameters import SPECS, with_values
from simulator.profile import MAX_LOG_SD
from simulator.profile_choice import load_calibration
from simulator.profile_parts import kernels_for, profiles_directory, read_kernels

RATES = Rates(4, 3.0e10, 3.4e10, 2.0e11, 4.5e11, "2.13.0")
HOSTS = sorted((profiles_directory() / "hosts").glob("*.toml"))


def written(folder, rates=RATES, name="AMD EPYC 9654", clock=2.4e9):
    path = folder / FILE
    path.write_text(sheet_text(rates, name, 64 * 2**30, Figure(clock, "told"), Figure(2**25, "told")), encoding="utf-8")
    return path


# --- the sheet ---------------------------------------------------------------------------------------------------


def test_the_sheet_is_read_as_a_device(tmp_path):
    device = load_device(written(tmp_path))
    assert (device.id, device.name, device.vendor, device.architecture) == (GPU, "AMD EPYC 9654", "AMD", "cpu")
    assert device.memory.bandwidth_byte_per_s == 3.4e10 and device.memory.unified
    assert (device.compute.sm_count, device.compute.clock_hz, device.compute.l2_byte) == (4, 2.4e9, 2**25)
    assert device.compute.peak_flop_per_s == {"fp32": 2.0e11, "fp16": 2.0e11, "bf16": 4.5e11}


def test_every_figure_has_a_source_and_what_is_assumed_says_so(tmp_path):
    sources = load_device(written(tmp_path)).sources
    for field in ("memory.capacity_byte", "memory.bandwidth_byte_per_s", "compute.sm_count", "compute.clock_hz",
                  "compute.l2_byte", "compute.peak_flop_per_s", "power"):  # fmt: skip
        assert sources[field]
    assert (
        "4 threads" in sources["memory.bandwidth_byte_per_s"] and "30.00 GB/s" in sources["memory.bandwidth_byte_per_s"]
    )
    assert "fp16 assumed equal to fp32" in sources["compute.peak_flop_per_s"]
    assert sources["power"].startswith("unknown") and "assumed" in sources["power"]
    assert "measured" not in sources["power"]


@pytest.mark.parametrize(("waited", "said"), [(None, False), (0.01, False), (0.4, True)])
def test_a_sheet_says_that_other_work_ran_beside_its_measuring(tmp_path, waited, said):
    sources = load_device(written(tmp_path, msgspec.convert({**vars(RATES), "waited": waited}, Rates))).sources
    for field in ("memory.bandwidth_byte_per_s", "compute.peak_flop_per_s"):
        assert ("(other work held up a thread for 40% of the time)" in sources[field]) == said


@pytest.mark.parametrize("waited", [None, 0.2, 0.3])
def test_no_sheet_of_a_busy_machine_is_kept(tmp_path, monkeypatch, waited):
    monkeypatch.setattr(host_sheet, "measure_rates", lambda threads: replace(RATES, waited=waited))
    if waited == 0.3:
        with pytest.raises(BackendError, match="other work held up a thread for 30% of the time; end that work"):
            ensure_host_sheet(tmp_path, 4)
    else:
        ensure_host_sheet(tmp_path, 4)
    assert (tmp_path / FILE).exists() == (waited != 0.3)


def test_measuring_a_sheet_is_done_again_where_other_work_held_it_up(monkeypatch):
    pytest.importorskip("torch")
    tries = iter([0.5, 0.1, 0.02])
    told = [0.0]

    def measure(works):
        told[0] += next(tries)
        return dict.fromkeys(works, told[0])

    monkeypatch.setattr(host_sheet, "_works", lambda: dict.fromkeys(("copy", "read", "fp32", "bf16")))
    monkeypatch.setattr(host_sheet, "best_seconds", measure)
    monkeypatch.setattr(torch_quiet, "waited_s", lambda: {"1": told[0]})
    ticks = itertools.count()
    monkeypatch.setattr(torch_quiet.time, "perf_counter", lambda: float(next(ticks)))
    found = measure_rates(1)
    assert found.waited == pytest.approx(0.02) and found.copy_byte_per_s == 2.0 * host_sheet.COPY_BYTE / 0.62
    assert found.better(replace(found, waited=0.01)).waited == 0.01
    assert replace(found, waited=None).better(found).waited is None


def test_a_slow_16_bit_product_is_left_out(tmp_path):
    peaks = load_device(written(tmp_path, msgspec.convert({**vars(RATES), "bf16_flop_per_s": None}, Rates)))
    assert set(peaks.compute.peak_flop_per_s) == {"fp32", "fp16"}
    assert "bf16 left out" in peaks.sources["compute.peak_flop_per_s"]


@pytest.mark.parametrize(("name", "vendor"), [("Intel(R) Xeon(R)", "Intel"), ("Neoverse-N1", "Arm"), ("X", "unknown")])
def test_the_maker_is_in_the_name(tmp_path, name, vendor):
    assert load_device(written(tmp_path, name=name)).vendor == vendor


def test_the_best_of_several_turns_counts():
    """Two works in turn on a made-up clock; the second call of each is the quickest."""
    durations = itertools.chain([0.3, 0.1, 0.3, 0.5, 0.2, 0.5], itertools.repeat(0.6))
    now, calls = [0.0], []

    def work(name):
        calls.append(name)

    def clock():
        clock.calls = getattr(clock, "calls", 0) + 1
        if clock.calls % 2 == 0:  # the end of a call
            now[0] += next(durations)
        return now[0]

    found = best_seconds({"a": lambda: work("a"), "b": lambda: work("b")}, clock)
    assert found == pytest.approx({"a": 0.1, "b": 0.2})
    turns = [name for name, _ in itertools.groupby(calls[2:])]
    assert calls[:2] == ["a", "b"] and turns == ["a", "b"] * host_sheet.ROUNDS
    assert len(calls) == 2 + 2 * host_sheet.ROUNDS * host_sheet.LEAST_CALLS


def test_of_two_measurements_the_better_counts():
    later = Rates(4, 2.0e10, 3.6e10, 2.5e11, None, "2.13.0")
    both = RATES.better(later)
    assert both == later.better(RATES)
    assert (both.copy_byte_per_s, both.read_byte_per_s, both.fp32_flop_per_s) == (3.0e10, 3.6e10, 2.5e11)
    assert both.bf16_flop_per_s == 4.5e11
    assert RATES.better(Rates(4, 1.0, 1.0, 5e11, None, "2.13.0")).bf16_flop_per_s is None  # now fp32 is faster


def test_this_machine_is_measured_once_and_kept(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(host_sheet, "COPY_BYTE", 2**22)
    monkeypatch.setattr(host_sheet, "PRODUCT", 64)
    monkeypatch.setattr(host_sheet, "LEAST_S", 0.0)
    monkeypatch.setattr(torch_quiet, "waited_s", dict)
    before = torch.get_num_threads()
    path = ensure_host_sheet(tmp_path / "new", 1)
    text = path.read_text(encoding="utf-8")
    assert torch.get_num_threads() == before
    device = load_device(path)
    assert path.name == FILE and device.compute.sm_count == 1 and device.memory.capacity_byte > 2**28
    monkeypatch.setattr(host_sheet, "measure_rates", None)  # not called any more
    assert ensure_host_sheet(tmp_path / "new", 1) == path
    assert path.read_text(encoding="utf-8") == text
    with pytest.raises(UserError, match="was measured with threads = 1, now it is 2"):
        ensure_host_sheet(tmp_path / "new", 2)
    monkeypatch.setattr(host_sheet, "_default_threads", lambda: 1)  # PyTorch's own choice counts, too
    assert ensure_host_sheet(tmp_path / "new") == path
    monkeypatch.setattr(host_sheet, "_default_threads", lambda: 3)
    with pytest.raises(UserError, match="was measured with threads = 1, now it is 3"):
        ensure_host_sheet(tmp_path / "new")
    monkeypatch.setattr(host_sheet.provenance, "host", lambda: {"cpu": "Another"})  # a folder that came from elsewhere
    with pytest.raises(UserError, match=r"was measured with processor = .*, now it is Another"):
        ensure_host_sheet(tmp_path / "new", 1)


def test_what_cannot_be_written_or_measured_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be made a folder"):
        write_host_sheet(tmp_path / "file", RATES)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(BackendError, match="the package 'torch', which is missing"):
        measure_rates(1)
    monkeypatch.setattr(host_sheet.provenance, "host", dict)
    with pytest.raises(BackendError, match="how much memory it has"):
        write_host_sheet(tmp_path, RATES)


# --- what is thought of processors -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_values_by_hand_are_within_their_specifications(path):
    file = read_kernels(path)
    assert file.id == path.stem and file.source.startswith("judgement")
    load_device(file.reference_gpu)
    for group, values in file.parameters.items():
        for key, value in values.items():
            assert SPECS[f"{group}.{key}"].lower <= value <= SPECS[f"{group}.{key}"].upper, f"{group}.{key}"
    assert {"time", "tpot", "ttft", "energy", "power"} <= set(file.log_sd)
    assert all(0.0 < sd <= MAX_LOG_SD for sd in file.log_sd.values())


def test_a_processor_gets_its_own_kernels_and_wide_intervals(tmp_path):
    device = load_device(written(tmp_path))
    assert kernels_for(device).id == "cpu"
    profile = load_calibration(device, None, "transformers", "5.0")
    assert profile.id == "cpu+transformers" and not profile.cuda_graphs
    assert profile.spread("tpot") >= 0.4 and profile.spread("power") >= 1.5


def test_rows_of_a_product_add_their_time_on_a_processor(tmp_path):
    """No tile of 16 rows: twice the rows, twice the arithmetic, from the first row on."""
    from simulator.kernels.gemm import gemm_time

    device = load_device(written(tmp_path))
    p = load_calibration(device, None, "transformers").parameters.gemm16
    at = gemm_time([1, 2, 3, 5], 512, 512, weight_byte=4.0, activation="fp32", device=device, p=p)
    assert np.diff(at.compute_s)[1] == pytest.approx(np.diff(at.compute_s)[0])
    assert at.compute_s[3] == pytest.approx(2.0 * at.compute_s[2])


MODEL = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192, "max_position_embeddings": 4096,
}  # fmt: skip
TRUTH = {"gemm16.memory_fraction": 0.3, "gemm16.compute_fraction": 0.6, "gemm16.skinny_vector_fraction": 0.55,
         "engine.step_host_s": 3e-3, "engine.request_s": 4e-4}  # fmt: skip


def runs(folder, sizes):
    """Records of runs on a sheet that ships nowhere, their times from the simulator with TRUTH."""
    config = folder / "config.json"
    config.write_bytes(msgspec.json.encode(MODEL))
    sheet = str(written(folder))
    out = []
    for batch, tokens in sizes:
        record = RunRecord(
            run_id=f"b{batch}n{tokens}", source="mine", gpu=sheet, model=str(config), weight_dtype="fp32",
            activation_dtype="fp32", kv_dtype="fp32", engine="transformers", load="static_batch", concurrency=batch,
            num_requests=batch, input_tok=tokens, output_tok=8, length_spread="fixed", max_num_batched_tokens=16384,
            chunked_prefill=False, prefix_caching=False, cuda_graphs=False, ttft_s_mean=1.0, tpot_s_mean=1.0,
        )  # fmt: skip
        setup = resolve(record)
        prior = load_calibration(setup.device, None, "transformers")
        true = msgspec.structs.replace(prior, parameters=with_values(prior.parameters, TRUTH))
        values = replay(setup, step_model(setup, true)).values
        out.append(msgspec.structs.replace(record, **{m: values[m] for m in ("ttft_s_mean", "tpot_s_mean")}))
    return out


def test_runs_on_a_sheet_of_the_users_own_can_be_fitted(tmp_path):
    records = runs(tmp_path, [(b, n) for b in (1, 4, 16, 64) for n in (32, 128, 512)])
    setups = usable(records, GPU)
    assert len(setups) == len(records) and not has_tables(GPU) and has_tables("h100-sxm")
    result = fit_family(setups, leave_out=False, priors=prior_calibrations(setups, fitted=True))
    assert {f"{GPU}/gemm16.skinny_vector_fraction", "engine.step_host_s"} <= set(result.times.names_)
    profile = result.times.fit_.of_gpu(GPU)
    for record in runs(tmp_path, [(2, 64), (8, 256), (24, 16)]):
        setup = resolve(record)
        values = replay(setup, step_model(setup, profile)).values
        for metric in ("ttft_s_mean", "tpot_s_mean"):
            assert values[metric] == pytest.approx(getattr(record, metric), rel=0.05), (record.run_id, metric)
