"""Settings by name: what the options of `simulate` and `simulate traffic` say, out of a file or a sweep.

A setting is called as its option is, without the dashes in front and with underscores inside: `tensor_parallel_size`,
`input`, `width`. The option itself reads it, so that a value means the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import click

from simulator.cli.command import named_strategy
from simulator.cli.main import _scenario as strategy_scenario
from simulator.cli.main import simulate
from simulator.cli.options import OUTPUT, GroupedOption
from simulator.cli.strategy_options import given_parameters, library_uses
from simulator.cli.traffic import _scenario as traffic_scenario
from simulator.cli.traffic import traffic
from simulator.cli.traffic_loads import goodput
from simulator.errors import UserError, unknown_name
from simulator.scenario import Scenario
from simulator.strategies import Strategy, get_strategy
from simulator.traffic.metrics import Goodput
from simulator.traffic.scenario import TrafficScenario

KINDS = ("strategy", "traffic")
_COMMANDS = {"strategy": simulate, "traffic": traffic}
_ALIASES = {"kv_cache": "kv_cache_dtype"}  # as scenarios call it
_LISTED = ("role", "goodput")  # several in one text are parted by blanks


@cache
def options_of(kind: str) -> dict[str, GroupedOption]:
    """The options that settings of a kind may have, by setting; those that say what is shown are left out."""
    wanted = (p for p in _COMMANDS[kind].params if isinstance(p, GroupedOption))
    shown = {"strategy": (), "traffic": ("goodput",)}[kind]
    found = {}
    for each in wanted:
        if (each.group != OUTPUT or each.name in shown) and each.name != "settings":
            found |= {name.removeprefix("--").replace("-", "_"): each for name in each.opts}
    return found


def canonical_name(raw: str, kind: str) -> str:
    """The setting that `raw` means: dashes stand for underscores, and an option's second name for its first."""
    name = raw.strip().lstrip("-").replace("-", "_")
    name = _ALIASES.get(name, name)
    option = options_of(kind).get(name)
    return name if option is None else option.opts[0].removeprefix("--").replace("-", "_")


def name_settings(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`settings` under canonical names, values as given, None left out.

    UserError, with the nearest names, for one that is no option and no parameter of the library or of the strategy
    that is named, and for one that is given twice.
    """
    if kind not in KINDS:
        raise unknown_name("kind of simulation", kind, KINDS, f"expected {' or '.join(KINDS)}")
    found: dict[str, Any] = {}
    for raw, value in settings.items():
        name = canonical_name(raw, kind)
        if value is None:
            continue
        if name in found:
            raise UserError(f"setting '{name}' is given twice")
        found[name] = value
    check_names(list(found), kind, [str(found["strategy"])] if "strategy" in found else [])
    return found


def check_names(names: Iterable[str], kind: str, strategies: Iterable[str] = ()) -> None:
    """UserError for a canonical name that is no option and no parameter of the library or of `strategies`."""
    known = dict.fromkeys(options_of(kind))
    if kind == "strategy":
        own = (p.name for strategy in strategies for p in get_strategy(strategy).parameters)
        known |= dict.fromkeys((*library_uses(), *own))
    for name in names:
        if name not in known:
            command = "simulate" if kind == "strategy" else "simulate traffic"
            raise unknown_name("setting", name, known, f"settings are called as the options of {command} --help")


def read_settings(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """`settings` under canonical names, with values of the options' types. UserError on any bad one.

    Values are text as typed, or numbers, booleans, lists of texts (`role`, `goodput`); None is left out.
    """
    named = name_settings(settings, kind)
    values, strategy = _parse(named, kind)
    options = options_of(kind)
    found = {}
    for name in named:
        if name in options:
            read = values[options[name].name]
            found[name] = " ".join(read) if isinstance(read, tuple) else read
    own = given_parameters(values, strategy) if kind == "strategy" else {}
    plain = strategy.plain(own) if own else {}
    return {name: found.get(name, plain.get(name)) for name in named}


def read_value(name: str, value: Any, kind: str) -> Any:
    """A single value under a canonical name, as its option reads it; of a strategy's parameter as text. UserError."""
    option = options_of(kind).get(name)
    if option is None:
        return str(value).strip()
    if name in _LISTED:
        return value if isinstance(value, str) else " ".join(value)
    try:
        return option.type.convert(value, option, None)
    except click.BadParameter as error:
        raise UserError(f"{name}: {error.message.rstrip('.')}") from None


def scenario_of(settings: Mapping[str, Any], kind: str) -> tuple[Scenario | TrafficScenario, Goodput | None]:
    """What `settings` ask for, and limits of goodput. UserError when something is bad, missing or contradictory."""
    values, strategy = _parse(name_settings(settings, kind), kind)
    if kind == "strategy":
        return strategy_scenario(values, strategy), None
    return traffic_scenario(values), goodput(values["goodput"])


def _parse(named: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], Strategy | None]:
    """What click makes of the settings as a command line: values by option, and the strategy."""
    words = [word for name, value in named.items() for word in _words(name, value, options_of(kind).get(name))]
    command = _COMMANDS[kind]
    try:
        context = command.make_context(command.name, words)
    except click.ClickException as error:
        raise UserError(error.format_message().rstrip(".")) from None
    return context.params, named_strategy(context) if kind == "strategy" else None


def _words(name: str, value: Any, option: GroupedOption | None) -> list[str]:
    """One setting as words of a command line; what is no option is a parameter of the strategy."""
    if option is None:
        return [f"--set={name}={value}"]
    flag = option.opts[0]
    if option.is_flag:
        if click.BOOL.convert(value, option, None):
            return [flag]
        return list(option.secondary_opts[:1])
    if name in _LISTED:
        several = value.split() if isinstance(value, str) else value
        return [f"{flag}={each}" for each in several]
    return [f"{flag}={value}"]
