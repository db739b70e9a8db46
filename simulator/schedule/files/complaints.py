"""What is wrong with a schedule file, in one sentence: file, node, field, what was found, what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

import msgspec

from simulator.errors import UserError
from simulator.schedule.files.sheet import (
    MAX_NAME,
    MAX_NODES,
    MAX_STREAMS,
    VERSION,
    NodeSheet,
    Part,
    PassSheet,
    Running,
    ScheduleSheet,
    Until,
    Written,
)
from simulator.workload.lengths import MAX_TOK
from simulator.workload.lengths import SYNTAX as LENGTHS
from simulator.workload.seconds import SYNTAX as SECONDS

SHOWN = 40  # characters of a value in a complaint
MOST_COMPARED = 5_000  # names among which the nearest is looked for

DOCUMENT = "a JSON object, as docs/schedules.md describes it"
TOKENS = f"a whole number of tokens from 1 to {MAX_TOK:,}"
NO_TOKENS = f"a whole number of tokens from 0 to {MAX_TOK:,}"
OUTPUT_TOK = f"{LENGTHS}, from 1 to {MAX_TOK:,} tokens"
ENTRY = 'a node id, or {"call": id, "written": tokens}'
ATTEND = 'a node id, or {"running": id}'
NAME = f"a text of 1 to {MAX_NAME} characters"
PART = 'the name of a text, {"text": ...}, {"instruction": ..., "tokens": ...}, {"output": ...} or {"prompt": ...}'
PASS = '{"count": ..., "new_tok": ...}'

_EXPECTED = {
    "tokenflight_schedule": f"{VERSION}, the version of this format",
    "id": NAME,
    "name": NAME,
    "label": NAME,
    "together": NAME,
    "instruction": NAME,
    "text": "the name of a text",
    "about": "a text",
    "texts": "an object of names, each with a whole number of tokens",
    "streams": f"a whole number from 1 to {MAX_STREAMS:,}",
    "nodes": f"a list of 1 to {MAX_NODES:,} nodes",
    "answer": "a list of at least one node id",
    "kind": '"generate", "wait" or "gate"',
    "prompt": f"a list; each entry is {PART}",
    "output_tok": OUTPUT_TOK,
    "role": "a name such as judge: a letter, then letters, digits, '-' or '_', at most 40 in all",
    "attend": f"a list; each entry is {ATTEND}",
    "keep": 'true, false or {"until": [ids]}',
    "passes": f"a list of {PASS}",
    "accepted": "true or false",
    "seconds": SECONDS,
    "count": "a whole number >= 1",
    "cached_tok": NO_TOKENS,
    "logits_tok": NO_TOKENS,
    "after": f"a list; each entry is {ENTRY}",
    "stopped_by": f"a list; each entry is {ENTRY}",
    "until": f"a list of at least one entry; each is {ENTRY}",
    "call": "a node id",
    "running": "a node id",
    "output": "a node id",
}
# Entries of the lists (or values) of these names: their class when they are objects, and what they may be.
_ENTRIES = {
    "nodes": (NodeSheet, "a JSON object"),
    "prompt": (Part, PART),
    "after": (Written, ENTRY),
    "stopped_by": (Written, ENTRY),
    "until": (Written, ENTRY),
    "passes": (PassSheet, PASS),
    "keep": (Until, _EXPECTED["keep"]),
    "attend": (Running, ATTEND),
    "answer": (None, "a node id"),
}
_UNKNOWN = "..."  # the decoder does not say which key of an object of texts
_STEP_OF_PATH = re.compile(r"\.([a-z_]+)|\[(\d+|\.\.\.)\]")


def place(name: str, node: str, field: str) -> str:
    """Where it is. `node`: how it is called, "" for the file itself."""
    return "".join((f"schedule file '{name}'", f", node {node}" if node else "", f", field '{field}'" if field else ""))


def complaint(name: str, node: str, field: str, found: str, expected: str) -> UserError:
    """The sentence."""
    return UserError(f"{place(name, node, field)}: found {found}, expected {expected}")


def shown(value: object) -> str:
    """A value of the file as JSON, in one short line."""
    try:
        text = msgspec.json.encode(value[:SHOWN] if isinstance(value, str) else value).decode()
    except (TypeError, RecursionError, UnicodeEncodeError):
        text = type(value).__name__
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def near(word: str, known: Iterable[str]) -> str:
    """'; did you mean "..."?' when one of the known names is close, else ''."""
    found = get_close_matches(word[:MAX_NAME], islice(known, MOST_COMPARED), n=1)
    return f"; did you mean {shown(found[0])}?" if found else ""


def not_json(name: str, error: Exception) -> UserError:
    """The file cannot be decoded at all."""
    why = "more brackets inside each other than can be read" if isinstance(error, RecursionError) else str(error)
    return complaint(name, "", "", f"no JSON ({why})", DOCUMENT)


def does_not_fit(data: bytes, name: str, error: msgspec.ValidationError) -> UserError:
    """The decoder's complaint, which ends in a path such as `$.nodes[3].prompt[0]`, in the words of the file."""
    what, path = _split(str(error))
    value, node = _look_up(data, path)
    keys = [key for key in (path[2:] if node else path) if key != _UNKNOWN]
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
    if found := re.match(r"Object contains unknown field `(.*)`$", what, re.DOTALL):
        known = _class_at(path).__struct_fields__
        expected = f"one of {', '.join(known)}{near(found[1], known)}"
        return complaint(name, node, field, f"an unknown field {shown(found[1])}", expected)
    if found := re.match(r"Object missing required field `(.*)`$", what):
        missing = ".".join(filter(None, (field, found[1])))
        return complaint(name, node, missing, "nothing", _EXPECTED.get(found[1], TOKENS))
    return complaint(name, node, field, value if path else _kind_of(value), _expected_at(path))


def _split(message: str) -> tuple[str, list[str | int]]:
    """What the decoder says, and the keys that lead to the place."""
    what, at, path = message.rpartition(" - at `$")
    if not at:
        return message, []
    return what, [int(index) if index.isdigit() else field or _UNKNOWN for field, index in _STEP_OF_PATH.findall(path)]


def _look_up(data: bytes, path: list[str | int]) -> tuple[str, str]:
    """(the value at the path as it is shown, what to call the node on the way to it or "")."""
    in_node = path[:1] == ["nodes"] and len(path) > 1 and isinstance(path[1], int)
    node = f"number {path[1] + 1}" if in_node else ""
    try:
        value = msgspec.json.decode(data)
        for depth, key in enumerate(path):
            value = value[key]
            if in_node and depth == 1 and isinstance(value, dict) and value.get("id") and type(value["id"]) is str:
                node = shown(value["id"])
    except (msgspec.MsgspecError, RecursionError):  # e.g. a number that no float holds
        return "a value that cannot be held", node
    except (KeyError, IndexError, TypeError):
        return "another value", node
    return shown(value), node


def _class_at(path: list[str | int]) -> type:
    """The class of the object at this place."""
    name = next((key for key in reversed(path) if isinstance(key, str)), "")
    return _ENTRIES.get(name, (None, ""))[0] or ScheduleSheet


def _expected_at(path: list[str | int]) -> str:
    """What may stand at this place."""
    if not path:
        return DOCUMENT
    if isinstance(path[-1], int):
        return _ENTRIES.get(str(path[-2]), (None, "another value"))[1] if len(path) > 1 else "another value"
    if path[-1] == "prompt" and path[-3:-2] == ["prompt"]:  # a part that repeats another node's prompt
        return "a node id"
    return _EXPECTED.get(path[-1], TOKENS)


def _kind_of(text: str) -> str:
    """A whole document in two words."""
    return {"[": "a list", '"': "a text", "{": "an object"}.get(text[:1], text)
