"""Which steps an engine replays as recorded CUDA graphs, and to how many tokens it pads them.

A graph is recorded for a fixed number of tokens; a step between two recorded numbers is padded up to the next, and what
is padded costs as much as the rest in everything that works on tokens alone. Above the largest there is no graph.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simulator.errors import UserError

# How a step is run. "full": one graph, nothing to launch. "piecewise": graphs between the attention layers, which are
# launched one by one. "eager": every kernel is launched by the host.
MODES = ("full", "piecewise", "eager")


@dataclass(frozen=True)
class CudaGraphs:
    """`sizes`: numbers of tokens recorded, ascending (None: all numbers, so that nothing is padded).

    `decode`, `mixed`: one of MODES, for steps of decoding sequences alone and for steps with prompts.
    """

    sizes: tuple[int, ...] | None = None
    decode: str = "full"
    mixed: str = "eager"

    def __post_init__(self) -> None:
        for mode in (self.decode, self.mixed):
            if mode not in MODES:
                raise UserError(f"unknown mode '{mode}' of CUDA graphs, expected one of {', '.join(MODES)}")
        sizes = self.sizes
        if sizes is not None and (not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes))):
            raise UserError("sizes of CUDA graphs must be whole numbers >= 1 in ascending order, at least one")

    @property
    def used(self) -> bool:
        """Whether any step replays a graph."""
        return (self.decode, self.mixed) != ("eager", "eager")

    @cached_property
    def _array(self) -> np.ndarray:
        return np.array(self.sizes, dtype=np.int64)

    def modes(self, tokens, prefill_tok, xp: Any = np) -> tuple:
        """(piecewise, eager): booleans (S,) of steps with `tokens` new tokens, `prefill_tok` of them of prompts.

        With `Floats` for `xp`: of one step.
        """
        mixed, largest = prefill_tok > 0, np.inf if self.sizes is None else self.sizes[-1]
        eager = xp.where(mixed, self.mixed == "eager", self.decode == "eager") | (tokens > largest)
        piecewise = xp.where(mixed, self.mixed == "piecewise", self.decode == "piecewise")
        return piecewise > eager, eager

    def padded(self, tokens: np.ndarray, eager: np.ndarray) -> np.ndarray:
        """Tokens that steps of `tokens` (S,) compute: int array (S,). What runs `eager` (S,) is not padded."""
        if self.sizes is None:
            return tokens
        place = np.minimum(np.searchsorted(self._array, tokens), len(self._array) - 1)
        return np.where(eager | (tokens <= 0), tokens, self._array[place])

    def padded_one(self, tokens: int, eager: bool) -> int:
        """`padded` of one step."""
        if self.sizes is None or eager or tokens <= 0:
            return tokens
        return self.sizes[bisect_left(self.sizes, tokens)]


EAGER = CudaGraphs(None, "eager", "eager")
ANY_SIZE = CudaGraphs()


def captured_sizes(largest: int, coarse: bool = True) -> tuple[int, ...]:
    """vLLM's numbers of tokens: 1, 2, 4, multiples of 8 up to `largest`; `coarse`: from 256 on multiples of 16.

    `VllmConfig._set_cudagraph_sizes`; coarse since 0.11.1.
    """
    fine_end = min(largest, 255) if coarse else largest
    fine = [n for n in (1, 2, 4) if n <= largest] + list(range(8, fine_end + 1, 8))
    return tuple(fine + (list(range(256, largest + 1, 16)) if coarse else []))


@dataclass(frozen=True)
class GraphRule:
    """How an engine chooses the sizes of its graphs from its settings; one of RULES by name.

    largest: most tokens (None: any number is recorded). of_sequences: at most so many times max_num_seqs, too.
    coarse: see `captured_sizes`.
    """

    largest: int | None
    of_sequences: int = 1
    coarse: bool = False
    decode: str = "full"
    mixed: str = "eager"

    def graphs(self, max_num_seqs: int, max_num_batched_tokens: int, largest: int | None = None) -> CudaGraphs:
        """The graphs under these settings; `largest`: as the user sets it (vLLM: max_cudagraph_capture_size)."""
        if self.largest is None:
            return CudaGraphs(None, self.decode, self.mixed)
        most = min(self.largest, self.of_sequences * max_num_seqs) if largest is None else largest
        return CudaGraphs(captured_sizes(min(most, max_num_batched_tokens), self.coarse), self.decode, self.mixed)


# vLLM: `ModelRunner` (V0: batch sizes of decoding alone); `VllmConfig._set_cudagraph_sizes` and `CUDAGraphMode` (V1;
# full graphs of decode-only steps from 0.11 on, before that piecewise ones).
RULES = {
    "any size": GraphRule(None),
    "vllm-v0": GraphRule(256, 8),
    "vllm-0.8": GraphRule(512, 2, decode="piecewise", mixed="piecewise"),
    "vllm-0.11": GraphRule(512, 2, mixed="piecewise"),
    "vllm-0.11.1": GraphRule(512, 2, coarse=True, mixed="piecewise"),
}


def graph_rule(engine: str, version: tuple[int, ...], v1: bool = True) -> str:
    """The name of the rule by which a version of an engine records its graphs."""
    if engine != "vllm":
        return "any size"
    if not v1:
        return "vllm-v0"
    since = {"vllm-0.11.1": (0, 11, 1), "vllm-0.11": (0, 11), "vllm-0.8": (0, 8)}
    return next((name for name, first in since.items() if version >= first), "vllm-v0")
