"""Orders of a directed graph that is given as numbers: each node's predecessors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import reduce
from operator import and_

WINDOW = 4096  # nodes whose reachability is held at one time: memory is at most nodes * WINDOW bits


def topological(edges: Sequence[set[int]]) -> list[int]:
    """All numbers, each behind its predecessors; fewer than all of them if some lie on cycles or behind one."""
    if all(not before or max(before) < number for number, before in enumerate(edges)):
        return list(range(len(edges)))
    missing = [len(before) for before in edges]
    followers: list[list[int]] = [[] for _ in edges]
    for number, predecessors in enumerate(edges):
        for before in predecessors:
            followers[before].append(number)
    order = [number for number, count in enumerate(missing) if not count]
    for number in order:  # grows while it is walked
        for follower in followers[number]:
            missing[follower] -= 1
            if not missing[follower]:
                order.append(follower)
    return order


def find_cycle(edges: Sequence[set[int]], ordered: Sequence[int]) -> list[int]:
    """One cycle among the numbers that `topological` left out, each in front of one of its predecessors."""
    left = set(range(len(edges))).difference(ordered)
    path: dict[int, None] = {}
    number = min(left)
    while number not in path:  # each of them has a predecessor that was left out, too
        path[number] = None
        number = min(edges[number] & left)
    walked = list(path)
    return walked[walked.index(number) :]


def implied(
    order: Sequence[int],
    ended: Sequence[Sequence[int]],
    begun: Sequence[Sequence[int]],
    asked: Mapping[int, Iterable[int]],
    some: Set[int],
) -> set[tuple[int, int]]:
    """The pairs (number, candidate) of `asked` for which the candidate has ended whenever the rest of them has.

    By number: `ended` has the nodes that must have ended before it starts, candidates among them, `begun` those that
    must have begun. A number in `some` starts when only some of them have. `order` is topological.
    """
    found: set[tuple[int, int]] = set()
    wanted = {candidate for candidates in asked.values() for candidate in candidates}
    for low in range(0, len(order), WINDOW):
        bits = {number: 1 << i for i, number in enumerate(order[low : low + WINDOW]) if number in wanted}
        if not bits:
            continue
        past = [0] * len(order)  # by number: bits of those that have ended when it starts
        for number in order[low:]:
            if number in some:
                sets = [past[other] | bits.get(other, 0) for other in ended[number]]
                past[number] = reduce(and_, (*sets, *(past[other] for other in begun[number])))
                continue
            before = own = 0
            for other in ended[number]:
                before |= past[other]
                own |= bits.get(other, 0)
            for other in begun[number]:
                before |= past[other]
            found.update((number, candidate) for candidate in asked.get(number, ()) if bits.get(candidate, 0) & before)
            past[number] = before | own
    return found
