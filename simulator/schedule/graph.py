"""A directed graph of calls and waits, each of which starts in the instant in which what it waits for has happened."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import simpy

from simulator.schedule.calls import After, Call, Task, Wait
from simulator.schedule.drive import Awaited, Branch

Made = Call | Wait | list[Call] | None


class Node:
    """A node of a graph: `make(done)` gives what it does, once `count` of `after` (None: all) have happened.

    after: nodes, or (node, written tokens) of a single call. make: from {node: what it did} to a pending call, a wait,
    or a list of calls that advance in lock-step; None makes a gate, which does nothing and is done when it opens.
    stopped_by: once all of these have happened, the node's calls are stopped; they are no dependencies and may point
    anywhere. released_by: once all of these have happened and the node has ended, the KV of its calls is given back.
    """

    __slots__ = ("after", "count", "make", "released_by", "stopped_by")

    def __init__(
        self,
        make: Callable[[dict[Node, Made]], Made] | None,
        after: Sequence[Node | tuple[Node, int]] = (),
        *,
        count: int | None = None,
        stopped_by: Sequence[Node | tuple[Node, int]] = (),
        released_by: Sequence[Node | tuple[Node, int]] | None = None,
    ) -> None:
        self.make, self.after, self.count = make, tuple(after), count
        if count is not None and not 1 <= count <= len(self.after):
            raise ValueError(f"a node waits for {count} of {len(self.after)}, expected at least 1 and at most all")
        self.stopped_by = tuple(stopped_by)
        self.released_by = None if released_by is None else tuple(released_by)


class _Countdown:
    """Something that happens when so many of its causes have; it remembers which."""

    __slots__ = ("act", "causes", "missing")

    def __init__(self, missing: int, act: Callable[[list[After]], None]) -> None:
        self.missing, self.act, self.causes = missing, act, []

    def happened(self, entries: Iterable[After]) -> None:
        """One cause has happened, which stands for these nodes."""
        if self.missing > 0:
            self.causes.extend(entries)
            self.missing -= 1
            if self.missing == 0:
                self.act(self.causes)


class Graph(Awaited):
    """Carry out the nodes of a graph; gives {node: what it did}, with None for gates."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)

    def carry_out(self, branch: Branch) -> Generator:
        flight = _Flight(self.nodes, branch)
        yield from flight.fly()
        return flight.done


class _Flight:
    """The nodes of a graph in one run. Nodes that become ready in one instant start in their order in the graph."""

    def __init__(self, nodes: list[Node], branch: Branch) -> None:
        self.run, self.branch = branch.run, branch
        self.before = tuple(branch.frontier)
        self.place = {node: i for i, node in enumerate(nodes)}
        self.done: dict[Node, Made] = {}
        self.made: dict[Node, Made] = {}
        self.listeners: dict[Node, list[_Countdown]] = {node: [] for node in nodes}
        self.marks: dict[Node, list[tuple[int, _Countdown]]] = {}
        self.stopped: dict[Node, tuple[After, ...]] = {}
        self.ready: list[tuple[Node, tuple[After, ...]]] = []
        self.releasing: list[tuple[list[Task], tuple[After, ...]]] = []
        self.starting: simpy.Event | None = None
        self.ended = self.run.env.event()
        self.left = len(nodes)
        for node in nodes:
            self._listen(node)

    def fly(self) -> Generator:
        """SimPy process: from the first node to the end of the last."""
        if not self.left:
            return
        for node in self.place:
            if not node.after:
                self._make_ready(node, [])
        yield self.ended
        self.branch.pass_by([task for made in self.made.values() for task in _tasks(made)])

    def _listen(self, node: Node) -> None:
        """Set up what leads to the node's start, stop and release."""
        if node.after:
            needed = len(node.after) if node.count is None else node.count
            self._watch(node.after, _Countdown(needed, lambda causes: self._make_ready(node, causes)))
        if node.stopped_by:
            self._watch(node.stopped_by, _Countdown(len(node.stopped_by), lambda causes: self._stop(node, causes)))
        if node.released_by is not None:
            causes = (node, *node.released_by)
            self._watch(causes, _Countdown(len(causes), lambda found: self._release(node, found)))

    def _watch(self, causes: Sequence[Node | tuple[Node, int]], countdown: _Countdown) -> None:
        for cause in causes:
            if isinstance(cause, tuple):
                self.marks.setdefault(cause[0], []).append((cause[1], countdown))
            else:
                self.listeners[cause].append(countdown)

    # -- starting ----------------------------------------------------------------------------------------------

    def _make_ready(self, node: Node, causes: list[After]) -> None:
        """Start it at the end of this instant's news, in the order of the graph among those that are ready then.

        A gate takes no turn of its own: what stands behind it starts with what became ready beside it.
        """
        if node.make is None:
            self.made[node] = None
            self._finish(node, tuple(dict.fromkeys(causes)))
            return
        self.ready.append((node, tuple(dict.fromkeys((*causes,) if node.after else self.before))))
        self._start_soon()

    def _start_soon(self) -> None:
        if self.starting is None:
            self.starting = self.run.env.event()
            self.starting.callbacks.append(self._start)
            self.starting.succeed()

    def _start(self, _: Any) -> None:
        self.run.branch = self.branch
        self.starting, ready = None, sorted(self.ready, key=lambda entry: self.place[entry[0]])
        self.ready = []
        for node, after in ready:
            made = self.made[node] = node.make(self.done)
            self.run.submit_after(made, after)
            self._follow(node, made)
        releasing, self.releasing = self.releasing, []
        for tasks, causes in releasing:  # behind what reads them and started in this instant
            self.run.release_because(tasks, causes)

    def _follow(self, node: Node, made: Made) -> None:
        """Hear of the end of what the node does, and of its marks."""
        if made == []:
            raise ValueError("a node of a graph made no calls, expected at least one that advances in lock-step")
        tasks = _tasks(made)
        left = _Countdown(len(tasks), lambda _: self._finish(node, tasks))
        for task in tasks:
            task.done.callbacks.append(lambda _, task=task: left.happened([task]))
        for written_tok, countdown in self.marks.get(node, ()):
            call = tasks[0]
            mark = call.server.mark(call.sequence, written_tok)
            mark.callbacks.append(
                lambda _, c=countdown, n=written_tok, call=call: c.happened([call if call.finished else (call, n)])
            )
        if node in self.stopped:
            self._stop_calls(tasks, self.stopped[node])

    def _finish(self, node: Node, tasks: Sequence[After]) -> None:
        self.done[node] = self.made[node]
        for countdown in self.listeners[node]:
            countdown.happened(tasks)
        self.left -= 1
        if not self.left:
            self.ended.succeed()

    # -- stopping and releasing --------------------------------------------------------------------------------

    def _stop(self, node: Node, causes: list[After]) -> None:
        self.stopped[node] = tuple(dict.fromkeys(causes))
        if node in self.made:
            self._stop_calls(_tasks(self.made[node]), self.stopped[node])

    def _stop_calls(self, tasks: Sequence[Task], causes: tuple[After, ...]) -> None:
        self.run.stop_because([task for task in tasks if isinstance(task, Call)], causes)

    def _release(self, node: Node, causes: list[After]) -> None:
        own = _tasks(self.made[node])
        self.releasing.append((own, tuple(dict.fromkeys(cause for cause in causes if cause not in own))))
        self._start_soon()


def _tasks(made: Made) -> list[Task]:
    if made is None:
        return []
    return list(made) if isinstance(made, list) else [made]
