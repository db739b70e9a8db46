"""The openai back-end against a server that behaves, one that does not, and a real one."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, replace
from importlib.util import find_spec

import numpy as np
import pytest
from misbehaving_server import EXTENSIONS, Server

from calibration.collect.backends import BackendOptions, open_backend
from calibration.collect.backends.openai_address import Secret, is_loopback, key_from_environment, parse_address
from calibration.collect.backends.openai_facts import cache_config
from calibration.collect.backends.openai_http import Http, Outcome
from calibration.collect.backends.openai_notes import notes_of
from calibration.collect.backends.openai_prompts import WORDS, PromptMaker
from calibration.collect.backends.openai_run import Run, carry_out
from calibration.collect.backends.openai_settings import ClientSettings, read_settings
from calibration.collect.backends.openai_stream import Answer, EventLines, StreamError
from calibration.collect.loads import open_trace, traffic_of
from calibration.collect.point import BackendError, Point
from simulator.errors import UserError
from simulator.workload import loads as synthetic

pytest.importorskip("aiohttp")

POINT = Point("closed_loop", concurrency=3, input_tok=40, output_tok=8, num_requests=9)
BURST = Point("burst", concurrency=4, input_tok=20, output_tok=6, num_requests=4)
SHORT_WAITS = {"stall_timeout_s": 0.3, "first_token_timeout_s": 0.5}


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture
def connect():
    """Opens back-ends and closes them again."""
    opened = []

    def open_to(server, model="tiny", trace=None, **settings):
        options = BackendOptions(model=model, gpu="any", base_url=server.url, settings=settings, trace=trace)
        opened.append(open_backend("openai", options))
        return opened[-1]

    yield open_to
    for backend in opened:
        backend.close()


# Loads


def test_a_closed_loop_has_never_more_than_its_clients(server, connect):
    backend = connect(server)
    backend.warm_up(POINT)
    server.breaks(None)
    found = backend.run(POINT, seed=1)
    assert server.most_at_once == POINT.concurrency
    assert len(found.requests) == len(server.requests) == POINT.num_requests
    for request in found.requests:
        assert (request.status, request.input_tok, request.output_tok) == ("ok", 40, 8)
        assert len(request.token_s) == 8 and request.tokens_per_event is None
        assert found.start_s <= request.send_s <= request.token_s[0] <= request.token_s[-1] <= found.end_s
        assert list(request.token_s) == sorted(request.token_s)


@pytest.mark.parametrize("load", ["burst", "static_batch"])
def test_a_burst_is_under_way_all_at_once(server, connect, load):
    backend = connect(server, first_token_timeout_s=1.0)
    backend.warm_up(BURST)
    server.breaks("stalls before headers")  # so nobody ends before the last has begun
    found = backend.run(replace(BURST, load=load), seed=1)
    assert server.most_at_once == len(found.requests) == 4


def test_a_static_batch_is_exactly_its_batch():
    with pytest.raises(BackendError, match="found 5 requests"):
        traffic_of(replace(BURST, load="static_batch", num_requests=5), seed=0)


def test_open_loop_requests_are_due_at_the_simulators_arrivals(server):
    point = Point("open_loop", 1, 20, 4, 12, request_rate_rps=200.0)
    traffic = traffic_of(point, seed=3)
    expected = synthetic.open_loop(200.0, 12, 20, 4, np.random.default_rng(3))
    assert (traffic.arrival_s == expected.arrival_s).all()
    assert (traffic_of(point, seed=4).arrival_s != traffic.arrival_s).all()
    run = in_loop(server, lambda http: carry_out(http, "/v1/completions", traffic, [body()] * 12))
    due_s = np.array([outcome.planned_s for outcome in run.outcomes]) - run.start_s
    assert due_s == pytest.approx(traffic.arrival_s, abs=1e-9)
    assert all(outcome.ok and outcome.send_s >= outcome.planned_s for outcome in run.outcomes)


def test_a_trace_gives_lengths_and_times(server, connect, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,input_tok,output_tok\n0,10,3\n0.02,30,5\n0.05,20,2\n")
    backend = connect(server, trace=open_trace(str(trace)))
    point = Point("open_loop", 1, 20, 3, 3)
    backend.warm_up(point)
    found = backend.run(point, seed=0)
    assert [(r.status, r.input_tok, r.output_tok) for r in found.requests] == [
        ("ok", 10, 3),
        ("ok", 30, 5),
        ("ok", 20, 2),
    ]
    faster = traffic_of(point, 0, open_trace(str(trace), speed=2.0))
    assert faster.arrival_s == pytest.approx([0.0, 0.01, 0.025])
    with pytest.raises(BackendError, match="neither a request rate nor a trace"):
        traffic_of(point, 0)


def test_a_trace_of_many_lengths_needs_few_questions(tmp_path):
    rows = "".join(f"{i},{20 + 7 * i},2\n" for i in range(40))
    (tmp_path / "t.csv").write_text("t_s,input_tok,output_tok\n" + rows)
    traffic = traffic_of(Point("open_loop", 1, 1, 1, 40), 0, open_trace(str(tmp_path / "t.csv")))
    asked = []

    async def count(prompt):
        asked.append(prompt)
        return 3 + 2 * len(prompt.split())

    maker = PromptMaker(count)
    asyncio.run(maker.prepare(traffic))
    lengths = [3 + 2 * len(prompt.split()) for prompt in maker.prompts(traffic)]
    assert len(asked) <= 12
    assert (np.abs(np.array(lengths) - traffic.prompt_tok) <= np.maximum(1.0, 0.01 * traffic.prompt_tok)).all()


# Prompts


@pytest.mark.parametrize("per_word,before", [(1, 0), (1, 7), (2, 1), (3, 0)])
def test_words_are_fitted_to_the_servers_count(per_word, before):
    async def count(prompt):
        return before + per_word * len(prompt.split())

    maker = PromptMaker(count)
    traffic = traffic_of(replace(POINT, input_tok=400), seed=0)
    asyncio.run(maker.prepare(traffic))
    for prompt in maker.prompts(traffic):
        assert abs(before + per_word * len(prompt.split()) - 400) <= 4


def test_the_same_salt_makes_the_same_prompts_and_another_one_others():
    async def count(prompt):
        return len(prompt.split())

    def made(ids_below, salt, runs=2):
        maker, found = PromptMaker(count, ids_below, salt=salt), []
        for run in range(runs):
            traffic = traffic_of(POINT, seed=run)
            asyncio.run(maker.prepare(traffic))
            found += [str(prompt) for prompt in maker.prompts(traffic)]
        return found

    for ids_below in (None, 32_000):
        first, again, other = (made(ids_below, salt) for salt in ("set/0", "set/0", "set/1"))
        assert first == again and len(set(first)) == len(first) and not set(first) & set(other)


def test_a_run_says_where_the_numbers_of_its_prompts_begin(server, connect):
    backend, found = connect(server), []
    for _ in range(2):
        notes = backend.run(POINT, seed=1).notes
        found += [int(note.split()[4]) for note in notes if note.startswith("prompts are numbered from")]
    assert len(found) == 2 and found[1] - found[0] == POINT.num_requests


def test_no_two_prompts_begin_alike(server, connect):
    backend = connect(server)
    backend.warm_up(POINT)
    backend.run(POINT, seed=1)
    backend.run(POINT, seed=1)
    prompts = [request["prompt"].split() for request in server.requests if len(request["prompt"].split()) > 10]
    assert len(prompts) >= 27
    assert len({tuple(prompt[:4]) for prompt in prompts}) == len(prompts)
    assert len({tuple(prompt[4:]) for prompt in prompts}) == 1
    assert len(set(WORDS)) == len(WORDS)


def test_prompts_begin_alike_where_that_is_asked_for(server, connect):
    backend = connect(server, shared_prefix_tok=16)
    backend.warm_up(POINT)
    server.breaks(None)
    backend.run(POINT, seed=1)
    prompts = [request["prompt"].split() for request in server.requests]
    assert len({tuple(prompt[:15]) for prompt in prompts}) == 1
    assert len({tuple(prompt[16:20]) for prompt in prompts}) == len(prompts)


def test_token_ids_are_exact(server, connect):
    backend = connect(server, vocab_size=1000)
    backend.warm_up(POINT)
    server.breaks(None)
    found = backend.run(POINT, seed=1)
    assert {len(request["prompt"]) for request in server.requests} == {40}
    assert all(125 <= token < 750 for request in server.requests for token in request["prompt"])
    assert len({tuple(request["prompt"][:4]) for request in server.requests}) == 9
    assert [request.input_tok for request in found.requests] == [40] * 9


def test_a_server_without_token_ids_gets_words_and_says_so(connect):
    with Server(token_ids=False) as server:
        backend = connect(server, vocab_size=1000)
        backend.warm_up(POINT)
        found = backend.run(POINT, seed=1)
        assert any("does not take token ids" in note for note in found.notes)
        assert {request.input_tok for request in found.requests} == {40}
        with pytest.raises(BackendError, match="does not take token ids"):
            connect(server, vocab_size=1000, prompt="ids").warm_up(POINT)


# What servers understand


def test_extensions_are_used_where_the_server_takes_them(server, connect):
    backend = connect(server)
    backend.warm_up(BURST)
    server.breaks(None)
    backend.run(BURST, seed=0)
    sent = server.requests[0]
    assert sent["ignore_eos"] is True and "min_tokens" not in sent and "return_token_ids" not in sent
    assert sent["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (sent["max_tokens"], sent["temperature"], sent["model"]) == (6, 0.0, "tiny")


def test_refused_extensions_are_left_out_and_told(connect):
    with Server(takes=frozenset()) as server:
        backend = connect(server)
        backend.warm_up(BURST)
        server.breaks(None)
        found = backend.run(BURST, seed=0)
        assert not server.requests[0].keys() & EXTENSIONS
        for refused in ("ignore_eos", "min_tokens", "include_usage"):
            assert any(refused in note and "HTTP 422" in note for note in found.notes)
        assert any("no usage" in note for note in found.notes)
        assert all(request.status == "ok" and request.output_tok == 6 for request in found.requests)


def test_min_tokens_stands_in_for_ignore_eos(connect):
    with Server(takes=frozenset({"min_tokens"})) as server:
        backend = connect(server)
        backend.warm_up(BURST)
        assert server.requests[-1]["min_tokens"] == 6


def test_chat_where_there_is_nothing_else(connect):
    with Server(chat_only=True) as server:
        backend = connect(server)
        backend.warm_up(POINT)
        server.breaks(None)
        found = backend.run(POINT, seed=0)
        assert server.requests[0]["messages"][0]["role"] == "user"
        assert {request.input_tok for request in found.requests} == {40}  # the template's tokens are in it
        assert any("chats" in note for note in found.notes)


@pytest.mark.parametrize("takes", [{"stream_options"}, {"return_token_ids"}])
def test_several_tokens_in_a_chunk_are_counted(connect, takes):
    with Server(takes=frozenset(takes), tokens_per_chunk=3) as server:
        backend = connect(server)
        backend.warm_up(POINT)
        found = backend.run(POINT, seed=0)
        if takes == {"stream_options"}:
            assert found.requests[0].tokens_per_event == (3, 3, 2)
            assert found.requests[0].output_tok == 8
        else:  # the sum is not told, so the counts cannot be trusted to be whole
            assert found.requests[0].tokens_per_event is None
            assert any("tokens per chunk are not known" in note for note in found.notes)


def test_a_server_that_counts_nothing_still_gives_times(connect):
    with Server(usage=False, takes=frozenset()) as server:
        backend = connect(server)
        backend.warm_up(POINT)
        found = backend.run(POINT, seed=0)
        assert {request.status for request in found.requests} == {"ok"}
        assert any("a word is taken as one token" in note for note in found.notes)


# Streams


def fed(*payloads, asked=8):
    answer = Answer(asked)
    for number, payload in enumerate(payloads):
        answer.take(payload if isinstance(payload, str) else json.dumps(payload), float(number))
    return answer


def piece(text, total=None, end=None, **more):
    usage = {} if total is None else {"usage": {"prompt_tokens": 5, "completion_tokens": total}}
    return {"choices": [{"text": text, "finish_reason": end, **more}], **usage}


def test_events_are_found_however_the_bytes_are_cut():
    text = 'data: {"a": 1}\r\n\r\n: alive\n\nevent: x\ndata: {"b": "é"}\n\ndata:[DONE]\n\n'.encode()
    for size in (1, 2, 3, 7, len(text)):
        lines = EventLines()
        found = [payload for at in range(0, len(text), size) for payload in lines.feed(text[at : at + size])]
        assert found == ['{"a": 1}', '{"b": "é"}', "[DONE]"]
    with pytest.raises(StreamError, match="malformed stream: <html>"):
        list(EventLines().feed(b"<html>\n"))
    with pytest.raises(StreamError, match="bytes"):
        list(EventLines().feed(b"data: " + b"x" * 5_000_000))


def test_a_token_without_text_is_a_token_where_the_sum_is_told():
    answer = fed(piece("", 0), piece("a", 1), piece("", 2), piece("b", 3), piece("", 4, "length"), "[DONE]")
    assert answer.arrival_s == [1.0, 2.0, 3.0, 4.0]
    assert answer.tokens_per_arrival() == (1, 1, 1, 1)
    assert answer.fault() is None


def test_usage_in_the_last_chunk_is_no_token():
    answer = fed(piece("a"), piece("b"), piece("", 6, "length"))
    assert answer.arrival_s == [0.0, 1.0]
    assert answer.tokens_per_arrival() is None and answer.output_tok() == 6 and answer.fault() is None


def test_token_ids_and_logprobs_count_tokens():
    end = piece("", 3, "stop")
    assert fed(piece("ab", token_ids=[1, 2]), piece("c", token_ids=[3]), end).tokens_per_arrival() == (2, 1)
    assert fed(piece("ab", logprobs={"tokens": ["a", "b"]}), piece("c", logprobs={"tokens": ["c"]}), end
               ).tokens_per_arrival() == (2, 1)  # fmt: skip
    assert fed(piece("ab", token_ids=[1, 2]), piece("c", token_ids=[3, 4]), end).tokens_per_arrival() is None


def test_thoughts_are_tokens_too():
    answer = fed({"choices": [{"delta": {"role": "assistant", "content": ""}}]},
                 {"choices": [{"delta": {"reasoning_content": "hm"}}]},
                 {"choices": [{"delta": {"content": "go"}, "finish_reason": "stop"}]})  # fmt: skip
    assert answer.arrival_s == [1.0, 2.0]


def test_cached_tokens_are_kept():
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    assert fed({**piece("a", end="length"), "usage": usage}).cached_tok == 4
    assert fed(piece("a", 1, "length")).cached_tok is None


# Misbehaviour

FAULTS = {
    "drops before headers": ("closed the connection before it answered", 0),
    "429": ("HTTP 429: no", 0),
    "500": ("HTTP 500: no", 0),
    "redirects": ("HTTP 307", 0),
    "no stream": ("not a stream", 0),
    "stalls before headers": ("no token within 0.5 s", 0),
    "says nothing": ("no token came", 0),
    "drops in the stream": ("broke off after 3 chunks", 3),
    "stalls in the stream": ("stalled: nothing for 0.3 s after 3 chunks", 3),
    "keeps alive for ever": ("stalled: nothing for 0.3 s after 3 chunks", 3),
    "never ends": ("more chunks than the 6 tokens", 29),
    "malformed JSON": ("malformed chunk", 3),
    "no object": ("malformed chunk: [1, 2]", 3),
    "no choices": ("malformed chunk", 3),
    "no event": ("malformed stream: <html>", 3),
    "bad chunk length": ("after", None),
    "error in the stream": ("the server reports: out of memory", 3),
    "no end": ("the stream ended before the answer did, after 6 chunks", 6),
    "aborts": ("finish_reason abort", 6),
    "counts too few": ("usage says 1 tokens, but 6 chunks", 6),
    "counts too many": ("usage says 60 tokens, but 6 were asked for", 6),
    "counts words": ("malformed usage", 6),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_a_status_and_the_next_request_is_measured(server, connect, fault):
    backend = connect(server, **SHORT_WAITS)
    backend.warm_up(BURST)
    server.breaks(lambda n: fault if n % 2 == 0 else None)
    found = backend.run(replace(BURST, load="closed_loop", concurrency=1), seed=0)
    expected, chunks = FAULTS[fault]
    assert [request.status == "ok" for request in found.requests] == [False, True, False, True]
    for request in found.requests[::2]:
        assert request.status.startswith("failed: ") and expected in request.status
        assert "\n" not in request.status and len(request.status) < 300
        if chunks is not None:
            assert len(request.token_s) == request.output_tok == chunks
        assert request.input_tok == 20
    assert any("2 of 4 requests did not end well" in note and expected in note for note in found.notes)
    json.dumps(asdict(found))


def test_a_stream_that_ends_without_done_is_whole_and_said(server, connect):
    backend = connect(server)
    backend.warm_up(BURST)
    server.breaks("no [DONE]")
    found = backend.run(BURST, seed=0)
    assert [request.status for request in found.requests] == ["ok"] * 4
    assert any("without [DONE]" in note for note in found.notes)


def test_a_server_that_dies_leaves_what_was_measured(server, connect):
    backend = connect(server)
    point = replace(POINT, concurrency=1, num_requests=40)
    backend.warm_up(point)

    def die(n):
        if n == 5:
            server._server.close()
            return "drops in the stream"
        return None

    server.breaks(die)
    found = backend.run(point, seed=0)
    status = [request.status for request in found.requests]
    assert status[:5] == ["ok"] * 5 and len(status) == 40
    assert "broke off" in status[5] and "no connection" in status[6] and "not sent" in status[-1]
    assert any("gave up" in note for note in found.notes)
    with pytest.raises(BackendError, match="warm-up"):
        backend.warm_up(point)
    with pytest.raises(BackendError, match="does not answer"):
        backend.facts()


def test_a_run_that_is_out_of_time_is_cut(server, connect):
    backend = connect(server, run_timeout_s=0.4)
    backend.warm_up(BURST)
    server.breaks(lambda n: "stalls in the stream" if n else None)
    found = backend.run(replace(BURST, load="closed_loop", concurrency=1), seed=0)
    assert [request.status for request in found.requests] == ["ok", "cut", "cut", "cut"]
    assert [len(request.token_s) for request in found.requests] == [6, 3, 0, 0]


def test_a_server_that_is_not_there_is_one_sentence(connect):
    with Server() as server:
        pass
    with pytest.raises(BackendError, match=r"no connection to http://127\.0\.0\.1"):
        connect(server)


# Keys and addresses

KEY = "sk-very/secret+key=42"


def test_the_key_is_nowhere_in_what_a_run_leaves(connect, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_SERVERS_KEY", KEY)
    info = {"mem_fraction_static": 0.8, "api_key": KEY, "version": f"1.0 {KEY}", "dtype": "bfloat16"}
    with Server(key=KEY, pages={"/get_server_info": (200, info)}) as server:
        server.pages["/v1/models"] = (200, {"data": [{"id": "tiny", "owned_by": "sglang"}]})
        backend = connect(server, api_key_env="MY_SERVERS_KEY", **SHORT_WAITS)
        backend.warm_up(BURST)
        left = [asdict(backend.facts())]
        for fault in ("429", "500", "error in the stream", "no event", None):
            server.breaks(fault)
            left.append(asdict(backend.run(BURST, seed=0)))
            assert all(r["status"] == "ok" for r in left[-1]["requests"]) == (fault is None)
        left.append({"repr": repr(backend.__dict__)})
    written = tmp_path / "left.json"
    written.write_text(json.dumps(left))
    assert "[API key]" in written.read_text()
    for form in (KEY, "very/secret", "secret+key", "very%2Fsecret"):
        assert form not in written.read_text()


def test_a_key_cut_in_two_by_a_short_message_does_not_leak():
    secret = Secret(KEY)
    lines = EventLines(secret.hide)
    with pytest.raises(StreamError) as caught:
        list(lines.feed(("x" * 130 + KEY + "\n").encode()))
    assert "sk-" not in str(caught.value)
    assert KEY not in repr(secret) and secret.hide(f"<{KEY}>") == "<[API key]>"


def test_a_wrong_key_is_told_without_it(connect, monkeypatch):
    monkeypatch.setenv("TOKENFLIGHT_API_KEY", "wrong-one")
    with Server(key=KEY) as server, pytest.raises(BackendError, match="another API key") as caught:
        connect(server)
    assert "wrong-one" not in str(caught.value) and "TOKENFLIGHT_API_KEY" in str(caught.value)


def test_keys_come_from_the_environment_only(monkeypatch):
    with pytest.raises(UserError, match="environment only"):
        read_settings({"api_key": KEY})
    monkeypatch.setenv("BAD_KEY", "two\nlines")
    with pytest.raises(BackendError, match="BAD_KEY") as caught:
        key_from_environment("BAD_KEY")
    assert "lines" not in str(caught.value)
    assert not key_from_environment("NO_SUCH_VARIABLE_HERE")


@pytest.mark.parametrize("host", ["10.0.0.7", "example.com", "0.0.0.0", "localhost.example.com", "[2001:db8::1]"])
def test_other_machines_need_a_word(host):
    with pytest.raises(BackendError, match="allow-remote"):
        parse_address(f"http://{host}:8000", allow_remote=False)
    assert not parse_address(f"http://{host}:8000", allow_remote=True).loopback


@pytest.mark.parametrize(
    "url,root",
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("http://127.8.0.1:1", "http://127.8.0.1:1"),
        ("https://[::1]:9/api/v1", "https://[::1]:9/api"),
    ],
)
def test_loopback_addresses(url, root):
    address = parse_address(url, allow_remote=False)
    assert address.loopback and address.root == root


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:8000", "ftp://127.0.0.1", "http://:80", "http://127.0.0.1:x"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(BackendError, match=r"expected|needs the address"):
        parse_address(url, allow_remote=True)


def test_an_address_with_a_password_is_refused_without_showing_it():
    with pytest.raises(BackendError) as caught:
        parse_address("http://me:hunter2@127.0.0.1:8000", allow_remote=False)
    assert "hunter2" not in str(caught.value)
    assert is_loopback("127.0.0.1") and not is_loopback("128.0.0.1")


# Facts


def test_vllm_tells_its_cache(server, connect):
    server.pages["/version"] = (200, {"version": "0.11.0"})
    labels = 'block_size="16",cache_dtype="auto",enable_prefix_caching="True",gpu_memory_utilization="0.9"'
    line = f'vllm:cache_config_info{{{labels},num_gpu_blocks="1000",sliding_window="None"}} 1.0'
    server.pages["/metrics"] = (200, f"# HELP x\nvllm:num_requests_running 0.0\n{line}\n")
    options = BackendOptions("tiny", "any", dtype="bf16", base_url=server.url, settings={"max_num_seqs": "64"})
    backend = open_backend("openai", options)
    facts = backend.facts()
    backend.close()
    assert (facts.engine, facts.engine_version, facts.kv_dtype) == ("vllm", "0.11.0", "bf16")
    expected = {"block_size": 16, "num_gpu_blocks": 1000, "kv_capacity_tok": 16000, "prefix_caching": True}
    assert facts.settings == {
        **expected, "gpu_memory_utilization": 0.9, "max_model_len": 4096, "max_num_seqs": 64
    }  # fmt: skip
    assert cache_config("nothing here") == {}


def test_sglang_and_llama_cpp_tell_theirs(connect):
    info = {
        **{"mem_fraction_static": 0.8, "version": "0.5", "dtype": "bfloat16", "kv_cache_dtype": "fp8_e5m2"},
        **{"tp_size": 2, "pp_size": 1, "max_running_requests": 48, "disable_radix_cache": True, "page_size": 1},
        **{"chunked_prefill_size": -1, "disable_cuda_graph": False, "password": "x"},
    }
    with Server(pages={"/get_server_info": (200, info)}) as server:
        server.pages["/v1/models"] = (200, {"data": [{"id": "tiny", "owned_by": "sglang"}]})
        facts = connect(server).facts()
    assert (facts.engine, facts.engine_version, facts.tp, facts.n_gpus, facts.kv_dtype) == (
        "sglang",
        "0.5",
        2,
        2,
        "fp8",
    )
    assert facts.settings["max_num_seqs"] == 48 and facts.settings["cuda_graphs"] is True
    assert facts.settings["prefix_caching"] is False and facts.settings["chunked_prefill"] is False
    assert "password" not in facts.settings
    props = {"total_slots": 4, "build_info": "b6000", "default_generation_settings": {"n_ctx": 2048}}
    with Server(pages={"/props": (200, props)}) as server:
        server.pages["/v1/models"] = (200, {"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]})
        facts = connect(server).facts()
    assert (facts.engine, facts.engine_version) == ("llama.cpp", "b6000")
    assert facts.settings == {"max_num_seqs": 4, "max_model_len": 2048, "served_model": "m.gguf"}


def test_what_a_user_states_must_not_contradict_the_server(server, connect):
    with pytest.raises(BackendError, match="the server says 4096, but 8192"):
        connect(server, max_model_len=8192)
    with pytest.raises(UserError, match="max_num_seqs"):
        connect(server, max_num_seq=8)
    assert connect(server, kv_dtype="fp8").facts().kv_dtype == "fp8"


def test_another_model_than_the_one_that_is_served(server, connect):
    server.pages["/v1/models"] = (200, {"data": [{"id": "a"}, {"id": "b"}]})
    with pytest.raises(BackendError, match="does not serve 'tiny', it serves: a, b"):
        connect(server)
    server.pages["/v1/models"] = (200, {"data": [{"id": "a"}]})
    backend = connect(server, model="Qwen/Qwen3-0.6B")
    assert backend.facts().settings["served_model"] == "a"
    assert backend.facts().model_config["vocab_size"] > 100_000
    backend.warm_up(BURST)
    assert any("calls the model 'a'" in note for note in backend.run(BURST, 0).notes)


@pytest.mark.parametrize(
    "settings",
    [{"endpoint": "grpc"}, {"stall_timeout_s": 0}, {"vocab_size": 1.5}, {"share_prefixes": "x"}, {"trace": "t.csv"}],
)
def test_bad_settings_are_one_sentence(settings):
    with pytest.raises(UserError, match="expected"):
        read_settings(settings)


# How far the client can be trusted


def measured(lag_s, ttft_s, late_s=0.0):
    outcome = Outcome(1, planned_s=10.0, send_s=10.0 + lag_s, end_s=11.0, status="ok")
    outcome.answer.take(json.dumps(piece("a", 1, "length")), outcome.send_s + ttft_s)
    outcome.answer.take("[DONE]", 11.0)
    return Run([outcome], 10.0, 11.0, beats_late_s=[late_s], cpu_share=0.1)


def test_a_late_client_is_suspect():
    traffic = synthetic.burst(1, 5, 1, np.random.default_rng(0))
    assert not any("suspect" in note for note in notes_of(measured(0.004, 0.1), traffic))
    assert any("lag 4 ms" in note for note in notes_of(measured(0.004, 0.1), traffic))
    assert any("suspect: lag and queue of the client are 6%" in n for n in notes_of(measured(0.006, 0.1), traffic))
    assert any("suspect" in note for note in notes_of(measured(0.003, 0.1, late_s=0.003), traffic))
    busy = replace(measured(0.0, 0.1), cpu_share=0.95)
    assert any("the client was busy 95%" in note for note in notes_of(busy, traffic))


def body():
    return json.dumps({"model": "tiny", "prompt": "go", "max_tokens": 4, "stream": True}).encode()


def in_loop(server, work):
    async def all_of_it():
        http = Http(parse_address(server.url, False), Secret(), ClientSettings())
        try:
            return await work(http)
        finally:
            await http.close()

    return asyncio.run(all_of_it())


# A real server

VOCABULARY = 256
NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "fastapi",
    "uvicorn",
    "openai",
    "pydantic",
    "accelerate",
)


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """`transformers serve` on loopback with a Llama of random weights and a tokenizer made here; needs no network."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"a real server needs {', '.join(missing)}: pip install 'transformers[serving]' torch")
    folder = tmp_path_factory.mktemp("served") / "tiny-llama"
    make_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent), "OMP_NUM_THREADS": "1"}
    start = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", start, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    log = (folder.parent / "log").open("w+")
    process = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url + "/health", process, log)
        yield Served(url, str(folder))
    finally:
        process.kill()
        process.wait()
        log.close()


class Served:
    def __init__(self, url, model):
        self.url, self.model = url, model


def make_model(folder):
    """Two layers of random numbers, and a tokenizer that knows letters and what it learns from the client's words.

    Written without torch, whose import would take longer than all else here.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32", "eos_token_id": None}
    config = {**kind, **shape, "vocab_size": VOCABULARY, "max_position_embeddings": 2048, "bos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    weights = {name: random.normal(0.0, 0.1, size) for name, size in sizes_of_weights()}
    save_file(
        {name: w.astype(np.float32) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def sizes_of_weights():
    yield from (("model.embed_tokens.weight", (VOCABULARY, 32)), ("lm_head.weight", (VOCABULARY, 32)))
    yield "model.norm.weight", (32,)
    for layer in ("model.layers.0.", "model.layers.1."):
        yield from ((f"{layer}self_attn.{name}_proj.weight", (32, 32)) for name in "qkvo")
        yield from ((f"{layer}mlp.{name}_proj.weight", (64, 32)) for name in ("gate", "up"))
        yield f"{layer}mlp.down_proj.weight", (32, 64)
        yield from ((f"{layer}{name}_layernorm.weight", (32,)) for name in ("input", "post_attention"))


def wait_for(url, process, log):
    for _ in range(600):
        if process.poll() is not None:
            log.seek(0)
            pytest.fail(f"the server ended with code {process.returncode}: {log.read()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the server did not start within two minutes")


@pytest.mark.slow
@pytest.mark.parametrize("load", ["static_batch", "closed_loop", "open_loop"])
def test_a_real_server_is_measured(transformers_serve, connect, load):
    backend = connect(transformers_serve, model=transformers_serve.model)
    rate = 20.0 if load == "open_loop" else None
    point = Point(load, 3, 120, 8, 3 if load == "static_batch" else 6, request_rate_rps=rate)
    backend.warm_up(point)
    found = backend.run(point, seed=0)
    assert [request.status for request in found.requests] == ["ok"] * point.num_requests
    assert {request.output_tok for request in found.requests} == {8}
    for request in found.requests:
        assert abs(request.input_tok - 120) <= 12  # the words at the beginning differ in tokens, and are told
        assert 1 <= len(request.token_s) <= 8
        assert request.send_s < request.token_s[0] and list(request.token_s) == sorted(request.token_s)
    assert any("ignore_eos" in note for note in found.notes)  # it refuses vLLM's fields, and ends without [DONE]
    assert any("without [DONE]" in note for note in found.notes)
    assert backend.facts().model_config["vocab_size"] == VOCABULARY


@pytest.mark.slow
def test_a_real_server_is_measured_by_chat(transformers_serve, connect):
    with pytest.raises(BackendError, match="chat"):  # it has no template, and says so
        connect(transformers_serve, model=transformers_serve.model, endpoint="chat").warm_up(BURST)
