"""What moves information between tokens: attention and its relatives, in numbers. No physics here.

Every mixer says what runs for every token (`projections`), which other weights it has (`other_parameters`),
how many elements a token adds to its cache (`kv_elements_per_token`) and how many a sequence holds
whatever its length (`state_elements`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Projection:
    """`count` equal matrix products; one has a weight of shape (out_features, in_features)."""

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    count: int = 1

    @property
    def parameters(self) -> int:
        """Weights and biases of all `count` products."""
        return self.count * self.out_features * (self.in_features + self.bias)


@dataclass(frozen=True)
class Attention:
    """Softmax attention: multi-head, grouped-query or multi-query by the number of KV heads.

    `window_tok`: a token attends to at most this many latest tokens (itself included); None means to all.
    `chunked`: the window is instead the token's own chunk of `window_tok` positions (Llama 4).
    `qk_norm`: None, "head" (RMS norm over head_dim, one weight vector shared by the heads), "full" (over the
    whole query and key width) or "unweighted" (no parameters).
    `sinks`: one learned logit per query head (gpt-oss). `causal`: False when every token sees every token.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    window_tok: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: str | None = None
    sinks: bool = False
    causal: bool = True
    chunked: bool = False

    @property
    def q_width(self) -> int:
        """Width of the query and of the attention output: heads x head_dim."""
        return self.q_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of the keys (and of the values): KV heads x head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the KV cache of one layer (keys and values)."""
        return 2 * self.kv_width

    @property
    def state_elements(self) -> int:
        """Elements of state per sequence that do not grow with its length."""
        return 0

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        return (
            Projection("qkv", hidden_size, self.q_width + 2 * self.kv_width, self.qkv_bias),
            Projection("attention_output", self.q_width, hidden_size, self.output_bias),
        )

    def other_parameters(self, hidden_size: int) -> int:
        norm = {None: 0, "unweighted": 0, "head": 2 * self.head_dim, "full": self.q_width + self.kv_width}[self.qk_norm]
        return norm + (self.q_heads if self.sinks else 0)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    The cache holds, per token, one latent vector and one shared rotary key: kv_lora_rank + qk_rope_head_dim.
    `kv_b` expands latents into per-head keys and values. Decoding absorbs it: queries are multiplied by its
    key half, outputs by its value half, which are as many multiply-adds per token as the expansion of one token.
    """

    q_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    causal: bool = True
    window_tok: int | None = None

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: the part without and the part with rotary position."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to the cache of one layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def state_elements(self) -> int:
        """Elements of state per sequence that do not grow with its length."""
        return 0

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        q_width = self.q_heads * self.qk_head_dim
        latent = self.kv_lora_rank + self.qk_rope_head_dim
        if self.q_lora_rank is None:
            down = (Projection("q", hidden_size, q_width), Projection("kv_a", hidden_size, latent))
        else:
            down = (
                Projection("qkv_a", hidden_size, self.q_lora_rank + latent),
                Projection("q_b", self.q_lora_rank, q_width),
            )
        return (
            *down,
            Projection("kv_b", self.kv_lora_rank, self.q_heads * (self.qk_nope_head_dim + self.v_head_dim)),
            Projection("attention_output", self.q_heads * self.v_head_dim, hidden_size),
        )

    def other_parameters(self, hidden_size: int) -> int:
        return self.kv_lora_rank + (self.q_lora_rank or 0)  # RMS norms of the two latents


@dataclass(frozen=True)
class Mamba2:
    """Selective state-space mixer (Mamba-2, arXiv:2405.21060): constant state per sequence, no KV cache."""

    num_heads: int
    head_dim: int
    state_size: int
    n_groups: int
    conv_kernel: int
    conv_bias: bool = True
    projection_bias: bool = False

    @property
    def inner_size(self) -> int:
        """Width of the mixer's input and output: heads x head_dim."""
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the causal convolution: the input beside the B and C of every group."""
        return self.inner_size + 2 * self.n_groups * self.state_size

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to a cache: none."""
        return 0

    @property
    def state_elements(self) -> int:
        """Elements of state per sequence and layer: the state matrices and the convolution's tail."""
        return self.inner_size * self.state_size + self.conv_size * (self.conv_kernel - 1)

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        in_width = self.inner_size + self.conv_size + self.num_heads  # gate, convolved part, time steps
        return (
            Projection("in_proj", hidden_size, in_width, self.projection_bias),
            Projection("out_proj", self.inner_size, hidden_size, self.projection_bias),
        )

    def other_parameters(self, hidden_size: int) -> int:
        convolution = self.conv_size * (self.conv_kernel + self.conv_bias)
        return convolution + 3 * self.num_heads + self.inner_size  # A, D, time-step bias; gated RMS norm


@dataclass(frozen=True)
class ShortConvolution:
    """Gated short convolution (LFM2): input projected to B, C, x; output = C * conv(B * x), projected back."""

    kernel_size: int
    bias: bool = False
    width: int = 0  # channels of the convolution, which is the hidden size

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that one token adds to a cache: none."""
        return 0

    @property
    def state_elements(self) -> int:
        """Elements of state per sequence and layer: the last kernel_size - 1 inputs of every channel."""
        return self.width * (self.kernel_size - 1)

    def projections(self, hidden_size: int) -> tuple[Projection, ...]:
        return (
            Projection("in_proj", hidden_size, 3 * hidden_size, self.bias),
            Projection("out_proj", hidden_size, hidden_size, self.bias),
        )

    def other_parameters(self, hidden_size: int) -> int:
        return hidden_size * (self.kernel_size + self.bias)


Mixer = Attention | LatentAttention | Mamba2 | ShortConvolution
