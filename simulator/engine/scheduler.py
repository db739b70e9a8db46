"""Which sequences get how many tokens in the next step: continuous batching after vLLM V1.

This scheduler follows every sequence step by step, so it is easy to hold against vLLM's. `simulator.engine.batcher` has
the same rules and jumps from event to event; tests hold the one against the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulator.engine.kv_cache import Holding, KvCache, Parts
from simulator.engine.queues import POLICIES
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
    priority: int = 0  # lower is served first, where the policy asks for it
    loaded_tok: int = 0  # tokens of the prompt whose KV comes from another engine
    written_tok: int = 0
    computed_tok: int = 0
    cached_tok: int | None = None  # None until first admitted
    recomputed_tok: int = 0
    preemptions: int = 0
    scheduled_s: float | None = None
    first_token_s: float = 0.0
    holding: Holding | None = field(default=None, repr=False)

    @property
    def number(self) -> int:
        """Place in the order of arrival."""
        return self.call_id

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
    """Running sequences before waiting ones, prefill in chunks, preemption by recompute.

    With `async_scheduling` the next step is planned while the present one runs: the seat and the blocks of a sequence
    that has finished are free for others one step later. `draft_tok`: further tokens that every decoding sequence
    verifies per step (speculative decoding). `micro_batches`: of max_num_batched_tokens each, that a step sends through
    as many pipeline stages.
    """

    def __init__(
        self,
        settings: EngineSettings,
        cache: KvCache,
        async_scheduling: bool = False,
        draft_tok: int = 0,
        micro_batches: int = 1,
    ) -> None:
        self.settings, self.cache, self.draft_tok = settings, cache, draft_tok
        self._budget = settings.max_num_batched_tokens * micro_batches
        self.waiting = POLICIES[settings.scheduling_policy]()
        self.running: list[Sequence] = []
        self.preempted: list[Sequence] = []  # by the last plan
        self.admitted: list[Sequence] = []
        self._async = async_scheduling
        self._step = 0
        self.unseen: deque[tuple[int, Sequence]] = deque()  # finished, not yet seen by a plan

    def plan(self) -> Plan:
        """Schedule one step and allocate its KV blocks."""
        self._see_finishes()
        chunks: dict[Sequence, int] = {}
        self.preempted, self.admitted = [], []
        budget = self._schedule_running(chunks, self._budget)
        if not self.preempted:  # vLLM admits nobody in a step that had to preempt
            self._admit(chunks, budget)
        decode_only = all(sequence.decoding for sequence in chunks)
        settled = decode_only and not self.preempted and not (self.unseen and self.waiting)
        return Plan(tuple(chunks.items()), decode_only, settled)

    def _schedule_running(self, chunks: dict[Sequence, int], budget: int) -> int:
        """Chunks of what runs already, in order of admission; returns the tokens that are left."""
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            wanted = 1 + self.draft_tok if sequence.decoding else sequence.pending_tok
            while not self.cache.grow(sequence.holding, sequence.computed_tok + (new_tok := min(wanted, budget))):
                victim = self._preempt()
                if victim in chunks:  # of lower priority than sequences behind it
                    budget += chunks.pop(victim)
                    index -= 1
                if victim is sequence:
                    break
            else:
                self._take(chunks, sequence, new_tok)
                budget -= new_tok
                index += 1
        return budget

    def _admit(self, chunks: dict[Sequence, int], budget: int) -> None:
        seats = self.settings.max_num_seqs - len(self.unseen)
        while budget > 0 and self.waiting and len(self.running) < seats:
            sequence = self.waiting[0]
            total = sequence.prompt_tok + sequence.written_tok
            # The last token is always computed, because its logits are needed.
            hit = self.cache.match(sequence.parts, total - 1)
            cached_tok = hit[1] * self.cache.block_size
            if not sequence.written_tok:
                cached_tok = max(cached_tok, min(sequence.loaded_tok, total - 1))
            new_tok = min(total - cached_tok, budget)
            if new_tok < total - cached_tok and not self.settings.enable_chunked_prefill:
                break
            holding = self.cache.admit(hit, cached_tok + new_tok)
            if holding is None:
                break
            self.waiting.take()
            self.running.append(sequence)
            self.admitted.append(sequence)
            sequence.holding = holding
            sequence.book_admission(cached_tok)
            self._take(chunks, sequence, new_tok)
            budget -= new_tok

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

    def advance(self, plan: Plan, steps: int, written: Callable[[Sequence], int] | None = None) -> list[Sequence]:
        """Book `steps` repetitions of the plan; returns the sequences that sampled their last token, now released.

        `written`: how many tokens a decoding sequence gets in this one step, where that is not one.
        """
        finished = []
        self._step += steps
        for sequence, new_tok in plan.chunks:
            if sequence.decoding and written is not None:
                got = min(written(sequence), new_tok, sequence.output_tok - sequence.written_tok)
                sequence.computed_tok += got
                sequence.written_tok += got
            else:
                sampled = new_tok == sequence.pending_tok
                sequence.computed_tok += new_tok + steps - 1
                sequence.written_tok += steps if sampled else 0
            if steps > 1 and not self.cache.grow(sequence.holding, sequence.computed_tok):
                raise RuntimeError("a quiet stretch ran out of KV blocks")
            if sequence.written_tok == sequence.output_tok:
                finished.append(sequence)
        for sequence in finished:
            self.running.remove(sequence)
            if self._async:
                self.unseen.append((self._step, sequence))
            else:
                self._release(sequence)
        return finished

    def _see_finishes(self) -> None:
        """Release what finished before the present step was planned; everything, if nothing runs."""
        while self.unseen and (not self.running or self.unseen[0][0] < self._step):
            self._release(self.unseen.popleft()[1])

    def _take(self, chunks: dict[Sequence, int], sequence: Sequence, new_tok: int) -> None:
        """Put a sequence into the step; its prompt blocks can be hit from now on, in this very step."""
        chunks[sequence] = new_tok
        if not sequence.decoding:
            self.cache.register(sequence.holding, sequence.parts, sequence.computed_tok + new_tok)

    def _preempt(self) -> Sequence:
        """Throw out the sequence admitted last, or that of the least priority; it keeps its text."""
        if self.settings.scheduling_policy == "priority":
            sequence = max(self.running, key=lambda running: (running.priority, running.number))
            self.running.remove(sequence)
        else:
            sequence = self.running.pop()
        self._release(sequence)
        sequence.preemptions += 1
        self.preempted.append(sequence)
        self.waiting.put_back(sequence)
        return sequence

    def _release(self, sequence: Sequence) -> None:
        self.cache.release(sequence.holding, sequence.parts, sequence.computed_tok)
        sequence.holding = None
