"""A log of requests to a model, as an agent leaves it, as a schedule: who waited for whom, and which texts were shared.

Texts never reach the schedule: it has token counts and ids that say nothing. What the log does not say is assumed, and
every assumption is told.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.errors import UserError
from simulator.schedule.agent_logs.prompts import PromptBook, choice_tok
from simulator.schedule.agent_logs.records import EMBEDDING, FAILURE, SILENT
from simulator.schedule.agent_logs.turns import Log, most_at_once, read_turns, set_in_time
from simulator.schedule.files.sheet import MAX_NODES, VERSION, NodeSheet, ScheduleSheet
from simulator.workload.traffic import counted

SMALL_S = 1e-6  # a gap below it is none: clocks of logs are no finer
GATE = 3  # so many nodes that several others wait for are gathered in a gate


@dataclass(frozen=True)
class Imported:
    """A schedule, what was found in the log, and what was assumed about it. Times in seconds, texts in tokens."""

    sheet: ScheduleSheet
    found: dict[str, object]
    assumptions: tuple[str, ...]


def import_log(path: str | os.PathLike, max_gap_s: float | None = None) -> Imported:
    """The schedule of a log. max_gap_s: longer gaps between requests are shortened to it.

    Raises `UserError`: file, line, field, what was found and what was expected.
    """
    log = read_turns(path)
    set_in_time(log, max_gap_s)
    book = PromptBook()
    for turn in log.turns:
        turn.prompt = book.add(turn.request, turn.end_s, turn.ids)
    models = [model for model, _ in Counter(turn.request.model for turn in log.turns).most_common()]
    sheet = ScheduleSheet(
        tokenflight_schedule=VERSION,
        name="imported log",
        about="imported from a log of requests: order, lengths and gaps are the log's, texts are not kept",
        texts=book.texts,
        nodes=tuple(_nodes(log, models)),
        answer=log.by_end[-1].ids,
    )
    if len(sheet.nodes) > MAX_NODES:
        raise UserError(f"log '{path}' becomes {len(sheet.nodes):,} nodes, expected at most {MAX_NODES:,}")
    return Imported(sheet, _found(log, models, sheet), tuple(_assumptions(log, models)))


def _nodes(log: Log, models: Sequence[str]) -> list[NodeSheet]:
    """A node per answer, in front of each the wait before it; a gate where several turns wait for the same many."""
    uses = Counter(turn.before for turn in log.turns)
    gates: dict[tuple[int, int], str] = {}
    nodes: list[NodeSheet] = []
    for number, turn in enumerate(log.turns, 1):
        before = log.by_end[slice(*turn.before)]
        after = tuple(id_ for other in before for id_ in other.ids)
        if uses[turn.before] > 1 and len(after) >= GATE:
            if turn.before not in gates:
                gates[turn.before] = f"g{len(gates) + 1}"
                nodes.append(NodeSheet(id=gates[turn.before], kind="gate", after=after))
            after = (gates[turn.before],)
        if turn.gap_s > SMALL_S:
            label = "tool" if any(other.request.calls_tool for other in before) else "client"
            nodes.append(NodeSheet(id=f"w{number}", kind="wait", label=label, after=after, seconds=turn.gap_s))
            after = (f"w{number}",)
        role = models.index(turn.request.model)
        nodes += [
            NodeSheet(
                id=id_,
                label="request",
                after=after,
                prompt=turn.prompt.parts,
                output_tok=tokens,
                role=f"model-{role + 1}" if role else None,
            )
            for id_, tokens in zip(turn.ids, choice_tok(turn.request))
        ]
    return nodes


def _found(log: Log, models: Sequence[str], sheet: ScheduleSheet) -> dict[str, object]:
    """Figures about the log and the schedule, ready for JSON."""
    turns = log.turns
    told = [(turn.request.cached_tok, turn.prompt.shared_tok) for turn in turns if turn.request.cached_tok is not None]
    waits = [node.seconds for node in sheet.nodes if node.kind == "wait"]
    return {
        "requests": len(turns),
        "left_out": {reason: log.left_out[reason] for reason in (FAILURE, EMBEDDING, SILENT)},
        "models": {f"model-{i}" if i > 1 else "main": model for i, model in enumerate(models, 1)},
        "span_s": round(log.by_end[-1].end_s - turns[0].request.start_s, 6),
        "most_at_once": most_at_once(log),
        "calls": sum(len(turn.ids) for turn in turns),
        "waits": len(waits),
        "waits_s": round(sum(waits), 6),
        "gaps_shortened": log.shortened,
        "gaps_removed_s": round(log.removed_s, 6),
        "prompt_tok": sum(turn.request.prompt_tok for turn in turns),
        "output_tok": sum(turn.request.output_tok for turn in turns),
        "shared_tok": sum(turn.prompt.shared_tok for turn in turns),
        "shared_by": {kind: sum(turn.prompt.kind == kind for turn in turns) for kind in ("messages", "growth", "cut")},
        "cached_tok": sum(cached for cached, _ in told) if told else None,
        "cached_beyond_shared": sum(cached > shared for cached, shared in told) if told else None,
    }


def _assumptions(log: Log, models: Sequence[str]) -> list[str]:
    """What the log does not say, in the order of its weight."""
    requests = [turn.request for turn in log.turns]
    kinds = Counter(turn.prompt.kind for turn in log.turns)
    apart = sum(request.choices > 1 for request in requests)
    thinking = sum(request.thought_tok > 0 for request in requests)
    estimated = sum(request.estimated for request in requests)
    left_out = sum(log.left_out.values())
    found = [
        (True, "a request waited for every earlier one that had ended when it started, as if its client did the work "
         "of one agent; chains that ran side by side by chance are coupled by this"),
        (True, "the time from the last of these ends to the start is an external wait, which no other server changes"),
        (left_out, f"{counted(left_out, 'line')} left out; the time that they took is part of the waits"),
        (log.endless, f"{counted(log.endless, 'request')} without a time of its end lasts until the next one starts"),
        (any(r.messages for r in requests), "prompts with messages share what they have in common from the first "
         "message on; the tokens of a prompt that are new are divided among its new messages by characters, template "
         "and tools included"),
        (kinds["growth"], f"{counted(kinds['growth'], 'request')} without messages taken to go on from an earlier "
         "prompt and its answer, as the prompt is at least as long (the longest that fits, each gone on from once)"),
        (kinds["cut"], f"{counted(kinds['cut'], 'request')} with fewer tokens than the messages that were known: what "
         "is shared is cut"),
        (thinking, f"{counted(thinking, 'answer')} with thoughts, which do not come back in later prompts"),
        (apart, f"{counted(apart, 'request')} with several answers: each answer is a call, tokens divided by "
         "characters or evenly"),
        (estimated, f"{counted(estimated, 'request')} without token counts: characters / 4"),
        (len(models) > 1, "the model with most requests is the main model; the others are roles, played by the main "
         "model unless --role says otherwise"),
        (log.shortened, f"{counted(log.shortened, 'gap')} shortened, by {log.removed_s:,.1f} s in all"),
    ]  # fmt: skip
    return [text for holds, text in found if holds]
