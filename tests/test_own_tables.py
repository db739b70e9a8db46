"""Operator tables of a user's own GPU: made from known parameters they give these back; bad ones get a sentence."""

import gzip
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from calibration.commands.fit import _priors
from calibration.kernels import attention, collective, gemm, moe, own_tables, tables
from calibration.kernels.own_tables import fit_tables
from simulator.device import load_device
from simulator.errors import UserError
from simulator.parameters import SPECS, flatten, with_values
from simulator.profile_parts import compose

A6000 = load_device("a6000")  # no table of it ships
START = compose(A6000)
TRUTH = {
    "gemm16.start_s": 5.1e-6, "gemm16.memory_fraction": 0.71, "gemm16.compute_fraction": 0.62,
    "decode.bandwidth_fraction": 0.66, "decode.start_s": 9e-6,
    "prefill.matrix_fraction": 0.41,
    "moe16.bandwidth_fraction": 0.6, "moe16.start_s": 6e-5,
    "collective.start_s": 9e-6, "collective.custom_fraction": 0.4,
}  # fmt: skip
PLANTED = with_values(START.parameters, TRUTH)
GEMM = "dtype,m,n,k,latency_us\n"


def grid(**columns):
    """All combinations of the values, as columns."""
    mesh = np.meshgrid(*columns.values(), indexing="ij")
    return {name: part.ravel() for name, part in zip(columns, mesh)}


def text(operator, table, seconds):
    """A table as CSV."""
    header = tables.EXPECTED[operator]
    columns = {**table, "latency_us": np.round(1e6 * seconds, 4)}
    full = {name: np.broadcast_to(columns[name], len(seconds)) for name in header}
    return "\n".join([",".join(header), *(",".join(map(str, row)) for row in zip(*full.values()))]) + "\n"


def made_gemm():
    table = grid(m=2 ** np.arange(0, 14, 2), n=[256, 4096, 14336], k=[256, 4096, 12288])
    table["dtype"] = np.full(table["m"].size, "bf16")
    return text("gemm", table, gemm.predict(table, A6000, PLANTED.gemm16))


def made_attention(phase):
    length = {"prefill": "q_len", "decode": "kv_len"}[phase]
    lengths = [256, 1024, 4096] if phase == "prefill" else [64, 1024, 4096, 16384]
    table = grid(batch=[1, 4, 16, 64], heads=[32], kv_heads=[4, 8, 32], head_dim=[128], **{length: lengths})
    table |= {"kv_dtype": np.full(table["batch"].size, "bf16"), "kernel_source": "mine"}
    rows = attention.rows_of(phase, {**table, "latency_s": np.ones(table["batch"].size)}, A6000)
    return text(f"attention_{phase}", table, np.exp(rows.errors(getattr(PLANTED, phase))))


def made_moe():
    table = grid(tokens=[1, 8, 64, 512, 4096], hidden=[2048, 4096], inter=[768, 1536], distribution=["balanced"])
    size = table["tokens"].size
    constant = {"topk": 8, "experts": 128, "moe_tp": 1, "moe_ep": 1}
    table |= {name: np.full(size, value) for name, value in constant.items()}
    table |= {"dtype": np.full(size, "bf16"), "kernel": np.full(size, "triton"), "latency_s": np.ones(size)}
    rows = moe.rows_of("moe16", table, A6000, moe.loads_of(table))
    return text("moe", table, np.exp(rows.errors(PLANTED.moe16)))


def made_messages(gpu="a6000"):
    table = grid(tp=[2], bytes=2 ** np.arange(10, 29, 2), mode=["graph"])
    seconds = collective.predict(table, A6000, PLANTED.collective)
    constant = {"gpu": gpu, "library": "vllm", "version": "1", "kernel": "mine", "dtype": "bf16"}
    return text("allreduce", table | constant, seconds)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Every operator's made-up table fitted at once: (values, sentences)."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "gemm_mine.csv").write_text(made_gemm())
    (folder / "attention_prefill_mine.csv").write_text(made_attention("prefill"))
    (folder / "attention_decode_mine.csv.gz").write_bytes(gzip.compress(made_attention("decode").encode()))
    (folder / "moe_mine.csv").write_text(made_moe())
    (folder / "allreduce.csv").write_text(made_messages())
    (folder / "README.md").write_text("not a table")
    return fit_tables(folder, A6000, START)


@pytest.mark.parametrize("name", TRUTH)
def test_known_parameters_come_back(found, name):
    values, _ = found
    before, after = (abs(np.log(v / TRUTH[name])) for v in (flatten(START.parameters)[name], values[name]))
    assert after < max(0.04, 0.25 * before), f"{values[name]:g}, planted {TRUTH[name]:g}"


def test_values_lie_within_their_specifications_and_only_groups_with_rows_have_any(found):
    values, _ = found
    assert {name.split(".")[0] for name in values} == {"gemm16", "prefill", "decode", "moe16", "collective"}
    for name, value in values.items():
        assert SPECS[name].lower <= value <= SPECS[name].upper, name
    with_values(START.parameters, values)


def test_sentences_say_rows_errors_and_what_is_not_identified(found):
    _, said = found
    assert [line.split(":")[0] for line in said] == ["gemm16", "prefill", "decode", "moe16", "collective"]
    for line in said:
        median = [float(part.split("%")[0].split()[-1]) for part in line.split("error median")[1].split(",")[:2]]
        assert median[1] < 2.0 and median[1] < 0.5 * median[0], line
    assert "not identified" in said[-1] and "custom_limit" not in said[-1]


def test_a_misnamed_table_is_named(tmp_path):
    (tmp_path / "gemm_mine.csv").write_text(made_gemm())
    (tmp_path / "decode.csv").write_text(made_attention("decode"))
    values, said = fit_tables(tmp_path, A6000, START)
    assert said[0].startswith("decode.csv: not read, expected a name like gemm_NAME.csv")
    assert not any(name.startswith("decode") for name in values)


def test_eight_bit_rows_on_a_gpu_that_has_no_such_units(tmp_path):
    """They do no harm: their groups are fitted, whether or not a run on the GPU uses them."""
    (tmp_path / "gemm_mine.csv").write_text(made_gemm().replace("bf16", "fp8"))
    (tmp_path / "moe_mine.csv").write_text(made_moe().replace("bf16", "nvfp4"))
    (tmp_path / "attention_decode_mine.csv").write_text(made_attention("decode").replace("bf16", "fp8"))
    values, said = fit_tables(tmp_path, A6000, START)
    assert [line.split(":")[0] for line in said] == ["gemm8", "decode", "moe_nvfp4"]
    assert all(np.isfinite(value) for value in values.values())


def test_half_and_bfloat_rows_are_one_group_and_files_are_joined(tmp_path):
    lines = made_gemm().splitlines()
    halves = [line.replace("bf16", "fp16") for line in lines[1::2]]
    (tmp_path / "gemm_a.csv").write_text("\n".join([lines[0], *halves]))
    (tmp_path / "gemm_b.csv").write_text("\n".join([lines[0], *lines[2::2]]))
    assert own_tables.read_tables(tmp_path, A6000)["gemm"]["m"].size == len(lines) - 1
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "gemm_all.csv").write_text("\n".join(lines))
    two, one = (fit_tables(folder, A6000, START)[0] for folder in (tmp_path, tmp_path / "one"))
    assert two == pytest.approx(one, rel=1e-3)


def test_the_same_code_fits_bundled_tables(tmp_path):
    """A bundled table read as one's own gives what `calibrate kernels` gives."""
    for name in ("attention_decode_l40s", "gemm_l40s"):
        (tmp_path / f"{name}.csv.gz").write_bytes((tables.DIRECTORY / f"{name}.csv.gz").read_bytes())
    device = load_device("l40s")
    plain = msgspec.structs.replace(
        START.parameters, decode=attention.DecodeParameters(), gemm8=gemm.start_8(device), gemm16=gemm.start_16(device)
    )
    values, said = fit_tables(tmp_path, device, msgspec.structs.replace(START, parameters=plain))
    for group, solution in (
        ("decode", attention.fit_phase("decode", ("l40s",))),
        ("gemm8", gemm.fit(gemm.load("l40s", "fp8"), device)),
    ):
        assert {name: values[f"{group}.{name}"] for name in solution.values} == solution.values
    assert any("more served by the L2 cache, not counted" in line for line in said)


def test_rows_that_do_not_tell_the_custom_limit_leave_it(tmp_path):
    small = [line for line in made_messages().splitlines() if "latency" in line or int(line.split(",")[-2]) <= 65536]
    (tmp_path / "allreduce_mine.csv").write_text("\n".join(small))
    values, _ = fit_tables(tmp_path, A6000, START)
    known = START.parameters.collective
    assert values["collective.custom_limit_byte"] == known.custom_limit_byte
    assert values["collective.custom_limit_exponent"] == known.custom_limit_exponent


def test_a_fit_of_runs_starts_from_the_tables(tmp_path, capsys):
    (tmp_path / "gemm_mine.csv").write_text(made_gemm())
    setup = SimpleNamespace(device=A6000, family=SimpleNamespace(engine="vllm"), version=None)
    start = _priors([setup], A6000, None, str(tmp_path))["a6000"]
    assert start.parameters.gemm16.memory_fraction == pytest.approx(0.71, rel=0.03)
    assert capsys.readouterr().out.startswith("gemm16: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "found none, expected gemm_NAME.csv"),
        ("notes.csv", "x\n", "found none, expected gemm_NAME.csv"),
        ("gemm_a.csv", "dtype,m,n,latency_us\nbf16,1,2,3\n", "gemm_a.csv': found columns dtype, m, n, latency_us, exp"),
        ("gemm_a.csv", GEMM, "gemm_a.csv': found no rows"),
        ("gemm_a.csv", GEMM + "int8,1,2,3,4\n", "gemm_a.csv', column dtype: found 'int8', expected bf16, fp16, fp8"),
        ("gemm_a.csv", GEMM + "bf16,1,4096,64,1\n", "that can be fitted; gemm16: not fitted, all 1 rows are"),
        ("allreduce.csv", made_messages("l40s"), "column gpu: found 'l40s', expected rows of a6000 only"),
        ("allreduce.csv", made_messages("mine"), "column gpu: found 'mine', expected rows of a6000 only"),
        ("allreduce.csv", made_messages().replace("graph", "other"), "column mode: found 'other', expected graph, eag"),
        ("allreduce.csv", made_messages().replace("vllm", "nccl"), "no rows of library vllm"),
        ("moe_a.csv", made_moe().replace("balanced", "skewed"), "distribution: found 'skewed', expected balanced or"),
        ("moe_a.csv", made_moe().replace(",8,128,1,1,", ",8,128,1,3,"), "column moe_ep: found '3', expected a divisor"),
        ("moe_a.csv", made_moe().replace(",8,128,", ",8,4,"), "column topk: found '8', expected at most"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(tmp_path, name, content, message):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        fit_tables(tmp_path, A6000, START)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder_gets_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no such folder, expected one with gemm_NAME\.csv"):
        fit_tables(tmp_path / "absent", A6000, START)


def test_an_alias_of_the_gpu_is_the_gpu(tmp_path):
    (tmp_path / "allreduce.csv").write_text(made_messages("RTX A6000"))
    assert own_tables.read_tables(tmp_path, A6000)["allreduce"]["bytes"].size == 10
