"""Comparisons: Pareto fronts, paired differences, limits, studies from words and files, what is printed, examples."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cli.compare import compare as command
from simulator.errors import UserError
from simulator.planning.accuracy.given import shipped
from simulator.planning.compare import compare, compared
from simulator.planning.differences import FIGURES, SCATTER, calibration_sd, difference, log_sd
from simulator.planning.pareto import dominators, front
from simulator.planning.points import Outcome, answer
from simulator.planning.study import build_study, parse_words, read_study
from simulator.planning.within import Limit, choose, figure_name, read_limits
from simulator.profile import Z90
from simulator.report.compare_plot import save_comparison
from simulator.report.compare_table import headline, render_comparison

SHARED = {"gpu": "orin", "model": "r1-distill-qwen-1.5b", "thinking_tok": "lognormal:128:0.5", "answer_tok": 16}
EXAMPLES = Path(__file__).parent.parent / "examples"


def study(*own, **more):
    return build_study({**SHARED, **more.pop("shared", {})}, list(own), **more)


@pytest.fixture(scope="module")
def three():
    own = [{"strategy": "single"}, {"strategy": "self_consistency", "samples": 8}, {"strategy": "pdr", "width": 4}]
    return compare(study(*own, shared={"success": "beta:3:2"}))


def outcome(wall_s, *, gpu="orin", sd=0.1, calibration="p", model="m", outside=(), status="fitted", seed=0):
    """An outcome with these wall times, and energies and costs in proportion."""
    wall = np.array(wall_s, dtype=float)
    arrays = {"wall_s": wall, "energy_j": 20.0 * wall, "cost_usd": 1e-5 * wall}
    figures = {f"{name}_p50": float(np.median(values)) for name, values in arrays.items()}
    figures |= {"wall_s_p90": float(np.quantile(wall, 0.9)), "peak_memory_byte": 8e9}
    ends = {k: (v * math.exp(-Z90 * sd), v * math.exp(Z90 * sd)) for k, v in figures.items() if "byte" not in k}
    facts = {
        "gpu": gpu, "model": model, "precision": {"weights": "bf16"}, "seed": seed,
        "calibration": {"status": status, "extrapolated": list(outside)},
    }  # fmt: skip
    return Outcome({}, "strategy", figures=figures, intervals=ends, per_repetition=arrays, calibration=calibration,
                   facts=facts)  # fmt: skip


def apart(a, b, figure="wall_s_p50", seed=0):
    return difference(("a", a), ("b", b), figure, np.random.default_rng(seed))


# -- Pareto front --------------------------------------------------------------------------------------------------


VALUES = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=n, max_size=n)
)


@given(VALUES)
def test_front_against_its_definition(rows):
    values = np.array(rows)
    for i, by in enumerate(dominators(values)):
        beaten = [j for j in range(len(rows)) if (values[j] <= values[i]).all() and (values[j] < values[i]).any()]
        assert list(by) == beaten
        assert front(values)[i] == (not beaten)


@given(VALUES)
def test_every_beaten_one_is_beaten_by_one_on_the_front(rows):
    kept = front(np.array(rows))
    assert kept.any()
    assert all(not by or any(kept[j] for j in by) for by in dominators(np.array(rows)))


def test_equals_do_not_beat_each_other():
    assert front(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]])).tolist() == [True, True, False]


# -- differences ---------------------------------------------------------------------------------------------------


RNG = np.random.default_rng(7)
LENGTHS = RNG.lognormal(0.0, 0.5, 30)


def test_what_both_sides_draw_alike_cancels():
    faster, slower = outcome(LENGTHS), outcome(1.3 * LENGTHS)
    found = apart(slower, faster)
    assert found.paired and found.ratio == pytest.approx(1.3)
    assert found.sampling_sd == pytest.approx(0.0, abs=1e-12)
    unpaired = apart(replace(slower, facts={**slower.facts, "seed": 1}), faster)
    assert not unpaired.paired and unpaired.sampling_sd > 0.05


def test_sampling_error_is_that_of_the_bootstrap():
    other = LENGTHS * np.exp(np.random.default_rng(1).normal(0.0, 0.3, 30))
    found = apart(outcome(other, sd=1e-9), outcome(LENGTHS, sd=1e-9))
    draws = np.random.default_rng(5).integers(30, size=(20_000, 30))
    sd = np.log(np.median(other[draws], axis=1) / np.median(LENGTHS[draws], axis=1)).std()
    assert found.sampling_sd == pytest.approx(sd, rel=0.08)


def test_different_gpus_are_independent_and_one_shares():
    one, other = outcome([1.0], sd=0.2), outcome([1.1], sd=0.2, gpu="h100", calibration="q")
    assert calibration_sd(one, other, "wall_s_p50", "time") == pytest.approx(0.2 * math.sqrt(2))
    same = outcome([1.1], sd=0.2)
    assert calibration_sd(one, same, "wall_s_p50", "time") == pytest.approx(0.2 * math.sqrt(2 * 0.5))  # half is shared
    another_model = outcome([1.1], sd=0.2, model="n")
    assert calibration_sd(one, same, "wall_s_p50", "time") < calibration_sd(one, another_model, "wall_s_p50", "time")


def test_of_a_wide_guess_on_one_gpu_only_the_scatter_is_left():
    guesses = [outcome([value], sd=0.6, status="defaults", outside=("no runs",)) for value in (1.0, 1.5)]
    assert calibration_sd(*guesses, "wall_s_p50", "time") == pytest.approx(SCATTER, rel=1e-9)
    assert calibration_sd(*[outcome([1.0], sd=0.04)] * 2, "wall_s_p50", "time") == pytest.approx(0.04)


def test_a_way_out_of_the_fitted_range_counts_where_only_one_side_takes_it():
    base, sd = 0.1, 0.1 * math.sqrt(2)
    inside, outside = outcome([1.0], sd=base), outcome([1.0], sd=sd, outside=("context",))
    alone = calibration_sd(outside, inside, "wall_s_p50", "time")
    both = calibration_sd(outside, outside, "wall_s_p50", "time")
    assert min(alone, both) > calibration_sd(inside, inside, "wall_s_p50", "time")
    assert alone >= base and both < sd * math.sqrt(2)


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.booleans(), st.sampled_from(["fitted", "defaults"]))
@settings(deadline=None)
def test_sharing_never_widens_and_never_passes_what_is_stated(a, b, same_model, status):
    one = outcome([1.0], sd=a, status=status)
    two = outcome([1.0], sd=b, status=status, model="m" if same_model else "n")
    found = calibration_sd(one, two, "wall_s_p50", "time")
    assert abs(a - b) - 1e-9 <= found <= math.hypot(a, b) + 1e-9
    assert found == pytest.approx(calibration_sd(two, one, "wall_s_p50", "time"))


def test_verdicts():
    assert apart(outcome(LENGTHS), outcome(LENGTHS)).verdict == "none"
    assert apart(outcome(1.05 * LENGTHS), outcome(LENGTHS)).verdict == "none"
    assert apart(outcome(2.0 * LENGTHS), outcome(LENGTHS)).verdict == "more"
    assert apart(outcome(0.5 * LENGTHS), outcome(LENGTHS)).verdict == "less"


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Errors drawn as assumed: two GPUs, lengths and calibrations; the 90 % interval holds the true ratio."""
    rng, sd, held, tries = np.random.default_rng(11), 0.1, 0, 200
    for _ in range(tries):
        lengths = rng.lognormal(0.0, 0.4, 24)
        off = np.exp(rng.normal(0.0, sd, 2))  # of the predictions
        noise = np.exp(rng.normal(0.0, 0.2, 24))
        a, b = outcome(1.2 * lengths * noise / off[0], sd=sd), outcome(lengths / off[1], sd=sd, gpu="l4")
        found = apart(a, b, seed=int(rng.integers(1 << 30)))
        held += found.low <= 1.2 <= found.high
    assert 0.83 <= held / tries <= 0.97


def test_figures_without_an_interval_differ_exactly():
    one, two = outcome([1.0]), outcome([1.0])
    found = apart(replace(one, figures={**one.figures, "peak_memory_byte": 1.2e10}), two, "peak_memory_byte")
    assert (found.low, found.high) == (1.5, 1.5) and found.verdict == "more"
    assert apart(replace(one, figures={**one.figures, "cost_usd_p50": math.nan}), two, "cost_usd_p50") is None


def test_the_spread_is_that_of_the_interval():
    assert log_sd(outcome([3.0], sd=0.17), "energy_j_p50") == pytest.approx(0.17)
    assert log_sd(outcome([3.0]), "peak_memory_byte") == 0.0


# -- limits ----------------------------------------------------------------------------------------------------------


FIGURES_OF = {
    "slow": {"wall_s_p50": 12.0, "energy_j_p50": 100.0, "accuracy": 0.9},
    "quick": {"wall_s_p50": 4.0, "energy_j_p50": 300.0, "accuracy": 0.7},
    "plain": {"wall_s_p50": 6.0, "energy_j_p50": 150.0, "accuracy": 0.6},
}


def test_best_within_limits():
    def best(wanted="accuracy", **limits):
        return choose(FIGURES_OF, read_limits(list(limits.items())), wanted)

    assert best(wall_s=10, energy_j=200).best == "plain"
    assert best(wall_s=10).best == "quick" and best().best == "slow"
    assert best("wall_s_p50", accuracy=0.65).best == "quick" and best("energy_j_p50").best == "slow"


def test_nothing_within_limits_says_what_is_nearest():
    found = choose(FIGURES_OF, read_limits([("wall_s", 5), ("energy_j", 140), ("accuracy", 0.65)]), "accuracy")
    assert found.best is None and found.nearest == "plain"
    assert found.missing == (
        ("wall_s_p50", 6.0, 5.0),
        ("energy_j_p50", 150.0, 140.0),
        ("accuracy", 0.6, 0.65),
    )


@given(st.floats(1.0, 20.0), st.floats(50.0, 400.0))
def test_the_choice_keeps_its_limits_or_names_what_would_do(wall_s, energy_j):
    limits = (Limit("wall_s_p50", wall_s), Limit("energy_j_p50", energy_j))
    found = choose(FIGURES_OF, limits, "accuracy")
    if found.best is not None:
        assert all(FIGURES_OF[found.best][limit.figure] <= limit.value * (1 + 1e-9) for limit in limits)
        return
    eased = {limit.figure: limit.value for limit in limits} | {figure: value for figure, value, _ in found.missing}
    assert found.nearest in choose(FIGURES_OF, [Limit(*each) for each in eased.items()], "accuracy").feasible


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ([("wall_s", 10), ("wall_s_p50", 5)], "limited to 10 and to 5; expected one limit"),
        ([("wall_s", 0)], "wall_s is '0', which no candidate can keep; expected a finite number above 0"),
        ([("wall_s", "soon")], "wall_s is 'soon'"),
        ([("accuracy", 1.2)], "expected a number above 0 and at most 1"),
        ([("wals", 1)], "unknown figure of a limit 'wals'; nearest: wall_s"),
    ],
)
def test_bad_limits(limits, complaint):
    with pytest.raises(UserError, match=complaint):
        read_limits(limits)


def test_figures_have_short_names():
    assert figure_name("energy-j") == "energy_j_p50" and figure_name("wall_s_p90") == "wall_s_p90"


# -- studies ---------------------------------------------------------------------------------------------------------


def test_words():
    assert parse_words("pdr,width=8, weights = int4") == {"strategy": "pdr", "width": "8", "weights": "int4"}
    assert parse_words("gpu=l4") == {"gpu": "l4"}
    for bad, complaint in (("pdr,pdr", "strategy is given twice"), ("width=", "has no value"), (" , ", "is empty")):
        with pytest.raises(UserError, match=complaint):
            parse_words(bad)


def test_shared_parameters_go_to_those_that_take_them():
    found = study({"strategy": "single"}, {"strategy": "pdr"}, shared={"width": 3}).candidates
    assert "width" not in found[0].settings and found[1].settings["width"] == 3
    assert all(candidate.settings["thinking_tok"] == SHARED["thinking_tok"] for candidate in found)


def test_own_settings_count_before_shared_ones():
    found = study({"strategy": "pdr", "gpu": "l4"}, {"strategy": "pdr"}).candidates
    assert [candidate.settings["gpu"] for candidate in found] == ["l4", "orin"]


def test_names():
    own = [{"strategy": "pdr", "width": 4}, {"strategy": "pdr", "width": 4}, {"name": "mine", "strategy": "single"}]
    assert [c.name for c in study(*own).candidates] == ["pdr width=4", "pdr width=4 #2", "mine"]


@pytest.mark.parametrize(
    ("own", "more", "complaint"),
    [
        ([], {}, "found no candidate; expected two or more"),
        ([{"strategy": "single"}], {}, "found one candidate; expected two or more"),
        ([{"strategy": "sngle"}, {"strategy": "pdr"}], {}, "unknown strategy 'sngle'; nearest: single"),
        (
            [{"strategy": "single", "witdh": 3}, {"strategy": "pdr"}],
            {},
            "candidate 'single witdh=3': unknown setting 'wi",
        ),
        ([{"strategy": "single"}, {"strategy": "pdr"}], {"shared": {"witdh": 3}}, "'witdh'; nearest: width"),
        (
            [{"strategy": "single"}, {"strategy": "pdr"}],
            {"shared": {"samples": 3}},
            "no strategy of the candidates takes 'samples': single, pdr",
        ),
        (
            [{"strategy": "single", "width": 3}, {"strategy": "pdr"}],
            {},
            "candidate 'single width=3': unknown parameter",
        ),
        ([{"strategy": "pdr", "width": "x"}, {"strategy": "pdr"}], {}, "'pdr width=x': .* found 'x', expected a whole"),
        ([{"name": "a", "strategy": "single"}, {"name": "a", "strategy": "pdr"}], {}, "two candidates are called 'a'"),
        ([{"strategy": "single"}, {"strategy": "pdr"}], {"against": "prd"}, "unknown candidate 'prd'; nearest: pdr"),
        ([{"strategy": "single"}, {"strategy": "pdr"}], {"best": "wal_s"}, "unknown figure of best 'wal_s'"),
        ([{"strategy": "single", "kv-cache": "fp8", "kv_cache_dtype": "fp8"}, {}], {}, "kv_cache_dtype is given twice"),
    ],
)
def test_bad_studies(own, more, complaint):
    with pytest.raises(UserError, match=complaint):
        study(*own, **more)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"accuracy": 1.5}, "accuracy is 1.5, expected a number from 0 to 1"),
        ({"benchmark": "AIME24"}, "there is no table"),
        ({"success": "beta:1"}, "expected beta:A:B"),
        ({"verifier": "1"}, "expected FN:FP"),
        ({"wrong_answers": 0}, "expected a whole number from 1"),
        ({"accuracy": "scale"}, "has the benchmarks AIME24, AIME25, AMC23"),
    ],
)
def test_bad_words_on_accuracy(said, complaint):
    with pytest.raises(UserError, match=f"candidate 'single.*{complaint}"):
        compare(study({"strategy": "single", **said}, {"strategy": "pdr"}))


TOML = """
against = "votes"
best = "accuracy"
[shared]
gpu = "orin"
model = "r1-distill-qwen-1.5b"
thinking_tok = "lognormal:128:0.5"
answer_tok = 16
success = 0.6
repetitions = 4
[within]
wall_s = 1000
[[candidate]]
name = "one"
strategy = "single"
[[candidate]]
name = "votes"
strategy = "self_consistency"
samples = 5
"""


def test_study_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TOML)
    found = read_study(str(path), {"repetitions": "3"})
    assert [candidate.name for candidate in found.candidates] == ["one", "votes"] and found.against == "votes"
    assert found.within == (Limit("wall_s_p50", 1000.0),) and found.candidates[0].settings["repetitions"] == "3"
    result = compare(found)
    assert result.choice.best == "votes" and [each.candidate for each in result.differences] == ["one"] * len(FIGURES)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[shared\n", "is not valid TOML"),
        ("shard = 1\n", "unknown key 'shard'"),
        ("shared = 1\n", "shared is no table"),
        ("[candidate]\nname = 'a'\n", r"expected \[\[candidate\]\]"),
        ("against = 1\n", "against is 1, expected a text"),
        ("[shared]\ngpu = 'orin'\n", "found no candidate"),
    ],
)
def test_bad_study_files(tmp_path, text, complaint):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_study(str(path), {})


# -- whole comparisons -----------------------------------------------------------------------------------------------


def test_figures_are_those_of_a_flight_alone(three):
    alone = answer({**SHARED, "strategy": "pdr", "width": 4})
    assert three.entries[2].outcome.figures == alone.figures


def test_accuracies_are_told_and_not_invented(three):
    one, votes, pdr = three.entries
    assert one.accuracy.value == pytest.approx(0.6) and votes.accuracy.value > one.accuracy.value
    assert pdr.accuracy is None and "says nothing of 'pdr'" in pdr.basis
    assert pdr.name not in three.dominated_by and three.front == (one.name, votes.name)
    assert "not judged: its accuracy is not known" in render_comparison(three)


def test_same_seed_same_comparison(three):
    again = compare(three.study)
    assert json.dumps(again.to_dict()) == json.dumps(three.to_dict())
    assert render_comparison(again) == render_comparison(three)


def test_differences_are_to_the_reference(three):
    turned = compared(replace(three.study, against=three.entries[2].name), three.entries)
    there = {(d.candidate, d.figure): d.ratio for d in three.differences if d.candidate == three.entries[2].name}
    back = {(d.reference, d.figure): d.ratio for d in turned.differences if d.candidate == three.entries[0].name}
    assert {key: 1 / ratio for key, ratio in there.items()} == pytest.approx(back)


def test_a_candidate_that_does_not_fit_is_told_and_the_rest_finished():
    own = [{"gpu": "orin-nano"}, {"gpu": "orin"}, {"gpu": "h100"}]
    result = compare(study(*own, shared={"strategy": "single", "model": "qwen3-8b", "repetitions": 3}))
    assert [entry.outcome.status for entry in result.entries] == ["failed", "ok", "ok"]
    assert result.study.against == "gpu=orin" and "cannot be simulated" in result.notes[0]
    assert "gpu=orin-nano: Qwen/Qwen3-8B in bf16 does not fit" in render_comparison(result)
    with pytest.raises(UserError, match="none of the candidates can be simulated; 'gpu=orin-nano': Qwen"):
        compare(study({"gpu": "orin-nano"}, {"gpu": "orin-nano", "weights": "fp16"},
                      shared={"strategy": "single", "model": "qwen3-8b"}))  # fmt: skip


def test_the_same_twice_is_no_difference():
    result = compare(study({"strategy": "single"}, {"strategy": "single"}))
    assert {each.verdict for each in result.differences} == {"none"}
    assert result.front == ("single", "single #2")
    assert render_comparison(result).count("no difference (") == 4


def test_questions_in_common_pair_accuracies(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("question,p\n" + "".join(f"{i},{p}\n" for i, p in enumerate(np.linspace(0.55, 0.95, 40))))
    own = [{"strategy": "single"}, {"strategy": "self_consistency", "samples": 9}]
    result = compare(study(*own, shared={"success": str(path), "repetitions": 2}))
    (gap,) = result.accuracy_gaps
    widths = [entry.accuracy.high - entry.accuracy.low for entry in result.entries]
    assert gap.paired and gap.verdict == "more" and gap.high - gap.low < math.hypot(*widths)


def test_infeasible_limits_say_what_would_do(three):
    asked = replace(three.study, within=read_limits([("wall_s", 0.5), ("energy_j", 2000)]), best="accuracy")
    result = compared(asked, three.entries)
    text = headline(result)
    assert text.startswith("Nothing keeps wall p50 <= 500 ms and energy p50 <= 2.00 kJ. Nearest: single (wall p50 is")
    needed = float(text.partition("--within wall_s=")[2].rstrip("."))
    eased = compared(replace(asked, within=read_limits([("wall_s", needed), ("energy_j", 2000)])), three.entries)
    assert eased.choice.best == "single"


def test_best_without_limits_and_without_accuracy(three):
    asked = replace(three.study, best="energy_j_p50")
    assert compared(asked, three.entries).choice.best == "single"
    with pytest.raises(UserError, match="nothing says it of any candidate"):
        compare(study({"strategy": "single"}, {"strategy": "pdr"}, best="accuracy"))


# -- command and pictures ----------------------------------------------------------------------------------------------


def run(capsys, *words):
    command.main([*words], prog_name="simulate compare", standalone_mode=False)
    return capsys.readouterr()


SMALL = ("--gpu", "orin", "--model", "r1-distill-qwen-1.5b", "--repetitions", "2", "--thinking-tok", "64")


def test_command_prints_and_writes(capsys, tmp_path):
    table, picture = tmp_path / "all.csv", tmp_path / "front.png"
    words = ("single", "--candidate", "name=PDR,strategy=pdr,width=2", "--within", "wall_s=600")
    told = run(capsys, *SMALL, *words, "--csv", str(table), "--plot", str(picture))
    assert told.out.startswith("Best wall p50 within wall p50 <= 10.0 min: single")
    assert "wrote" in told.err and picture.read_bytes().startswith(b"\x89PNG")
    head, *rows = table.read_text().splitlines()
    assert head.startswith("candidate,gpu,model") and [row.split(",")[0] for row in rows] == ["single", "PDR"]
    assert len(rows) == 2


def test_json_traces_every_figure(capsys):
    found = json.loads(run(capsys, *SMALL, "single", "pdr,width=2", "--seed", "5", "--json").out)
    for candidate in found["candidates"]:
        assert candidate["facts"]["seed"] == 5 and candidate["calibration"] and candidate["settings"]["gpu"]
        assert candidate["facts"]["version"] and "wall_s_p50" in candidate["intervals"]
    assert {each["figure"] for each in found["differences"]} == set(FIGURES)


def test_switches_and_set_are_shared(capsys):
    words = ("--no-enable-prefix-caching", "--set", "answer_tok=8")
    found = json.loads(run(capsys, *SMALL, *words, "single", "self_consistency,samples=2", "--json").out)
    for candidate in found["candidates"]:
        assert candidate["settings"]["enable_prefix_caching"] is False and candidate["settings"]["answer_tok"] == 8


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("single",), "found one candidate"),
        (("single", "pdr", "--within", "wall_s"), "expected NAME=VALUE"),
        (("study.toml",), "study 'study.toml' does not exist"),
        (("study.toml", "pdr"), "expected the candidates in the file alone"),
        (("single", "pdr", "--plot", "x.gif"), "expected a file name ending in"),
        (("single", "pdr", "--set", "seed"), "expected NAME=VALUE"),
        (("single", "pdr", "--gpu", "orni"), "unknown GPU 'orni'; nearest: orin"),
    ],
)
def test_command_complains_in_one_sentence(capsys, words, complaint):
    with pytest.raises(UserError, match=complaint):
        run(capsys, *words)


def test_help_names_what_it_takes(capsys):
    told = run(capsys, "--help").out
    for word in ("--candidate", "--within", "--success", "--gpu", "--power-mode", "simulate compare study.toml"):
        assert word in told
    assert all(name in told for name in shipped())


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_are_the_same_bytes(three, tmp_path, suffix):
    paths = [save_comparison(three, tmp_path / f"{i}.{suffix}") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].stat().st_size > 5_000


# -- examples ----------------------------------------------------------------------------------------------------


def example(name, tmp_path):
    """What an example prints; its figure is there, and it reads in under sixty lines."""
    script, picture = EXAMPLES / name, tmp_path / "figure.png"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run([sys.executable, str(script), str(picture)], capture_output=True, text=True, check=True)
    assert picture.stat().st_size > 20_000 and done.stderr == ""
    return done.stdout.splitlines()


def test_example_pdr_against_self_consistency(tmp_path):
    lines = example("pdr_against_self_consistency.py", tmp_path)
    assert lines[0].startswith("Best accuracy within wall p50 <= 240 s and energy p50 <= 4.00 kJ: 8 votes")


@pytest.mark.slow
def test_example_power_modes(tmp_path):
    lines = example("pdr_power_modes.py", tmp_path)
    times = {tuple(line.split()[:2]): float(line.split()[2]) for line in lines[1:]}
    assert len(times) >= 25
    assert times["orin-agx-64gb", "MAXN"] < times["orin-agx-64gb", "30W"] < times["orin-agx-64gb", "15W"]


def test_example_cost_per_answer(tmp_path):
    lines = example("cost_per_answer.py", tmp_path)
    cents = {tuple(line.split()[:2]): float(line.split()[2]) for line in lines[1:]}
    assert all(cents["16", gpu] < cents["1", gpu] for gpu in ("H100", "L40S", "Orin"))
    assert cents["1", "Orin"] < cents["1", "H100"]
