"""The serving engine: the one class that carries time."""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from simulator.batch import Batch, PrefillChunk
from simulator.engine.gpu import Gpu
from simulator.engine.kv_cache import KvCache, Parts, common_prefix_tok
from simulator.engine.scheduler import Plan, Scheduler
from simulator.engine.sequence import Pass, PassSequence, Sequence
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.result import CallRecord

# Longest stretch of decode steps computed at once; bounds what is thrown away when an arrival cuts a stretch.
MAX_STRETCH = 2048


class _EndOfInstant(simpy.Event):
    """Happens now, but after every other event of this instant: all reactions to it have been submitted."""

    def __init__(self, env: simpy.Environment) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, priority=simpy.events.NORMAL + 1)


@dataclass(frozen=True)
class _Stretch:
    """Steps of an unchanged batch: seconds and joules (steps,), shares summed; `cut(n)` gives the first n of them."""

    seconds: np.ndarray
    joules: np.ndarray
    shares: dict[str, float]


class Server:
    """One model on one GPU (or group of them), serving calls by continuous batching.

    `step_model` gives seconds and joules (see `simulator.step.StepModel`), `kv_blocks` is the size of the KV pool.
    Between two changes of the batch whole stretches of decode steps are computed at once; `step_by_step` computes
    every step on its own and gives the same timeline. `gpu`: shared with other engines, or its own (None). `name`
    stands in the records of its calls.
    """

    def __init__(
        self,
        env: simpy.Environment,
        step_model: Any,
        settings: EngineSettings,
        kv_blocks: int,
        step_by_step: bool = False,
        gpu: Gpu | None = None,
        name: str = "",
    ) -> None:
        self.env, self.step_model, self.settings, self.step_by_step = env, step_model, settings, step_by_step
        self.gpu, self.name = gpu or Gpu(env, step_model.idle_power_w), name
        self.cache = KvCache(kv_blocks, settings.block_size, settings.enable_prefix_caching)
        self.scheduler = Scheduler(settings, self.cache)
        self.records: dict[int, CallRecord] = {}  # finished calls
        self.prefill_s = 0.0  # time in steps with prefill
        self.shares_s: dict[str, float] = {}
        self.peak_running = 0
        self.computed_tok = 0  # tokens that went through the model, prefill and decode
        self._calls = 0
        self._wake: simpy.Event | None = None  # set while this engine would hear of a submission, a stop, a mark
        self._under_way: tuple[np.ndarray, frozenset[Sequence]] = (np.empty(0), frozenset())
        self._deaf = False  # who comes now stands behind a blocked queue: first come, first served
        self._stopping: dict[Sequence, None] = {}
        self._of_workers: dict[int, Any] = {}  # step models of lock-step groups, by their size
        self._attending = False  # whether any call attends to the KV of others
        self._process = env.process(self._serve())

    # -- for clients -----------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Parts,
        output_tok: int,
        label: str,
        parents: tuple[int, ...] = (),
        *,
        call_id: int | None = None,
        attended: Several[Sequence] = (),
        keep: bool = False,
        passes: Several[Pass] = (),
    ) -> Sequence:
        """Queue one call, see `submit_all`."""
        number = self._calls if call_id is None else call_id
        return self.submit_all(
            prompt, [output_tok], [number], label, parents, attended=attended, keep=keep, passes=passes
        )[0]

    def submit_all(
        self,
        prompt: Parts,
        output_tok: Several[int],
        call_ids: Several[int],
        label: str,
        parents: tuple[int, ...] = (),
        *,
        attended: Several[Sequence] = (),
        keep: bool = False,
        passes: Several[Pass] = (),
    ) -> list[Sequence]:
        """Queue calls that read `prompt` and write so many tokens each. `.done` succeeds with a CallRecord.

        attended: calls of this engine, running or kept, whose KV it attends to. keep: its KV stays held after its end,
        until `release`. passes: it is answered by full passes of a diffusion model. Raises `UserError` if the call can
        never run: longer than max_model_len or than the whole KV cache.
        """
        prompt_tok = sum(tokens for _, tokens in prompt)
        least = min(output_tok)
        if prompt_tok < 1 or least < 1:
            raise ValueError(f"call '{label}': {prompt_tok} prompt and {least} output tokens, both must be >= 1")
        self._check_length(label, prompt_tok, max(output_tok))
        self._calls += len(output_tok)
        seen = _behind(prompt, attended)
        self._attending = self._attending or bool(seen)
        made, env, push = [], self.env, self.scheduler.waiting.push
        for call_id, tokens in zip(call_ids, output_tok):
            known = (call_id, label, prompt, prompt_tok, int(tokens), env.now, parents, simpy.Event(env))
            sequence = PassSequence(*known, passes=tuple(passes)) if passes else Sequence(*known)
            sequence.attended, sequence.keep = seen, keep
            made.append(sequence)
        if seen:  # in front: what holds KV for them would keep others from starting, and them behind these
            for sequence in reversed(made):
                self.scheduler.waiting.put_back(sequence)
            for other, _ in seen:
                other.readers += len(made)
        else:
            for sequence in made:
                push(sequence)
        if not self._deaf or seen:
            self.wake()
        return made

    def together(self, sequences: Several[Sequence]) -> None:
        """Calls that have just been submitted advance in lock-step, each attending to what all of them have."""
        if len(sequences) > self.settings.max_num_seqs:
            raise UserError(
                f"{len(sequences)} calls in lock-step do not fit in one step: max_num_seqs is "
                f"{self.settings.max_num_seqs}"
            )
        group = list(sequences)
        for sequence in group:
            others = [other for other in group if other is not sequence]
            own = [other for other, _ in sequence.attended]
            sequence.attended = _behind(sequence.prompt, [*own, *others])
            sequence.group = group
            for other in others:
                other.readers += 1
        self._attending = True

    def stop(self, sequence: Sequence) -> None:
        """End a call at the next step boundary with what it has written."""
        if not sequence.ended:
            self._stopping[sequence] = None
            self.wake()

    def mark(self, sequence: Sequence, written_tok: int) -> simpy.Event:
        """An event that succeeds at the end of the step in which the call has written so many tokens, or has ended."""
        event = self.env.event()
        if sequence.done.triggered or self._written_now(sequence) >= written_tok:
            return event.succeed()
        sequence.marks.append((written_tok, event))
        sequence.marks.sort(key=lambda mark: mark[0])
        self.wake()
        return event

    def _written_now(self, sequence: Sequence) -> int:
        """Tokens written up to the last step that has ended; those of a stretch under way are booked at its end."""
        edges, running = self._under_way
        done = int(np.searchsorted(edges, self.env.now, side="right")) if sequence in running else 0
        return sequence.written_after(done)

    def release(self, sequence: Sequence) -> None:
        """Give back the KV of a call that was kept beyond its end; of one that still runs, at its end."""
        sequence.keep = False
        self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        """Free the blocks of a call that has ended, unless they are kept or others still read them."""
        if sequence.ended and not sequence.held_for_others:
            self.scheduler.let_go(sequence)
            self.wake()

    def cached_tok(self, prompt: Parts) -> int:
        """Tokens of a prompt that lie in the prefix cache now."""
        return self.cache.match(prompt, sum(tokens for _, tokens in prompt))[1] * self.cache.block_size

    @property
    def outstanding(self) -> int:
        """Calls that wait or run."""
        return len(self.scheduler.waiting) + len(self.scheduler.running)

    @property
    def energy_j(self) -> float:
        """Energy of the GPU so far."""
        return self.gpu.energy_j

    def power_trace(self) -> tuple[np.ndarray, np.ndarray]:
        """Power of the GPU, see `Gpu.power_trace`."""
        return self.gpu.power_trace()

    def close(self) -> None:
        """Account for the time up to now if nothing ran in it; call once, when the flight has ended."""
        self.gpu.account_idle(self.env.now)

    def wake(self) -> None:
        """Something has changed that the present stretch of steps did not know of."""
        if self._wake is not None and not self._wake.triggered:
            self._wake.succeed()

    # -- the loop --------------------------------------------------------------------------------------------

    def _serve(self) -> Generator:
        env, has_turn = self.env, False
        while True:
            yield _EndOfInstant(env)
            if self._stopping:
                self._stop_now()  # and let clients react to it before the next step is planned
                continue
            busy = bool(self.scheduler.running or self.scheduler.waiting)
            if busy and not has_turn:
                has_turn = True
                if not self.gpu.free:
                    yield self.gpu.ask(self.wake)
                    continue  # meanwhile calls may have come or been stopped
                self.gpu.take(self.wake)
            plan = self.scheduler.plan() if busy else None
            if plan is None or not plan.chunks:
                if has_turn:
                    self.gpu.give_back()
                    has_turn = False
                self._wake = env.event()
                yield self._wake
                continue
            self.peak_running = max(self.peak_running, len(plan.chunks))
            for sequence, _ in plan.chunks:
                if sequence.scheduled_s is None:
                    sequence.scheduled_s = env.now
            steps = yield from self._carry_out(plan)
            self.gpu.give_back()
            has_turn = False
            self._finish(plan, steps)

    def _carry_out(self, plan: Plan) -> Generator:
        """The plan's step, repeated until the batch has to change; returns how many steps it was."""
        longest = self._longest(plan)
        if longest == 1:
            cost = self._price(plan)
            yield self.env.timeout(cost.seconds)
            if not plan.decode_only:
                self.prefill_s += cost.seconds
            self._account(cost.seconds, cost.joules, cost.shares)
            return 1
        steps, stretch = longest, self._stretch(plan, longest)
        start = self.env.now
        edges = start + np.cumsum(stretch.seconds)
        end = self.env.timeout(float(edges[-1]) - start)
        self._wake, self._deaf = self.env.event(), bool(self.scheduler.waiting)
        self._under_way = edges, frozenset(sequence for sequence, _ in plan.chunks)
        yield end | self._wake
        if not end.processed:
            cut = min(int(np.searchsorted(edges, self.env.now)) + 1, steps)
            if cut < steps:
                steps, stretch = cut, self._stretch(plan, cut)
            yield self.env.timeout(max(float(edges[cut - 1]) - self.env.now, 0.0))
        self._wake, self._deaf, self._under_way = None, False, (np.empty(0), frozenset())
        self._account(self.env.now - start, float(stretch.joules.sum()), stretch.shares)
        return steps

    def _longest(self, plan: Plan) -> int:
        """Steps that the plan can be repeated before a call ends, reaches a mark, or blocks run out."""
        if self.step_by_step or self.gpu.wanted:
            return 1
        if plan.settled:
            steps = min(MAX_STRETCH, *(s.next_stop_tok - s.written_tok for s, _ in plan.chunks))
            return self.scheduler.quiet_steps(_own_tok(plan), steps) if steps > 1 else 1
        if all(sequence.whole for sequence, _ in plan.chunks):
            return min(MAX_STRETCH, *(sequence.left if not sequence.marks else 1 for sequence, _ in plan.chunks))
        return 1

    def _stretch(self, plan: Plan, steps: int) -> _Stretch:
        if not plan.decode_only:  # passes of a diffusion model, which all cost the same
            cost = self._price(plan)
            seconds, joules = np.full(steps, cost.seconds), np.full(steps, cost.joules)
            return _Stretch(seconds, joules, {cause: steps * share for cause, share in cost.shares.items()})
        if not self._attending:
            return self.step_model.decode_run(_own_tok(plan), steps)
        leaders, workers = _lock_step_teams(plan)
        if leaders:
            growth = np.full(len(leaders), workers)
            return self._workers_model(workers).decode_run(_seen_tok(leaders), steps, growth)
        return self.step_model.decode_run(_seen_tok(_decoding(plan)), steps, _growth(plan))

    def _price(self, plan: Plan) -> Any:
        """Cost of one step of the plan."""
        if not self._attending:
            return self.step_model.step(_batch(plan, _own_tok(plan)))
        leaders, workers = _lock_step_teams(plan)
        if leaders:
            return self._workers_model(workers).step(Batch((), _seen_tok(leaders)))
        return self.step_model.step(_batch(plan, _seen_tok(_decoding(plan))))

    def _workers_model(self, workers: int) -> Any:
        """Physics of a lock-step group: its queries share one read of the cache, like tokens that are verified."""
        if workers not in self._of_workers:
            self._of_workers[workers] = self.step_model.verifying(workers)
        return self._of_workers[workers]

    def _finish(self, plan: Plan, steps: int) -> None:
        """Book the tokens of the plan, report the calls that are done, and tell of marks that are reached."""
        now = self.env.now
        firsts = [sequence for sequence, _ in plan.chunks if sequence.written_tok == 0]
        self.computed_tok += sum(new_tok for _, new_tok in plan.chunks) * steps
        finished = self.scheduler.advance(plan, steps)
        for sequence in firsts:
            if sequence.written_tok:
                sequence.first_token_s = now
        for sequence in finished:
            self._conclude(sequence)
        for sequence, _ in plan.chunks:
            while sequence.marks and sequence.marks[0][0] <= sequence.written_tok:
                sequence.marks.pop(0)[1].succeed()

    def _conclude(self, sequence: Sequence, stopped: bool = False) -> None:
        """Write the record of a call that has ended now."""
        now = self.env.now
        started = now if sequence.scheduled_s is None else sequence.scheduled_s
        record = sequence.record = self.records[sequence.call_id] = CallRecord(
            call_id=sequence.call_id,
            label=sequence.label,
            submitted_s=sequence.submitted_s,
            scheduled_s=started,
            first_token_s=sequence.first_token_s if sequence.written_tok else now,
            finished_s=now,
            prompt_tok=sequence.prompt_tok,
            cached_tok=sequence.cached_tok or 0,
            prefilled_tok=sequence.prefilled_tok,
            output_tok=sequence.written_tok,
            parents=sequence.parents,
            preemptions=sequence.preemptions,
            recomputed_tok=sequence.recomputed_tok,
            engine=self.name,
            stopped=stopped,
        )
        for other, _ in sequence.attended:
            other.readers -= 1
            self._let_go(other)
        for _, event in sequence.marks:
            event.succeed()
        sequence.marks.clear()
        sequence.done.succeed(record)

    def _stop_now(self) -> None:
        """End what clients have stopped; between two steps."""
        for sequence in self._stopping:
            if not sequence.done.triggered:
                self.scheduler.withdraw(sequence)
                self._conclude(sequence, stopped=True)
        self._stopping.clear()

    def _account(self, seconds: float, joules: float, shares: dict[str, float]) -> None:
        """Energy, causes and power of the work that ends now."""
        self.gpu.account(seconds, joules)
        for cause, share in shares.items():
            self.shares_s[cause] = self.shares_s.get(cause, 0.0) + share

    # -- what can never run ------------------------------------------------------------------------------------

    def _check_length(self, label: str, prompt_tok: int, output_tok: int) -> None:
        total, limit = prompt_tok + output_tok, self.settings.max_model_len
        pool = self.cache.blocks * self.cache.block_size
        for room, name in ((limit, "max_model_len"), (pool, "the KV cache")):
            if room is not None and total > room:
                fits = (
                    f"a prompt of {prompt_tok} leaves room for {room - prompt_tok} output tokens"
                    if prompt_tok < room
                    else f"its prompt alone is {prompt_tok + 1 - room} tokens too long"
                )
                raise UserError(
                    f"call '{label}' needs {total} tokens ({prompt_tok} prompt + {output_tok} output) "
                    f"but {name} holds {room}: {fits}"
                )

    def check_stuck(self) -> None:
        """For the end of a flight in which nothing happens any more: `UserError` if a call waits here in vain."""
        if not self.scheduler.waiting:
            return
        sequence, size = self.scheduler.waiting[0], self.cache.block_size
        what = f"call '{sequence.label}' ({sequence.prompt_tok + sequence.written_tok:,} tokens)"
        room = f"{self.cache.blocks * size:,} tokens of KV cache"
        if self.cache.held:
            raise UserError(
                f"{what} can never start: of {room} {self.cache.held * size:,} are held by calls whose KV is kept, and "
                "what is left is too little; expected a larger cache, or fewer questions at a time (concurrency)"
            )
        if sequence.group:
            raise UserError(
                f"{what} can never start: the {len(sequence.group)} calls in lock-step need more than {room}"
            )
        raise UserError(f"{what} can never start: it needs more than {room}")


def _own_tok(plan: Plan) -> np.ndarray:
    """KV tokens that each decoding sequence of the plan holds before the step."""
    return np.array([sequence.computed_tok for sequence, _ in plan.chunks if sequence.decoding], dtype=np.int64)


def _decoding(plan: Plan) -> list[Sequence]:
    return [sequence for sequence, _ in plan.chunks if sequence.decoding]


def _seen_tok(decoding: Several[Sequence]) -> np.ndarray:
    """KV tokens that decoding sequences attend to before the step, those of others included."""
    return np.array([s.computed_tok + (s.attended_tok() if s.attended else 0) for s in decoding], dtype=np.int64)


def _growth(plan: Plan) -> np.ndarray:
    """Tokens by which a step lengthens what each decoding sequence attends to."""
    running = {sequence for sequence, _ in plan.chunks}
    grown = [1 + sum(o in running for o, _ in s.attended) for s in _decoding(plan)]
    return np.array(grown, dtype=np.int64)


def _lock_step_teams(plan: Plan) -> tuple[list[Sequence], int]:
    """(one worker of every team, workers in each) where a step holds nothing but whole teams of one size.

    Else ([], 0): beside other calls, workers are priced as if each of them read the cache for itself.
    """
    teams: dict[int, list[Sequence]] = {}
    for sequence, _ in plan.chunks:
        if not sequence.group or not plan.decode_only:
            return [], 0
        teams.setdefault(id(sequence.group), []).append(sequence)
    found = list(teams.values())
    workers = len(found[0])
    whole = all(len(team) == workers == sum(not other.ended for other in team[0].group) for team in found)
    return ([team[0] for team in found], workers) if whole else ([], 0)


def _behind(prompt: Parts, attended: Several[Sequence]) -> tuple[tuple[Sequence, int], ...]:
    """Calls that one with this prompt attends to, each with how many of its tokens it has in common with those before.

    Tokens that several of them begin with lie in the cache once and are read once.
    """
    before, found = [prompt], []
    for other in attended:
        found.append((other, max(common_prefix_tok(other.parts, parts) for parts in before)))
        before.append(other.parts)
    return tuple(found)


def _batch(plan: Plan, decode_context_tok: np.ndarray) -> Batch:
    """What the step model has to price."""
    if plan.decode_only:
        return Batch((), decode_context_tok)
    prefill = tuple(_chunk(sequence, new_tok) for sequence, new_tok in plan.chunks if not sequence.decoding)
    return Batch(prefill, decode_context_tok)


def _chunk(sequence: Sequence, new_tok: int) -> PrefillChunk:
    if sequence.whole:
        now = sequence.now
        logits = now.new_tok if now.logits_tok is None else now.logits_tok
        return PrefillChunk(now.new_tok, now.cached_tok, logits_tok=logits)
    seen = sequence.computed_tok + (sequence.attended_tok() if sequence.attended else 0)
    return PrefillChunk(new_tok, seen, completes=new_tok == sequence.pending_tok)
