"""The language of schedules: what a strategy can say, and the run that carries it out.

A strategy is a generator function whose first argument is a `Run`. It asks for generations and waits for them:

    def draft_and_revise(run, length="lognormal:2048:0.5"):
        draft = yield run.generate(run.problem, "draft", length)
        return (yield run.generate(run.problem + run.text(draft), "revision", length))

`yield call` waits for one call and gives it back finished; `yield run.all(calls)` is a barrier on the slowest and gives
the list of finished calls. A call is submitted when it is yielded or put into `run.all(...)`. The strategy returns the
finished call that holds the answer, or the list of calls that answer together. `docs/schedules.md` has all words.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Sequence
from itertools import count

import numpy as np

from simulator.engine.fleet import Fleet
from simulator.engine.sequence import Pass
from simulator.engine.server import Server
from simulator.errors import UserError
from simulator.schedule import accounts
from simulator.schedule.calls import After, Asked, Call, Task, Wait
from simulator.schedule.drive import AnyOf, Barrier, Branch, Branches, Written
from simulator.schedule.graph import Graph, Made, Node
from simulator.schedule.text import Text
from simulator.workload.lengths import Fixed, Lengths, parse_lengths
from simulator.workload.seconds import Seconds, parse_seconds


class Run:
    """One strategy working on one problem, or on a set of them, on a fleet of engines.

    `rng` draws all lengths, in the order of submission; every branch has a stream spawned from it. problem_tok: tokens
    of the problem, or of each problem. flop: FLOPs that the main model needs for (prompt, output, cached tokens).
    roles: those that calls may name (None: any).
    """

    def __init__(
        self,
        fleet: Fleet | Server,
        rng: np.random.Generator,
        problem_tok: int | Sequence[int],
        problem_id: str = "problem",
        flop: Callable[[int, int, int], float] | None = None,
        roles: Container[str] | None = None,
    ) -> None:
        several = [problem_tok] if isinstance(problem_tok, (int, np.integer)) else list(problem_tok)
        names = [problem_id] if len(several) == 1 else [f"{problem_id} {i + 1}" for i in range(len(several))]
        self.problems = tuple(Text.of(name, tokens) for name, tokens in zip(names, several))
        self.submitted: list[Task] = []  # every call and wait, in order
        self.answer: tuple[Call, ...] = ()
        self.accepted: set[Call] = set()
        self.fleet = fleet if isinstance(fleet, Fleet) else Fleet([fleet])
        self.env = self.fleet.env
        self.branch = self._root = Branch(self, rng)  # whose turn it is
        self._flop, self._roles = flop, roles
        self.started_s, self.ended_s = self.env.now, None  # of a question among others, set by who works it off
        self._pending: dict[Task, None] = {}
        self._kept: list[Call] = []  # whose KV stays held beyond their end
        self._groups = count()

    @property
    def rng(self) -> np.random.Generator:
        """The stream from which the present branch draws."""
        return self.branch.rng

    @property
    def problem(self) -> Text:
        """The problem; of a set, the first."""
        return self.problems[0]

    @property
    def calls(self) -> list[Call]:
        """Every call submitted, in order."""
        return [task for task in self.submitted if isinstance(task, Call)]

    @property
    def waits(self) -> list[Wait]:
        """Every external wait, in order."""
        return [task for task in self.submitted if isinstance(task, Wait)]

    # -- texts -------------------------------------------------------------------------------------------------

    def empty(self) -> Text:
        """The text without tokens."""
        return Text()

    def instruction(self, name: str, tokens: int) -> Text:
        """Fixed template text; the same name and place in two prompts is the same tokens."""
        return Text.of(("instruction", name), tokens)

    def text(self, calls: Call | Iterable[Call]) -> Text:
        """What finished calls wrote, one behind the other."""
        found = [calls] if isinstance(calls, Call) else calls
        return sum((call.text for call in found), Text())

    # -- calls and waits -----------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Text,
        label: str,
        length: Lengths | int | str,
        max_tok: int | None = None,
        *,
        role: str | None = None,
        attend: Iterable[Call] = (),
        keep: bool = False,
    ) -> Call:
        """A call that reads `prompt` and writes `length` tokens (drawn when submitted), at most `max_tok`.

        role: who answers it, where that may be another model. attend: calls, running or kept, whose KV it attends to
        without prefill. keep: its KV stays held after its end, until `release` or the end of the run.
        """
        asked = Asked(prompt, label, parse_lengths(length), max_tok, role, tuple(attend), keep)
        self._check_role(asked)
        return self._made(Call(asked))

    def samples(
        self,
        n: int,
        prompt: Text,
        label: str,
        length: Lengths | int | str,
        max_tok: int | None = None,
        *,
        role: str | None = None,
        keep: bool = False,
    ) -> list[Call]:
        """n calls of the same prompt: as n times `generate`, made and drawn together."""
        asked = Asked(prompt, label, parse_lengths(length), max_tok, role, (), keep)
        self._check_role(asked)
        made = [Call(asked) for _ in range(n)]
        self._pending.update(dict.fromkeys(made))
        return made

    def passes(
        self, prompt: Text, label: str, output_tok: int, passes: Iterable[Pass], *, role: str | None = None
    ) -> Call:
        """A call that a diffusion model answers in full passes, which unmask `output_tok` tokens."""
        stages = tuple(Pass(*stage) for stage in passes)
        for stage in stages:
            if stage.count < 1 or stage.new_tok < 1 or stage.cached_tok < 0 or (stage.logits_tok or 0) < 0:
                raise ValueError(f"call '{label}': {stage}, expected at least one pass over at least one position")
        if not stages:
            raise ValueError(f"call '{label}' has no passes")
        model = getattr(self.fleet.main[0].step_model, "model", None)
        if model is not None and not model.diffusion and role not in self.fleet.roles:
            raise UserError(f"call '{label}' is answered in full passes, but {model.name} is no diffusion model")
        asked = Asked(prompt, label, Fixed(int(output_tok)), role=role, passes=stages)
        self._check_role(asked)
        return self._made(Call(asked))

    def _check_role(self, asked: Asked) -> None:
        if asked.role is not None and self._roles is not None and asked.role not in self._roles:
            known = ", ".join(sorted(self._roles)) or "none"
            raise ValueError(f"call '{asked.label}' has the role '{asked.role}'; the strategy's roles: {known}")

    def wait(self, seconds: Seconds | float | str, label: str) -> Wait:
        """An external wait (a tool, tests, a retriever) that occupies no GPU; drawn when submitted."""
        return self._made(Wait(parse_seconds(seconds), label))

    def _made(self, task: Task) -> Task:
        self._pending[task] = None
        return task

    # -- waiting -------------------------------------------------------------------------------------------------

    def start(self, tasks: Iterable[Task]) -> list[Task]:
        """Submit calls and waits now, to be waited for later."""
        return self._started("run.start", tasks)

    def all(self, tasks: Iterable[Task]) -> Barrier:
        """Submit them now; yielding the barrier waits for the slowest and gives the list of finished calls."""
        return Barrier(self._started("run.all", tasks))

    def any(self, tasks: Iterable[Task], count: int = 1) -> AnyOf:
        """Submit them now; yielding waits until `count` have ended and gives those that have. The others run on."""
        found = self._started("run.any", tasks)
        if not 0 <= count <= len(found):
            raise ValueError(f"run.any waits for {count} of {len(found)}")
        return AnyOf(found, count)

    def written(self, calls: Iterable[Call], tokens: int) -> Written:
        """Submit them now; yielding waits until each has written so many tokens or has ended, and gives all."""
        found = self._started("run.written", calls, Call)
        return Written(found, tokens)

    def together(self, calls: Iterable[Call]) -> Barrier:
        """Lock-step workers on one cache: a step advances all, each attends to what all have read and written.

        The length is drawn once, from the first call.
        """
        found = self._checked("run.together", calls, Call)
        self._submit_group(found, tuple(self.branch.frontier))
        return Barrier(found)

    def branches(self, generators: Iterable[Generator]) -> Branches:
        """Strategies side by side; yielding waits for all and gives the list of what they return."""
        return Branches(list(generators))

    def graph(self, nodes: Iterable[Node]) -> Graph:
        """A graph of calls and waits; yielding carries it out and gives {node: what it did}."""
        return Graph(list(nodes))

    # -- outcomes ------------------------------------------------------------------------------------------------

    def stop(self, calls: Iterable[Call]) -> None:
        """End calls at the next step boundary with what they have written. Wait for them afterwards."""
        self.stop_because(self._checked("run.stop", calls, Call), tuple(self.branch.frontier))

    def release(self, calls: Iterable[Call]) -> None:
        """Give back the KV of calls that was kept."""
        self.release_because(self._checked("run.release", calls, Call), tuple(self.branch.frontier))

    def accept(self, call: Call) -> Call:
        """Say that the accepted path goes through this call of its barrier (otherwise see `accepted_path`)."""
        self.accepted.add(call)
        return call

    def pick(self, calls: Iterable[Call]) -> Call:
        """One of the calls, each equally likely: the outcome of a choice whose merits are not simulated."""
        found = list(calls)
        return found[int(self.rng.integers(len(found)))]

    def chance(self, probability: float) -> bool:
        """True with this probability: the outcome of a test, a verdict, a vote."""
        return bool(self.rng.random() < probability)

    def flop(self, prompt_tok: int, output_tok: int, cached_tok: int = 0) -> float:
        """FLOPs that the main model needs to read a prompt, `cached_tok` of which it has in cache, and to write."""
        if self._flop is None:
            raise RuntimeError("this run knows no model whose FLOPs could be counted")
        return self._flop(prompt_tok, output_tok, cached_tok)

    def _started(self, word: str, tasks: Iterable[Task], kind: type | tuple = (Call, Wait)) -> list[Task]:
        found = self._checked(word, tasks, kind)
        self.submit(found)
        return found

    def _checked(self, word: str, tasks: Iterable[Task], kind: type | tuple = (Call, Wait)) -> list[Task]:
        found = tasks if isinstance(tasks, list) else list(tasks)
        for task in found:
            if not isinstance(task, kind):
                raise TypeError(f"{word} got {type(task).__name__}, expected calls from run.generate")
        return found

    # -- carrying it out -------------------------------------------------------------------------------------

    def drive(self, strategy: Generator) -> Generator:
        """SimPy process: runs the strategy's generator to its end and sets `answer`."""
        answer = yield from self._root.drive(strategy)
        self._conclude(answer)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submit what is pending of them, in their order, as depending on what the present branch has waited for."""
        pending = self._pending
        fresh = [task for task in tasks if pending.pop(task, self) is not self]  # each once, the first time
        if fresh:
            self._submit(fresh, tuple(self.branch.frontier))

    def submit_after(self, made: Made, after: tuple[After, ...]) -> None:
        """Submit what a node of a graph makes: a call, a wait, or lock-step workers."""
        if isinstance(made, list):
            self._submit_group(made, after)
        else:
            self._pending.pop(made, None)
            self._submit([made], after)

    def stop_because(self, calls: Sequence[Call], causes: tuple[After, ...]) -> None:
        """Stop calls; `causes`: what led to it."""
        for call in calls:
            if call.call_id is None:
                raise RuntimeError(f"{call} is stopped before it was submitted")
            if not call.finished:
                call.stopped_by = call.stopped_by or causes
                call.server.stop(call.sequence)

    def release_because(self, calls: Sequence[Call], causes: tuple[After, ...]) -> None:
        """Give back what calls kept; `causes`: what led to it."""
        for call in calls:
            if call.call_id is None:
                raise RuntimeError(f"{call} is released before it was submitted")
            if call.keep and call.released_by is None:
                call.released_by = causes
                call.server.release(call.sequence)

    def release_all(self) -> None:
        """Give back everything that is still kept; the run has ended."""
        for call in self._kept:
            if call.released_by is None:
                call.server.release(call.sequence)

    def _submit(
        self,
        tasks: Sequence[Task],
        after: tuple[After, ...],
        output_tok: int | None = None,
        server: Server | None = None,
    ) -> None:
        """Submit pending tasks. output_tok, server: where they are not drawn and chosen here."""
        parents = tuple([entry.call_id for entry in after if type(entry) is not tuple])
        start = 0
        while start < len(tasks):
            task = tasks[start]
            if isinstance(task, Wait):
                self._start_wait(task, after)
                start += 1
                continue
            asked, end = task.asked, start + 1
            while end < len(tasks) and tasks[end].asked is asked:
                end += 1
            alike = tasks[start:end] if end - start < len(tasks) else tasks
            self._submit_calls(alike, asked, after, parents, output_tok, server)
            start = end

    def _submit_calls(
        self,
        calls: Sequence[Call],
        asked: Asked,
        after: tuple,
        parents: tuple,
        output_tok: int | None,
        server: Server | None,
    ) -> None:
        """Calls that are asked the same: their lengths are drawn together."""
        if output_tok is None and len(calls) == 1:
            output_tok = asked.length.draw(self.rng)
        if output_tok is None:
            drawn = asked.length.sample(self.rng, len(calls))
            lengths = (drawn if asked.max_tok is None else np.minimum(drawn, asked.max_tok)).tolist()
        else:
            lengths = [output_tok if asked.max_tok is None else min(output_tok, asked.max_tok)] * len(calls)
        attended, numbers = self._attended(asked), self.fleet.numbers(len(calls))
        only = server or (attended[0].server if attended else self.fleet.one_engine(asked.role, asked.keep))
        if only is not None:
            self._hand_over(only, calls, asked, lengths, numbers, after, parents)
        else:  # each goes to the replica that has least to do then
            for call, tokens, number in zip(calls, lengths, numbers):
                server = self.fleet.route(asked.role, asked.prompt.parts)
                self._hand_over(server, [call], asked, [tokens], [number], after, parents)
        self.submitted.extend(calls)
        if asked.keep:
            self._kept.extend(calls)

    def _hand_over(
        self, server: Server, calls: Sequence[Call], asked: Asked, lengths: list, numbers: list, after: tuple,
        parents: tuple,
    ) -> None:  # fmt: skip
        """Give calls to an engine."""
        sequences = server.submit_all(
            asked.prompt.parts, lengths, numbers, asked.label, parents, keep=asked.keep, passes=asked.passes,
            attended=[other.sequence for other in asked.attend],
        )  # fmt: skip
        for call, sequence in zip(calls, sequences):
            call.sequence, call.after, call.server = sequence, after, server

    def _attended(self, asked: Asked) -> tuple[Call, ...]:
        for other in asked.attend:
            if other.sequence is None or (other.finished and not (other.keep and other.released_by is None)):
                raise RuntimeError(f"call '{asked.label}' attends to {other}, which has no KV: keep=True keeps it")
            if other.server is not asked.attend[0].server:
                raise UserError(
                    f"call '{asked.label}' attends to calls of several engines; KV cannot be read from afar"
                )
        return asked.attend

    def _submit_group(self, calls: list[Call], after: tuple[After, ...]) -> None:
        """Lock-step workers: one length for all, one engine."""
        if not calls:
            return
        first, number = calls[0].asked, next(self._groups)
        tokens = first.length.draw(self.rng)
        attended = self._attended(first)
        server = attended[0].server if attended else self.fleet.route(first.role, first.prompt.parts, first.keep)
        for call in calls:
            self._pending.pop(call, None)
            self._submit([call], after, tokens, server)
            call.group = number
        server.together([call.sequence for call in calls])

    def _start_wait(self, wait: Wait, after: tuple[After, ...]) -> None:
        (wait.call_id,) = self.fleet.numbers(1)
        wait.after, wait.started_s = after, self.env.now
        wait.drawn_s = wait.seconds.draw(self.rng)
        wait.done = self.env.timeout(wait.drawn_s)
        wait.done.callbacks.append(wait.end)
        self.submitted.append(wait)

    def _conclude(self, answer: object) -> None:
        found = [answer] if isinstance(answer, Call) else answer
        valid = isinstance(found, (list, tuple)) and len(found) > 0
        if not valid or not all(isinstance(call, Call) and call.finished for call in found):
            raise TypeError(f"the strategy returned {answer!r}, expected the finished call (or calls) with the answer")
        if self._pending:
            raise RuntimeError(f"the strategy made {next(iter(self._pending))} and never waited for it")
        running = [task for task in self.submitted if not task.finished]  # most calls are waited for by now
        if running:
            raise RuntimeError(f"the strategy returned before it had waited for {running[0]}")
        self.answer = tuple(found)
        self.release_all()

    # -- token accounts --------------------------------------------------------------------------------------

    def accepted_path(self) -> tuple[Call, ...]:
        """The calls whose tokens B_seq adds up, last call first; see `accounts.accepted_path`."""
        return accounts.accepted_path(self.answer, self.accepted)

    def reread_tok(self) -> int:
        """Prompt tokens that an earlier call had read or written, see `accounts.reread_tok`."""
        return accounts.reread_tok(self.calls)

    def critical_path_tok(self) -> int:
        """Output tokens on the longest chain of dependent calls, see `accounts.critical_path_tok`."""
        return accounts.critical_path_tok(self.submitted)
