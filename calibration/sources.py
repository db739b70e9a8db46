"""What is known of the sources of measured runs beyond their rows: versions, client, licence."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path

import msgspec

from calibration.records import RunRecord
from simulator.profile_parts import version_number

PATH = Path(__file__).parent / "data" / "sources.toml"


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that a source's launch scripts make for some of its runs, as flags of records."""

    weight_dtype: str
    architecture: str  # of the GPU, as data sheets call it
    since: str  # version of the engine
    flags: tuple[str, ...]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One source; `client`: "server" when requests came over HTTP, "offline" when in process.

    `v1`: False where vLLM from 0.8 on still ran its older engine core. `scripts`: what rows need not state.
    """

    url: str = ""
    commit: str = ""
    licence: str = ""
    measured: str = ""
    engine_version: str | None = None
    client: str = "server"
    v1: bool = True
    scripts: tuple[Script, ...] = ()


@lru_cache(maxsize=1)
def sources() -> dict[str, Source]:
    """Every source that ships, by its key in the records' `source` column."""
    return msgspec.convert(tomllib.loads(PATH.read_text(encoding="utf-8")), dict[str, Source])


def source_of(name: str) -> Source:
    """What is known of a source; for one that is not listed, nothing: a server of the stated version."""
    return sources().get(name, Source())


def with_scripts(record: RunRecord, architecture: str, version: str | None) -> RunRecord:
    """The record with the flags that its source's scripts set and that it does not state itself."""
    found = [
        flag
        for script in source_of(record.source).scripts
        if (script.weight_dtype, script.architecture) == (record.weight_dtype, architecture)
        and version is not None
        and version_number(version) >= version_number(script.since)
        for flag in script.flags
        if not record.flagged(flag.partition(":")[0] + ":")
    ]
    return msgspec.structs.replace(record, flags=";".join((*record.flag_list, *found))) if found else record
