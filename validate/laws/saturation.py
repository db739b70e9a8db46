"""Family 2: how many tokens a full server writes, against bandwidth and peak, and that more clients bring no more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simulator.traffic.metrics import steady_rates
from validate.laws.bounds import Floors
from validate.laws.law import Family, Law, Result
from validate.laws.runs import CLIENTS, SEATS, Runs
from validate.laws.subjects import Subject
from validate.laws.unloaded import MEASURED, ROOFLINE

CONTEXTS = (512, 1500)

BYTES = Law(
    "2.1", "decode throughput, bytes", "A full batch writes no faster than weights and KV cache can be read.",
    "batch / step <= n bandwidth x batch / (weights + batch x KV)", ROOFLINE, "tok/s",
)  # fmt: skip
COMPUTE = Law(
    "2.2", "decode throughput, arithmetic", "A full batch writes no faster than its FLOPs at the peak allow.",
    "batch / step <= n peak / (2 P_active + attention)", ROOFLINE, "tok/s",
)  # fmt: skip
FLOOR = Law(
    "2.3", "decode throughput, floor", "A full batch writes no slower than in the slowest engine that was measured.",
    "step <= bytes / bandwidth / 0.35 + FLOPs / peak / 0.15 + messages / link / (0.05 or 0.4) + layers x 0.15 ms (x 2 "
    "with messages) + batch x 0.1 ms", MEASURED, "tok/s",
)  # fmt: skip
PLATEAU = Law(
    "2.4", "plateau", "Once seats or KV cache are full, twice as many clients get no more tokens.",
    "throughput(2 c) = throughput(c) for the last doubling", "saturation of a closed queueing network", "tok/s",
    tolerance=0.03,
)  # fmt: skip
GROWTH = Law(
    "2.5", "growth", "Until then, more clients do not make the server as a whole slower.",
    "throughput(2 c) >= throughput(c)", "saturation of a closed queueing network", "tok/s", tolerance=0.03,
)  # fmt: skip

FAMILY = Family(
    "Saturation throughput",
    f"Batches of 1, 2, 4, ... up to what seats and KV cache hold, at contexts of {CONTEXTS[0]} and {CONTEXTS[1]} "
    f"tokens; closed loops of {CLIENTS[0]} to {CLIENTS[-1]} clients on {SEATS} seats.",
    (BYTES, COMPUTE, FLOOR, PLATEAU, GROWTH),
)


def check(subject: Subject, runs: Runs) -> Iterator[Result]:
    """One result per law."""
    yield from _steps(subject)
    rates = [steady_rates(runs.closed(clients))["steady_output_tok_per_s"] for clients in CLIENTS]
    yield PLATEAU.equal(rates[-1], rates[-2], [f"bound by {_bound_by(subject, runs)}"])
    yield GROWTH.rising(rates, [f"{clients} clients" for clients in CLIENTS])


def _steps(subject: Subject) -> Iterator[Result]:
    floors, found = Floors(subject.instance), []
    for context in CONTEXTS:
        batch = batches(subject, context)
        rate = batch / subject.physics.price(subject.decode_steps(batch, context)).seconds
        computing, reading = floors.decode_s(batch, context)
        slowest = batch / floors.decode_ceiling_s(batch, context)
        found.append((rate, batch / reading, batch / computing, slowest, [f"{b:.0f} x {context}" for b in batch]))
    rate, by_bytes, by_flop, slowest = (np.concatenate(column) for column in list(zip(*found))[:4])
    where = [name for row in found for name in row[4]]
    yield BYTES.at_most(rate, by_bytes, where)
    yield COMPUTE.at_most(rate, by_flop, where)
    yield FLOOR.at_least(rate, slowest, where)


def batches(subject: Subject, context_tok: int) -> np.ndarray:
    """1, 2, 4, ... and last the most sequences of `context_tok` tokens that seats and KV cache hold."""
    most = min(subject.instance.settings.max_num_seqs, subject.instance.memory.kv_capacity_tok // (context_tok + 1))
    return np.unique([*(2**k for k in range(11) if 2**k < most), max(1, most)]).astype(float)


def _bound_by(subject: Subject, runs: Runs) -> str:
    """What keeps further clients waiting."""
    steps = runs.closed(CLIENTS[-1]).steps
    return "seats" if (steps.decode_sequences + steps.prefill_sequences).max() >= SEATS else "KV cache"
