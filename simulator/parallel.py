"""How one model is split over devices: tensor, pipeline, expert and data parallelism, under vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import UserError
from simulator.model import Model
from simulator.model.layers import Attention, LatentAttention, Mamba2


@dataclass(frozen=True)
class Parallelism:
    """One served instance. `world_size` = tp x pp x dp devices.

    tp: every layer is split over tp devices. pp: layers in pp stages, with as many micro-batches in flight. dp:
    replicas with their own requests. ep: experts spread over this many devices instead of being split; 1, or a divisor
    of tp x dp. With ep > 1 and dp > 1 attention is data parallel and the experts serve the tokens of all replicas.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "ep", "dp"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"parallel setting {name} must be a whole number >= 1, got {value}")
        if self.tp * self.dp % self.ep:
            raise UserError(f"ep = {self.ep} must divide tp x dp = {self.tp} x {self.dp}")

    @property
    def world_size(self) -> int:
        """Devices that the instance occupies."""
        return self.tp * self.pp * self.dp

    @property
    def shared_experts(self) -> bool:
        """Whether the experts serve the tokens of several data-parallel replicas."""
        return self.ep > 1 and self.dp > 1

    @property
    def expert_tp(self) -> int:
        """Devices over which each expert is split."""
        return (self.tp * self.dp if self.shared_experts else self.tp) // self.ep if self.ep > 1 else self.tp

    def check(self, model: Model) -> None:
        """UserError when the model cannot be split this way (vLLM refuses the same)."""
        for group in model.layers:
            heads = getattr(group.mixer, "q_heads", None) or getattr(group.mixer, "num_heads", None)
            if heads and heads % self.tp:
                raise UserError(f"{model.name}: {heads} heads cannot be split over tp = {self.tp}")
            kv_heads = group.mixer.kv_heads if isinstance(group.mixer, Attention) else 1
            if max(kv_heads, self.tp) % min(kv_heads, self.tp):
                raise UserError(f"{model.name}: {kv_heads} KV heads can be neither split over nor copied to {self.tp}")
        if self.ep > 1 and not model.sparse:
            raise UserError(f"{model.name} has no experts, so ep = {self.ep} cannot be set; expected 1")
        if self.pp > model.num_layers:
            raise UserError(f"{model.name}: {model.num_layers} layers cannot make {self.pp} pipeline stages")


SINGLE = Parallelism()

# Which side of a projection tensor parallelism splits: its outputs, its inputs, or neither (every device does it all).
_BY_INPUT = frozenset({"attention_output", "down", "out_proj", "shared_down"})
_REPLICATED = frozenset({"kv_a", "qkv_a", "router", "shared_gate"})


def split_projection(name: str, inner: int, outer: int, mixer, tp: int) -> tuple[int, int]:
    """(in_features, out_features) of one device's part of a projection; parts are rounded up."""
    if tp == 1 or name in _REPLICATED:
        return inner, outer
    if name in _BY_INPUT:
        return -(-inner // tp), outer
    if name == "qkv" and isinstance(mixer, Attention):
        # KV heads are copied where there are fewer of them than devices.
        kv_heads = max(mixer.kv_heads, tp)
        return inner, (mixer.q_heads + 2 * kv_heads) * mixer.head_dim // tp
    return inner, -(-outer // tp)


def split_heads(mixer: Attention | LatentAttention | Mamba2, tp: int) -> tuple[int, int]:
    """(query heads, KV heads) of one device; the compressed cache of latent attention is kept by every device."""
    if isinstance(mixer, Attention):
        return mixer.q_heads // tp, max(1, mixer.kv_heads // tp)
    return mixer.q_heads // tp, 1
