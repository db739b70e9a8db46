"""The building blocks of a language model: what each layer holds, in numbers. No physics here.

A layer is a mixer (it moves information between tokens) and a feed-forward part; either may be absent.
Every mixer and every feed-forward part answers the same two questions, both for a given hidden size:

* `projections(hidden_size)`: the matrix products that run for every token. Products that an engine fuses
  are one entry (query, key and value; gate and up).
* `other_parameters(hidden_size)`: weights that belong to no matrix product (norms, convolutions, sinks).

Parameters of a layer = its projections + its experts + its other parameters + its block norms.
Everything is frozen and hashable, so that cost models can cache by layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.model.mixers import Attention, LatentAttention, Mamba2, Mixer, Projection, ShortConvolution


@dataclass(frozen=True)
class DenseFfn:
    """Feed-forward part of one layer: gated (down(act(gate(x)) * up(x))) or plain (down(act(up(x))))."""

    intermediate_size: int
    gated: bool = True
    bias: bool = False

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        return _feed_forward(hidden_size, self.intermediate_size, self.gated, self.bias)

    def other_parameters(self, hidden_size: int) -> int:
        return 0


@dataclass(frozen=True)
class MoeFfn:
    """Mixture of experts: a router picks `experts_per_token` of `experts`; a shared expert, if any, always runs.

    `shared_intermediate_size` is 0 without a shared expert, and the sum of the widths with several.
    `router_bias` is one number per expert, added to the router's output (a linear layer's bias in gpt-oss, a
    correction learned outside the gradient in DeepSeek-V3). `shared_gate`: a sigmoid scales the shared expert.
    """

    experts: int
    experts_per_token: int
    expert_intermediate_size: int
    shared_intermediate_size: int = 0
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        """What runs for every token whatever the routing: router and shared expert."""
        always = [Projection("router", hidden_size, self.experts, self.router_bias)]
        if self.shared_intermediate_size:
            shared = _feed_forward(hidden_size, self.shared_intermediate_size, self.gated, self.bias, "shared_")
            always.extend(shared)
        if self.shared_gate:
            always.append(Projection("shared_gate", hidden_size, 1))
        return tuple(always)

    def expert_projections(self, hidden_size: int) -> tuple[Projection, ...]:
        """The matrix products of ONE routed expert."""
        return _feed_forward(hidden_size, self.expert_intermediate_size, self.gated, self.bias)

    def expert_parameters(self, hidden_size: int) -> int:
        """Weights and biases of ONE routed expert."""
        return sum(projection.parameters for projection in self.expert_projections(hidden_size))

    def other_parameters(self, hidden_size: int) -> int:
        return 0


def _feed_forward(
    hidden_size: int, intermediate_size: int, gated: bool, bias: bool, prefix: str = ""
) -> tuple[Projection, ...]:
    first = (
        Projection(prefix + "gate_up", hidden_size, 2 * intermediate_size, bias)
        if gated
        else Projection(prefix + "up", hidden_size, intermediate_size, bias)
    )
    return (first, Projection(prefix + "down", intermediate_size, hidden_size, bias))


Ffn = DenseFfn | MoeFfn


@dataclass(frozen=True)
class LayerGroup:
    """`count` identical layers. `norm_parameters`: weights of the block norms of one layer.

    A layer may lack a mixer or a feed-forward part (Nemotron-H alternates them as layers of their own).
    """

    count: int
    mixer: Mixer | None
    ffn: Ffn | None
    norm_parameters: int

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        """Matrix products of one layer that run for every token."""
        parts = [part for part in (self.mixer, self.ffn) if part is not None]
        return tuple(projection for part in parts for projection in part.projections(hidden_size))

    def parameters_without_experts(self, hidden_size: int) -> int:
        """Weights of one layer that every token uses."""
        other = sum(part.other_parameters(hidden_size) for part in (self.mixer, self.ffn) if part is not None)
        matrices = sum(projection.parameters for projection in self.projections(hidden_size))
        return matrices + other + self.norm_parameters

    def parameters(self, hidden_size: int) -> int:
        """Weights of one layer."""
        return self.parameters_without_experts(hidden_size) + self._experts(hidden_size, every=True)

    def active_parameters(self, hidden_size: int) -> int:
        """Weights of one layer that one token uses."""
        return self.parameters_without_experts(hidden_size) + self._experts(hidden_size, every=False)

    def _experts(self, hidden_size: int, every: bool) -> int:
        if not isinstance(self.ffn, MoeFfn):
            return 0
        return (self.ffn.experts if every else self.ffn.experts_per_token) * self.ffn.expert_parameters(hidden_size)


__all__ = [
    "Attention",
    "DenseFfn",
    "Ffn",
    "LatentAttention",
    "LayerGroup",
    "Mamba2",
    "Mixer",
    "MoeFfn",
    "Projection",
    "ShortConvolution",
]
