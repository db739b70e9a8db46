"""What is compared with what: candidates from words of a command line or from a TOML file.

against = "chain of thought"       # differences are to this one; without it to the first
best = "accuracy"                  # what the answer is best in; without it accuracy if it is known, else wall_s
[shared]                           # settings of all candidates, called as the options of `simulate`
gpu = "orin"
success = "beta:2:3"
[within]
wall_s = 10
[[candidate]]
name = "chain of thought"
strategy = "single"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.errors import UserError, unknown_name
from simulator.planning.within import Limit, figure_name, read_limits

ACCURACY = ("accuracy", "benchmark", "success", "wrong_answers", "verifier")  # beside what is simulated
TOP = ("against", "best", "shared", "within", "candidate")


@dataclass(frozen=True)
class Candidate:
    """One of those that are compared. settings: what is simulated; said: what is said of its accuracy."""

    name: str
    settings: dict[str, Any]
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A comparison. against: name of the reference; best: a figure, None to let the accuracies decide."""

    candidates: tuple[Candidate, ...]
    against: str
    within: tuple[Limit, ...] = ()
    best: str | None = None


def build_study(
    shared: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    within: Sequence[tuple[str, Any]] = (),
    against: str | None = None,
    best: str | None = None,
) -> Study:
    """A study of settings that all share and those of each candidate, `name` among them. UserError on bad ones.

    A shared parameter of strategies goes to the candidates whose strategy takes it.
    """
    if len(own) < 2:
        found = {0: "no candidate", 1: "one candidate"}[len(own)]
        raise UserError(f"found {found}; expected two or more to compare, as: compare --gpu orin single pdr,width=4")
    candidates = _candidates(shared, [_renamed(each, f"candidate {i}") for i, each in enumerate(own, 1)])
    names = [candidate.name for candidate in candidates]
    if against is not None and against not in names:
        raise unknown_name("candidate", against, names, f"against says which: {', '.join(names)}")
    wanted = None if best is None else figure_name(best, "figure of best")
    return Study(candidates, against or names[0], read_limits(list(within)), wanted)


def parse_words(text: str) -> dict[str, Any]:
    """'pdr,width=8' as settings: NAME=VALUE parted by commas, and a word without '=' is the strategy."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        name = name.strip() if equals else "strategy"
        if name in found:
            raise UserError(f"candidate '{text}': {name} is given twice")
        if equals and not value.strip():
            raise UserError(f"candidate '{text}': {name} has no value; expected NAME=VALUE")
        found[name] = value.strip() if equals else part
    if not found:
        raise UserError("a candidate is empty; expected NAME=VALUE parted by commas, as pdr,width=8")
    return found


def read_study(path: str, shared: Mapping[str, Any], **choice: Any) -> Study:
    """A study from a TOML file; what `shared` and `choice` (within, against, best) say counts before the file."""
    where = Path(path)
    try:
        found = tomllib.loads(where.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"study '{path}' does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"study '{path}' is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"study '{path}' cannot be read: {error.strerror or error}") from None
    for name in found:
        if name not in TOP:
            raise unknown_name("key", name, TOP, f"expected {', '.join(TOP)}", f"study '{path}'")
    tables = {name: _table(path, found, name) for name in ("shared", "within")}
    own = found.get("candidate", [])
    if not isinstance(own, list) or not all(isinstance(each, dict) for each in own):
        raise UserError(f"study '{path}': candidate is no list of tables; expected [[candidate]] for each")
    texts = {name: _text(path, found, name) for name in ("against", "best")}
    limits = choice.pop("within", ()) or tuple(tables["within"].items())
    chosen = {name: choice.get(name) or text for name, text in texts.items()}
    asked = _renamed(shared, "options")
    try:
        return build_study({**_renamed(tables["shared"], "shared"), **asked}, own, limits, **chosen)
    except UserError as error:
        raise UserError(f"study '{path}': {error}") from None


def _table(path: str, found: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = found.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"study '{path}': {name} is no table; expected [{name}] and NAME = VALUE below it")
    return table


def _text(path: str, found: Mapping[str, Any], name: str) -> str | None:
    text = found.get(name)
    if text is not None and not isinstance(text, str):
        raise UserError(f"study '{path}': {name} is {text!r}, expected a text")
    return text


def _renamed(settings: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """Settings under canonical names, those of the accuracy and `name` too. UserError when one is given twice."""
    from simulator.cli.settings import canonical_name  # the options say how they are called

    found: dict[str, Any] = {}
    for raw, value in settings.items():
        name = canonical_name(raw, "strategy")
        if name in found:
            raise UserError(f"{whose}: {name} is given twice")
        found[name] = value
    return found


def _candidates(shared: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    from simulator.cli.settings import check_names

    shared = _renamed(shared, "shared settings")
    every = [{**shared, **each} for each in own]
    takers = [str(each["strategy"]) for each in every if each.get("strategy") is not None]
    check_names([name for name in shared if name not in (*ACCURACY, "name")], "strategy", takers)
    for name in shared:
        if name not in (*ACCURACY, "name") and not any(_takes(each, name) for each in every):
            raise UserError(f"no strategy of the candidates takes '{name}': {', '.join(dict.fromkeys(takers))}")
    found, names = [], _names(own, every)
    for name, settings, each in zip(names, every, own):
        fitting = {k: v for k, v in settings.items() if k in each or k in ACCURACY or _takes(settings, k)}
        simulated = {k: v for k, v in fitting.items() if k not in (*ACCURACY, "name")}
        _check_own(name, simulated)
        found.append(Candidate(name, simulated, {k: v for k, v in fitting.items() if k in ACCURACY}))
    return tuple(found)


def _check_own(name: str, settings: Mapping[str, Any]) -> None:
    """UserError for a setting that nobody knows, or that the candidate's strategy does not take."""
    from simulator.cli.settings import check_names
    from simulator.strategies import get_strategy

    strategy = settings.get("strategy")
    try:
        check_names(list(settings), "strategy", () if strategy is None else (str(strategy),))
        if strategy is not None:
            own = {setting: value for setting, value in settings.items() if not _is_option(setting)}
            get_strategy(str(strategy)).resolve(own)
    except UserError as error:
        raise UserError(f"candidate '{name}': {error}") from None


def _is_option(name: str) -> bool:
    from simulator.cli.settings import options_of

    return name in options_of("strategy")


def _takes(settings: Mapping[str, Any], name: str) -> bool:
    """Whether a shared setting means something to a candidate: options do to all, parameters to some strategies."""
    from simulator.strategies import get_strategy

    if _is_option(name) or settings.get("strategy") is None:
        return True
    return name in {parameter.name for parameter in get_strategy(str(settings["strategy"])).parameters}


def _names(own: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names as given, else what the candidate sets; the same ones get a number. UserError for a name given twice."""
    given = [str(each["name"]).strip() for each in own if each.get("name") is not None]
    twice = next((name for i, name in enumerate(given) if name in given[:i]), None)
    if twice is not None:
        raise UserError(f"two candidates are called '{twice}'; expected a name of its own for each")
    names: list[str] = []
    for each, whole in zip(own, every):
        name = str(each["name"]).strip() if each.get("name") is not None else _described(each, whole)
        number, first = 2, name
        while name in names or (name in given and each.get("name") is None):
            name, number = f"{first} #{number}", number + 1
        names.append(name)
    return names


def _described(each: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """'pdr width=8': the strategy, if the candidate says it, and what else it sets."""
    others = [f"{name}={value}" for name, value in each.items() if name not in ("strategy", "name")]
    lead = [str(each["strategy"])] if "strategy" in each else []
    return " ".join([*lead, *others]) or str(whole.get("strategy", "candidate"))
