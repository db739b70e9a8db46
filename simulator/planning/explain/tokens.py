"""The same run with shorter texts: what is drawn stays drawn, and every length is a share of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.questions import Questions
from simulator.schedule.calls import Call
from simulator.schedule.text import Text
from simulator.strategies import Strategy
from simulator.workload.lengths import Lengths, parse_lengths
from simulator.workload.traffic import Traffic


@dataclass(frozen=True)
class Scaled(Lengths):
    """`factor` of what `inner` draws, at least one token; uses up the same random numbers."""

    inner: Lengths
    factor: float

    def sample(self, rng: np.random.Generator, n: int = 1) -> np.ndarray:
        return scaled_tokens(self.inner.sample(rng, n), self.factor)

    def draw(self, rng: np.random.Generator) -> int:
        return scaled(self.inner.draw(rng), self.factor)

    def __str__(self) -> str:
        return f"{self.factor:g} of {self.inner}"


def scaled(tokens: int, factor: float) -> int:
    """A token count, at least 1."""
    return max(1, round(factor * tokens))


def scaled_tokens(tokens: np.ndarray, factor: float) -> np.ndarray:
    """Token counts (N,), at least 1 each."""
    return np.maximum(1, np.rint(factor * tokens)).astype(np.int64)


class _ShorterRun:
    """A `Run` as a strategy sees it, with other lengths of outputs and instructions."""

    def __init__(self, run: Any, output: float, prompt: float) -> None:
        self._run, self._output, self._prompt = run, output, prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def instruction(self, name: str, tokens: int) -> Text:
        return self._run.instruction(name, scaled(tokens, self._prompt) if tokens else tokens)

    def generate(self, prompt: Text, label: str, length: Any, max_tok: int | None = None, **more: Any) -> Call:
        return self._run.generate(prompt, label, *self._lengths(length, max_tok), **more)

    def samples(
        self, n: int, prompt: Text, label: str, length: Any, max_tok: int | None = None, **more: Any
    ) -> Iterable[Call]:
        return self._run.samples(n, prompt, label, *self._lengths(length, max_tok), **more)

    def _lengths(self, length: Any, max_tok: int | None) -> tuple[Lengths, int | None]:
        limit = None if max_tok is None else scaled(max_tok, self._output)
        return Scaled(parse_lengths(length), self._output), limit


def shorter_strategy(strategy: Strategy, output: float = 1.0, prompt: float = 1.0) -> Strategy:
    """The strategy with every output, and every question and instruction, at a share of its length."""
    function = strategy.function

    def flown(run: Any, **values: Any) -> Generator:
        return function(_ShorterRun(run, output, prompt), **values)

    return replace(strategy, function=flown)


def shorter_problem(strategy: Strategy, given: dict[str, Any], factor: float) -> dict[str, Any]:
    """The parameters `given`, with questions of `factor` of their length."""
    return {**given, "problem_tok": Scaled(strategy.resolve(given)["problem_tok"], factor)}


def shorter_questions(questions: Questions | None, factor: float) -> Questions | None:
    """A set whose lengths are known, at a share of them."""
    if questions is None or questions.tokens is None:
        return questions
    return replace(questions, tokens=tuple(scaled(tokens, factor) for tokens in questions.tokens))


def shorter_traffic(traffic: Traffic, output: float = 1.0, prompt: float = 1.0) -> Traffic:
    """The same requests at the same times, with shorter answers or prompts; shared beginnings shrink alike."""
    prefixes = traffic.shared_prefix
    prompts = scaled_tokens(traffic.prompt_tok, prompt)
    if prefixes is not None and prompt != 1.0:
        prefixes = tuple(tuple((part, scaled(tokens, prompt)) for part, tokens in parts) for parts in prefixes)
        prompts = np.maximum(prompts, [sum(tokens for _, tokens in parts) for parts in prefixes])
    outputs = scaled_tokens(traffic.output_tok, output)
    return replace(traffic, prompt_tok=prompts, output_tok=outputs, shared_prefix=prefixes)
