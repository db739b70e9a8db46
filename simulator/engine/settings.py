"""Settings of the serving engine, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import UserError

SCHEDULING_POLICIES = ("fcfs", "priority")


@dataclass(frozen=True)
class EngineSettings:
    """How the engine batches and caches; names, meanings and defaults as in vLLM V1's server.

    max_num_seqs: most sequences in one step. max_num_batched_tokens: most tokens in one step, prefill and decode
    together. max_model_len: most tokens of one sequence, prompt and output (None: only the KV cache limits it).
    gpu_memory_utilization: fraction of device memory that the engine may fill. block_size: tokens per KV block.
    enable_chunked_prefill: whether a prompt may be computed in pieces, beside decoding; if not, prompts wait until they
    fit into a step. scheduling_policy: "fcfs", first come first served, or "priority": lower numbers first, then in
    order of arrival.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: str = "fcfs"

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size"):
            value = getattr(self, name)
            if name == "max_model_len" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"engine setting {name} must be a whole number >= 1, got {value}")
        if self.scheduling_policy not in SCHEDULING_POLICIES:
            raise UserError(
                f"engine setting scheduling_policy must be {' or '.join(SCHEDULING_POLICIES)}, got "
                f"{self.scheduling_policy}"
            )
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            found = self.gpu_memory_utilization
            raise UserError(f"engine setting gpu_memory_utilization must be above 0 and at most 1, got {found}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UserError(
                f"engine setting max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), because every running sequence decodes one token per step"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < (self.max_model_len or 0):
            raise UserError(
                f"without enable_chunked_prefill, max_num_batched_tokens ({self.max_num_batched_tokens}) must be at "
                f"least max_model_len ({self.max_model_len}), because a prompt is computed in one step"
            )
