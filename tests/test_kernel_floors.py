"""Operator tables against the data sheet: `validate kernels` and what it is made of."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.kernels import tables
from simulator.device import load_device
from simulator.errors import UserError
from validate.commands.kernels import kernels
from validate.kernel_findings import MARGIN, kernel_findings
from validate.kernel_floors import need_of
from validate.operator_tables import OperatorRows, read_operator_rows

H100, L40S = load_device("h100-sxm"), load_device("l40s")
GEMM = "dtype,m,n,k,latency_us"
DECODE = "batch,kv_len,heads,kv_heads,head_dim,kv_dtype,kernel_source,latency_us"
MOE = "dtype,tokens,hidden,inter,topk,experts,moe_tp,moe_ep,distribution,kernel,latency_us"
REDUCE = "gpu,library,version,kernel,mode,dtype,tp,bytes,latency_us"
POWER = "gpu,op,dtype,shape,latency_us,power_w"
VIDUR = "gpu,model,tp,num_tokens,n_embd,n_expanded_embd,n_head,n_kv_head,use_gated_mlp,attn_pre_proj_ms,mlp_up_proj_ms"


@pytest.fixture
def file(tmp_path):
    """Writes a table: file(name, header, *rows) -> its path."""

    def write(name, header, *rows):
        path = tmp_path / name
        text = "\n".join([header, *rows]) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def findings(path, gpu=None):
    return kernel_findings(read_operator_rows(path, gpu), path.name)


def invoke(*args):
    return CliRunner().invoke(kernels, [str(arg) for arg in args])


# -- floors --------------------------------------------------------------------------------------------------------


def test_a_product_needs_its_weights(file):
    """4096 x 4096 weights of 16 bit are 33.6 MB: 10.0 us at 3.35 TB/s; one row of input and output on top."""
    floor_us = (2 * 4096 * 4096 + 2 * 4096 + 2 * 4096) / 3.35e12 * 1e6
    above = file("gemm_h100-sxm.csv", GEMM, f"bf16,1,4096,4096,{floor_us * (1.0 + 1e-6)}")
    assert findings(above) == []
    [finding] = findings(file("gemm_h100-sxm.csv", GEMM, f"bf16,1,4096,4096,{floor_us / (1.0 + 1.1 * MARGIN)}"))
    assert (finding.check, finding.fault, finding.severity) == ("kernels.floor", "F3", "fail")
    assert finding.evidence["floor_s"] == pytest.approx(floor_us * 1e-6)
    assert finding.confidence == "certain" and "m=1 n=4096 k=4096" in finding.says


def test_a_product_needs_its_flops(file):
    """2 x 8192^3 FLOPs at 989 TFLOPS dense: 1112 us, at the sparse rate half of it."""
    [finding] = findings(file("gemm_h100-sxm.csv.gz", GEMM, "bf16,8192,8192,8192,700", "bf16,8192,8192,8192,1200"))
    assert finding.evidence["bound"] == "FLOPs" and "sparse" in finding.says
    assert (finding.rows, finding.of, finding.worst_row) == (1, 2, 1)
    assert finding.worst == pytest.approx(2 * 8192**3 / H100.compute.peak_flop_per_s["bf16"] / 700e-6)


@pytest.mark.parametrize("kv_dtype, kv_byte", [("bf16", 2.0), ("fp8", 1.0), ("fp16", 2.0)])
def test_decode_attention_needs_its_cache(kv_dtype, kv_byte):
    row = {"batch": 64, "kv_len": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128}
    table = {name: np.array([value]) for name, value in row.items()} | {"kv_dtype": np.array([kv_dtype])}
    need = need_of(OperatorRows("attention_decode", H100, table | {"latency_s": np.array([1.0])}, np.array([1])))
    assert need.working_set_byte[0] == 2 * 64 * 4096 * 8 * 128 * kv_byte
    assert need.seconds[0] == pytest.approx((need.working_set_byte[0] + 4 * 64 * 32 * 128) / 3.35e12)


def test_balanced_experts_are_touched_once_each(file):
    """8 of 64 experts by one token: 8 x 3 x 2048 x 1408 weights of 16 bit."""
    read_us = 8 * 3 * 2048 * 1408 * 2 / 3.35e12 * 1e6
    row = "bf16,1,2048,1408,8,64,1,1,balanced,fused_moe,"
    [finding] = findings(file("moe_h100-sxm.csv", MOE, f"{row}{0.8 * read_us}"))
    assert finding.severity == "fail" and finding.evidence["floor_s"] == pytest.approx(read_us * 1e-6)
    assert findings(file("moe_h100-sxm.csv", MOE, f"{row}{1.01 * read_us}")) == []


def test_experts_drawn_at_random_are_an_estimate(file):
    [finding] = findings(file("moe_h100-sxm.csv", MOE, "bf16,64,2048,1408,8,64,1,1,power_law_1.2,fused_moe,5"))
    assert (finding.severity, finding.confidence) == ("warn", "possible") and "another draw" in finding.says


@pytest.mark.parametrize("gpu, share", [("a100-sxm-80gb", 2.0), ("h100-sxm", 1.0)])
def test_messages_need_the_link_and_half_of_it_where_the_switch_adds_up(file, gpu, share):
    link = load_device(gpu).interconnect.scale_up_byte_per_s
    floor_us = share * 7 / 8 * 1e8 / link * 1e6
    row = f"{gpu},vllm,0.24.0,NCCL,graph,bf16,8,100000000,"
    [finding] = findings(file("allreduce.csv", REDUCE, f"{row}{0.97 * floor_us}"))
    assert finding.evidence["bound"] == "link" and finding.evidence["floor_s"] == pytest.approx(floor_us * 1e-6)
    assert findings(file("allreduce.csv", REDUCE, f"{row}{1.01 * floor_us}")) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4096), st.integers(64, 8192), st.integers(64, 8192), st.sampled_from(["bf16", "fp8"]))
def test_more_work_never_needs_less_time(m, n, k, dtype):
    columns = {"m": [m, 2 * m, m, m], "n": [n, n, 2 * n, n], "k": [k, k, k, 2 * k]}
    table = {name: np.array(values) for name, values in columns.items()} | {"dtype": np.full(4, dtype)}
    need = need_of(OperatorRows("gemm", H100, table | {"latency_s": np.ones(4)}, np.arange(1, 5)))
    assert (need.seconds[1:] > need.seconds[0]).all()


# -- causes --------------------------------------------------------------------------------------------------------


def test_what_the_l2_serves_is_said_so(file):
    """AIC-L2: 12.6 MB of weights, six of them 75 MB, in the 96 MB of an L40S: 2.6 times its memory's rate."""
    [finding] = findings(file("gemm_l40s.csv", GEMM, "bf16,2,12288,512,5.575"))
    assert finding.worst == pytest.approx(2.62, abs=0.01) and "F9" in finding.also
    assert "repeated replays read it" in finding.says and "working sets well above the L2" in finding.next
    [large] = findings(file("gemm_l40s.csv", GEMM, "bf16,2,12288,8192,200"))  # 201 MB: no cache holds that
    assert "F9" not in large.also and large.evidence["rows_that_fit_in_l2"] == 0.0


def test_times_that_do_not_react_to_their_size(file):
    """AIC-EAGER: any small m of one shape costs 55 us, a launch from the host."""
    rows = [f"fp8-block,{m},4096,512,{55 + 0.1 * m}" for m in (1, 2, 4, 8, 16, 32)]
    [finding] = findings(file("gemm_h100-sxm.csv", GEMM, *rows))
    assert (finding.check, finding.fault, finding.rows) == ("kernels.launch_floor", "F9", 6)
    quick = [f"fp8,{m},4096,512,{5 + 0.01 * m}" for m in (1, 2, 4, 8, 16, 32)]
    assert findings(file("gemm_h100-sxm.csv", GEMM, *quick)) == []  # a kernel's own start
    heavy = [f"bf16,{m},16384,16384,{180 + 0.1 * m}" for m in (1, 2, 4, 8, 16, 32)]
    assert findings(file("gemm_h100-sxm.csv", GEMM, *heavy)) == []  # the weights set the time


def test_elements_taken_for_bytes_halve_the_link(file):
    """AIC-ELEM: messages of 2-byte elements, listed by element: 0.38 of a link that NCCL fills to 0.76."""
    rows = [f"a100-sxm-80gb,vllm,0.14.0,NCCL,graph,bf16,4,{size},{size * 1.5 / 3e11 / 0.38 * 1e6}"
            for size in (10**8, 2 * 10**8, 4 * 10**8, 8 * 10**8)]  # fmt: skip
    [finding] = findings(file("allreduce.csv", REDUCE, *rows))
    assert (finding.check, finding.fault, finding.confidence) == ("kernels.half_link", "F2", "possible")
    assert "elements" in finding.says
    as_bytes = [row.replace(f",{row.split(',')[7]},", f",{2 * int(row.split(',')[7])},") for row in rows]
    assert findings(file("allreduce.csv", REDUCE, *as_bytes)) == []


def test_power_of_kernels_obeys_the_board(file):
    row = "h100-sxm,gemm,bf16,m=64 n=8192 k=8192,100,"
    assert findings(file("kernel_power.csv", POWER, f"{row}650")) == []
    [over] = findings(file("kernel_power.csv", POWER, f"{row}740"))
    [under] = findings(file("kernel_power.csv", POWER, f"{row}30"))
    assert (over.check, under.check) == ("kernels.power_limit", "kernels.power_idle")


def test_linear_layers_of_vidur(file):
    """One rank of Llama-2-70B at TP 8: 8192 x 1280 weights of the QKV product are 21 MB, 10.3 us on an A100."""
    row = "a100,Llama-2-70b-hf,8,1,8192,28672,64,8,True,"
    assert findings(file("vidur_a100.csv", VIDUR, f"{row}0.0115,")) == []
    [finding] = findings(file("vidur_a100.csv", VIDUR, f"{row}0.009,"))
    assert finding.gpu == "a100-sxm-80gb" and finding.evidence["floor_s"] == pytest.approx(10.3e-6, rel=0.01)


def test_a_sheet_without_a_link_is_unverified(file):
    [note] = findings(file("allreduce.csv", REDUCE, "orin-agx-64gb,nccl,1,NCCL,graph,bf16,2,1000000,1"))
    assert not note.alarm and "unverified" in note.says


# -- the tables that ship ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, least, worst",
    [("gemm_l40s", 280, 2.62), ("attention_decode_rtx-pro-6000", 205, 1.91), ("gemm_h100-sxm", 1, 1.13)],
)
def test_shipped_rows_served_by_the_l2_are_found(name, least, worst):
    found = findings(tables.DIRECTORY / f"{name}.csv.gz")
    assert {f.check for f in found} == {"kernels.floor"}
    assert sum(f.rows for f in found) >= least and max(f.worst for f in found) == pytest.approx(worst, abs=0.01)


@pytest.mark.parametrize("name", ["gemm_a100-sxm-80gb", "gemm_h200-sxm", "gemm_b200-sxm", "allreduce"])
def test_shipped_tables_without_such_rows_are_silent(name):
    assert not [f for f in findings(tables.DIRECTORY / f"{name}.csv.gz") if f.alarm]


# -- the command ---------------------------------------------------------------------------------------------------


def test_exit_codes_and_output(file):
    good = file("gemm_h100-sxm.csv", GEMM, "bf16,1,4096,4096,12")
    result = invoke(good)
    assert result.exit_code == 0 and "1 rows of 1 file: 0 rows in 0 findings" in result.output
    bad = file("gemm_l40s.csv", GEMM, "bf16,2,12288,512,5.575")
    result = invoke(good, bad)
    assert result.exit_code == 1 and "F3 fail, certain: gemm bf16 on l40s" in result.output


def test_json_holds_every_finding(file):
    result = invoke(file("gemm_l40s.csv", GEMM, "bf16,2,12288,512,5.575"), "--json")
    report = json.loads(result.output)
    [finding] = report["findings"]
    assert result.exit_code == 1 and (report["files"], report["rows"]) == (1, 1)
    assert finding["fault"] == "F3" and finding["evidence"]["l2_byte"] == L40S.compute.l2_byte


def test_the_gpu_may_be_told(file):
    path = file("gemm_mine.csv", GEMM, "bf16,2,12288,512,5.575")
    assert findings(path, "l40s")[0].gpu == "l40s"
    with pytest.raises(UserError, match="--gpu, says which"):
        findings(path)


@pytest.mark.parametrize(
    "name, header, row, message",
    [
        ("products.csv", GEMM, "bf16,1,2,3,4", "does not say which operator"),
        ("gemm_h100-sxm.csv", "m,n", "1,2", "found columns m, n"),
        ("gemm_h100-sxm.csv", GEMM, "bf16,1,2,3,nan", "column latency_us"),
        ("gemm_h100-sxm.csv", GEMM, "bf16,-1,2,3,4", "column m"),
        ("gemm_h100-sxm.csv", GEMM, "bf7,1,2,3,4", "column dtype: found 'bf7'"),
        ("attention_decode_h100-sxm.csv", DECODE, "1,1,1,1,1,q3,x,1", "column kv_dtype: found 'q3'"),
        ("moe_h100-sxm.csv", MOE, "bf16,1,1,1,1,1,1,1,wild,x,1", "column distribution: found 'wild'"),
        ("allreduce.csv", REDUCE, "h900,nccl,1,NCCL,graph,bf16,2,1,1", "h900"),
        (
            "kernel_power.csv",
            POWER,
            "h100-sxm,gemm,bf16,m=1 n=2,1,100",
            "expected k=",
        ),
        ("kernel_power.csv", POWER, "h100-sxm,sort,bf16,m=1,1,100", "column op"),
        ("vidur_a100.csv", "gpu,model", "a100,x", "column 'tp' is missing"),
        ("vidur_a100.csv", VIDUR, "a100,x,zero,1,8,8,1,1,True,1,1", "column tp: found 'zero'"),
        ("vidur_a100.csv", VIDUR, "a100,x", "another number of fields"),
        ("vidur_a100.csv.gz", VIDUR, "a100,x,1,1,8,8,1,1,True,inf,1", "column attn_pre_proj_ms: found 'inf'"),
    ],
)
def test_bad_tables_get_one_sentence(file, name, header, row, message):
    with pytest.raises(UserError, match=message) as error:
        findings(file(name, header, row))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["gemm_h100-sxm.csv", "vidur_a100.csv", "vidur_a100.csv.gz"])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        read_operator_rows(tmp_path / name)


def test_files_that_are_no_text(tmp_path):
    for name in ("vidur_a100.csv", "vidur_a100.csv.gz", "gemm_h100-sxm.csv.gz"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00gz")
        with pytest.raises(UserError):
            read_operator_rows(tmp_path / name)
