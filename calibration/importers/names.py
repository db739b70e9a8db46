"""Names that tools give to GPUs, number formats and engines, as the schema calls them."""

from __future__ import annotations

import re

from calibration.importers.row import Row
from simulator.errors import UserError

# Format names of tools and of GGUF files. A format that the schema has no word for is left out, never rounded.
DTYPES = {
    "float32": "fp32", "fp32": "fp32", "f32": "fp32", "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16",
    "fp16": "fp16", "f16": "fp16", "half": "fp16", "fp8": "fp8", "fp8_e4m3": "fp8", "int8": "int8", "q8_0": "int8",
    "int4": "int4", "q4_0": "int4", "q4_1": "int4", "q4_k": "int4", "mxfp4": "mxfp4", "nvfp4": "nvfp4",
}  # fmt: skip


def dtype(name: str | None) -> str | None:
    """The schema's name of a number format; None when there is none."""
    return DTYPES.get((name or "").strip().lower())


def device_id(name: str) -> str | None:
    """Id of the data sheet of a GPU that a file names; None when there is none. A path is no name."""
    from simulator.device import load_device

    if _is_path(name):
        return None
    try:
        return load_device(name).id
    except UserError:
        return None


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.lower().endswith(".toml")


def state_gpu(row: Row, name: str, runner: bool = False) -> None:
    """The GPU that a file names, by its id; a GPU without a data sheet keeps the file's name.

    `runner`: the name is that of a machine, with a suffix that says where it stands: h200-cw, b200-nb_1. A path is
    left out: records may name data sheets by path, but which one is for the user to say.
    """
    if _is_path(name):
        row.leave_empty("gpu", "a path in the file, no name")
        return
    for candidate in (name, name.split("-")[0]) if runner else (name,):
        if known := device_id(candidate):
            if known == name:
                row.state(gpu=known)
            else:
                row.convert("gpu", known, f"from {name}")
            return
    row.state(gpu=name)
    row.mark(f"no_data_sheet:{name}")


def state_model(row: Row, name: str | None) -> None:
    """The model that a file names. An address is none: it may hold a password."""
    if name is not None and "://" in name:
        row.leave_empty("model", "an address in the file, no name")
    else:
        row.state(model=name)


def engine_name(text: str) -> str | None:
    """An engine's name as one short word; None when it is none."""
    word = {"trt": "trtllm", "tensorrt-llm": "trtllm", "tensorrtllm": "trtllm"}.get(text.lower(), text.lower())
    return word if re.fullmatch(r"[\w.-]{1,40}", word) else None


def image_version(image: str | None) -> str | None:
    """The version in a container's tag: "vllm/vllm-openai:v0.13.0-cu130" is 0.13.0; None for nightlies and names."""
    found = re.search(r":v?(\d+\.\d+(?:\.\d+)?(?:\.?(?:post|rc)\d+)?)(?:-|@|$)", image or "")
    return found.group(1) if found else None
