"""What bits cost: storage of weights, activations and KV cache, and the type the arithmetic really runs in."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.device import Device
from simulator.errors import UserError, unknown_name
from simulator.model import Model

# Stored bytes per weight, scales and zero points included. int4: groups of 128 with a 16-bit scale and a
# 4-bit zero (GPTQ/AWQ as vLLM loads them). mxfp4: blocks of 32 with one scale byte (OCP MX specification
# 1.0). nvfp4: blocks of 16 with one fp8 scale. fp8 and int8: per-channel scales, below 0.1 %.
WEIGHT_BYTE: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8-block": 1.0,
    "int8": 1.0,
    "int4": 0.5 + (2.0 + 0.5) / 128,
    "mxfp4": 0.5 + 1.0 / 32,
    "nvfp4": 0.5 + 1.0 / 16,
}
ACTIVATION_BYTE: dict[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
KV_BYTE: dict[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
# Schemes whose kernels unpack to 16 bit and compute there ("weight-only"), whatever the GPU offers.
WEIGHT_ONLY = frozenset({"int4", "mxfp4", "nvfp4"})
SIXTEEN_BIT = frozenset({"bf16", "fp16"})


@dataclass(frozen=True)
class Precision:
    """Storage types of one run and the arithmetic type of its quantised linear layers.

    `weights` applies to the linear layers of the transformer blocks (for models that are published with only
    their experts quantised: to the experts). Embedding, output head, norms and router stay in `base`.
    """

    weights: str
    activations: str
    kv_cache: str
    base: str = "bf16"
    experts_only: bool = False

    @property
    def weight_byte(self) -> float:
        """Bytes per weight of the quantised layers, scales included."""
        return WEIGHT_BYTE[self.weights]

    @property
    def base_byte(self) -> float:
        """Bytes per weight of what is not quantised, and per element of the hidden state."""
        return WEIGHT_BYTE[self.base]

    @property
    def kv_byte(self) -> float:
        """Bytes per element of the KV cache."""
        return KV_BYTE[self.kv_cache]

    def to_dict(self) -> dict[str, str]:
        """The three names a user knows."""
        return {"weights": self.weights, "activations": self.activations, "kv_cache": self.kv_cache}


def _known(kind: str, name: str, table: dict[str, float]) -> str:
    if name not in table:
        raise unknown_name(kind, name, table)
    return name


def choose_precision(
    model: Model,
    device: Device,
    weights: str | None = None,
    activations: str | None = None,
    kv_cache: str | None = None,
) -> tuple[Precision, tuple[str, ...]]:
    """Resolve what was asked for against model and device; also returns the assumptions made, as sentences.

    Unset `weights` means the checkpoint's own type. fp8 and int8 weights compute in 8 bit where the device
    has 8-bit tensor units and the user did not ask for wider activations; otherwise they are weight-only.
    """
    notes: list[str] = []
    own = model.quantisation or model.torch_dtype
    scheme = _known("weight type", weights or (own if own in WEIGHT_BYTE else "bf16"), WEIGHT_BYTE)
    peaks = device.compute.peak_flop_per_s
    base = model.torch_dtype if model.torch_dtype in SIXTEEN_BIT or scheme == "fp32" else "bf16"
    if scheme in SIXTEEN_BIT or scheme == "fp32":
        base = scheme
    if base == "bf16" and "bf16" not in peaks and "fp16" in peaks:
        base = "fp16"
        scheme = "fp16" if scheme == "bf16" else scheme
        notes.append(f"{device.name} has no bf16 units: run in fp16 (vLLM: --dtype half)")
    eight_bit = {"fp8": "fp8", "fp8-block": "fp8", "int8": "int8"}.get(scheme)
    if activations is None:
        activations = eight_bit if eight_bit and eight_bit in peaks else base
        if eight_bit and activations != eight_bit:
            notes.append(
                f"{device.name} has no {eight_bit} tensor units: {scheme} weights are weight-only, arithmetic in {base}"
            )
    _known("activation type", activations, ACTIVATION_BYTE)
    if scheme in WEIGHT_ONLY and activations not in SIXTEEN_BIT:
        raise UserError(
            f"{scheme} weights are weight-only here: activations must be bf16 or fp16, found '{activations}'"
        )
    kv = base if kv_cache in (None, "auto") else _known("KV cache type", kv_cache, KV_BYTE)
    experts_only = model.quantised_experts_only and scheme == model.quantisation
    return Precision(scheme, activations, kv, base, experts_only), tuple(notes)


def compute_dtype(device: Device, activations: str) -> str:
    """The key of the device's peak table that arithmetic with these activations runs at.

    fp32 arithmetic of a framework's matrix product runs on the vector units (TF32 is off by default).
    """
    peaks = device.compute.peak_flop_per_s
    for candidate in (activations, "fp16", "bf16", "fp32"):
        if candidate in peaks:
            return candidate
    raise UserError(f"{device.id}: the data sheet has no peak for {activations}, fp16, bf16 or fp32")
