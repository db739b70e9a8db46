"""What is known of the sources of measured runs beyond their rows: versions, client, licence."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path

import msgspec

PATH = Path(__file__).parent / "data" / "sources.toml"


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One source; `client`: "server" when requests came over HTTP, "offline" when in process.

    `v1`: False where vLLM from 0.8 on still ran its older engine core.
    """

    url: str = ""
    commit: str = ""
    licence: str = ""
    measured: str = ""
    engine_version: str | None = None
    client: str = "server"
    v1: bool = True


@lru_cache(maxsize=1)
def sources() -> dict[str, Source]:
    """Every source that ships, by its key in the records' `source` column."""
    return msgspec.convert(tomllib.loads(PATH.read_text(encoding="utf-8")), dict[str, Source])


def source_of(name: str) -> Source:
    """What is known of a source; for one that is not listed, nothing: a server of the stated version."""
    return sources().get(name, Source())
