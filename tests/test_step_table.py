"""Tabulated step costs: sums that do not depend on how they are cut, and how far they are from the physics."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_physics import RULES, Bent, Plain

from simulator.batch import Batch, PrefillChunk
from simulator.scenario import Scenario, prepare
from simulator.step_table import GRID, StepTable

KINDS = {  # rules: physics
    "none": Plain(rules=()),
    "one": Bent(RULES["full"]),
    "two": Bent(RULES["window"]),
    "three": Bent((*RULES["window"], *RULES["chunks"][:1])),
}
DEPLOYMENTS = {
    "dense": ("h100", "qwen3-8b", {}),
    "old": ("a100", "llama-2-7b", {}),
    "windows": ("h100", "gpt-oss-120b", {}),
    "split": ("h100", "llama-3.3-70b", {"tensor_parallel_size": 4}),
    "stages": ("h100", "llama-3.1-8b", {"pipeline_parallel_size": 2}),
    "edge": ("orin", "llama-3.1-8b", {"power_mode": "30W"}),
    "recurrent": ("h100", "nemotron-nano-9b-v2", {}),
}


@lru_cache(maxsize=8)
def table(kind: str) -> StepTable:
    return StepTable(KINDS[kind], 5000)


@st.composite
def stretches(draw):
    """(kind, sequences, keys, slopes, steps)"""
    kind = draw(st.sampled_from(sorted(KINDS)))
    n = draw(st.integers(1, 40))
    rules = len(KINDS[kind].rules)
    keys = [draw(st.integers(n, n * 2000)) for _ in range(rules)]
    slopes = [draw(st.integers(0, n)) for _ in range(rules)]
    return kind, n, keys, slopes, draw(st.integers(1, 400))


def one_by_one(kind, n, keys, slopes, steps) -> np.ndarray:
    """(seconds, joules) of each step, shape (steps, 2)."""
    return np.array([table(kind).decode(n, [k + s * j for k, s in zip(keys, slopes)]) for j in range(steps)])


@settings(max_examples=120, deadline=None)
@given(stretches())
def test_a_stretch_is_the_sum_of_its_steps(drawn):
    steps, seconds, joules, last_s = table(drawn[0]).stretch(*drawn[1:])
    costs = one_by_one(*drawn)
    assert steps == drawn[-1]
    assert (seconds, joules) == pytest.approx(tuple(costs.sum(axis=0)), rel=1e-12)
    assert last_s == pytest.approx(costs[-1, 0], rel=1e-12)


@settings(max_examples=120, deadline=None)
@given(stretches(), st.floats(0.0, 1.2), st.integers(0, 2))
def test_a_stretch_ends_with_the_first_step_that_reaches_a_time(drawn, share, extra):
    costs = one_by_one(*drawn)
    ends = np.cumsum(costs[:, 0])
    until_s = share * ends[-1]
    steps, seconds, joules, last_s = table(drawn[0]).stretch(*drawn[1:], until_s, extra)
    expected = min(int(np.searchsorted(ends, until_s)) + 1 + extra, drawn[-1])
    if np.abs(ends / max(until_s, 1e-300) - 1.0).min() > 1e-12:
        assert steps == expected
    assert (seconds, joules) == pytest.approx(tuple(costs[:steps].sum(axis=0)), rel=1e-12)
    assert last_s == pytest.approx(costs[steps - 1, 0], rel=1e-12)


def test_grid_points_are_distinct_and_close():
    points = np.array(GRID)
    assert (np.diff(points) > 0).all()
    large = points[points > 100]
    assert (large[1:] / large[:-1]).max() < 1.05


@lru_cache(maxsize=8)
def deployed(name: str):
    gpu, model, more = DEPLOYMENTS[name]
    setup = prepare(Scenario(gpu, "single", model=model, **more))
    longest = min(setup.settings.max_model_len, 16_384)
    return setup.step_model, StepTable(setup.step_model, longest), longest


def random_batches(longest: int, count: int = 150):
    """Contexts of up to 150 sequences: alike, or spread over three decades."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        n, typical = int(rng.integers(1, 150)), np.exp(rng.uniform(np.log(5), np.log(longest / 2 - 2)))
        spread = np.exp(rng.uniform(np.log(5), np.log(longest - 2), n)).astype(np.int64)
        yield spread if rng.random() < 0.5 else rng.integers(int(typical), int(2 * typical) + 1, n)


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_tables_are_close_to_the_physics(name):
    physics, costs, longest = deployed(name)
    errors = []
    for contexts in random_batches(longest):
        keys = [int(rule.decode_keys_now(contexts)) for rule in physics.rules]
        exact = physics.step(Batch((), contexts))
        found = costs.decode(len(contexts), keys)
        errors.append((found[0] / exact.seconds - 1.0, found[1] / exact.joules - 1.0))
    # Kernels round the mean context up to whole tiles of keys; the table straightens those stairs, which show most on
    # small devices with large batches.
    assert np.median(np.abs(errors), axis=0).max() < 5e-4
    assert np.quantile(np.abs(errors), 0.9, axis=0).max() < 8e-3
    assert np.abs(np.mean(errors, axis=0)).max() < 1e-3


@pytest.mark.parametrize("name", sorted(DEPLOYMENTS))
def test_steps_with_prefill_are_close_to_the_physics(name):
    physics, costs, longest = deployed(name)
    rng, errors = np.random.default_rng(1), []
    for contexts in random_batches(longest, 60):
        chunks = [(int(rng.integers(1, 2000)), int(rng.integers(0, 500)), bool(rng.integers(2))) for _ in range(3)]
        chunks = chunks[: int(rng.integers(1, 4))]
        keys = [int(rule.decode_keys_now(contexts)) for rule in physics.rules]
        exact = physics.step(Batch(tuple(PrefillChunk(*chunk) for chunk in chunks), contexts))
        new, completes, *found = costs.mixed(len(contexts), keys, [(None, *chunk) for chunk in chunks])
        assert (new, completes) == (sum(c[0] for c in chunks), sum(c[2] for c in chunks))
        errors.append((found[0] / exact.seconds - 1.0, found[1] / exact.joules - 1.0))
    assert np.quantile(np.abs(errors), 0.9, axis=0).max() < 2e-3


def test_prefill_alone_is_the_physics():
    physics, costs, _ = deployed("dense")
    for chunk in (PrefillChunk(1), PrefillChunk(700), PrefillChunk(300, 900, False)):
        exact = physics.step(Batch((chunk,)))
        _, _, *found = costs.mixed(0, [0], [(None, chunk.new_tok, chunk.cached_tok, chunk.completes)])
        assert tuple(found) == pytest.approx((exact.seconds, exact.joules), rel=1e-12)


@pytest.mark.parametrize("queries", [2, 5])
def test_verifying_several_tokens_costs_more_than_one_and_less_than_as_many_steps(queries):
    physics, _, _ = deployed("dense")
    several, contexts = physics.verifying(queries), np.full(16, 1000)
    one, many = physics.step(Batch((), contexts)).seconds, several.step(Batch((), contexts)).seconds
    assert one < many < queries * one
    again = several.price(_rows(several, contexts))
    assert float(again.seconds[0]) == pytest.approx(many, rel=1e-12)


def _rows(physics, contexts):
    from simulator.steps import Steps

    return Steps.from_batches([Batch((), contexts)], physics.rules)
