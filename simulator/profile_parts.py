"""The two halves of a calibration without runs of its own: what a device's kernels reach, what an engine adds.

`profiles/kernels/*.toml` hold kernel ceilings and power of a device or an architecture family, and
`profiles/engines/*.toml` the overheads of an engine family, which is an engine over a range of versions. Any device can
be put together with any engine; both say how far they are off.
"""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import msgspec

from simulator.cuda_graphs import graph_rule
from simulator.device import Device, load_device
from simulator.errors import UserError
from simulator.overheads import EngineParameters
from simulator.parameters import KERNEL_GROUPS, Parameters
from simulator.profile import Calibration, read_toml

DEFAULT_ENGINE = "vllm"
# Engine parameters that the speed of the host's processor sets.
HOST_TIMES = (
    "eager_launch_s",
    "step_host_s",
    "sequence_host_s",
    "prefill_host_s",
    "request_s",
    "prompt_tok_s",
    "sampler_start_s",
)


class Kernels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kernel ceilings and power of a device or a family. `log_sd`: what they add to each kind of spread."""

    id: str
    source: str
    reference_gpu: str  # whose power figures they are
    host_factor: float = 1.0  # how many times slower the board's host is than a server's
    log_sd: dict[str, float]
    parameters: dict[str, dict[str, float]]  # groups of `Parameters` but "engine"


class EngineFamily(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overheads of an engine in versions from `since` (inclusive) to `before` (exclusive); None: no limit.

    `prior`, `prior_log_sd`: what was thought before any run was fitted; `parameters`, `log_sd`: fitted on servers
    (equal where nothing was).
    """

    id: str
    engine: str
    source: str
    since: str | None = None
    before: str | None = None
    async_since: str | None = None  # version from which the host works ahead by default
    cuda_graphs: bool = True
    graphs: str = "any size"  # rule of its newest version, a name in `simulator.cuda_graphs.RULES`
    log_sd: dict[str, float]
    prior_log_sd: dict[str, float]
    prior: EngineParameters
    parameters: EngineParameters
    notes: tuple[str, ...] = ()

    def holds(self, engine: str, version: str | None) -> bool:
        """Whether a run of this engine and version belongs here; without a version only open-ended families do."""
        if engine != self.engine:
            return False
        if version is None:
            return self.before is None
        number = version_number(version)
        after = self.since is None or number >= version_number(self.since)
        return after and (self.before is None or number < version_number(self.before))


def version_number(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.6.6.post1" is (0, 6, 6); () when it does not start with a number."""
    head = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    return tuple(int(part) for part in head.group(1).split(".")) if head else ()


def profiles_directory() -> Path:
    """Folder of the profiles that ship; data files beside the code that fits them."""
    spec = importlib.util.find_spec("calibration")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "profiles"


def read_kernels(path: Path) -> Kernels:
    """One file of kernel ceilings. UserError when it is none."""
    return _convert(path, Kernels)


def read_engine(path: Path) -> EngineFamily:
    """One file of engine overheads. UserError when it is none."""
    return _convert(path, EngineFamily)


def _convert(path: Path, kind):
    try:
        return msgspec.convert(read_toml(path), kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None


def kernels_for(device: Device) -> Kernels:
    """The ceilings of a device: its own, else of its compute capability, its architecture, or of any GPU.

    `kernels/` is fitted on operator tables of GPUs; `hosts/` says what is thought of processors.
    """
    module = ["jetson"] if device.memory.unified and device.form_factor == "module" else []
    exact = f"{device.architecture}-{device.compute_capability}"
    for name in (device.id, *module, exact, device.architecture, "any"):
        for folder in ("kernels", "hosts"):
            path = profiles_directory() / folder / f"{name}.toml"
            if path.exists():
                return read_kernels(path)
    raise FileNotFoundError(path)


def engine_families() -> list[EngineFamily]:
    """All engine families that ship, newest versions of an engine first."""
    found = [read_engine(path) for path in sorted((profiles_directory() / "engines").glob("*.toml"))]
    newest = sorted(found, key=lambda family: version_number(family.since or "0"), reverse=True)
    return sorted(newest, key=lambda family: family.engine)


def engine_family(engine: str | None, version: str | None = None) -> tuple[EngineFamily, str | None]:
    """The family of an engine's version, and a sentence if another engine's overheads stand in for it."""
    wanted = engine or DEFAULT_ENGINE
    families = engine_families()
    for family in families:
        if family.holds(wanted, version):
            return family, None
    own = [family for family in families if family.engine == wanted and family.before is None]
    if own:
        return own[0], f"version {version} of {wanted} is not known; overheads of its newest"
    stand_in = next(family for family in families if family.holds(DEFAULT_ENGINE, None))
    return stand_in, f"engine {wanted}; the overheads are those of {DEFAULT_ENGINE}"


def compose(
    device: Device,
    engine: str | None = None,
    version: str | None = None,
    fitted: bool = True,
    seen: Calibration | None = None,
) -> Calibration:
    """A calibration from the device's kernel ceilings and the engine's overheads; spreads add in quadrature.

    fitted=False takes the engine's overheads and spreads as they were thought to be before any run was fitted. `seen`:
    a profile of the same GPU with another engine, whose kernels and power stand for it.
    """
    kernels, (family, stand_in) = kernels_for(device), engine_family(engine, version)
    # No operator table has weight-only products: like 16-bit ones, but for what serving runs of such formats showed.
    seen_narrow = weight_only(device) if fitted else {}
    like16 = kernels.parameters["gemm16"]
    # Kernels that unpack weights feed the matrix units: only a single row is left to the vector units.
    narrow = {**like16, "skinny_rows": min(1.0, like16["skinny_rows"]), **seen_narrow}
    known = {"gemm_weight_only": narrow, **kernels.parameters}
    if seen is not None:
        known = msgspec.to_builtins(seen.parameters)
    groups = {name: known[name] for name in (*KERNEL_GROUPS, "power")}
    engine_values = msgspec.to_builtins(family.parameters if fitted else family.prior)
    engine_log_sd = family.log_sd if fitted else family.prior_log_sd
    for name in HOST_TIMES:
        engine_values[name] *= kernels.host_factor
    parameters = msgspec.convert({**groups, "engine": engine_values}, Parameters)
    where = seen.gpu if seen else kernels.id
    log_sd = {
        kind: math.hypot(_spread(kernels.log_sd, kind), _spread(engine_log_sd, kind))
        for kind in sorted({*kernels.log_sd, *engine_log_sd})
    }
    return Calibration(
        id=f"{where}+{family.id}",
        title=f"kernels of {where} with the overheads of {family.id}",
        engine=family.id,
        source=f"{f'kernels {seen.source} ({seen.engine})' if seen else kernels.source}; {family.source}",
        log_sd=log_sd,
        parameters=parameters,
        reference_gpu=where if seen else kernels.reference_gpu,
        cuda_graphs=family.cuda_graphs,
        graph_rule=rule_of(family, version),
        async_scheduling=is_async(family, version),
        notes=(*family.notes, *((stand_in,) if stand_in else ())),
    )


def weight_only(device: Device) -> dict[str, float]:
    """Parameters of weight-only products that serving runs showed: of this GPU, of its like, or of all on average.

    `profiles/weight_only.toml`, by GPU id: fitted on runs with int4 weights. Its like: equal compute capability, then
    equal architecture.
    """
    path = profiles_directory() / "weight_only.toml"
    found: dict[str, dict[str, float]] = read_toml(path) if path.exists() else {}
    if device.id in found or not found:
        return found.get(device.id, {})
    known = {name: load_device(name) for name in found}
    for alike in ("compute_capability", "architecture"):
        for name, other in known.items():
            if getattr(other, alike) == getattr(device, alike):
                return found[name]
    names = next(iter(found.values()))
    return {name: math.prod(values[name] for values in found.values()) ** (1.0 / len(found)) for name in names}


def _spread(log_sd: dict[str, float], kind: str) -> float:
    """The spread of a kind; where it is not stated, that of energy (power) or of time (all else)."""
    return log_sd.get(kind, log_sd["energy" if kind.startswith(("power", "energy")) else "time"])


def rule_of(family: EngineFamily, version: str | None, v1: bool = True) -> str:
    """The rule by which an engine's version records CUDA graphs; without a version that of the family's newest."""
    return graph_rule(family.engine, version_number(version), v1) if version else family.graphs


def is_async(family: EngineFamily, version: str | None) -> bool:
    """Whether the engine's host works ahead of the GPU by default; without a version: as its newest does."""
    if family.async_since is None:
        return False
    return version is None or version_number(version) >= version_number(family.async_since)
