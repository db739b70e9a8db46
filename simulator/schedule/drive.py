"""How a strategy is carried out: the process behind its generator, and what each thing that it can wait for does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from simulator.schedule.calls import After, Call, Task, Wait

if TYPE_CHECKING:
    from simulator.schedule.run import Run


class Branch:
    """A generator being carried out. `frontier`: what it has waited for and nothing later of it depends on already.

    Each branch draws from a stream of its own, so that what is drawn does not depend on which branch is faster.
    """

    def __init__(self, run: Run, rng: np.random.Generator, frontier: Iterable[After] = ()) -> None:
        self.run, self.rng = run, rng
        self.frontier: dict[After, None] = dict.fromkeys(frontier)

    def drive(self, strategy: Generator) -> Generator:
        """SimPy process: runs the generator to its end and returns what it returns."""
        step, value = strategy.send, None
        while True:
            self.run.branch = self
            try:
                asked = step(value)
            except StopIteration as stop:
                return stop.value
            awaited = Barrier([asked], single=True) if isinstance(asked, (Call, Wait)) else asked
            if isinstance(awaited, Awaited):
                value = yield from awaited.carry_out(self)
                step = strategy.send
            else:  # raised inside the strategy, so that the traceback ends at its yield
                step = strategy.throw
                value = TypeError(
                    f"the strategy yielded {type(asked).__name__}, expected run.generate(...) or run.all([...]), or "
                    "another word that waits"
                )

    def pass_by(self, tasks: Sequence[Task]) -> None:
        """These have been waited for: they stand for everything that they themselves waited for."""
        for after in {id(task.after): task.after for task in tasks}.values():
            for entry in after:
                self.frontier.pop(entry, None)
        self.frontier.update(dict.fromkeys(tasks))


class Awaited(ABC):
    """What a strategy may yield."""

    @abstractmethod
    def carry_out(self, branch: Branch) -> Generator:
        """Wait for it; returns what the strategy gets."""


class Barrier(Awaited):
    """Wait for all of them; gives the list, or the only one itself."""

    def __init__(self, tasks: list[Task], single: bool = False) -> None:
        self.tasks, self._single = tasks, single

    def carry_out(self, branch: Branch) -> Generator:
        branch.run.submit(self.tasks)
        for task in self.tasks:
            if not task.finished:
                yield task.done
        branch.pass_by(self.tasks)
        return self.tasks[0] if self._single else self.tasks


class AnyOf(Awaited):
    """Wait until `count` of them have ended; gives those that have."""

    def __init__(self, tasks: list[Task], count: int) -> None:
        self.tasks, self.count = tasks, count

    def carry_out(self, branch: Branch) -> Generator:
        yield from _until(branch.run.env, [task.done for task in self.tasks], self.count)
        ended = [task for task in self.tasks if task.finished]
        branch.pass_by(ended)
        return ended


class Written(Awaited):
    """Wait until each has written so many tokens or has ended; gives all."""

    def __init__(self, calls: list[Call], written_tok: int) -> None:
        self.calls, self.written_tok = calls, written_tok

    def carry_out(self, branch: Branch) -> Generator:
        marks = [call.server.mark(call.sequence, self.written_tok) for call in self.calls]
        yield from _until(branch.run.env, marks, len(marks))
        branch.pass_by([call for call in self.calls if call.finished])
        branch.frontier.update(dict.fromkeys((call, self.written_tok) for call in self.calls if not call.finished))
        return self.calls


class Branches(Awaited):
    """Carry out several generators side by side; gives what they return, in their order."""

    def __init__(self, generators: list[Generator]) -> None:
        self.generators = generators

    def carry_out(self, branch: Branch) -> Generator:
        run, before = branch.run, tuple(branch.frontier)
        parts = [Branch(run, rng, before) for rng in branch.rng.spawn(len(self.generators))]
        processes = [run.env.process(part.drive(strategy)) for part, strategy in zip(parts, self.generators)]
        results = []
        for process in processes:
            results.append((yield process))
        if parts:
            kept = [entry for entry in before if all(entry in part.frontier for part in parts)]
            new = [entry for part in parts for entry in part.frontier if entry not in branch.frontier]
            branch.frontier = dict.fromkeys((*kept, *new))
        return results


def _until(env: simpy.Environment, events: Sequence[simpy.Event], count: int) -> Generator:
    """SimPy process: until `count` of the events have happened."""
    pending = [event for event in events if not event.processed]
    missing = count - (len(events) - len(pending))
    if missing <= 0:
        return
    reached = env.event()

    def happened(_: Any) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            reached.succeed()

    for event in pending:
        event.callbacks.append(happened)
    yield reached
