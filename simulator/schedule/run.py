"""The language of schedules: what a strategy can say, and the run that carries it out.

A strategy is a generator function whose first argument is a `Run`. It asks for generations and waits for them:

    def draft_and_revise(run, length="lognormal:2048:0.5"):
        draft = yield run.generate(run.problem, "draft", length)
        return (yield run.generate(run.problem + run.text(draft), "revision", length))

`yield call` waits for one call and gives it back finished; `yield run.all(calls)` is a barrier on the slowest and gives
the list of finished calls. A call is submitted when it is yielded or put into `run.all(...)`. The strategy returns the
finished call that holds the answer, or the list of calls that answer together.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable

import numpy as np

from simulator.engine.server import Server
from simulator.result import CallRecord
from simulator.schedule.text import Text
from simulator.workload.lengths import Lengths, parse_lengths


class Call:
    """One generation: pending, then submitted, then finished. Strategies get it from `run.generate`."""

    def __init__(self, prompt: Text, label: str, length: Lengths, max_tok: int | None) -> None:
        self.prompt, self.label, self.length, self.max_tok = prompt, label, length, max_tok
        self.record: CallRecord | None = None  # set when finished
        self.call_id: int | None = None  # set when submitted
        self.parents: tuple[Call, ...] = ()
        self._sequence = None

    @property
    def finished(self) -> bool:
        return self.record is not None

    @property
    def output_tok(self) -> int:
        """Tokens written; only a finished call knows."""
        return self._finished_record().output_tok

    @property
    def text(self) -> Text:
        """What the call wrote; only a finished call knows."""
        record = self._finished_record()
        return Text.of(("output", record.call_id), record.output_tok)

    def _finished_record(self) -> CallRecord:
        if self.record is None:
            raise RuntimeError(f"call '{self.label}' is not finished: wait for it with `yield` before reading it")
        return self.record

    def __repr__(self) -> str:
        state = "finished" if self.finished else "pending" if self.call_id is None else "running"
        return f"<{state} call '{self.label}'>"


class Barrier:
    """Calls that are waited for together; comes from `run.all`."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls


class Run:
    """One strategy working on one problem on one server. `rng` draws all lengths, in the order of submission."""

    def __init__(self, server: Server, rng: np.random.Generator, problem_tok: int, problem_id: str = "problem") -> None:
        self.rng = rng
        self.problem = Text.of(problem_id, problem_tok)
        self.calls: list[Call] = []  # every call submitted, in order
        self.answer: tuple[Call, ...] = ()
        self._server = server
        self._pending: dict[Call, None] = {}
        self._accepted: set[Call] = set()
        # Finished calls that were waited for and that no other such call depends on: parents of the next call.
        self._frontier: dict[Call, None] = {}

    # -- words of the language -------------------------------------------------------------------------------

    def empty(self) -> Text:
        """The text without tokens."""
        return Text()

    def instruction(self, name: str, tokens: int) -> Text:
        """Fixed template text; the same name and place in two prompts is the same tokens."""
        return Text.of(("instruction", name), tokens)

    def generate(self, prompt: Text, label: str, length: Lengths | int | str, max_tok: int | None = None) -> Call:
        """A call that reads `prompt` and writes `length` tokens (drawn when submitted), at most `max_tok`."""
        if not isinstance(prompt, Text):
            raise TypeError(f"call '{label}': the prompt is {type(prompt).__name__}, expected a Text")
        if not prompt.tokens:
            raise ValueError(f"call '{label}': the prompt is empty")
        if max_tok is not None and max_tok < 1:
            raise ValueError(f"call '{label}': max_tok is {max_tok}, expected at least 1")
        call = Call(prompt, label, parse_lengths(length), max_tok)
        self._pending[call] = None
        return call

    def all(self, calls: Iterable[Call]) -> Barrier:
        """Submit the calls now; yielding the barrier waits for the slowest and gives the list of finished calls."""
        found = list(calls)
        for call in found:
            if not isinstance(call, Call):
                raise TypeError(f"run.all got {type(call).__name__}, expected calls from run.generate")
            self._submit(call)
        return Barrier(found)

    def text(self, calls: Call | Iterable[Call]) -> Text:
        """What finished calls wrote, one behind the other."""
        found = [calls] if isinstance(calls, Call) else calls
        return sum((call.text for call in found), Text())

    def accept(self, call: Call) -> Call:
        """Say that the accepted path goes through this call of its barrier (otherwise see `accepted_path`)."""
        self._accepted.add(call)
        return call

    def pick(self, calls: Iterable[Call]) -> Call:
        """One of the calls, each equally likely: the outcome of a choice whose merits are not simulated."""
        found = list(calls)
        return found[int(self.rng.integers(len(found)))]

    # -- carrying it out -------------------------------------------------------------------------------------

    def drive(self, strategy: Generator) -> Generator:
        """SimPy process: runs the strategy's generator to its end and sets `answer`."""
        step, value = strategy.send, None
        while True:
            try:
                asked = step(value)
            except StopIteration as stop:
                self._conclude(stop.value)
                return
            if isinstance(asked, Call):
                self._submit(asked)
                yield from self._wait([asked])
                step, value = strategy.send, asked
            elif isinstance(asked, Barrier):
                yield from self._wait(asked.calls)
                step, value = strategy.send, asked.calls
            else:  # raised inside the strategy, so that the traceback ends at its yield
                step, value = (
                    strategy.throw,
                    TypeError(
                        f"the strategy yielded {type(asked).__name__}, expected run.generate(...) or run.all([...])"
                    ),
                )

    def _submit(self, call: Call) -> None:
        if call.call_id is not None:
            return
        self._pending.pop(call, None)
        output_tok = call.length.draw(self.rng)
        if call.max_tok is not None:
            output_tok = min(output_tok, call.max_tok)
        call.parents = tuple(self._frontier)
        parents = tuple(parent.call_id for parent in call.parents)
        call._sequence = self._server.submit(call.prompt.parts, output_tok, call.label, parents)
        call.call_id = call._sequence.call_id
        self.calls.append(call)

    def _wait(self, calls: list[Call]) -> Generator:
        for call in calls:
            if call.finished:
                continue
            done = call._sequence.done
            call.record = done.value if done.processed else (yield done)
        for call in calls:
            for parent in call.parents:
                self._frontier.pop(parent, None)
        self._frontier.update(dict.fromkeys(calls))

    def _conclude(self, answer: object) -> None:
        found = [answer] if isinstance(answer, Call) else answer
        valid = isinstance(found, (list, tuple)) and len(found) > 0
        if not valid or not all(isinstance(call, Call) and call.finished for call in found):
            raise TypeError(f"the strategy returned {answer!r}, expected the finished call (or calls) with the answer")
        if self._pending:
            raise RuntimeError(f"the strategy made {next(iter(self._pending))} and never waited for it")
        running = [call for call in self.calls if not call.finished]
        if running:
            raise RuntimeError(f"the strategy returned before it had waited for {running[0]}")
        self.answer = tuple(found)

    # -- token accounts --------------------------------------------------------------------------------------

    def accepted_path(self) -> tuple[Call, ...]:
        """The chain of calls from the start to the answer, last call first: what B_seq adds up.

        From each call one step back: of the calls it waited for, the one that the strategy accepted (`run.accept`);
        else the longest (prompt + output) of those whose text it reads; else the longest of all. If several calls
        answer together (a vote), the path ends in the accepted or longest of them.
        """
        path, candidates = [], self.answer
        while candidates:
            accepted = [call for call in candidates if call in self._accepted]
            call = max(accepted or candidates, key=lambda c: (c.record.prompt_tok + c.output_tok, -c.call_id))
            path.append(call)
            read = {part_id for part_id, _ in call.prompt.parts}
            candidates = call.parents
            if not any(parent in self._accepted for parent in candidates):
                candidates = tuple(p for p in candidates if ("output", p.call_id) in read) or candidates
        return tuple(path)

    def reread_tok(self) -> int:
        """Prompt tokens that an earlier call (in order of submission) had read or written, cache hits included."""
        known: dict[Hashable, int] = {}  # the longest piece of each part that any call had in hand
        again = 0
        for call in self.calls:
            for part_id, tokens in call.prompt.parts:
                again += min(tokens, known.get(part_id, 0))
            for part_id, tokens in (*call.prompt.parts, *call.text.parts):
                known[part_id] = max(tokens, known.get(part_id, 0))
        return again

    def critical_path_tok(self) -> int:
        """Output tokens on the longest (in tokens) chain of calls that waited for one another."""
        longest: dict[Call, int] = {}
        for call in self.calls:  # parents come before their children
            longest[call] = call.output_tok + max((longest[parent] for parent in call.parents), default=0)
        return max(longest.values())
