"""A step model simple enough to compute by hand: seconds are affine in tokens and in attended context."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class FakeCost:
    seconds: float
    joules: float
    shares: dict[str, float]


@dataclass(frozen=True)
class FakeRun:
    seconds: np.ndarray
    joules: np.ndarray
    shares: dict[str, float]


@dataclass(frozen=True)
class FakeStepModel:
    """A step takes base_s + token_s per new token + context_s per token attended to by decoding sequences."""

    base_s: float = 0.0101
    token_s: float = 1.3e-5
    context_s: float = 1.7e-8
    busy_w: float = 37.0
    idle_power_w: float = 11.0

    queries: int = 1  # tokens of each decoding sequence in a step, which share what it attends to

    def verifying(self, queries: int) -> FakeStepModel:
        return replace(self, queries=queries)

    def step(self, batch) -> FakeCost:
        memory = self.base_s + self.context_s * float(batch.decode_context_tok.sum())
        compute = self.token_s * (batch.new_tok + (self.queries - 1) * len(batch.decode_context_tok))
        seconds = memory + compute
        return FakeCost(seconds, self.busy_w * seconds, {"memory": memory, "compute": compute})

    def decode_run(self, context_tok, steps: int, growth=None) -> FakeRun:
        n = len(context_tok)
        grown = n if growth is None else int(growth.sum())
        memory = self.base_s + self.context_s * (float(context_tok.sum()) + grown * np.arange(steps))
        compute = self.token_s * n * self.queries
        seconds = memory + compute
        return FakeRun(seconds, self.busy_w * seconds, {"memory": float(memory.sum()), "compute": compute * steps})

    def flop(self, prompt_tok: int, output_tok: int, cached_tok: int = 0) -> float:
        """Two per token that is computed."""
        return 2.0 * (prompt_tok - cached_tok + output_tok)

    def prefill_s(self, new_tok: int) -> float:
        """One step that only prefills."""
        return self.base_s + self.token_s * new_tok

    def decode_s(self, contexts: list[int]) -> float:
        """One step that only decodes, with these KV tokens before it."""
        return self.base_s + self.token_s * len(contexts) + self.context_s * sum(contexts)
