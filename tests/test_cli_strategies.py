"""What flies, on the command line: strategies, those from files, parameters, help, schedules, roles, question sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from simulator.cli.main import simulate
from simulator.cli.strategy_options import SHARED_BY, library_uses
from simulator.precision import ACTIVATION_BYTE, KV_BYTE, SCHEMES, WEIGHT_BYTE
from simulator.strategies import get_strategy, list_strategies

SMALL = "qwen3-0.6b"
H100 = ("--gpu", "h100", "--model", SMALL, "--repetitions", "1")
SHORT = ("--thinking-tok", "60", "--answer-tok", "9")
MINE = '''
def mine(run, width=3, length="20", seed: int = 4, part: float = 0.5):
    """Writes drafts, then an answer."""
    drafts = yield run.all(run.generate(run.problem, "draft", length) for _ in range(width))
    return (yield run.generate(run.problem + run.text(drafts), "answer", 1 + seed))
'''


@pytest.fixture
def run(capsys):
    """Call the program in this process: run(*args) -> code, out, err."""

    def call(*args: str) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            simulate.main(list(args), prog_name="simulate")
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return call


@pytest.fixture
def flown(run):
    """flown(*args) -> the JSON of a flight on an H100."""

    def call(*args: str) -> dict:
        result = run(*H100, *args, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    return call


@pytest.fixture
def refused(run):
    """refused(*args) -> the one sentence of a refusal."""

    def call(*args: str) -> str:
        result = run(*args)
        assert (result.code, result.out) == (2, "")
        lines = result.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("simulate: error: ")
        return lines[0].removeprefix("simulate: error: ")

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a strategy of the user's in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def labels(found: dict) -> list[str]:
    return [call["label"] for call in found["flights"][0]["calls"]]


def words(text: str) -> str:
    """A help text as one line."""
    return " ".join(text.split())


# -- parameters ------------------------------------------------------------------------------------------------------


def test_set_and_the_option_of_a_parameter_are_the_same(flown):
    by_option = flown("--strategy", "pdr", "--width", "2", *SHORT)
    by_set = flown("--strategy", "pdr", "--set", "width=2", "--set", "thinking-tok=60", "--set", "answer_tok = 9")
    assert by_option == by_set
    assert labels(by_set) == ["draft", "draft", "distill", "answer"]
    assert by_set["strategy_parameters"]["width"] == 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--set", "width"), "--set width: expected NAME=VALUE, as: --set width=4"),
        (("--set", "=4"), "--set =4: expected NAME=VALUE"),
        (("--set", "width=2", "--width", "2"), "--set width=2: parameter 'width' is given twice"),
        (("--set", "width=2", "--set", "width=3"), "--set width=3: parameter 'width' is given twice"),
        (("--set", "kappa_tok=2", "--set", "kappa-tok=3"), "parameter 'kappa_tok' is given twice"),
        (("--set", "widht=2"), "unknown parameter 'widht' of strategy 'pdr'; nearest: width; it takes problem_tok"),
        (("--set", "width="), "strategy 'pdr', parameter 'width': found '', expected a whole number >= 1"),
        (("--set", "width=a=b"), "found 'a=b'"),
        (("--width", "none"), "strategy 'pdr', parameter 'width': found 'none', expected a whole number >= 1"),
        (("--samples", "3"), "strategy 'pdr' does not take --samples; it takes --problem-tok, --rounds"),
        (("--no-such-parameter", "3"), "No such option '--no-such-parameter'"),
    ],
)
def test_bad_parameters(refused, args, expected):
    assert expected in refused(*H100, "--strategy", "pdr", *args)


def test_every_parameter_of_the_library_is_an_option_that_parses(refused):
    for name in library_uses():
        word = f"--{name.replace('_', '-')}"
        assert refused("--strategy", "pdr", word, "1") == "missing --gpu (see: simulate --list gpus)", word


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [found.name for found in list_strategies()])
def test_help_of_a_strategy_shows_exactly_its_parameters(run, name):
    strategy = get_strategy(name)
    first, second = run("--strategy", name, "--help"), run("--help", f"--strategy={name}")
    assert first.code == second.code == 0 and first.out == second.out and first.err == ""
    shown = re.findall(r"(?m)^  (?:--set ([\w-]+)=|--([\w-]+) )", first.out)
    assert [(by_set or own).replace("-", "_") for by_set, own in shown] == [p.name for p in strategy.parameters]
    text = words(first.out)
    assert strategy.source in text and strategy.title in text
    squeezed = text.replace(" ", "")  # lines may be broken behind a hyphen
    for parameter in strategy.parameters:
        origin = "published" if parameter.published else "assumed"
        assert f"[default:{parameter.default},{origin}:" in squeezed, parameter.name
    for role, what in strategy.roles.items():
        assert role in text and what.replace(" ", "") in squeezed
    for line in (strategy.description, *strategy.assumptions):
        assert "".join(line.split()) in squeezed


def test_help_of_an_alias_and_of_an_unknown_strategy(run, refused):
    assert run("-h", "--strategy", "majority").out == run("--strategy", "self_consistency", "-h").out
    assert "unknown strategy 'pdrr'; nearest: pdr" in refused("--strategy", "pdrr", "--help")


def test_help_shows_what_many_strategies_share_and_the_way_to_the_rest(run):
    text = run("--help").out
    every, uses = len(list_strategies()), library_uses()
    section = text[text.index("Parameters of the strategies") : text.index("Examples:")]
    shown = [name.replace("-", "_") for name in re.findall(r"(?m)^  --([\w-]+) ", section)]
    assert shown == ["set", *(name for name, takers in uses.items() if len(takers) * SHARED_BY >= every)]
    assert shown[1] == "problem_tok"
    assert f"{len(uses) - len(shown) + 1} parameters more belong to few of the {every} strategies" in words(section)
    assert "simulate --strategy NAME --help" in words(section)
    assert len(section.splitlines()) < 60


@pytest.mark.parametrize("name", ["traffic", "import"])
def test_sub_commands_are_found_by_name_and_have_their_own_help(run, refused, name):
    assert run(name, "--help").out.startswith(f"Usage: simulate {name}")
    assert re.search(rf"(?m)^  {name} +\S", run("--help").out)
    assert "No such option '--strategy'" in refused(name, "--strategy", "no such strategy")
    assert f"--strategy stands before '{name}'; expected it behind" in refused("--strategy", "pdr", name)


# -- the list --------------------------------------------------------------------------------------------------------


def test_the_list_of_strategies_is_readable_and_whole(run):
    text = run("--list", "strategies").out
    assert max(map(len, text.splitlines())) <= 120
    rows = json.loads(run("--list", "strategies", "--json").out)
    assert [row["name"] for row in rows] == [s.name for s in list_strategies()]
    _, *entries = re.split(r"\n(?=\S)", text.partition("\n\n")[0])
    assert [entry.split()[0] for entry in entries] == [row["name"] for row in rows]
    for entry, row in zip(entries, rows):
        flat = words(entry)
        assert row["title"] in flat and row["source"] in flat
        for parameter in row["parameters"][1:]:
            assert f"{parameter['name']}={parameter['default']}{'*' * parameter['published']}" in flat
        assert all(role in flat for role in row["roles"])
        assert (row["questions"] is not None) == ("questions" in flat.partition("works on a set of")[2])
        assert {"help", "origin", "published", "default", "kind", "least", "most", "choices"} <= set(
            row["parameters"][0]
        )


# -- a strategy of the user's own ------------------------------------------------------------------------------------


def test_a_strategy_from_a_file_flies(flown, folder):
    found = flown("--strategy", "./mine.py", "--width", "2", "--set", "seed=7")
    assert found["strategy"] == "mine" and labels(found) == ["draft", "draft", "answer"]
    assert found["flights"][0]["calls"][-1]["output_tok"] == 8
    assert found["strategy_parameters"] == {"problem_tok": 256, "width": 2, "length": "20", "seed": 7, "part": 0.5}
    assert any("mine.py" in line for line in found["assumptions"])
    assert flown("--strategy", "mine.py:mine", "--set", "width=2", "--set", "seed=7") == found


def test_an_option_of_the_file_stands_anywhere(flown, folder):
    first, second = flown("--part", "1", "--strategy", "mine.py"), flown("--strategy", "mine.py", "--part", "1")
    assert first == second and first["strategy_parameters"]["part"] == 1.0


def test_help_of_a_file_and_names_that_are_taken(run, refused, flown, folder):
    text = words(run("--strategy", "mine.py", "--help").out)
    assert "Writes drafts, then an answer." in text and "--part X" in text
    assert "--set seed=N" in text  # --seed is that of the draws
    assert flown("--strategy", "mine.py", "--seed", "9")["strategy_parameters"]["seed"] == 4
    assert "No such option '--part'" in refused(*H100, "--strategy", "pdr", "--part", "1")


def test_a_decorated_file_may_be_called_as_one_of_the_library(flown, folder):
    (folder / "own.py").write_text(
        "from simulator.strategies.registry import assumed, strategy\n"
        "@strategy('own', 'nobody', {'depth': assumed('h', 'o')}, roles={'judge': 'judges'})\n"
        "def pdr(run, depth: int = 2):\n"
        "    return (yield run.generate(run.problem, 'mine', depth, role='judge'))\n"
    )
    assert labels(flown("--strategy", "own.py", "--depth", "6")) == ["mine"]
    assert labels(flown("--strategy", "pdr", "--width", "1", *SHORT)) == ["draft", "distill", "answer"]
    two = flown("--strategy", "own.py", "--role", f"judge={SMALL}@l4")
    assert any("the role 'judge' is played by" in line and "L4" in line for line in two["assumptions"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def a(run:", "strategy file 'bad.py', line 1: SyntaxError: "),
        ("\nx = 1 / 0", "strategy file 'bad.py', line 2: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "line 1: SystemExit: 0"),
        ("x = 1", "strategy file 'bad.py' has no strategy"),
        ("def a(run):\n    yield\ndef b(run):\n    yield", "has 2 strategies (a, b): name one, as bad.py:a"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--help",)])
def test_files_that_cannot_be_used(refused, folder, text, expected, more):
    (folder / "bad.py").write_text(text)
    assert expected in refused(*H100, "--strategy", "bad.py", *more)


def test_a_file_that_is_not_there(refused, folder):
    expected = "strategy file 'none.py' does not exist; expected a Python file as FILE.py or FILE.py:FUNCTION"
    assert refused(*H100, "--strategy", "none.py") == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("raise ZeroDivisionError(call.label)", "strategy file 'boom.py', line 3: ZeroDivisionError: a"),
        ("yield 1", "strategy file 'boom.py', line 3: TypeError: the strategy yielded int"),
        ("yield run.any([call], 2)", "strategy file 'boom.py', line 3: ValueError: run.any waits for 2 of 1"),
        ("import sys; sys.exit(5)", "strategy file 'boom.py', line 3: SystemExit: 5"),
        ("return run.generate(run.problem, 'b', 5)", "strategy file 'boom.py': TypeError: the strategy returned"),
    ],
)
def test_mistakes_in_the_users_generator_are_told_with_their_line(refused, folder, line, expected):
    (folder / "boom.py").write_text(f"def boom(run):\n    call = yield run.generate(run.problem, 'a', 5)\n    {line}\n")
    assert refused(*H100, "--strategy", "boom.py").startswith(expected)


def test_our_own_errors_keep_their_traceback(folder, monkeypatch):
    (folder / "fine.py").write_text("def fine(run):\n    return (yield run.generate(run.problem, 'a', 5))\n")

    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr("simulator.engine.scheduler.Scheduler.plan", broken)
    with pytest.raises(RuntimeError, match="ours"):
        simulate.main([*H100, "--strategy", "fine.py"], prog_name="simulate")


# -- schedules -------------------------------------------------------------------------------------------------------


def test_a_saved_schedule_flies_as_the_strategy_did(run, flown, folder):
    result = run(*H100, "--strategy", "pdr", "--width", "2", *SHORT, "--save-schedule", "flight.json", "--json")
    assert result.code == 0 and "simulate: wrote flight.json" in result.err
    first, again = json.loads(result.out), flown("--schedule", "flight.json")
    assert again["summary"]["wall_s_p50"] == pytest.approx(first["summary"]["wall_s_p50"], rel=1e-9)
    assert labels(again) == labels(first)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--schedule", "s.json", "--strategy", "pdr"), "--strategy and --schedule both say what flies"),
        (("--schedule", "s.json", "--width", "3"), "--width is a parameter of strategies, and a schedule has none"),
        (("--schedule", "s.json", "--set", "width=3"), "--set width=3 is a parameter of strategies"),
        (("--schedule", "none.json"), "none.json"),
        (("--schedule", "s.json", "--save-schedule", "./s.json"), "this is also the file of --schedule"),
        (("--strategy", "mine.py", "--save-schedule", "mine.py"), "this is also the file of --strategy"),
        (("--strategy", "mine.py:mine", "--save-schedule", "mine.py"), "this is also the file of --strategy"),
        (("--strategy", "pdr", "--question-lengths", "s.json:a", "--save-schedule", "s.json"), "--question-lengths"),
        (("--strategy", "pdr", "--save-schedule", "no/s.json"), "--save-schedule no/s.json: the folder 'no' does not"),
        (("--strategy", "pdr", "--save-schedule", ""), "--save-schedule: the file name is empty"),
        (("--strategy", "pdr", "--save-schedule", "x.png", "--plot", "x.png"), "this is also the file of --plot"),
        ((), "missing --strategy (see: simulate --list strategies)"),
    ],
)
def test_bad_schedules(refused, folder, args, expected):
    (folder / "s.json").write_text("{}")
    assert expected in refused(*H100, *args)


# -- roles, questions, servers ---------------------------------------------------------------------------------------


def test_a_role_reaches_the_flight(flown):
    found = flown("--strategy", "best_of_n", "--samples", "2", *SHORT, "--role", f"reward={SMALL}@l4")
    assert any("the role 'reward' is played by" in line and "L4" in line for line in found["assumptions"])


def test_questions_reach_the_flight(flown, folder):
    one, four = (flown("--strategy", "single", *SHORT, "--questions", n) for n in ("1", "4"))
    assert len(labels(one)) == 1 and len(labels(four)) == 4
    in_turn = flown("--strategy", "single", *SHORT, "--questions", "4", "--concurrency", "1")
    assert in_turn["summary"]["wall_s_p50"] > 3 * one["summary"]["wall_s_p50"] > four["summary"]["wall_s_p50"]
    (folder / "lengths.txt").write_text("100\n300\n50\n")
    found = flown("--strategy", "single", *SHORT, "--question-lengths", "lengths.txt")
    assert [call["prompt_tok"] for call in found["flights"][0]["calls"]] == [100, 300, 50]
    (folder / "lengths.csv").write_text("name,prompt_tok\na,70\nb,80\n")
    found = flown("--strategy", "single", *SHORT, "--question-lengths", "lengths.csv:prompt_tok")
    assert [call["prompt_tok"] for call in found["flights"][0]["calls"]] == [70, 80]


def test_replicas_reach_the_flight(flown):
    one, two = (flown("--strategy", "single", *SHORT, "--questions", "8", "--replicas", n) for n in ("1", "2"))
    assert two["summary"]["wall_s_p50"] < one["summary"]["wall_s_p50"]
    assert two["gpu_name"].startswith("2 x ")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--role", "reward"), "found 'reward', expected NAME=MODEL or NAME=MODEL@GPU"),
        (("--role", f"reword={SMALL}"), "has no role 'reword'"),
        (("--role", f"reward={SMALL}", "--role", f"reward={SMALL}"), "role 'reward' is given twice"),
        (("--role", "reward=qwen3-9b"), "unknown model 'qwen3-9b'"),
        (("--questions", "0"), "'--questions': found '0', expected a whole number >= 1"),
        (("--concurrency", "x"), "'--concurrency': found 'x', expected a whole number >= 1"),
        (("--concurrency", "2"), "needs questions"),
        (("--replicas", "0"), "'--replicas': found '0', expected a whole number >= 1"),
        (("--replicas", "1000000"), "from 1 to"),
        (("--question-lengths", "none.csv"), "length file 'none.csv' does not exist"),
        (("--question-lengths", "two.csv"), "has 2 columns: name one, as file:two.csv:COLUMN"),
    ],
)
def test_bad_roles_and_questions(refused, folder, args, expected):
    (folder / "two.csv").write_text("a,b\n1,2\n")
    assert expected in refused(*H100, "--strategy", "best_of_n", *args)


def test_idealized_runtime_is_reported_when_asked_for(run):
    args = (*H100, "--strategy", "single", *SHORT)
    plain, asked = run(*args), run(*args, "--idealized")
    assert plain.code == asked.code == 0
    assert "dealized" not in plain.out and "dealized" in asked.out


# -- precision schemes -----------------------------------------------------------------------------------------------


def test_schemes_name_formats_that_exist():
    assert list(SCHEMES) == ["bf16", "layercast", "w4a16", "w8a8-int", "w8a8-fp"]
    for scheme in SCHEMES.values():
        assert scheme["weights"] in WEIGHT_BYTE and scheme["activations"] in ACTIVATION_BYTE
        assert scheme.get("kv_cache", "bf16") in KV_BYTE


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("bf16", ("--weights", "bf16", "--activations", "bf16", "--kv-cache-dtype", "bfloat16")),
        ("layercast", ("--weights", "bf16", "--activations", "fp32", "--kv-cache-dtype", "float32")),
        ("w4a16", ("--weights", "int4", "--activations", "bf16")),
        ("w8a8-int", ("--weights", "int8", "--activations", "int8")),
        ("w8a8-fp", ("--weights", "fp8", "--activations", "fp8")),
    ],
)
def test_a_scheme_is_short_for_its_options(flown, scheme, options):
    args = ("--strategy", "single", *SHORT)
    short = flown(*args, "--scheme", scheme)
    assert short == flown(*args, *options) == flown(*args, "--scheme", scheme, *options)
    named = {name: short["precision"][name] for name in SCHEMES[scheme]}
    assert named == SCHEMES[scheme]


def test_layercast_keeps_weights_narrow_and_the_kv_cache_wide(flown):
    args = ("--strategy", "single", *SHORT)
    narrow, cast = (flown(*args, "--scheme", scheme) for scheme in ("bf16", "layercast"))
    assert cast["memory"]["weights_byte"] == narrow["memory"]["weights_byte"]
    assert cast["memory"]["kv_byte_per_tok"] == 2 * narrow["memory"]["kv_byte_per_tok"]
    assert cast["summary"]["tpot_s_p50"] > narrow["summary"]["tpot_s_p50"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("w4a16", "--weights", "fp8"), "--scheme w4a16 has weights in int4, found --weights fp8"),
        (("w8a8-fp", "--activations", "bf16"), "--scheme w8a8-fp has activations in fp8, found --activations bf16"),
        (("layercast", "--kv-cache-dtype", "auto"), "--scheme layercast has its KV cache in fp32, found "
         "--kv-cache-dtype auto: leave one of both out"),
        (("int4",), "'int4' is not one of 'bf16', 'layercast'"),
    ],
)  # fmt: skip
def test_schemes_that_contradict_an_option(refused, args, expected):
    assert expected in refused(*H100, "--strategy", "single", "--scheme", *args)
    traffic = ("traffic", "--gpu", "h100", "--model", SMALL, "--rate", "1", "--input", "9", "--output", "9")
    assert expected in refused(*traffic, "--scheme", *args)


def test_an_8_bit_kv_cache_goes_with_8_bit_weights(flown):
    found = flown("--strategy", "single", *SHORT, "--scheme", "w8a8-fp", "--kv-cache-dtype", "fp8")
    assert found["precision"] == {"weights": "fp8", "activations": "fp8", "kv_cache": "fp8"}
