"""Physics and deployments for tests of traffic: simple enough for closed forms, bent enough to catch shortcuts."""

from __future__ import annotations

import numpy as np

from simulator.engine import EngineSettings
from simulator.engine.token_by_token import TokenByToken
from simulator.keys import KeyRule
from simulator.step import StepCost
from simulator.step_table import StepTable
from simulator.steps import Steps
from simulator.traffic.cluster import Deployment

MANY = 10**6  # KV blocks
RULES = {"full": (KeyRule(),), "window": (KeyRule(), KeyRule(24)), "chunks": (KeyRule(16, chunked=True), KeyRule())}


class Bent:
    """The slower of computing and reading, a surcharge for prefill, quadratic attention."""

    idle_power_w = 11.0

    def __init__(self, rules=RULES["full"]):
        self.rules = rules

    def price(self, steps: Steps):
        reading = 6e-3 + 2e-5 * (steps.decode_keys.sum(axis=1) + steps.prefill_keys.sum(axis=1))
        computing = 1.5e-3 + 3e-4 * steps.new_tok + 2e-7 * steps.prefill_pairs.sum(axis=1)
        seconds = np.hypot(reading, computing) + 3e-5 * steps.sampled + 2e-3 * (steps.prefill_tok > 0)
        return StepCost(seconds, 250.0 * seconds + 0.02 * steps.new_tok, {})


class Plain(Bent):
    """Every step takes `base_s`, and `token_s` for each token that it computes."""

    def __init__(self, base_s: float = 0.01, token_s: float = 1e-4, rules=RULES["full"]):
        super().__init__(rules)
        self.base_s, self.token_s = base_s, token_s

    def price(self, steps: Steps):
        seconds = self.base_s + self.token_s * steps.new_tok
        return StepCost(seconds, 100.0 * seconds, {})


def deployment(engine: EngineSettings, kv_blocks: int = MANY, physics=None, **more) -> Deployment:
    """One replica, or more, of `physics`."""
    return Deployment(StepTable(physics or Bent(), 100_000), engine, kv_blocks, **more)


def token_by_token(chosen: Deployment) -> TokenByToken:
    """The slow scheduler for a deployment."""
    return TokenByToken(
        chosen.settings, chosen.kv_blocks, chosen.costs.rules, chosen.async_scheduling,
        micro_batches=chosen.micro_batches,
    )  # fmt: skip
