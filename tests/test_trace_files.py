"""Traffic from files: every format, every choice of a part, every kind of bad file, and the built-in traces."""

from __future__ import annotations

import contextlib
import gzip
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import UserError
from simulator.workload.builtin_traces import FOLDER, list_traces
from simulator.workload.shared_blocks import parts_of_hashes, parts_of_hit_counts
from simulator.workload.trace_files import read_trace

OWN = "t_s,input_tok,output_tok\n"
MOONCAKE = "t_s,input_tok,output_tok,n_prefix_blocks_512tok,derived_leading_blocks_seen_before\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def read(tmp_path):
    """Write a file and read it as a trace."""

    def write_and_read(content, *, file="trace.csv", seed=0, **options):
        path = tmp_path / file
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_trace(path, rng(seed), **options)

    return write_and_read


def rows_of(traffic):
    return list(zip(traffic.arrival_s.tolist(), traffic.prompt_tok.tolist(), traffic.output_tok.tolist()))


def common_tok(a, b):
    """Tokens of the longest common prefix of two prompts; (id, n) is the first n tokens of the stream `id`."""
    total = 0
    for (id_a, n_a), (id_b, n_b) in zip(a, b):
        if id_a != id_b:
            break
        total += min(n_a, n_b)
        if n_a != n_b:
            break
    return total


# --- formats ----------------------------------------------------------------------------------------------------------


def test_own_csv_starts_at_its_first_request(read):
    traffic = read(OWN + "10,5,7\n10.5,6,8\n12,7.0,9\n")
    assert rows_of(traffic) == [(0.0, 5, 7), (0.5, 6, 8), (2.0, 7, 9)]
    assert traffic.shared_prefix is None
    assert traffic.priority is None
    assert traffic.assumptions == ()


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n", lambda t: "\ufeff" + t])
def test_line_ends_byte_order_mark_and_last_blank_lines_do_not_matter(read, change):
    assert rows_of(read(change(OWN + "0,5,7\n1,6,8\n"))) == [(0.0, 5, 7), (1.0, 6, 8)]


def test_gzip_is_unpacked(read):
    assert len(read(gzip.compress((OWN + "0,5,7\n").encode()), file="trace.csv.gz")) == 1


def test_priority_and_named_prefixes(read):
    text = "t_s,input_tok,output_tok,priority,prefix_id,prefix_tok,user\n0,50,7,-1,a,32,x\n1,60,8,2,,0,y\n"
    traffic = read(text)
    assert traffic.priority.tolist() == [-1, 2]
    assert traffic.shared_prefix == (((("prefix", "a"), 32),), ())
    assert "not used: 'user'" in traffic.assumptions[0]


def test_mooncake_counts_become_hits_of_an_unlimited_cache(read):
    rows = ["0,1300,100,3,0", "0,5000,10,10,1", "5,1500,300,3,2", "9,1900,50,4,2", "9,512,5,1,1"]
    traffic = read(MOONCAKE + "\n".join(rows))
    prefixes = traffic.shared_prefix
    hits = [max((common_tok(p, q) // 512 for q in prefixes[:i]), default=0) for i, p in enumerate(prefixes)]
    assert hits == [0, 1, 2, 2, 1]
    assert all(sum(tok for _, tok in p) == prompt for p, prompt in zip(prefixes, traffic.prompt_tok))
    assert common_tok(prefixes[0], prefixes[2]) == 1024  # 1300 + 100 tokens are the longest that 1500 can continue
    assert common_tok(prefixes[2], prefixes[3]) == 1024
    assert "not in which request" in traffic.assumptions[0]


@given(st.data())
def test_hit_counts_always_come_out_as_they_went_in(data):
    blocks, seen = [], []
    for _ in range(data.draw(st.integers(1, 12))):
        blocks.append(data.draw(st.integers(1, 6)))
        seen.append(data.draw(st.integers(0, min(blocks[-1], max(blocks[:-1], default=0)))))
    prompts = [n * 16 for n in blocks]
    outputs = [data.draw(st.integers(1, 40)) for _ in blocks]
    parts = parts_of_hit_counts(prompts, outputs, seen, 16)
    hits = [max((common_tok(p, q) // 16 for q in parts[:i]), default=0) for i, p in enumerate(parts)]
    assert hits == seen
    assert [sum(tok for _, tok in p) for p in parts] == prompts


def test_azure_time_stamps_are_exact_to_their_seventh_digit(read):
    text = AZURE + "2023-11-16 23:59:59.9999999,374,44\n2023-11-17 00:00:00.0000001,396,109\n"
    assert rows_of(read(text)) == [(0.0, 374, 44), (2e-7, 396, 109)]
    text = AZURE + "2024-05-10 00:00:00+00:00,374,44\n2024-05-10 00:00:01.009930+00:00,396,109\n"
    assert read(text).arrival_s.tolist() == [0.0, 1.00993]


def mooncake_line(timestamp, prompt, output, hashes):
    return json.dumps({"timestamp": timestamp, "input_length": prompt, "output_length": output, "hash_ids": hashes})


def test_mooncake_jsonl_shares_blocks_with_equal_hashes(read):
    lines = [mooncake_line(1000, 1300, 5, [0, 1, 2]), mooncake_line(1500, 1100, 6, [0, 1, 7])]
    lines += [mooncake_line(3000, 1300, 7, [0, 1, 2]), mooncake_line(3000, 600, 8, [9, 10])]
    traffic = read("\n".join(lines), file="trace.jsonl")
    assert rows_of(traffic) == [(0.0, 1300, 5), (0.5, 1100, 6), (2.0, 1300, 7), (2.0, 600, 8)]
    a, b, c, d = traffic.shared_prefix
    assert common_tok(a, b) == 1024
    assert common_tok(a, c) == 1300  # the partial last block too
    assert common_tok(a, d) == 0
    small = [mooncake_line(0, 100, 5, [0, 1, 2, 3])]
    assert read("\n".join(small), file="small.jsonl", block_tok=32).shared_prefix == (((("prompt", 0), 100),),)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8), st.booleans())
def test_prompts_share_exactly_the_blocks_whose_hashes_are_equal(texts, chained):
    if chained:  # a hash stands for its block and all before it
        texts = [[hash(tuple(text[: i + 1])) for i in range(len(text))] for text in texts]
    prompts = [16 * len(text) for text in texts]
    parts = parts_of_hashes(texts, prompts, 16)
    for text, part in zip(texts, parts):
        for other_text, other in zip(texts, parts):
            equal = next(
                (i for i, (a, b) in enumerate(zip(text, other_text)) if a != b), min(len(text), len(other_text))
            )
            assert common_tok(part, other) == 16 * equal


def test_length_sets_need_times_or_clients_from_outside(read):
    text = "input_tok,output_tok\n5,7\n6,8\n7,9\n"
    with pytest.raises(UserError, match="has no times: expected arrivals"):
        read(text)
    assert rows_of(read(text, arrivals="constant:2")) == [(0.0, 5, 7), (0.5, 6, 8), (1.0, 7, 9)]
    assert rows_of(read(text, arrivals="burst", requests=2)) == [(0.0, 5, 7), (0.0, 6, 8)]
    closed = read(text, clients=2, requests=500)
    assert closed.clients == 2
    assert closed.arrival_s is None
    assert "500 requests drawn with replacement from the 3 rows" in closed.assumptions[0]
    assert set(zip(closed.prompt_tok.tolist(), closed.output_tok.tolist())) == {(5, 7), (6, 8), (7, 9)}
    assert (closed.prompt_tok == read(text, clients=2, requests=500).prompt_tok).all()
    assert (closed.prompt_tok != read(text, clients=2, requests=500, seed=1).prompt_tok).any()


def conversation(*texts):
    return {"conversations": [{"from": "human", "value": text} for text in texts]}


def test_sharegpt_takes_first_exchanges_and_says_what_it_left_out(read):
    entries = [conversation("p" * 41, "a" * 100, "more"), conversation("alone"), conversation("p" * 5, "a" * 100)]
    traffic = read(json.dumps([*entries, conversation("p" * 5000, "a" * 100)]), file="s.json", arrivals="burst")
    assert rows_of(traffic) == [(0.0, 11, 25)]
    assert "characters / 4" in traffic.assumptions[0]
    assert "1 conversations of one turn, 2 with a text under 4" in traffic.assumptions[1]


def test_prompts_of_vllm_and_guidellm(read):
    vllm = '{"prompt": "twelve chars", "output_tokens": 10}\n{"prompt": "", "output_tokens": 20}\n'
    traffic = read(vllm, file="v.jsonl", arrivals="burst")
    assert rows_of(traffic) == [(0.0, 3, 10), (0.0, 1, 20)]
    assert "characters / 4" in traffic.assumptions[0]
    guide = '{"prompt": "twelve chars", "prompt_tokens_count": 99, "output_tokens_count": 10}\n'
    traffic = read(guide, file="g.jsonl", arrivals="burst")
    assert rows_of(traffic) == [(0.0, 99, 10)]
    assert traffic.assumptions == ()
    csv = 'prompt,output_tokens_count\n"two\nlines, quoted",5\n'
    assert rows_of(read(csv, arrivals="burst")) == [(0.0, 5, 5)]
    csv = "prompt,prompt_tokens_count,output_tokens_count\n" + "x" * 300_000 + ",80000,5\n"
    assert rows_of(read(csv, arrivals="burst")) == [(0.0, 80000, 5)]
    with pytest.raises(UserError, match="no lengths of answers"):
        read('{"prompt": "hello"}\n', file="v.jsonl", arrivals="burst")
    assert rows_of(read('{"prompt": "hello"}\n', file="v.jsonl", arrivals="burst", output=3)) == [(0.0, 2, 3)]


def test_a_format_can_be_named(read):
    assert len(read(OWN + "0,5,7\n", format="lengths", clients=1)) == 1
    with pytest.raises(UserError, match="unknown trace format 'azur'; nearest: azure"):
        read(OWN + "0,5,7\n", format="azur")
    with pytest.raises(UserError, match="column 'TIMESTAMP'"):
        read(OWN + "0,5,7\n", format="azure")


# --- choosing a part --------------------------------------------------------------------------------------------------

FOUR = OWN + "0,1,1\n1,2,2\n4,3,3\n6,4,4\n"


def test_first_requests_and_windows(read):
    assert rows_of(read(FOUR, requests=2)) == [(0.0, 1, 1), (1.0, 2, 2)]
    traffic = read(FOUR, window_s=(0.5, 6.0))
    assert rows_of(traffic) == [(0.5, 2, 2), (3.5, 3, 3)]
    assert traffic.assumptions == ("only 0.5 to 6 s of the trace",)
    assert len(read(FOUR, window_s=(1.0, float("inf")))) == 3
    with pytest.raises(UserError, match=r"no request from 2 to 3 s; found a trace of 6 s"):
        read(FOUR, window_s=(2.0, 3.0))


def test_speed_and_rate_keep_the_proportions_of_gaps(read):
    assert read(FOUR, speed=2.0).arrival_s.tolist() == [0.0, 0.5, 2.0, 3.0]
    fast = read(FOUR, rate_per_s=10.0)
    assert fast.arrival_s == pytest.approx([0.0, 0.05, 0.2, 0.3])  # 3 gaps in 0.3 s
    assert "sped up by a factor 20" in fast.assumptions[0]


def test_a_repeated_trace_goes_on_after_a_mean_gap(read):
    traffic = read(FOUR, requests=9, repeat=True)
    assert traffic.arrival_s == pytest.approx([0, 1, 4, 6, 8, 9, 12, 14, 16])
    assert traffic.prompt_tok.tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert "repeated every 8 s to reach 9" in traffic.assumptions[0]
    with pytest.raises(UserError, match="has 4 requests, expected 9: repeat"):
        read(FOUR, requests=9)
    with pytest.raises(UserError, match="lasts 0 s"):
        read(OWN + "0,1,1\n", requests=2, repeat=True)


def test_copies_of_a_trace_share_system_prompts_and_nothing_else(read):
    named = read("t_s,input_tok,output_tok,prefix_id,prefix_tok\n0,9,1,a,4\n1,9,1,a,4\n", requests=4, repeat=True)
    assert len(set(named.shared_prefix)) == 1
    counted = read(MOONCAKE + "0,1024,1,2,0\n1,1600,1,4,2\n", requests=4, repeat=True).shared_prefix
    assert common_tok(counted[2], counted[3]) == common_tok(counted[0], counted[1]) == 1024
    assert common_tok(counted[0], counted[2]) == 0


def test_times_and_answers_can_be_replaced(read):
    traffic = read(FOUR, arrivals="constant:1", output=9)
    assert rows_of(traffic) == [(0.0, 1, 9), (1.0, 2, 9), (2.0, 3, 9), (3.0, 4, 9)]
    assert len(traffic.assumptions) == 2
    assert read(FOUR, clients=3).arrival_s is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"requests": 0}, "number of requests must be"),
        ({"window_s": (5.0, 5.0)}, "window of a trace"),
        ({"window_s": (float("nan"), 5.0)}, "window of a trace"),
        ({"speed": 0.0}, "speed of a trace"),
        ({"rate_per_s": -1.0}, "rate of a trace"),
        ({"speed": 2.0, "rate_per_s": 1.0}, "got both"),
        ({"arrivals": "4", "clients": 3}, "got both"),
        ({"arrivals": "4", "speed": 3}, "expected no arrivals"),
        ({"clients": -1}, "number of clients"),
        ({"block_tok": 0}, "block size"),
        ({"requests": 1, "rate_per_s": 1.0}, "has no rate"),
    ],
)
def test_bad_options_are_refused(read, options, said):
    with pytest.raises(UserError, match=said):
        read(FOUR, **options)


# --- bad files --------------------------------------------------------------------------------------------------------

BAD_CSV = {
    "negative time": (OWN + "-1,5,7\n", "row 2, column 't_s': found '-1', expected a time in seconds"),
    "not a number": (OWN + "0,5,7\nnan,5,7\n", "row 3, column 't_s': found 'nan'"),
    "endless time": (OWN + "0,5,7\ninf,5,7\n", "row 3, column 't_s': found 'inf'"),
    "text": (OWN + "0,5,7\n1,many,7\n", "row 3, column 'input_tok': found 'many', expected a whole number of tokens"),
    "unsorted": (
        OWN + "0,5,7\n3,5,7\n2,5,7\n",
        "row 4, column 't_s': found '2' after '3', expected times in ascending",
    ),
    "zero tokens": (OWN + "0,5,7\n1,0,7\n", "row 3, column 'input_tok': found '0'"),
    "negative tokens": (OWN + "0,5,7\n1,5,-7\n", "row 3, column 'output_tok': found '-7'"),
    "half a token": (OWN + "0,5.5,7\n", "row 2, column 'input_tok': found '5.5'"),
    "too many tokens": (OWN + "0,1e300,7\n", "row 2, column 'input_tok': found '1e300'"),
    "empty cell": (OWN + "0,5,7\n1,,7\n", "row 3, column 'input_tok': found ''"),
    "missing column": (
        "t_s,input_tok\n0,5\n",
        "row 1: found the columns t_s, input_tok, expected also a column 'output_",
    ),
    "repeated column": ("t_s,input_tok,input_tok\n0,5,5\n", "expected column names, each once"),
    "unknown header": ("a;b;c\n1;2;3\n", "row 1: found the first line 'a;b;c', expected a CSV file with the columns"),
    "empty file": ("", "found an empty file"),
    "blank file": ("\n \n", "found an empty file"),
    "no rows": (OWN, "found a header and no rows"),
    "no rows, blank line": (OWN + "\n", "found a header and no rows"),
    "short row": (OWN + "0,5,7\n1,5\n", "row 3: found 2 values, expected 3 values"),
    "one value": (OWN + "0\n", "row 2: found 1 value, expected 3 values"),
    "long row": (OWN + "0,5,7,9\n", "row 2: found 4 values, expected 3 values"),
    "blank line between": (OWN + "0,5,7\n\n1,5,7\n", "row 3: found a blank line"),
    "blank line in front": ("\n" + OWN + "0,5,7\n", "row 1: found the header ''"),
    "open quote": (OWN + '0,5,"7\n', "found text that is not CSV"),
    "other bytes": ((OWN + "0,5,7\n").encode() + b"1,\xff,7\n", "row 3: found the byte 0xff, which is not UTF-8"),
    "half a gzip": (gzip.compress(OWN.encode())[:20], "cannot be read"),
    "priority": ("t_s,input_tok,output_tok,priority\n0,5,7,x\n", "row 2, column 'priority': found 'x'"),
    "prefix longer than prompt": (
        "t_s,input_tok,output_tok,prefix_id,prefix_tok\n0,5,7,a,6\n",
        "row 2, column 'prefix_tok': found '6', expected at most the 5 tokens",
    ),
    "prefix without name": (
        "t_s,input_tok,output_tok,prefix_id,prefix_tok\n0,5,7,,3\n",
        "row 2, column 'prefix_id': found an empty cell",
    ),
    "prefix without length": ("t_s,input_tok,output_tok,prefix_id\n0,5,7,a\n", "expected also a column 'prefix_tok'"),
    "wrong block count": (MOONCAKE + "0,1300,1,2,0\n", "row 2, column 'n_prefix_blocks_512tok': found '2', expected 3"),
    "more blocks than the prompt": (MOONCAKE + "0,1300,1,3,4\n", "row 2, column 'derived_leading_blocks_seen_before'"),
    "blocks from nowhere": (
        MOONCAKE + "0,1300,1,3,1\n",
        "found '1', expected no more blocks than an earlier prompt has",
    ),
    "Azure date": (AZURE + "2023-11-16,5,7\n", "row 2, column 'TIMESTAMP': found '2023-11-16', expected a time as"),
    "Azure month": (AZURE + "2023-13-16 00:00:00,5,7\n", "row 2, column 'TIMESTAMP': found '2023-13-16 00:00:00'"),
    "Azure year": (AZURE + "9999-01-01 00:00:00,5,7\n", "row 2, column 'TIMESTAMP': found '9999-01-01 00:00:00'"),
    "Azure order": (AZURE + "2023-11-16 00:00:01,5,7\n2023-11-16 00:00:00,5,7\n", "row 3, column 'TIMESTAMP'"),
    "Azure tokens": (AZURE + "2023-11-16 00:00:01,5,0\n", "row 2, column 'GeneratedTokens': found '0'"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_refused_with_row_and_column(read, case):
    content, said = BAD_CSV[case]
    with pytest.raises(UserError) as error:
        read(content)
    assert said in str(error.value)
    assert "trace.csv" in str(error.value)


GOOD_LINE = mooncake_line(0, 512, 5, [0])
BAD_JSON = {
    "bad JSON": (GOOD_LINE + "\n{nope}\n", "row 2: found bad JSON '{nope}'"),
    "bad first line": ("{nope}\n", "row 1: found bad JSON"),
    "cut off": (GOOD_LINE + "\n" + GOOD_LINE[:30], "row 2: found bad JSON"),
    "not an object": (GOOD_LINE + "\n3\n", "row 2: found '3', expected one JSON object"),
    "blank line": (GOOD_LINE + "\n\n" + GOOD_LINE, "row 2: found bad JSON"),
    "unknown fields": ('{"a": 1}\n', "row 1: found the fields a, expected a CSV file"),
    "no field": ('{"timestamp": 0, "output_length": 5}\n', "row 1, column 'input_length': found no such field"),
    "text": (GOOD_LINE.replace("512", '"512"'), "row 1, column 'input_length': found '512', expected a number"),
    "half a token": (
        GOOD_LINE.replace("512", "512.5"),
        "row 1, column 'input_length': found '512.5', expected a whole",
    ),
    "endless number": (GOOD_LINE.replace("512", "9" * 5000), "row 1"),
    "zero tokens": (GOOD_LINE + "\n" + mooncake_line(0, 512, 0, [0]), "row 2, column 'output_length': found '0'"),
    "negative time": (mooncake_line(-1, 512, 5, [0]), "row 1, column 'timestamp': found '-1'"),
    "not a number": (GOOD_LINE.replace('"timestamp": 0', '"timestamp": NaN'), "row 1: found bad JSON"),
    "unsorted": (mooncake_line(5, 512, 5, [0]) + "\n" + GOOD_LINE, "row 2, column 'timestamp': found 0 after 5"),
    "hash count": (
        mooncake_line(0, 513, 5, [0]),
        "row 1, column 'hash_ids': found 1 hashes, expected 2 for 513 tokens",
    ),
    "hash type": (mooncake_line(0, 512, 5, ["x"]), "row 1, column 'hash_ids'"),
    "deep": ("[" * 100_000, "found bad JSON"),
    "no conversation": ('[{"id": 1}]', "row 1: found"),
    "no text": ('[{"conversations": [{"value": 1}, {"value": "a"}]}]', "row 1, column 'conversations'"),
    "none usable": ("[" + json.dumps(conversation("a")) + "]", "found 1 conversations, none usable"),
    "empty list": ("[]", "expected a JSON list of conversations"),
    "prompt is no text": (
        '{"prompt": "a", "output_tokens": 4}\n{"prompt": 3, "output_tokens": 4}',
        "row 2, column 'prom",
    ),
    "answer missing": (
        '{"prompt": "a", "output_tokens": 4}\n{"prompt": "b"}',
        "row 2, column 'output_tokens': found no",
    ),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_refused_with_row_and_field(read, case):
    content, said = BAD_JSON[case]
    with pytest.raises(UserError) as error:
        read(content, file="trace.json", arrivals="burst")
    assert said in str(error.value)


@given(st.binary(max_size=200) | st.text(alphabet='t_s,input_ok\n01.5"{}[]:-e', max_size=120).map(str.encode))
def test_whatever_stands_in_a_file_it_is_traffic_or_one_sentence(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "anything"
    for head in (b"", OWN.encode(), GOOD_LINE.encode() + b"\n"):
        path.write_bytes(head + content)
        with contextlib.suppress(UserError):
            read_trace(path, rng(), arrivals="burst")


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_trace(tmp_path, rng())
    with pytest.raises(UserError, match="does not exist"):
        read_trace(tmp_path / "none.csv", rng())
    with pytest.raises(UserError, match="unknown trace 'azure-2023-con'; nearest: azure-2023-con"):
        read_trace("azure-2023-con", rng())
    with pytest.raises(UserError):
        read_trace("x" * 5000, rng())
    with pytest.raises(UserError):
        read_trace("", rng())


def test_a_large_table_says_the_right_row(read):
    lines = [f"{i},5,7" for i in range(12_000)]
    assert len(read(OWN + "\n".join(lines))) == 12_000
    lines[11_000] = "11000,5"
    with pytest.raises(UserError, match="row 11,002: found 2 values"):
        read(OWN + "\n".join(lines))


# --- built-in traces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sheet", list_traces(), ids=lambda sheet: sheet.name)
def test_built_in_traces_are_what_their_sheets_say(sheet):
    traffic = read_trace(sheet.name, rng(), arrivals="burst" if sheet.duration_s is None else None)
    assert len(traffic) == sheet.requests
    assert traffic.prompt_tok.mean() == pytest.approx(sheet.mean_input_tok, abs=0.06)
    assert traffic.output_tok.mean() == pytest.approx(sheet.mean_output_tok, abs=0.06)
    assert set(sheet.traps) <= set(traffic.assumptions)
    assert traffic.title.startswith(sheet.title)
    if sheet.duration_s is not None:
        assert traffic.arrival_s[0] == 0.0
        assert traffic.arrival_s[-1] == pytest.approx(sheet.duration_s, abs=0.06)


def test_sizes_and_means_of_the_sources():
    means = {
        sheet.name: (sheet.requests, round(sheet.mean_input_tok), round(sheet.mean_output_tok))
        for sheet in list_traces()
    }
    assert means["azure-2023-conv"] == (10_000, 1242, 218)
    assert means["azure-2023-code"] == (8_819, 2048, 28)
    assert means["mooncake-conversation"] == (10_000, 12_143, 345)


def test_mooncake_conversation_hits_its_unlimited_cache_as_the_file_says():
    traffic = read_trace("mooncake-conversation", rng(), requests=400)
    with gzip.open(FOLDER / "mooncake-conversation.csv.gz", "rt") as file:
        seen = [int(line.rsplit(",", 1)[1]) for line in file.readlines()[1:401]]
    prefixes = traffic.shared_prefix
    hits = [max((-(-common_tok(p, q) // 512) for q in prefixes[:i]), default=0) for i, p in enumerate(prefixes)]
    assert hits == seen


def test_every_trace_file_has_a_sheet_ships_with_the_package_and_is_small():
    files = {path.name for path in FOLDER.glob("*.csv.gz")}
    assert files == {f"{sheet.name}.csv.gz" for sheet in list_traces()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 700_000
    patterns = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {"workload/traces/*.toml", "workload/traces/*.csv.gz"} <= set(patterns["package-data"]["simulator"])
