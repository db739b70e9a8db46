"""What explanations call things, and the sentence that says what bounds a run."""

from __future__ import annotations

from typing import Any

from simulator.planning.explain.accounts import DECODE, PROMPTS, largest
from simulator.planning.explain.explanation import Split

TITLES = {
    "roofline": "data-sheet roofline",
    "bandwidth": "bandwidth not reached",
    "compute": "arithmetic above the roofline",
    "attention": "attention above the roofline",
    "launch": "kernel starts and launches",
    "communication": "messages between GPUs",
    "host": "host",
    "sampler": "sampler",
    "power cap": "power cap",
    "idle": "GPU idle (waits, other engines)",
    "front end": "HTTP and tokenising",
    "queue": "queue",
    "idle_j": "idle power",
    "busy_j": "busy power",
    "bytes_j": "bytes moved",
    "flops_j": "FLOPs",
}
BOUNDS = {
    "memory": ("Memory-bound", "reading weights and activations"),
    "compute": ("Compute-bound", "arithmetic of matrix products"),
    "attention": ("Attention-bound", "attention over the KV cache"),
    "launch": ("Launch-bound", "starting kernels"),
    "communication": ("Communication-bound", "messages between GPUs"),
    "host": ("Host-bound", "waiting for the host"),
    "sampler": ("Sampler-bound", "sampling"),
    "power cap": ("Bound by the power cap", "clocks held down by the power limit"),
    "idle": ("Bound by external waits", "waiting for tools"),
    "front end": ("Bound by the front end", "HTTP and tokenising"),
    "queue": ("Queue-bound", "waiting in the engine's queue"),
}


def bound_sentence(causes: Split, ladder: Split, whole: str, but: tuple[str, ...] = ()) -> str:
    """What takes most of a time, what comes next, which steps, and what the data sheet would allow.

    but: causes that are no bound of it.
    """
    shares = {name: share for name, share in causes.shares().items() if name not in but}
    (first, most), (second, next_most), *_ = largest(shares)
    word, doing = BOUNDS[first]
    by_phase = {phase: sum(values.values()) for phase, values in causes.by_phase.items()}
    steps = by_phase[PROMPTS] + by_phase[DECODE]
    decode = by_phase[DECODE] / steps if steps else 0.0
    said = f"{word}: {doing} takes {_percent(most)} of {whole}"
    if next_most >= 0.05:
        said += f", {BOUNDS[second][1]} {_percent(next_most)}"
    said += f"; of the time in steps, {_percent(decode)} is in steps that only decode"
    return f"{said}; the data sheet's bandwidth and peaks alone would take {_percent(ladder.shares()['roofline'])}."


def flight_sentence(causes: Split, ladder: Split, path: Split, gpus: int) -> str:
    """Of a strategy: queues show on its critical path only, because the GPU works meanwhile.

    One of several GPUs may be idle while another works, which bounds nothing.
    """
    queue = sum(part.value for part in path.parts if part.name.endswith(": queue"))
    said = bound_sentence(causes, ladder, "the wall time", () if gpus == 1 else ("idle",))
    if gpus > 1:
        said += f" On average a GPU is idle for {_percent(causes.shares()['idle'])} of it."
    if queue >= 0.05 * path.total:
        said += f" Calls of the critical path stand in the queue for {_percent(queue / path.total)} of it."
    return said


def traffic_sentence(causes: Split, ladder: Split, server: Split) -> str:
    """Of traffic: what a request waits for, and whether the server has anything to do."""
    if not causes.total:
        return "Nothing was answered, so no time was spent."
    said = bound_sentence(causes, ladder, "the mean end-to-end time")
    return f"{said} The server works {_percent(1.0 - server.shares()['idle'])} of the run."


def facts(result: Any) -> dict[str, Any]:
    """What an explanation rests on."""
    names = ("gpu", "gpu_name", "power_mode", "model", "precision", "parallel", "seed", "version")
    return {**{name: getattr(result, name) for name in names}, "calibration": result.calibration["id"]}


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"
