"""The registry of strategies: kinds of parameters, the decorator, the library as a whole, files of a user."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import simulator.strategies
from simulator.errors import UserError
from simulator.flight import collect_assumptions
from simulator.strategies import get_strategy, list_strategies
from simulator.strategies.registry import KINDS, MAX_CALLS, Share, assumed, published, strategy
from simulator.workload.lengths import Fixed, Lengths, LogNormal, Uniform
from simulator.workload.seconds import ExponentialSeconds, FixedSeconds, Seconds

NOTE = assumed("what it is", "why so")


def entered(function, /, notes=None, **more):
    """The strategy that the decorator makes of a function; without notes every parameter gets the same one."""
    names = list(function.__code__.co_varnames[1 : function.__code__.co_argcount])
    return strategy("title", "source", notes or dict.fromkeys(names, NOTE), **more)(function).strategy


def every_kind(
    run,
    count: int = 3,
    more_tok: int = 4096,
    factor: float = 0.5,
    share: Share = 0.25,
    write_tok: Lengths = "uniform:5:9",
    wait_s: Seconds = "1.0",
    mode: str = "fast",
):
    """One of each."""
    yield


NOTES = {**dict.fromkeys(("count", "more_tok", "factor", "share", "write_tok", "wait_s"), NOTE),
         "mode": assumed("how", "why", choices=("fast", "slow"))}  # fmt: skip


# -- kinds -----------------------------------------------------------------------------------------------------------


def test_every_kind_from_text_and_from_values():
    found = entered(every_kind, NOTES)
    assert [p.kind for p in found.parameters] == [
        "Lengths",
        "int",
        "int",
        "float",
        "Share",
        "Lengths",
        "Seconds",
        "str",
    ]
    assert found.resolve() == {
        "problem_tok": Fixed(256), "count": 3, "more_tok": 4096, "factor": 0.5, "share": 0.25,
        "write_tok": Uniform(5, 9), "wait_s": FixedSeconds(1), "mode": "fast",
    }  # fmt: skip
    text = {"count": "7", "factor": "2e-3", "share": "1", "wait-s": "exponential:2", "mode": " slow ", "write_tok": "8"}
    values = {"count": np.int64(7), "factor": 0.002, "share": 1, "wait_s": ExponentialSeconds(2), "mode": "slow"}
    assert found.resolve(text) == found.resolve({**values, "write_tok": Fixed(8)})
    assert type(found.resolve(text)["share"]) is float and type(found.resolve(values)["count"]) is int


def test_plain_values_are_json_and_are_read_back():
    found = entered(every_kind, NOTES)
    plain = found.plain({"write_tok": "lognormal:70:0.5", "wait_s": "uniform:1:2.5"})
    assert plain == {
        "problem_tok": 256, "count": 3, "more_tok": 4096, "factor": 0.5, "share": 0.25,
        "write_tok": "lognormal:70:0.5", "wait_s": "uniform:1:2.5", "mode": "fast",
    }  # fmt: skip
    assert found.plain({"wait_s": "0.25"})["wait_s"] == 0.25
    assert found.resolve(plain) == found.resolve({"write_tok": LogNormal(70, 0.5), "wait_s": "uniform:1:2.5"})


def test_a_default_is_told_as_an_assumption_however_it_is_written():
    told = collect_assumptions(entered(every_kind, NOTES))
    assert len(told) == 8
    assert "wait_s = 1 is an assumption: why so" in told and "mode = fast is an assumption: why" in told
    assert len(collect_assumptions(entered(every_kind, NOTES), {"wait_s": "exponential:1", "share": 0.5})) == 6


@pytest.mark.parametrize(
    ("given_parameters", "expected"),
    [
        ({"count": 0}, "found '0', expected a whole number >= 1, at most 4,096"),
        ({"count": MAX_CALLS + 1}, "at most 4,096"),
        ({"count": "2.5"}, "found '2.5', expected a whole number >= 1"),
        ({"more_tok": 0}, "found '0', expected a whole number >= 1"),
        ({"factor": -1}, "parameter 'factor': found '-1', expected a number >= 0"),
        ({"factor": "nan"}, "found 'nan', expected a number >= 0"),
        ({"factor": "inf"}, "found 'inf'"),
        ({"factor": "much"}, "found 'much'"),
        ({"factor": True}, "found 'True'"),
        ({"factor": [1]}, "found '[1]'"),
        ({"share": 1.01}, "parameter 'share': found '1.01', expected a number from 0 to 1"),
        ({"share": "30%"}, "found '30%', expected a number from 0 to 1"),
        ({"wait_s": "soon"}, "parameter 'wait_s': wait 'soon': expected a number of seconds"),
        ({"wait_s": -1}, "must be a number from 0 to"),
        ({"write_tok": "long"}, "parameter 'write_tok': length 'long' is neither"),
        ({"mode": "Fast"}, "parameter 'mode': found 'Fast', expected one of fast, slow"),
        ({"mode": 1}, "expected one of fast, slow"),
    ],
)
def test_bad_values_are_one_sentence(given_parameters, expected):
    with pytest.raises(UserError) as caught:
        entered(every_kind, NOTES).resolve(given_parameters)
    assert str(caught.value).startswith("strategy 'every_kind', parameter ")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_bounds_of_a_note_go_before_those_of_the_kind():
    def bounded(run, tries: int = 0, size: int = 9000, gain: float = 1, share: Share = 0.6):
        yield

    notes = {"tries": published("h", "o", least=0, most=2), "size": assumed("h", "o", most=10_000),
             "gain": assumed("h", "o", least=-1.5), "share": assumed("h", "o", least=0.5)}  # fmt: skip
    found = entered(bounded, notes)
    assert found.resolve({"tries": 2, "size": 10_000, "gain": -1.5})["gain"] == -1.5
    for name, value, expected in (
        ("tries", -1, "a whole number >= 0, at most 2"), ("tries", 3, "at most 2"), ("size", 10_001, "at most 10,000"),
        ("gain", -2, "a number >= -1.5"), ("share", 0.4, "a number from 0.5 to 1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            found.resolve({name: value})


# -- the decorator ---------------------------------------------------------------------------------------------------


def test_what_the_decorator_says_stands_in_the_strategy():
    def solver(run, streams: int = 8):
        """First line.

        More.
        """
        yield

    found = entered(
        solver, roles={"judge": "scores"}, questions=30, streams="streams", diffusion=True, assumptions=("one",),
        aliases=("s",),
    )  # fmt: skip
    assert (found.name, found.title, found.source) == ("solver", "title", "source")
    assert found.description == "First line.\n\nMore."
    assert (found.roles, found.questions, found.streams, found.diffusion) == ({"judge": "scores"}, 30, "streams", True)
    assert (found.assumptions, found.aliases) == (("one",), ("s",))
    plain = entered(every_kind, NOTES)
    assert (plain.roles, plain.questions, plain.streams, plain.diffusion) == ({}, None, None, False)


def test_what_is_not_decorated_right_is_told_at_once():
    def solver(run, samples: int = 8):
        yield

    def no_yield(run):
        return run

    def no_run():
        yield

    def no_default(run, samples: int):
        yield

    def odd(run, samples: list = ()):
        yield

    def common(run, problem_tok: Lengths = 5):
        yield

    def bad_default(run, samples: int = 0):
        yield

    for function, more, expected in (
        (solver, {"notes": {"width": NOTE}}, r"notes for \['width'\], the signature has \['samples'\]"),
        (no_yield, {}, "has to yield"),
        (no_run, {}, "takes no run"),
        (no_default, {}, "needs a default"),
        (odd, {}, "one of the annotations"),
        (common, {}, "every strategy has problem_tok"),
        (solver, {"streams": "width"}, "streams='width' is not one of its int parameters"),
        (solver, {"questions": 0}, "questions=0"),
    ):
        with pytest.raises(TypeError, match=expected):
            entered(function, **more)
    with pytest.raises(UserError, match="strategy 'bad_default', as its default, parameter 'samples': found '0'"):
        entered(bad_default)


def test_a_decorated_function_is_no_part_of_the_library():
    def pdr(run):
        yield

    entered(pdr)
    assert get_strategy("pdr").source == "arXiv:2510.01123"


# -- the library -----------------------------------------------------------------------------------------------------


def test_the_library_is_consistent():
    library = list_strategies()
    assert [s.name for s in library] == sorted(s.name for s in library)
    words = Counter(word for s in library for word in (s.name, *s.aliases))
    assert not [word for word, times in words.items() if times > 1]
    for found in library:
        assert found.title and found.description and found.source, found.name
        assert found.function.__module__ == f"simulator.strategies.{found.name}"
        assert found.resolve(found.plain()) == found.resolve(), found.name
        for parameter in found.parameters:
            assert parameter.kind in KINDS
            assert parameter.help and not parameter.help.endswith("."), (found.name, parameter.name)
            assert parameter.origin, (found.name, parameter.name)
            assert (parameter.kind == "Seconds") <= parameter.name.endswith("_s"), (found.name, parameter.name)
            assert parameter.kind != "str" or parameter.choices, (found.name, parameter.name)


def test_every_file_of_the_library_that_holds_a_strategy_is_called_as_it():
    folder = Path(simulator.strategies.__path__[0])
    holding = {path.stem for path in folder.glob("*.py") if "\n@strategy(" in path.read_text()}
    assert holding == {found.name for found in list_strategies()}


def test_the_library_loads_nothing_heavy():
    heavy = ("scipy", "matplotlib", "rich", "pandas", "sklearn")
    code = (
        "import sys\nfrom simulator.strategies import list_strategies\nlist_strategies()\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# -- a user's own file -----------------------------------------------------------------------------------------------

PLAIN = '''
from dataclasses import dataclass

@dataclass
class Thing:
    size: int = 1

def two_rounds(run, width=3, length="lognormal:500:0.3", gain: float = 1, tries: int = 0, *, kind: str = "any"):
    """Two rounds."""
    drafts = yield run.all(run.generate(run.problem, "draft", length) for _ in range(width))
    return (yield run.generate(run.problem + run.text(drafts), "answer", _budget()))

def _helper(run):
    yield

def _budget():
    return 100
'''
DECORATED = '''
from simulator.strategies.pdr import pdr as library_pdr
from simulator.strategies.registry import Share, assumed, strategy

@strategy("my own", "a note", {"share": assumed("a share", "no reason")}, roles={"judge": "judges"})
def pdr(run, share: Share = 0.3):
    """Mine."""
    return (yield run.generate(run.problem, "answer", 5))

def helper(run):
    yield
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(text, name) -> the file's name, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)

    def written(text, name="mine.py"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return written


def test_a_plain_function_of_a_file(write):
    found = get_strategy(write(PLAIN))
    assert (found.name, found.title, found.source) == ("two_rounds", "two rounds", "mine.py")
    assert found.description == "Two rounds."
    kinds = {p.name: p.kind for p in found.parameters}
    assert kinds == {
        "problem_tok": "Lengths", "width": "int", "length": "str", "gain": "float", "tries": "int", "kind": "str",
    }  # fmt: skip
    assert found.plain({"width": "4", "length": "7"}) == {
        "problem_tok": 256, "width": 4, "length": "7", "gain": 1.0, "tries": 0, "kind": "any",
    }  # fmt: skip
    assert not any(p.published for p in found.parameters)
    assert any("mine.py" in line for line in found.assumptions)
    assert get_strategy("mine.py:two_rounds").function is found.function


def test_annotations_that_are_types_and_defaults_that_are_distributions(write):
    text = (
        "from simulator.strategies.registry import Share\n"
        "from simulator.workload.lengths import Lengths, LogNormal\n"
        "from simulator.workload.seconds import Seconds, parse_seconds\n"
        "WAIT = parse_seconds('uniform:1:2')\n"
        "def mine(run, a: Lengths = 5, b=LogNormal(9, 0.5), c: Share = 0.5, d=WAIT, e: int = 1):\n"
        "    yield\n"
    )
    found = get_strategy(write(text))
    assert [p.kind for p in found.parameters[1:]] == ["Lengths", "Lengths", "Share", "Seconds", "int"]
    assert found.plain()["b"] == "lognormal:9:0.5" and found.plain()["d"] == "uniform:1:2"


def test_a_decorated_function_of_a_file_does_not_meet_the_library(write):
    mine = get_strategy(write(DECORATED))
    assert (mine.title, mine.roles) == ("my own", {"judge": "judges"})
    assert get_strategy("pdr").title == "parallel-distill-refine"
    assert get_strategy("mine.py:library_pdr").title == "parallel-distill-refine"
    assert get_strategy("mine.py:helper").title == "helper"
    assert [s.name for s in list_strategies()].count("pdr") == 1


def test_a_file_is_read_again_when_it_has_changed(write):
    assert get_strategy(write("def one(run):\n    yield\n")).name == "one"
    assert get_strategy(write("def another(run):\n    yield\n")).name == "another"


def test_a_file_is_executed_once(write, capsys):
    name = write("print('loaded')\ndef one(run):\n    yield\n")
    get_strategy(name), get_strategy(name)
    assert capsys.readouterr().out == "loaded\n"


def test_a_file_may_import_its_neighbour(write):
    write("WIDTH = 5\n", "neighbour_of_mine.py")
    path = list(sys.path)
    assert (
        get_strategy(write("from neighbour_of_mine import WIDTH\ndef a(run, n=WIDTH):\n    yield\n")).plain()["n"] == 5
    )
    assert sys.path == path


DECORATOR = "from simulator.strategies.registry import *\n@strategy('title', 'source'"
HOSTILE = {
    "x = 1": "strategy file 'mine.py' has no strategy: expected a generator function",
    "": "has no strategy",
    "def a(run:\n    yield": "line 1: SyntaxError",
    "\n\nx = 1 / 0": "strategy file 'mine.py', line 3: ZeroDivisionError: division by zero",
    "def f():\n    g()\ndef g():\n    raise KeyError('deep')\nf()": "line 4: KeyError: 'deep'",
    "import sys\nsys.exit(7)": "line 2: SystemExit: 7",
    "import no_such_module_anywhere": "line 1: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    "raise ValueError('two\\nlines ' + 'x' * 9000)": "ValueError: two lines",
    "class E(BaseException):\n    def __str__(self):\n        return 1 / 0\nraise E": "line 4: E",
    "def f():\n    f()\nf()": "RecursionError",
    "def a(run):\n    yield\ndef b(run):\n    yield": "has 2 strategies (a, b): name one, as mine.py:a",
    "def a():\n    yield": "'a' takes no run",
    "def a(*run):\n    yield": "'a' takes no run",
    "def a(run, x):\n    yield": "parameter 'x' has no default",
    "def a(run, *x):\n    yield": "parameter 'x' cannot be given by name",
    "def a(run, x=1, /):\n    yield": "parameter 'x' cannot be given by name",
    "def a(run, x=[]):\n    yield": "parameter 'x' is of type list, expected one of int, float",
    "def a(run, x=True):\n    yield": "parameter 'x' is of type bool",
    "def a(run, x=None):\n    yield": "parameter 'x' is of type NoneType",
    "def a(run, x: dict = 1):\n    yield": "parameter 'x' is of type dict",
    "def a(run, x: int = 'q'):\n    yield": "parameter 'x': found 'q', expected a whole number",
    "def a(run, problem_tok=1):\n    yield": "parameter 'problem_tok': every strategy has it",
    "async def a(run):\n    yield": "has no strategy",
    f"{DECORATOR}, {{}})\ndef a(run, x: int = 1):\n    yield": "line 2: TypeError: strategy 'a': notes for []",
    f"{DECORATOR}, {{'x': assumed('h', 'o')}})\ndef a(run, x: int = 0):\n    yield": "line 2: strategy 'a', as its "
    "default, parameter 'x': found '0'",
    f"{DECORATOR}, {{}})\ndef a(run):\n    return run": "line 2: TypeError: strategy 'a' must be a generator function",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_files_that_cannot_be_used_are_one_sentence(write, text):
    with pytest.raises(UserError) as caught:
        get_strategy(write(text))
    assert HOSTILE[text] in str(caught.value)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"def a(run): yield\n\0", b"\xff\xfe\x00", b"# coding: nonsense\n"])
def test_files_that_are_no_text(write, text):
    with pytest.raises(UserError, match=r"strategy file 'mine.py'.*SyntaxError"):
        get_strategy(write(text))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none.py", "strategy file 'none.py' does not exist; expected a Python file as FILE.py or FILE.py:FUNCTION"),
        ("none.py:f", "strategy file 'none.py' does not exist"),
        ("folder.py", "strategy file 'folder.py' is not a file"),
        ("./mine", "strategy './mine' is not a Python file"),
        ("mine.py:", "'' is not the name of a function"),
        ("mine.py:two rounds", "'two rounds' is not the name of a function"),
        ("mine.py:two_round", "unknown function 'two_round' of 'mine.py'; nearest: two_rounds"),
        ("mine.py:Thing", "'Thing' is not a generator function"),
        ("mine.py:_budget", "'_budget' is not a generator function"),
        ("mine.py:dataclass", "'dataclass' is not a generator function"),
    ],
)
def test_names_of_files_and_functions(write, tmp_path, name, expected):
    (tmp_path / "folder.py").mkdir()
    write(PLAIN)
    with pytest.raises(UserError) as caught:
        get_strategy(name)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_failed_leaves_nothing_behind(write):
    modules, path = set(sys.modules), list(sys.path)
    with pytest.raises(UserError):
        get_strategy(write("import sys\nsys.path.clear()\nraise ValueError"))
    assert set(sys.modules) == modules
    sys.path[:] = path


def test_an_interrupt_while_a_file_loads_is_one(write):
    with pytest.raises(KeyboardInterrupt):
        get_strategy(write("raise KeyboardInterrupt"))
