"""vLLM in this process and vLLM's load generator, against stand-ins with the same call surface. No GPU is needed."""

import gzip
import json
import os
import stat
import sys
from dataclasses import replace
from types import SimpleNamespace

import fake_vllm
import pytest
from click.testing import CliRunner
from fake_nvml import FakeClock, FakeGpu, FakeNvml
from simulated_backend import SimulatedBackend, facts_of

from calibration.cli import calibrate
from calibration.collect.backends import BackendOptions, open_backend, vllm_bench, vllm_engine
from calibration.collect.backends.vllm_engine import IN_PROCESS, VllmEngine, engine_arguments
from calibration.collect.point import BackendError, Point
from calibration.collect.provenance import gpu_and_driver
from calibration.collect.statistics import latencies
from calibration.records import read_records

MODEL = "Qwen/Qwen3-0.6B"
BATCH = Point("static_batch", 3, 100, 5, 3)
OPTIONS = BackendOptions(model=MODEL, gpu="l40s", dummy_weights=True)


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.delenv(IN_PROCESS, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what the back-end sets stays in the test
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def backend(vllm):
    made = VllmEngine(OPTIONS, vllm, clock=vllm.clock)
    made.start(None)
    return made


def engine(vllm):
    return vllm.made[-1][1]


def test_the_engine_is_started_for_measuring(vllm):
    open_backend("vllm", replace(OPTIONS, dtype="bf16", seed=3, settings={"max_num_seqs": 64, "quantization": "fp8"}))
    arguments, _ = vllm.made[0]
    assert arguments["model"] == MODEL and arguments["load_format"] == "dummy" and arguments["seed"] == 3
    assert arguments["enable_prefix_caching"] is False and arguments["disable_log_stats"] is False
    assert arguments["skip_tokenizer_init"] is True and arguments["dtype"] == "bfloat16"
    assert arguments["max_num_seqs"] == 64 and "enforce_eager" not in arguments
    assert os.environ[IN_PROCESS] == "0"  # the batch is whole before its first step


def test_what_the_user_sets_wins(vllm):
    os.environ[IN_PROCESS] = "1"
    open_backend("vllm", replace(OPTIONS, dummy_weights=False, settings={"enable_prefix_caching": True}))
    assert os.environ[IN_PROCESS] == "1" and "load_format" not in vllm.made[0][0]
    assert vllm.made[0][0]["enable_prefix_caching"] is True
    assert engine_arguments(replace(OPTIONS, tensor_parallel_size=2), False)["enforce_eager"] is True


def test_a_batch_is_exact_and_its_times_are_those_of_the_steps(vllm, backend):
    seen = backend.run(BATCH, seed=1)
    assert engine(vllm).steps == [(3, 0), (0, 3), (0, 3), (0, 3), (0, 3)]
    assert [len(prompt) for prompt in engine(vllm).prompts] == [100, 100, 100]
    assert all(len(r.token_s) == r.output_tok == 5 and r.status == "ok" for r in seen.requests)
    assert len(seen.steps_s) == 5 and seen.end_s == seen.requests[0].token_s[-1]
    found = latencies([seen])
    assert found["tpot_s_mean"] == pytest.approx(fake_vllm.STEP_S)
    first = fake_vllm.STEP_S + 300 * fake_vllm.TOKEN_S
    waited = [first + n * fake_vllm.ADD_S for n in (3, 2, 1)]  # each was handed over before the next
    assert [r.token_s[0] - r.send_s for r in seen.requests] == pytest.approx(waited)
    assert seen.notes == () and seen.requests[0].cached_tok == 0


def test_prompts_are_random_ids_that_depend_on_the_seed_alone(vllm, backend):
    for seed in (1, 1, 2):
        backend.run(BATCH, seed)
    first, again, other = (engine(vllm).prompts[n : n + 3] for n in (0, 3, 6))
    assert first == again and first != other and len({tuple(prompt) for prompt in first}) == 3
    assert all(256 <= token < 10_000 for prompt in first for token in prompt)


def test_ends_of_sequences_are_ignored_and_not_masked_at_every_step(vllm, backend):
    backend.run(BATCH, seed=1)
    (asked,) = {(p.ignore_eos, p.min_tokens, p.max_tokens, p.temperature) for p in engine(vllm).params}
    assert asked == (True, 0, 5, 0.0)


def test_a_closed_loop_keeps_its_clients_busy(vllm, backend):
    seen = backend.run(Point("closed_loop", 2, 50, 3, 5), seed=0)
    assert len(seen.requests) == 5 and max(sum(step) for step in engine(vllm).steps) == 2
    ends = sorted(r.token_s[-1] for r in seen.requests)
    assert sorted(r.send_s for r in seen.requests)[2] == pytest.approx(ends[0], abs=2 * fake_vllm.ADD_S)
    burst = backend.run(Point("burst", 4, 50, 3, 4), seed=0)
    assert len(burst.requests) == 4


def test_a_warm_up_has_the_points_prompts_and_few_tokens(vllm, backend):
    backend.warm_up(replace(BATCH, output_tok=900))
    assert engine(vllm).steps[0] == (3, 0) and len(engine(vllm).steps) == vllm_engine.WARM_UP_TOK
    backend.warm_up(replace(BATCH, output_tok=1))
    assert engine(vllm).steps[-1] == (3, 0)


def test_facts_are_the_resolved_configuration(vllm, backend):
    facts = backend.facts()
    assert (facts.engine, facts.engine_version, facts.model) == ("vllm", "0.33.0", MODEL)
    assert (facts.weight_dtype, facts.activation_dtype, facts.kv_dtype) == ("bf16", "bf16", "bf16")
    wanted = {
        "max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 40_960, "prefix_caching": False,
        "chunked_prefill": True, "cuda_graphs": True, "num_gpu_blocks": 9000, "block_size": 16,
        "kv_capacity_tok": 144_000, "async_scheduling": False, "max_cudagraph_capture_size": 512,
        "gpu_memory_utilization": 0.92, "dummy_weights": True, "detokenize": False,
    }  # fmt: skip
    assert {name: facts.settings.get(name) for name in wanted} == wanted
    assert facts.model_config == {"model_type": "qwen3"} and json.dumps(facts.settings)
    assert "cudagraph_mode" not in facts.settings  # vLLM's default needs no flag


def test_a_gpu_or_driver_of_another_kind_is_another_configuration(vllm, backend, monkeypatch):
    first, found = FakeGpu(FakeClock()), []
    for gpu, driver in ((first, "580.1"), (first, "590.2"), (FakeGpu(FakeClock(), name="NVIDIA L4"), "580.1")):
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu, driver=driver))
        gpu_and_driver.cache_clear()
        facts = backend.facts()
        found.append((facts.settings["gpu_name"], facts.versions["driver"]))
    gpu_and_driver.cache_clear()
    assert found == [("NVIDIA H100 80GB HBM3", "580.1"), ("NVIDIA H100 80GB HBM3", "590.2"), ("NVIDIA L4", "580.1")]


def test_facts_tell_of_speculation_and_not_of_folders(vllm, backend):
    config = engine(vllm).vllm_config
    config.speculative_config = SimpleNamespace(method="ngram", num_speculative_tokens=4)
    config.model_config.hf_config.to_dict = lambda: {"model_type": "qwen3", "_name_or_path": "/home/alice/qwen"}
    facts = backend.facts()
    assert (facts.settings["speculative_method"], facts.settings["num_speculative_tokens"]) == ("ngram", 4)
    assert facts.model_config == {"model_type": "qwen3"}


def test_quantised_weights_are_named_where_their_width_is_known(vllm):
    for method, weights in {
        "fp8": "fp8",
        "awq_marlin": "int4",
        "modelopt_fp4": "nvfp4",
        "compressed-tensors": None,
    }.items():
        found = open_backend("vllm", replace(OPTIONS, settings={"quantization": method})).facts()
        assert found.weight_dtype == weights and found.activation_dtype is None and found.kv_dtype == "bf16"


def test_graphs_on_and_off_take_two_engines_one_after_the_other(vllm, backend):
    backend.run(replace(BATCH, cuda_graphs=False), seed=0)
    assert vllm.made[0][1].shut_down and vllm.made[1][0]["enforce_eager"] is True
    assert backend.facts().settings["cuda_graphs"] is False
    backend.run(replace(BATCH, cuda_graphs=False), seed=0)
    backend.run(BATCH, seed=0)  # does not mind
    assert len(vllm.made) == 2
    backend.run(replace(BATCH, cuda_graphs=True), seed=0)
    assert len(vllm.made) == 3 and vllm.made[2][0]["enforce_eager"] is False


def test_the_engines_own_clock_is_a_second_view(vllm, backend):
    engine(vllm).engine_slower = 0.8
    assert "first to last token: 1.250 of the engine's own time" in backend.run(BATCH, seed=0).notes
    engine(vllm).engine_slower, engine(vllm).statistics = 1.0, False
    assert "no time stamps" in backend.run(BATCH, seed=0).notes[0]


def test_what_vllm_refuses_or_dies_of_is_one_sentence(vllm, backend):
    engine(vllm).fail_at_step = 2
    with pytest.raises(BackendError, match=r"vLLM stopped: RuntimeError: CUDA error: device-side assert triggered$"):
        backend.run(BATCH, seed=0)
    with pytest.raises(BackendError, match="vLLM does not start: ValueError: User-specified max_model_len"):
        open_backend("vllm", replace(OPTIONS, settings={"max_model_len": 10**6}))
    with pytest.raises(BackendError, match="expected no base_url"):
        open_backend("vllm", replace(OPTIONS, base_url="http://127.0.0.1:8000"))
    with pytest.raises(BackendError, match="found device cpu"):
        open_backend("vllm", replace(OPTIONS, device="cpu"))
    with pytest.raises(BackendError, match="found load 'open_loop'"):
        backend.run(replace(BATCH, load="open_loop"), seed=0)
    backend.close()
    assert engine(vllm).shut_down or vllm.made[0][1].shut_down
    with pytest.raises(BackendError, match="is closed"):
        backend.run(BATCH, seed=0)


@pytest.mark.parametrize("error", [ValueError("no room"), KeyboardInterrupt()])
def test_requests_of_a_run_that_ended_early_do_not_run_beside_those_of_the_next(vllm, backend, error):
    engine(vllm).refuse_after, engine(vllm).refusal = 2, error
    with pytest.raises((BackendError, KeyboardInterrupt)):
        backend.run(BATCH, seed=0)
    engine(vllm).refuse_after = None
    seen = backend.run(BATCH, seed=0)
    assert engine(vllm).steps == [(3, 0), (0, 3), (0, 3), (0, 3), (0, 3)] and len(seen.requests) == 3


def test_a_model_may_be_a_folder_with_a_config(vllm, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert vllm_engine.model_argument(str(tmp_path), True) == str(tmp_path)
    assert vllm_engine.model_argument(str(tmp_path / "config.json"), True) == str(tmp_path)
    with pytest.raises(BackendError, match="no weights"):
        vllm_engine.model_argument(str(tmp_path), False)
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(BackendError, match="another file name"):
        vllm_engine.model_argument(str(tmp_path / "mine.json"), True)
    assert vllm_engine.model_argument(MODEL.lower(), False) == MODEL  # as Hugging Face spells it


def test_the_command_measures_with_vllm(vllm, monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda options, module: VllmEngine(options, module, vllm.clock))
    words = ["collect", "--backend", "vllm", "--model", MODEL, "--gpu", "l40s", "--out", str(tmp_path / "m")]
    words += ["--batch", "1,8", "--input-tok", "64", "--output-tok", "4", "--cuda-graphs", "both", "--dummy-weights"]
    result = CliRunner().invoke(calibrate, [*words, "--meter", "none"])
    assert result.exit_code == 0, result.output
    records = read_records(tmp_path / "m" / "runs.csv")
    assert len(records) == 6 and {record.cuda_graphs for record in records} == {True, False}
    assert len(vllm.made) == 2 and all(made.shut_down for _, made in vllm.made)
    assert all(r.engine_version == "0.33.0" and "dummy_weights" in r.flag_list for r in records)
    for record in records:
        assert record.tpot_s_mean == pytest.approx(fake_vllm.STEP_S, rel=1e-6)
    assert {r.flag_value("cudagraph_max:") for r in records if not r.cuda_graphs} == {None}
    with gzip.open(tmp_path / "m" / "samples.jsonl.gz", "rt") as file:
        assert any("steps_s" in row and len(row["steps_s"]) == 4 for row in map(json.loads, file))


# --- vllm bench serve ------------------------------------------------------------------------------------------------

LOOP = Point("closed_loop", 2, 100, 4, 6)
RESULT = {
    "duration": 1.5, "input_lens": [100, 101, 100], "output_lens": [4, 4, 0], "ttfts": [0.2, 0.25, 0.0],
    "itls": [[0.1, 0.1, 0.1], [0.3], []], "start_times": [50.0, 50.1, 50.2],
    "errors": ["", "", "Traceback\nConnectionResetError: gone"],
}  # fmt: skip


def test_the_command_line_of_the_load_generator():
    found = vllm_bench.serve_command("vllm", "http://127.0.0.1:8000", MODEL, LOOP, 7, 6, "folder")
    text = " ".join(found)
    assert text.startswith("vllm bench serve --backend vllm --base-url http://127.0.0.1:8000 --model Qwen/Qwen3-0.6B ")
    for part in (
        "--dataset-name random", "--random-input-len 100", "--random-output-len 4", "--random-range-ratio 0.0",
        "--num-prompts 6", "--request-rate inf", "--max-concurrency 2", "--seed 7", "--ignore-eos", "--save-result",
        "--save-detailed", "--num-warmups 0", "--result-filename result.json", "--ready-check-timeout-sec 0",
    ):  # fmt: skip
        assert part in text, part
    open_loop = vllm_bench.serve_command(
        "vllm", "r", MODEL, replace(LOOP, load="open_loop", request_rate_rps=2.5), 0, 6, "f"
    )
    assert "--max-concurrency" not in open_loop and open_loop[open_loop.index("--request-rate") + 1] == "2.5"
    assert "--served-model-name s" in " ".join(vllm_bench.serve_command("vllm", "r", MODEL, LOOP, 0, 6, "f", "s"))
    with pytest.raises(BackendError, match="found load 'static_batch'"):
        vllm_bench.serve_command("vllm", "r", MODEL, BATCH, 0, 3, "f")


def test_a_saved_result_becomes_an_observation():
    seen = vllm_bench.observation(RESULT)
    first, second, third = seen.requests
    assert first.send_s == 50.0 and first.token_s == pytest.approx((50.2, 50.3, 50.4, 50.5))
    assert first.tokens_per_event is None
    assert second.token_s == pytest.approx((50.35, 50.65)) and second.tokens_per_event == (2, 2)
    assert third.status == "failed: ConnectionResetError: gone" and third.token_s == ()
    assert (seen.start_s, seen.end_s) == (50.0, 51.5)
    found = latencies([seen])
    assert found["tpot_s_mean"] == pytest.approx((0.1 + 0.1) / 2) and found["ttft_s_mean"] == pytest.approx(0.225)


def test_results_that_do_not_say_enough_are_refused():
    with pytest.raises(BackendError, match="wrote no 'start_times'; expected a vLLM newer than 0"):
        vllm_bench.observation({name: value for name, value in RESULT.items() if name != "start_times"})
    dead = {**RESULT, "errors": ["gone"] * 3}
    with pytest.raises(BackendError, match="no request ended well: failed: gone"):
        vllm_bench.observation(dead)


def program(tmp_path, body):
    """An executable in the place of `vllm`."""
    path = tmp_path / "vllm"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_load_generator_is_run_and_its_result_read(tmp_path):
    (tmp_path / "saved.json").write_text(json.dumps(RESULT))
    find = 'while [ "$1" != --result-dir ]; do shift; done'
    tool = program(tmp_path, f'echo "$@" >> {tmp_path}/asked\n{find}\ncp {tmp_path}/saved.json "$2/result.json"')
    server = SimulatedBackend(facts_of(MODEL))
    options = replace(OPTIONS, model=MODEL.lower(), base_url="http://127.0.0.1:8000/v1")
    bench = vllm_bench.VllmBench(options, tool, server)
    bench.warm_up(replace(LOOP, num_requests=500))
    assert len(bench.run(LOOP, seed=5).requests) == 3 and bench.facts() == server.facts()
    warm_up, run = (tmp_path / "asked").read_text().splitlines()
    assert "--num-prompts 16" in warm_up and "--num-prompts 6" in run and "--seed 5" in run
    assert "--base-url http://127.0.0.1:8000 " in run and f"--model {MODEL} " in run  # as Hugging Face spells it
    bench.close()
    assert server.closed


def test_every_start_of_a_measurement_has_prompts_of_its_own(tmp_path):
    (tmp_path / "saved.json").write_text(json.dumps(RESULT))
    find = 'while [ "$1" != --result-dir ]; do shift; done'
    tool = program(tmp_path, f'echo "$@" >> {tmp_path}/asked\n{find}\ncp {tmp_path}/saved.json "$2/result.json"')
    said = []
    for salt in ("set/0", "set/0", "set/1"):
        options = replace(OPTIONS, base_url="http://127.0.0.1:8000", salt=salt)
        said += vllm_bench.VllmBench(options, tool, SimulatedBackend(facts_of(MODEL))).run(LOOP, seed=5).notes[-1:]
    seeds = [line.split("--seed ")[1].split()[0] for line in (tmp_path / "asked").read_text().splitlines()]
    assert seeds[0] == seeds[1] != seeds[2]
    assert said == [f"the load generator's seed is {seed}" for seed in seeds]


def test_a_load_generator_that_fails_says_why(tmp_path):
    options = replace(OPTIONS, base_url="http://127.0.0.1:8000")
    failing = program(tmp_path, "echo starting; echo 'ValueError: server not ready' >&2; exit 3")
    with pytest.raises(BackendError, match="ended with code 3: ValueError: server not ready"):
        vllm_bench.VllmBench(options, failing, SimulatedBackend(facts_of(MODEL))).run(LOOP, 0)
    silent = program(tmp_path, "exit 0")
    with pytest.raises(BackendError, match="wrote no result"):
        vllm_bench.VllmBench(options, silent, SimulatedBackend(facts_of(MODEL))).run(LOOP, 0)
    with pytest.raises(BackendError, match="allow-remote"):
        vllm_bench.VllmBench(replace(options, base_url="http://192.0.2.1:8000"), silent, None)
