"""The simulated side of a pair as a record of its own: what was really simulated, in the schema of measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from calibration.records import METRICS, RunRecord, read_records
from simulator.errors import UserError
from validate.predict import Prediction


def simulated_record(prediction: Prediction) -> RunRecord | None:
    """The resolved configuration of our own prediction with all its figures; None when there is none."""
    setup, values = prediction.setup, prediction.outcome.values
    if setup is None:
        return None
    return msgspec.structs.replace(
        setup.record,
        gpu=setup.device.id,
        power_mode=setup.device.power_mode,
        n_gpus=setup.parallel.world_size,
        tp=setup.parallel.tp, pp=setup.parallel.pp, ep=setup.parallel.ep, dp=setup.parallel.dp,
        weight_dtype=setup.precision.weights,
        activation_dtype=setup.precision.activations,
        kv_dtype=setup.precision.kv_cache,
        engine=setup.family.engine,
        engine_version=setup.version,
        max_num_seqs=setup.settings.max_num_seqs,
        max_num_batched_tokens=setup.settings.max_num_batched_tokens,
        max_model_len=setup.settings.max_model_len,
        gpu_memory_utilization=setup.settings.gpu_memory_utilization,
        prefix_caching=setup.settings.enable_prefix_caching,
        cuda_graphs=setup.cuda_graphs,
        rel_noise=None,
        power_scope=prediction.power_scope or None,
        **{name: values.get(name) for name in METRICS},
    )  # fmt: skip


def read_simulated(path: str | Path, records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Another simulator's records by run id. UserError for a run that was not measured, or when none was."""
    theirs = {record.run_id: record for record in read_records(path)}
    known = {record.run_id for record in records}
    stray = next((run for run in theirs if run not in known), None)
    if stray is not None:
        raise UserError(f"{path}: run_id '{stray}' is not among the measured runs, expected the ids of the run file")
    if not theirs:
        raise UserError(f"{path}: no simulated runs, expected one row for each measured run")
    return theirs
