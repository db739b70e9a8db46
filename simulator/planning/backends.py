"""Where the points of a sweep run: on the cores of this machine, or on a Dask or Ray cluster, through joblib.

Dask and Ray are optional extras, imported when they are asked for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from simulator.errors import UserError

Task, Answer = TypeVar("Task"), TypeVar("Answer")

BACKENDS = ("loky", "dask", "ray")
CONNECT_S = 15  # until a cluster that does not answer is given up
IDLE_S = 20  # after which a process without work ends, also when its parent was killed
ROUND = 4  # tasks per core that a back-end without streaming gets at a time


def as_completed(
    function: Callable[[Task], Answer],
    tasks: Sequence[Task],
    backend: str = "loky",
    jobs: int | None = None,
    address: str | None = None,
) -> Iterator[Answer]:
    """`function` of every task, in the order in which they end.

    jobs: processes at a time, None: all cores. address: of a Dask scheduler ("tcp://host:8786") or a Ray cluster
    ("auto", "host:6379"); None: one of its own on this machine. UserError when the back-end is not there.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend: found '{backend}', expected one of {', '.join(BACKENDS)}")
    if address is not None and backend == "loky":
        raise UserError("address is that of a Dask or Ray cluster; expected backend dask or ray with it")
    if tasks:
        with _OPEN[backend](address, jobs or (os.cpu_count() or 1), len(tasks)) as (cores, streams):
            yield from _run(function, tasks, backend, cores, streams)


def _run(function: Callable, tasks: Sequence, backend: str, cores: int, streams: bool) -> Iterator:
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    more = {"idle_worker_timeout": IDLE_S} if backend == "loky" else {}
    with parallel_config(backend=backend, n_jobs=cores, **more):  # which, unlike Parallel, also finds Dask's
        workers = Parallel(return_as="generator_unordered" if streams else "list")
    size = len(tasks) if streams else ROUND * cores
    try:
        for first in range(0, len(tasks), size):
            yield from workers(delayed(function)(task) for task in tasks[first : first + size])
    except TerminatedWorkerError:
        raise UserError(
            "a worker process was killed, as the system does when memory runs out; the same command with fewer --jobs "
            "goes on where this one stopped"
        ) from None


@contextmanager
def _processes(_: str | None, jobs: int, tasks: int) -> Iterator[tuple[int, bool]]:
    yield min(jobs, tasks), True


@contextmanager
def _dask(address: str | None, jobs: int, _: int) -> Iterator[tuple[int, bool]]:
    distributed = _needed("distributed", "dask")
    own = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**own) if address is None else nullcontext(address) as cluster:
        try:
            client = distributed.Client(cluster, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            raise UserError(f"no Dask scheduler answers at {address}: {_cause(error)}") from None
        with client:
            yield -1, True


@contextmanager
def _ray(address: str | None, jobs: int, _: int) -> Iterator[tuple[int, bool]]:
    register_ray = _needed("ray.util.joblib", "ray").register_ray
    import ray

    own = {"num_cpus": jobs, "include_dashboard": False} if address is None else {}
    try:
        _knock(address)
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {_cause(error)}") from None
    try:
        register_ray()
        yield max(1, int(ray.cluster_resources().get("CPU", 1))), False
    finally:
        ray.shutdown()


_OPEN = {"loky": _processes, "dask": _dask, "ray": _ray}


def _knock(address: str | None) -> None:
    """OSError when nobody listens at host:port: Ray itself would go on trying for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _needed(module: str, extra: str) -> Any:
    """An optional package. UserError that says how to get it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"backend {extra} needs the package {error.name or module}: pip install 'tokenflight[{extra}]'"
        ) from None


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
