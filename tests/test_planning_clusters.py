"""Sweeps on a Dask cluster and into Parquet, with the packages of the extras `dask` and `parquet`."""

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("distributed")

import pyarrow.parquet
from distributed import LocalCluster

from simulator.errors import UserError
from simulator.planning.points import FIGURES
from simulator.planning.store import Store
from simulator.planning.sweep import build_sweep, run_sweep

FIXED = {"strategy": "pdr", "model": "qwen3-4b", "repetitions": 2, "thinking_tok": 128, "answer_tok": 32}
AXES = {"gpu": ["orin", "h100"], "width": [1, 2, 4]}


@pytest.fixture
def small():
    return build_sweep("strategy", FIXED, AXES)


def run(sweep, path, **how):
    with Store(str(path), sweep.columns, sweep.names) as store:
        return run_sweep(sweep, store, **how)[0]


def test_a_dask_cluster_writes_the_same_bytes(small, tmp_path):
    run(small, tmp_path / "here.csv", jobs=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        run(small, tmp_path / "dask.csv", backend="dask", address=cluster.scheduler_address)
    assert (tmp_path / "here.csv").read_bytes() == (tmp_path / "dask.csv").read_bytes()


def test_a_dask_scheduler_that_is_not_there(small, tmp_path, monkeypatch):
    monkeypatch.setattr("simulator.planning.backends.CONNECT_S", 0.5)
    with pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        run(small, tmp_path / "t.csv", backend="dask", address="tcp://127.0.0.1:9")


def test_parquet_has_the_same_rows_and_goes_on(small, tmp_path):
    path = tmp_path / "t.parquet"
    rows = run(small, tmp_path / "t.csv", jobs=1)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, path, jobs=1, progress=stop)
    assert not path.exists() and (tmp_path / "t.parquet.csv").read_bytes().count(b"\n") == 2
    assert run(small, path, jobs=1) == rows and not (tmp_path / "t.parquet.csv").exists()
    table = pyarrow.parquet.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["gpu"] == types["status"] == "string" and types["width"] == "int64"
    assert {types[name] for name in FIGURES["strategy"]} == {"double"}
    assert table["wall_s_p50"].to_pylist() == [float(row["wall_s_p50"]) for row in rows]
    wider = build_sweep("strategy", FIXED, {**AXES, "width": [1, 2, 4, 8]})
    assert len(run(wider, path, jobs=1)) == 8
    assert run(small, path, jobs=1) == rows
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is not a Parquet file"):
        run(small, path, jobs=1)
