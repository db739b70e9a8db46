"""Logs of requests become schedules: who waited for whom, what was shared, and what is wrong with a log."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from schedule_rig import relaxed, replay

from simulator.cli.import_log import import_log as command
from simulator.errors import UserError
from simulator.schedule.agent_logs.importer import import_log
from simulator.schedule.agent_logs.prompts import apportion
from simulator.schedule.files.schedule import check_sheet, load_schedule

EXAMPLE = Path(__file__).parent.parent / "examples" / "schedules" / "agent-log.jsonl"


@pytest.fixture
def imported(tmp_path):
    """Write a log of these entries and import it."""

    def write_and_import(*entries, **options):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        found = import_log(path, **options)
        check_sheet(found.sheet, "imported")
        return found

    return write_and_import


def request(start, end, prompt_tok=100, output_tok=10, **more):
    usage = {"prompt_tokens": prompt_tok, "completion_tokens": output_tok}
    return {"start_time": start, "end_time": end, "model": "m", "usage": usage, **more}


def said(role, content):
    return {"role": role, "content": content}


def chat(start, end, messages, reply, prompt_tok, output_tok, **more):
    response = {"choices": [{"message": reply, "finish_reason": "stop"}] if reply else None}
    response["usage"] = {"prompt_tokens": prompt_tok, "completion_tokens": output_tok, **more}
    return {"start_time": start, "end_time": end, "request": {"model": "m", "messages": messages}, "response": response}


def waits_for(found):
    """Node id -> the requests that it waits for, through waits and gates, and the seconds of the wait."""
    nodes = {node.id: node for node in found.sheet.nodes}

    def requests(id_):
        kind = nodes[id_].kind
        return [id_] if kind == "generate" else [other for before in nodes[id_].after for other in requests(before)]

    return {
        id_: (
            sorted(other for before in node.after for other in requests(before)),
            sum(nodes[before].seconds for before in node.after if nodes[before].kind == "wait"),
        )
        for id_, node in nodes.items()
        if node.kind == "generate"
    }


# -- order in time -----------------------------------------------------------------------------------------------------


def test_one_after_the_other_with_gaps(imported):
    assert waits_for(imported(request(10, 12), request(12, 13), request(13.5, 20))) == {
        "r1": ([], 0), "r2": (["r1"], 0), "r3": (["r2"], 0.5),
    }  # fmt: skip


def test_requests_that_overlap_are_parallel(imported):
    log = request(0, 10), request(1, 3), request(2, 9), request(10, 12)
    assert waits_for(imported(*log)) == {
        "r1": ([], 0), "r2": ([], 1), "r3": ([], 2), "r4": (["r1", "r2", "r3"], 0),
    }  # fmt: skip


def test_only_the_latest_that_had_ended_are_waited_for(imported):
    # r3 starts after r1; r4 after both, and r1 is waited for already through r3
    log = request(0, 1), request(0, 8), request(2, 4), request(5, 9), request(10, 11)
    assert waits_for(imported(*log)) == {
        "r1": ([], 0), "r2": ([], 0), "r3": (["r1"], 1), "r4": (["r3"], 1), "r5": (["r2", "r4"], 1),
    }  # fmt: skip


def test_coarse_clocks_make_no_cycles(imported):
    found = waits_for(imported(*(request(5, 5) for _ in range(4)), request(6, 6)))
    assert [found[f"r{i}"] for i in (1, 2, 3, 4)] == [([], 0)] * 4
    assert found["r5"] == (["r1", "r2", "r3", "r4"], 1)


def test_order_of_lines_does_not_matter(imported):
    log = [request(0, 1), request(2, 4, 200), request(3, 8, 300)]
    assert imported(*reversed(log)).sheet == imported(*log).sheet


def brute_force(log):
    """Each request's latest predecessors, by the definition: ended before it, and not before another one of them."""
    found = {}
    for b, (start, _) in enumerate(log):
        before = [a for a, (_, end) in enumerate(log) if end <= start and a != b]
        found[b] = [a for a in before if not any(log[a][1] <= log[c][0] for c in before if c != a)]
    return found


@relaxed
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=12))
def test_dependencies_are_the_reduced_order_of_intervals(tmp_path_factory, drawn):
    log = sorted((start, start + length) for start, length in drawn)
    path = tmp_path_factory.mktemp("logs") / "log.jsonl"
    path.write_text("\n".join(json.dumps(request(*times)) for times in log))
    found = waits_for(import_log(path))
    for b, before in brute_force(log).items():
        assert found[f"r{b + 1}"][0] == sorted(f"r{a + 1}" for a in before)
        origin = max((log[a][1] for a in before), default=log[0][0])
        assert found[f"r{b + 1}"][1] == pytest.approx(log[b][0] - origin)


def test_what_many_wait_for_is_a_gate(imported):
    log = [request(0, 5) for _ in range(30)] + [request(6, 8) for _ in range(30)]
    found = imported(*log)
    assert sum(len(node.after) for node in found.sheet.nodes) < 100
    assert waits_for(found)["r60"] == (sorted(f"r{i}" for i in range(1, 31)), 1)


def test_long_gaps_are_shortened(imported):
    found = imported(request(0, 1), request(100, 101), request(102, 103), max_gap_s=5.0)
    assert [node.seconds for node in found.sheet.nodes if node.kind == "wait"] == [5.0, 1.0]
    assert (found.found["gaps_shortened"], found.found["gaps_removed_s"]) == (1, 94.0)
    assert any("shortened, by 94.0 s" in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2025-03-01T10:00:00Z", "2025-03-01T10:00:02.5Z"),
        ("2025-03-01T12:00:00+02:00", "2025-03-01 10:00:02.500"),
        (1740823200, 1740823202.5),
        (1740823200000, 1740823202500),
        ("1740823200000000", 1740823202500000),
        (1740823200 * 10**9, 17408232025 * 10**8),
        (0, 2.5),
    ],
)
def test_times_in_every_notation(imported, start, end):
    assert imported(request(start, end)).found["span_s"] == pytest.approx(2.5, abs=1e-5)


def test_a_duration_in_the_place_of_an_end(imported):
    log = [{"timestamp": 3, "duration_ms": 1500, **usage(7, 2)}, {"end_time": 9, "latency": 2, **usage(7, 2)}]
    assert waits_for(imported(*log))["r2"] == (["r1"], 2.5)


def usage(prompt_tok, output_tok, **more):
    return {"usage": {"prompt_tokens": prompt_tok, "completion_tokens": output_tok, **more}}


def test_answers_with_nothing_but_created_run_one_after_the_other(imported):
    log = [{"object": "chat.completion", "created": 100 + t, "model": "m", **usage(50, 5)} for t in (0, 3, 3, 8)]
    found = imported(*log)
    assert waits_for(found) == {"r1": ([], 0), "r2": (["r1"], 0), "r3": (["r1"], 0), "r4": (["r2", "r3"], 0)}
    assert any("without a time of its end" in text for text in found.assumptions)


# -- what is shared ----------------------------------------------------------------------------------------------------


SYSTEM, TASK, REPLY = said("system", "s" * 300), said("user", "t" * 100), said("assistant", "a plan")


def node(found, id_):
    return next(node for node in found.sheet.nodes if node.id == id_)


def test_a_conversation_reads_its_own_prompt_and_answer(imported):
    found = imported(
        chat(0, 1, [SYSTEM, TASK], REPLY, 400, 20),
        chat(2, 3, [SYSTEM, TASK, REPLY, said("user", "go on")], said("assistant", "done"), 450, 9),
    )
    parts = node(found, "r2").prompt
    assert (parts[0].prompt, parts[1].output, found.sheet.texts[parts[2]]) == ("r1", "r1", 30)
    assert found.sheet.texts == {"t1": 300, "t2": 100, "t3": 30}  # 400 tokens divided by characters, 3 to 1
    assert found.found["shared_tok"] == 420
    run = replay(check_sheet(found.sheet, "f"))
    assert [call.record.prompt_tok for call in run.calls] == [400, 450]
    assert run.calls[1].record.cached_tok >= 400


def test_prompts_share_the_messages_that_they_have_in_common(imported):
    log = [chat(0, 5, [SYSTEM, said("user", word)], None, 330, 5) for word in ("one", "another", "a third")]
    found = imported(*log)
    first = [node(found, f"r{i}").prompt[0] for i in (1, 2, 3)]
    assert first == ["t1"] * 3 and found.found["shared_tok"] == 2 * found.sheet.texts["t1"]


def test_other_tools_are_another_beginning(imported):
    log = [chat(0, 5, [SYSTEM], None, 330, 5), chat(0, 5, [SYSTEM], None, 330, 5)]
    log[1]["request"]["tools"] = [{"type": "function", "function": {"name": "search"}}]
    assert imported(*log).found["shared_tok"] == 0


def test_an_answer_that_the_log_does_not_have_is_taken_to_come_back(imported):
    log = [chat(0, 1, [TASK], None, 40, 20), chat(2, 3, [TASK, REPLY, said("user", "on")], None, 70, 9)]
    assert node(imported(*log), "r2").prompt[1].output == "r1"


def test_a_changed_answer_and_thoughts_do_not_come_back(imported):
    follow = chat(2, 3, [TASK, said("assistant", "another plan"), said("user", "on")], None, 70, 9)
    found = imported(chat(0, 1, [TASK], REPLY, 40, 20), follow)
    assert not any(getattr(part, "output", None) for part in node(found, "r2").prompt)
    thinking = {"completion_tokens_details": {"reasoning_tokens": 15}}
    follow = chat(2, 3, [TASK, REPLY, said("user", "on")], None, 70, 9)
    found = imported(chat(0, 1, [TASK], REPLY, 40, 20, **thinking), follow)
    assert not any(getattr(part, "output", None) for part in node(found, "r2").prompt)
    assert any("with thoughts" in text for text in found.assumptions)


def test_the_same_content_in_other_shapes_is_the_same(imported):
    blocks = {"role": "user", "content": [{"type": "text", "text": "t" * 100}]}
    found = imported(chat(0, 1, [TASK], None, 40, 20), chat(2, 3, [blocks, said("user", "on")], None, 70, 9))
    assert found.found["shared_tok"] == 40


def test_calls_of_tools_come_back(imported):
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
    }
    again = {**call, "content": "", "tool_calls": [{**call["tool_calls"][0], "id": "2"}]}
    log = [chat(0, 1, [TASK], call, 40, 20), chat(2, 3, [TASK, again, said("tool", "42")], None, 70, 9)]
    log[0]["response"]["choices"][0]["finish_reason"] = "tool_calls"
    found = imported(*log)
    assert node(found, "r2").prompt[1].output == "r1"
    assert node(found, "w2").label == "tool"


def test_items_of_responses_and_blocks_of_messages_come_back(imported):
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a plan"}]}
    responses = [
        {"created_at": 0, "end": 1, "model": "m", "input": "task", "output": [{"type": "reasoning"}, item],
         "usage": {"input_tokens": 40, "output_tokens": 20}},
        {"created_at": 2, "end": 3, "model": "m", "usage": {"input_tokens": 90, "output_tokens": 5},
         "input": [said("user", "task"), {"type": "reasoning"}, item, said("user", "on")], "output": [item]},
    ]  # fmt: skip
    assert node(imported(*responses), "r2").prompt[1].output == "r1"
    block = {"type": "tool_use", "name": "f", "input": {"b": 1, "a": 2}}
    body = {"model": "m", "system": "s", "messages": [TASK]}
    answer = {"content": [block], "stop_reason": "tool_use", "usage": {"input_tokens": 4, "output_tokens": 20}}
    later = {**body, "messages": [TASK, said("assistant", [block]), said("user", "1")]}
    used = {"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 50, "cache_creation_input_tokens": 3}
    messages = [
        {"start": 0, "end": 1, "request": body, "response": {"body": {**answer, "usage": {**used}}}},
        {
            "start": 2,
            "end": 3,
            "request": json.dumps(later),
            "response": {"content": "x", "usage": {**used, "input_tokens": 40}},
        },
    ]
    found = imported(*messages)
    assert node(found, "r2").prompt[1].output == "r1"
    assert (found.found["prompt_tok"], found.found["cached_tok"]) == (63 + 93, 100)


def test_more_known_than_counted_is_cut(imported):
    log = [chat(0, 1, [SYSTEM, TASK], REPLY, 400, 20), chat(2, 3, [SYSTEM, TASK, REPLY, TASK], None, 410, 9)]
    found = imported(*log)
    run = replay(check_sheet(found.sheet, "f"))
    assert run.calls[1].record.prompt_tok == 410 and found.found["shared_by"]["cut"] == 1


def test_growing_prompts_without_messages_go_on(imported):
    log = [
        request(0, 1, 100, 10),
        request(1, 2, 500, 50),
        request(2, 3, 130, 5),
        request(3, 4, 560, 5),
        request(4, 5, 90, 5),
    ]
    found = imported(*log)
    read = {i: [getattr(part, "prompt", None) for part in node(found, f"r{i}").prompt][:1] for i in range(1, 6)}
    # 500 >= 100 + 10 goes on from r1, so 130 has nothing to go on from; 560 goes on from 500 + 50
    assert read == {1: [None], 2: ["r1"], 3: [None], 4: ["r2"], 5: [None]}
    assert any("the longest that fits" in text for text in found.assumptions)
    assert [call.record.prompt_tok for call in replay(check_sheet(found.sheet, "f")).calls] == [100, 500, 130, 560, 90]


def test_cached_tokens_are_a_check(imported):
    details = {"prompt_tokens_details": {"cached_tokens": 64}}
    found = imported(request(0, 1), {"start": 5, "end": 6, "model": "m", **usage(90, 5, **details)})
    assert (found.found["cached_tok"], found.found["cached_beyond_shared"]) == (64, 1)


def test_several_answers_are_several_calls(imported):
    entry = chat(0, 1, [TASK], REPLY, 40, 21)
    entry["response"]["choices"].append({"message": said("assistant", "another, longer plan")})
    found = imported(entry, request(2, 3))
    first, second = node(found, "r1.1"), node(found, "r1.2")
    assert first.output_tok + second.output_tok == 21 and first.output_tok < second.output_tok
    assert first.prompt == second.prompt
    assert waits_for(found)["r2"] == (["r1.1", "r1.2"], 1)
    asked = {**request(0, 1, 40, 20), "n": 4}
    assert [node.output_tok for node in imported(asked).sheet.nodes] == [5] * 4


def test_other_models_are_roles(imported):
    found = imported(request(0, 1), request(1, 2), {**request(2, 3), "model": "secret-small"})
    assert [n.role for n in found.sheet.nodes if n.kind == "generate"] == [None, None, "model-2"]
    assert found.found["models"] == {"main": "m", "model-2": "secret-small"}


def test_without_token_counts_characters_are_counted(imported):
    entry = {"start": 0, "end": 1, "messages": [TASK], "response": "four words of text.."}
    found = imported(entry)
    assert (found.found["prompt_tok"], found.found["output_tok"]) == (25, 5)
    assert any("characters / 4" in text for text in found.assumptions)


@pytest.mark.parametrize(
    "failure",
    [
        {"error": {"message": "rate limit"}},
        {"status": "failure"},
        {"status_code": 500},
        {"success": False},
        {"response": {"error": {"code": 1}}},
        {"response": {"status_code": 429, "body": {}}},
    ],
)
def test_failures_are_counted_and_told(imported, failure):
    found = imported(request(0, 1), {"start": 1, "end": 2, "model": "m", **failure}, request(4, 5))
    assert found.found["left_out"] == {"failed": 1, "made embeddings": 0, "wrote nothing": 0}
    assert waits_for(found)["r2"] == (["r1"], 3)
    assert any("1 line left out" in text for text in found.assumptions)


def test_embeddings_and_empty_answers_are_counted(imported):
    embedding = {"start": 1, "end": 2, "response": {"object": "list", "usage": {"prompt_tokens": 5}}}
    found = imported(request(0, 1), embedding, request(2, 3, 10, 0))
    assert found.found["left_out"] == {"failed": 0, "made embeddings": 1, "wrote nothing": 1}


def test_no_text_of_the_log_reaches_the_schedule(tmp_path):
    target = tmp_path / "agent.json"
    assert run_command(EXAMPLE, "-o", target).exception is None
    log, written = EXAMPLE.read_text().lower(), target.read_text().lower()
    for word in ("coder", "cart", "coupon", "read_file", "reviews", "rate limit", "shop", "expired"):
        assert word in log and word not in written


# -- errors ------------------------------------------------------------------------------------------------------------


GOOD = json.dumps(request(0, 1)).encode()
BAD = {
    b"": "found no line with anything in it",
    b"[]": "found an empty list",
    b"[1": "found no JSON",
    b"[3]": "line 1: found 3, expected a JSON object",
    GOOD + b"\n{": "line 2: found \"{\", which is no JSON",
    GOOD + b"\n3": "line 2: found 3, expected a JSON object",
    GOOD + b"\n\n" + b"[" * 10_000: "line 3: .*which is no JSON",
    GOOD + b"\n\xff": "line 2: found the byte 0xff, which is not UTF-8",
    b"\x1f\x8bno": "cannot be read",
    b"{}": "found the fields \\(none\\), expected a request with its time",
    b'{"start_time": 1, "end_time": 2}': "field 'usage': found nothing, expected 'prompt_tokens' in it",
    b'{"start_time": "noon", "end_time": 2}': "field 'start_time': found \"noon\", expected a time",
    b'{"start_time": true}': "field 'start_time': found true",
    b'{"start_time": -1}': "field 'start_time': found -1",
    b'{"start_time": "nan"}': "field 'start_time': found \"nan\"",
    b'{"start_time": 1e300}': "field 'start_time': found 1e300",
    b'{"start_time": "0001-01-01T00:00:00"}': "field 'start_time': found",
    b'{"start_time": 5, "end_time": 4}': "field 'end_time': found 4, expected a time not before that of 'start_time'",
    b'{"start_time": 5, "duration": -4}': "field 'duration': found -4",
    json.dumps(request(0, 1, -5)).encode(): "field 'prompt_tokens': found -5, expected a whole number of tokens",
    json.dumps(request(0, 1, 1.5)).encode(): "field 'prompt_tokens': found 1.5",
    json.dumps(request(0, 1, 0)).encode(): "found a prompt of 0 tokens",
    json.dumps(request(0, 1, 10**12)).encode(): "field 'prompt_tokens': found 1000000000000",
    json.dumps(request(0, 1, "many")).encode(): "field 'prompt_tokens': found \"many\"",
    json.dumps({**request(0, 1), "object": "chat.completion.chunk"}).encode(): "a piece of a streamed answer",
    json.dumps({"start": 0, "end": 1, "error": "x"}).encode(): "no request that was answered \\(1 failed\\)",
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD.items(), ids=range(len(BAD)))
def test_what_is_wrong_is_told_with_its_line(tmp_path, data, message):
    path = tmp_path / "log.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        import_log(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_gzip_a_list_and_blank_lines(tmp_path):
    path = tmp_path / "log"
    for data in (gzip.compress(GOOD), b"[" + GOOD + b"]", b"\n\n" + GOOD + b"\r\n\n", b"\xef\xbb\xbf" + GOOD):
        path.write_bytes(data)
        assert import_log(path).found["requests"] == 1


KEYS = ["role", "content", "usage", "choices", "message", "type", "text", "body", "function", "error"]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(KEYS),
            inner, max_size=4,
        ),
    ),
    max_leaves=8,
)  # fmt: skip
FIELDS = [
    "request",
    "response",
    "usage",
    "messages",
    "input",
    "output",
    "end_time",
    "model",
    "n",
    "choices",
    "status",
    "error",
]


@relaxed
@given(st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3), min_size=1, max_size=3))
def test_whatever_a_line_holds_is_a_request_or_a_user_error(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("logs") / "log.jsonl"
    path.write_text("\n".join(json.dumps({**request(i, i + 1), **entry}) for i, entry in enumerate(drawn)))
    try:
        found = import_log(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        check_sheet(found.sheet, "imported")


# -- the command -------------------------------------------------------------------------------------------------------


def run_command(*words):
    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


def test_the_command_tells_what_it_found_and_assumed(tmp_path):
    target = tmp_path / "agent.json"
    done = run_command(EXAMPLE, "-o", target, "--max-gap", "5")
    assert "7 requests" in done.output and "1 failed" in done.output and "Assumptions" in done.output
    assert f"Wrote {target}" in done.output
    run = replay(load_schedule(target))
    assert len(run.calls) == 7 and len(run.waits) == 6
    assert run.calls[-1].record.submitted_s >= 5.0


def test_the_command_as_json_and_without_a_file():
    found = json.loads(run_command(EXAMPLE, "--json").output)
    assert (found["requests"], found["left_out"]["failed"], found["schedule"]) == (7, 1, None)
    assert found["cached_beyond_shared"] == 0 and len(found["assumptions"]) >= 4
    assert "Nothing was written" in run_command(EXAMPLE).output
    assert "simulate import --help" in run_command().output


def test_the_shipped_schedule_is_that_of_the_shipped_log():
    assert load_schedule(EXAMPLE.with_suffix(".json")).sheet == import_log(EXAMPLE).sheet


def test_the_log_is_not_overwritten(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(GOOD)
    assert isinstance(run_command(path, "-o", path).exception, UserError)
    assert isinstance(run_command(tmp_path / "no.jsonl").exception, UserError)
    assert path.read_bytes() == GOOD


# -- dividing tokens ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_tokens_are_divided_without_rest(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total and len(parts) == len(weights)
    if total >= len(weights):
        assert min(parts) >= 1
        exact = [(total - len(weights)) * weight / sum(weights) + 1 for weight in weights]
        assert all(abs(part - share) <= 1.0 for part, share in zip(parts, exact))
