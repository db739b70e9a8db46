"""Speculative decoding: a draft proposes tokens, the model verifies them all in one step.

A step verifies `num_speculative_tokens` + 1 tokens of every decoding sequence at once: its linear layers see that many
tokens, its attention that many queries per sequence against one cache. The draft runs before it, token by token.
Leviathan et al. 2023 (arXiv 2211.17192): tokens are accepted up to the first that is refused, and one comes from the
verification itself, so that a step writes (1 - a^(k+1)) / (1 - a) tokens on average if each is accepted with rate a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from simulator.errors import UserError
from simulator.instance import Instance, InstanceChoice, build_instance
from simulator.memory import MemoryPlan, kv_byte_per_tok, weights_byte
from simulator.model import Model
from simulator.model.layers import Attention
from simulator.parameters import with_values
from simulator.precision import Precision
from simulator.profile_parts import HOST_TIMES
from simulator.step import StepModel
from simulator.step_table import StepTable

METHODS = ("ngram", "eagle", "draft")


@dataclass(frozen=True)
class SpeculativeSettings:
    """vLLM's speculative_config: `method` says who proposes.

    "ngram": looked up in the text, at no cost on the GPU. "eagle": a head of one decoder layer of the model and its LM
    head. "draft": `model`, on the same devices. `acceptance_rate`: probability that a proposed token is accepted if the
    one before it was.
    """

    num_speculative_tokens: int
    acceptance_rate: float
    method: str = "ngram"
    model: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"speculative method '{self.method}' is not known, expected one of {', '.join(METHODS)}")
        if self.num_speculative_tokens < 1:
            raise UserError(f"num_speculative_tokens must be a whole number >= 1, got {self.num_speculative_tokens}")
        if not 0.0 <= self.acceptance_rate <= 1.0:
            raise UserError(f"acceptance_rate must be from 0 to 1, got {self.acceptance_rate:g}")
        if (self.method == "draft") != (self.model is not None):
            raise UserError("a speculative model goes with method draft, and method draft needs one")

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step writes per sequence, on average."""
        k, a = self.num_speculative_tokens, self.acceptance_rate
        return k + 1.0 if a == 1.0 else (1.0 - a ** (k + 1)) / (1.0 - a)


class SpeculativeCosts:
    """What `StepTable` offers, for steps that verify. `rules`: those of the model, then those of the draft."""

    def __init__(self, instance: Instance, draft: StepModel | None, speculative: SpeculativeSettings) -> None:
        target = instance.step_model
        longest = instance.settings.max_model_len or instance.memory.kv_capacity_tok
        self._tokens = speculative.num_speculative_tokens
        self._target = StepTable(target.verifying(1 + self._tokens), longest)
        self._draft = StepTable(draft, longest) if draft is not None else None
        self._own = len(target.rules)
        self.rules = (*target.rules, *(draft.rules if draft is not None else ()))
        self.idle_power_w = target.idle_power_w

    def stretch(
        self,
        sequences: int,
        keys: Sequence[int],
        slopes: Sequence[int],
        steps: int,
        until_s: float = math.inf,
        extra: int = 0,
    ) -> tuple[int, float, float, float]:
        """(1, seconds, joules, seconds) of one verification and the drafts before it."""
        seconds, joules = self._target.decode(sequences, keys[: self._own])
        drafted_s, drafted_j = self._drafted(sequences, keys)
        return 1, seconds + drafted_s, joules + drafted_j, seconds + drafted_s

    def mixed(self, sequences: int, keys: Sequence[int], chunks: Sequence[tuple]) -> tuple[int, int, float, float]:
        """As `StepTable.mixed`; prompts pass through the draft, too."""
        new, completes, seconds, joules = self._target.mixed(sequences, keys[: self._own], chunks)
        if self._draft is not None:
            _, _, more_s, more_j = self._draft.mixed(0, [0] * (len(keys) - self._own), chunks)
            drafted_s, drafted_j = self._drafted(sequences, keys) if sequences else (0.0, 0.0)
            seconds, joules = seconds + more_s + drafted_s, joules + more_j + drafted_j
        return new, completes, seconds, joules

    def decode(self, sequences: int, keys: Sequence[int]) -> tuple[float, float]:
        """(seconds, joules) of one step."""
        return self.stretch(sequences, keys, (), 1)[1:3]

    def _drafted(self, sequences: int, keys: Sequence[int]) -> tuple[float, float]:
        """Drafting all tokens of a step, one after the other."""
        if self._draft is None:
            return 0.0, 0.0
        seconds, joules = self._draft.decode(sequences, keys[self._own :])
        return self._tokens * seconds, self._tokens * joules


def draft_of(instance: Instance, asked: InstanceChoice, speculative: SpeculativeSettings) -> StepModel | None:
    """The physics of what proposes; None if that costs nothing on the GPU."""
    if speculative.method == "ngram":
        return None
    if speculative.method == "eagle":
        return _inside_a_step(instance, head_of(instance.model), instance.precision)
    if instance.parallel.pp > 1:
        raise UserError("a speculative model together with pipeline_parallel_size above 1 cannot be simulated")
    choice = InstanceChoice(
        gpu=asked.gpu, model=speculative.model, power_mode=asked.power_mode, calibration=asked.calibration,
        kv_cache=asked.kv_cache, tensor_parallel_size=asked.tensor_parallel_size, engine=asked.engine,
        engine_settings={"max_num_seqs": instance.settings.max_num_seqs,
                         "max_num_batched_tokens": instance.settings.max_num_batched_tokens},
    )  # fmt: skip
    draft = build_instance(choice)
    return _inside_a_step(instance, draft.model, draft.precision)


def _inside_a_step(instance: Instance, model: Model, precision: Precision) -> StepModel:
    """The physics of a draft: it runs within the model's step, which the host prepares once, and samples greedily."""
    calibration = instance.calibration
    without_host = dict.fromkeys((f"engine.{name}" for name in HOST_TIMES), 0.0)
    parameters = with_values(calibration.parameters, without_host)
    return StepModel(
        model, instance.device, precision, msgspec.structs.replace(calibration, parameters=parameters),
        sampler="greedy", cuda_graphs=instance.step_model.cuda_graphs, parallel=instance.parallel,
    )  # fmt: skip


def head_of(model: Model) -> Model:
    """One decoder layer of the model with its LM head: what an EAGLE head computes, but for its small input layer."""
    plain = [group for group in model.layers if isinstance(group.mixer, Attention)]
    if not plain:
        raise UserError(f"an EAGLE head needs a model with plain attention, and {model.name} has none")
    layer = replace(max(plain, key=lambda group: group.count), count=1)
    return replace(model, name=f"EAGLE head of {model.name}", layers=(layer,))


def memory_beside(memory: MemoryPlan, draft: StepModel | None, method: str) -> MemoryPlan:
    """The memory of a model beside its draft, whose weights take room and whose KV cache grows with every token.

    An EAGLE head uses the embedding and the LM head of the model itself.
    """
    if draft is None:
        return memory
    weights = weights_byte(draft.model, draft.precision, draft.parallel)
    if method == "eagle":
        weights -= weights_byte(replace(draft.model, layers=()), draft.precision, draft.parallel)
    per_tok = memory.kv_byte_per_tok + kv_byte_per_tok(draft.model, draft.precision, draft.parallel)
    room = memory.kv_blocks * memory.block_size * memory.kv_byte_per_tok - weights
    blocks = int(max(0.0, room) // (per_tok * memory.block_size))
    if blocks < 16:
        raise UserError(f"{draft.model.name} does not fit beside the model: {weights / 1e9:.1f} GB of weights more")
    return replace(memory, kv_blocks=blocks, kv_byte_per_tok=per_tok)
