"""What can be told from one node of a schedule file, without the others."""

from __future__ import annotations

from collections.abc import Callable

from simulator.errors import UserError
from simulator.schedule.files.complaints import NAME, OUTPUT_TOK, complaint, place, shown
from simulator.schedule.files.sheet import FIELDS, NodeSheet, Part
from simulator.workload.lengths import Lengths, parse_lengths
from simulator.workload.seconds import SYNTAX as SECONDS
from simulator.workload.seconds import Seconds, parse_seconds

MAX_DISTRIBUTION = 255  # characters of a distribution; the path of a file may stand in it
LOCK_STEP = ("after", "output_tok", "role", "keep", "stopped_by")  # the same in all nodes of a group

_OPTIONAL = NodeSheet.__struct_fields__[-len(NodeSheet.__struct_defaults__) :]
_DEFAULTS = dict(zip(_OPTIONAL, NodeSheet.__struct_defaults__))
_FOREIGN = {
    kind: tuple({field: _DEFAULTS[field] for fields in FIELDS.values() for field in fields if field not in own}.items())
    for kind, own in FIELDS.items()
}


def node_complaint(name: str, node: NodeSheet, field: str, found: str, expected: str) -> UserError:
    """A complaint about a field of a node of the file `name`."""
    return complaint(name, shown(node.id), field, found, expected)


def check_node(name: str, node: NodeSheet) -> None:
    """Fields that do not go together, or that are missing."""
    for field, default in _FOREIGN[node.kind]:
        if getattr(node, field) != default:
            takes = ", ".join(("id", "kind", "after", *FIELDS[node.kind]))
            found = f"it in a node of kind {shown(node.kind)}"
            raise node_complaint(name, node, field, found, f"only fields that such a node takes: {takes}")
    if not (node.id.isprintable() and (node.label or "").isprintable() and (node.together or "").isprintable()):
        field = next(field for field in ("id", "label", "together") if not (getattr(node, field) or "").isprintable())
        raise node_complaint(name, node, field, shown(getattr(node, field)), f"{NAME}, all printable")
    _CHECKS[node.kind](name, node)


def _check_generate(name: str, node: NodeSheet) -> None:
    if not node.prompt:
        raise node_complaint(name, node, "prompt", "an empty prompt", "at least one text")
    if node.output_tok is None:
        raise node_complaint(name, node, "output_tok", "nothing", OUTPUT_TOK)
    for part in node.prompt:
        if type(part) is Part:
            _check_part(name, node, part)
    if node.passes:
        if not isinstance(node.output_tok, int):
            expected = "a whole number of tokens, as 'passes' says how they are made"
            raise node_complaint(name, node, "output_tok", shown(node.output_tok), expected)
        for field in ("max_tok", "attend", "keep", "stopped_by", "together"):
            if getattr(node, field) != _DEFAULTS[field]:
                raise node_complaint(name, node, field, "it beside 'passes'", "a call of passes without it")


def _check_part(name: str, node: NodeSheet, part: Part) -> None:
    instruction = part.instruction is not None
    sources = instruction + (part.text is not None) + (part.output is not None) + (part.prompt is not None)
    if sources != 1:
        found = f"{sources} of them in one entry"
        raise node_complaint(name, node, "prompt", found, "one of 'text', 'instruction', 'output' and 'prompt'")
    if (part.tokens is not None) != instruction:
        found = "an instruction without 'tokens'" if instruction else "'tokens' without an instruction"
        raise node_complaint(name, node, "prompt", found, "'tokens' beside 'instruction' and nowhere else")


def _check_wait(name: str, node: NodeSheet) -> None:
    if node.seconds is None:
        raise node_complaint(name, node, "seconds", "nothing", SECONDS)


def _check_gate(name: str, node: NodeSheet) -> None:
    if not node.after:
        raise node_complaint(name, node, "after", "nothing", "at least one entry that opens the gate")
    if node.count is not None and node.count > len(node.after):
        expected = f"a whole number from 1 to {len(node.after)}, the entries of 'after'"
        raise node_complaint(name, node, "count", str(node.count), expected)


_CHECKS = {"generate": _check_generate, "wait": _check_wait, "gate": _check_gate}


def check_lock_step(name: str, first: NodeSheet, node: NodeSheet) -> None:
    """Two nodes of one group: they start, write and stop as one."""
    for field in LOCK_STEP:
        if getattr(node, field) != getattr(first, field):
            expected = f"the same as in {shown(first.id)}, which is in the same lock-step group"
            raise node_complaint(name, node, field, "another value", expected)


class Distributions:
    """The distributions of one file; each text is read once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read: dict[tuple[str, object], Lengths | Seconds] = {}

    def lengths(self, node: NodeSheet) -> Lengths:
        """`output_tok` of a node."""
        return self._parse(node, "output_tok", node.output_tok, parse_lengths, OUTPUT_TOK)

    def seconds(self, node: NodeSheet) -> Seconds:
        """`seconds` of a node."""
        return self._parse(node, "seconds", node.seconds, parse_seconds, SECONDS)

    def _parse(
        self, node: NodeSheet, field: str, value: int | float | str, parse: Callable, syntax: str
    ) -> Lengths | Seconds:
        found = self._read.get((field, value))
        if found is None:
            if isinstance(value, str) and (len(value) > MAX_DISTRIBUTION or not value.isprintable()):
                raise node_complaint(self._name, node, field, shown(value), syntax)
            try:
                found = self._read[field, value] = parse(value)
            except UserError as error:  # says what was found and expected
                raise UserError(f"{place(self._name, shown(node.id), field)}: {error}") from None
            except (OSError, ValueError, OverflowError):  # it is no name of a file either
                raise node_complaint(self._name, node, field, shown(value), syntax) from None
        return found
