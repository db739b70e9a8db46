"""What vLLM does where nobody says anything: it differs between server and library, between versions and GPUs."""

from __future__ import annotations

from simulator.device import Device
from simulator.profile_parts import DEFAULT_ENGINE, version_number

GIB = 2**30
HYBRID_KV_SINCE = (0, 10)  # vLLM from which blocks behind sliding windows are freed


def frees_behind_windows(engine: str | None, version: str | None) -> bool:
    """Whether an engine's version gives layers with sliding windows no more KV blocks than those need."""
    return engine in (None, DEFAULT_ENGINE) and (version is None or version_number(version) >= HYBRID_KV_SINCE)


def vllm_limits(device: Device, server: bool, v1: bool = True) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) by default.

    vLLM V1 (`EngineArgs.get_batch_defaults`, 0.8 to 0.18): GPUs of at least 70 GiB that are not an A100 get 1,024
    sequences and 8,192 tokens as a server, 16,384 as a library; all others 256 and 2,048 or 8,192. V0: 256 sequences;
    steps of whole prompts, for which 8,192 stands here.
    """
    if not v1:
        return 256, 8192
    large = device.memory.capacity_byte >= 70 * GIB and not device.id.startswith("a100")
    if large:
        return 1024, 8192 if server else 16384
    return 256, 2048 if server else 8192
