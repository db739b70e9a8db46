"""Statistics of errors: laws, textbook values, and the boundaries of what they may say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from validate.statistics import (
    DRAWS,
    Interval,
    clopper_pearson,
    correlations,
    counted_quantiles,
    equivalence,
    error_budget,
    error_intervals,
    margin_of,
    quantile_supported,
    regret,
    requests_needed,
    resampled_counts,
    signal_to_noise,
    trend,
)

ratios = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30)


def rng():
    return np.random.default_rng(7)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_every_draw_takes_as_many_groups_as_there_are_and_whole_groups_by_size(groups):
    counts = resampled_counts(groups, rng(), draws=50)
    assert counts.shape == (50, len(groups))
    sizes = {name: groups.count(name) for name in groups}
    for draw in counts:
        times = {name: sum(c for c, g in zip(draw, groups) if g == name) / size for name, size in sizes.items()}
        assert all(time == int(time) for time in times.values())  # a group comes as a whole
        assert sum(times.values()) == len(sizes)


@given(ratios, st.floats(0.0, 1.0))
def test_quantile_of_counted_values_is_that_of_the_repeated_values(values, q):
    values = np.array(values)
    counts = resampled_counts([0] * len(values), rng(), draws=20)
    expected = [np.quantile(np.repeat(values, draw), q) for draw in counts]
    assert np.allclose(counted_quantiles(values, counts, [q])[0], expected)


@given(ratios)
def test_point_values_are_the_plain_statistics_and_lie_in_order(values):
    found = error_intervals(values, range(len(values)), rng(), draws=100)
    error = np.array(values) - 1.0
    assert found.bias.value == pytest.approx(error.mean())
    assert found.mape.value == pytest.approx(np.abs(error).mean())
    assert found.p90.value == pytest.approx(np.percentile(np.abs(error), 90))
    assert found.ratio.value == pytest.approx(np.exp(np.log(values).mean()))
    assert found.mape.value >= abs(found.bias.value) - 1e-12
    for interval in (found.bias, found.mape, found.median, found.p90, found.ratio):
        assert math.isnan(interval.low) if len(values) == 1 else interval.low <= interval.high


def test_one_group_agrees_with_the_bootstrap_of_scipy():
    values = np.exp(np.random.default_rng(1).normal(0.05, 0.1, 60))
    ours = error_intervals(values, [0] * 60, rng())
    theirs = bootstrap(
        (values - 1.0,), np.mean, n_resamples=DRAWS, confidence_level=0.9, method="percentile", random_state=rng()
    ).confidence_interval  # fmt: skip
    assert ours.bias.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.bias.high == pytest.approx(theirs.high, abs=0.004)


def test_runs_that_share_an_error_widen_the_interval():
    shared = np.repeat([0.9, 1.0, 1.1, 1.2], 25)  # four models, each off by its own constant
    apart = error_intervals(shared, range(100), rng()).ratio
    together = error_intervals(shared, np.repeat(range(4), 25), rng()).ratio
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_same_generator_same_interval():
    assert error_intervals([1.0, 1.1, 0.8], "aab", rng()) == error_intervals([1.0, 1.1, 0.8], "aab", rng())


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.95, 1.05, "pass"), (1 / 1.1, 1.1, "pass"), (0.95, 1.11, "inconclusive"), (0.5, 2.0, "inconclusive"),
        (1.11, 1.3, "fail"), (0.5, 0.9, "fail"), (math.nan, math.nan, "inconclusive"),
    ],
)  # fmt: skip
def test_equivalence_has_three_values(low, high, verdict):
    assert equivalence(Interval(1.0, low, high), 0.10) == verdict


@given(st.floats(0.2, 5.0), st.floats(1.0, 3.0), st.floats(0.01, 0.5))
def test_equivalence_does_not_care_which_side_is_divided_by_which(low, width, margin):
    high = low * width
    assert equivalence(Interval(1.0, low, high), margin) == equivalence(Interval(1.0, 1 / high, 1 / low), margin)


def test_margins_are_those_that_were_fixed():
    named = ("tpot_s_mean", "itl_s_p99", "ttft_s_median", "energy_j_per_output_tok", "e2e_s_mean")
    assert [margin_of(name) for name in named] == [0.10, 0.10, 0.15, 0.10, 0.10]


def test_clopper_pearson_of_no_hit_is_the_rule_of_three():
    found = clopper_pearson(0, 100)
    assert found.value == 0.0 and found.low == 0.0
    assert found.high == pytest.approx(1.0 - 0.025 ** (1 / 100))


@pytest.mark.parametrize("bad", [(1, 0), (3, 2), (-1, 5)])
def test_clopper_pearson_refuses_what_is_no_share(bad):
    with pytest.raises(ValueError):
        clopper_pearson(*bad)


def test_a_99th_percentile_needs_459_requests():
    assert requests_needed() == 459
    assert 0.99**459 <= 0.01 < 0.99**458
    assert requests_needed(over=1) == 662  # MLPerf's early stopping, one over
    assert quantile_supported(459) and not quantile_supported(458) and not quantile_supported(None)


@given(st.floats(0.5, 0.99), st.floats(0.5, 0.99), st.integers(0, 5))
def test_requests_needed_is_the_smallest_number(quantile, confidence, over):
    from scipy.stats import binom

    n = requests_needed(quantile, confidence, over)
    assert n > over and binom.cdf(over, n, 1 - quantile) <= 1 - confidence
    assert n == over + 1 or binom.cdf(over, n - 1, 1 - quantile) > 1 - confidence


def test_correlation_says_little_over_decades_and_nothing_of_a_constant():
    measured = np.geomspace(1.0, 1000.0, 12)
    found = correlations(measured * np.tile([0.5, 1.5], 6), measured)  # off by half everywhere
    assert found.spearman > 0.85 and found.kendall < found.spearman
    assert math.isnan(correlations([1, 1, 1], [1, 2, 3]).pearson)
    assert math.isnan(correlations([1, 2], [1, 2]).kendall)


def test_regret_is_what_the_pick_costs():
    assert regret([1.0, 2.0, 3.0], [10.0, 11.0, 12.0]) == 0.0
    assert regret([2.0, 1.0], [10.0, 12.0]) == pytest.approx(0.2)
    assert regret([2.0, 1.0], [10.0, 12.0], smaller_is_better=False) == pytest.approx(0.2)


def test_signal_over_noise():
    assert signal_to_noise([9.0, 11.0], 0.04) == pytest.approx(5.0)
    assert signal_to_noise([9.0, 11.0], 0.0) == math.inf
    assert signal_to_noise([9.0, 9.0], 0.0) == 0.0


def test_a_budget_is_a_root_sum_of_squares_and_power_goes_through_a_sensor():
    assert error_budget("tpot_s_mean", 0.03).total == pytest.approx(0.03)
    assert error_budget("power_w", 0.03, client=0.04).total == pytest.approx(math.sqrt(0.05**2 + 0.03**2 + 0.04**2))


@given(st.floats(-2.0, 2.0), st.lists(st.floats(-5.0, 5.0), min_size=2, max_size=4))
def test_a_trend_ignores_what_lies_between_groups(slope, levels):
    x = np.tile(np.arange(6.0), len(levels))
    groups = np.repeat(range(len(levels)), 6)
    found = trend(x, slope * x + np.array(levels)[groups], groups.tolist())
    assert found.slope == pytest.approx(slope, abs=1e-9)
    if abs(slope) > 1e-6:
        assert found.tau == np.sign(slope) and found.p < 0.01


def test_no_trend_in_noise_and_none_without_pairs():
    noise = np.random.default_rng(3).normal(size=200)
    assert trend(np.tile(range(10), 20), noise, np.repeat(range(20), 10).tolist()).p > 0.05
    assert trend([1.0, 2.0], [1.0, 2.0], ["a", "b"]).pairs == 0
    assert trend([1.0, 1.0], [1.0, 2.0], ["a", "a"]).pairs == 0
