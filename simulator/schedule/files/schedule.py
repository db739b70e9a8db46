"""Schedules as files: JSON documents of calls and waits that are read, flown and written again (docs/schedules.md)."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from simulator.errors import UserError
from simulator.schedule.files.complaints import DOCUMENT, complaint, does_not_fit, not_json, shown
from simulator.schedule.files.plan import Plan, make_plan
from simulator.schedule.files.replay import PROBLEM, Replay
from simulator.schedule.files.sheet import VERSION, ScheduleSheet
from simulator.schedule.run import Run
from simulator.workload.lengths import Fixed
from simulator.workload.seconds import FixedSeconds

MARK = "tokenflight_schedule"  # the field that says that a file is one of these

_decoder = msgspec.json.Decoder(ScheduleSheet)


@dataclass(frozen=True)
class Schedule:
    """A schedule that has been read and checked. `source`: the file as errors speak of it."""

    sheet: ScheduleSheet
    source: str
    plan: Plan

    def replay(self, run: Run) -> Generator:
        """The schedule as a strategy: a generator for `run.drive`."""
        return Replay(self.plan, self.source, run, self.sheet.texts.get(PROBLEM)).fly()

    @property
    def name(self) -> str:
        """Its own name, or that of its file."""
        return self.sheet.name or Path(self.source).name.removesuffix(".json")

    @property
    def about(self) -> str:
        """What the file says about itself."""
        return self.sheet.about

    @property
    def problem_tok(self) -> int:
        """Tokens of the text called 'problem', else of the first text, else 1: what a run has to be told."""
        texts = self.sheet.texts
        return texts.get(PROBLEM) or next(iter(texts.values()), 1)

    @property
    def streams(self) -> int:
        """Parallel streams of every forward pass (ParScale)."""
        return self.sheet.streams

    @property
    def diffusion(self) -> bool:
        """Whether it has calls that a diffusion model answers in passes."""
        return any(node.passes for node in self.sheet.nodes)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Roles that its calls name, each once."""
        return tuple(dict.fromkeys(node.role for node in self.sheet.nodes if node.role is not None))

    @cached_property
    def random(self) -> bool:
        """Whether anything is drawn, so that repetitions differ."""
        return not all(isinstance(step.length, (Fixed, FixedSeconds, type(None))) for step in self.plan.steps)


def load_schedule(path: str | os.PathLike) -> Schedule:
    """Read a schedule file. `UserError` in one sentence: file, node, field, what was found, what was expected."""
    name = os.fspath(path)
    if not name or "\0" in name:
        raise UserError(f"schedule file {name!r}: expected the name of a JSON file")
    file = Path(name).expanduser()
    try:
        if not file.is_file():
            what = "is not a file" if file.exists() else "does not exist"
            raise UserError(f"schedule file '{name}' {what}; expected {DOCUMENT}")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"schedule file '{name}' cannot be read: {error.strerror or error}") from None
    return parse_schedule(data, name)


def parse_schedule(data: bytes, source: str) -> Schedule:
    """A schedule from the bytes of its file; `source`: what errors call it."""
    try:
        sheet = _decoder.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except msgspec.ValidationError as error:
        raise does_not_fit(data, source, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(source, error) from None
    return check_sheet(sheet, source)


def check_sheet(sheet: ScheduleSheet, source: str) -> Schedule:
    """A schedule from its objects, which need not come from a file."""
    if sheet.tokenflight_schedule != VERSION:
        raise complaint(source, "", MARK, shown(sheet.tokenflight_schedule), f"{VERSION}, the version of this format")
    return Schedule(sheet, source, make_plan(sheet, source))


def schedule_text(sheet: ScheduleSheet) -> str:
    """The JSON document: a line per field, and per node."""
    fields = msgspec.to_builtins(sheet)
    lines = [f"  {_json(name)}: {_json(value)}" for name, value in fields.items() if name != "nodes"]
    nodes = ",\n".join(f"    {_json(node)}" for node in fields["nodes"])
    return "{\n" + ",\n".join([*lines, f'  "nodes": [\n{nodes}\n  ]']) + "\n}\n"


def write_schedule(sheet: ScheduleSheet, path: str | os.PathLike) -> Path:
    """Write a schedule file. `UserError` if it cannot be written, or if it would replace a file of another kind."""
    target = Path(path).expanduser()
    try:
        if target.is_file() and not _is_schedule(target):
            raise UserError(f"{path}: this is a file, and no schedule; expected a new file or a schedule to replace")
        target.write_text(schedule_text(sheet), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    return target


def _is_schedule(file: Path) -> bool:
    """Whether a file looks like a schedule, broken or not, or is empty."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        beginning = opened.read(1_000_000)
    return size == 0 or f'"{MARK}"'.encode() in beginning


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()
