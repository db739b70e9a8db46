"""Family 4: more work is never less time, better hardware never more; power stays between idle and limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np

from simulator.device import Device
from simulator.errors import UserError
from simulator.memory import kv_byte_per_tok, weights_byte
from simulator.precision import KV_BYTE, WEIGHT_BYTE
from simulator.steps import Steps
from validate.laws.bounds import Floors
from validate.laws.law import Family, Law, Result
from validate.laws.runs import Runs
from validate.laws.saturation import batches
from validate.laws.subjects import Subject

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CONTEXTS = (0, 1, 64, 127, 128, 129, 512, 1024, 2048, 4096, 8192)
PROMPTS = (1, 16, 64, 128, 256, 512, 1024, 1536, 2048, 4096, 8192)
FASTER = 1.25
OF_KERNELS = ("memory", "compute", "attention")  # causes of time that twice the devices share; launches they do not

PHYSICS = "docs/physics.md"
BATCH = Law(
    "4.1", "step time in batch", "A sequence more makes no step shorter.", "step(b + 1) >= step(b)", PHYSICS, "s"
)
CONTEXT = Law(
    "4.2", "step time in context", "Longer contexts make no step shorter.", "step(c + 1) >= step(c)", PHYSICS, "s"
)
PROMPT = Law(
    "4.3", "step time in prompt", "Longer prompts make no step shorter.", "step(L + 1) >= step(L)", PHYSICS, "s"
)
BANDWIDTH = Law(
    "4.4", "more bandwidth", f"{FASTER:g} times the bandwidth, all else equal, makes no step longer.",
    "step(bandwidth up) <= step", PHYSICS, "s",
)  # fmt: skip
PEAK = Law(
    "4.5", "higher peaks", f"{FASTER:g} times the clock and every peak, all else equal, makes no step longer.",
    "step(peak up) <= step", PHYSICS, "s",
)  # fmt: skip
SPLIT = Law(
    "4.6", "more devices", "Twice the tensor parallelism leaves each device no more to read and to compute.",
    "memory + compute + attention (2 tp) <= the same (tp)", "Shoeybi et al. 2019 (Megatron-LM)", "s",
)  # fmt: skip
NARROWER = Law(
    "4.7", "lower precision", "Narrower formats of weights and KV cache never hold more bytes.",
    "bytes(narrower) <= bytes(wider)", "simulator/precision.py", "byte",
)  # fmt: skip
ENERGY = Law(
    "4.8", "energy per token", "Up to the knee, where arithmetic takes as long as reading, a token of twice the batch "
    "costs less energy.", "J/token(2 b) <= J/token(b) for 2 b <= knee and 512 tokens, the largest CUDA graph",
    "the weights are read once per step", "J",
)  # fmt: skip
IDLE = Law(
    "4.9", "power, idle", "A step draws at least idle power.", "J / s >= n idle_w", "data sheet, calibration", "W"
)
LIMIT = Law("4.10", "power, limit", "A step draws at most the limit.", "J / s <= n limit_w", "data sheet", "W")

FAMILY = Family(
    "Monotone curves",
    f"Steps of up to {BATCHES[-1]:,} sequences, contexts up to {CONTEXTS[-1]:,} and prompts up to {PROMPTS[-1]:,} "
    "tokens, as far as they fit, priced one by one; the same on a device that is better in one figure.",
    (BATCH, CONTEXT, PROMPT, BANDWIDTH, PEAK, SPLIT, NARROWER, ENERGY, IDLE, LIMIT),
)


def check(subject: Subject, _: Runs) -> Iterator[Result]:
    """One result per law; of 4.6 and 4.8 only where there is something to compare."""
    longest, seats = subject.longest_tok, subject.instance.settings.max_num_seqs
    counts = [b for b in BATCHES if b <= seats]
    contexts, prompts = ([t for t in many if t < longest] for many in (CONTEXTS, PROMPTS))
    price = subject.physics.price
    curves = {
        BATCH: (subject.decode_steps(counts, 512), [f"batch {b}" for b in counts]),
        CONTEXT: (subject.decode_steps([8.0] * len(contexts), contexts), [f"context {c}" for c in contexts]),
        PROMPT: (subject.prefill_steps([1] * len(prompts), prompts), [f"prompt {p}" for p in prompts]),
    }
    costs = {law: price(steps) for law, (steps, _) in curves.items()}
    for law, (_, where) in curves.items():
        yield law.rising(costs[law].seconds, where)
    every, where = Steps.concatenate([steps for steps, _ in curves.values()]), [w for _, w in curves.values()]
    names = [name for each in where for name in each]
    seconds, joules = (np.concatenate([getattr(c, name) for c in costs.values()]) for name in ("seconds", "joules"))
    for law, device in ((BANDWIDTH, _more_bandwidth(subject.device)), (PEAK, _higher_peaks(subject.device))):
        yield law.at_most(subject.other_physics(device).price(every).seconds, seconds, names)
    yield from _split(subject, every, names)
    yield _narrower(subject)
    yield from _energy(subject)
    n = subject.parallel.world_size
    idle_w = subject.instance.step_model.idle_power_w
    yield IDLE.at_least(joules / seconds, idle_w, names)
    yield LIMIT.at_most(joules / seconds, n * subject.device.power.limit_w, names)


def _more_bandwidth(device: Device) -> Device:
    memory = msgspec.structs.replace(device.memory, bandwidth_byte_per_s=FASTER * device.memory.bandwidth_byte_per_s)
    return msgspec.structs.replace(device, memory=memory)


def _higher_peaks(device: Device) -> Device:
    """At a higher clock, with peaks and power limit to match: a cap would hold it back."""
    compute = msgspec.structs.replace(
        device.compute,
        clock_hz=FASTER * device.compute.clock_hz,
        peak_flop_per_s={name: FASTER * peak for name, peak in device.compute.peak_flop_per_s.items()},
    )
    return msgspec.structs.replace(device, compute=compute)


def _split(subject: Subject, steps: Steps, where: list[str]) -> Iterator[Result]:
    """Nothing where the node has no more devices, or the model cannot be split over them."""
    twice = replace(subject.parallel, tp=2 * subject.parallel.tp)
    if twice.tp > subject.device.interconnect.gpus_per_node:
        return
    try:
        twice.check(subject.model)
    except UserError:
        return
    one, two = (physics.price(steps) for physics in (subject.physics, subject.other_physics(parallel=twice)))
    yield SPLIT.at_most(*(sum(cost.shares[cause] for cause in OF_KERNELS) for cost in (two, one)), where)


def _narrower(subject: Subject) -> Result:
    model, own, parallel = subject.model, subject.instance.precision, subject.parallel
    held, names = [], []
    for field, table, byte in (("weights", WEIGHT_BYTE, weights_byte), ("kv_cache", KV_BYTE, kv_byte_per_tok)):
        formats = sorted(table, key=table.__getitem__)
        of_formats = [byte(model, replace(own, **{field: name}), parallel) for name in formats]
        held.append(np.array(of_formats))
        names += [f"{field} in {name}" for name in formats[:-1]]
    return NARROWER.at_most(np.concatenate([h[:-1] for h in held]), np.concatenate([h[1:] for h in held]), names)


def _energy(subject: Subject) -> Iterator[Result]:
    batch = 2.0 ** np.arange(10)  # to the largest CUDA graph
    computing, reading = Floors(subject.instance).decode_s(batch, 512)
    batch = batch[(computing <= reading) & (batch <= batches(subject, 512)[-1])]
    if len(batch) < 2:
        return
    per_tok = subject.physics.price(subject.decode_steps(batch, 512)).joules / batch
    yield ENERGY.at_most(per_tok[1:], per_tok[:-1], [f"batch {b:.0f}" for b in batch[1:]])
