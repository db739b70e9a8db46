"""FLOPs that a model needs, whatever computes them: what papers compare strategies by."""

from __future__ import annotations

from collections.abc import Callable

from simulator.batch import PrefillChunk
from simulator.keys import key_rules
from simulator.model import Model
from simulator.operators import plan_forward
from simulator.precision import Precision


def call_flop(model: Model, streams: int = 1) -> Callable[[int, int, int], float]:
    """A function of (prompt, output, cached tokens): FLOPs of reading the prompt behind the cached part and writing.

    Two per weight and token in every matrix product (of a mixture of experts: in the experts that a token visits), and
    in attention two per product of query and key and two per product with a value: quadratic in the length. The last
    token written is not computed again. Logits count where a token is sampled. streams: copies of every token that
    pass through the layers of a model with parallel scaling.
    """
    plan, rules = plan_forward(model, Precision("bf16", "bf16", "bf16"), streams=streams), key_rules(model)
    per_tok = sum(2.0 * g.in_features * g.out_features * g.count for g in plan.gemms if g.rows == "tokens")
    per_sampled = sum(2.0 * g.in_features * g.out_features * g.count for g in plan.gemms if g.rows == "sampled")
    for work in plan.experts:
        weights = work.hidden * work.intermediate * (3.0 if work.gated else 2.0)
        per_tok += 2.0 * weights * work.experts_per_token * work.count
    per_tok += sum(work.count * work.flop_per_tok for work in plan.states)
    attention = [(rules[work.rule], work.count * work.prefill_flop_per_pair) for work in plan.attention]

    def flop(prompt_tok: int, output_tok: int, cached_tok: int = 0) -> float:
        new_tok = prompt_tok - cached_tok + max(output_tok - 1, 0)
        pairs = sum(each * rule.keys_read(PrefillChunk(new_tok, cached_tok))[0] for rule, each in attention)
        return streams * (new_tok * per_tok + pairs) + output_tok * per_sampled

    return flop
