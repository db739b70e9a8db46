"""Whether what was simulated is what was measured, and records that contradict themselves or a data sheet."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, run

import hwspecs
from validate.cases import Case, Evidence

SHEETS = Path(hwspecs.__file__).parent


def pair(measured=None, *, own=False, **simulated):
    """Findings on one pair: a measured run, and the same with some fields of the simulated side changed."""
    measured = measured or run()
    ours = case(measured, simulated={"tpot_s_mean": 0.011, "kv_capacity_tok": 300_000.0})
    theirs = msgspec.structs.replace(ours.simulated, **simulated)
    one = Case(measured, ours.prediction, theirs)
    return found("configuration", Evidence("runs.csv", [one], {}, frozenset(), own=own))


def only(findings, check="configuration.differs"):
    (finding,) = [f for f in findings if f.check == check]
    return finding


def alarms(findings):
    return [f for f in findings if f.alarm]


# ---- field by field


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("gpu", "h200-sxm"), ("model", "Qwen/Qwen3-14B"), ("n_gpus", 2), ("tp", 2), ("pp", 2), ("ep", 2), ("dp", 2),
        ("weight_dtype", "fp8"), ("activation_dtype", "fp8"), ("kv_dtype", "fp8"), ("engine", "sglang"),
        ("max_num_seqs", 8), ("max_num_batched_tokens", 2048), ("max_model_len", 1000), ("prefix_caching", True),
        ("chunked_prefill", False), ("cuda_graphs", False),
    ],
)  # fmt: skip
def test_a_field_that_differs_is_refused_and_named(field, other):
    finding = only(pair(**{field: other}))
    assert (finding.severity, finding.fault, finding.evidence["field"]) == ("fail", "F1", field)
    assert finding.metrics == () and finding.runs == ("r0",)


def test_equal_sides_raise_nothing():
    assert pair() == [] and pair(own=True) == []


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("gpu", "H100"), ("model", "qwen/qwen3-8b"), ("engine_version", "0.11"), ("engine_version", "v0.11.0"),
        ("engine_version", "0.11.0.post1"), ("gpu_memory_utilization", 0.9 + 1e-9),
    ],
)  # fmt: skip
def test_another_spelling_is_no_difference(field, other):
    assert pair(**{field: other}) == []


@pytest.mark.parametrize(
    ("field", "other", "why"),
    [
        ("engine_version", "0.19.0", "10 to 25 %"),
        ("max_num_seqs", 128, "neither limits"),  # 16 clients
        ("max_model_len", 4096, "fit into both"),
        ("gpu_memory_utilization", 0.5, "not what limits"),
    ],
)
def test_what_hardly_matters_is_a_label(field, other, why):
    finding = only(pair(**{field: other}))
    assert finding.severity == "warn" and why in finding.says


def test_types_of_one_size_and_rate_are_a_note():
    finding = only(pair(weight_dtype="fp16"), "configuration.resolved_otherwise")
    assert finding.severity == "note"


def test_two_entry_points_with_two_defaults_are_told_apart():
    """LLM-SERVE: 16,384 tokens per step in process, 8,192 in the server, on one GPU of at least 70 GiB."""
    finding = only(pair(run(max_num_batched_tokens=16384), max_num_batched_tokens=8192))
    assert (finding.evidence["measured"], finding.evidence["simulated"]) == ("16384", "8192")


def test_settings_in_flags_are_compared_where_both_state_them():
    measured = run(flags="cudagraph_mode:piecewise")
    assert only(pair(measured, flags="cudagraph_mode:full")).evidence["field"] == "cudagraph_mode"
    assert pair(measured, flags=None) == []


def test_power_modes_are_compared_by_what_they_set():
    jetson = run(gpu="orin-agx-64gb", power_mode="MAXN", model="Qwen/Qwen3-1.7B")
    assert not alarms(pair(jetson, power_mode="maxn"))
    assert only(pair(jetson, power_mode="30W")).severity == "fail"


def test_recurrent_state_is_not_cached_whatever_the_setting():
    finding = only(
        pair(run(model="nvidia/NVIDIA-Nemotron-Nano-9B-v2", prefix_caching=True), own=True),
        "configuration.resolved_otherwise",
    )
    assert finding.severity == "note" and "recurrent" in finding.says


def test_one_finding_per_field_with_all_its_runs():
    cases = []
    for i in range(3):
        ours = case(run(run_id=f"r{i}"), simulated={"tpot_s_mean": 0.011})
        cases.append(Case(ours.record, ours.prediction, msgspec.structs.replace(ours.simulated, tp=2)))
    findings = found("configuration", Evidence("runs.csv", cases, {}, frozenset(), own=False))
    assert only(findings).runs == ("r0", "r1", "r2")


def test_what_one_side_does_not_state_is_a_note_and_no_refusal():
    finding = only(pair(run(kv_dtype=None, cuda_graphs=None), own=True), "configuration.unstated")
    assert finding.severity == "note" and finding.evidence["missing"] == "kv_dtype, cuda_graphs"
    assert finding.evidence["kv_dtype"] == "bf16"  # what was assumed
    theirs = only(pair(tp=None), "configuration.unstated")
    assert theirs.evidence["side"] == "simulated" and theirs.evidence["missing"] == "tp"


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(["n_gpus", "tp", "kv_dtype", "engine_version", "max_num_seqs", "cuda_graphs", "dp"])))
def test_empty_fields_never_alarm(empty):
    """The simulated side resolves them; nothing that is not stated can contradict anything."""
    assert not alarms(pair(run(**dict.fromkeys(empty)), own=True))


# ---- KV capacity


def test_blocks_of_the_engine_against_blocks_of_the_simulator():
    """LSS-KV: 3,400 blocks simulated, 2,588 resolved; times moved by 13 to 21 %."""
    busy = run(kv_capacity_tok=2588 * 16.0, concurrency=64, num_requests=640)
    finding = only(pair(busy, kv_capacity_tok=3400 * 16.0), "configuration.kv_capacity")
    assert finding.severity == "fail" and finding.fault == "F1" and finding.metrics == ()
    assert finding.evidence["ratio"] == pytest.approx(1.314, abs=1e-3)
    assert pair(busy, kv_capacity_tok=2588 * 16.0) == []
    assert only(pair(busy, kv_capacity_tok=2588 * 16 * 1.05), "configuration.kv_capacity").severity == "warn"


def test_a_cache_that_is_never_full_only_labels():
    quiet = run(kv_capacity_tok=2588 * 160.0)
    assert only(pair(quiet, kv_capacity_tok=3400 * 160.0), "configuration.kv_capacity").severity == "warn"


@pytest.mark.parametrize(("ratio", "severity"), [(1.05, None), (1.15, "note"), (0.87, "note"), (1.314, "warn")])
def test_our_own_plan_is_an_estimate(ratio, severity):
    measured = run(kv_capacity_tok=100_000.0)
    said = [f for f in pair(measured, own=True, kv_capacity_tok=ratio * 1e5) if f.check == "configuration.kv_capacity"]
    assert [f.severity for f in said] == ([severity] if severity else [])


# ---- one record against itself


def told(**changes):
    return {f.check.removeprefix("configuration."): f for f in found("configuration", by_hand([run(**changes)]))}


def test_devices_are_the_product_of_the_splits():
    assert told(n_gpus=4, tp=2)["device_count"].severity == "fail"
    for split in ({"tp": 4}, {"tp": 2, "pp": 2}, {"tp": 2, "dp": 2}, {"tp": 4, "dp": 4}):  # the last: inside the group
        assert told(n_gpus=4, **split) == {}
    assert told(n_gpus=4, tp=None) == {}


def test_a_label_of_one_where_experts_are_spread():
    """MLE-TP: the table says tensor parallel 1 for expert-parallel runs on several GPUs."""
    finding = told(n_gpus=8, tp=1, ep=8, dp=None, model="Qwen/Qwen3-235B-A22B-Instruct-2507")["device_count"]
    assert finding.severity == "warn" and "experts spread over 8" in finding.says


def test_experts_on_devices_that_are_not_there():
    model = "Qwen/Qwen3-30B-A3B"
    assert told(model=model, n_gpus=2, tp=2, ep=4)["expert_split"].severity == "fail"
    assert told(model=model, n_gpus=2, tp=2, ep=2) == {}


def test_weights_that_the_devices_cannot_hold():
    """MLPERF-DT and V100-MEM: 70 B parameters in 16 bit are 131 GiB; a card of 80 GiB ran something narrower."""
    big = {"model": "meta-llama/Llama-3.1-70B-Instruct"}
    finding = told(**big)["weights_fit"]
    assert (finding.severity, finding.confidence, finding.also) == ("fail", "certain", ("F3",))
    assert 125 < finding.evidence["weights_gib"] < 135
    assert told(**big, weight_dtype="fp8", activation_dtype="fp8")["weights_fit"].severity == "note"  # just fits
    assert told(**big, weight_dtype="int4").get("weights_fit") is None
    assert told(**big, n_gpus=4, tp=4).get("weights_fit") is None


def test_the_memory_of_the_board_decides():
    """V100-MEM: 8 B parameters in fp16 (15.0 GiB) run on 32 GiB, and leave nothing of 16 GiB."""
    v100 = {"weight_dtype": "fp16", "activation_dtype": "fp16", "kv_dtype": "fp16"}
    assert told(gpu="v100-sxm-32gb", **v100).get("weights_fit") is None
    assert told(gpu="v100-sxm-16gb", **v100)["weights_fit"].severity == "note"
    assert told(gpu="v100-sxm-16gb", **v100, model="Qwen/Qwen3-14B")["weights_fit"].severity == "fail"


def test_requests_longer_than_the_model_may_read():
    assert told(max_model_len=1011)["length_limit"].severity == "fail"
    assert told(max_model_len=1012) == {}


def test_a_static_batch_that_cannot_run_at_once():
    batch = {"load": "static_batch", "num_requests": None}
    assert told(**batch, concurrency=65)["seats"].severity == "warn"
    assert told(**batch, concurrency=64) == {}
    assert told(**batch, concurrency=128, dp=2, n_gpus=2) == {}  # the limit is per replica
    assert told(load="closed_loop", concurrency=640, num_requests=6400) == {}


@pytest.mark.parametrize(
    ("gpu", "dtype", "severity"),
    [
        ("h100-sxm", "nvfp4", "fail"), ("b200-sxm", "nvfp4", None), ("a100-sxm-80gb", "fp8", "fail"),
        ("a100-sxm-80gb", "fp8-block", "fail"), ("h100-sxm", "fp8-block", None), ("v100-sxm-32gb", "bf16", "warn"),
        ("a100-sxm-80gb", "int8", None), ("no-such-gpu", "fp8", None), ("h100-sxm", "float99", None),
    ],
)  # fmt: skip
def test_arithmetic_that_the_gpu_has_no_units_for(gpu, dtype, severity):
    finding = told(gpu=gpu, activation_dtype=dtype, kv_dtype=None).get("arithmetic")
    assert (finding and finding.severity) == severity


def test_a_power_mode_that_the_board_does_not_have():
    jetson = {"gpu": "orin-agx-64gb", "model": "Qwen/Qwen3-1.7B"}
    assert told(**jetson, power_mode="70W")["power_mode"].severity == "warn"
    assert "power_mode" not in told(**jetson, power_mode="30W")
    assert told(power_mode="2000W")["power_mode"].severity == "warn"
    assert "power_mode" not in told(power_mode="500W")


def test_many_runs_are_one_finding_with_the_worst():
    records = [run(run_id=f"r{i}", max_model_len=limit) for i, limit in enumerate((1000, 500, 2000))]
    (finding,) = [f for f in found("configuration", by_hand(records)) if f.alarm]
    assert finding.runs == ("r0", "r1") and finding.evidence["worst_run"] == "r1"


# ---- a user's own data sheet


def with_sheet(tmp_path, name, *changes):
    text = (SHEETS / f"{name}.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    findings = found("configuration", by_hand([run(gpu=str(path))]))
    return [f for f in findings if f.check in ("configuration.data_sheet", "configuration.sparse_peak")]


def value_line(name, field):
    """The line of a field in a sheet that ships, and its value."""
    lines = (SHEETS / f"{name}.toml").read_text().splitlines(keepends=True)
    line = next(line for line in lines if line.startswith(f"{field} ="))
    return line, float(line.partition("=")[2].partition("#")[0].strip().replace("_", ""))


@pytest.mark.parametrize(
    ("name", "field", "factor"),
    [
        ("orin-nano-8gb", "bandwidth_byte_per_s", 2.0),  # SMOL-204: 204.8 GB/s of another module for 102
        ("v100-sxm-16gb", "capacity_byte", 2.0),  # V100-MEM: 32 GB of the other board
    ],
)
def test_a_figure_of_another_module(tmp_path, name, field, factor):
    line, value = value_line(name, field)
    number = f"{value * factor:.0f}" if field == "capacity_byte" else f"{value * factor:.6e}"
    (finding,) = with_sheet(tmp_path, name, (line, f"{field} = {number}\n"))
    assert finding.severity == "warn" and finding.evidence["ratio"] == pytest.approx(factor, rel=1e-3)


def test_the_sheets_that_ship_agree_with_themselves(tmp_path):
    for name in ("orin-nano-8gb", "l40s", "h100-sxm", "v100-sxm-16gb"):
        assert with_sheet(tmp_path, name) == []


@pytest.mark.parametrize("renamed", [False, True])
def test_a_sparse_peak_taken_for_the_dense_one(tmp_path, renamed):
    """SPARSE: FP8 of an L40S given as 1,466 TFLOP/s; dense are 733. Found by name, or by its multiprocessors."""
    line, value = value_line("l40s", "fp8")
    assert value == pytest.approx(733e12, rel=0.01)
    changes = [(line, "fp8 = 1.466e15\n")]
    if renamed:
        head = (SHEETS / "l40s.toml").read_text().split("\n[", 1)[0]
        new = [x for x in head.splitlines() if not x.startswith(("id", "name", "aliases"))]
        changes.append((head, "\n".join(['id = "my-card"', 'name = "My card"', *new])))
    (finding,) = with_sheet(tmp_path, "l40s", *changes)
    assert finding.evidence["ratio"] == pytest.approx(2.0, abs=0.1)
    assert "sparse" in finding.says and finding.also == ("F2",)
