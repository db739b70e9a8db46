"""Run files: what is read, what is refused and in which words."""

import msgspec
import pytest

from calibration.records import COLUMNS, METRICS, RunRecord, read_records, records_hash
from calibration.sources import with_scripts
from calibration.vendored import DIRECTORY
from simulator.errors import UserError

HEADER = "run_id,source,gpu,model,load,input_tok,output_tok,ttft_s_mean,power_w,cuda_graphs,flags"
ROW = "a,me,orin,m,static_batch,128,64,0.5,,true,suspect:x;derived:y"


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_vendored_runs_are_read_whole():
    records = read_records(DIRECTORY / "edgereasoning.csv")
    assert len(records) == 438
    assert len({record.run_id for record in records}) == 438
    assert {record.gpu for record in records} == {"orin-agx-64gb"}


def test_empty_cells_are_unknown_not_zero(tmp_path):
    (record,) = read_records(write(tmp_path, ROW))
    assert record.power_w is None and record.tp is None and record.cuda_graphs is True
    assert record.measured() == {"ttft_s_mean": 0.5}
    assert record.flagged("suspect:") and not record.flagged("whole_run")


def test_metrics_are_columns():
    assert set(METRICS) <= set(COLUMNS) and len(COLUMNS) == 51


@pytest.mark.parametrize(
    ("rows", "header", "complaint"),
    [
        (("a,me,orin,m,static_batch,128,64,fast,,,",), HEADER, "line 2, column ttft_s_mean: found 'fast'"),
        (("a,me,orin,m,static_batch,128,64,-0.5,,,",), HEADER, "expected a number from"),
        (("a,me,orin,m,static_batch,128,64,nan,,,",), HEADER, "expected a number from"),
        (("a,me,orin,m,batch,128,64,0.5,,,",), HEADER, "load is 'batch', expected one of static_batch"),
        ((",me,orin,m,static_batch,128,64,0.5,,,",), HEADER, "'run_id' is empty"),
        ((ROW, ROW), HEADER, "appears twice"),
        ((ROW + ",1",), HEADER, "more cells than columns"),
        ((ROW,), HEADER.replace("power_w", "watts"), "unknown column 'watts'"),
        (("a,me",), "run_id,source", "column 'gpu' is missing"),
    ],
)
def test_bad_rows_are_refused_in_one_sentence(tmp_path, rows, header, complaint):
    with pytest.raises(UserError) as error:
        read_records(write(tmp_path, *rows, header=header))
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_records(tmp_path / "none.csv")


def test_hash_ignores_order_and_sees_every_cell(tmp_path):
    other = ROW.replace("a,me", "b,me")
    first = read_records(write(tmp_path, ROW, other))
    assert records_hash(first) == records_hash(first[::-1])
    changed = read_records(write(tmp_path, ROW, other.replace("0.5", "0.6")))
    assert records_hash(first) != records_hash(changed)


def test_scripts_of_a_source_say_what_its_rows_leave_out():
    stated = {"run_id": "a", "source": "inferencex", "gpu": "h100-sxm", "model": "openai/gpt-oss-120b", "load": "burst"}
    record = RunRecord(**stated, weight_dtype="mxfp4", flags="derived:input_tok")
    known = with_scripts(record, "hopper", "0.18.0")
    assert known.flag_list == ("derived:input_tok", "experts:marlin", "cudagraph_max:2048")
    assert with_scripts(known, "hopper", "0.18.0") is known
    own = msgspec.structs.replace(record, flags="cudagraph_max:512")
    assert with_scripts(own, "hopper", "0.18.0").flag_value("cudagraph_max:") == "512"
    for architecture, version in (("blackwell", "0.18.0"), ("hopper", "0.12.0"), ("hopper", None)):
        assert with_scripts(record, architecture, version) is record
    other = msgspec.structs.replace(record, source="mlenergy")
    assert with_scripts(other, "hopper", "0.18.0") is other


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("runs.csv", HEADER + "\n" + ROW.rsplit(",", 2)[0], "line 2: fewer cells than columns, found 9, expected 11"),
        ("runs.csv", HEADER + "\n" + ROW + ',"open', "line 2: not CSV"),
        ("runs.csv", "", "the file is empty"),
        ("runs.csv", HEADER + "\n" + ROW.replace("orin", "x" * 10**6), "column gpu: a cell of 1,000,000 characters"),
        ("runs.csv", HEADER + "\n" + ROW.replace("orin", "x" * 501), "column gpu: found 'xxxx"),
        ("runs.json", "{}", "found one JSON value, expected an array"),
        ("runs.json", "[1]", "row 1: found 1, expected an object"),
        ("runs.json", '[{"run_id": "a"', "not JSON"),
        ("runs.json", '[{"run_id": ["a"]}]', "row 1, column run_id: found ['a'], expected a number or text"),
        ("runs.json", '[{"run_id": "a"}]', "column 'source' is missing"),
        ("runs.jsonl", '{"run_id": "a"}\nnot\n', "line 2: not JSON"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_records(path)
    assert complaint in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_bytes(b"run_id\xff,source")
    with pytest.raises(UserError, match="byte 6 is not UTF-8"):
        read_records(path)


def test_json_rows_are_the_same_runs(tmp_path):
    (from_csv,) = read_records(write(tmp_path, ROW))
    row = {"run_id": "a", "source": "me", "gpu": "orin", "model": "m", "load": "static_batch", "input_tok": 128}
    row |= {"output_tok": 64.0, "ttft_s_mean": 0.5, "power_w": None, "cuda_graphs": True, "flags": from_csv.flags}
    (tmp_path / "runs.json").write_bytes(msgspec.json.encode([row]))
    (tmp_path / "runs.jsonl").write_bytes(msgspec.json.encode(row) + b"\n\n")
    assert read_records(tmp_path / "runs.json") == read_records(tmp_path / "runs.jsonl") == [from_csv]


def test_a_quoted_line_break_is_part_of_a_cell(tmp_path):
    quoted = '"suspect:\u2028x\ny"'
    first, second = ROW.replace("suspect:x;derived:y", quoted), ROW.replace("a,", "b,", 1)
    assert [record.run_id for record in read_records(write(tmp_path, first, second))] == ["a", "b"]
