"""The options of `simulate`, grouped for `--help`; those of the strategies are made from the registry.

Every parameter of the library is an option, whatever strategy is asked for, so that a wrong one can be told from an
unknown one. A strategy from a file adds its own. `--set NAME=VALUE` reaches all of them, also those whose name is that
of another option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import click

from simulator.cli.explain import explain_options
from simulator.cli.options import (
    OUTPUT,
    AtLeast,
    GroupedOption,
    decorated,
    device_options,
    engine_options,
    option,
    statistics_options,
)
from simulator.errors import UserError
from simulator.strategies import Parameter, Strategy, list_strategies
from simulator.workload.lengths import SYNTAX as LENGTHS_SYNTAX
from simulator.workload.seconds import SYNTAX as SECONDS_SYNTAX

LISTS = ("gpus", "models", "strategies", "traces")
_FLIGHT, _QUESTIONS, _ENGINE, _STATISTICS, PARAMETERS = (
    "What flies",
    "Questions and servers",
    "Serving engine (vLLM's names)",
    "Repetitions and money",
    "Parameters of the strategies (TOKENS: 1024, uniform:512:1024, lognormal:MEAN:SIGMA or file:PATH)",
)
GROUPS = (_FLIGHT, _QUESTIONS, _ENGINE, _STATISTICS, OUTPUT, PARAMETERS)

_PREFIX = "parameter_"  # of the names under which click keeps parameters: they may be called as any other option
SHARED_BY = 4  # a parameter that at least one in so many strategies takes is in the help of all
_METAVARS = {"int": "N", "float": "X", "Share": "SHARE", "Lengths": "TOKENS", "Seconds": "SECONDS", "str": "WORD"}

Use = tuple[Strategy, Parameter]  # a parameter and the strategy that takes it


def add_options(command: Callable) -> Callable:
    """Put every option of `simulate` on the function, but for those of `parameter_options`."""
    return decorated(
        command,
        [
            *_flight(),
            *_questions(),
            *engine_options(_ENGINE),
            *statistics_options(_STATISTICS),
            *_output(),
            option(
                PARAMETERS,
                "--set",
                "settings",
                multiple=True,
                metavar="NAME=VALUE",
                help="Any parameter of the strategy by its name: --set width=4 is --width 4. May be repeated.",
            ),
        ],
    )


def _flight() -> list[Callable]:
    gpu, *others = device_options(_FLIGHT)
    return [
        gpu,
        option(
            _FLIGHT,
            "--strategy",
            metavar="NAME|FILE",
            help="Inference strategy by name (--list strategies), or a Python file of yours as FILE.py or "
            "FILE.py:FUNCTION.",
        ),
        option(_FLIGHT, "--schedule", metavar="FILE", help="A schedule of calls (JSON) instead of a strategy."),
        option(
            _FLIGHT,
            "--role",
            "roles",
            multiple=True,
            metavar="NAME=MODEL[@GPU]",
            help="Let another model play a role of the strategy, on a device of its own if one is named: "
            "judge=qwen3-0.6b@l4. May be repeated.  [default: the model itself]",
        ),
        *others,
    ]


def _questions() -> list[Callable]:
    whole = AtLeast(1)
    return [
        option(
            _QUESTIONS,
            "--questions",
            type=whole,
            metavar="N",
            help="Questions to answer.  [default: 1, or the size of the set that the strategy works on]",
        ),
        option(
            _QUESTIONS,
            "--question-lengths",
            metavar="FILE",
            help="Prompt tokens of the questions: one number per line, or a column of a CSV file as FILE:COLUMN.  "
            "[default: --problem-tok]",
        ),
        option(
            _QUESTIONS,
            "--concurrency",
            type=whole,
            metavar="C",
            help="Questions in flight at once.  [default: all; --max-num-seqs limits the calls that run]",
        ),
        option(
            _QUESTIONS,
            "--replicas",
            type=whole,
            metavar="N",
            help="Servers that share the calls, each on devices of its own.  [default: 1]",
        ),
    ]


def _output() -> list[Callable]:
    return [
        option(OUTPUT, "--json", "as_json", is_flag=True, help="One JSON object on stdout, with all calls."),
        option(OUTPUT, "--plot", metavar="FILE", help="Gantt chart and power trace as .png, .svg or .pdf."),
        *explain_options(),
        option(OUTPUT, "--save-schedule", metavar="FILE", help="Write what flew as a schedule, for --schedule."),
        option(
            OUTPUT,
            "--idealized",
            is_flag=True,
            help="Report the idealized runtime of arXiv:2305.02440, too: the calls without queueing and contention.",
        ),
        option(OUTPUT, "--list", "what", type=click.Choice(LISTS), help="Show what is known, and simulate nothing."),
    ]


def library_uses() -> dict[str, list[Use]]:
    """Parameter name -> the strategies that take it, each with its own default; those of most strategies first."""
    found: dict[str, list[Use]] = {}
    for strategy in list_strategies():
        for parameter in strategy.parameters:
            found.setdefault(parameter.name, []).append((strategy, parameter))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


class ParameterOption(GroupedOption):
    """The option of a strategy parameter; its help is put together when somebody reads it."""

    def __init__(self, name: str, uses: Sequence[Use]) -> None:
        super().__init__([option_name(name), f"{_PREFIX}{name}"], metavar=_metavar(uses), group=PARAMETERS)
        self.uses = uses

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Only what many strategies share; `simulate --strategy NAME --help` shows the others."""
        every = len(list_strategies())
        if len(self.uses) * SHARED_BY < every:
            return None
        return f"{self.opts[0]} {self.metavar}", _shared_help(self.uses, every)


def parameter_options(strategy: Strategy | None, taken: Sequence[str]) -> list[ParameterOption]:
    """An option for each parameter of the library and of `strategy`; names that are `taken` are left to --set."""
    uses = library_uses()
    for parameter in strategy.parameters if strategy is not None else ():
        uses.setdefault(parameter.name, [(strategy, parameter)])
    return [ParameterOption(name, found) for name, found in uses.items() if option_name(name) not in taken]


def option_name(parameter: str) -> str:
    """What a parameter is called on the command line."""
    return f"--{parameter.replace('_', '-')}"


def parameter_record(parameter: Parameter, taken: Sequence[str]) -> tuple[str, str]:
    """A parameter in the help of its strategy: '--width N' and what it means, with default and origin."""
    name, metavar = option_name(parameter.name), _METAVARS[parameter.kind]
    if parameter.choices is not None:
        metavar = f"[{'|'.join(parameter.choices)}]"
    left = f"--set {parameter.name}={metavar}" if name in taken else f"{name} {metavar}"
    origin = "published" if parameter.published else "assumed"
    return left, f"{_sentence(parameter.help)}  [default: {parameter.default}, {origin}: {parameter.origin}]"


def parameters_title(kinds: Collection[str]) -> str:
    """The heading over the parameters of one strategy: what may stand behind them, where it is not just a number."""
    syntax = {"Lengths": f"TOKENS: {LENGTHS_SYNTAX}", "Seconds": f"SECONDS: {SECONDS_SYNTAX}"}
    return f"Parameters ({'; '.join(text for kind, text in syntax.items() if kind in kinds)})"


def more_parameters() -> str:
    """What the help of all strategies says about the parameters that it leaves out."""
    every = len(list_strategies())
    hidden = [uses for uses in library_uses().values() if len(uses) * SHARED_BY < every]
    return (
        f"{len(hidden)} parameters more belong to few of the {every} strategies: simulate --strategy NAME --help shows "
        "all that one strategy takes, with its own defaults."
    )


def _metavar(uses: Sequence[Use]) -> str:
    kinds = {parameter.kind for _, parameter in uses}
    return _METAVARS[kinds.pop()] if len(kinds) == 1 else "VALUE"


def _shared_help(uses: Sequence[Use], every: int) -> str:
    """'Samples drawn.  [12 strategies; 8 in 9 of them]': what it means in most strategies, and their default."""
    (text, meant), *_ = Counter(parameter.help for _, parameter in uses).most_common()
    (default, times), *others = Counter(str(parameter.default) for _, parameter in uses).most_common()
    takers = "all" if len(uses) == every else f"{len(uses)} strategies"
    told = f"{takers}; {default} in {times} of them" if others else f"{takers}: {default}"
    return f"{_sentence(text if 2 * meant > len(uses) else 'what it counts depends on the strategy')}  [{told}]"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def given_parameters(values: Mapping[str, Any], strategy: Strategy | None) -> dict[str, str]:
    """The parameters that the user gave, by options of their own or by --set, as text. None: a schedule flies.

    UserError for options that the strategy does not take, and for a parameter that is given twice.
    """
    own = {name: value for name, value in values.items() if name.startswith(_PREFIX) and value is not None}
    found = {name.removeprefix(_PREFIX): value for name, value in own.items()}
    if strategy is None:
        words = [*map(option_name, found), *(f"--set {setting}" for setting in values["settings"])]
        if words:
            raise UserError(
                f"{words[0]} is a parameter of strategies, and a schedule has none: its file says everything"
            )
        return {}
    taken = [parameter.name for parameter in strategy.parameters]
    extra = [name for name in found if name not in taken]
    if extra:
        words, known = ((", ".join(map(option_name, names))) for names in (extra, taken))
        raise UserError(f"strategy '{strategy.name}' does not take {words}; it takes {known}")
    for setting in values["settings"]:
        raw, equals, value = setting.partition("=")
        name = raw.strip().replace("-", "_")
        if not equals or not name:
            raise UserError(f"--set {setting}: expected NAME=VALUE, as: --set width=4")
        if name in found:
            raise UserError(f"--set {setting}: parameter '{name}' is given twice")
        found[name] = value
    return found
