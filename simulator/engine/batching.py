"""What a replica needs of a scheduler, whether it jumps from event to event or follows every token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from simulator.engine.batcher import Request


class Batching(Protocol):
    """`plan` schedules the next step, `advance` runs it; what either did stands in the lists until the next time."""

    step: int  # the next one
    decoding: int  # sequences that decode in the planned step, beside `joins`
    chunks: list[tuple[Request, int, int, bool]]  # of the planned step: (whose, new, cached, completes its prompt)
    joins: list[int]  # tokens in cache of preempted sequences that go on decoding at once
    admitted: list[Request]  # by the last plan
    preempted: list[Request]
    first: list[Request]  # sampled their first token in the last stretch
    done: list[Request]  # their last
    resumed: list[Request]  # their first since a preemption
    written_tok: int | None  # tokens of the last step, where that is not one for every sequence that samples
    planned_blocks: int  # distinct KV blocks held in the planned step
    unseen_blocks: int  # of them, those of finished requests whose finish is not seen yet

    @property
    def queue(self) -> Collection[Any]:
        """Who waits."""

    @property
    def running(self) -> Collection[Any]:
        """Who has KV blocks."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""

    @property
    def could_admit(self) -> bool:
        """Whether somebody who came now might join before the batch changes by itself."""

    def push(self, request: Request) -> None:
        """A request arrives."""

    def plan(self) -> int:
        """How often the step that is planned now can be repeated; 0: nothing could be scheduled."""

    def advance(self, steps: int) -> None:
        """Run the planned step so often."""

    def keys(self) -> Sequence[int]:
        """Attended keys of the planned step by rule, joins left out."""

    def slopes(self) -> Sequence[int]:
        """By how much they grow from step to step."""

    def cached_blocks(self, request: Request, step: int) -> int:
        """Blocks of a request's prompt that the prefix cache holds in a step."""
