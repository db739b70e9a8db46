"""A set of questions that a strategy works on, one after the other or side by side, on the same engines."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import UserError

MAX_QUESTIONS = 100_000


@dataclass(frozen=True)
class Questions:
    """`number` questions, of which at most `concurrency` are worked on at a time (None: all at once).

    tokens: prompt tokens of each question, where they are known; else they are drawn like the strategy's problem_tok.
    """

    number: int
    concurrency: int | None = None
    tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.number <= MAX_QUESTIONS:
            raise UserError(f"questions: found {self.number}, expected a whole number from 1 to {MAX_QUESTIONS:,}")
        if self.concurrency is not None and self.concurrency < 1:
            raise UserError(f"concurrency: found {self.concurrency}, expected a whole number >= 1")
        if self.tokens is not None and len(self.tokens) != self.number:
            raise UserError(f"questions: {self.number} asked for, but the lengths of {len(self.tokens)} are given")
