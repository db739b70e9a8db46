"""Calibration profiles: the fitted (or assumed) efficiencies and overheads of one (GPU, engine family).

A profile is a TOML file. What hardware IS stands in `hwspecs/`; what software makes of it stands here.
"""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from simulator.errors import UserError
from simulator.model import LatentAttention, Model
from simulator.parameters import SPECS, Parameters, flatten

Z90 = 1.6448536269514722  # standard normal quantile of a two-sided 90 % interval

MAX_LOG_SD = 3.0  # a factor of 140 either way: nothing is claimed any more


class FittedOn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What data a profile was fitted on, and the range they cover. `row_hashes`: one short hash per row used."""

    files: tuple[str, ...]
    sha256: str
    rows: int
    models: tuple[str, ...]
    weights: tuple[str, ...]
    kv_caches: tuple[str, ...]
    features: tuple[str, ...]  # of the models' architectures, see `architecture_features`
    cuda_graphs: tuple[bool, ...]
    max_batch: int
    max_context_tok: int
    max_prompt_tok: int
    min_parameters: float
    max_parameters: float
    max_tp: int = 1
    power_modes: tuple[str, ...] = ()
    row_hashes: tuple[str, ...] = ()


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What is run, as far as the range of a fit is concerned."""

    parameters: float
    weights: str
    batch: int
    context_tok: int
    prompt_tok: int
    kv_cache: str = "bf16"
    features: tuple[str, ...] = ()
    cuda_graphs: bool = True
    power_mode: str | None = None
    tp: int = 1


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profile. `log_sd`: standard deviation of log(measured / predicted) by kind of metric.

    `engine` is the engine family that it describes. `parameter_log_sd` is the posterior spread of each fitted
    parameter (log scale, after the fit); `correlation` is the matching matrix in the order of `fitted`. Parameters not
    in `fitted` stay at their prior. `cuda_graphs`, `graph_rule` (a name in `simulator.cuda_graphs.RULES`),
    `async_scheduling`: what the engine does unless a run says so.
    """

    id: str
    title: str
    engine: str
    source: str
    log_sd: dict[str, float]
    parameters: Parameters
    gpu: str | None = None
    reference_gpu: str | None = None  # defaults: the GPU whose power figures they are
    cuda_graphs: bool = True
    graph_rule: str = "any size"
    async_scheduling: bool = False
    idle_w: float | None = None
    power_scope: str = "board"
    fitted: tuple[str, ...] = ()
    parameter_log_sd: dict[str, float] = {}
    correlation: tuple[tuple[float, ...], ...] = ()
    fitted_on: FittedOn | None = None
    notes: tuple[str, ...] = ()
    transferred: str | None = None  # set on loading: fitted on another GPU, and why it is borrowed

    @property
    def data_hash(self) -> str | None:
        """SHA-256 of the rows the profile was fitted on."""
        return self.fitted_on.sha256 if self.fitted_on else None

    def spread(self, kind: str, outside: tuple[str, ...] = ()) -> float:
        """Standard deviation of log(measured / predicted) for a kind of metric ("ttft", "tpot", "time", "power", ...).

        A kind that the profile does not state takes the spread of energy (power) or of time (all else). Every way in
        which a configuration lies outside the fitted range (`extrapolations`) adds that variance again: a convention,
        not a measurement, and said wherever it applies. Defaults and borrowed profiles are wide already, so the
        sentence that says so does not count.
        """
        wide_already = self.fitted_on is None or self.transferred is not None
        ways = len(outside) - bool(outside and wide_already)
        fallback = self.log_sd["energy" if kind.startswith(("power", "energy")) else "time"]
        if kind == "ttft_served" and kind not in self.log_sd:  # queueing multiplies errors: never less than TTFT alone
            fallback = 1.5 * self.log_sd.get("ttft", fallback)
        return self.log_sd.get(kind, fallback) * math.sqrt(1.0 + ways)

    def blended_spread(self, prefill_share: float, outside: tuple[str, ...] = ()) -> float:
        """Spread of a time of which `prefill_share` is prefill, the rest decode; their errors taken as correlated."""
        return prefill_share * self.spread("ttft", outside) + (1.0 - prefill_share) * self.spread("tpot", outside)

    def blended_energy_spread(self, prefill_share: float, outside: tuple[str, ...] = ()) -> float:
        """The same for energy: prefill rests on the energy per FLOP, decode on the energy per byte."""
        prefill, decode = self.spread("energy_prefill", outside), self.spread("energy", outside)
        return prefill_share * prefill + (1.0 - prefill_share) * decode

    def extrapolations(self, run: Operation) -> tuple[str, ...]:
        """Sentences on how `run` leaves the fitted range; empty when inside."""
        fit = self.fitted_on
        if fit is None:
            return (f"no measured runs of this GPU with this engine: {self.source}",)
        out = [f"fitted on {self.gpu}: {self.transferred}"] if self.transferred else []
        if run.parameters > 2.0 * fit.max_parameters or run.parameters < 0.5 * fit.min_parameters:
            out.append(
                f"model of {_billions(run.parameters)} B parameters; fitted on "
                f"{_billions(fit.min_parameters)}-{_billions(fit.max_parameters)} B"
            )
        if run.weights not in fit.weights:
            out.append(f"{run.weights} weights; fitted on {', '.join(fit.weights)}")
        if run.kv_cache not in fit.kv_caches:
            out.append(f"{run.kv_cache} KV cache; fitted on {', '.join(fit.kv_caches)}")
        new = [feature for feature in run.features if feature not in fit.features]
        out += [f"model with {feature}; fitted on models without" for feature in new]
        if run.cuda_graphs not in fit.cuda_graphs:
            out.append(f"{'with' if run.cuda_graphs else 'without'} CUDA graphs; fitted the other way")
        for name, value, limit in (
            ("batch", run.batch, fit.max_batch),
            ("context", run.context_tok, fit.max_context_tok),
            ("prompt", run.prompt_tok, fit.max_prompt_tok),
        ):
            if value > 1.1 * limit:
                out.append(
                    f"{name} of {value:,} {'sequences' if name == 'batch' else 'tokens'}; fitted up to {limit:,}"
                )
        if run.tp > fit.max_tp:
            out.append(f"tensor parallel over {run.tp} devices; fitted up to {fit.max_tp}")
        if fit.power_modes and run.power_mode not in fit.power_modes:
            out.append(f"power mode {run.power_mode}; fitted in {', '.join(fit.power_modes)}")
        return tuple(out)


def _billions(parameters: float) -> str:
    """A parameter count in billions with three significant digits, never as 1.2e+03."""
    return f"{float(f'{parameters / 1e9:.3g}'):,.10g}"


def architecture_features(model: Model) -> tuple[str, ...]:
    """What sets an architecture apart from a plain dense transformer with full attention."""
    mixers = [group.mixer for group in model.layers if group.mixer is not None]
    found = {
        "a mixture of experts": model.sparse,
        "latent attention": any(isinstance(mixer, LatentAttention) for mixer in mixers),
        "recurrent layers": model.state_elements > 0,
        "windowed attention": any(getattr(mixer, "window_tok", None) for mixer in mixers),
    }
    return tuple(name for name, present in found.items() if present)


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file that belongs to a profile. UserError on anything that is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"calibration profile '{path}' does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"calibration profile '{path}' cannot be read: {error.strerror}") from None


def read_profile(path: Path) -> Calibration:
    """Read and check one profile file. UserError on anything that is not a profile."""
    raw = read_toml(path)
    try:
        profile = msgspec.convert(raw, Calibration)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}") from None
    for name, value in flatten(profile.parameters).items():
        spec = SPECS[name]
        if not spec.lower <= value <= spec.upper:
            raise UserError(
                f"{path}: parameters.{name} = {value:g}, expected {spec.lower:g} to {spec.upper:g} {spec.unit}"
            )
    if "time" not in profile.log_sd or "energy" not in profile.log_sd:
        raise UserError(f"{path}: log_sd needs the keys 'time' and 'energy'")
    for kind, sd in profile.log_sd.items():
        if not 0.0 < sd <= MAX_LOG_SD:
            raise UserError(f"{path}: log_sd.{kind} = {sd:g}, expected above 0 and at most {MAX_LOG_SD:g}")
    if profile.idle_w is not None and not 0.0 <= profile.idle_w <= 1e4:
        raise UserError(f"{path}: idle_w = {profile.idle_w:g}, expected 0 to 10000 W")
    return profile
