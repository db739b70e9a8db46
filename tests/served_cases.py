"""Runs of traffic for tests: a naive server, token by token, that also keeps when each token was written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.traffic.metrics import Goodput
from simulator.traffic.result import TrafficResult
from simulator.traffic.served import RequestRecords, Served, StepRecords

LOG_SD = {"time": 0.1, "ttft": 0.2, "tpot": 0.1, "power": 0.05, "energy": 0.3}
BLOCK = 16


@dataclass
class Naive:
    """A served run and the naive truth: when each token of each request was written [s]."""

    served: Served
    token_s: list[list[float]]


def serve(
    arrival_s,
    prompt_tok,
    output_tok,
    replicas: int = 1,
    max_num_seqs: int = 4,
    max_model_len: int = 10**6,
    kv_blocks: int = 1000,
    step_s=lambda decode, prefill: 0.01 + 1e-4 * decode + 1e-5 * prefill,
    idle_w: float = 50.0,
    busy_w: float = 300.0,
) -> Naive:
    """Whole prompts first come first served, every sequence a token per step, requests dealt out round robin."""
    arrival = np.asarray(arrival_s, dtype=float)
    prompt, output = (np.asarray(x, dtype=np.int64) for x in (prompt_tok, output_tok))
    n = len(arrival)
    refused = prompt + output > max_model_len
    accepted = np.flatnonzero(~refused)
    replica = np.full(n, -1)
    replica[accepted] = np.arange(len(accepted)) % replicas
    scheduled = np.full(n, np.nan)
    token_s: list[list[float]] = [[] for _ in range(n)]
    steps: list[tuple] = []
    for r in range(replicas):
        queue, running, now = [i for i in accepted.tolist() if replica[i] == r], [], 0.0
        while queue or running:
            if not running:
                now = max(now, arrival[queue[0]])
            fresh = []
            while queue and arrival[queue[0]] <= now and len(running) + len(fresh) < max_num_seqs:
                fresh.append(queue.pop(0))
            scheduled[fresh] = now
            tokens = int(prompt[fresh].sum()) if fresh else 0
            seconds = step_s(len(running), tokens)
            blocks = sum(-(-int(prompt[i] + len(token_s[i])) // BLOCK) for i in (*running, *fresh))
            waiting = sum(arrival[i] <= now for i in queue)
            row = (r, now, seconds, seconds * busy_w, 1, len(running), len(fresh), tokens)
            steps.append((*row, len(running) + len(fresh), len(running), waiting, blocks))
            now += seconds
            for i in (*running, *fresh):
                token_s[i].append(now)
            running = [i for i in (*running, *fresh) if len(token_s[i]) < output[i]]
    zeros = np.zeros(n, dtype=np.int64)
    requests = RequestRecords(
        arrival_s=arrival,
        engine_s=np.where(refused, np.nan, arrival),
        scheduled_s=scheduled,
        first_token_s=np.array([t[0] if t else np.nan for t in token_s]),
        finished_s=np.array([t[-1] if t else np.nan for t in token_s]),
        prompt_tok=prompt,
        output_tok=output,
        cached_tok=zeros,
        recomputed_tok=zeros,
        preemptions=zeros,
        replica=replica,
        refused=refused,
    )
    columns = [np.array(column) for column in zip(*steps)] if steps else [np.zeros(0, dtype=np.int64)] * 12
    end_s = max((t[-1] for t in token_s if t), default=0.0)
    records = StepRecords(*columns)
    return Naive(Served(requests, records, np.zeros(0), end_s, replicas, kv_blocks, BLOCK, idle_w), token_s)


def poisson(n: int = 60, rate: float = 5.0, seed: int = 0, replicas: int = 1, **options) -> Naive:
    """Poisson arrivals with prompts and outputs of mixed lengths."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0 / rate, n))
    return serve(arrival, rng.integers(10, 400, n), rng.integers(1, 60, n), replicas, **options)


def result_of(served: Served, **changes) -> TrafficResult:
    """A result around `served`; its other facts are made up."""
    facts = {
        "gpu": "box", "gpu_name": "Box 1", "power_mode": None, "model": "some/model", "parameters": 10**9,
        "precision": {"weights": "bf16", "activations": "bf16", "kv_cache": "bf16"}, "traffic": "60 requests, Poisson",
        "interval_log_sd": LOG_SD, "seed": 7, "version": "1", "served": served, "replicas": served.replicas,
        "calibration": {
            "id": "box.vllm", "title": "Box with vllm", "engine": "vllm", "status": "fitted", "source": "test bench",
            "data_hash": "ab" * 32, "power_scope": "board", "notes": [], "extrapolated": [], "variance_factor": 1.0,
        },
        "memory": {
            "capacity_byte": 20e9, "weights_byte": 2e9, "activation_byte": 0.5e9, "overhead_byte": 1e9,
            "kv_byte_per_tok": 1e5, "kv_capacity_tok": 100000,
        },
        "price": {"usd_per_hour": 3.6, "usd_per_kwh": 0.0, "basis": "rent $3.6/h"},
        "assumptions": ("nobody else uses the server",), "power": {"limit_w": 400.0, "idle_w": 50.0},
        "settings": {"max_num_seqs": 4}, "parallel": {"tp": 1, "pp": 1, "ep": 1},
    }  # fmt: skip
    return TrafficResult(**{**facts, **changes})


LIMITS = Goodput(ttft_s=0.05, tpot_s=0.0112)
