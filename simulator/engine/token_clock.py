"""The scheduler in step-time: which engine steps a workload consists of, when a step is the only unit of time.

Where every arrival coincides with a finish or with the start, token counts alone fix the sequence of batches. So a
workload is scheduled once (by `simulator.engine.batcher`) and priced as often as a fit wants.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from simulator.engine.batcher import Batcher, Request
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError


@dataclass(frozen=True)
class Requests:
    """A workload: int arrays with one entry per request, in order of submission.

    `in_flight` requests are submitted at the start, each further one when one ends (0: they come at times of their own,
    which step-time knows nothing of). The first `shared_prefix_tok` tokens of a prompt are the beginning of one text
    that all requests share.
    """

    prompt_tok: np.ndarray  # (N,)
    output_tok: np.ndarray  # (N,)
    shared_prefix_tok: np.ndarray  # (N,)
    in_flight: int

    def __post_init__(self) -> None:
        lengths = (self.prompt_tok, self.output_tok, self.shared_prefix_tok)
        if len({len(array) for array in lengths}) > 1 or len(self.prompt_tok) == 0:
            raise ValueError("requests need arrays of one length, at least one request")
        if min(self.prompt_tok.min(), self.output_tok.min()) < 1:
            raise ValueError("prompt_tok and output_tok must be >= 1")
        if self.shared_prefix_tok.min() < 0 or (self.shared_prefix_tok > self.prompt_tok).any():
            raise ValueError("shared_prefix_tok must lie between 0 and prompt_tok")
        if self.in_flight < 0:
            raise ValueError("in_flight must be >= 0")

    def __len__(self) -> int:
        return len(self.prompt_tok)


@dataclass(frozen=True)
class Schedule:
    """What the scheduler did: S stretches of equal batches, C prefill chunks, D spells of decoding, N requests.

    An edge e stands for the start of stretch e, which is the end of stretch e - 1 (0 <= e <= S).
    """

    repeat: np.ndarray  # (S,) steps in the stretch
    decode_sequences: np.ndarray  # (S,)
    full: np.ndarray  # (S,) bool: requests wait because every seat is taken or KV blocks lack
    chunk_row: np.ndarray  # (C,) stretch to which a prefill chunk belongs
    chunk_new_tok: np.ndarray  # (C,)
    chunk_cached_tok: np.ndarray  # (C,) tokens in the cache before the chunk
    chunk_completes: np.ndarray  # (C,) bool
    spell_start: np.ndarray  # (D,) first step of an uninterrupted decode
    spell_end: np.ndarray  # (D,) step after its last
    spell_context_tok: np.ndarray  # (D,) KV tokens before its first step
    resumed: np.ndarray  # (G, 2) edges of token gaps that a preemption tore open: last token, next token
    joined: np.ndarray  # (J,) stretches in which a preempted sequence decodes at once, its KV being still cached
    submitted: np.ndarray  # (N,) edges, all four
    scheduled: np.ndarray
    first_token: np.ndarray
    finished: np.ndarray
    cached_tok: np.ndarray  # (N,) prompt tokens that came from the prefix cache
    recomputed_tok: np.ndarray  # (N,) tokens computed again after preemptions
    preemptions: np.ndarray  # (N,)


def schedule(requests: Requests, settings: EngineSettings, kv_blocks: int, async_scheduling: bool = False) -> Schedule:
    """Run all requests to the end. UserError if one of them can never run."""
    clock = TokenClock(requests, settings, kv_blocks, async_scheduling)
    while not clock.done:
        steps = clock.plan()
        if steps:
            clock.advance(steps)
    return clock.schedule()


class _Recorder(Batcher):
    """A batcher that remembers when sequences decoded."""

    def __init__(self, settings: EngineSettings, kv_blocks: int, async_scheduling: bool) -> None:
        super().__init__(settings, kv_blocks, async_scheduling=async_scheduling)
        self.spells: list[tuple[int, int, int]] = []  # (first step, step after the last, tokens in the cache before)

    def _stop_decoding(self, request: Request, step: int) -> int:
        if self.step > request.start:
            self.spells.append((request.start, self.step, request.computed))
        return super()._stop_decoding(request, step)


class TokenClock:
    """A batcher fed from a workload. `plan`, then `advance` by at most the steps it returned.

    With `async_scheduling` the next step is planned before the present one has ended, as in vLLM: what a finish frees
    (its seat, its blocks, its client) is seen one step later.
    """

    def __init__(
        self, requests: Requests, settings: EngineSettings, kv_blocks: int, async_scheduling: bool = False
    ) -> None:
        size = settings.block_size
        shareable = requests.shared_prefix_tok // size  # whole blocks
        self._shared = (shareable * settings.enable_prefix_caching).tolist()
        self._prompt, self._output = requests.prompt_tok.tolist(), requests.output_tok.tolist()
        _check_lengths(requests, settings, kv_blocks)
        self._batcher = _Recorder(settings, kv_blocks, async_scheduling)
        self._async = async_scheduling
        n = len(requests)
        self._requests: list[Request] = []  # those submitted
        self._unseen: deque[tuple[int, Request]] = deque()  # submitted at a finish that the engine has not yet seen
        # What is recorded.
        self._repeat: list[int] = []
        self._rows: list[tuple[int, bool]] = []  # (decoding, full)
        self._chunks: list[tuple[int, int, int, bool]] = []  # (row, new, cached, completes)
        self._resumed: list[tuple[int, int]] = []
        self._joined: list[int] = []
        self._gap_from: dict[int, int] = {}  # edges at which preempted sequences had their last token
        self._submitted, self._scheduled, self._first, self._finished = [0] * n, [-1] * n, [-1] * n, [-1] * n
        for _ in range(min(n, requests.in_flight)):
            self._batcher.push(self._next())

    # -- what a driver sees ----------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self._batcher.idle and not self._unseen

    # -- one stretch -----------------------------------------------------------------------------------------

    def plan(self) -> int:
        """Schedule the next step; returns how often it can be repeated before the batch has to change.

        0: nothing could be scheduled (an unseen finish holds what is needed); plan again.
        """
        batcher, row = self._batcher, len(self._repeat)
        running = batcher.running
        while self._unseen and (not running or self._unseen[0][0] < batcher.step):
            batcher.push(self._unseen.popleft()[1])
        steps = batcher.plan()
        for request in batcher.preempted:
            if request.written:
                self._gap_from.setdefault(request.number, row)
        for request in batcher.admitted:
            if self._scheduled[request.number] < 0:
                self._scheduled[request.number] = row
        for _, new, cached, completes in batcher.chunks:
            self._chunks.append((row, new, cached, completes))
        for cached in batcher.joins:
            self._joined.append(row)
            batcher.spells.append((batcher.step, batcher.step + 1, cached))
        return 1 if steps and self._unseen else steps

    def advance(self, steps: int) -> None:
        """Run the planned batch `steps` times and book what it did."""
        batcher = self._batcher
        self._record(steps)
        edge = len(self._repeat)
        batcher.advance(steps)
        for request in batcher.first:
            self._first[request.number] = edge
        for request in batcher.resumed:
            self._resumed.append((self._gap_from.pop(request.number), edge))
        for request in batcher.done:
            self._finished[request.number] = edge
            if len(self._requests) < len(self._prompt):
                self._submitted[len(self._requests)] = edge
                if self._async:
                    self._unseen.append((batcher.step, self._next()))
                else:
                    batcher.push(self._next())

    def _next(self) -> Request:
        """The next request of the workload."""
        number = len(self._requests)
        request = Request(number, self._prompt[number], self._output[number])
        request.shared = self._shared[number]
        if request.shared:
            request.parts = (("shared", request.prompt_tok),)
        self._requests.append(request)
        self._submitted[number] = len(self._repeat)
        return request

    def _record(self, steps: int) -> None:
        self._repeat.append(steps)
        self._rows.append((self._batcher.decoding + len(self._batcher.joins), self._batcher.blocked))

    # -- the result ------------------------------------------------------------------------------------------

    def schedule(self) -> Schedule:
        """All that happened, in arrays."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, 2)
        chunks = np.array(self._chunks, dtype=np.int64).reshape(-1, 4)
        spells = np.array(self._batcher.spells, dtype=np.int64).reshape(-1, 3)
        counts = [(r.cached_tok, r.recomputed_tok, r.preemptions) for r in self._requests]
        edges = (self._submitted, self._scheduled, self._first, self._finished)
        return Schedule(
            np.array(self._repeat, dtype=np.int64),
            rows[:, 0],
            rows[:, 1] > 0,
            chunks[:, 0],
            chunks[:, 1],
            chunks[:, 2],
            chunks[:, 3] > 0,
            spells[:, 0],
            spells[:, 1],
            spells[:, 2],
            np.array(self._resumed, dtype=np.int64).reshape(-1, 2),
            np.array(self._joined, dtype=np.int64),
            *(np.array(values, dtype=np.int64) for values in edges),
            *np.array(counts, dtype=np.int64).T,
        )


def _check_lengths(requests: Requests, settings: EngineSettings, kv_blocks: int) -> None:
    """UserError if a request can never run."""
    longest = int((requests.prompt_tok + requests.output_tok).max())
    size = settings.block_size
    for room, name in ((settings.max_model_len, "max_model_len"), (kv_blocks * size, "the KV cache")):
        if room is not None and longest > room:
            raise UserError(f"a request needs {longest} tokens (prompt + output) but {name} holds {room}")
