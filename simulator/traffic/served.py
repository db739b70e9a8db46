"""What a simulated server leaves behind: one record per request, one per stretch of equal engine steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RequestRecords:
    """Arrays (N,), in order of submission. Times in seconds since the start; NaN where a request was refused.

    arrival_s: sent by the client. engine_s: in the engine's queue (tokenisation and HTTP lie between). finished_s and
    first_token_s: seen by the client.
    """

    arrival_s: np.ndarray
    engine_s: np.ndarray
    scheduled_s: np.ndarray  # first step that computes a token of it begins
    first_token_s: np.ndarray
    finished_s: np.ndarray
    prompt_tok: np.ndarray
    output_tok: np.ndarray
    cached_tok: np.ndarray  # prompt tokens that came from the prefix cache at first admission
    recomputed_tok: np.ndarray  # tokens computed again after preemptions
    preemptions: np.ndarray
    replica: np.ndarray  # which replica decoded it; -1: refused
    refused: np.ndarray  # bool: longer than max_model_len, as vLLM answers with an error

    def __len__(self) -> int:
        return len(self.arrival_s)


@dataclass(frozen=True)
class StepRecords:
    """Arrays (S,): stretches of equal batches, ordered by replica, then by time. Between them a replica is idle."""

    replica: np.ndarray
    start_s: np.ndarray
    duration_s: np.ndarray  # of all steps of the stretch
    joules: np.ndarray  # of all steps of the stretch, all devices of the replica
    steps: np.ndarray
    decode_sequences: np.ndarray  # sequences that decode in each step
    prefill_sequences: np.ndarray  # prompts of which a chunk is computed (stretches of one step)
    prefill_tok: np.ndarray
    sampled: np.ndarray  # tokens that each step writes
    gaps: np.ndarray  # gaps between tokens of one sequence that last one step of this stretch, in all
    waiting: np.ndarray  # requests in the replica's queue meanwhile
    kv_blocks: np.ndarray  # distinct blocks that running sequences hold in the first step

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(frozen=True)
class Served:
    """A run of traffic to its end."""

    requests: RequestRecords
    steps: StepRecords
    torn_gap_s: np.ndarray  # (G,) gaps between tokens of one sequence that a preemption tore open
    end_s: float  # last token of all
    replicas: int
    kv_blocks: int  # of one replica
    block_size: int
    idle_power_w: float  # of one replica, all its devices
    roles: tuple[str, ...] = ()  # of each replica: "serve", "prefill" or "decode"

    def energy_j(self) -> float:
        """Of all replicas from 0 to `end_s`, idle time included."""
        busy_s = np.bincount(self.steps.replica, self.steps.duration_s, self.replicas)
        return float(self.steps.joules.sum() + (self.idle_power_w * np.maximum(self.end_s - busy_s, 0.0)).sum())
