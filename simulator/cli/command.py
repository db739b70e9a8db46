"""How `simulate` presents itself: grouped help with examples, the help of one strategy, a word for stray arguments."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from simulator.cli.exits import OneLineErrors
from simulator.cli.options import OUTPUT, GroupedOption
from simulator.cli.strategy_options import (
    more_parameters,
    option_name,
    parameter_options,
    parameter_record,
    parameters_title,
)
from simulator.strategies import Strategy, get_strategy

EXAMPLES = """
Examples:
  Parallel-distill-refine on a Jetson AGX Orin, the model picked by memory:
    simulate --gpu orin --strategy pdr
  Sixteen samples and a vote, int4 weights, in the 30 W mode:
    simulate --gpu orin --power-mode 30W --strategy self_consistency --samples 16 --weights int4
  A named model with longer thoughts; a picture of where the time goes:
    simulate --gpu h100 --model Qwen/Qwen3-8B --strategy pdr --thinking-tok lognormal:8192:0.6 --plot flight.png
  Your own GPU and model files, everything as JSON:
    simulate --gpu ./my-gpu.toml --model ./config.json --strategy best_of_n --json
  What is known:
    simulate --list gpus
    simulate --list strategies --json

Where to look next:
  simulate --list strategies        every strategy with its paper, parameters and defaults
  simulate --strategy NAME --help   what one strategy does, and what can be set
  simulate traffic --help           what happens when requests arrive at a server
  simulate compare --help           several strategies, models or GPUs on one task, with intervals
  simulate sweep --help             a grid of runs as one table
  simulate plan --help              the cheapest deployments that meet a target
  simulate import --help            a schedule out of an agent's log
  README.md                         what the numbers mean, and when not to believe them
  validate                          checks measured runs against the simulator
  calibrate                         fits a profile to your own measurements (--calibration FILE)
"""


# name -> module with a click command of that name
SUBCOMMANDS = {
    "traffic": "simulator.cli.traffic",
    "compare": "simulator.cli.compare",
    "sweep": "simulator.cli.sweep",
    "plan": "simulator.cli.plan",
    "import": "simulator.cli.import_log",
}
_STRATEGY, _OPTIONS = f"{__name__}.strategy", f"{__name__}.options"  # what the context of a command line carries


class GroupedHelp(click.Command):
    """Mixed into a click command that keeps its options in groups and ends its help with examples."""

    def __init__(self, *args: Any, groups: Sequence[str] = (), examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under their headings, in the order of `groups`, then sub-commands."""
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        for group in self.groups:
            records = []
            for parameter in self.get_params(ctx):
                if not isinstance(parameter, click.Option):
                    continue
                own = parameter.group if isinstance(parameter, GroupedOption) else OUTPUT
                record = parameter.get_help_record(ctx)
                if own == group and record is not None:
                    records.append(record)
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Worked examples, as they are typed."""
        formatter.write(self.examples)


class SubCommand(GroupedHelp):
    """A command behind `simulate`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; a complaint that does not say whose it is gets this command, whose help explains it."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Program(GroupedHelp, OneLineErrors, click.Group):
    """The group `simulate`; its sub-commands are imported when they are named.

    The strategy is looked up before anything else is parsed: its parameters are options, and `--help` is about it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the options of the strategies. UserError for a strategy that is not known."""
        name = _named_strategy(args)
        ctx.meta[_STRATEGY] = get_strategy(name) if name is not None else None
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, and one for each parameter of the strategies."""
        own = super().get_params(ctx)
        if _OPTIONS not in ctx.meta:
            ctx.meta[_OPTIONS] = parameter_options(ctx.meta.get(_STRATEGY), _words(own))
        return [*own, *ctx.meta[_OPTIONS]]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help of the strategy that is named, or else of the program."""
        strategy = ctx.meta.get(_STRATEGY)
        if strategy is None:
            super().format_help(ctx, formatter)
        else:
            _format_strategy(strategy, formatter, _words(super().get_params(ctx)))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Where the parameters are that were left out, and worked examples."""
        with formatter.indentation():
            formatter.write_paragraph()
            formatter.write_text(more_parameters())
        super().format_epilog(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in SUBCOMMANDS:
            return None
        found = vars(import_module(SUBCOMMANDS[name])).values()
        return next(command for command in found if isinstance(command, click.Command) and command.name == name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A sub-command by name; a stray word gets told where words go."""
        if args[0] not in SUBCOMMANDS:
            near = get_close_matches(args[0], SUBCOMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "a GPU goes behind --gpu, a strategy behind --strategy"
            ctx.fail(f"unexpected argument '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)


def named_strategy(ctx: click.Context) -> Strategy | None:
    """The strategy on the command line."""
    return ctx.meta[_STRATEGY]


def _named_strategy(args: Sequence[str]) -> str | None:
    """What stands behind the last --strategy of the program itself; None without it."""
    found = None
    for word, following in zip(args, [*args[1:], None]):
        if word in SUBCOMMANDS:
            break
        if word == "--strategy" and following is not None:
            found = following
        elif word.startswith("--strategy="):
            found = word.partition("=")[2]
    return found


def _words(options: Sequence[click.Parameter]) -> list[str]:
    """How options are called, both halves of switches included."""
    return [word for each in options for word in (*each.opts, *each.secondary_opts)]


def _format_strategy(strategy: Strategy, formatter: click.HelpFormatter, taken: Sequence[str]) -> None:
    """Everything about one strategy: paper, what it does, parameters, roles, questions, assumptions."""
    formatter.write_usage("simulate", f"--gpu NAME --strategy {strategy.name} [OPTIONS]")
    formatter.write_paragraph()
    with formatter.indentation():
        aliases = f"; also {', '.join(strategy.aliases)}" if strategy.aliases else ""
        formatter.write_text(f"{strategy.title} ({strategy.source}){aliases}")
        if strategy.description:
            formatter.write_paragraph()
            formatter.write_text(strategy.description)
    with formatter.section(parameters_title({parameter.kind for parameter in strategy.parameters})):
        formatter.write_dl([parameter_record(parameter, taken) for parameter in strategy.parameters])
    if strategy.roles:
        with formatter.section("Roles that another model may play (--role NAME=MODEL[@GPU])"):
            formatter.write_dl(list(strategy.roles.items()))
    for title, facts in (("Needs", _needs(strategy)), ("Assumptions", strategy.assumptions)):
        if facts:
            with formatter.section(title):
                formatter.write_dl([("-", fact) for fact in facts])
    formatter.write_paragraph()
    formatter.write_text("GPU, model, engine, output and all other options: simulate --help")


def _needs(strategy: Strategy) -> list[str]:
    """What a strategy works on and with that is not a matter of course."""
    found = []
    if strategy.questions is not None:
        found.append(f"a set of questions: {strategy.questions} of them unless --questions says other")
    if strategy.streams is not None:
        found.append(f"a model with {option_name(strategy.streams)} parallel streams in every forward pass")
    if strategy.diffusion:
        found.append("a diffusion model, as --model llada-8b is")
    return found
