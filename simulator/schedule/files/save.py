"""A run that has ended, as a schedule file: the calls that it made, with what they read, wrote and waited for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

import msgspec

from simulator.errors import UserError
from simulator.schedule.calls import After, Call, Task, Wait
from simulator.schedule.files.order import implied
from simulator.schedule.files.replay import PROBLEM
from simulator.schedule.files.schedule import parse_schedule, schedule_text, write_schedule
from simulator.schedule.files.sheet import (
    MAX_NAME,
    MAX_NODES,
    VERSION,
    Entry,
    NodeSheet,
    Part,
    PassSheet,
    Running,
    ScheduleSheet,
    Until,
    Written,
)
from simulator.schedule.run import Run

START = "start"  # a wait of no length, where something happened before anything had been waited for
GATE = 4  # so many entries that several calls waited for are gathered in a gate


def save_schedule(
    run: Run, path: str | os.PathLike, *, name: str | None = None, about: str = "", streams: int = 1
) -> Path:
    """Write what a run did as a schedule file; flown on the same engines it gives the same times.

    All lengths and waits are those that were drawn. `UserError` if the file cannot be written, or if it would replace
    a file of another kind.
    """
    sheet = schedule_of(run, name=name, about=about, streams=streams)
    parse_schedule(schedule_text(sheet).encode(), os.fspath(path))  # what is written can be read
    return write_schedule(sheet, path)


def schedule_of(run: Run, *, name: str | None = None, about: str = "", streams: int = 1) -> ScheduleSheet:
    """The objects of such a file."""
    if len(run.submitted) > MAX_NODES:
        count = len(run.submitted)
        raise UserError(f"the run made {count:,} calls and waits; expected at most {MAX_NODES:,} in a schedule file")
    return _Recorder(run).sheet(name, about, streams)


class _Recorder:
    """Names for everything in a run, and its calls and waits in these names."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ids = dict(zip(run.submitted, _ids(run.submitted)))
        self.by_number = {task.call_id: task for task in run.submitted}
        self.groups: dict[int | None, list[Call]] = {}  # lock-step groups by number
        for call in run.calls:
            self.groups.setdefault(call.group, []).append(call)
        self.tokens: dict[Hashable, int] = {}  # of texts, at their longest
        for call in run.calls:
            self._measure(call.prompt.parts)
        self.texts = dict(zip(self.tokens, _text_names(self.tokens, run)))
        self.only_reads = self._only_reads()

    def sheet(self, name: str | None, about: str, streams: int) -> ScheduleSheet:
        nodes = _gathered([self._call(t) if isinstance(t, Call) else self._wait(t) for t in self.run.submitted])
        if any(START in node.stopped_by for node in nodes):
            nodes.insert(0, NodeSheet(id=START, kind="wait", seconds=0.0))
        return ScheduleSheet(
            tokenflight_schedule=VERSION,
            name=_printable(name) if name else None,
            about=about,
            texts={self.texts[part_id]: tokens for part_id, tokens in self.tokens.items()},
            streams=streams,
            nodes=tuple(nodes),
            answer=tuple(self.ids[call] for call in self.run.answer),
        )

    def _measure(self, parts: Iterable[tuple[Hashable, int]]) -> None:
        for part_id, tokens in parts:
            if not _is_instruction(part_id) and self._writer(part_id) is None:
                self.tokens[part_id] = max(tokens, self.tokens.get(part_id, 0))

    def _writer(self, part_id: Hashable) -> Call | None:
        """The call whose output this is."""
        is_output = isinstance(part_id, tuple) and len(part_id) == 2 and part_id[0] == "output"
        return self.by_number.get(part_id[1]) if is_output else None

    # -- nodes -----------------------------------------------------------------------------------------------

    def _wait(self, wait: Wait) -> NodeSheet:
        label = _printable(wait.label)
        return NodeSheet(
            id=self.ids[wait], kind="wait", label=label, after=self._entries(wait.after), seconds=wait.drawn_s
        )

    def _call(self, call: Call) -> NodeSheet:
        length, limit = call.drawn_tok, None
        if call.group is not None:  # the workers of a group draw one length, which each may cut
            length = max(other.drawn_tok for other in self.groups[call.group])
            limit = call.drawn_tok if call.drawn_tok < length else None
        return NodeSheet(
            id=self.ids[call],
            label=_printable(call.label),
            after=() if call in self.only_reads else self._entries(call.after),
            prompt=tuple(self._part(*part) for part in call.prompt.parts),
            output_tok=length,
            max_tok=limit,
            role=call.role,
            attend=tuple(self._attended(call, other) for other in call.attend),
            keep=self._keep(call),
            stopped_by=self._stopped_by(call),
            together=None if call.group is None else f"group {call.group + 1}",
            passes=tuple(PassSheet(*stage) for stage in call.passes),
            accepted=call in self.run.accepted,
        )

    def _part(self, part_id: Hashable, tokens: int) -> str | Part:
        if _is_instruction(part_id):
            return Part(instruction=part_id[1], tokens=tokens)
        writer = self._writer(part_id)
        if writer is not None:
            return Part(output=self.ids[writer], first=tokens if tokens < writer.output_tok else None)
        name = self.texts[part_id]
        return name if tokens == self.tokens[part_id] else Part(text=name, first=tokens)

    def _only_reads(self) -> set[Call]:
        """Calls that waited for nothing but what they read: so will the reader of the file find out by itself.

        It leaves out what has ended in any case, and then a call that waited for that, too, has to say so.
        """
        places = {task: i for i, task in enumerate(self.run.submitted)}
        events = [[entry if isinstance(entry, tuple) else (entry, 0) for entry in task.after] for task in places]
        ended = [[places[task] for task, written in found if not written] for found in events]
        begun = [[places[task] for task, written in found if written] for found in events]
        asked = {places[call]: ended[places[call]] for call in self.run.calls if self._read_by(call) == set(call.after)}
        dropped = {number for number, _ in implied(range(len(places)), ended, begun, asked, set())}
        return {self.run.submitted[number] for number in asked if number not in dropped}

    def _read_by(self, call: Call) -> set[Call]:
        """The calls whose output it reads, or whose KV it attends to after their end."""
        read = {self._writer(part_id) for part_id, _ in call.prompt.parts} - {None}
        return read | {other for other in call.attend if not _runs(call, other)}

    def _attended(self, call: Call, other: Call) -> str | Running:
        return Running(self.ids[other]) if _runs(call, other) else self.ids[other]

    def _keep(self, call: Call) -> bool | Until:
        if not call.keep or call.released_by is None:
            return call.keep
        return Until(self._entries(call.released_by) or (self.ids[call],))

    def _stopped_by(self, call: Call) -> tuple[Entry, ...]:
        group = () if call.group is None else self.groups[call.group]
        if any(other.stopped_by != call.stopped_by for other in group):
            raise UserError(f"lock-step calls '{call.label}' were stopped one by one, which no schedule file can say")
        return self._entries(call.stopped_by) or ((START,) if call.stopped else ())

    def _entries(self, entries: Iterable[After]) -> tuple[Entry, ...]:
        """In the order of submission; that no token is written needs no waiting."""
        events = sorted(
            (e[0].call_id, e[1], e[0]) if isinstance(e, tuple) else (e.call_id, 0, e)
            for e in entries
            if not isinstance(e, tuple) or e[1] > 0
        )
        return tuple(
            Written(call=self.ids[task], written=tokens) if tokens else self.ids[task] for _, tokens, task in events
        )


def _gathered(nodes: Iterable[NodeSheet]) -> list[NodeSheet]:
    """The nodes, with a gate in front of the first of those that wait for the same many."""
    nodes = list(nodes)
    uses = Counter(node.after for node in nodes if len(node.after) >= GATE)
    gates: dict[tuple[Entry, ...], str] = {}
    found = []
    for node in nodes:
        if uses[node.after] > 1:
            if node.after not in gates:
                gates[node.after] = f"gate {len(gates) + 1}"
                found.append(NodeSheet(id=gates[node.after], kind="gate", after=node.after))
            node = msgspec.structs.replace(node, after=(gates[node.after],))
        found.append(node)
    return found


def _runs(call: Call, other: Call) -> bool:
    """Whether `other` had not finished when `call` was submitted."""
    return other.record.finished_s > call.record.submitted_s


def _is_instruction(part_id: Hashable) -> bool:
    return (
        isinstance(part_id, tuple)
        and len(part_id) == 2
        and part_id[0] == "instruction"
        and isinstance(part_id[1], str)
        and part_id[1] == _printable(part_id[1])
    )


def _ids(tasks: Iterable[Task]) -> Iterable[str]:
    """'draft-1', 'draft-2': the label and which of this label it is."""
    counts: Counter[str] = Counter()
    for task in tasks:
        label = _printable(task.label)[: MAX_NAME - 10]
        counts[label] += 1
        yield f"{label}-{counts[label]}"


def _text_names(part_ids: Iterable[Hashable], run: Run) -> Iterable[str]:
    """A name for each text: its own where it has one, and no name twice."""
    used: set[str] = set()
    only = run.problem.parts[0][0] if len(run.problems) == 1 and run.problem.parts else None
    for part_id in part_ids:
        words = part_id if isinstance(part_id, tuple) else (part_id,)
        name = PROBLEM if part_id == only else _printable(" ".join(map(str, words)))[: MAX_NAME - 10]
        if name in used:
            name = next(numbered for n in range(2, MAX_NODES**2) if (numbered := f"{name} {n}") not in used)
        used.add(name)
        yield name


def _printable(text: str) -> str:
    """A label or name as a file may have it."""
    cleaned = "".join(sign if sign.isprintable() else "?" for sign in text[:MAX_NAME])
    return cleaned or "?"
