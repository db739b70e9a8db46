"""What stands in a schedule file: one class per kind of JSON object, so that the decoder checks types and ranges.

The fields are described in docs/schedules.md. What refers to what is checked in `simulator.schedule.files.plan`;
complaints are put into words in `simulator.schedule.files.complaints`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from simulator.workload.lengths import MAX_TOK

VERSION = 1
MAX_NODES = 100_000
MAX_NAME = 200  # characters of an id, a label or the name of a text
MAX_STREAMS = 1024

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_TOK)]
NoTokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOK)]
Role = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}\Z")]


class _Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One JSON object of the file; fields at their defaults are not written."""


class Part(_Object):
    """A piece of a prompt: exactly one of text, instruction, output and prompt says which tokens."""

    text: Name | None = None  # a text of the file
    instruction: Name | None = None  # template text; `tokens` says how long
    output: Name | None = None  # what the node with this id wrote
    prompt: Name | None = None  # what the node with this id read
    tokens: Tokens | None = None
    first: Tokens | None = None  # only so many tokens from its beginning


class Written(_Object):
    """The moment at which `call` has written so many tokens, or has finished."""

    call: Name
    written: Tokens


Entry = Name | Written


class Until(_Object):
    """A KV cache that is held until all of these have finished."""

    until: Annotated[tuple[Entry, ...], msgspec.Meta(min_length=1)]


class Running(_Object):
    """Attention to a call that need not have finished: to its KV cache as it grows."""

    running: Name


class PassSheet(_Object):
    """So many equal forward passes of a diffusion model."""

    count: Tokens
    new_tok: Tokens
    cached_tok: NoTokens = 0
    logits_tok: NoTokens | None = None


class NodeSheet(_Object, kw_only=True):
    """One node; which fields it takes depends on `kind` (see `FIELDS`)."""

    id: Name
    kind: Literal["generate", "wait", "gate"] = "generate"
    label: Name | None = None
    after: tuple[Entry, ...] = ()
    prompt: tuple[Name | Part, ...] = ()
    output_tok: Tokens | str | None = None
    max_tok: Tokens | None = None
    role: Role | None = None
    attend: tuple[Name | Running, ...] = ()
    keep: bool | Until = False
    stopped_by: tuple[Entry, ...] = ()
    together: Name | None = None
    passes: tuple[PassSheet, ...] = ()
    accepted: bool = False
    seconds: float | str | None = None
    count: Tokens | None = None


class ScheduleSheet(_Object, kw_only=True):
    """The whole file."""

    tokenflight_schedule: int
    name: Name | None = None
    about: str = ""
    texts: dict[str, Any] = {}
    streams: Annotated[int, msgspec.Meta(ge=1, le=MAX_STREAMS)] = 1
    nodes: Annotated[tuple[NodeSheet, ...], msgspec.Meta(min_length=1, max_length=MAX_NODES)]
    answer: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]


# Fields of each kind of node beside id, kind and after.
FIELDS = {
    "generate": (
        "label", "prompt", "output_tok", "max_tok", "role", "attend", "keep", "stopped_by", "together", "passes",
        "accepted",
    ),
    "wait": ("label", "seconds"),
    "gate": ("count",),
}  # fmt: skip
