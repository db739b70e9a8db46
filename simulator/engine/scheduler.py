"""Which sequences get how many tokens in the next step: continuous batching after vLLM V1."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulator.engine.kv_cache import Holding, KvCache, Parts
from simulator.engine.settings import EngineSettings


@dataclass(eq=False)
class Sequence:
    """One call inside the engine. `computed_tok` counts its tokens with KV, `written_tok` those sampled so far."""

    call_id: int
    label: str
    prompt: Parts
    prompt_tok: int
    output_tok: int
    submitted_s: float
    parents: tuple[int, ...]
    done: Any  # SimPy event, succeeds with the CallRecord
    written_tok: int = 0
    computed_tok: int = 0
    cached_tok: int | None = None  # None until first admitted
    recomputed_tok: int = 0
    preemptions: int = 0
    scheduled_s: float | None = None
    first_token_s: float = 0.0
    holding: Holding | None = field(default=None, repr=False)

    @property
    def parts(self) -> Parts:
        """Prompt and the output so far, as the prefix cache sees them."""
        return (*self.prompt, (("output", self.call_id), self.written_tok)) if self.written_tok else self.prompt

    @property
    def pending_tok(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 while decoding."""
        return self.prompt_tok + self.written_tok - self.computed_tok

    @property
    def decoding(self) -> bool:
        return self.written_tok > 0 and self.pending_tok == 1

    def book_admission(self, cached_tok: int) -> None:
        """(Re-)start behind `cached_tok` tokens of the prefix cache; what was computed beyond them is lost."""
        if self.cached_tok is None:
            self.cached_tok = cached_tok
        else:
            self.recomputed_tok += self.computed_tok - cached_tok
            if self.recomputed_tok < 0:  # meanwhile others computed more of this prompt than was lost
                self.cached_tok -= self.recomputed_tok
                self.recomputed_tok = 0
        self.computed_tok = cached_tok


@dataclass(frozen=True)
class Plan:
    """The next step: chunks of (sequence, new tokens); `settled` when repeating it would schedule the same again."""

    chunks: tuple[tuple[Sequence, int], ...]
    decode_only: bool
    settled: bool


class Scheduler:
    """First come, first served: running sequences before waiting ones, prefill in chunks, preemption by recompute."""

    def __init__(self, settings: EngineSettings, cache: KvCache) -> None:
        self.settings, self.cache = settings, cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def plan(self) -> Plan:
        """Schedule one step and allocate its KV blocks."""
        chunks: list[tuple[Sequence, int]] = []
        budget = self.settings.max_num_batched_tokens
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            new_tok = min(sequence.pending_tok, budget)
            while not self.cache.grow(sequence.holding, sequence.computed_tok + new_tok):
                preempted = True
                if self._preempt_last() is sequence:
                    break
            else:
                self._take(chunks, sequence, new_tok)
                budget -= new_tok
                index += 1
        # vLLM admits nobody in a step that had to preempt.
        while not preempted and budget > 0 and self.waiting and len(self.running) < self.settings.max_num_seqs:
            sequence = self.waiting[0]
            total = sequence.prompt_tok + sequence.written_tok
            # The last token is always computed, because its logits are needed.
            hit = self.cache.match(sequence.parts, total - 1)
            cached_tok = hit[1] * self.cache.block_size
            new_tok = min(total - cached_tok, budget)
            holding = self.cache.admit(hit, cached_tok + new_tok)
            if holding is None:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            sequence.holding = holding
            sequence.book_admission(cached_tok)
            self._take(chunks, sequence, new_tok)
            budget -= new_tok
        decode_only = all(sequence.decoding for sequence, _ in chunks)
        return Plan(tuple(chunks), decode_only, decode_only and not preempted)

    def quiet_steps(self, context_tok: np.ndarray, limit: int) -> int:
        """How many steps (>= 1, <= limit) this decode-only plan can repeat before blocks run out.

        `context_tok` are the KV tokens per sequence before the first of them, whose blocks are allocated already.
        A queue that is blocked now stays blocked meanwhile: decoding only makes blocks scarcer.
        """
        size = self.cache.block_size
        allowed = self.cache.available + int(((context_tok + size) // size).sum())  # ceil((context + 1) / size)

        def fits(steps: int) -> bool:
            return int(((context_tok + (steps + size - 1)) // size).sum()) <= allowed

        if fits(limit):
            return limit
        low, high = 1, limit  # fits(low), not fits(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def advance(self, plan: Plan, steps: int) -> list[Sequence]:
        """Book `steps` repetitions of the plan; returns the sequences that sampled their last token, now released."""
        finished = []
        for sequence, new_tok in plan.chunks:
            sampled = new_tok == sequence.pending_tok
            sequence.computed_tok += new_tok
            if steps > 1:
                sequence.computed_tok += steps - 1
                if not self.cache.grow(sequence.holding, sequence.computed_tok):
                    raise RuntimeError("a quiet stretch ran out of KV blocks")
            if sampled:
                sequence.written_tok += steps
                if sequence.written_tok == sequence.output_tok:
                    finished.append(sequence)
        for sequence in finished:
            self.running.remove(sequence)
            self.cache.release(sequence.holding, sequence.parts, sequence.computed_tok)
            sequence.holding = None
        return finished

    def _take(self, chunks: list[tuple[Sequence, int]], sequence: Sequence, new_tok: int) -> None:
        """Put a sequence into the step; its prompt blocks can be hit from now on, in this very step."""
        chunks.append((sequence, new_tok))
        if not sequence.decoding:
            self.cache.register(sequence.holding, sequence.parts, sequence.computed_tok + new_tok)

    def _preempt_last(self) -> Sequence:
        """Throw out the sequence admitted last; it keeps its text and goes to the head of the queue."""
        sequence = self.running.pop()
        self.cache.release(sequence.holding, sequence.parts, sequence.computed_tok)
        sequence.holding = None
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)
        return sequence
