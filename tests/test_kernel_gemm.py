"""Laws of the matrix-product model, and its error on measured tables that a fit has not seen."""

import gzip

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.kernels import gemm as fits
from calibration.kernels import tables
from simulator.device import list_devices, load_device
from simulator.errors import UserError
from simulator.kernels.gemm import SPECS, GemmParameters, gemm_time

H100 = load_device("h100-sxm")
P16 = GemmParameters()
P8 = fits.start_8(H100)
rows = st.integers(1, 40_000)
sizes = st.integers(64, 30_000)
kinds = st.sampled_from([("bf16", 2.0, P16), ("fp8", 1.0, P8), ("bf16", 0.53, P16)])
devices = st.sampled_from(list_devices())


def seconds(m, k, n, kind=("bf16", 2.0, P16), device=H100):
    activation, weight_byte, p = kind
    return gemm_time(m, k, n, weight_byte=weight_byte, activation=activation, device=device, p=p).seconds


def within_bounds():
    """Strategy of parameter sets inside `SPECS`, drawn on a logarithmic scale."""
    low = {name: np.log(max(spec.lower, 1e-15)) for name, spec in SPECS.items() if name != "bucket_rows"}
    drawn = {name: st.floats(low[name], np.log(SPECS[name].upper)).map(np.exp) for name in low}
    return st.builds(GemmParameters, bucket_rows=st.sampled_from([0.0, 128.0, 256.0]), **drawn)


@given(rows, sizes, sizes, kinds, devices)
def test_never_below_the_roofs(m, k, n, kind, device):
    activation, weight_byte, _ = kind
    element = {"bf16": 2.0, "fp8": 1.0}[activation]
    peaks = device.compute.peak_flop_per_s
    byte = weight_byte * n * k + element * m * k + 2.0 * m * n
    floor = max(2.0 * m * n * k / peaks.get(activation, peaks["fp16"]), byte / device.memory.bandwidth_byte_per_s)
    found = float(seconds(m, k, n, kind, device))
    assert np.isfinite(found) and found >= floor * (1.0 - 1e-9)


@given(rows, sizes, sizes, within_bounds())
@settings(max_examples=60)
def test_the_roofs_hold_for_every_allowed_parameter_set(m, k, n, p):
    floor = max(2.0 * m * n * k / 9.894e14, 2.0 * (n * k + m * k + m * n) / 3.35e12)
    parts = gemm_time(m, k, n, weight_byte=2.0, activation="bf16", device=H100, p=p)
    assert float(parts.seconds) >= floor * (1.0 - 1e-9)
    assert min(map(float, parts)) >= 0.0


@given(st.integers(64, 12_000), st.integers(64, 12_000), devices)
@settings(max_examples=30)
def test_sixteen_bit_time_does_not_fall_with_rows(k, n, device):
    found = seconds(np.arange(1, 2500), k, n, device=device)
    assert np.all(np.diff(found) >= -1e-12 * found[1:])


@given(st.integers(64, 12_000), st.integers(64, 12_000))
@settings(max_examples=30)
def test_eight_bit_time_falls_by_a_tile_change_at_most(k, n):
    found = seconds(np.arange(1, 2500), k, n, ("fp8", 1.0, P8))
    falls = np.diff(found) < -1e-12 * found[1:]
    assert set(np.flatnonzero(falls) + 1) <= {64, int(P8.bucket_rows)}
    assert np.all(found >= 0.6 * np.maximum.accumulate(found))


@given(st.integers(1024, 30_000), st.integers(1024, 30_000), kinds)
@settings(max_examples=30)
def test_time_rises_with_both_sides_of_the_weight(k, n, kind):
    assert seconds(8, 2 * k, n, kind) > seconds(8, k, n, kind)
    assert seconds(8, k, 2 * n, kind) > seconds(8, k, n, kind)


def test_large_products_approach_the_sustained_rate():
    flop = 2.0 * 4096 * 8192 * 50_000  # the left operand fits in the L2, nearly
    rate = flop / float(seconds(4096, 8192, 50_000)) / 9.894e14
    assert 0.85 < rate / (P16.compute_fraction * P16.sustained_fraction) < 1.0


def test_weight_only_formats_read_less_and_compute_slower():
    plain, int4 = ("bf16", 2.0, P16), ("bf16", 0.53, P16)
    few = float(seconds(1, 8192, 28672, plain)) / float(seconds(1, 8192, 28672, int4))
    many = float(seconds(8192, 8192, 28672, plain)) / float(seconds(8192, 8192, 28672, int4))
    assert 2.5 < few < 4.0
    assert many == pytest.approx(P16.dequantise_fraction, rel=0.05)


def test_quantising_activations_is_a_kernel_of_its_own():
    dear = msgspec.structs.replace(P8, quantise_start_s=P8.quantise_start_s + 7e-6)
    plain, more = (gemm_time(16, 4096, 4096, weight_byte=1.0, activation="fp8", device=H100, p=p) for p in (P8, dear))
    assert float(more.seconds - plain.seconds) == pytest.approx(7e-6)
    assert float(more.start_s - plain.start_s) == pytest.approx(7e-6)


def test_scalars_and_arrays_agree_and_broadcast():
    m, n = np.array([1, 33, 700, 5000]), np.array([[512], [4096], [50_000]])
    together = seconds(m, 4096, n)
    assert together.shape == (3, 4)
    one = [[float(seconds(int(a), 4096, int(b))) for a in m] for b in n[:, 0]]
    np.testing.assert_allclose(together, one, rtol=1e-12)


def test_no_rows_take_only_the_start():
    assert float(seconds(0, 4096, 4096)) == P16.start_s


def test_every_parameter_is_described_and_default_lies_in_bounds():
    assert set(SPECS) == set(GemmParameters.__struct_fields__)
    for p in (P16, P8):
        for name, spec in SPECS.items():
            assert spec.lower <= getattr(p, name) <= spec.upper, name


# Bounds on the held-out median and p90 of |error| in percent; `python -m calibration.kernels.gemm` prints the errors.
@pytest.mark.parametrize(
    ("gpu", "dtype", "median", "p90"),
    [
        ("a100-sxm-80gb", "bf16", 6.0, 17.0),
        ("h100-sxm", "bf16", 5.5, 13.0),
        ("h200-sxm", "bf16", 6.0, 13.5),
        ("b200-sxm", "bf16", 6.0, 16.5),
        ("l40s", "bf16", 7.5, 19.0),
        ("rtx-pro-6000", "bf16", 4.0, 11.5),
        ("h100-sxm", "fp8", 6.0, 15.5),
        ("h200-sxm", "fp8", 5.5, 15.5),
        ("b200-sxm", "fp8", 8.5, 33.0),
        ("l40s", "fp8", 7.5, 24.5),
        ("rtx-pro-6000", "fp8", 4.5, 24.0),
    ],
)
def test_error_on_unseen_weight_shapes(gpu, dtype, median, p90):
    errors = fits.held_out(fits.load(gpu, dtype), load_device(gpu), folds=2)
    found = errors.summary()
    assert 100 * found["median"] < median
    assert 100 * found["p90"] < p90
    assert abs(found["bias"]) < 0.02
    assert found["n"] > 1800


def test_fit_is_deterministic_and_finds_a_planted_start():
    every_fifth = tables.select(fits.load("rtx-pro-6000", "bf16"), np.arange(0, 2500, 5))
    device = load_device("rtx-pro-6000")
    planted = msgspec.structs.replace(P16, start_s=4.4e-6, memory_fraction=0.7)
    made = {**every_fifth, "latency_s": fits.predict(every_fifth, device, planted)}
    first, second = (fits.fit(made, device, P16) for _ in range(2))
    assert first.values == second.values
    assert first.values["start_s"] == pytest.approx(4.4e-6, rel=0.05)
    assert first.values["memory_fraction"] == pytest.approx(0.7, rel=0.03)


def test_l2_hot_rows_are_those_no_dram_could_serve():
    device = load_device("l40s")
    hot = tables.l2_hot([1e6, 1e6, 5e8, 1e3], [6e6, 6e6, 3e9, 6e3], [1e-6, 3e-6, 1e-3, 2e-6], device)
    assert hot.tolist() == [True, True, False, False]
    for gpu, dtype, share in (("l40s", "bf16", 0.25), ("h200-sxm", "fp8", 0.01)):
        table = fits.load(gpu, dtype)
        assert tables.gemm_l2_hot(table, load_device(gpu)).mean() < share


def test_bundled_tables_are_complete():
    for gpu in tables.GPUS:
        assert len(tables.load("gemm", gpu)["m"]) in (2500, 5000)
        for operator in ("attention_prefill", "attention_decode", "moe"):
            table = tables.load(operator, gpu)
            assert len(set(map(len, table.values()))) == 1
            assert table["latency_s"].min() > 1e-7
    assert len(tables.load("kernel_power")["power_w"]) == 10_198


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"dtype,m,n,k,latency_us\n", "no rows"),
        (b"dtype,m,n,latency_us\nbf16,1,2,3\n", "found columns dtype, m, n, latency_us, expected dtype, m, n, k"),
        (b"dtype,m,n,k,latency_us\nbf16,1,2\n", "line 2: found 3 fields, expected 5"),
        (b"dtype,m,n,k,latency_us\nbf16,1,2,x,3\n", "column k: found 'x', expected a number"),
        (b"dtype,m,n,k,latency_us\nbf16,1,2,0,3\n", "column k: found 0, expected a positive whole number"),
        (b"dtype,m,n,k,latency_us\nbf16,1,2,4,inf\n", "column latency_us: found inf, expected a positive number"),
        (b"dtype,m,n,k,latency_us\nbf16,1,2,2.5,3\n", "column k: found 2.5, expected a positive whole number"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_table_gets_one_sentence(tmp_path, content, message):
    path = tmp_path / "gemm.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        tables.read(path, "gemm")


def test_broken_gzip_and_unknown_names_are_user_errors(tmp_path):
    path = tmp_path / "gemm.csv.gz"
    path.write_bytes(gzip.compress(b"dtype,m,n,k,latency_us\nbf16,1,2,3,4\n")[:-12])
    with pytest.raises(UserError, match="gzip"):
        tables.read(path, "gemm")
    with pytest.raises(UserError, match="does not exist"):
        tables.read(tmp_path / "none.csv", "gemm")
    with pytest.raises(UserError, match="nearest: h100-sxm"):
        tables.load("gemm", "h100-sx")
    with pytest.raises(UserError, match="operator table"):
        tables.load("gem")
    with pytest.raises(UserError, match="no fp8 rows"):
        fits.load("a100-sxm-80gb", "fp8")


def test_gzip_is_the_same_for_the_same_text(tmp_path):
    for name in ("a.gz", "b.gz"):
        tables.write_gzip(tmp_path / name, "dtype,m\n")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
