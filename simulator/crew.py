"""The models that play roles beside the main one: a judge, a reward model; on its GPU or on another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.errors import UserError
from simulator.flight import Crew, check_roles
from simulator.instance import Instance, InstanceChoice, build_instance
from simulator.memory import MemoryPlan
from simulator.strategies import Strategy

# Of the memory that two models on one GPU leave for KV caches, the part of the one that plays a role: it reads short
# texts and writes a verdict.
ROLE_SHARE = 0.25


@dataclass(frozen=True)
class RoleChoice:
    """Who plays a role: a model, on a GPU of its own or (None) on that of the main model."""

    role: str
    model: str
    gpu: str | None = None


@dataclass(frozen=True)
class Cast:
    """The engines of all roles, and what they leave to the main one."""

    instances: Mapping[str, Instance]
    own_gpu: Mapping[str, bool]
    main_memory: MemoryPlan
    assumptions: tuple[str, ...]

    def crews(self) -> dict[str, Crew]:
        """What flies, by role."""
        return {
            role: Crew(found.step_model, found.memory.kv_blocks, found.settings, not self.own_gpu[role])
            for role, found in self.instances.items()
        }


def parse_role(text: str) -> RoleChoice:
    """A role from "NAME=MODEL" or "NAME=MODEL@GPU". UserError on anything else."""
    role, equals, player = text.partition("=")
    model, at, gpu = player.rpartition("@") if "@" in player else (player, "", "")
    if not role.strip() or not equals or not model.strip() or (at and not gpu.strip()):
        raise UserError(f"role: found '{text}', expected NAME=MODEL or NAME=MODEL@GPU, like judge=Qwen/Qwen3-4B@l4")
    return RoleChoice(role.strip().replace("-", "_"), model.strip(), gpu.strip() or None)


def build_cast(texts: Sequence[str], strategy: Strategy, asked: InstanceChoice, main: Instance) -> Cast:
    """The engines of the roles that `texts` name. UserError on an unknown role, a role named twice, no room."""
    choices = [parse_role(text) for text in texts]
    check_roles(strategy, dict.fromkeys(choice.role for choice in choices))
    instances, own, notes = {}, {}, []
    for choice in choices:
        if choice.role in instances:
            raise UserError(f"role '{choice.role}' is given twice")
        instances[choice.role] = build_instance(
            InstanceChoice(
                gpu=choice.gpu or asked.gpu,
                model=choice.model,
                power_mode=None if choice.gpu else asked.power_mode,
                engine=asked.engine,
                enforce_eager=asked.enforce_eager,
            )
        )
        own[choice.role] = choice.gpu is not None
        notes.append(_note(choice, instances[choice.role]))
    beside = [role for role in instances if not own[role]]
    memory = main.memory
    if beside:
        if main.parallel.world_size > 1:
            raise UserError(
                f"role '{beside[0]}' on the GPU of a main model that is split over {main.parallel.world_size} devices "
                f"is not simulated; expected a GPU of its own: {beside[0]}=MODEL@GPU"
            )
        memory, own_memory = _divide(main, {role: instances[role] for role in beside})
        instances |= {role: replace(instances[role], memory=own_memory[role]) for role in beside}
        notes.append(
            f"engines on one GPU take turns, step by step; of the memory beside their weights {ROLE_SHARE:.0%} goes to "
            f"the KV cache of {' and '.join(beside)}"
        )
    left = [role for role in strategy.roles if role not in instances]
    notes += [f"the role '{role}' ({strategy.roles[role]}) is played by the main model" for role in left]
    return Cast(instances, own, memory, tuple(notes))


def _note(choice: RoleChoice, found: Instance) -> str:
    where = f"a {found.device.name} of its own" if choice.gpu else "the same GPU"
    return (
        f"the role '{choice.role}' is played by {found.model.name} in {found.precision.weights} on {where}, "
        f"calibration {found.calibration.id}"
    )


def _divide(main: Instance, others: Mapping[str, Instance]) -> tuple[MemoryPlan, dict[str, MemoryPlan]]:
    """Memory plans of engines on one GPU: what their weights and activations leave is divided among KV caches."""
    engines = [main, *others.values()]
    fixed = sum(e.memory.weights_byte + e.memory.activation_byte + e.memory.overhead_byte for e in engines)
    room = main.memory.usable_byte - fixed
    if room <= 0.0:
        names = " and ".join(engine.model.name for engine in engines)
        raise UserError(
            f"{names} together need {fixed / 1e9:.1f} GB for weights, activations and the engines, but "
            f"{main.device.name} has {main.memory.usable_byte / 1e9:.1f} GB for them; expected a GPU of its own for a "
            "role: ROLE=MODEL@GPU"
        )
    share = ROLE_SHARE / len(others)
    divided = {role: _with_room(found, share * room) for role, found in others.items()}
    return _with_room(main, (1.0 - ROLE_SHARE) * room), divided


def _with_room(engine: Instance, kv_byte: float) -> MemoryPlan:
    memory = engine.memory
    state = memory.state_byte_per_sequence * engine.settings.max_num_seqs
    block = memory.kv_byte_per_tok * memory.block_size
    blocks = memory.kv_blocks if not block else int(max(0.0, kv_byte - state) // block)
    if blocks < 1:
        raise UserError(f"{engine.model.name} finds no room for a KV cache on {engine.device.name} beside the others")
    return replace(memory, kv_blocks=blocks)
