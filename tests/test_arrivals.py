"""Arrival processes and synthetic loads: their laws, their names, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UserError
from simulator.workload.arrivals import (
    Burst,
    Constant,
    Gamma,
    Piecewise,
    Poisson,
    gamma,
    parse_arrivals,
    piecewise,
    poisson,
)
from simulator.workload.lengths import Uniform, parse_lengths
from simulator.workload.loads import SharedPrefix, burst, closed_loop, open_loop, parallel_sampling, static_batch


def rng(seed=0):
    return np.random.default_rng(seed)


# --- laws of the processes --------------------------------------------------------------------------------------------


def test_poisson_has_the_rate_and_exponential_gaps():
    gaps = np.diff(poisson(40.0, 200_000, rng()), prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 40, rel=0.01)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_keeps_the_rate_and_has_the_variation_of_its_burstiness(burstiness):
    gaps = np.diff(gamma(40.0, burstiness, 200_000, rng()), prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 40, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.02)


def test_piecewise_brings_the_expected_requests_in_every_window_and_cycle():
    pieces = ((60.0, 2.0), (30.0, 0.0), (60.0, 10.0))
    times = piecewise(pieces, 72_000, rng())  # 720 requests per cycle of 150 s: 100 cycles
    phase = times % 150.0
    counts = np.histogram(phase, [0.0, 60.0, 90.0, 150.0])[0]
    assert counts[1] == 0
    assert counts[0] == pytest.approx(12_000, abs=4 * 12_000**0.5)
    assert counts[2] == pytest.approx(60_000, abs=4 * 12_000**0.5)
    assert times[-1] == pytest.approx(100 * 150.0, rel=0.02)
    in_last_piece = phase[phase > 90.0]  # uniform inside a piece
    assert in_last_piece.mean() == pytest.approx(120.0, abs=0.3)
    assert in_last_piece.std() == pytest.approx(60.0 / 12**0.5, rel=0.01)


def test_piecewise_counts_of_a_window_scatter_as_poisson_counts_do():
    counts = [np.count_nonzero(piecewise(((10.0, 3.0), (10.0, 1.0)), 60, rng(seed)) < 10.0) for seed in range(2000)]
    assert np.mean(counts) == pytest.approx(30.0, abs=0.5)
    assert np.var(counts) == pytest.approx(30.0, rel=0.15)


def test_piecewise_of_one_rate_is_poisson():
    assert piecewise(((7.0, 40.0),), 1000, rng(3)) == pytest.approx(poisson(40.0, 1000, rng(3)), rel=1e-9)


def test_constant_and_burst_draw_nothing():
    generator = rng()
    assert Constant(4.0).times(3, generator).tolist() == [0.0, 0.25, 0.5]
    assert Burst().times(3, generator).tolist() == [0.0, 0.0, 0.0]
    assert generator.random() == rng().random()


RATES = st.floats(1e-3, 1e5)
PROCESSES = st.one_of(
    st.builds(Poisson, RATES),
    st.builds(Gamma, RATES, st.floats(0.01, 100.0)),
    st.builds(Constant, RATES),
    st.just(Burst()),
    st.lists(st.tuples(st.floats(0.01, 1e4), st.one_of(st.just(0.0), RATES)), min_size=1, max_size=5)
    .filter(lambda pieces: any(rate for _, rate in pieces))
    .map(lambda pieces: Piecewise(tuple(pieces))),
)


@given(PROCESSES, st.integers(1, 300), st.integers(0, 2**32))
def test_times_are_ascending_finite_reproducible(process, n, seed):
    times = process.times(n, rng(seed))
    assert times.shape == (n,)
    assert times[0] >= 0.0
    assert np.isfinite(times).all()
    assert (np.diff(times) >= 0.0).all()
    assert (times == process.times(n, rng(seed))).all()


# --- names ------------------------------------------------------------------------------------------------------------


@given(PROCESSES)
def test_the_name_of_a_process_is_read_back(process):
    again = parse_arrivals(str(process))
    assert str(again) == str(process)
    assert again.times(5, rng()) == pytest.approx(process.times(5, rng()), rel=1e-9)


def test_names():
    assert parse_arrivals("40") == parse_arrivals(40) == parse_arrivals("poisson:40") == Poisson(40.0)
    assert parse_arrivals("gamma:40:0.5") == Gamma(40.0, 0.5)
    assert parse_arrivals("constant:40") == Constant(40.0)
    assert parse_arrivals(" piecewise:60x2,60x10 ") == Piecewise(((60.0, 2.0), (60.0, 10.0)))
    assert parse_arrivals("burst") == parse_arrivals("inf") == Burst()
    assert parse_arrivals(Burst()) == Burst()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected RATE"),
        (None, "expected RATE"),
        ("fast", "arrivals 'fast'; expected RATE"),
        ("gamma:40", "found '40'"),
        ("gamma:40:x", "found '40:x'"),
        ("gamma:40:0", "burstiness must be"),
        ("0", "rate in requests per second must be"),
        ("-3", "got -3"),
        ("nan", "got nan"),
        ("constant:inf", "got inf"),
        ("piecewise:", "found ''"),
        ("piecewise:60", "found '60'"),
        ("piecewise:60x2,", "found ''"),
        ("piecewise:60x0,10x0", "rate is 0 in every piece"),
        ("piecewise:0x5", "duration of a piece must be above 0 s"),
        ("piecewise:infx5", "duration of a piece"),
        ("piecewise:5x-1", "got -1"),
        ("piecewise:5xnan", "got nan"),
    ],
)
def test_bad_names_are_refused_in_one_sentence(text, said):
    with pytest.raises(UserError) as error:
        parse_arrivals(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# --- loads ------------------------------------------------------------------------------------------------------------


def test_each_load_is_what_its_name_says():
    batch = static_batch(8, 100, "uniform:5:9", rng())
    assert len(batch) == 8
    assert not batch.arrival_s.any()
    assert set(batch.prompt_tok) == {100}
    assert set(batch.output_tok) <= {5, 6, 7, 8, 9}
    assert len(burst(30, 10, 10, rng())) == 30
    closed = closed_loop(4, 30, 10, 10, rng())
    assert closed.clients == 4
    assert closed.arrival_s is None
    assert len(closed) == 30
    opened = open_loop("constant:2", 5, 10, 10, rng())
    assert opened.arrival_s.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert opened.title == "5 requests, evenly spaced at 2/s"


def test_samples_share_the_whole_prompt():
    samples = parallel_sampling(4, "uniform:100:200", "uniform:5:500", rng())
    length = samples.prompt_tok[0]
    assert set(samples.prompt_tok) == {length}
    assert set(samples.shared_prefix) == {(("prompt", length),)}
    assert len(set(samples.output_tok.tolist())) > 1
    assert not samples.arrival_s.any()


def test_a_shared_prefix_is_added_in_front_and_groups_are_drawn_evenly():
    traffic = burst(4000, SharedPrefix(100, 32, groups=4), 10, rng())
    assert set(traffic.prompt_tok) == {132}
    groups = [parts[0][0][1] for parts in traffic.shared_prefix]
    assert all(parts[0][1] == 32 and len(parts) == 1 for parts in traffic.shared_prefix)
    assert np.bincount(groups) == pytest.approx([1000] * 4, rel=0.1)
    assert burst(3, 100, 10, rng()).shared_prefix is None


def test_the_same_seed_gives_the_same_prompts_whatever_the_rate_and_the_answers():
    prompts = SharedPrefix("uniform:1:1000", 7, groups=3)
    slow = open_loop(1, 50, prompts, "uniform:1:9", rng(5))
    fast = open_loop("gamma:9:0.5", 50, prompts, 4, rng(5))
    assert (slow.prompt_tok == fast.prompt_tok).all()
    assert slow.shared_prefix == fast.shared_prefix
    doubled = open_loop(2, 50, "uniform:1:1000", 4, rng(5))
    assert doubled.arrival_s == pytest.approx(slow.arrival_s / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: static_batch(0, 10, 10, rng()), "batch must be a whole number from 1"),
        (lambda: burst(2.5, 10, 10, rng()), "got 2.5"),
        (lambda: burst(10**12, 10, 10, rng()), "number of requests"),
        (lambda: closed_loop(-1, 5, 10, 10, rng()), "concurrency must be"),
        (lambda: open_loop("nope", 5, 10, 10, rng()), "arrivals 'nope'"),
        (lambda: parallel_sampling(0, 10, 10, rng()), "number of samples"),
        (lambda: burst(5, SharedPrefix(10, -1), 10, rng()), "shared prefix"),
        (lambda: burst(5, SharedPrefix(10, 5, groups=0), 10, rng()), "number of prefix groups"),
    ],
)
def test_bad_loads_are_refused(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_lengths_below_a_maximum_as_inferencex_draws_them():
    assert parse_lengths("ratio:1024:0.8") == Uniform.below(1024, 0.8) == Uniform(819, 1024)
    assert parse_lengths("ratio:1024:1") == Uniform(1024, 1024)
    assert parse_lengths("ratio:1:0") == Uniform(1, 1)
    for text in ("ratio:1024", "ratio:1024:1.2", "ratio:10.5:0.5", "ratio:0:0.5", "ratio:100:-1", "ratio:100:nan"):
        with pytest.raises(UserError):
            parse_lengths(text)
