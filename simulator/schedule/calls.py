"""What a schedule is made of: calls of a model, and waits for the world outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import simpy

from simulator.engine.sequence import Pass
from simulator.result import CallRecord
from simulator.schedule.text import Text
from simulator.workload.lengths import Lengths
from simulator.workload.seconds import Seconds

if TYPE_CHECKING:
    from simulator.engine.sequence import Sequence as EngineSequence
    from simulator.engine.server import Server


class Asked:
    """What one call, or every one of many, is asked to do."""

    __slots__ = ("attend", "keep", "label", "length", "max_tok", "passes", "prompt", "role")

    def __init__(
        self,
        prompt: Text,
        label: str,
        length: Lengths,
        max_tok: int | None = None,
        role: str | None = None,
        attend: tuple[Call, ...] = (),
        keep: bool = False,
        passes: Sequence[Pass] = (),
    ) -> None:
        if not isinstance(prompt, Text):
            raise TypeError(f"call '{label}': the prompt is {type(prompt).__name__}, expected a Text")
        if not prompt.tokens:
            raise ValueError(f"call '{label}': the prompt is empty")
        if max_tok is not None and max_tok < 1:
            raise ValueError(f"call '{label}': max_tok is {max_tok}, expected at least 1")
        self.prompt, self.label, self.length, self.max_tok = prompt, label, length, max_tok
        self.role, self.attend, self.keep, self.passes = role, attend, keep, passes


class Call:
    """One generation: pending, then submitted, then finished. Strategies get it from the words of a `Run`."""

    after: tuple[After, ...] = ()  # what it waited for
    group: int | None = None  # number of its lock-step group
    stopped_by: tuple[After, ...] = ()  # what led to its being stopped
    released_by: tuple[After, ...] | None = None  # what led to its KV being given back
    server: Server | None = None
    sequence: EngineSequence | None = None  # set when submitted: the call inside the engine

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    @property
    def call_id(self) -> int | None:
        """Its number; None while it is pending."""
        return None if self.sequence is None else self.sequence.call_id

    @property
    def drawn_tok(self) -> int | None:
        """Tokens that it would write if nobody stopped it; None while it is pending."""
        return None if self.sequence is None else self.sequence.output_tok

    @property
    def record(self) -> CallRecord | None:
        """What the engine tells of it; None while it is not finished."""
        return None if self.sequence is None else self.sequence.record

    @property
    def prompt(self) -> Text:
        return self.asked.prompt

    @property
    def label(self) -> str:
        return self.asked.label

    @property
    def role(self) -> str | None:
        return self.asked.role

    @property
    def attend(self) -> tuple[Call, ...]:
        """Calls whose KV it attends to without having read their text."""
        return self.asked.attend

    @property
    def keep(self) -> bool:
        return self.asked.keep

    @property
    def passes(self) -> Sequence[Pass]:
        return self.asked.passes

    @property
    def parents(self) -> tuple[Task, ...]:
        """The calls and waits whose end it waited for."""
        return tuple(entry for entry in self.after if not isinstance(entry, tuple))

    @property
    def finished(self) -> bool:
        return self.sequence is not None and self.sequence.record is not None

    @property
    def stopped(self) -> bool:
        """Whether it was ended before its length."""
        return self.record is not None and self.record.stopped

    @property
    def output_tok(self) -> int:
        """Tokens written; only a finished call knows."""
        return self._finished_record().output_tok

    @property
    def text(self) -> Text:
        """What the call wrote; only a finished call knows."""
        record = self._finished_record()
        return Text.of(("output", record.call_id), record.output_tok)

    @property
    def done(self) -> simpy.Event:
        """The event of its end; of a submitted call."""
        return self.sequence.done

    def _finished_record(self) -> CallRecord:
        if self.record is None:
            raise RuntimeError(f"call '{self.label}' is not finished: wait for it with `yield` before reading it")
        return self.record

    def __repr__(self) -> str:
        state = "finished" if self.finished else "pending" if self.call_id is None else "running"
        return f"<{state} call '{self.label}'>"


class Wait:
    """An external wait: a tool, tests, a retriever. It occupies no GPU."""

    asked = None  # a call's question; a wait has none
    call_id: int | None = None
    after: tuple[After, ...] = ()
    drawn_s: float | None = None  # set when submitted
    started_s: float | None = None
    finished_s: float | None = None
    done: simpy.Event | None = None

    def __init__(self, seconds: Seconds, label: str) -> None:
        self.seconds, self.label = seconds, label

    @property
    def parents(self) -> tuple[Task, ...]:
        """The calls and waits whose end it waited for."""
        return tuple(entry for entry in self.after if not isinstance(entry, tuple))

    @property
    def finished(self) -> bool:
        return self.finished_s is not None

    def end(self, event: simpy.Event) -> None:
        """Its time is over."""
        self.finished_s = event.env.now

    def __repr__(self) -> str:
        state = "finished" if self.finished else "pending" if self.call_id is None else "running"
        return f"<{state} wait '{self.label}'>"


Task = Call | Wait
After = Task | tuple[Call, int]  # the end of a node, or so many tokens written of a call
