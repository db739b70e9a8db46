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
ACTIVATION_BYTE: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "nvfp4": WEIGHT_BYTE["nvfp4"],
    "mxfp4": WEIGHT_BYTE["mxfp4"],
}
KV_BYTE: dict[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
# Four-bit schemes: their kernels unpack to 16 bit and compute there ("weight-only") unless the GPU has fp4 units and
# the activations are narrow too. Which narrow activations each may have:
FOUR_BIT: dict[str, frozenset[str]] = {
    "int4": frozenset(),
    "mxfp4": frozenset({"mxfp4", "fp8"}),
    "nvfp4": frozenset({"nvfp4"}),
}
# LayerCast (arXiv:2506.09501): weights stay in 16 bit and are widened to fp32 just before each layer's product: the
# narrow form is read, the wide one written and read again.
LAYER_CAST_BYTE = 2.0 + 4.0 + 4.0
SIXTEEN_BIT = frozenset({"bf16", "fp16"})
# Number formats that go together, under the names that papers give them; what a scheme leaves out stays the default.
# LayerCast keeps the KV cache in fp32, as it computes; the two of 8 bit are vLLM's (8-bit weights meet activations that
# are quantised as they come, the KV cache stays in 16 bit).
SCHEMES: dict[str, dict[str, str]] = {
    "bf16": {"weights": "bf16", "activations": "bf16", "kv_cache": "bf16"},
    "layercast": {"weights": "bf16", "activations": "fp32", "kv_cache": "fp32"},
    "w4a16": {"weights": "int4", "activations": "bf16"},
    "w8a8-int": {"weights": "int8", "activations": "int8"},
    "w8a8-fp": {"weights": "fp8", "activations": "fp8"},
}


@dataclass(frozen=True)
class Precision:
    """Storage types of one run and the arithmetic type of its quantised linear layers.

    `weights` applies to the linear layers of the transformer blocks (for models that are published with only
    their experts quantised: to the experts). Embedding, output head, norms and router stay in `base`. 16-bit weights
    with fp32 activations are LayerCast: stored in 16 bit, computed in fp32. `marlin`: experts of four-bit weights run
    on Marlin kernels, whatever the engine would choose (vLLM: VLLM_MXFP4_USE_MARLIN, --moe-backend marlin).
    """

    weights: str
    activations: str
    kv_cache: str
    base: str = "bf16"
    experts_only: bool = False
    marlin: bool = False

    @property
    def layer_cast(self) -> bool:
        """16-bit storage with arithmetic in fp32."""
        return self.weights in SIXTEEN_BIT and self.activations == "fp32"

    @property
    def weight_byte(self) -> float:
        """Bytes stored per weight of the quantised layers, scales included."""
        return WEIGHT_BYTE[self.weights]

    @property
    def base_weight_byte(self) -> float:
        """Bytes stored per weight of what is not quantised."""
        return WEIGHT_BYTE[self.base]

    @property
    def base_byte(self) -> float:
        """Bytes per element of the hidden state."""
        return ACTIVATION_BYTE[self.base_activation]

    @property
    def base_activation(self) -> str:
        """Arithmetic type of what is not quantised."""
        return "fp32" if self.layer_cast else self.base

    def moved_byte(self, quantised: bool) -> float:
        """Bytes that pass between memory and chip per weight of a matrix product."""
        if self.layer_cast:
            return LAYER_CAST_BYTE
        return self.weight_byte if quantised else self.base_weight_byte

    def quantises(self, projection: str) -> bool:
        """Whether the weight format applies to a projection that every token passes: never to routers and gates."""
        return not self.experts_only and projection not in ("router", "shared_gate")

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
    if activations is None:
        activations, why = _default_activations(scheme, base, device)
        notes += why
    _known("activation type", activations, ACTIVATION_BYTE)
    _check_four_bit(scheme, activations, device)
    kv = base if kv_cache in (None, "auto") else _known("KV cache type", kv_cache, KV_BYTE)
    experts_only = model.quantised_experts_only and scheme == model.quantisation
    return Precision(scheme, activations, kv, base, experts_only), tuple(notes)


def _default_activations(scheme: str, base: str, device: Device) -> tuple[str, list[str]]:
    """What vLLM computes a weight format in on a device, and the sentence if that is wider than the format."""
    narrow = {"fp8": "fp8", "fp8-block": "fp8", "int8": "int8", "nvfp4": "nvfp4"}.get(scheme)
    if narrow is None:  # 16 bit, fp32, and formats that are weight-only by default
        return base, []
    peak = "fp4" if narrow == "nvfp4" else narrow
    if peak in device.compute.peak_flop_per_s:
        return narrow, []
    return base, [f"{device.name} has no {peak} tensor units: {scheme} weights are weight-only, arithmetic in {base}"]


def _check_four_bit(scheme: str, activations: str, device: Device) -> None:
    """UserError when four-bit weights are to meet activations that no kernel computes with."""
    narrow = activations not in SIXTEEN_BIT and activations != "fp32"
    if scheme in FOUR_BIT and narrow and activations not in FOUR_BIT[scheme]:
        allowed = " or ".join(["bf16", "fp16", *sorted(FOUR_BIT[scheme])])
        raise UserError(f"{scheme} weights need {allowed} activations, found '{activations}'")
    if activations in ("nvfp4", "mxfp4") and scheme != activations:
        raise UserError(f"{activations} activations need {activations} weights, found '{scheme}'")
    if scheme in FOUR_BIT and narrow and "fp4" not in device.compute.peak_flop_per_s:
        raise UserError(f"{device.name} has no fp4 units, so {scheme} weights are weight-only: expected bf16 or fp16")


def arithmetic_type(activations: str) -> str:
    """What multiplies activations of this format: the two four-bit formats share their units."""
    return "fp4" if activations in ("nvfp4", "mxfp4") else activations


def compute_dtype(device: Device, activations: str) -> str:
    """The key of the device's peak table that arithmetic with these activations runs at.

    Four-bit weights with 8-bit activations run at the 8-bit rate.
    fp32 arithmetic of a framework's matrix product runs on the vector units (TF32 is off by default).
    """
    peaks = device.compute.peak_flop_per_s
    for candidate in (arithmetic_type(activations), "fp16", "bf16", "fp32"):
        if candidate in peaks:
            return candidate
    raise UserError(f"{device.id}: the data sheet has no peak for {activations}, fp16, bf16 or fp32")
