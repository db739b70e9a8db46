"""The same as `Batcher`, token by token: every sequence is looked at in every step.

It is slow and plain, which makes it the measure of the fast one. Speculative decoding needs it, because there every
step's outcome is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

import numpy as np

from simulator.engine.batcher import Request
from simulator.engine.kv_cache import KvCache
from simulator.engine.scheduler import Plan, Scheduler
from simulator.engine.sequence import Sequence
from simulator.engine.settings import EngineSettings
from simulator.keys import KeyRule


class TokenByToken:
    """A `Scheduler` with the interface that a `Replica` drives. A plan always stands for one step.

    draft_tok: tokens that a draft proposes per step and sequence; each is accepted with probability acceptance_rate
    if the one before it was. `rng` draws that.
    """

    def __init__(
        self,
        settings: EngineSettings,
        kv_blocks: int,
        rules: Several[KeyRule] = (),
        async_scheduling: bool = False,
        draft_tok: int = 0,
        acceptance_rate: float = 0.0,
        rng: np.random.Generator | None = None,
        micro_batches: int = 1,
    ) -> None:
        self._cache = KvCache(kv_blocks, settings.block_size, settings.enable_prefix_caching)
        self._scheduler = Scheduler(settings, self._cache, async_scheduling, draft_tok, micro_batches)
        self._rules, self._draft_tok, self._acceptance, self._rng = rules, draft_tok, acceptance_rate, rng
        self._plan: Plan | None = None
        self._contexts = np.empty(0, dtype=np.int64)
        self._torn: set[Request] = set()  # preempted after their first token
        self._seats, self._by_priority = settings.max_num_seqs, settings.scheduling_policy == "priority"
        self.decoding = 0
        self.chunks: list[tuple[Request, int, int, bool]] = []
        self.joins: list[int] = []
        self.admitted: list[Request] = []
        self.preempted: list[Request] = []
        self.first: list[Request] = []
        self.done: list[Request] = []
        self.resumed: list[Request] = []
        self.written_tok: int | None = None  # in the last step, if drafts make it more than one per sequence

    # -- what a driver sees: as `Batcher` ----------------------------------------------------------------------

    def push(self, request: Request) -> None:
        """A request arrives."""
        tokens = sum(tokens for _, tokens in request.parts)
        own = (("own", request.number), request.prompt_tok - tokens)
        prompt = (*request.parts, own) if own[1] else request.parts
        sequence = Sequence(
            request.number, "request", prompt, request.prompt_tok, request.output_tok, 0.0, (), request,
            request.priority, request.loaded_tok,
        )  # fmt: skip
        self._scheduler.waiting.push(sequence)

    @property
    def queue(self):
        """Who waits."""
        return self._scheduler.waiting

    @property
    def running(self) -> list[Sequence]:
        """Who has KV blocks."""
        return self._scheduler.running

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self._scheduler.running or self._scheduler.waiting)

    @property
    def could_admit(self) -> bool:
        """Whether somebody who came now might join the next step."""
        return len(self._scheduler.running) < self._seats and (self._by_priority or not self._scheduler.waiting)

    @property
    def planned_blocks(self) -> int:
        """Distinct KV blocks held in the planned step."""
        return self._cache.held

    @property
    def unseen_blocks(self) -> int:
        """Of them, those of finished sequences whose finish is not seen yet."""
        return sum(sequence.holding.private for _, sequence in self._scheduler.unseen)

    @property
    def step(self) -> int:
        """There is only the present one."""
        return 0

    def cached_blocks(self, request: Request, step: int) -> int:
        """Blocks at the beginning of a request's prompt that the prefix cache holds now."""
        if not request.shared:
            return 0
        return self._cache.match(request.parts, request.shared * self._cache.block_size)[1]

    def keys(self) -> list[int]:
        """Keys of the planned step in one layer, one entry per rule, summed over decoding sequences (without joins)."""
        return [int(rule.decode_keys_now(self._contexts)) for rule in self._rules]

    def slopes(self) -> list[int]:
        """Nothing is asked of a stretch of one step."""
        return [0] * len(self._rules)

    # -- one step --------------------------------------------------------------------------------------------

    def plan(self) -> int:
        """Schedule the next step: 1, or 0 if nothing could be scheduled."""
        plan = self._plan = self._scheduler.plan()
        self.preempted = [sequence.done for sequence in self._scheduler.preempted]
        self.admitted = [sequence.done for sequence in self._scheduler.admitted]
        for sequence in self._scheduler.preempted:
            sequence.done.written = sequence.written_tok
            if sequence.written_tok:
                self._torn.add(sequence.done)
        contexts, self.joins, self.chunks = [], [], []
        for sequence, new_tok in plan.chunks:
            if not sequence.decoding:
                completes = new_tok == sequence.pending_tok
                self.chunks.append((sequence.done, new_tok, sequence.computed_tok, completes))
            elif sequence.done in self._torn:  # its first token since it was preempted
                self.joins.append(sequence.computed_tok)
            else:
                contexts.append(sequence.computed_tok)
        self._contexts, self.decoding = np.array(contexts, dtype=np.int64), len(contexts)
        return 1 if plan.chunks else 0

    def advance(self, steps: int) -> None:
        """Run the planned step."""
        if steps != 1:
            raise ValueError("token by token goes one step at a time")
        chunks = self._plan.chunks
        before = [sequence.written_tok for sequence, _ in chunks]
        finished = self._scheduler.advance(self._plan, 1, self._accepted if self._draft_tok else None)
        self.first, self.resumed, written = [], [], 0
        for (sequence, _), had in zip(chunks, before):
            got = sequence.written_tok - had
            written += got
            if got and not had:
                self.first.append(sequence.done)
            elif got and sequence.done in self._torn:
                self._torn.discard(sequence.done)
                self.resumed.append(sequence.done)
        self.written_tok = written if self._draft_tok else None
        self.done = [sequence.done for sequence in finished]
        for sequence in finished:
            request = sequence.done
            request.cached_tok, request.recomputed_tok = sequence.cached_tok, sequence.recomputed_tok
            request.preemptions = sequence.preemptions

    def _accepted(self, _: Sequence) -> int:
        """Tokens that one verification writes: the accepted ones before the first that is refused, and one more."""
        refused = np.flatnonzero(self._rng.random(self._draft_tok) >= self._acceptance)
        return 1 + (int(refused[0]) if len(refused) else self._draft_tok)
