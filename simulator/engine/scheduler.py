"""Which sequences get how many tokens in the next step: continuous batching after vLLM V1.

This scheduler follows every sequence step by step, so it is easy to hold against vLLM's. `simulator.engine.batcher` has
the same rules and jumps from event to event; tests hold the one against the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simulator.engine.kv_cache import KvCache, common_prefix_tok
from simulator.engine.queues import POLICIES
from simulator.engine.sequence import Sequence
from simulator.engine.settings import EngineSettings


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
            if _has_to_wait(sequence) or (sequence.whole and wanted > budget and chunks):
                index += 1
                continue
            while not self.cache.grow(sequence.holding, sequence.held_tok(new_tok := _share(sequence, wanted, budget))):
                ahead = self.running[:index]
                victims = self._preempt()
                index -= sum(victim in ahead for victim in victims)  # of lower priority than sequences behind it
                budget += sum(chunks.pop(victim, 0) for victim in victims)
                if sequence in victims:
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
            if sequence.group and not self._takes_group(sequence, seats):
                break
            if sequence.whole:
                if sequence.pending_tok > budget and chunks:
                    break
                hit, cached_tok, new_tok = self.cache.match((), 0), 0, sequence.pending_tok
                holding = self.cache.admit(hit, sequence.held_tok(new_tok))
            else:
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

    def _takes_group(self, sequence: Sequence, seats: int) -> bool:
        """Whether all who advance in lock-step with a waiting sequence and do not run yet find seats and blocks."""
        absent = [other for other in sequence.group if other.holding is None and not other.ended]
        if len(self.running) + len(absent) > seats:
            return False
        needed, before = 0, []
        for other in absent:
            total, size = other.prompt_tok + other.written_tok, self.cache.block_size
            hit = self.cache.match(other.parts, total - 1)
            idle = self.cache.tree.idle_on_path(hit)
            shared = max((min(common_prefix_tok(other.parts, parts), total - 1) // size for parts in before), default=0)
            if not self.cache.caching:
                shared = 0
            if shared >= hit[1]:  # an earlier member brings at least these blocks
                needed += self.cache.blocks_for(total) - shared
            else:
                needed += self.cache.blocks_for(total) - hit[1] + idle
            before.append(other.parts)
        return needed <= self.cache.available

    def withdraw(self, sequence: Sequence) -> None:
        """A sequence ends here, running or waiting; it keeps what it has written."""
        if sequence.holding is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            if not sequence.held_for_others:
                self._release(sequence)
        sequence.stopped = True

    def let_go(self, sequence: Sequence) -> None:
        """Give back the blocks of a sequence that has ended, or that was kept beyond its end."""
        if sequence.holding is not None:
            self._release(sequence)

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
                sequence.book(new_tok, steps)
            if steps > 1 and not self.cache.grow(sequence.holding, sequence.computed_tok):
                raise RuntimeError("a quiet stretch ran out of KV blocks")
            if sequence.ended:
                finished.append(sequence)
        for sequence in finished:
            self.running.remove(sequence)
            if self._async:
                self.unseen.append((self._step, sequence))
            elif not sequence.held_for_others:
                self._release(sequence)
        return finished

    def _see_finishes(self) -> None:
        """Release what finished before the present step was planned; everything, if nothing runs."""
        while self.unseen and (not self.running or self.unseen[0][0] < self._step):
            self._release(self.unseen.popleft()[1])

    def _take(self, chunks: dict[Sequence, int], sequence: Sequence, new_tok: int) -> None:
        """Put a sequence into the step; its prompt blocks can be hit from now on, in this very step."""
        chunks[sequence] = new_tok
        if not sequence.decoding and not sequence.whole:
            self.cache.register(sequence.holding, sequence.parts, sequence.computed_tok + new_tok)

    def _preempt(self) -> list[Sequence]:
        """Throw out the sequence admitted last, or that of the least priority, and who is in lock-step with it.

        They keep their text.
        """
        if self.settings.scheduling_policy == "priority":
            worst = max(self.running, key=lambda running: (running.priority, running.number))
        else:
            worst = self.running[-1]
        victims = [o for o in worst.group if o.holding is not None and not o.ended] if worst.group else [worst]
        for sequence in sorted(victims, key=lambda victim: -victim.number):  # the first is put back last, so in front
            self.running.remove(sequence)
            self._release(sequence)
            sequence.preemptions += 1
            self.preempted.append(sequence)
            self.waiting.put_back(sequence)
        return victims

    def _release(self, sequence: Sequence) -> None:
        self.cache.release(sequence.holding, sequence.parts, sequence.computed_tok)
        sequence.holding = None


def _has_to_wait(sequence: Sequence) -> bool:
    """Whether somebody who advances in lock-step with it still reads a prompt."""
    return bool(sequence.group) and sequence.decoding and not all(o.decoding or o.ended for o in sequence.group)


def _share(sequence: Sequence, wanted: int, budget: int) -> int:
    """Of the tokens that a sequence wants, those that a step takes."""
    return wanted if sequence.whole else min(wanted, budget)
