"""How `simulate` presents itself: grouped help with worked examples, and a word for stray arguments."""

from __future__ import annotations

import click

from simulator.cli.exits import OneLineErrors
from simulator.cli.options import GROUPS, GroupedOption

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
  simulate --list strategies   every strategy with its paper, parameters and defaults
  README.md                    what the numbers mean, and when not to believe them
  validate                     checks measured runs against the simulator
  calibrate                    fits a profile to your own measurements (--calibration FILE)
"""


class Program(OneLineErrors, click.Group):
    """A click group that keeps its options in groups and ends its help with examples."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A sub-command by name; a stray word gets told where words go."""
        if self.get_command(ctx, args[0]) is None and not self.list_commands(ctx):
            ctx.fail(f"unexpected argument '{args[0]}'; a GPU goes behind --gpu, a strategy behind --strategy")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under their headings, in the order of GROUPS, then sub-commands."""
        for group in GROUPS:
            records = []
            for parameter in self.get_params(ctx):
                own = parameter.group if isinstance(parameter, GroupedOption) else "Output"
                record = parameter.get_help_record(ctx)
                if own == group and record is not None:
                    records.append(record)
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Worked examples, as they are typed."""
        formatter.write(EXAMPLES)
