"""How `simulate` presents itself: grouped help with worked examples, and a word for stray arguments."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from simulator.cli.exits import OneLineErrors
from simulator.cli.options import OUTPUT, GroupedOption

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
  simulate traffic --help      what happens when requests arrive at a server
  simulate --list strategies   every strategy with its paper, parameters and defaults
  README.md                    what the numbers mean, and when not to believe them
  validate                     checks measured runs against the simulator
  calibrate                    fits a profile to your own measurements (--calibration FILE)
"""


SUBCOMMANDS = {"traffic": "simulator.cli.traffic"}  # name -> module with a click command of that name


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
    """The group `simulate`; its sub-commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return getattr(import_module(SUBCOMMANDS[name]), name) if name in SUBCOMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A sub-command by name; a stray word gets told where words go."""
        if args[0] not in SUBCOMMANDS:
            near = get_close_matches(args[0], SUBCOMMANDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "a GPU goes behind --gpu, a strategy behind --strategy"
            ctx.fail(f"unexpected argument '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)
