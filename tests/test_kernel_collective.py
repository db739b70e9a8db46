"""Laws of the collective model, and its error on measured message sizes that a fit has not seen."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.kernels import collective as fits
from calibration.kernels import tables
from simulator.device import list_devices, load_device
from simulator.errors import UserError
from simulator.kernels.collective import (
    SPECS,
    CollectiveParameters,
    all_gather_time,
    all_reduce_time,
    all_to_all_time,
    point_to_point_time,
    reduces_in_switch,
    through_host,
)

P = CollectiveParameters()
H100, A100, L40S = (load_device(name) for name in ("h100-sxm", "a100-sxm-80gb", "l40s"))
messages = st.floats(1.0, 4e9)
worlds = st.sampled_from([2, 4, 8])
devices = st.sampled_from(list_devices())
SIZES = np.geomspace(256, 2e9, 200)


@given(messages, worlds, devices, st.booleans())
def test_no_message_beats_the_wire(byte, world_size, device, graph):
    links = device.interconnect
    link = links.scale_up_byte_per_s or links.pcie_byte_per_s or 1.6e10
    found = float(all_reduce_time(byte, world_size, device, P, graph))
    assert np.isfinite(found) and found >= byte / link


@given(worlds, devices, st.booleans())
def test_time_rises_with_bytes_but_where_the_library_changes_kernel(world_size, device, graph):
    found = all_reduce_time(SIZES, world_size, device, P, graph)
    falls = np.flatnonzero(np.diff(found) < 0.0)
    limit = np.searchsorted(SIZES, P.custom_limit_byte)
    assert set(falls) <= {limit - 1}


@given(messages, devices)
def test_more_ranks_do_not_reduce_faster_on_rings(byte, device):
    p = msgspec.structs.replace(P, custom_limit_byte=0.0)
    if reduces_in_switch(device):
        return
    two, four, eight = (float(all_reduce_time(byte, w, device, p)) for w in (2, 4, 8))
    assert two <= four <= eight


def test_one_rank_needs_no_messages():
    for time in (all_reduce_time, all_gather_time, all_to_all_time):
        assert time(np.array([1.0, 1e9]), 1, H100, P).tolist() == [0.0, 0.0]


def test_large_ring_reaches_its_share_of_the_link():
    byte = 1e12
    expected = 1.75 * byte / (P.ring_fraction * A100.interconnect.scale_up_byte_per_s)
    assert float(all_reduce_time(byte, 8, A100, P)) == pytest.approx(expected, rel=1e-3)


def test_the_switch_adds_up_large_messages_of_eight_ranks():
    assert reduces_in_switch(H100) and not reduces_in_switch(A100) and not reduces_in_switch(L40S)
    byte = 1e10
    without = 1.75 * byte / (P.ring_fraction * H100.interconnect.scale_up_byte_per_s)
    assert float(all_reduce_time(byte, 8, H100, P)) < without


def test_boards_without_nvlink_slow_down_above_two_ranks():
    assert through_host(L40S, 4) and not through_host(L40S, 2) and not through_host(H100, 8)
    slow = msgspec.structs.replace(P, host_fraction=0.2)
    assert float(all_reduce_time(1e9, 4, L40S, slow)) > 5.0 * float(all_reduce_time(1e9, 2, L40S, slow))


@given(messages, worlds, devices)
def test_eager_is_never_faster_and_has_a_floor(byte, world_size, device):
    eager = float(all_reduce_time(byte, world_size, device, P, graph=False))
    assert eager >= max(P.eager_floor_s, float(all_reduce_time(byte, world_size, device, P)))


@given(messages, worlds, devices)
def test_other_collectives_follow_from_the_ring(byte, world_size, device):
    gather = float(all_gather_time(byte / world_size, world_size, device, P))
    ring = msgspec.structs.replace(P, custom_limit_byte=0.0)
    link = device.interconnect.scale_up_byte_per_s or device.interconnect.pcie_byte_per_s or 1.6e10
    assert gather >= (world_size - 1) / world_size * byte / link
    if not reduces_in_switch(device):
        assert gather <= float(all_reduce_time(byte, world_size, device, ring))
    assert float(all_to_all_time(byte, world_size, device, P)) >= (world_size - 1) / world_size * byte / link
    assert float(point_to_point_time(byte, device, P)) >= byte / link


def test_every_parameter_is_described_and_default_lies_in_bounds():
    assert set(SPECS) == set(CollectiveParameters.__struct_fields__)
    for name, spec in SPECS.items():
        assert spec.lower <= getattr(P, name) <= spec.upper, name


# Held-out median and p90 of |error| in percent, vLLM rows replayed from a graph.
@pytest.mark.parametrize(
    ("gpu", "median", "p90"),
    [
        ("a100-sxm-80gb", 5.5, 14.0),
        ("h100-sxm", 5.0, 20.0),
        ("h200-sxm", 5.0, 22.0),
        ("b200-sxm", 6.5, 33.0),
        ("l40s", 5.0, 16.0),
        ("rtx-pro-6000", 6.5, 18.0),
    ],
)
def test_error_on_unseen_message_sizes(gpu, median, p90):
    found = fits.held_out(fits.load(gpu, "graph"), load_device(gpu), folds=3).summary()
    assert 100 * found["median"] < median
    assert 100 * found["p90"] < p90
    assert found["n"] == 69


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_fit_finds_a_planted_start(factor):
    rows = fits.load("a100-sxm-80gb", "graph")
    planted = msgspec.structs.replace(P, start_s=P.start_s * factor)
    made = {**rows, "latency_s": fits.predict(rows, A100, planted)}
    solution = fits.fit(made, A100)
    assert solution.values["start_s"] == pytest.approx(planted.start_s, rel=0.05)
    assert solution.values["custom_limit_byte"] == P.custom_limit_byte


def test_unknown_gpu_and_library_are_user_errors():
    with pytest.raises(UserError, match="nearest: h100-sxm"):
        fits.load("h100-sx")
    with pytest.raises(UserError, match="no graph rows of library 'vllm'"):
        fits.load("intel-b60", "graph")


def test_bundled_table_is_complete():
    assert len(tables.load("allreduce")["bytes"]) == 3741
