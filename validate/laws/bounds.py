"""Bounds that a data sheet and an architecture impose on any implementation. No calibration, no operator model.

Everything is counted from the layers of the model once more, apart from `simulator.operators`, so that a mistake there
does not excuse itself.

The other side of each bound is a stated multiple: no real engine that was measured is slower than that. The multiples
come from the measured runs that ship (`calibration/data/runs`), time per token of one sequence against the bytes of its
weights over the pin bandwidth:

    A6000, vLLM V0        54 runs   1.2 to  3.1 times the bound      A100 80 GB, vLLM V0   54 runs   1.6 to  8.3
    A100 40 GB, early     38 runs   1.5 to  3.1                      H100, vLLM V0         54 runs   1.7 to 11.7
    AGX Orin, vLLM 0.8   287 runs   1.2 to  2.0                      Orin Nano, llama.cpp  16 runs   1.9 to  5.8

All of them lie below bound / 0.35 + 0.15 ms per layer (most of what exceeds bound / 0.35: 0.135 ms per layer).
Arithmetic is granted 0.15 of the peak, which leaves room for prompts that fill no GPU, in tiles of at least 16 rows.
Messages: an 8-GPU all-reduce through the bridges of a host reached 0.063 of the link in AIConfigurator's tables of the
L40S, over NVLink 0.6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.device import Device
from simulator.instance import Instance
from simulator.kernels.moe import touched_experts
from simulator.model.layers import Attention, LatentAttention, LayerGroup, MoeFfn
from simulator.precision import compute_dtype

STATE_BYTE = 4.0  # recurrent state is kept in fp32
PREFILL_EFFICIENCY, DECODE_EFFICIENCY = 0.15, 0.35
LAYER_S = 150e-6  # per layer and step: launches, small kernels, host
MESSAGE_LAYER_S = 150e-6  # per layer and step more where messages go between devices
SEQUENCE_S = 100e-6  # per sequence and step: host; vLLM's early versions took 83 us
TILE_ROWS = 16.0  # of the matrix units; an expert with fewer tokens computes as many
HOST_LINK_EFFICIENCY, OWN_LINK_EFFICIENCY = 0.05, 0.4  # of the link, in an all-reduce
SLOWEST_LINK_BYTE_PER_S = 1.6e10  # a sheet without any link: PCIe 3.0 x16
STEP_S = 5e-3  # once per step with prompts; fits found 1 to 4 ms of it
REQUEST_S = 20e-3  # once per request: HTTP, hand-over between processes; fits found 2 to 6 ms
PROMPT_TOK_S = 20e-6  # per prompt token: tokenising; fits found 3 to 8 us


@dataclass(frozen=True)
class Floors:
    """What the devices of one deployment have to move and to compute, and how fast they could.

    n: devices; the work is taken as split evenly over all. `fast` and `slow`: the highest and the lowest of the peaks
    [FLOP/s] that the precision uses, of one device.
    """

    instance: Instance

    @property
    def device(self) -> Device:
        """The data sheet."""
        return self.instance.device

    @property
    def n(self) -> int:
        """Devices."""
        return self.instance.parallel.world_size

    @property
    def bandwidth_byte_per_s(self) -> float:
        """Of all devices."""
        return self.n * self.device.memory.bandwidth_byte_per_s

    def peaks(self) -> tuple[float, float]:
        """(highest, lowest) dense peak of the arithmetic in use, of all devices [FLOP/s]."""
        precision, peaks = self.instance.precision, self.device.compute.peak_flop_per_s
        used = [peaks[compute_dtype(self.device, name)] for name in (precision.activations, precision.base_activation)]
        return self.n * max(used), self.n * min(used)

    def weights_byte(self, tokens: np.ndarray | float) -> np.ndarray:
        """Bytes of weights that a step of `tokens` (S,) tokens reads at least once: no embedding table, only the
        experts that are touched (in the mean, under the popularity that the calibration states), the output head.
        """
        model, precision = self.instance.model, self.instance.precision
        tokens = np.atleast_1d(np.asarray(tokens, float))
        head = model.vocab_size * model.hidden_size * precision.base_weight_byte
        return head + sum(group.count * self._layer_byte(group, tokens) for group in model.layers)

    def _layer_byte(self, group: LayerGroup, tokens: np.ndarray) -> np.ndarray:
        precision, hidden = self.instance.precision, self.instance.model.hidden_size
        each = precision.base_weight_byte if precision.experts_only else precision.weight_byte
        byte = group.parameters_without_experts(hidden) * min(each, precision.base_weight_byte)
        if not isinstance(group.ffn, MoeFfn):
            return np.full(len(tokens), byte)
        touched = self._touched(group.ffn, tokens)
        return byte + touched * group.ffn.expert_parameters(hidden) * precision.weight_byte

    def _touched(self, ffn: MoeFfn, tokens: np.ndarray) -> np.ndarray:
        skew = self.instance.calibration.parameters.engine.routing_skew
        return touched_experts(ffn.experts, ffn.experts_per_token, tokens, skew)

    def kv_byte(self, context_tok: int) -> float:
        """Bytes of KV cache, and of recurrent state, that one decoding sequence reads behind `context_tok` tokens."""
        kv, total = self.instance.precision.kv_byte, 0.0
        for group in self.instance.model.layers:
            if group.mixer is None:
                continue
            window = getattr(group.mixer, "window_tok", None)
            keys = context_tok if window is None else min(context_tok, window)
            total += group.count * (group.mixer.kv_elements_per_token * keys * kv + self._state_byte(group))
        return total

    @staticmethod
    def _state_byte(group: LayerGroup) -> float:
        return STATE_BYTE * group.mixer.state_elements

    def linear_flop(self, tokens: np.ndarray | float, sampled: np.ndarray | float) -> np.ndarray:
        """2 P_active per token, the output head only where a token is sampled, the embedding table never."""
        model = self.instance.model
        head = model.vocab_size * model.hidden_size
        layers = model.active_parameters(embedding=False) - head
        return 2.0 * layers * np.asarray(tokens, float) + 2.0 * head * np.asarray(sampled, float)

    def pair_flop(self, pairs_at: int) -> float:
        """FLOPs of attention of one prompt of `pairs_at` tokens that attends causally to itself."""
        total = 0.0
        for group in self.instance.model.layers:
            mixer = group.mixer
            if not isinstance(mixer, Attention | LatentAttention):
                continue
            wide = 2 * mixer.head_dim if isinstance(mixer, Attention) else mixer.qk_head_dim + mixer.v_head_dim
            total += group.count * 2.0 * mixer.q_heads * wide * _pairs(pairs_at, mixer.window_tok)
        return total

    def decode_pair_flop(self, context_tok: int) -> float:
        """The same for one token that decodes behind `context_tok` tokens."""
        return self.pair_flop(context_tok + 1) - self.pair_flop(context_tok)

    # -- times -----------------------------------------------------------------------------------------------

    def prefill_s(self, prompt_tok: int) -> tuple[float, float]:
        """(by arithmetic, by bytes): shortest times of one prompt's only step."""
        flop = float(self.linear_flop(prompt_tok, 1.0)) + self.pair_flop(prompt_tok)
        return flop / self.peaks()[0], float(self.weights_byte(prompt_tok)[0]) / self.bandwidth_byte_per_s

    def prefill_ceiling_s(self, prompt_tok: int) -> float:
        """Longest time to a first token that any measured engine needed, see the head of this file."""
        flop = float(self.tiled_flop(prompt_tok, 1.0)[0]) + self.pair_flop(prompt_tok)
        byte = float(self.weights_byte(prompt_tok)[0])
        working = max(flop / self.peaks()[1], byte / self.bandwidth_byte_per_s) / PREFILL_EFFICIENCY
        around = self._layers_s() + float(self.messages_s(prompt_tok))
        return working + around + STEP_S + REQUEST_S + PROMPT_TOK_S * prompt_tok

    def decode_s(self, batch: np.ndarray, context_tok: int) -> tuple[np.ndarray, np.ndarray]:
        """(by arithmetic, by bytes) of steps of `batch` (S,) sequences behind `context_tok` tokens."""
        batch = np.atleast_1d(np.asarray(batch, float))
        flop = self.linear_flop(batch, batch) + batch * self.decode_pair_flop(context_tok)
        byte = self.weights_byte(batch) + batch * self.kv_byte(context_tok)
        return flop / self.peaks()[0], byte / self.bandwidth_byte_per_s

    def decode_ceiling_s(self, batch: np.ndarray, context_tok: int) -> np.ndarray:
        """Longest time of such steps in any measured engine: bytes and arithmetic one after the other."""
        batch = np.atleast_1d(np.asarray(batch, float))
        flop = self.tiled_flop(batch, batch) + batch * self.decode_pair_flop(context_tok)
        reading = self.decode_s(batch, context_tok)[1]
        working = reading / DECODE_EFFICIENCY + flop / self.peaks()[1] / PREFILL_EFFICIENCY
        return working + self._layers_s() + self.messages_s(batch) + SEQUENCE_S * batch

    def tiled_flop(self, tokens: np.ndarray | float, sampled: np.ndarray | float) -> np.ndarray:
        """`linear_flop` with a whole tile of rows, at least, in every expert that is touched."""
        model, tokens = self.instance.model, np.atleast_1d(np.asarray(tokens, float))
        padded = np.zeros(len(tokens))
        for group in model.layers:
            if isinstance(group.ffn, MoeFfn):
                routed = tokens * group.ffn.experts_per_token
                short = np.maximum(0.0, TILE_ROWS * self._touched(group.ffn, tokens) - routed)
                padded += group.count * 2.0 * group.ffn.expert_parameters(model.hidden_size) * short
        return self.linear_flop(tokens, sampled) + padded

    def messages_s(self, tokens: np.ndarray | float) -> np.ndarray:
        """Two all-reduces per layer of 16-bit hidden states around a ring, at a share of the link that was measured."""
        links = self.device.interconnect
        own = links.kind.startswith(("nvlink", "infinity", "xgmi"))
        link = links.scale_up_byte_per_s or links.pcie_byte_per_s or SLOWEST_LINK_BYTE_PER_S
        byte = 2.0 * self.instance.model.hidden_size * np.asarray(tokens, float) * 2.0 * (self.n - 1) / self.n
        each = byte / (link * (OWN_LINK_EFFICIENCY if own else HOST_LINK_EFFICIENCY))
        return 2.0 * self.instance.model.num_layers * each

    def _layers_s(self) -> float:
        each = LAYER_S + (MESSAGE_LAYER_S if self.n > 1 else 0.0)
        return each * self.instance.model.num_layers


def _pairs(tokens: int, window_tok: int | None) -> float:
    """(query, key) pairs of a causal prompt, a window of keys at most."""
    full = tokens if window_tok is None else min(tokens, window_tok)
    return full * (full + 1) / 2.0 + (tokens - full) * float(full)
