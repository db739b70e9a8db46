"""What stands in for a setting that this version cannot take as it is stated, so that a run still gets a prediction.

Each stand-in is said, keeps the run out of every fit and counts as leaving the fitted range: the interval is widened.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

import msgspec

from calibration.records import RunRecord
from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.model import Model
from simulator.precision import Precision, choose_precision

_WATTS = re.compile(r"(?:\w+[_-])?(\d+(?:\.\d+)?)\s*(?:[wW](?:atts?)?)?")


@lru_cache(maxsize=256)
def device_as_stated(gpu: str, power_mode: str | None) -> tuple[Device, str | None]:
    """(device in its mode, what stands in for the mode). A number is a cap in watts, as the schema says."""
    device = load_device(gpu)
    if not power_mode:
        return device, None
    watts = _WATTS.fullmatch(power_mode.strip())
    try:
        return device.at_mode(f"{watts[1]}W" if watts else power_mode), None
    except UserError:
        pass
    said = f"power mode {power_mode} is not known: simulated in {device.default_power_mode or 'the default'}"
    return (device.capped(float(watts[1])), f"{said} with that limit") if watts else (device, said)


def precision_as_stated(record: RunRecord, model: Model, device: Device) -> tuple[Precision, str | None]:
    """(precision, what stands in for a pair of types that no kernel here computes). UserError for unknown weights."""
    stated = _element_or_own(record.activation_dtype, device)
    try:
        return choose_precision(model, device, record.weight_dtype, stated, record.kv_dtype)[0], None
    except UserError:
        if stated is None:
            raise
    found = choose_precision(model, device, record.weight_dtype, None, record.kv_dtype)[0]
    return found, f"{record.activation_dtype} activations: simulated with {found.activations}"


def _element_or_own(activation: str | None, device: Device) -> str | None:
    """Activation type as recorded; block scaling is a property of the weights."""
    if activation in ("nvfp4", "mxfp4") and "fp4" not in device.compute.peak_flop_per_s:
        return None
    return "fp8" if activation == "fp8-block" else activation


def lengths_as_stated(record: RunRecord, model: Model) -> tuple[RunRecord, Model, tuple[str, ...]]:
    """(record, model, what stands in): a run that was served was not cut by the limits that its record names."""
    needed = round(record.input_tok + record.output_tok)
    said = []
    if record.max_model_len and record.max_model_len < needed:
        said.append(f"input_tok + output_tok exceed max_model_len ({record.max_model_len}): simulated without it")
        record = msgspec.structs.replace(record, max_model_len=None)
    if needed > model.max_position_embeddings:
        said.append(f"more tokens than the model can read ({model.max_position_embeddings}): simulated all the same")
        model = _reading(model, needed)
    return record, model, tuple(said)


@lru_cache(maxsize=256)
def _reading(model: Model, tokens: int) -> Model:
    return replace(model, max_position_embeddings=tokens)


def experts_as_stated(record: RunRecord, model: Model) -> tuple[RunRecord, str | None]:
    """(record, what stands in): a model without experts has none to place."""
    if (record.ep or 1) > 1 and not model.sparse:
        said = f"ep = {record.ep} of a model without experts: simulated with ep = 1"
        return msgspec.structs.replace(record, ep=1), said
    return record, None
