"""Distributions of seconds: what they draw, the strings that name them, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UserError
from simulator.workload.lengths import LogNormal
from simulator.workload.seconds import (
    MAX_S,
    ExponentialSeconds,
    FixedSeconds,
    LogNormalSeconds,
    Seconds,
    UniformSeconds,
    parse_seconds,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_means_and_spreads():
    exponential = ExponentialSeconds(2.5).sample(rng(), 400_000)
    assert exponential.mean() == pytest.approx(2.5, rel=0.01) == exponential.std()
    uniform = UniformSeconds(0.5, 2.0).sample(rng(), 100_000)
    assert uniform.mean() == pytest.approx(1.25, rel=0.01)
    assert 0.5 <= uniform.min() < 0.51 and 1.99 < uniform.max() <= 2.0
    for sigma in (0.0, 0.5, 1.0):
        lognormal = LogNormalSeconds(0.3, sigma).sample(rng(), 400_000)
        assert lognormal.mean() == pytest.approx(0.3, rel=0.01)
        assert np.log(lognormal).std() == pytest.approx(sigma, rel=0.01, abs=1e-9)


def test_lognormal_means_the_same_as_for_lengths():
    assert LogNormalSeconds(4e6, 0.5).sample(rng(), 9) == pytest.approx(LogNormal(4e6, 0.5).sample(rng(), 9), rel=1e-6)


def test_fixed_consumes_no_random_numbers():
    a, b = rng(7), rng(7)
    assert FixedSeconds(1.5).draw(a) == 1.5
    assert a.random() == b.random()


amounts = st.floats(0.0, MAX_S)


@given(
    st.one_of(
        st.builds(FixedSeconds, amounts),
        st.builds(ExponentialSeconds, amounts),
        st.builds(LogNormalSeconds, amounts, st.floats(0.0, 5.0)),
        st.tuples(amounts, amounts).map(lambda ends: UniformSeconds(min(ends), max(ends))),
    ),
    st.integers(0, 2**32),
)
def test_every_distribution_is_printable_reproducible_and_within_bounds(seconds, seed):
    again = parse_seconds(str(seconds))
    assert again == seconds
    drawn = again.sample(rng(seed), 20)
    assert ((drawn >= 0.0) & (drawn <= MAX_S)).all()
    assert drawn.tolist() == seconds.sample(rng(seed), 20).tolist()
    assert isinstance(seconds.draw(rng(seed)), float)
    assert seconds.draw(rng(seed)) == drawn[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5", FixedSeconds(1.5)),
        (" 0 ", FixedSeconds(0)),
        ("1e3", FixedSeconds(1000)),
        ("fixed:2", FixedSeconds(2)),
        (2, FixedSeconds(2.0)),
        (0.25, FixedSeconds(0.25)),
        (np.float64(3), FixedSeconds(3)),
        ("uniform:0.5:2", UniformSeconds(0.5, 2)),
        ("lognormal:3:0.5", LogNormalSeconds(3, 0.5)),
        ("exponential:2", ExponentialSeconds(2)),
        (ExponentialSeconds(2), ExponentialSeconds(2)),
    ],
)
def test_names(text, expected):
    assert parse_seconds(text) == expected
    assert isinstance(parse_seconds(text), Seconds)


def test_whole_numbers_are_printed_without_a_point():
    assert [str(parse_seconds(text)) for text in ("2.0", "uniform:1.0:2.50", 0.1)] == ["2", "uniform:1:2.5", "0.1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("soon", "wait 'soon': expected a number of seconds, uniform:LOW:HIGH, lognormal:MEAN:SIGMA or"),
        ("", "expected a number of seconds"),
        (None, "expected a number of seconds"),
        (True, "expected a number of seconds"),
        ([1], "expected a number of seconds"),
        ("ratio:5:0.1", "wait 'ratio:5:0.1': expected a number of seconds"),
        ("uniform:1", "wait 'uniform:1': expected uniform:LOW:HIGH with numbers"),
        ("uniform:a:b", "expected uniform:LOW:HIGH with numbers"),
        ("uniform:", "expected uniform:LOW:HIGH with numbers"),
        ("lognormal:3", "expected lognormal:MEAN:SIGMA with numbers"),
        ("exponential:1:2", "expected exponential:MEAN with numbers"),
        ("uniform:3:1", "the low end 3 s is above the high end 1 s"),
        ("-1", "the length must be a number from 0 to 10,000,000 s, got -1.0"),
        ("nan", "from 0 to 10,000,000 s, got nan"),
        ("exponential:inf", "exponential wait: the mean must be a number from 0 to 10,000,000 s, got inf"),
        ("lognormal:1:9", "lognormal wait: the sigma must be a number from 0 to 5, got 9.0"),
    ],
)
def test_mistakes_are_one_sentence(text, expected):
    with pytest.raises(UserError) as caught:
        parse_seconds(text)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
