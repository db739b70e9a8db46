"""What a run must move and compute whatever its schedule: floors of its times that no order of steps can beat.

`Case.floor` replays the run's own schedule of steps at data-sheet rates; a different order of steps could in principle
be faster. The floors here need one step only: a token needs a step, and a step reads the weights that it touches once.
Only several tokens per step (speculative decoding) or prompts that need not be computed (a prefix cache) get below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from calibration.roofline_baseline import PlainRoofline
from calibration.setup import Setup
from simulator.batch import Batch, PrefillChunk
from simulator.device import Device
from simulator.precision import KV_BYTE, WEIGHT_BYTE
from simulator.steps import Steps


@dataclass(frozen=True)
class StepNeed:
    """What one step needs of each device at data-sheet rates. bandwidth in bytes per second."""

    byte: float
    memory_s: float
    compute_s: float
    bandwidth_byte_per_s: float

    @property
    def seconds(self) -> float:
        """The longer of both: perfect overlap."""
        return max(self.memory_s, self.compute_s)


def decode_step(setup: Setup, sequences: float, context_tok: float) -> StepNeed:
    """One decode step of so many sequences of one replica, each with `context_tok` tokens in its KV cache."""
    contexts = np.full(max(1, round(sequences)), max(1, round(context_tok)), dtype=np.int64)
    return _need(setup, Batch(decode_context_tok=contexts))


def prefill_step(setup: Setup) -> StepNeed:
    """One whole prompt in one step, nothing cached."""
    return _need(setup, Batch(prefill=(PrefillChunk(max(1, setup.input_tok)),)))


def _need(setup: Setup, batch: Batch) -> StepNeed:
    """Memory and arithmetic apart: the same roofline with the other resource unlimited."""
    plain, change = PlainRoofline.of(setup), msgspec.structs.replace
    memory, compute = setup.device.memory, setup.device.compute
    no_limit = dict.fromkeys(compute.peak_flop_per_s, math.inf)
    steps = Steps.from_batches([batch], plain.rules)

    def seconds(device: Device) -> float:
        limited = PlainRoofline(plain.plan, device, plain.precision, plain.parallel, plain.rules)
        return float(limited.price(steps).seconds[0])

    memory_s = seconds(change(setup.device, compute=change(compute, peak_flop_per_s=no_limit)))
    compute_s = seconds(change(setup.device, memory=change(memory, bandwidth_byte_per_s=math.inf)))
    return StepNeed(memory_s * memory.bandwidth_byte_per_s, memory_s, compute_s, memory.bandwidth_byte_per_s)


def running_limit(setup: Setup) -> float:
    """Sequences that one replica can run at a time at the most."""
    settings, dp = setup.settings, setup.parallel.dp
    asked = math.inf if setup.record.load == "open_loop" else math.ceil(setup.batch / dp)
    return max(1.0, min(asked, settings.max_num_seqs))


def certain_floor(setup: Setup) -> dict[str, float]:
    """Bounds by kind of metric: seconds at least for "token", "ttft", "e2e"; "rate": output tokens per second at most.

    token: one sequence alone, with its prompt as context: every step reads at least that. ttft: its prompt alone, or
    one decode step where a prefix cache may hold the prompt. rate: the most sequences that may run, in one step.
    """
    token = decode_step(setup, 1, setup.input_tok).seconds
    cached = setup.settings.enable_prefix_caching
    first = token if cached else max(token, prefill_step(setup).seconds)
    most = running_limit(setup)
    rate = setup.parallel.dp * most / decode_step(setup, most, setup.input_tok).seconds
    return {"token": token, "ttft": first, "e2e": first + (setup.output_tok - 1) * token, "rate": rate}


def alternatives(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Configurations that a record could have been mistaken for, each with fewer bytes or FLOPs per device."""
    precision = setup.precision
    for name, other in (("8-bit weights", "fp8"), ("4-bit weights", "int4")):
        if WEIGHT_BYTE[other] < 0.9 * precision.weight_byte:
            arithmetic = other if other == "fp8" else precision.activations
            yield name, replace(setup, precision=replace(precision, weights=other, activations=arithmetic))
    if precision.kv_byte > KV_BYTE["fp8"]:
        yield "an 8-bit KV cache", replace(setup, precision=replace(precision, kv_cache="fp8"))
