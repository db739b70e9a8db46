"""Length distributions: what they draw, the strings that name them, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UserError
from simulator.workload.lengths import Empirical, Fixed, LogNormal, Uniform, parse_lengths


def rng(seed=0):
    return np.random.default_rng(seed)


def test_lognormal_keeps_the_mean_and_has_the_stated_spread():
    for sigma in (0.2, 0.5, 1.0):
        drawn = LogNormal(4096, sigma).sample(rng(), 400_000)
        assert drawn.mean() == pytest.approx(4096, rel=0.01)
        assert np.log(drawn).std() == pytest.approx(sigma, rel=0.01)


def test_uniform_reaches_both_ends_and_centres_between_them():
    drawn = Uniform(3, 6).sample(rng(), 10_000)
    assert set(drawn.tolist()) == {3, 4, 5, 6}
    assert drawn.mean() == pytest.approx(4.5, abs=0.05)
    assert Uniform.around(1000, 0.25) == Uniform(750, 1250)


def test_empirical_draws_only_what_was_measured_in_its_proportions():
    drawn = Empirical((5, 5, 5, 9)).sample(rng(), 20_000)
    assert set(drawn.tolist()) == {5, 9}
    assert (drawn == 5).mean() == pytest.approx(0.75, abs=0.02)


def test_sum_and_truncation():
    total = (Fixed(100) + Uniform(1, 50)).at_most(120)
    drawn = total.sample(rng(), 2000)
    assert drawn.max() == 120
    assert drawn.min() == 101
    assert (drawn == 120).mean() == pytest.approx(31 / 50, abs=0.05)


def test_fixed_consumes_no_random_numbers():
    a, b = rng(7), rng(7)
    Fixed(10).sample(a, 5)
    assert a.random() == b.random()


@given(
    st.one_of(
        st.integers(1, 10**6).map(str),
        st.tuples(st.integers(1, 500), st.integers(500, 9000)).map(lambda r: f"uniform:{r[0]}:{r[1]}"),
        st.tuples(st.integers(1, 9000), st.sampled_from(["0", "0.25", "2"])).map(lambda r: f"lognormal:{r[0]}:{r[1]}"),
    ),
    st.integers(0, 2**32),
)
def test_every_parsed_length_is_at_least_one_reproducible_and_printable(text, seed):
    lengths = parse_lengths(text)
    drawn = lengths.sample(rng(seed), 50)
    assert drawn.shape == (50,)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 1
    assert str(lengths) == text
    assert (parse_lengths(str(lengths)).sample(rng(seed), 50) == drawn).all()


def test_files(tmp_path):
    plain = tmp_path / "lengths.txt"
    plain.write_text("12\n\n30\n7\n")
    table = tmp_path / "trace.csv"
    table.write_text("prompt_tok,output_tok\n100,20\n200,40\n")
    one = tmp_path / "one.csv"
    one.write_text("tokens\n8\n9\n")
    assert parse_lengths(str(plain)).tokens == (12, 30, 7)
    assert parse_lengths(f"file:{plain}").tokens == (12, 30, 7)
    assert parse_lengths(f"file:{table}:output_tok").tokens == (20, 40)
    assert parse_lengths(str(one)).tokens == (8, 9)
    column = parse_lengths(f"file:{table}:prompt_tok")
    assert parse_lengths(str(column)) == column


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "from 1 to 100,000,000, got 0"),
        ("-5", "from 1 to 100,000,000, got -5"),
        ("many", "neither a number nor a file"),
        ("1.5", "neither a number nor a file"),
        ("", "expected a whole number"),
        (None, "expected a whole number"),
        (True, "expected a whole number"),
        ("uniform:10", "uniform:LOW:HIGH"),
        ("uniform:10:x", "uniform:LOW:HIGH"),
        ("uniform:20:10", "low end 20 is above the high end 10"),
        ("uniform:0:10", "low end of a uniform length must be"),
        ("uniform:1.5:10", "1.5 is not a whole number"),
        ("lognormal:4096", "lognormal:MEAN:SIGMA"),
        ("lognormal:0:0.5", "mean must be from 1"),
        ("lognormal:100:-1", "sigma must be from 0"),
        ("lognormal:nan:1", "lognormal:MEAN:SIGMA"),
        ("file:nowhere.txt", "'nowhere.txt' does not exist"),
        ("nowhere.csv", "'nowhere.csv' does not exist"),
    ],
)
def test_bad_text_is_one_sentence(text, expected):
    with pytest.raises(UserError, match=expected) as caught:
        parse_lengths(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "suffix", "expected"),
    [
        ("12\n-3\n", "", "row 2: found '-3', expected a whole number >= 1"),
        ("12\n0\n", "", "row 2: found '0'"),
        ("tokens\n4.5\n", "", "row 2: found '4.5'"),
        ("a,b\n1,2\n", "", "2 columns: name one"),
        ("a,b\n1,2\n", ":c", "no column 'c'; its columns: a, b"),
        ("a,b\n1,2\n3\n", ":b", "row 3: found ''"),
        ("", "", "no numbers found"),
        ("tokens\n", "", "no numbers found"),
    ],
)
def test_bad_files_name_file_row_and_expectation(tmp_path, content, suffix, expected):
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=expected) as caught:
        parse_lengths(f"file:{path}{suffix}")
    assert "bad.csv" in str(caught.value)


@pytest.mark.parametrize("text", ["9223372036854775807", "uniform:1:1e30", "lognormal:1e300:1", "lognormal:100:9"])
def test_lengths_that_no_context_holds_are_refused(text):
    with pytest.raises(UserError):
        parse_lengths(text)


@pytest.mark.parametrize("text", ["17", "uniform:3:900", "lognormal:300:0.8", "ratio:800:0.4"])
def test_one_draw_is_the_first_of_a_sample(text):
    for lengths in (parse_lengths(text), (parse_lengths(text) + parse_lengths("lognormal:50:1")).at_most(500)):
        for seed in range(50):
            one, many = np.random.default_rng(seed), np.random.default_rng(seed)
            assert lengths.draw(one) == lengths.sample(many, 1)[0]
            assert one.random() == many.random()
