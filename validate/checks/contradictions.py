"""Records that contradict themselves, or what the GPU they name can hold and compute (F1). One side is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.memory import weights_byte
from simulator.precision import ACTIVATION_BYTE, SIXTEEN_BIT, arithmetic_type
from validate.cases import Case
from validate.finding import Finding

GIB = 2.0**30


@dataclass(frozen=True)
class _Told:
    """What one record says against itself. strength: how bad, to name the worst run."""

    says: str
    severity: str
    confidence: str
    next: str
    strength: float = 1.0
    also: tuple[str, ...] = ()
    evidence: Mapping[str, float | str] = field(default_factory=dict)


def contradictions(cases: Sequence[Case]) -> Iterator[Finding]:
    """One finding per kind of contradiction, with the sentence of its worst run."""
    groups: dict[tuple[str, str], list[tuple[Case, _Told]]] = {}
    for case in cases:
        for name, ask in _QUESTIONS.items():
            if told := ask(case):
                groups.setdefault((name, told.severity), []).append((case, told))
    for (name, severity), found in groups.items():
        worst, told = max(found, key=lambda pair: pair[1].strength)
        more = "" if len(found) == 1 else f" (worst of {len(found)} runs)"
        yield Finding(
            check=f"configuration.{name}", layer="configuration", fault="F1", severity=severity,
            confidence=told.confidence, runs=tuple(case.id for case, _ in found), also=told.also,
            says=f"'{worst.id}'{more}: {told.says}", evidence={**told.evidence, "worst_run": worst.id}, next=told.next,
        )  # fmt: skip


def _device_count(case: Case) -> _Told | None:
    """n_gpus = tp pp dp. Attention split by data inside the tensor-parallel group leaves dp out of the product."""
    r = case.record
    tp, pp, dp, ep = (value or 1 for value in (r.tp, r.pp, r.dp, r.ep))
    if not r.n_gpus or r.tp is None or r.n_gpus in (tp * pp * dp, tp * pp):
        return None
    evidence = {"n_gpus": r.n_gpus, "tp": tp, "pp": pp, "dp": dp, "ep": ep, "formula": "n_gpus = tp pp dp"}
    if tp * pp * dp == 1 and r.n_gpus > 1:
        spread = f" and experts spread over {ep}" if ep > 1 else ""
        return _Told(
            f"{r.n_gpus} GPUs, but labelled tp 1, dp 1{spread}: the split of the attention is not told",
            "warn", "likely", "take tp and dp from the server's command; tables tend to print 1 where experts are "
            "spread", r.n_gpus, evidence=evidence,
        )  # fmt: skip
    return _Told(
        f"tp {tp} x pp {pp} x dp {dp} = {tp * pp * dp} devices, but {r.n_gpus} are stated", "fail", "certain",
        "take the number of devices and the split from the server's command", r.n_gpus, ("F2",), evidence,
    )  # fmt: skip


def _expert_split(case: Case) -> _Told | None:
    r = case.record
    devices = max((r.tp or 1) * (r.dp or 1), (r.n_gpus or 1) // (r.pp or 1))
    if not r.ep or not (r.tp or r.n_gpus) or devices % r.ep == 0:
        return None
    return _Told(
        f"experts are spread over {r.ep} devices, but a stage of the model has {devices}", "fail", "certain",
        "take the split from the server's command", r.ep, evidence={"ep": r.ep, "devices": devices},
    )  # fmt: skip


def _weights(case: Case) -> _Told | None:
    """Weights larger than the memory of the devices: wrong type, wrong board, wrong number of devices."""
    setup = case.setup
    if setup is None or setup.memory is not None:
        return None
    needed, there = weights_byte(setup.model, setup.precision, setup.parallel), setup.device.memory.capacity_byte
    evidence = {
        "weights_gib": needed / GIB, "memory_gib": there / GIB, "devices": setup.parallel.world_size,
        "formula": "bytes of the weights per device <= memory of a device",
    }  # fmt: skip
    of_type = f"{setup.precision.weights} weights of {setup.model.parameters() / 1e9:.1f} B parameters"
    if needed > there:
        return _Told(
            f"{of_type} take {needed / GIB:.1f} GiB of each of {setup.parallel.world_size} devices, which have "
            f"{there / GIB:.1f} GiB", "fail", "certain",
            "the weights were narrower, the board has more memory, or there were more devices than the record says",
            needed / there, ("F3",), evidence,
        )  # fmt: skip
    return _Told(
        f"{of_type} leave no room for a KV cache by our estimate ({needed / GIB:.1f} of {there / GIB:.1f} GiB), though "
        "the run is there", "note", "possible", "compare the memory that the engine's log states", needed / there,
        evidence=evidence,
    )  # fmt: skip


def _lengths(case: Case) -> _Told | None:
    r = case.record
    total = (r.input_tok or 0.0) + (r.output_tok or 0.0)
    if not r.max_model_len or total <= r.max_model_len:
        return None
    return _Told(
        f"{r.input_tok or 0:g} input and {r.output_tok or 0:g} output tokens, though max_model_len is "
        f"{r.max_model_len}", "fail", "certain", "an engine cuts or refuses such requests: look up what was served",
        total / r.max_model_len, ("F8",),
        {"tokens": total, "max_model_len": r.max_model_len, "formula": "input_tok + output_tok <= max_model_len"},
    )  # fmt: skip


def _seats(case: Case) -> _Told | None:
    """A static batch that does not run at once is none: part of it waits. The limit is per data-parallel replica."""
    r = case.record
    if r.load != "static_batch" or not (r.concurrency and r.max_num_seqs):
        return None
    replicas = r.dp or max(1, (r.n_gpus or 1) // ((r.tp or 1) * (r.pp or 1)))
    seats = r.max_num_seqs * replicas
    if r.concurrency <= seats:
        return None
    return _Told(
        f"a static batch of {r.concurrency:g}, of which max_num_seqs lets {seats} run at once", "warn", "certain",
        "call the load burst, or raise max_num_seqs", r.concurrency / seats, ("F8",),
        {"concurrency": r.concurrency, "seats": seats, "formula": "concurrency <= max_num_seqs dp"},
    )  # fmt: skip


def _arithmetic(case: Case) -> _Told | None:
    """Types that the GPU has no units for: narrow activations are then weight-only, bf16 is fp16."""
    r = case.record
    device = _sheet(r.gpu)
    if device is None or r.activation_dtype is None:
        return None
    activations = r.activation_dtype.removesuffix("-block")
    needed, peaks = arithmetic_type(activations), device.compute.peak_flop_per_s
    if needed in peaks or activations not in ACTIVATION_BYTE:
        return None
    wide = needed in SIXTEEN_BIT
    return _Told(
        f"{r.activation_dtype} activations on {device.id}, which has no {needed} units", "warn" if wide else "fail",
        "likely", "expected fp16" if wide else "the weights are weight-only there (activations of 16 bit), or it was "
        "another board", evidence={"activation_dtype": r.activation_dtype, "units": ", ".join(sorted(peaks))},
    )  # fmt: skip


def _power_mode(case: Case) -> _Told | None:
    r = case.record
    device = _sheet(r.gpu)
    if device is None or r.power_mode is None:
        return None
    try:
        device.at_mode(r.power_mode)
    except UserError as error:
        return _Told(
            str(error), "warn", "certain", "name a mode of the data sheet, or a cap in watts within its limit",
            evidence={"power_mode": r.power_mode, "modes": ", ".join(m.name for m in device.power_modes)},
        )  # fmt: skip
    return None


@lru_cache(maxsize=256)
def _sheet(gpu: str) -> Device | None:
    try:
        return load_device(gpu)
    except UserError:
        return None


_QUESTIONS: dict[str, Callable[[Case], _Told | None]] = {
    "device_count": _device_count,
    "expert_split": _expert_split,
    "weights_fit": _weights,
    "length_limit": _lengths,
    "seats": _seats,
    "arithmetic": _arithmetic,
    "power_mode": _power_mode,
}
