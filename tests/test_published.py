"""The library of strategies against published figures; and the harness that says so, against made-up ones."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean

import msgspec
import numpy as np
import pytest

from calibration.vendored import DIRECTORY
from simulator.scenario import Scenario, simulate_scenario
from simulator.strategies import list_strategies
from simulator.strategies.diffusion import certain_passes
from validate import published
from validate.commands.comparison_section import merged, notes, summed
from validate.commands.strategies_page import listed_papers, strategies_page
from validate.published import Paper, compare_papers, fast_dllm, paper_modules, scale
from validate.published.comparison import EXPLAINED, KINDS, MISSED, Comparison
from validate.published.expected import Unmasking
from validate.published.numbers import all_numbers, number, numbers
from validate.published.report import errors, figure, headlines, simulated, text, to_json

FOLDER = Path(published.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "strategies.md"
SLOW = frozenset()  # papers that take more than ten seconds

NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in paper_modules()]


@cache
def compared(name: str) -> Paper:
    """The paper's comparisons, flown once."""
    (paper,) = compare_papers([name])
    return paper


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_is_missed_without_an_explanation(name):
    paper = compared(name)
    explained = [line(c) for c in paper.comparisons if c.verdict == EXPLAINED]
    print(text([paper]), f"explained misses: {len(explained)}", *explained, sep="\n")
    assert not [line(c) for c in paper.comparisons if c.verdict == MISSED]


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_that_is_met_is_explained_as_missed(name):
    assert not [line(c) for c in compared(name).comparisons if c.stale]


@pytest.mark.parametrize("name", NAMES)
def test_figures_without_a_verdict_say_why(name):
    found = compared(name).comparisons
    silent = [line(c) for c in found if not c.judged and c.status != "secondary" and not c.reason]
    assert not silent
    assert not [line(c) for c in found if c.simulated is None and not c.reason]
    assert not [line(c) for c in found if not c.source or (c.simulated is not None and not c.setup)]


@pytest.mark.parametrize("name", NAMES)
def test_figures_stand_in_the_data_of_their_paper(name):
    unknown = [c for c in compared(name).comparisons if c.status != "derived" and not stands_in_data(name, c)]
    assert not [f"{line(c)}, {c.status}, {c.source}" for c in unknown]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_told_apart(name):
    quantities = [(c.strategy, c.quantity) for c in compared(name).comparisons]
    assert len(set(quantities)) == len(quantities)


def line(c: Comparison) -> str:
    return f"{c.quantity}: published {c.published} {c.unit}, simulated {c.simulated}, tolerance {c.tolerance}"


def stands_in_data(name: str, c: Comparison) -> bool:
    """Whether a row of the same paper and status has this figure; measured runs are of the paper they are named for."""
    paper = papers_in(c.source)
    texts = [row.text for row in all_numbers() if row.status == c.status and paper & papers_in(row.source, row.url)]
    if c.source.endswith(f"runs/{name}.csv"):
        texts.append((DIRECTORY / f"{name}.csv").read_text(encoding="utf-8"))
    found = {float(number) for entry in texts for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", entry)}
    return any(math.isclose(c.published, value, rel_tol=1e-9) for value in found)


def papers_in(*texts: str) -> set[str]:
    """What identifies a paper in a source or an address: arXiv numbers, repositories, sites of projects."""
    patterns = (r"\d{4}\.\d{5}", r"(?:github:|github\.com/)([\w-]+/[\w-]+)", r"[\w-]+\.github\.io")
    return {found for entry in texts for pattern in patterns for found in re.findall(pattern, entry)}


def test_another_papers_figure_is_not_enough():
    figure = made_up(published=142.21, source="arXiv:2512.07843, Table 4", simulated=None, tolerance=None, reason="x")
    assert stands_in_data("made_up", figure)
    assert not stands_in_data("made_up", replace(figure, source="arXiv:2505.22618, Table 4"))
    assert not stands_in_data("made_up", replace(figure, status="secondary"))


# The data


def test_numbers_are_rows_of_the_file():
    with open(FOLDER / "numbers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(all_numbers()) == len(rows)
    for row, found in zip(rows, all_numbers(), strict=True):
        assert found.text == row["value"] and found.status in ("verbatim", "derived", "secondary")
        assert row["source"] and row["strategy"] and row["metric"] and row["unit"] and row["url"].startswith("https://")


def test_a_number_is_found_by_its_columns():
    found = number(strategy="ThreadWeaver", metric="total generated tokens", config="AIME24")
    assert (found.value, found.unit, found.status) == (21100.0, "tokens", "verbatim")
    assert len(numbers(strategy="ThreadWeaver", metric="total generated tokens")) == 6


def test_ranges_and_bounds_stay_text():
    found = number(strategy="ParaThinker", metric="latency ratio")
    assert math.isnan(found.value) and found.text == "<2"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"strategy": "ThreadWeaver", "metric": "taste"}, "no published figure with .*ThreadWeaver.*taste"),
        ({"strategy": "ThreadWeaver", "metric": "total generated tokens"}, "^.?6 published figures"),
        ({"strategy": "ThreadWeaver", "flavour": "x"}, "no column 'flavour'"),
    ],
)
def test_a_number_that_is_not_one_is_refused(columns, message):
    with pytest.raises(KeyError, match=message):
        number(**columns)


def test_every_listed_paper_has_its_place():
    listed = listed_papers()
    library = {strategy.name for strategy in list_strategies()}
    assert len(listed) == 38
    assert len({paper.source for paper in listed}) == 38
    assert not [(p.title, name) for p in listed for name in p.strategies if name not in library]
    assert not [p.title for p in listed if not p.strategies and not p.remark]


# The harness


def made_up(**changes) -> Comparison:
    return Comparison(
        **{"strategy": "single", "quantity": "length", "unit": "tok", "published": 100.0, "simulated": 104.0}
        | {"tolerance": 0.05, "source": "a table", "setup": "one call"}
        | changes
    )


@pytest.mark.parametrize(
    ("relation", "simulated", "tolerance", "met"),
    [
        ("equals", 104.0, 0.05, True),
        ("equals", 106.0, 0.05, False),
        ("equals", 94.0, 0.05, False),
        ("equals", 100.0, 0.0, True),
        ("at most", 50.0, 0.0, True),
        ("at most", 100.0, 0.0, True),
        ("at most", 101.0, 0.0, False),
        ("at most", 101.0, 0.02, True),
        ("at least", 500.0, 0.0, True),
        ("at least", 99.0, 0.0, False),
        ("at least", 99.0, 0.02, True),
    ],
)
def test_what_is_met_and_what_is_missed(relation, simulated, tolerance, met):
    found = made_up(relation=relation, simulated=simulated, tolerance=tolerance)
    assert found.met is met and found.verdict == ("met" if met else "missed")
    assert found.error == pytest.approx(simulated / 100.0 - 1.0)


def test_negative_and_zero_figures_are_judged_by_their_size():
    assert made_up(published=-10.0, simulated=-10.4).met and not made_up(published=-10.0, simulated=-11.0).met
    zero = made_up(published=0.0, simulated=0.0)
    assert zero.met and zero.error is None
    assert not made_up(published=0.0, simulated=0.1).met


def test_secondary_figures_and_those_without_tolerance_are_never_judged():
    secondary = made_up(status="secondary", simulated=900.0)
    assert (secondary.met, secondary.within, secondary.verdict) == (None, False, "reported")
    assert made_up(tolerance=None, reason="x").verdict == "reported"
    nothing = made_up(simulated=None, tolerance=None, reason="lengths unknown")
    assert (nothing.met, nothing.error, nothing.verdict) == (None, None, "not reproduced")


def test_a_miss_is_explained_or_not_and_an_explanation_of_none_is_stale():
    assert made_up(simulated=200.0).verdict == MISSED
    explained = made_up(simulated=200.0, known_miss="too slow")
    assert explained.verdict == EXPLAINED and not explained.stale and explained.met is False
    assert made_up(known_miss="too slow").stale and made_up(known_miss="too slow").verdict == "met"


@pytest.mark.parametrize(
    "changes",
    [
        {"relation": "about"},
        {"status": "hearsay"},
        {"kind": "guess"},
        {"known_miss": "x", "tolerance": None},
        {"known_miss": "x", "status": "secondary"},
        {"published": math.nan},
        {"simulated": math.inf},
        {"simulated": None},
        {"tolerance": -0.1},
        {"tolerance": math.nan},
        {"assumed": "one sentence, not a tuple"},
    ],
)
def test_comparisons_that_cannot_be_judged_are_refused(changes):
    with pytest.raises(ValueError, match="comparison 'single: length'"):
        made_up(**changes)


def test_statistics_by_hand():
    found = errors(
        [made_up(simulated=110.0), made_up(simulated=98.0), made_up(simulated=100.0), made_up(relation="at most")]
    )
    assert (found.n, found.bias, found.median) == (3, pytest.approx(0.08 / 3), pytest.approx(0.02))
    assert found.p90 == pytest.approx(0.084)
    assert errors([]) is None


def test_headlines_count_verdicts_by_kind_and_take_no_median_over_kinds():
    comparisons = [
        made_up(),
        made_up(simulated=200.0, known_miss="x"),
        made_up(simulated=101.0, kind="fitted"),
        made_up(simulated=300.0, kind="fitted"),
        made_up(status="secondary"),
        made_up(simulated=None, tolerance=None),
    ]
    assert headlines(comparisons) == [
        "prediction: 2 figures with a target: 1 met, 1 missed (explained); bias +52.0 %, median error 52.0 %, "
        "p90 90.4 %",
        "fitted: 2 figures with a target: 1 met, 0 missed (explained), 1 missed; bias +100.5 %, median error 100.5 %, "
        "p90 180.1 %",
        "1 reported without a verdict, 1 not reproduced",
    ]
    assert headlines([]) == ["no figure with a target"]


def test_means_over_draws_have_two_digits_and_their_error():
    assert simulated(made_up(simulated=23.456, spread=2.34)) == "23 ± 2"


@pytest.mark.parametrize(("answer_tok", "rate", "least"), [(186, 2.3, 2), (186, 2.42, 1), (256, 8.5, 1), (20, 3.0, 2)])
def test_expected_seconds_are_those_of_many_draws(answer_tok, rate, least):
    rng, gen_tok, block_tok = np.random.default_rng(0), 256, 32
    costs = np.linspace(2.0, 1.0, gen_tok // block_tok)  # of a pass of each block

    def seconds(answer: int, tokens_per_pass: float) -> float:
        return 3.0 + float(costs @ certain_passes(rng, answer, gen_tok, block_tok, tokens_per_pass, least))

    drawn = mean(seconds(answer_tok, rate) for _ in range(3000))
    assert Unmasking(answer_tok, block_tok, rate, least).mean(seconds) == pytest.approx(drawn, rel=0.01)


def test_expected_tokens_of_scale_are_those_of_many_flights():
    lengths = scale.Lengths(100.0, 300.0)
    parameters = {"subproblems": 5.4, "hard_share": 0.6, "solution_tok": 100, "thinking_tok": 300, "outlines": 1}
    asked = Scenario(
        gpu="h100-sxm", model="Qwen/Qwen3-8B", strategy="scale", strategy_parameters=parameters, repetitions=400
    )
    flown = mean(
        sum(call.output_tok for call in flight.calls if call.label == "solve")
        for flight in simulate_scenario(asked).flights
    )
    assert scale.expected_tok(5.4, 0.6, lengths) == pytest.approx(flown, rel=0.03)


def test_defaults_of_strategies_are_the_figures_of_the_data():
    defaults = {s.name: {p.name: p.default for p in s.parameters} for s in list_strategies()}
    table_8 = {"strategy": "ThreadWeaver", "config": "self-trained trajectories"}
    stated = {
        ("threadweaver", "blocks"): number(**table_8, metric="parallel blocks").value,
        ("threadweaver", "threads"): number(**table_8, metric="threads per block").value,
        ("threadweaver", "block_share"): number(**table_8, metric="share of tokens inside blocks").value,
        ("threadweaver", "block_users"): number(metric="answers that use parallel blocks").value / 100.0,
        ("deepprune", "same_answer"): number(metric="pairs of traces with the same answer").value / 100.0,
        ("deepprune", "auroc"): number(metric="AUROC of the judge").value,
        ("fast_dllm", "tokens_per_pass"): number(strategy=fast_dllm.TABLE_1[3], metric="tokens per step").value,
        ("parallel_search", "split_rate"): number(metric="questions that are split").value / 100.0,
    }
    assert {key: defaults[key[0]][key[1]] for key in stated} == pytest.approx(stated)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (162.34, "162.3"), (19400.0, "19,400"), (3.62e8, "362 M"), (0.0, "0"), (2.0, "2")]
)
def test_figures_are_short(value, shown):
    assert figure(value) == shown


# The page


def test_the_page_is_the_same_twice_and_holds_every_figure():
    rows = tuple(made_up(quantity=f"length, set {i}", simulated=100.0 + i) for i in range(20))
    paper = Paper("made_up", "A | made-up paper (arXiv:2512.07843)", "Two sentences. Really.", rows)
    page = strategies_page([paper])
    assert page == strategies_page([paper])
    assert "All 20 figures" in page and all(f"| {i + 1} | length, set {i} |" in page for i in range(20))
    assert "[arXiv:2512.07843](https://arxiv.org/abs/2512.07843)" in page
    assert "**14 missed**" in page and "median 9.5 %, worst +19.0 %" in page


def test_remarks_that_differ_in_numbers_are_one():
    assert merged(["n=1, k=4.5 of 3", "n=2, k=4.5 of 3"]) == "n=1 / 2, k=4.5 of 3"
    long = [made_up(quantity=f"q{i}", setup=f"n={i}") for i in range(12)]
    found = notes("Flown", long, lambda c: (c.setup,))
    assert "n=0 / 1 / 2 / 3 / 4 / 5 / ... / 11" in found.partition("<details>")[0]
    assert "n=0 / 1 / 2 / 3 / 4 / 5 / 6 / 7 / 8 / 9 / 10 / 11" in found.partition("<details>")[2]
    rows = [made_up(quantity=f"q{i}", setup=f"--samples {2**i}", assumed=("all",) * (i < 3)) for i in range(5)]
    assert notes("Flown", rows, lambda c: (c.setup,)) == "Flown:\n\n* --samples 1 / 2 / 4 / 8 / 16"
    assert notes("Assumed", rows, lambda c: c.assumed) == "Assumed:\n\n* all (1-3)"


def test_figures_of_a_kind_are_summed_by_the_part_that_differs_least():
    rows = [
        made_up(quantity=f"{what}, set {i}, {how}")
        for i in range(9)
        for what in ("time", "memory")
        for how in ("a", "b")
    ]
    kinds = summed(rows)
    assert [kind[0] for kind in kinds] == ["time, a", "time, b", "memory, a", "memory, b"]
    assert all(len(group) == 9 for group in kinds.values())


def test_tables_of_the_page_are_narrow_and_whole():
    for table in re.findall(r"(?:^\|.*\n)+", strategies_page([]), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1 and max(widths) <= 10


def test_the_page_in_docs_knows_every_strategy_and_paper():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page.partition("## Published figures")[0].partition("<details>")[0], re.M)
    assert rows == [strategy.name for strategy in list_strategies()]
    assert [title for title in titles() if f"### {title}" not in page] == []


def titles() -> list[str]:
    from validate.commands.markdown import prose

    return [prose(module.TITLE) for module in paper_modules().values()]


def test_json_is_plain():
    found = to_json([Paper("a", "A", "About a.", (made_up(), made_up(simulated=None, tolerance=None, reason="x")))])
    assert msgspec.json.decode(json.dumps(found, allow_nan=False)) == found
    assert found["summary"] | {"met": 1, "missed": 0, "missed_explained": 0, "not_reproduced": 1} == found["summary"]
    assert found["summary"]["kinds"]["prediction"]["errors"]["n"] == 1


def test_every_kind_is_said_on_the_page():
    assert [kind for kind in KINDS if f"*{kind}*: " not in strategies_page([])] == []
