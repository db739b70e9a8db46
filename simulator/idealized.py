"""Idealized runtime (arXiv:2305.02440): what calls would take alone on the hardware, without queueing or sharing.

    T(p, o) = F(p) + g * (o - 1)        p prompt tokens, o output tokens

F is profiled at a few prompt sizes and scaled down from the next larger one, F(p) = F(k) * p / k with k the smallest
profiled size >= p; above the largest it grows linearly. g is one number, the slope of a regression over all profiled
(p, o). Where the paper profiles engines, this profiles the step model at batch 1. The cost-aware variant multiplies by
the number of accelerators.

The scaling makes F a saw-tooth: it falls behind every profiled size. That is the paper's definition, which trades
accuracy at small prompts for a table that anybody can publish.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from simulator.batch import Batch, PrefillChunk
from simulator.errors import UserError
from simulator.result import CallRecord, Flight, WaitRecord
from simulator.step import StepModel

# What the paper profiled on A100.
PROMPT_SIZES = (
    1, 16, 32, 64, 128, 192, 256, 320, 384, 428, 472, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1152, 1280, 1408,
    1536, 1664, 1792, 1920,
)  # fmt: skip
OUTPUT_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class IdealizedRuntime:
    """The two tables of one model on one group of accelerators: F at `prompt_sizes`, in seconds, and g."""

    prompt_sizes: tuple[int, ...]  # ascending
    prompt_s: tuple[float, ...]
    output_tok_s: float  # seconds per output token after the first
    accelerators: int = 1

    def prompt_runtime(self, prompt_tok: int) -> float:
        """F(p): seconds until the first token."""
        place = min(bisect_left(self.prompt_sizes, prompt_tok), len(self.prompt_sizes) - 1)
        return self.prompt_s[place] * prompt_tok / self.prompt_sizes[place]

    def runtime(self, prompt_tok: int, output_tok: int) -> float:
        """T(p, o) in seconds. No output takes as long as one token, which is there when the prompt is read."""
        return self.prompt_runtime(prompt_tok) + self.output_tok_s * max(0, output_tok - 1)

    def accelerator_s(self, prompt_tok: int, output_tok: int) -> float:
        """The cost-aware variant: seconds x accelerators."""
        return self.runtime(prompt_tok, output_tok) * self.accelerators


def idealized(
    step_model: StepModel,
    prompt_sizes: Sequence[int] = PROMPT_SIZES,
    output_sizes: Sequence[int] = OUTPUT_SIZES,
    *,
    front_end: bool = False,
) -> IdealizedRuntime:
    """Profile `step_model` at batch 1 over prompt_sizes x output_sizes.

    front_end: with what lies between client and engine, as the calibration has it (`request_s`, `prompt_tok_s`); a
    flight has no such part. Prompts that the model cannot read are left out. UserError for a diffusion model, whose
    calls are not of this form, and for sizes that are not ascending whole numbers >= 1.
    """
    model, engine = step_model.model, step_model.p.engine
    if model.diffusion:
        raise UserError(f"{model.name} writes by diffusion; idealized runtime is of models that write token by token")
    _check("prompt_sizes", prompt_sizes)
    _check("output_sizes", output_sizes)
    if output_sizes[-1] < 2:
        raise UserError("idealized runtime, output_sizes: found none above 1, expected one, or there is no slope")
    sizes = tuple(size for size in prompt_sizes if size <= model.max_position_embeddings)
    if not sizes:
        found = f"found none up to {model.max_position_embeddings}, the longest that {model.name} reads, expected one"
        raise UserError(f"idealized runtime, prompt_sizes: {found}")
    prompt_s = [step_model.step(Batch((PrefillChunk(size),))).seconds for size in sizes]
    if front_end:
        prompt_s = [s + engine.request_s + engine.prompt_tok_s * size for size, s in zip(sizes, prompt_s)]
    slope = _slope(step_model, sizes, output_sizes)
    return IdealizedRuntime(sizes, tuple(prompt_s), slope, step_model.parallel.world_size)


def _slope(step_model: StepModel, prompt_sizes: Sequence[int], output_sizes: Sequence[int]) -> float:
    """g: least squares of T - F = g (o - 1) over all (p, o)."""
    further = np.array(output_sizes) - 1
    after_first = [
        np.cumsum(step_model.decode_run(np.array([size]), int(further[-1])).seconds)[further[further > 0] - 1]
        for size in prompt_sizes
    ]
    further = further[further > 0].astype(float)
    return float(np.sum(np.array(after_first) * further) / (len(prompt_sizes) * np.sum(further**2)))


def _check(what: str, sizes: Sequence[int]) -> None:
    whole = all(isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1 for size in sizes)
    if not sizes or not whole or any(a >= b for a, b in pairwise(sizes)):
        raise UserError(f"idealized runtime, {what}: found {list(sizes)}, expected ascending whole numbers >= 1")


@dataclass(frozen=True)
class IdealizedFlight:
    """Idealized runtime of a flight's calls; none of its waits, queues or shared batches plays a part."""

    critical_path_s: float  # of the chain of dependent calls with the largest sum
    critical_calls: tuple[int, ...]  # ids of the calls of that chain, the first one first
    all_calls_s: float  # as if they ran one after the other
    accelerator_s: float  # of all calls, x accelerators: the cost-aware variant


def idealized_flight(
    flight: Flight, runtime: IdealizedRuntime, others: Mapping[str, IdealizedRuntime] | None = None
) -> IdealizedFlight:
    """Idealized runtime of a flight. Prompts count whole, cached or not, as in the paper; external waits take no time.

    others: of the engines of other models, by the name that `CallRecord.engine` has; all other calls are `runtime`'s.
    """
    nodes = {node.call_id: node for node in sorted((*flight.calls, *flight.waits), key=lambda node: node.call_id)}
    taken_s: dict[int, float] = {}
    until_s: dict[int, float] = {}
    accelerator_s = 0.0
    for number, node in nodes.items():  # parents come before their children
        taken_s[number] = 0.0
        if isinstance(node, CallRecord):
            profile = (others or {}).get(node.engine, runtime)
            taken_s[number] = profile.runtime(node.prompt_tok, node.output_tok)
            accelerator_s += profile.accelerator_s(node.prompt_tok, node.output_tok)
        before = max((until_s[parent] for parent in node.parents if parent in until_s), default=0.0)
        until_s[number] = before + taken_s[number]
    chain = tuple(number for number in _chain(nodes, until_s) if isinstance(nodes[number], CallRecord))
    return IdealizedFlight(max(until_s.values(), default=0.0), chain, sum(taken_s.values()), accelerator_s)


def _chain(nodes: Mapping[int, CallRecord | WaitRecord], until_s: Mapping[int, float]) -> tuple[int, ...]:
    """The longest chain, from the first to the last; of equal ones those with the lowest numbers."""
    chain: list[int] = []
    ends = list(nodes)
    while ends:
        chain.append(max(ends, key=lambda number: (until_s[number], -number)))
        ends = [parent for parent in nodes[chain[-1]].parents if parent in nodes]
    return tuple(reversed(chain))
