"""What an LLM is: the numbers that its cost follows from. Facts and counting only, no physics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simulator.model.layers import Ffn, LayerGroup, Mixer, MoeFfn


@dataclass(frozen=True)
class Model:
    """One language model, as read from its config.json.

    `layers`: identical layers grouped, in order of first appearance. `diffusion`: text is made by repeated passes
    over whole sequences instead of token by token. `torch_dtype`: "bf16", "fp16" or "fp32", the type of the weights
    that are not quantised. `quantisation`: the storage type of the published checkpoint's quantised layers (a name
    that `simulator.precision` knows), or None. `quantised_experts_only`: attention and shared layers are left in
    `torch_dtype`. `position_embeddings`: rows of a learned position table (GPT-2), else 0.
    `notes`: what was assumed or left out in reading, as sentences.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    layers: tuple[LayerGroup, ...]
    diffusion: bool = False
    torch_dtype: str = "bf16"
    quantisation: str | None = None
    quantised_experts_only: bool = False
    final_norm_parameters: int = 0
    position_embeddings: int = 0
    lm_head_bias: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """Number of layers, as the config counts them."""
        return sum(group.count for group in self.layers)

    @property
    def sparse(self) -> bool:
        """True when some layer is a mixture of experts."""
        return any(isinstance(group.ffn, MoeFfn) for group in self.layers)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements one token adds to the KV cache, over all layers; windows (which free old tokens) not considered."""
        return sum(group.count * group.mixer.kv_elements_per_token for group in self.layers if group.mixer)

    @property
    def state_elements(self) -> int:
        """Elements of constant per-sequence state (Mamba, convolutions), over all layers."""
        return sum(group.count * group.mixer.state_elements for group in self.layers if group.mixer)

    def embedding_parameters(self) -> int:
        """Weights of the token table and, where there is one, of the learned position table."""
        return (self.vocab_size + self.position_embeddings) * self.hidden_size

    def lm_head_parameters(self) -> int:
        """Weights of the output head beyond those shared with the token table: 0 without bias when tied.

        The head's matrix product runs all the same when tied: its weight is vocab_size x hidden_size.
        """
        own = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return own + (self.vocab_size if self.lm_head_bias else 0)

    def parameters(self) -> int:
        """All weights, each counted once."""
        return self._outside_layers() + sum(group.count * group.parameters(self.hidden_size) for group in self.layers)

    def active_parameters(self, embedding: bool = True) -> int:
        """Weights that one token uses: of the experts only those it is routed to.

        Publishers differ on whether the token table counts; `embedding=False` leaves it out (gpt-oss) and counts
        the output head's matrix once, tied or not.
        """
        layers = sum(group.count * group.active_parameters(self.hidden_size) for group in self.layers)
        if embedding:
            return self._outside_layers() + layers
        head = self.vocab_size * (self.hidden_size + self.lm_head_bias)
        return layers + head + self.final_norm_parameters

    def _outside_layers(self) -> int:
        return self.embedding_parameters() + self.lm_head_parameters() + self.final_norm_parameters


def group_layers(layers: Iterable[tuple[Mixer | None, Ffn | None, int]]) -> tuple[LayerGroup, ...]:
    """Group equal (mixer, ffn, norm_parameters) triples, in order of first appearance."""
    counts: dict[tuple[Mixer | None, Ffn | None, int], int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return tuple(LayerGroup(count, *layer) for layer, count in counts.items())
