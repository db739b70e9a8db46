"""The scheduler in step-time: which engine steps a workload consists of, when a step is the only unit of time.

Where every arrival coincides with a finish or with the start, token counts alone fix the sequence of batches. The rules
are those of `simulator.engine.scheduler` (decode first, chunked prefill, first come first served, preemption by
recompute); here they run once per workload, jump from event to event and never loop over the batch. A decoding
sequence takes part in every step, so its state is the step in which it started: the finishes wait in a heap, KV blocks
are counted by the phase in which sequences cross a block boundary, and attended keys are summed afterwards in arrays.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.keys import KeyRule
from simulator.steps import Steps

MAX_KEY_GROWTH = 0.1  # within one row of decode steps the attended keys grow by at most this share


@dataclass(frozen=True)
class Requests:
    """A workload: int arrays with one entry per request, in order of submission.

    `in_flight` requests are submitted at the start, each further one when one ends (all at the start: the number of
    requests; 0: the driver of the clock says when they arrive). The first `shared_prefix_tok` tokens of a prompt are
    the beginning of one text that all requests share.
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


class TokenClock:
    """The scheduler's state between two stretches of steps. `plan`, then `advance` by at most the steps it returned.

    With `async_scheduling` the next step is planned before the present one has ended, as in vLLM: what a finish frees
    (its seat, its blocks, its client) is seen one step later.
    """

    def __init__(
        self, requests: Requests, settings: EngineSettings, kv_blocks: int, async_scheduling: bool = False
    ) -> None:
        self._settings, self._kv_blocks, self._async = settings, kv_blocks, async_scheduling
        self._size, self._caching = settings.block_size, settings.enable_prefix_caching
        self._prompt, self._output = requests.prompt_tok.tolist(), requests.output_tok.tolist()
        # Whole blocks; the last prompt token is always computed, so that its block is nobody else's.
        shareable = np.minimum(requests.shared_prefix_tok, requests.prompt_tok - 1) // self._size
        self._shared = (shareable * self._caching).tolist()
        self._check_lengths(requests)
        self._tight = self._may_run_out(requests)
        n = self._n = len(requests)
        self._closed = requests.in_flight > 0  # a finish submits the next request
        self.step = 0  # the next step
        # The queue: preempted sequences, then requests number next_fresh .. arrived - 1.
        self._returned: deque[int] = deque()
        self._next_fresh, self._arrived = 0, min(n, requests.in_flight)
        self._submissions = self._arrived  # requests submitted; those between arrived and here are not yet seen
        # The running: decoding sequences in a heap by the step after their last, and at most one unfinished prompt.
        self._finishes: list[tuple[int, int, int]] = []  # (edge step, admission, request)
        self._decoding = 0
        self._partial: int | None = None
        self._completing: list[int] = []  # prompts that the planned step completes
        self._seats = 0  # taken, those of unseen finishes included
        self._limbo: deque[tuple[int, int, bool]] = deque()  # unseen finishes: (step, own blocks, a request follows)
        self._admissions = 0
        # Per request.
        self._written, self._computed, self._total = [0] * n, [0] * n, [0] * n
        self._start, self._finish_step, self._admission = [0] * n, [-1] * n, [0] * n
        self._hit, self._gap_from = [0] * n, [-1] * n
        self._submitted, self._scheduled, self._first, self._finished = [0] * n, [-1] * n, [-1] * n, [-1] * n
        self._cached_tok, self._recomputed, self._preemptions = [0] * n, [0] * n, [0] * n
        # KV blocks, counted only where they may run out. Own blocks: those outside the shared text.
        self._pool = 0  # blocks of the shared text in the cache; never evicted
        self._phase = [0] * self._size  # decoding sequences by the phase in which they need a new block
        self._block_offset = 0
        self._prefill_blocks = 0  # own blocks of prompts under way
        self._limbo_blocks = 0
        self._order: list[tuple[int, int]] = []  # (admission, request) of the running, and of some that are gone
        self._idle: deque[list[int]] = deque()  # [request, blocks]: cached blocks that nobody holds, oldest first
        self._idle_blocks = 0
        self._idle_of: dict[int, list[int]] = {}  # entries of preempted sequences, which may hit them
        # What is recorded.
        self._repeat: list[int] = []
        self._rows: list[tuple[int, bool]] = []  # (decoding, full)
        self._chunks: list[tuple[int, int, int, bool]] = []  # (row, new, cached, completes)
        self._spells: list[tuple[int, int, int]] = []
        self._resumed: list[tuple[int, int]] = []
        self._joined: list[int] = []
        self._joining = 0  # of the planned step
        self._full, self._idle_plans = False, 0

    # -- what a driver sees ----------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self._seats or self._waiting or self._submissions > self._arrived)

    @property
    def _waiting(self) -> bool:
        return bool(self._returned) or self._next_fresh < self._arrived

    @property
    def open_to_arrivals(self) -> bool:
        """Whether somebody who came now could join before the present batch changes."""
        return not self._waiting

    def arrive(self) -> None:
        """Submit the next request now."""
        self._submitted[self._submissions] = len(self._repeat)
        self._submissions += 1
        self._arrived += 1

    def idle(self) -> None:
        """Let one step pass with nothing to do (a stretch of its own)."""
        self._full = False
        self._record(1)

    def contexts(self) -> np.ndarray:
        """KV tokens of each decoding sequence before the next step; int array, in no particular order."""
        alive = (entry[2] for entry in self._finishes if self._decodes(entry))
        return np.array([self._computed[i] + self.step - self._start[i] for i in alive], dtype=np.int64)

    def planned_chunks(self) -> list[tuple[int, int, bool]]:
        """(new, cached, completes) of the prefill chunks of the planned step."""
        row, found = len(self._repeat), []
        for chunk in reversed(self._chunks):
            if chunk[0] != row:
                break
            found.append(chunk[1:])
        return found[::-1]

    def planned_joins(self) -> list[int]:
        """KV tokens of preempted sequences that decode at once in the planned step; `contexts` leaves them out."""
        return [context for _, _, context in self._spells[len(self._spells) - self._joining :]]

    # -- one stretch -----------------------------------------------------------------------------------------

    def plan(self) -> int:
        """Schedule the next step; returns how often it can be repeated before the batch has to change.

        0: nothing could be scheduled (an unseen finish holds what is needed); plan again.
        """
        self._see_finishes()
        chunks = len(self._chunks)
        budget = self._settings.max_num_batched_tokens - self._decoding
        preempted = self._tight and self._make_room(budget)
        if self._partial is not None:
            i = self._partial
            new = min(self._total[i] - self._computed[i], budget)
            if self._tight:
                self._prefill_blocks += -(-(self._computed[i] + new) // self._size) + self._computed[i] // -self._size
            self._take(i, new)
            budget -= new
        blocked = preempted or self._admit(budget)
        self._full = self._waiting and (blocked or self._seats >= self._settings.max_num_seqs)
        if len(self._chunks) > chunks or self._joining:
            self._idle_plans = 0
            return 1
        if not self._decoding:
            self._idle_plans += 1
            if self._idle_plans > 2:
                raise RuntimeError("nothing runs and nothing can be admitted")
            return 0
        self._idle_plans = 0
        if preempted or self._limbo:
            return 1
        steps = self._next_finish() - self.step
        return self._quiet_steps(steps) if self._tight else steps

    def advance(self, steps: int) -> None:
        """Run the planned batch `steps` times and book what it did."""
        self._record(steps)
        step, edge = self.step, len(self._repeat)
        while self._finishes and self._finishes[0][0] <= step:
            entry = heapq.heappop(self._finishes)
            if self._decodes(entry):
                i = entry[2]
                self._decoding -= 1
                self._spells.append((self._start[i], step, self._computed[i]))
                self._leave(i, edge, self._end_decode(i, step - 1) if self._tight else 0)
        for i in self._completing:
            self._sample_first(i, edge)
        self._completing.clear()

    def _record(self, steps: int) -> None:
        self._repeat.append(steps)
        self._rows.append((self._decoding + self._joining, self._full))
        self._joining = 0
        self.step += steps

    def _sample_first(self, i: int, edge: int) -> None:
        """The prompt of request `i` (with what it wrote before a preemption) is computed: one token is sampled."""
        if self._written[i] == 0:
            self._first[i] = edge
        else:
            self._resumed.append((self._gap_from[i], edge))
        self._written[i] += 1
        remaining = self._output[i] - self._written[i]
        own = 0
        if self._tight:
            own = -(-self._total[i] // self._size) - self._hit[i]
            self._prefill_blocks -= own
        if remaining == 0:
            self._leave(i, edge, own)
            return
        self._start[i], self._finish_step[i] = self.step, self.step + remaining
        self._decoding += 1
        heapq.heappush(self._finishes, (self._finish_step[i], self._admission[i], i))
        if self._tight:
            quotient, phase = divmod(self.step - self._total[i] - 1, self._size)
            self._phase[phase] += 1
            self._block_offset += quotient + self._hit[i]

    def _leave(self, i: int, edge: int, own_blocks: int) -> None:
        """Request `i` has sampled its last token; its client submits the next one at once."""
        self._finished[i] = edge
        if self._tight:
            self._keep_idle(i, self._prompt[i] + self._output[i] - 1, own_blocks)
        follows = self._closed and self._submissions < self._n
        if follows:
            self._submitted[self._submissions] = edge
            self._submissions += 1
        if self._async:
            self._limbo.append((self.step, own_blocks, follows))
            self._limbo_blocks += own_blocks
        else:
            self._seats -= 1
            self._arrived += follows

    def _see_finishes(self) -> None:
        """Free what finished early enough to be seen by the plan of this step."""
        running = self._decoding or self._partial is not None
        while self._limbo and (not running or self._limbo[0][0] < self.step):
            _, blocks, follows = self._limbo.popleft()
            self._limbo_blocks -= blocks
            self._seats -= 1
            self._arrived += follows

    # -- admission and chunks --------------------------------------------------------------------------------

    def _admit(self, budget: int) -> bool:
        """Admit from the queue while tokens, seats and blocks last; True if blocks were lacking."""
        seats = self._settings.max_num_seqs
        while budget > 0 and self._seats < seats:
            if self._returned:
                i = self._returned[0]
            elif self._next_fresh < self._arrived:
                i = self._next_fresh
            else:
                break
            total = self._prompt[i] + self._written[i]
            shared = min(self._shared[i], self._pool, (total - 1) // self._size)
            kept = self._kept_blocks(i) if i in self._idle_of else 0
            cached = min(shared + kept, (total - 1) // self._size) * self._size
            new = min(total - cached, budget)
            if self._tight:
                own = -(-(cached + new) // self._size) - shared
                if own > self._kv_blocks - self._held():
                    return True
                self._forget_idle(i)
                self._prefill_blocks += own
                self._order.append((self._admissions, i))
            if self._returned:
                self._returned.popleft()
            else:
                self._next_fresh += 1
            self._book_admission(i, cached)
            self._hit[i], self._total[i], self._admission[i] = shared, total, self._admissions
            self._admissions += 1
            self._seats += 1
            self._partial = i
            self._take(i, new)
            budget -= new
        return False

    def _book_admission(self, i: int, cached_tok: int) -> None:
        """As `Sequence.book_admission`: what was computed beyond the cached tokens is lost."""
        if self._scheduled[i] < 0:
            self._scheduled[i], self._cached_tok[i] = len(self._repeat), cached_tok
        else:
            self._recomputed[i] += self._computed[i] - cached_tok
            if self._recomputed[i] < 0:
                self._cached_tok[i] -= self._recomputed[i]
                self._recomputed[i] = 0
        self._computed[i] = cached_tok

    def _take(self, i: int, new: int) -> None:
        """Put a chunk of prompt `i`, the partial one, into the planned step."""
        before = self._computed[i]
        after = self._computed[i] = before + new
        completes = after == self._total[i]
        if new == 1 and completes and self._written[i]:  # only its latest token lacks KV: a decode like any other
            self._joined.append(len(self._repeat))
            self._spells.append((self.step, self.step + 1, before))
            self._joining += 1
        else:
            self._chunks.append((len(self._repeat), new, before, completes))
        if completes:
            self._completing.append(i)
            self._partial = None
        if self._shared[i] > self._pool == self._hit[i]:
            offered = max(0, min(after // self._size, self._shared[i]) - self._pool)
            self._pool += offered
            self._hit[i] += offered
            if self._tight:
                self._prefill_blocks -= offered

    def _next_finish(self) -> int:
        while not self._decodes(self._finishes[0]):
            heapq.heappop(self._finishes)
        return self._finishes[0][0]

    def _decodes(self, entry: tuple[int, int, int]) -> bool:
        """Whether an entry of the heap is still true: not of a sequence preempted since."""
        finish, admission, i = entry
        return self._finish_step[i] == finish and self._admission[i] == admission

    # -- KV blocks -------------------------------------------------------------------------------------------

    def _check_lengths(self, requests: Requests) -> None:
        longest = int((requests.prompt_tok + requests.output_tok).max())
        pool = self._kv_blocks * self._size
        for room, name in ((self._settings.max_model_len, "max_model_len"), (pool, "the KV cache")):
            if room is not None and longest > room:
                raise UserError(f"a request needs {longest} tokens (prompt + output) but {name} holds {room}")
        beside = max(self._shared) + int(np.max(self._final_blocks(requests) - np.array(self._shared)))
        if beside > self._kv_blocks:
            raise UserError(
                f"the shared prefix and a request beside it need {beside} blocks but the KV cache has {self._kv_blocks}"
            )

    def _final_blocks(self, requests: Requests) -> np.ndarray:
        return (requests.prompt_tok + requests.output_tok - 1 + self._size - 1) // self._size

    def _may_run_out(self, requests: Requests) -> bool:
        """Whether the largest requests that can run together might fill the KV cache."""
        together = min(self._settings.max_num_seqs, requests.in_flight or len(requests))
        blocks = np.sort(self._final_blocks(requests))[-together:]
        return int(blocks.sum()) + max(self._shared) > self._kv_blocks

    def _decode_blocks(self, step: int) -> int:
        """Own blocks of the decoding sequences once step `step` has got its blocks."""
        whole, phase = divmod(step, self._size)
        return self._decoding * whole + sum(self._phase[:phase]) - self._block_offset

    def _held(self) -> int:
        """Blocks held during the planned step."""
        return self._pool + self._decode_blocks(self.step) + self._prefill_blocks + self._limbo_blocks

    def _quiet_steps(self, limit: int) -> int:
        """How many decode steps (>= 1, <= limit) pass before blocks run out."""
        room = self._kv_blocks - self._pool - self._prefill_blocks - self._limbo_blocks
        if self._decode_blocks(self.step + limit - 1) <= room:
            return limit
        low, high = 1, limit
        while high - low > 1:
            middle = (low + high) // 2
            fits = self._decode_blocks(self.step + middle - 1) <= room
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _make_room(self, budget: int) -> bool:
        """Preempt, last admitted first, until what is running has blocks for the next step; True if anybody was."""
        preempted = False
        while True:
            growth = 0
            if self._partial is not None:
                before = self._computed[self._partial]
                after = before + min(self._total[self._partial] - before, budget)
                growth = -(-after // self._size) + before // -self._size
            if self._held() + growth <= self._kv_blocks:
                return preempted
            preempted = True
            self._preempt_last()

    def _preempt_last(self) -> None:
        while True:
            admission, i = self._order.pop()
            if self._admission[i] == admission and self._finished[i] < 0:
                break
        if i == self._partial:
            self._shrink_idle(self._held())
            own = -(-self._computed[i] // self._size) - self._hit[i]
            self._prefill_blocks -= own
            self._partial = None
        else:
            self._shrink_idle(self._held())
            if self.step > self._start[i]:
                self._spells.append((self._start[i], self.step, self._computed[i]))
            own = self._end_decode(i, self.step)
            self._decoding -= 1
            self._computed[i] += self.step - self._start[i]
            self._written[i] += self.step - self._start[i]
            self._finish_step[i], self._gap_from[i] = -1, len(self._repeat)
        self._enter_idle(i, self._computed[i])
        self._seats -= 1
        self._preemptions[i] += 1
        self._returned.appendleft(i)

    def _end_decode(self, i: int, step: int) -> int:
        """Take a decoding sequence out of the block counts; returns its own blocks at `step`."""
        quotient, phase = divmod(self._start[i] - self._computed[i] - 1, self._size)
        self._phase[phase] -= 1
        self._block_offset -= quotient + self._hit[i]
        return -(-(step - self._start[i] + self._computed[i] + 1) // self._size) - self._hit[i]

    # Blocks that nobody holds but that are still cached: only a preempted sequence can hit its own.

    def _keep_idle(self, i: int, computed_tok: int, own_blocks: int) -> None:
        """A finished sequence leaves its whole blocks behind. Its own blocks are out of the counts already."""
        if self._caching:
            held = self._pool + self._decode_blocks(self.step - 1) + self._prefill_blocks + self._limbo_blocks
            self._shrink_idle(held + own_blocks)
            self._enter_idle(i, computed_tok, finished=True)

    def _enter_idle(self, i: int, computed_tok: int, finished: bool = False) -> None:
        blocks = computed_tok // self._size - min(self._shared[i], self._pool)
        if self._caching and blocks > 0:
            entry = [i, blocks]
            self._idle.append(entry)
            self._idle_blocks += blocks
            if not finished:
                self._idle_of[i] = entry

    def _shrink_idle(self, held: int) -> None:
        """Evict, oldest first, what does not fit beside `held` blocks."""
        surplus = self._idle_blocks - max(0, self._kv_blocks - held)
        while surplus > 0:
            entry = self._idle[0]
            taken = min(surplus, entry[1])
            entry[1] -= taken
            surplus -= taken
            self._idle_blocks -= taken
            if entry[1] == 0:
                self._idle.popleft()
                if self._idle_of.get(entry[0]) is entry:
                    del self._idle_of[entry[0]]

    def _kept_blocks(self, i: int) -> int:
        """Blocks of preempted request `i` that are still cached."""
        self._shrink_idle(self._held())
        return self._idle_of[i][1] if i in self._idle_of else 0

    def _forget_idle(self, i: int) -> None:
        entry = self._idle_of.pop(i, None)
        if entry is not None:
            self._idle_blocks -= entry[1]
            entry[1] = 0

    # -- the result ------------------------------------------------------------------------------------------

    def schedule(self) -> Schedule:
        """All that happened, in arrays."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, 2)
        chunks = np.array(self._chunks, dtype=np.int64).reshape(-1, 4)
        spells = np.array(self._spells, dtype=np.int64).reshape(-1, 3)
        per_request = (
            self._submitted,
            self._scheduled,
            self._first,
            self._finished,
            self._cached_tok,
            self._recomputed,
            self._preemptions,
        )
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
            *(np.array(values, dtype=np.int64) for values in per_request),
        )


# -- from a schedule to steps that physics can price -------------------------------------------------------------


def steps_of(
    plan: Schedule, rules: Sequence[KeyRule], max_key_growth: float = MAX_KEY_GROWTH
) -> tuple[Steps, np.ndarray, np.ndarray]:
    """(steps, repeat (S',), row (S + 1,)): one row per stretch, long stretches cut so that keys vary little in a row.

    A row holds the mean of its `repeat` steps. row[e] is the row at which edge e of the schedule lies.
    """
    starts = np.concatenate(([0], np.cumsum(plan.repeat)))
    spells = (plan.spell_start, plan.spell_end, plan.spell_context_tok)
    stretch, repeat = _cut(plan, starts, spells, max_key_growth if rules else np.inf)
    edges = np.concatenate(([0], np.cumsum(repeat)))
    row = np.searchsorted(edges, starts)
    decode = plan.decode_sequences[stretch].astype(float)
    keys = [np.diff(_keys_before(rule, *spells, edges)) / repeat for rule in rules]
    chunk_row = row[plan.chunk_row]

    def per_row(values: np.ndarray) -> np.ndarray:
        return np.bincount(chunk_row, weights=values, minlength=len(repeat))

    read = [prefill_keys(rule, plan.chunk_new_tok, plan.chunk_cached_tok) for rule in rules]
    steps = Steps(
        decode_sequences=decode,
        decode_keys=_columns(keys, len(repeat)),
        prefill_sequences=per_row(np.ones(len(chunk_row))),
        prefill_tok=per_row(plan.chunk_new_tok),
        prefill_cached_tok=per_row(plan.chunk_cached_tok),
        prefill_pairs=_columns([per_row(pairs) for pairs, _ in read], len(repeat)),
        prefill_keys=_columns([per_row(keys) for _, keys in read], len(repeat)),
        sampled=decode + per_row(plan.chunk_completes),
    )
    return steps, repeat, row


def _columns(columns: list[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.empty((rows, 0))


def _cut(plan: Schedule, starts: np.ndarray, spells: tuple, growth: float) -> tuple[np.ndarray, np.ndarray]:
    """(stretch, repeat) of each row: stretches in which all contexts together grow by more than `growth`, in pieces."""
    first = np.diff(_keys_before(KeyRule(), *spells, np.stack((starts[:-1], starts[:-1] + 1)).T.ravel()))[::2]
    ratio = 1.0 + plan.decode_sequences * (plan.repeat - 1) / np.maximum(first, 1)
    pieces = np.ones(len(ratio), dtype=np.int64)
    if np.isfinite(growth):
        pieces = np.minimum(np.ceil(np.log(ratio) / np.log1p(growth)).clip(1).astype(np.int64), plan.repeat)
    stretch = np.repeat(np.arange(len(pieces)), pieces)
    piece = np.arange(1, len(stretch) + 1) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 1 .. pieces
    share = piece / pieces[stretch]
    growth_of = np.maximum(ratio[stretch] - 1.0, 1e-300)
    grown = np.where(ratio[stretch] > 1.0, (ratio[stretch] ** share - 1.0) / growth_of, share)
    ends = np.maximum(np.rint(grown * plan.repeat[stretch]).astype(np.int64), piece)  # keys grow alike in every piece
    ends = np.where(piece == pieces[stretch], plan.repeat[stretch], ends)
    repeat = np.diff(np.concatenate(([0], starts[:-1][stretch] + ends)))
    return stretch[repeat > 0], repeat[repeat > 0]


def _keys_before(
    rule: KeyRule, start: np.ndarray, end: np.ndarray, context_tok: np.ndarray, steps: np.ndarray
) -> np.ndarray:
    """Keys read by decoding in one layer, summed over all steps before each of `steps`; int array.

    The keys of one step are piecewise linear in the step: events (step, jump, change of slope) describe them, and
    sums up to any step follow from prefix sums over the events. Integers may wrap on the way, differences are exact.
    """
    at, jump, slope = _key_events(rule, start, end - start, context_tok + 1)
    order = np.argsort(at, kind="stable")
    at, jump, slope = at[order], jump[order], slope[order]
    sums = [np.concatenate(([0], np.cumsum(x))) for x in (jump, jump * at, slope, slope * at, slope * at * at)]
    a, b, s, t, u = (x[np.searchsorted(at, steps)] for x in sums)
    return a * steps - b + (steps * (steps - 1) * s - (2 * steps - 1) * t + u) // 2


def _key_events(rule: KeyRule, start: np.ndarray, n: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, ...]:
    """(step, jump, change of slope) of the keys of spells of `n` steps whose first one sees `first` tokens."""
    window, none, one = rule.window_tok, np.zeros_like(n), np.ones_like(n)
    if window is None:
        return _join((start, first, one), (start + n, -(first + n), -one))
    if not rule.chunked:
        growing = np.clip(window - first, 0, n)
        seen, one = np.minimum(first, window), (growing > 0).astype(np.int64)
        return _join((start, seen, one), (start + growing, none, -one), (start + n, -(seen + growing), none))
    seen = (first - 1) % window + 1
    drops = (seen + n - 2) // window  # times that the sequence enters a new chunk
    number = np.arange(drops.sum()) - np.repeat(np.cumsum(drops) - drops, drops)
    at = np.repeat(start + window - seen + 1, drops) + number * window
    return _join(
        (start, seen, one),
        (at, np.full_like(at, -window), np.zeros_like(at)),
        (start + n, -(seen + n - drops * window), -one),
    )


def _join(*events: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(column) for column in zip(*events))


def prefill_keys(rule: KeyRule, new_tok: np.ndarray, cached_tok: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`KeyRule.keys_read` for many chunks: ((query, key) pairs, KV tokens read), float arrays of shape (C,)."""
    new, cached, window = new_tok.astype(float), cached_tok.astype(float), rule.window_tok
    first, last = cached + 1.0, cached + new
    if not rule.causal:
        return new * last, last
    if window is None:
        return new * (first + last) / 2.0, last
    if rule.chunked:
        return _chunk_pairs(last, window) - _chunk_pairs(cached, window), last - cached // window * window
    growing = np.clip(window - cached, 0.0, new)
    pairs = growing * (first + first + growing - 1.0) / 2.0 + (new - growing) * window
    return pairs, np.minimum(last, new + window - 1.0)


def _chunk_pairs(tokens: np.ndarray, chunk: int) -> np.ndarray:
    whole, rest = tokens // chunk, tokens % chunk
    return whole * chunk * (chunk + 1) / 2.0 + rest * (rest + 1.0) / 2.0
