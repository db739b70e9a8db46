"""Clean campaigns that no shipped file holds: every column measured, repeats, open loops; simulated, then disturbed.

Ground: our own predictions, so the simulator is right about them by construction, but for what is added here: a
machine that differs from the calibrated one, and runs that differ from each other. Figures of a run stay consistent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from calibration.records import METRICS, RunRecord
from validate.self_test.bench import Bench
from validate.self_test.changes import POWER, RATES, retimed, scaled, slower

# Standard deviations of logarithms.
RUN_NOISE = 0.015  # run to run: the middle of what repeats in public data show (helm 0.4-2.4 %, servers 1-3 %)
FIRST_TOKEN_NOISE = 0.01  # of TTFT on top of that
GAUGE_NOISE = 0.01  # of the mean batch
MACHINE = 0.02  # of all runs of a campaign in common: another board, another day

SERVER = RunRecord(
    run_id="", source="simulator", gpu="h100-sxm", n_gpus=1, tp=1, pp=1, ep=1, dp=1,
    model="meta-llama/Llama-3.1-8B-Instruct", weight_dtype="bf16", activation_dtype="bf16", kv_dtype="bf16",
    engine="vllm", engine_version="0.11.1", max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=16384,
    gpu_memory_utilization=0.9, prefix_caching=False, chunked_prefill=True, cuda_graphs=True, load="closed_loop",
    length_spread="fixed", rel_noise=RUN_NOISE,
)  # fmt: skip
EDGE = msgspec.structs.replace(
    SERVER, gpu="orin-agx-64gb", power_mode="MAXN", model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    engine_version="0.8.6", max_num_batched_tokens=2048, max_model_len=8192, load="static_batch",
)  # fmt: skip
SMALL_SHARE = 0.3  # of 80 GB: some tens of thousands of tokens beside the weights, as in the labelled case LSS-KV
LADDER = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def server() -> list[RunRecord]:
    """Closed loops on one GPU: clients by lengths, all settings stated."""
    return [_loop(SERVER, c, i, o) for i, o in ((512, 256), (2048, 128), (128, 1024)) for c in LADDER]


def repeats() -> list[RunRecord]:
    """Six configurations, five runs of each."""
    configurations = [_loop(SERVER, c, i, o) for i, o in ((512, 256), (2048, 128)) for c in (1, 8, 64)]
    return [record for record in configurations for _ in range(5)]


def open_loop() -> list[RunRecord]:
    """Poisson arrivals below the capacity."""
    return [open_run(rate, i, o) for i, o in ((512, 256), (2048, 128)) for rate in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)]


def open_run(rate_rps: float, input_tok: int, output_tok: int) -> RunRecord:
    """One open loop of 300 requests."""
    return msgspec.structs.replace(
        SERVER, load="open_loop", request_rate_rps=rate_rps, num_requests=300, input_tok=input_tok,
        output_tok=output_tok,
    )  # fmt: skip


def node() -> list[RunRecord]:
    """Four GPUs, tensor parallel."""
    base = msgspec.structs.replace(SERVER, model="meta-llama/Llama-3.1-70B-Instruct", n_gpus=4, tp=4)
    return [_loop(base, c, i, o) for i, o in ((512, 256), (2048, 128)) for c in LADDER[:-1]]


def fleet() -> list[RunRecord]:
    """One model on three GPUs."""
    gpus = [msgspec.structs.replace(SERVER, gpu=gpu) for gpu in ("h100-sxm", "h200-sxm", "a100-sxm-80gb")]
    return [_loop(base, c, 512, 256) for base in gpus for c in LADDER]


def full_cache() -> list[RunRecord]:
    """Closed loops whose contexts fill the KV cache: a small share of the GPU's memory is for the engine."""
    base = msgspec.structs.replace(SERVER, gpu_memory_utilization=SMALL_SHARE)
    return [_loop(base, c, i, o) for i, o in ((1024, 256), (512, 512)) for c in (8, 16, 24, 32, 48, 64, 96, 128)]


def edge() -> list[RunRecord]:
    """Static batches on an embedded board; answers of 100 tokens, prompts up to many of them."""
    return [_batch(b, i, 100) for i in (256, 1024, 4096) for b in (1, 2, 4, 8, 16, 32)]


def short() -> list[RunRecord]:
    """Static batches that last less than a second: too short for power, so it was not measured."""
    base = msgspec.structs.replace(EDGE, model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B")
    return [_batch(b, i, o, base) for i in (64, 256, 512) for o in (2, 4, 8) for b in (1, 2)]


CAMPAIGNS: dict[str, Callable[[], list[RunRecord]]] = {
    "server": server, "repeats": repeats, "open loop": open_loop, "node": node, "fleet": fleet,
    "full cache": full_cache, "edge": edge, "short": short,
}  # fmt: skip


def campaign(name: str, bench: Bench, rng: np.random.Generator) -> list[RunRecord]:
    """The runs of one campaign, measured on a machine of its own."""
    return disturbed(CAMPAIGNS[name](), name, bench, rng)


def disturbed(
    configurations: Iterable[RunRecord], name: str, bench: Bench, rng: np.random.Generator
) -> list[RunRecord]:
    """Runs of these configurations as a machine would measure them."""
    machine = float(np.exp(rng.normal(0.0, MACHINE)))
    board = float(np.exp(rng.normal(0.0, MACHINE)))
    return [
        _measured(
            msgspec.structs.replace(c, run_id=f"{name.replace(' ', '-')}-{i}"), bench, rng, (machine, board), name
        )
        for i, c in enumerate(configurations)
    ]


def _measured(
    configuration: RunRecord, bench: Bench, rng: np.random.Generator, campaign_factors: tuple[float, float], name: str
) -> RunRecord:
    machine, board = campaign_factors
    prediction = bench.predict(configuration)
    assert prediction.setup is not None, prediction.status
    values = prediction.outcome.values
    figures = _closed({name: values.get(name) for name in METRICS}, configuration)
    if name == "short":
        figures |= dict.fromkeys(POWER, None)
    figures["kv_capacity_tok"] = round(values["kv_capacity_tok"]) if configuration.load != "static_batch" else None
    if configuration.output_tok == 1:
        figures |= {name: None for name in figures if name.startswith(("tpot", "itl"))}
    speed, first, power = np.exp(rng.normal(0.0, (RUN_NOISE, FIRST_TOKEN_NOISE, RUN_NOISE))).tolist()
    record = msgspec.structs.replace(configuration, power_scope=prediction.power_scope or None, **figures)
    record = retimed(slower(record, speed * machine), ttft=first)
    if configuration.load == "open_loop":  # arrivals are the client's: rates and the duration do not stretch
        rates = {name: figures[name] for name in (*RATES, "duration_s")}
        record = msgspec.structs.replace(record, **rates, energy_j_per_output_tok=figures["energy_j_per_output_tok"])
    seen = float(np.exp(-abs(rng.normal(0.0, GAUGE_NOISE))))  # a gauge that is read now and then, never above all
    return scaled(scaled(record, POWER, power * board), ("batch_mean",), seen)


def _closed(figures: dict[str, float], configuration: RunRecord) -> dict[str, float]:
    """Figures that obey Little's law: what a client adds to a request's time it adds to the run's.

    The simulator adds the front end and the way of a follow-up request to the times of requests, not to the clock.
    """
    if configuration.load == "open_loop":
        return figures
    rate_rps = configuration.num_requests / figures["duration_s"]
    in_system = rate_rps * figures["e2e_s_mean"] / configuration.concurrency
    longer = dict.fromkeys(("duration_s", "energy_j_per_output_tok"), max(1.0, in_system)) | dict.fromkeys(
        RATES, min(1.0, 1.0 / in_system)
    )
    if configuration.load == "closed_loop":
        longer["batch_mean"] = min(1.0, 1.0 / in_system)
    return figures | {name: figures[name] * factor for name, factor in longer.items()}


def _loop(base: RunRecord, clients: int, input_tok: int, output_tok: int) -> RunRecord:
    return msgspec.structs.replace(
        base, concurrency=clients, num_requests=max(40, 10 * clients), input_tok=input_tok, output_tok=output_tok
    )


def _batch(batch: int, input_tok: int, output_tok: int, base: RunRecord = EDGE) -> RunRecord:
    return msgspec.structs.replace(
        base, concurrency=batch, num_requests=batch, input_tok=input_tok, output_tok=output_tok
    )
