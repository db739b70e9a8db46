"""The serving engine: the one class that carries time."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from simulator.batch import Batch, PrefillChunk
from simulator.engine.kv_cache import KvCache, Parts
from simulator.engine.scheduler import Plan, Scheduler, Sequence
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


class Server:
    """One model on one device, serving calls by continuous batching.

    `step_model` gives seconds and joules (see `simulator.step.StepModel`), `kv_blocks` is the size of the KV pool.
    Between two changes of the batch whole stretches of decode steps are computed at once; `step_by_step` computes
    every step on its own and gives the same timeline.
    """

    def __init__(
        self,
        env: simpy.Environment,
        step_model: Any,
        settings: EngineSettings,
        kv_blocks: int,
        step_by_step: bool = False,
    ) -> None:
        self.env, self.step_model, self.settings, self.step_by_step = env, step_model, settings, step_by_step
        self.cache = KvCache(kv_blocks, settings.block_size, settings.enable_prefix_caching)
        self.scheduler = Scheduler(settings, self.cache)
        self.records: dict[int, CallRecord] = {}  # finished calls
        self.energy_j = 0.0
        self.prefill_s = 0.0  # time in steps with prefill
        self.shares_s: dict[str, float] = {}
        self.peak_running = 0
        self.computed_tok = 0  # tokens that went through the model, prefill and decode
        self._edges_s: list[float] = [env.now]
        self._power_w: list[float] = []
        self._calls = 0
        self._arrival: simpy.Event | None = None  # set while somebody waits to hear of the next submission
        self._process = env.process(self._serve())

    # -- for clients -----------------------------------------------------------------------------------------

    def submit(self, prompt: Parts, output_tok: int, label: str, parents: tuple[int, ...] = ()) -> Sequence:
        """Queue a call that reads `prompt` and writes `output_tok` tokens. `.done` succeeds with its CallRecord.

        Raises `UserError` if the call can never run: longer than max_model_len or than the whole KV cache.
        """
        prompt_tok = sum(tokens for _, tokens in prompt)
        if prompt_tok < 1 or output_tok < 1:
            raise ValueError(f"call '{label}': {prompt_tok} prompt and {output_tok} output tokens, both must be >= 1")
        self._check_length(label, prompt_tok, output_tok)
        sequence = Sequence(
            self._calls, label, prompt, prompt_tok, int(output_tok), self.env.now, parents, self.env.event()
        )
        self._calls += 1
        self.scheduler.waiting.push(sequence)
        if self._arrival is not None and not self._arrival.triggered:
            self._arrival.succeed()
        return sequence

    def power_trace(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges in seconds, shape (k + 1,); mean watts between them, shape (k,))."""
        return np.array(self._edges_s), np.array(self._power_w)

    def close(self) -> None:
        """Account for the time up to now if nothing ran in it; call once, when the flight has ended."""
        self._account_idle()

    # -- the loop --------------------------------------------------------------------------------------------

    def _serve(self) -> Generator:
        env = self.env
        while True:
            yield _EndOfInstant(env)
            plan = self.scheduler.plan()
            if not plan.chunks:
                self._arrival = env.event()
                yield self._arrival
                self._account_idle()
                continue
            self.peak_running = max(self.peak_running, len(plan.chunks))
            start = env.now
            for sequence, _ in plan.chunks:
                if sequence.scheduled_s is None:
                    sequence.scheduled_s = start
            steps = yield from self._stretch(plan) if plan.decode_only else self._mixed_step(plan)
            self._finish(plan, steps)

    def _mixed_step(self, plan: Plan) -> Generator:
        """One step with prefill chunks."""
        prefill = tuple(
            PrefillChunk(new_tok, sequence.computed_tok, completes=new_tok == sequence.pending_tok)
            for sequence, new_tok in plan.chunks
            if not sequence.decoding
        )
        cost = self.step_model.step(Batch(prefill, _contexts(plan)))
        yield self.env.timeout(cost.seconds)
        self.prefill_s += cost.seconds
        self._account(cost.seconds, cost.joules, cost.shares)
        return 1

    def _stretch(self, plan: Plan) -> Generator:
        """Decode steps until the batch has to change: a finish, a shortage of blocks, an arrival that could join."""
        context_tok, steps = _contexts(plan), 1
        if plan.settled and not self.step_by_step:
            steps = min(MAX_STRETCH, *(sequence.output_tok - sequence.written_tok for sequence, _ in plan.chunks))
            steps = self.scheduler.quiet_steps(context_tok, steps)
        if steps == 1:
            cost = self.step_model.step(Batch((), context_tok))
            yield self.env.timeout(cost.seconds)
            self._account(cost.seconds, cost.joules, cost.shares)
            return 1
        run = self.step_model.decode_run(context_tok, steps)
        start = self.env.now
        end = self.env.timeout(float(run.seconds.sum()))
        if self.scheduler.waiting:  # first come, first served: who comes now stands behind a blocked queue
            yield end
        else:
            self._arrival = self.env.event()
            yield end | self._arrival
            if not end.processed:
                edges = start + np.cumsum(run.seconds)
                cut = min(int(np.searchsorted(edges, self.env.now)) + 1, steps)
                if cut < steps:
                    steps, run = cut, self.step_model.decode_run(context_tok, cut)
                yield self.env.timeout(max(float(edges[cut - 1]) - self.env.now, 0.0))
        self._account(float(run.seconds.sum()), float(run.joules.sum()), run.shares)
        return steps

    def _finish(self, plan: Plan, steps: int) -> None:
        """Book the tokens of the plan and report the calls that are done."""
        now = self.env.now
        firsts = [sequence for sequence, _ in plan.chunks if sequence.written_tok == 0]
        self.computed_tok += sum(new_tok for _, new_tok in plan.chunks) + (steps - 1) * len(plan.chunks)
        finished = self.scheduler.advance(plan, steps)
        for sequence in firsts:
            if sequence.written_tok:
                sequence.first_token_s = now
        for sequence in finished:
            record = self.records[sequence.call_id] = CallRecord(
                call_id=sequence.call_id,
                label=sequence.label,
                submitted_s=sequence.submitted_s,
                scheduled_s=sequence.scheduled_s,
                first_token_s=sequence.first_token_s,
                finished_s=now,
                prompt_tok=sequence.prompt_tok,
                cached_tok=sequence.cached_tok,
                output_tok=sequence.output_tok,
                parents=sequence.parents,
                preemptions=sequence.preemptions,
                recomputed_tok=sequence.recomputed_tok,
            )
            sequence.done.succeed(record)

    # -- books -----------------------------------------------------------------------------------------------

    def _account(self, seconds: float, joules: float, shares: dict[str, float]) -> None:
        """Energy, causes and power of the work that ends now."""
        self.energy_j += joules
        for cause, share in shares.items():
            self.shares_s[cause] = self.shares_s.get(cause, 0.0) + share
        self._edges_s.append(self.env.now)
        self._power_w.append(joules / seconds if seconds > 0 else 0.0)

    def _account_idle(self) -> None:
        gap = self.env.now - self._edges_s[-1]
        if gap > 0:
            self._account(gap, gap * self.step_model.idle_power_w, {})

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


def _contexts(plan: Plan) -> np.ndarray:
    """KV tokens that each decoding sequence of the plan holds before the step."""
    return np.array([sequence.computed_tok for sequence, _ in plan.chunks if sequence.decoding], dtype=np.int64)
