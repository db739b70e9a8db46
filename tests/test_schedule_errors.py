"""What is wrong with a schedule file is told in one sentence, whatever the file holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_rig import A, document, relaxed, schedule_with, sheets

from simulator.errors import UserError
from simulator.schedule.files.schedule import load_schedule, parse_schedule, schedule_text


def changed(**fields):
    return document({**A, **fields})


W = {"id": "w", "kind": "wait", "seconds": 1}
WRONG = {
    b"": "found no JSON",
    b"{": "found no JSON",
    b"\xff\xfe": "found no JSON",
    b"[]": "found a list, expected a JSON object",
    b"null": "found null, expected a JSON object",
    b"[" * 100_000: "expected a JSON object",
    b'{"tokenflight_schedule": 1, "texts": {"a": ' + b"[" * 100_000: "more brackets",
    document(): "field 'nodes': found \\[\\], expected a list of 1 to 100,000 nodes",
    document(3): "node number 1: found 3, expected a JSON object",
    document(A, answer="b"): "field 'answer': found \"b\", expected the id of a node",
    document(A, W, answer="w"): "field 'answer': found \"w\", a wait, expected the id of a node of kind",
    document(A, tokenflight_schedule=2): "field 'tokenflight_schedule': found 2, expected 1",
    document(A, texts={"problem": 0}): "field 'texts.problem': found 0, expected a whole number of tokens",
    document(A, texts={"x" * 10**6: 1}): "field 'texts': found the name",
    document(A, streams=0): "field 'streams': found 0",
    document(A, txts={}): 'unknown field "txts".*did you mean "texts"',
    document(A, A): "node \"a\", field 'id': found it a second time",
    document({**A, "id": "x" * 10**6}): "field 'id'",
    document({"prompt": ["problem"], "output_tok": 3}): "node number 1, field 'id': found nothing",
    changed(id="a\n"): "field 'id': found \"a.*n\", expected .* printable",
    changed(promt=[]): 'node "a": found an unknown field "promt".*did you mean "prompt"',
    changed(prompt=[]): "field 'prompt': found an empty prompt",
    changed(prompt="problem"): "field 'prompt': found \"problem\", expected a list",
    changed(prompt=["problm"]): 'found "problm", expected the name of a text of \'texts\'; did you mean "problem"',
    changed(prompt=[{}]): "found 0 of them in one entry",
    changed(prompt=[{"text": "problem", "output": "a"}]): "found 2 of them in one entry",
    changed(prompt=[{"instruction": "x"}]): "an instruction without 'tokens'",
    changed(prompt=[{"text": "problem", "first": 11}]): "found the first 11 tokens, expected at most its 10",
    changed(prompt=[{"output": "b"}]): "field 'prompt': found \"b\", expected the id of a node",
    changed(prompt=[{"output": "a"}]): 'a cycle, "a" waits for "a"',
    changed(output_tok=None): "field 'output_tok': found nothing",
    changed(output_tok=0): "field 'output_tok': found 0",
    changed(output_tok=-1): "found -1",
    changed(output_tok=1.5): "found 1.5",
    changed(output_tok=10**9): "found 1000000000",
    changed(output_tok=True): "found true",
    changed(output_tok="x" * 10**6): "field 'output_tok': found \"xxx",
    changed(output_tok="y/" + "x" * 300): "field 'output_tok': found \"y/xxx",
    changed(output_tok="lognormal:nan:1"): "field 'output_tok': length 'lognormal:nan:1'",
    changed(output_tok="nonsense"): "field 'output_tok': length 'nonsense' is neither a number nor a file",
    changed().replace(b"5", b"NaN"): "found no JSON",
    changed().replace(b"5", b"1e999"): "field 'output_tok': found a value that cannot be held",
    changed().replace(b"10", b"1" * 5000): "field 'texts': found a value that cannot be held",
    changed(max_tok=0): "field 'max_tok': found 0, expected a whole number of tokens",
    changed(role="A Judge"): "field 'role': found \"A Judge\", expected a name such as judge",
    changed(after=["b"]): "field 'after': found \"b\", expected the id of a node",
    changed(after=[{"call": "a"}]): "field 'after\\[0\\].written': found nothing",
    changed(keep="yes"): "field 'keep': found \"yes\"",
    changed(keep={"untl": []}): 'did you mean "until"',
    changed(stopped_by=["b"]): "field 'stopped_by': found \"b\"",
    changed(accepted=1): "field 'accepted': found 1, expected true or false",
    changed(passes=[{"count": 1, "new_tok": 4}], max_tok=4): "field 'max_tok': found it beside 'passes'",
    changed(passes=[{"new_tok": 4}]): "field 'passes\\[0\\].count': found nothing",
    document(A, {**A, "id": "b", "attend": ["a"]}): "field 'attend': found \"a\", which keeps no KV cache",
    document(
        {**A, "attend": [{"running": "b"}]}, {**A, "id": "b"}
    ): "field 'attend': found \"b\", which stands behind it",
    document({**A, "together": "t"}, {**A, "id": "b", "together": "t", "output_tok": 6}): "in the same lock-step group",
    document(A, {"id": "w", "kind": "wait"}): "node \"w\", field 'seconds': found nothing",
    document(A, {**W, "seconds": -1}): "node \"w\", field 'seconds': .*from 0 to",
    document(A, {**W, "seconds": "soon"}): "node \"w\", field 'seconds': wait 'soon'",
    document(A, {**W, "prompt": ["problem"]}): "field 'prompt': found it in a node of kind \"wait\"",
    document(A, {**W, "kind": "wat"}): 'field \'kind\': found "wat", expected "generate", "wait" or "gate"',
    document(A, {"id": "g", "kind": "gate"}): "node \"g\", field 'after': found nothing",
    document(A, {"id": "g", "kind": "gate", "after": ["a"], "count": 2}): "field 'count': found 2, expected .* 1 to 1",
    document({**A, "after": ["w"]}, {**W, "after": ["b"]}, {**A, "id": "b", "after": ["a"]}): (
        'found a cycle, "a" waits for "w" waits for "b" waits for "a"'
    ),
    document(
        A, {**A, "id": "b", "prompt": [{"prompt": "c"}]}, {**A, "id": "c", "prompt": [{"prompt": "b"}]}
    ): "a cycle",
}


@pytest.mark.parametrize(("data", "message"), WRONG.items(), ids=range(len(WRONG)))
def test_what_is_wrong_is_told_in_one_sentence(data, message):
    with pytest.raises(UserError, match=message) as error:
        parse_schedule(data, "f.json")
    told = str(error.value)
    assert told.startswith("schedule file 'f.json'") and "\n" not in told and len(told) < 400


def test_a_long_cycle_is_shortened():
    ring = [{**A, "id": f"n{i}", "after": [f"n{(i + 1) % 50}"]} for i in range(50)]
    with pytest.raises(UserError, match=r"\(50 nodes in all\) waits for \"n0\""):
        schedule_with(*ring, answer="n0")


@pytest.mark.parametrize("name", ["", "missing.json", ".", "a\0b"])
def test_files_that_cannot_be_read(name):
    with pytest.raises(UserError, match="schedule file"):
        load_schedule(name)


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.sampled_from(["a", "problem"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["text", "output", "prompt", "tokens", "call", "written", "until"]), inner),
    ),
    max_leaves=6,
)


@st.composite
def broken(draw):
    """A valid schedule, one value of which is another one, or gone, or has an unknown neighbour."""
    document = json.loads(schedule_text(draw(sheets())))
    place, key = document, draw(st.sampled_from(sorted(document)))
    while isinstance(place[key], (dict, list)) and place[key] and draw(st.integers(0, 3)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
    what = draw(st.integers(0, 3))
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, dict):
        place[draw(st.text(max_size=8))] = draw(json_values)
    else:
        place[key] = draw(json_values)
    return json.dumps(document).encode()


@relaxed
@given(broken())
def test_a_broken_file_is_a_schedule_or_a_user_error(data):
    try:
        parse_schedule(data, "f.json")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


@given(st.binary(max_size=60))
def test_any_bytes_are_a_schedule_or_a_user_error(data):
    with pytest.raises(UserError):
        parse_schedule(data, "f.json")
