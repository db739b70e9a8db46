"""Plain PyTorch as a back-end: what it computes, what its clock sees, what it tells of itself, what it refuses."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from calibration.collect.backends import BackendOptions, open_backend, torch_quiet
from calibration.collect.backends.torch_build import check_memory, read_config
from calibration.collect.backends.torch_cache import new_cache
from calibration.collect.backends.torch_options import TorchSettings, check, dtype_of, read_settings, where
from calibration.collect.point import BackendError, Point
from calibration.collect.to_records import configuration
from calibration.records import RunRecord
from calibration.setup import resolve
from calibration.trajectory import trajectory_of
from simulator.errors import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 211, "max_position_embeddings": 64,
}  # fmt: skip
WINDOW = SMALL | {"model_type": "mistral", "sliding_window": 5}
QWEN = SMALL | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
POINT = Point("static_batch", 3, 7, 5, 3)


def opened(folder, config=SMALL, **options):
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    settings = {"threads": 1} | options.pop("settings", {})
    return open_backend(
        "transformers", BackendOptions(str(path), "host-cpu", device="cpu", settings=settings, **options)
    )


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    """Whatever else this machine does: no run is done again because of it."""
    monkeypatch.setattr(torch_quiet, "waited_s", dict)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("small"))


def prompts(batch=3, length=7):
    return torch.randint(0, 211, (batch, length), generator=torch.Generator().manual_seed(1))


def without_cache(model, tokens, output_tok):
    """Greedy tokens from whole sequences, nothing kept between steps."""
    with torch.inference_mode():
        for _ in range(output_tok):
            new = model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(dim=-1)
            tokens = torch.cat([tokens, new], dim=1)
    return tokens[:, -output_tok:]


# --- what it computes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "cache"), [(SMALL, "in place"), (QWEN, "in place"), (WINDOW, "by concatenation")])
def test_tokens_are_those_of_whole_sequences_without_a_cache(tmp_path, config, cache):
    stepper = opened(tmp_path, config)._stepper
    found = stepper.run(prompts(), 9)
    assert found.cache == cache
    assert torch.equal(found.tokens, without_cache(stepper.model, prompts(), 9))


def test_the_cache_is_written_in_place(backend):
    model = backend._stepper.model
    cache, _ = new_cache(model, 3, 12)
    name = backend._stepper._cache_name
    places = set()
    with torch.inference_mode():
        for step, new in enumerate((prompts(), prompts(3, 1), prompts(3, 1))):
            model(input_ids=new, **{name: cache}, use_cache=True)
            places.add(tuple(tensor.data_ptr() for layer in cache.layers for tensor in (layer.keys, layer.values)))
            assert cache.get_seq_length() == 7 + step
    assert len(places) == 1 and len(set(*places)) == 6


def test_the_same_seed_gives_the_same_weights_and_prompts(tmp_path):
    first, same, other = (opened(tmp_path, seed=seed)._stepper.model.state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(weights, same[name]) for name, weights in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_prompts_come_from_the_seed_of_the_run(backend):
    seen = []
    stepper = backend._stepper
    run = stepper.run
    try:
        stepper.run = lambda asked, tokens: (seen.append(asked), run(asked, tokens))[1]
        for seed in (1, 1, 2):
            backend.run(POINT, seed)
    finally:
        del stepper.run
    assert seen[0].shape == (3, 7) and torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("config", [SMALL, QWEN, SMALL | {"head_dim": 24}])
def test_the_room_for_keys_and_values_is_there_before_the_clock_starts(tmp_path, config):
    stepper = opened(tmp_path, config)._stepper
    cache, _ = new_cache(stepper.model, 3, 12)
    rooms = [tensor.untyped_storage().data_ptr() for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert cache.get_seq_length() == 0 and len(set(rooms)) == 6
    with torch.inference_mode():
        stepper.model(input_ids=prompts(), **{stepper._cache_name: cache}, use_cache=True)
    filled = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert [tensor.untyped_storage().data_ptr() for tensor in filled] == rooms
    assert {tensor.shape[2] for tensor in filled} == {7}


# --- what its clock sees -----------------------------------------------------------------------------------------


def test_every_step_is_waited_for_and_stamped_once_without_garbage_collection(backend):
    stepper, events, ticks = backend._stepper, [], count(10)

    def clock():
        events.append("clock off" if not gc.isenabled() else "clock on")
        return float(next(ticks))

    kept = stepper._synchronize, stepper._clock
    stepper._synchronize, stepper._clock = lambda: events.append("wait"), clock
    try:
        found = backend.run(POINT, 0)
    finally:
        stepper._synchronize, stepper._clock = kept
    assert events == ["wait", "clock off"] * 6
    assert (found.start_s, found.end_s, found.steps_s) == (10.0, 15.0, (1.0,) * 5)
    assert len(found.requests) == 3 and gc.isenabled()
    for request in found.requests:
        assert request.send_s == 10.0 and request.token_s == (11.0, 12.0, 13.0, 14.0, 15.0)
        assert (request.input_tok, request.output_tok, request.status) == (7, 5, "ok")


def test_real_steps_take_time_and_prompts_more_than_tokens(backend):
    point = Point("static_batch", 8, 56, 8, 8)
    backend.warm_up(point)
    found = backend.run(point, 0)
    assert all(step > 0.0 for step in found.steps_s) and found.steps_s[0] > np.median(found.steps_s[1:])
    assert sum(found.steps_s) == pytest.approx(found.end_s - found.start_s)


def test_garbage_is_collected_again_after_an_error(backend):
    stepper = backend._stepper
    kept = stepper.model

    class Full:
        config, dtype, device = kept.config, kept.dtype, kept.device

        def __call__(self, **_):
            raise torch.OutOfMemoryError("full")

    stepper.model = Full()
    try:
        with pytest.raises(BackendError, match="out of memory with a batch of 3 x 12 tokens"):
            backend.run(POINT, 0)
        Full.__call__ = lambda self, **_: torch.ones(2) + torch.ones(3)
        with pytest.raises(BackendError, match="a step of the model failed: The size of tensor a"):
            backend.run(POINT, 0)
    finally:
        stepper.model = kept
    assert gc.isenabled()


def waits(monkeypatch, *shares):
    """As if a thread had waited for so much of the time of each run in turn, on a clock that only runs then move."""
    now, told, left = [0.0], [0.0], iter(shares)
    monkeypatch.setattr(torch_quiet.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch_quiet, "waited_s", lambda: {"7": told[0], "8": 0.1})

    def run():
        now[0], told[0] = now[0] + 2.0, told[0] + 2.0 * next(left)
        return f"run {now[0] / 2.0:.0f}"

    return run


@pytest.mark.parametrize(
    ("shares", "kept", "waited"),
    [((0.01,), 1, 0.01), ((0.5, 0.02), 2, 0.02), ((0.5, 0.9, 0.3), 3, 0.3), ((0.3, 0.5, 0.9), 1, 0.3)],
)
def test_a_run_that_other_work_held_up_is_done_again(monkeypatch, shares, kept, waited):
    assert torch_quiet.quietest(waits(monkeypatch, *shares, *[0.0] * 3)) == (f"run {kept}", pytest.approx(waited))


def test_a_run_is_done_as_often_as_is_asked_for(tmp_path, monkeypatch):
    ticks, made = count(), opened(tmp_path, settings={"tries": 2})
    monkeypatch.setattr(torch_quiet, "waited_s", lambda: {"1": 1e3 * next(ticks)})
    seen, run = [], made._stepper.run
    monkeypatch.setattr(made._stepper, "run", lambda *asked: (seen.append(asked), run(*asked))[1])
    made.run(POINT, 0)
    assert len(seen) == 2


def test_where_the_kernel_does_not_count_nothing_is_done_again(tmp_path, monkeypatch):
    runs = []
    assert torch_quiet.quietest(lambda: runs.append(1)) == (None, None) and runs == [1]
    monkeypatch.undo()
    monkeypatch.setattr(torch_quiet, "_THREADS", tmp_path)
    assert torch_quiet.waited_s() == {}
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "schedstat").write_text("1000 2500000000 3\n")
    (tmp_path / "6").mkdir()
    (tmp_path / "6" / "schedstat").write_text("\n")
    assert torch_quiet.waited_s() == {"5": 2.5}


def test_what_held_up_every_try_is_said(backend, monkeypatch):
    ticks = count()
    monkeypatch.setattr(torch_quiet, "waited_s", lambda: {"1": 1e3 * next(ticks)})
    (note,) = backend.run(POINT, 0).notes
    assert note.startswith("disturbed: other work held up a thread for ")


def test_a_process_that_shares_its_core_waits_for_it():
    code = (
        "import os, subprocess, sys\n"
        "from calibration.collect.backends.torch_quiet import waited_s\n"
        "if not waited_s(): raise SystemExit  # no Linux, or one that does not count\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "before = max(waited_s().values())\n"
        "while max(waited_s().values()) < before + 0.1: pass\n"
        "other.kill()"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, env=os.environ).returncode == 0


# --- what it tells of itself --------------------------------------------------------------------------------------


def test_facts_resolve_to_a_run_whose_prompts_are_one_step(backend, tmp_path):
    facts = backend.facts()
    assert (facts.engine, facts.weight_dtype, facts.kv_dtype) == ("transformers", "fp32", "fp32")
    assert facts.settings["dummy_weights"] is True and facts.settings["threads"] == 1
    assert facts.settings["sampling"] == "greedy" and facts.settings["attention_backend"] == "sdpa"
    assert facts.versions["torch"] == torch.__version__ and facts.model_config == SMALL
    point = Point("static_batch", 200, 50, 4, 200)
    record = RunRecord(run_id="r", source="collect", gpu="l4", ttft_s_mean=1.0, **configuration(point, facts))
    setup = resolve(record)
    assert (setup.family.id, setup.cuda_graphs, setup.sampler) == ("transformers", False, "greedy")
    assert setup.precision.to_dict() == dict.fromkeys(("weights", "activations", "kv_cache"), "fp32")
    steps = trajectory_of(record, setup.model, setup.settings, setup.kv_blocks).steps
    assert [tok for tok in steps.prefill_tok if tok] == [10_000.0]


def test_a_narrower_type_reaches_weights_and_facts(tmp_path):
    found = opened(tmp_path, dtype="bf16")
    assert {p.dtype for p in found._stepper.model.parameters()} == {torch.bfloat16}
    assert found.facts().weight_dtype == found.facts().kv_dtype == "bf16"
    assert found.run(POINT, 0).notes == ()


def test_a_cache_that_is_copied_is_said(tmp_path):
    (note,) = opened(tmp_path, WINDOW).run(POINT, 0).notes
    assert "copied at every step" in note


# --- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"load": "closed_loop"}, "found load 'closed_loop'"),
        ({"num_requests": 6}, "with 6 requests, 3 at a time"),
        ({"cuda_graphs": True}, "no CUDA graphs"),
        ({"input_tok": 60}, "65 tokens per sequence, expected at most max_model_len = 64"),
        ({"concurrency": 300, "num_requests": 300}, "300 sequences, expected at most max_num_seqs = 256"),
        ({"concurrency": 250, "num_requests": 250, "input_tok": 59}, None),
    ],
)
def test_points_that_it_cannot_run(backend, change, said):
    point = replace(POINT, **change)
    if said is None:  # within all limits
        backend._check(point)
        return
    for call in (lambda: backend.run(point, 0), lambda: backend.warm_up(point)):
        with pytest.raises(BackendError, match=said):
            call()


def test_limits_can_be_set(tmp_path):
    found = opened(tmp_path, settings={"max_num_batched_tokens": 20, "max_model_len": 30, "max_num_seqs": 4})
    assert found.facts().settings["max_model_len"] == 30
    with pytest.raises(
        BackendError, match="21 prompt tokens in one step, expected at most max_num_batched_tokens = 20"
    ):
        found.run(POINT, 0)


def test_a_closed_back_end_says_so(tmp_path):
    found = opened(tmp_path)
    found.close()
    with pytest.raises(BackendError, match="is closed"):
        found.run(POINT, 0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SMALL | {"quantization_config": {"quant_method": "fp8"}}, "quantised weights"),
        (SMALL | {"hidden_act": "nonsense"}, "cannot build a model of type 'llama': .*nonsense"),
    ],
)
def test_models_that_it_cannot_build(tmp_path, config, said):
    with pytest.raises(BackendError, match=said) as caught:
        opened(tmp_path, config)
    assert "\n" not in str(caught.value)


def test_a_model_larger_than_memory_is_refused_before_it_is_built():
    with pytest.raises(BackendError, match=r"weights of 'llama-3.1-405b' in fp32 take 1\d{3}\.\d GB, cpu has"):
        check_memory("llama-3.1-405b", "fp32", "cpu")
    check_memory("qwen3-0.6b", "bf16", "cpu")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "tpu"}, "device: found 'tpu'"),
        ({"dtype": "fp8"}, "dtype: found 'fp8'"),
        ({"tensor_parallel_size": 2}, "on one device"),
        ({"cuda_graphs": True}, "no CUDA graphs"),
        ({"base_url": "http://127.0.0.1:1"}, "expected no base_url"),
    ],
)
def test_options_that_it_cannot_serve(options, said):
    with pytest.raises(BackendError, match=said):
        check(BackendOptions("m", "g", **options))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_settings_are_whole_numbers(value):
    with pytest.raises(BackendError, match=r"threads: found .* expected a whole number from 1 on"):
        read_settings({"threads": value})


def test_settings_have_names():
    assert read_settings({"attention": "eager", "threads": 3}) == TorchSettings(attention="eager", threads=3)
    with pytest.raises(UserError, match=r"unknown setting .* 'thread'; nearest: threads"):
        read_settings({"thread": 1})
    with pytest.raises(BackendError, match="attention: found 'flash'"):
        read_settings({"attention": "flash"})


def test_the_device_and_type_that_are_taken():
    assert where(BackendOptions("m", "g"), cuda_available=True) == "cuda"
    assert where(BackendOptions("m", "g"), cuda_available=False) == "cpu"
    assert where(BackendOptions("m", "g", device="cpu"), cuda_available=True) == "cpu"
    with pytest.raises(BackendError, match="PyTorch sees no GPU here"):
        where(BackendOptions("m", "g", device="cuda"), cuda_available=False)
    config = {"torch_dtype": "bfloat16"}
    assert dtype_of(BackendOptions("m", "g"), config, "cuda") == "bf16"
    assert dtype_of(BackendOptions("m", "g"), config, "cpu") == "fp32"
    assert dtype_of(BackendOptions("m", "g", dtype="fp16"), config, "cpu") == "fp16"
    with pytest.raises(UserError, match="type 'float8', give one of fp32, bf16, fp16"):
        dtype_of(BackendOptions("m", "g"), {"dtype": "float8"}, "cuda")


def test_configs_of_bundled_models_and_of_files(tmp_path):
    assert read_config("Qwen/Qwen3-8B") == read_config("qwen3-8b") and read_config("qwen3-8b")["model_type"] == "qwen3"
    (tmp_path / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    assert read_config(str(tmp_path)) == read_config(str(tmp_path / "config.json")) == SMALL
    with pytest.raises(UserError, match="unknown model 'qwen3-9b'"):
        read_config("qwen3-9b")
