"""Token accounts of a run that has ended: what the papers' own budgets add up."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from simulator.schedule.calls import After, Call, Task


def parent_calls(task: Task) -> tuple[Call, ...]:
    """The calls that a call or wait directly depends on, through waits; those it waited for only in part included."""
    found: dict[Call, None] = {}
    for entry in task.after:
        task = entry[0] if isinstance(entry, tuple) else entry
        found.update(dict.fromkeys([task] if isinstance(task, Call) else parent_calls(task)))
    return tuple(found)


def accepted_path(answer: Sequence[Call], accepted: set[Call]) -> tuple[Call, ...]:
    """The chain of calls from the start to the answer, last call first: what B_seq adds up.

    From each call one step back: of the calls it waited for, the one that the strategy accepted; else the longest
    (prompt + output) of those whose text or KV it reads; else the longest of all. If several calls answer together
    (a vote), the path ends in the accepted or longest of them.
    """
    path, candidates = [], tuple(answer)
    while candidates:
        chosen = [call for call in candidates if call in accepted]
        call = max(chosen or candidates, key=lambda c: (c.record.prompt_tok + c.output_tok, -c.call_id))
        path.append(call)
        read = {part_id for part_id, _ in call.prompt.parts}
        candidates = tuple(parent for parent in parent_calls(call) if parent.call_id < call.call_id)
        if not any(parent in accepted for parent in candidates):
            seen = tuple(c for c in candidates if ("output", c.call_id) in read or c in call.attend)
            candidates = seen or candidates
    return tuple(path)


def reread_tok(calls: Iterable[Call]) -> int:
    """Prompt tokens that an earlier call (in order of submission) had read or written, cache hits included."""
    known: dict[Hashable, int] = {}  # the longest piece of each part that any call had in hand
    again = 0
    for call in calls:
        for part_id, tokens in call.prompt.parts:
            again += min(tokens, known.get(part_id, 0))
        for part_id, tokens in (*call.prompt.parts, *call.text.parts):
            known[part_id] = max(tokens, known.get(part_id, 0))
    return again


def critical_path_tok(tasks: Iterable[Task]) -> int:
    """Output tokens on the longest (in tokens) chain of calls that waited for one another; waits write none.

    tasks: calls and waits, each behind those that it waited for.
    """
    longest: dict[Task, int] = {}
    before: dict[int, int] = {}  # of one and the same tuple of entries, which calls share
    for task in tasks:
        key = id(task.after)
        if key not in before:
            before[key] = max((_reached(entry, longest) for entry in task.after), default=0)
        longest[task] = before[key] + (task.output_tok if isinstance(task, Call) else 0)
    return max(longest.values(), default=0)


def _reached(entry: After, longest: dict[Task, int]) -> int:
    """Tokens on the longest chain up to the end of a task, or up to so many tokens of a call."""
    if not isinstance(entry, tuple):
        return longest[entry]
    call, written_tok = entry
    return longest[call] - max(0, call.output_tok - written_tok)
