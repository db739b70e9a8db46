"""How a schedule that was read from a file flies: its steps as a graph of calls and waits on a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from simulator.engine.sequence import Pass
from simulator.schedule.calls import Call
from simulator.schedule.files.complaints import complaint, shown
from simulator.schedule.files.plan import Event, Output, Piece, Place, Plan, Prompt, Step
from simulator.schedule.files.sheet import NodeSheet
from simulator.schedule.graph import Made, Node
from simulator.schedule.run import Run
from simulator.schedule.text import Text

PROBLEM = "problem"  # the text of this name is the problem of the run


class Replay:
    """A plan as the nodes of a graph, for one run. `name`: the file, for complaints about what shows only in flight.

    The text called 'problem', of `problem_tok` tokens, is the run's problem: of several questions, each has its own.
    """

    def __init__(self, plan: Plan, name: str, run: Run, problem_tok: int | None = None) -> None:
        self.plan, self.name, self.run = plan, name, run
        self.problem_tok = problem_tok
        self.own_problem = run.problem.parts == ((PROBLEM, problem_tok),)
        self.calls: dict[Place, Call] = {}  # those that have started
        self.nodes = [Node(None) for _ in plan.steps]
        for number, step in enumerate(plan.steps):
            self._set_up(number, step)

    def fly(self) -> Generator:
        """A strategy: carries out the graph and returns the calls with the answer."""
        yield self.run.graph(self.nodes)
        for where in self.plan.accepted:
            self.run.accept(self.calls[where])
        answer = [self.calls[where] for where in self.plan.answer]
        return answer[0] if len(answer) == 1 else answer

    def _set_up(self, number: int, step: Step) -> None:
        node = self.nodes[number]
        node.after = self._events(step.after)
        if step.kind == "gate":
            node.count = step.nodes[0].count
            return
        node.make = self._maker(number, step)
        if step.stopped_by:
            node.stopped_by = self._events(step.stopped_by)
        if step.released_by is not None:
            node.released_by = self._events(step.released_by)

    def _events(self, events: Sequence[Event]) -> tuple[Node | tuple[Node, int], ...]:
        nodes = self.nodes
        return tuple([(nodes[number], written) if written else nodes[number] for number, written in events])

    # -- making what a node does, once those before it are done ----------------------------------------------

    def _maker(self, number: int, step: Step) -> Callable[[dict], Made]:
        first = step.nodes[0]
        if step.kind == "wait":
            return lambda _: self.run.wait(step.length, first.label or first.id)
        if first.passes:
            return lambda _: self._passes(number, step)
        if first.together is not None:
            return lambda _: [self._generate(number, member, step) for member in range(len(step.nodes))]
        return lambda _: self._generate(number, 0, step)

    def _generate(self, number: int, member: int, step: Step) -> Call:
        node, attends = step.nodes[member], step.attends[member]
        call = self.calls[number, member] = self.run.generate(
            self._prompt(node, step.prompts[member]),
            node.label or node.id,
            step.length,
            node.max_tok,
            role=node.role,
            attend=[self._attended(node, where) for where in attends] if attends else (),
            keep=node.keep is not False,
        )
        return call

    def _passes(self, number: int, step: Step) -> Call:
        node = step.nodes[0]
        stages = [Pass(stage.count, stage.new_tok, stage.cached_tok, stage.logits_tok) for stage in node.passes]
        prompt = self._prompt(node, step.prompts[0])
        call = self.run.passes(prompt, node.label or node.id, node.output_tok, stages, role=node.role)
        self.calls[number, 0] = call
        return call

    def _prompt(self, node: NodeSheet, prompt: Prompt) -> Text:
        if type(prompt) is Text and self.own_problem:
            return prompt
        parts: list[Piece] = []
        for piece in prompt.parts if type(prompt) is Text else prompt:
            if type(piece) is Output:
                text = self.calls[piece.place].text
                parts += text.parts if piece.first is None else text.first(piece.first).parts
            elif piece[0] == PROBLEM and not self.own_problem:
                whole = piece[1] == self.problem_tok
                parts += self.run.problem.parts if whole else self.run.problem.first(piece[1]).parts
            else:
                parts.append(piece)
        if not parts:  # all that it reads was stopped before its first token
            found = "nothing to read, as nothing of it was written"
            raise complaint(self.name, shown(node.id), "prompt", found, "at least one token")
        return Text(tuple(parts))

    def _attended(self, node: NodeSheet, where: Place) -> Call:
        """A call whose KV is there: it runs, or it is kept."""
        call = self.calls[where]
        if call.finished and not (call.keep and call.released_by is None):
            step, member = where
            other = shown(self.plan.steps[step].nodes[member].id)
            found = f"{other}, whose KV cache was given back before {shown(node.id)} started"
            raise complaint(self.name, shown(node.id), "attend", found, "one that is kept until then")
        return call
