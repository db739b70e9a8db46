"""From the nodes of a schedule file to steps that can be carried out.

A step is one node, or the nodes of one lock-step group. Ids become numbers of steps; a prompt that repeats another
node's prompt is written out; what a node reads or attends to becomes something that it waits for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from simulator.errors import UserError
from simulator.schedule.files.complaints import TOKENS, complaint, near, shown
from simulator.schedule.files.node_checks import Distributions, check_lock_step, check_node, node_complaint
from simulator.schedule.files.order import find_cycle, implied, topological
from simulator.schedule.files.sheet import MAX_NAME, Entry, NodeSheet, Part, ScheduleSheet
from simulator.schedule.text import Text
from simulator.workload.lengths import MAX_TOK, Lengths
from simulator.workload.seconds import Seconds

SHOWN_OF_CYCLE = 8
MAX_PROMPT_PARTS = 10_000_000  # of all prompts together

Place = tuple[int, int]  # step, member of its group
Event = tuple[int, int]  # step, and the tokens that it must have written (0: it must have finished)


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a prompt: what the node at `place` wrote, or its first tokens."""

    place: Place
    first: int | None


Piece = tuple[Hashable, int] | Output  # (part id, tokens) of a text of known length, or what a node writes
Prompt = Text | tuple[Piece, ...]  # a Text when it reads no outputs


@dataclass(slots=True)
class Step:
    """One node or lock-step group, with everything looked up."""

    nodes: list[NodeSheet]
    length: Lengths | Seconds | None = None
    prompts: list[Prompt] = field(default_factory=list)  # of each member
    attends: list[list[Place]] = field(default_factory=list)  # of each member
    kept: list[int] = field(default_factory=list)  # steps among them that must have finished
    running: list[int] = field(default_factory=list)  # and those that must have started
    after: list[Event] = field(default_factory=list)
    stopped_by: list[Event] = field(default_factory=list)
    released_by: list[Event] | None = None

    @property
    def kind(self) -> str:
        return self.nodes[0].kind


@dataclass(frozen=True)
class Plan:
    """All steps in the order of the file, which nodes hold the answer, and which B_seq goes through."""

    steps: list[Step]
    answer: list[Place]
    accepted: list[Place]


def make_plan(sheet: ScheduleSheet, name: str) -> Plan:
    """Look up and check everything; `UserError` names the file `name` and the node."""
    planner = _Planner(sheet, name)
    planner.check_texts()
    planner.make_steps()
    order = planner.order()
    for number in order:
        planner.fill(planner.steps[number])
    planner.wait_for_reads(order)
    answer = [planner.generation(None, "answer", id_) for id_ in dict.fromkeys(sheet.answer)]
    return Plan(planner.steps, answer, [planner.places[node.id] for node in sheet.nodes if node.accepted])


class _Planner:
    """A plan in the making."""

    def __init__(self, sheet: ScheduleSheet, name: str) -> None:
        self.sheet, self.name = sheet, name
        self.steps: list[Step] = []
        self.places: dict[str, Place] = {}
        self._distributions = Distributions(name)
        self._parts = 0

    def check_texts(self) -> None:
        for text, tokens in self.sheet.texts.items():
            if not 1 <= len(text) <= MAX_NAME or not text.isprintable():
                expected = f"a name of 1 to {MAX_NAME} printable characters"
                raise complaint(self.name, "", "texts", f"the name {shown(text)}", expected)
            if type(tokens) is not int or not 1 <= tokens <= MAX_TOK:
                raise complaint(self.name, "", f"texts.{text[:40]}", shown(tokens), TOKENS)

    def make_steps(self) -> None:
        """Nodes are checked one by one and gathered in groups."""
        groups: dict[str, int] = {}
        for node in self.sheet.nodes:
            check_node(self.name, node)
            if node.id in self.places:
                raise node_complaint(self.name, node, "id", "it a second time", "an id of its own for every node")
            number = len(self.steps)
            if node.together is not None:
                number = groups.setdefault(node.together, number)
            if number < len(self.steps):
                check_lock_step(self.name, self.steps[number].nodes[0], node)
                self.steps[number].nodes.append(node)
            else:
                self.steps.append(Step([node]))
            self.places[node.id] = (number, len(self.steps[number].nodes) - 1)

    # -- references ------------------------------------------------------------------------------------------

    def place(self, node: NodeSheet | None, field: str, id_: str) -> Place:
        """Where the node with this id is."""
        found = self.places.get(id_)
        if found is None:
            expected = f"the id of a node{near(id_, self.places)}"
            raise complaint(self.name, shown(node.id) if node else "", field, shown(id_), expected)
        return found

    def generation(self, node: NodeSheet | None, field: str, id_: str) -> Place:
        """Where the node with this id is; it must be one that generates."""
        found = self.place(node, field, id_)
        kind = self.steps[found[0]].kind
        if kind != "generate":
            expected = 'the id of a node of kind "generate"'
            raise complaint(self.name, shown(node.id) if node else "", field, f"{shown(id_)}, a {kind}", expected)
        return found

    def _events(self, node: NodeSheet, field: str, entries: tuple[Entry, ...]) -> list[Event]:
        found: dict[Event, None] = {}
        for entry in entries:
            if type(entry) is str:
                found[self.place(node, field, entry)[0], 0] = None
            else:
                found[self.generation(node, field, entry.call)[0], entry.written] = None
        return list(found)

    def order(self) -> list[int]:
        """Step numbers, each behind those that its nodes refer to (stops and releases aside)."""
        edges = [set() for _ in self.steps]
        for before, step in zip(edges, self.steps):
            for node in step.nodes:
                for entry in node.after:
                    before.add(self.place(node, "after", entry if type(entry) is str else entry.call)[0])
                for entry in node.attend:
                    before.add(self.generation(node, "attend", entry if type(entry) is str else entry.running)[0])
                for part in node.prompt:
                    if type(part) is Part and (part.output or part.prompt):
                        before.add(self.generation(node, "prompt", part.output or part.prompt)[0])
        order = topological(edges)
        if len(order) < len(edges):
            raise self._cycle(find_cycle(edges, order))
        return order

    def _cycle(self, numbers: list[int]) -> UserError:
        ids = [shown(self.steps[number].nodes[0].id) for number in numbers]
        if len(ids) > SHOWN_OF_CYCLE:
            ids = [*ids[: SHOWN_OF_CYCLE - 1], f"... ({len(ids)} nodes in all)"]
        found = f"a cycle, {' waits for '.join([*ids, ids[0]])}"
        return complaint(self.name, "", "nodes", found, "nodes that do not wait for themselves")

    # -- steps in full ---------------------------------------------------------------------------------------

    def fill(self, step: Step) -> None:
        """All but the waiting for what is read; the steps it refers to are filled."""
        first = step.nodes[0]
        if first.after:
            step.after = self._events(first, "after", first.after)
        if first.kind == "wait":
            step.length = self._distributions.seconds(first)
        if first.kind != "generate":
            return
        step.length = self._distributions.lengths(first)
        if first.stopped_by:
            step.stopped_by = self._events(first, "stopped_by", first.stopped_by)
        if type(first.keep) is not bool:
            step.released_by = self._events(first, "keep.until", first.keep.until)
        for node in step.nodes:
            step.prompts.append(self._prompt(node))
            step.attends.append(self._attend(node, step))

    def _prompt(self, node: NodeSheet) -> Prompt:
        pieces: list[Piece] = []
        texts = self.sheet.texts
        for part in node.prompt:
            if type(part) is str or part.text is not None:
                name, first = (part, None) if type(part) is str else (part.text, part.first)
                if name not in texts:
                    expected = f"the name of a text of 'texts'{near(name, texts)}"
                    raise node_complaint(self.name, node, "prompt", shown(name), expected)
                pieces.append((name, texts[name] if first is None else self._first(node, first, texts[name])))
            elif part.instruction is not None:
                tokens = part.tokens if part.first is None else self._first(node, part.first, part.tokens)
                pieces.append((("instruction", part.instruction), tokens))
            elif part.output is not None:
                pieces.append(Output(self.places[part.output], part.first))
            else:
                pieces += self._repeated(node, part)
        self._check_size(node, pieces)
        return tuple(pieces) if Output in map(type, pieces) else Text(tuple(pieces))

    def _first(self, node: NodeSheet, first: int, tokens: int) -> int:
        if first > tokens:
            raise node_complaint(self.name, node, "prompt", f"the first {first:,} tokens", f"at most its {tokens:,}")
        return first

    def _repeated(self, node: NodeSheet, part: Part) -> tuple[Piece, ...]:
        """The pieces of the prompt that `part` repeats."""
        number, member = self.places[part.prompt]
        prompt = self.steps[number].prompts[member]
        pieces = prompt.parts if type(prompt) is Text else prompt
        if part.first is None:
            return pieces
        kept, left = [], part.first
        for piece in pieces:
            if type(piece) is Output:
                expected = f"a prompt of known length, and {shown(part.prompt)} reads what another node writes"
                raise node_complaint(self.name, node, "prompt", f"the first {part.first:,} tokens of it", expected)
            kept.append((piece[0], min(left, piece[1])))
            left -= kept[-1][1]
            if not left:
                return tuple(kept)
        self._first(node, part.first, part.first - left)
        return tuple(kept)

    def _check_size(self, node: NodeSheet, pieces: list[Piece]) -> None:
        tokens = 0
        for piece in pieces:
            if type(piece) is tuple:
                tokens += piece[1]
        if tokens > MAX_TOK:
            raise node_complaint(self.name, node, "prompt", f"{tokens:,} tokens", f"at most {MAX_TOK:,}")
        self._parts += len(pieces)
        if self._parts > MAX_PROMPT_PARTS:
            found = f"prompts of more than {MAX_PROMPT_PARTS:,} pieces up to here"
            raise node_complaint(self.name, node, "prompt", found, "fewer, in all prompts together")

    def _attend(self, node: NodeSheet, step: Step) -> list[Place]:
        """Places that it attends to; steps that must have finished are added to `kept`, others to `running`."""
        places = []
        for entry in node.attend:
            id_ = entry if type(entry) is str else entry.running
            number, member = self.places[id_]
            places.append((number, member))
            if type(entry) is not str:
                if number > self.places[node.id][0]:
                    found = f"{shown(id_)}, which stands behind it in the file"
                    raise node_complaint(self.name, node, "attend", found, "a running node in front of it")
                step.running.append(number)
            elif self.steps[number].nodes[member].keep is False:
                expected = 'a node with keep, or {"running": id} for one that has not finished'
                raise node_complaint(self.name, node, "attend", f"{shown(id_)}, which keeps no KV cache", expected)
            else:
                step.kept.append(number)
        return places

    # -- waiting for what is read ----------------------------------------------------------------------------

    def wait_for_reads(self, order: list[int]) -> None:
        """Adds to `after` what each step reads or attends to, unless it has ended in any case."""
        ended, begun, some, asked = [], [], set(), {}
        reads = [_read_by(step) for step in self.steps]
        for number, (step, read) in enumerate(zip(self.steps, reads)):
            ended.append([*(other for other, written in step.after if not written), *read] if step.after else read)
            begun.append([other for other, written in step.after if written] if step.after else ())
            if step.nodes[0].count not in (None, len(step.after)):
                some.add(number)
            if read and len(read) + len(step.after) > 1:
                asked[number] = read
        dropped = implied(order, ended, begun, asked, some) if asked else ()
        for number, (step, read) in enumerate(zip(self.steps, reads)):
            step.after += [(other, 0) for other in read if (number, other) not in dropped]
        for number in order:
            step = self.steps[number]
            for other in step.running:  # it starts when all that it waits for has happened
                step.after += [event for event in self.steps[other].after if event not in step.after]


def _read_by(step: Step) -> list[int]:
    """Steps that must have ended because the step reads or attends to them, and `after` does not say so itself."""
    found: dict[int, None] = {}
    for prompt in step.prompts:
        if type(prompt) is tuple:
            for piece in prompt:
                if type(piece) is Output:
                    found[piece.place[0]] = None
    found |= dict.fromkeys(step.kept)
    for number, written in step.after:
        if not written:
            found.pop(number, None)
    return list(found)
