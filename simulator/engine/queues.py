"""The waiting queue of an engine: first come first served, or by priority, as vLLM's `scheduling_policy` says.

Both kinds offer `push` (a new request), `put_back` (a preempted one), `[0]` (who is next), `take`, `remove` and `len`.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any


class FirstCome(deque):
    """In order of arrival; who was preempted goes to the front."""

    push = deque.append
    put_back = deque.appendleft
    take = deque.popleft


class ByPriority:
    """Lower `priority` first, then in order of arrival (`number`), preempted or not."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Any]] = []

    def push(self, request: Any) -> None:
        heapq.heappush(self._heap, (request.priority, request.number, request))

    put_back = push

    def take(self) -> Any:
        """Remove and return who is next."""
        return heapq.heappop(self._heap)[2]

    def remove(self, request: Any) -> None:
        """Who is no longer wanted leaves."""
        self._heap = [entry for entry in self._heap if entry[2] is not request]
        heapq.heapify(self._heap)

    def __getitem__(self, _: int) -> Any:
        return self._heap[0][2]

    def __len__(self) -> int:
        return len(self._heap)


POLICIES = {"fcfs": FirstCome, "priority": ByPriority}
