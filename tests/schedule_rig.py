"""Schedules for tests: short files, random graphs, and the flight of a schedule on physics computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from strategy_rig import fly_fake

from simulator.schedule.files.save import schedule_of
from simulator.schedule.files.schedule import parse_schedule, schedule_text
from simulator.schedule.files.sheet import NodeSheet, Part, ScheduleSheet, Written
from simulator.strategies import Strategy
from simulator.strategies.registry import COMMON

A = {"id": "a", "prompt": ["problem"], "output_tok": 5}


def document(*nodes, answer="a", **fields):
    """A schedule file as bytes, with one text of ten tokens."""
    head = {"tokenflight_schedule": 1, "texts": {"problem": 10}, **fields}
    return json.dumps({**head, "nodes": nodes, "answer": [answer]}).encode()


def schedule_with(*nodes, **fields):
    return parse_schedule(document(*nodes, **fields), "f.json")


def replay(schedule, **options):
    """The Run of a schedule on fake physics."""
    parameters = (replace(COMMON[0], default=schedule.problem_tok),)
    roles = dict.fromkeys(schedule.roles, "")
    wrapped = Strategy("file", "file", "", "", parameters, (), (), schedule.replay, roles)
    return fly_fake(wrapped, run=True, **options)


def saved(run):
    """What a run did, written and read again."""
    return parse_schedule(schedule_text(schedule_of(run)).encode(), "saved.json")


def span(task):
    record = getattr(task, "record", None)
    return (record.submitted_s, record.finished_s) if record else (task.started_s, task.finished_s)


def assert_same_timeline(run, again):
    """Every call and wait starts and ends as it did, to 1e-9 s."""
    assert [task.label for task in again.submitted] == [task.label for task in run.submitted]
    spans = [[time for task in each.submitted for time in span(task)] for each in (run, again)]
    assert spans[1] == pytest.approx(spans[0], rel=0, abs=1e-9)


def accounts(run):
    b_seq = sum(call.record.prompt_tok + call.output_tok for call in run.accepted_path())
    return run.critical_path_tok(), run.reread_tok(), b_seq


tokens = st.integers(1, 40)
lengths = st.one_of(tokens, st.builds("uniform:{}:{}".format, st.integers(1, 10), st.integers(10, 40)))


@st.composite
def sheets(draw):
    """A schedule of up to nine nodes, each of which may do anything that a node may do to those before it."""
    nodes: list[NodeSheet] = []
    texts = {"problem": draw(tokens), "document": draw(st.integers(30, 200))}
    for number in range(draw(st.integers(1, 9))):
        nodes.append(draw(any_node(f"n{number}", nodes, texts)))
    calls = [node.id for node in nodes if node.kind == "generate"]
    if not calls:
        nodes.append(NodeSheet(id="n", prompt=("problem",), output_tok=3))
        calls = ["n"]
    nodes = [draw(with_stops(node, nodes)) for node in nodes]
    answer = draw(st.lists(st.sampled_from(calls), min_size=1, max_size=3, unique=True))
    ordered = draw(st.permutations(nodes)) if draw(st.booleans()) else nodes
    return ScheduleSheet(
        tokenflight_schedule=1, texts=texts, nodes=tuple(ordered), answer=tuple(answer), streams=draw(st.integers(1, 4))
    )


def some(draw, ids, most=3):
    return tuple(draw(st.lists(st.sampled_from(ids), max_size=most, unique=True))) if ids else ()


@st.composite
def any_node(draw, id_, before, texts):
    calls = [node for node in before if node.kind == "generate"]
    after = some(draw, [node.id for node in before])
    if calls and draw(st.booleans()):
        after += (Written(call=draw(st.sampled_from(calls)).id, written=draw(tokens)),)
    kind = draw(st.sampled_from(["generate", "generate", "generate", "wait", "gate"]))
    if kind == "gate" and after:
        return NodeSheet(id=id_, kind="gate", after=after, count=draw(st.one_of(st.none(), st.integers(1, len(after)))))
    if kind == "wait":
        return NodeSheet(id=id_, kind="wait", after=after, seconds=draw(st.sampled_from([0.0, 0.3, "uniform:0:1"])))
    ids = [node.id for node in calls]
    prompt = [draw(st.sampled_from(["problem", Part(text="document", first=draw(st.integers(1, 30)))]))]
    prompt += [Part(output=id_, first=draw(st.one_of(st.none(), tokens))) for id_ in some(draw, ids)]
    prompt += [Part(prompt=id_) for id_ in some(draw, ids, 1)]
    prompt += [Part(instruction="do", tokens=draw(tokens))] if draw(st.booleans()) else []
    return NodeSheet(
        id=id_,
        label=draw(st.sampled_from(["draft", "judge", None])),
        after=after,
        prompt=tuple(prompt),
        output_tok=draw(lengths),
        max_tok=draw(st.one_of(st.none(), tokens)),
        role=draw(st.sampled_from([None, "judge"])),
        keep=draw(st.booleans()),
        attend=some(draw, [node.id for node in calls if node.keep is True], 2),
        accepted=draw(st.booleans()),
    )


@st.composite
def with_stops(draw, node, nodes):
    """`node` as one that others may stop, wherever they stand."""
    if node.kind != "generate" or draw(st.booleans()):
        return node
    return msgspec.structs.replace(node, stopped_by=some(draw, [other.id for other in nodes if other.id != node.id]))


relaxed = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))
