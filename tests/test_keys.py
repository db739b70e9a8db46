"""Counting of keys and pairs against brute force."""

import numpy as np
import pytest
from deployments import DENSE, HYBRID, LATENT, WINDOWED, model_named
from hypothesis import given
from hypothesis import strategies as st

from simulator.batch import PrefillChunk
from simulator.keys import KeyRule, key_rules, mixer_rule

windows = st.one_of(st.none(), st.integers(1, 300))
contexts = st.lists(st.integers(0, 500), min_size=1, max_size=8)


@given(st.integers(1, 400), st.integers(0, 400), windows)
def test_prefill_pairs_match_counting_one_by_one(new, cached, window):
    pairs, read = KeyRule(window).keys_read(PrefillChunk(new, cached))
    seen = [min(position + 1, window or 10**9) for position in range(cached, cached + new)]
    assert pairs == pytest.approx(sum(seen))
    assert read == min(cached + new, new + (window or 10**9) - 1)


@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 300), st.integers(1, 50))
def test_chunked_attention_matches_counting_one_by_one(new, cached, chunk, steps):
    """Llama 4: a token sees the positions of its own chunk, up to itself."""
    rule = KeyRule(chunk, chunked=True)
    seen = [position % chunk + 1 for position in range(cached, cached + new)]
    assert rule.keys_read(PrefillChunk(new, cached))[0] == pytest.approx(sum(seen))
    found = rule.decode_keys(np.array([cached, new]), steps)
    expected = [(cached + j) % chunk + 1 + (new + j) % chunk + 1 for j in range(steps)]
    assert found.tolist() == expected


@given(contexts, st.integers(1, 60), windows)
def test_decode_keys_match_counting_one_by_one(contexts, steps, window):
    found = KeyRule(window).decode_keys(np.array(contexts), steps)
    expected = [sum(min(c + j + 1, window or 10**9) for c in contexts) for j in range(steps)]
    assert found.tolist() == pytest.approx(expected)


@given(contexts, windows, st.booleans())
def test_the_next_step_is_the_first_of_a_run(contexts, window, chunked):
    rule = KeyRule(window, chunked and window is not None)
    assert rule.decode_keys_now(np.array(contexts)) == rule.decode_keys(np.array(contexts), 1)[0]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 200), windows, st.booleans())
def test_pairs_do_not_depend_on_how_a_prompt_is_cut_into_chunks(first, second, cached, window, chunked):
    rule = KeyRule(window, chunked and window is not None)
    whole = rule.keys_read(PrefillChunk(first + second, cached))[0]
    parts = rule.keys_read(PrefillChunk(first, cached))[0] + rule.keys_read(PrefillChunk(second, cached + first))[0]
    assert whole == parts


@given(contexts, st.integers(1, 60), st.integers(1, 300))
def test_a_window_never_sees_more(contexts, steps, window):
    narrow, wide, all_keys = (KeyRule(w).decode_keys(np.array(contexts), steps) for w in (window, 2 * window, None))
    assert (narrow <= wide).all() and (wide <= all_keys).all()


def test_bidirectional_attention_sees_everything():
    assert KeyRule(causal=False).keys_read(PrefillChunk(10, 5)) == (150.0, 15.0)


def test_rules_of_models():
    assert key_rules(model_named(DENSE)) == key_rules(model_named(LATENT)) == (KeyRule(),)
    assert {rule.window_tok for rule in key_rules(model_named(WINDOWED))} == {None, 1024}
    hybrid = model_named(HYBRID)
    assert key_rules(hybrid) == (KeyRule(),)
    assert sum(mixer_rule(group.mixer) is None for group in hybrid.layers) >= 2  # Mamba and feed-forward layers
