"""The sub-command `calibrate collect`: measure a real server or engine, write run records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from simulator.errors import UserError

EXIT_INCOMPLETE = 1  # some points could not be measured, or the time was used up; the same command goes on


def register(group: click.Group) -> None:
    """Add `collect` to the program."""
    group.add_command(collect)


class Sizes(click.ParamType):
    """Whole numbers from 1 on with commas between them: 1,4,16."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"found '{value}', expected whole numbers from 1 on, like 1,4,16", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


class Rates(click.ParamType):
    """Numbers above 0 with commas between them: 0.5,1,2."""

    name = "R,R,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            rates = [float(part) for part in str(value).split(",")]
        except ValueError:
            rates = [0.0]
        if not all(math.isfinite(rate) and rate > 0.0 for rate in rates):
            self.fail(f"found '{value}', expected requests per second above 0, like 0.5,1,2", param, ctx)
        return tuple(sorted(set(rates)))


class Positive(click.ParamType):
    """One number above 0."""

    name = "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 0.0):
            self.fail(f"found '{value}', expected a number above 0", param, ctx)
        return number


@click.command()
@click.option("--backend", required=True, metavar="NAME", help="vllm, vllm-bench, openai or transformers.")
@click.option("--model", required=True, metavar="ID_OR_CONFIG", help="Hugging Face id, or the path of a config.json.")
@click.option("--gpu", required=True, metavar="NAME_OR_SHEET", help="GPU, the path of a data sheet, or host-cpu.")
@click.option("--out", metavar="FOLDER", help="Journal, records and samples go here; the same command resumes.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where transformers runs. Default: cuda if there.")
@click.option("--dtype", metavar="TYPE", help="Of weights and activations: bf16, fp16, fp32. Default: the model's.")
@click.option("--power-mode", metavar="MODE", help="Jetson power mode, or a power cap (300W). Default: the sheet's.")
@click.option("--engine", metavar="NAME[:VERSION]", help="What serves behind openai. Default: vllm.")
@click.option("--base-url", metavar="URL", help="Server to measure (openai, vllm-bench).")
@click.option("--allow-remote", is_flag=True, help="Let --base-url be another machine.")
@click.option("--dummy-weights", is_flag=True, help="Do not load weights: times only, no power (vllm, transformers).")
@click.option("--cuda-graphs", type=click.Choice(["on", "off", "both"]), help="Default: as the engine does (vllm).")
@click.option("--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Setting of the engine; may be repeated.")
@click.option("--load", type=click.Choice(["static_batch", "closed_loop", "burst", "open_loop"]),
              help="Default: by back-end; open_loop with --rate or --trace.")  # fmt: skip
@click.option("--batch", type=Sizes(), help="Measure exactly these batches, or numbers of clients ...")
@click.option("--rate", type=Rates(), help="... or, open loop, requests per second (Poisson) ...")
@click.option("--input-tok", type=Sizes(), help="... with these prompt lengths ...")
@click.option("--output-tok", type=Sizes(), help="... and these output lengths.")
@click.option("--num-requests", type=click.IntRange(1, 1_000_000), metavar="N",
              help="Of each run of a closed or open loop. Default: 4 per client; as come in a minute.")  # fmt: skip
@click.option("--trace", metavar="FILE", help="Send the requests of a trace (openai): its lengths and times.")
@click.option("--trace-format", metavar="NAME", help="Format of the trace. Default: recognised.")
@click.option("--trace-speed", type=Positive(), help="Times of the trace are divided by it.")
@click.option("--minutes", type=Positive(), default=15.0, show_default=True,
              help="Time for measuring; the plan is made to fit. Not with --batch or --rate.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="A/A runs of one point.")
@click.option("--held-out", type=click.IntRange(0), help="Points for validation only. Default: a quarter.")
@click.option("--seconds-per-point", type=click.FloatRange(0), help="Least window. Default: 5 with a meter, else 1.")
@click.option("--meter", metavar="NAME", help="nvml, amd, jetson[:RAIL] or none. Default: what works.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--dry-run", is_flag=True, help="Show the plan and its time, measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def collect(**options: Any) -> None:
    """Measure an engine or a server and write run records that `calibrate fit` and `validate` read.

    Chooses the points that tell most of the simulator's parameters per second of measuring, or takes the grid given by
    --batch (or --rate), --input-tok and --output-tok, or sends the requests of a --trace. Prompts are random token ids
    or synthetic text. FOLDER gets journal.jsonl (everything, at once on disk), runs.csv (to fit), held_out.csv (to
    validate) and samples.jsonl.gz (raw times). After Ctrl-C or a crash the same command goes on where it stopped. See
    docs/collecting.md.

    \b
    Examples:
      calibrate collect --backend vllm --model Qwen/Qwen3-8B --gpu h100 --out h100 --dry-run
      calibrate collect --backend vllm --model Qwen/Qwen3-8B --gpu h100 --out h100 --minutes 20
      calibrate collect --backend openai --base-url http://127.0.0.1:8000 --model Qwen/Qwen3-8B --gpu h100 --out open
          --rate 1,2,4,8 --input-tok 512 --output-tok 128
      calibrate fit h100/runs.csv --gpu h100 --out my-h100.toml
      validate h100/held_out.csv --profile my-h100.toml
    """
    from calibration.collect.asked import asked_of
    from calibration.collect.campaign import Campaign

    as_json, dry_run, out = options.pop("as_json"), options.pop("dry_run"), options.pop("out")
    campaign = Campaign(asked_of(options, Path(out) if out else None))
    if dry_run:
        _show_plan(campaign.expected_plan(), as_json)
        return
    if out is None:
        raise UserError("--out is missing, expected a folder for journal, records and samples (or --dry-run)")
    _measure(campaign, Path(out), as_json)


def _show_plan(plan: Any, as_json: bool) -> None:
    from calibration.collect.plan_text import plan_json, plan_text

    click.echo(plan_json(plan) if as_json else plan_text(plan))


def _measure(campaign: Any, folder: Path, as_json: bool) -> None:
    from calibration.collect.plan_text import result_json, result_text
    from simulator.cli.progress import ProgressBar

    def say(text: str) -> None:
        click.echo(text, err=True)

    with ProgressBar("points measured") as bar:
        result = campaign.measure(folder, bar, say)
    click.echo((result_json if as_json else result_text)(result))
    if result.failures or result.left:
        click.get_current_context().exit(EXIT_INCOMPLETE)
