"""Bundled models: catalogue.toml names them, configs/ holds one config.json per architecture."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simulator.errors import UserError, unknown_name
from simulator.model.architecture import Model
from simulator.model.huggingface import read_config

_HERE = Path(__file__).parent
CONFIGS = _HERE / "configs"


@dataclass(frozen=True)
class ModelSummary:
    """One line of the list of bundled models. `parameters` is computed, `published_parameters` is from `source`."""

    name: str
    aliases: tuple[str, ...]
    parameters: int
    published_parameters: int | None
    source: str


@cache
def _catalogue() -> dict[str, Any]:
    with (_HERE / "catalogue.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def _names() -> dict[str, dict[str, Any]]:
    """Lower-case id or alias -> catalogue entry."""
    names: dict[str, dict[str, Any]] = {}
    for entry in _catalogue()["model"]:
        for name in (entry["id"], *entry["aliases"]):
            names[name.lower()] = entry
    return names


def config_path(entry: dict[str, Any]) -> Path:
    """Where the config of a catalogue entry is: its `config`, or the id with '/' as '--'."""
    name = entry.get("config") or entry["id"].replace("/", "--")
    return CONFIGS / f"{name}.json"


def catalogue_entries() -> tuple[dict[str, Any], ...]:
    """The catalogue as written: id, aliases, published_parameters, parameter_source, config, note."""
    return tuple(_catalogue()["model"])


@cache
def _load_bundled(name: str) -> Model:
    entry = _names()[name]
    model = read_config(config_path(entry), entry["id"])
    return dataclasses.replace(model, notes=(*model.notes, entry["note"])) if "note" in entry else model


def load_model(name_or_path: str | Path) -> Model:
    """A bundled model by Hugging Face id or alias (case does not matter), or any config.json by path.

    A path is a file or a directory that holds config.json. Raises `UserError` for names that are not known and
    configs that cannot be read.
    """
    text = str(name_or_path)
    if text.lower() in _names():
        return _load_bundled(text.lower())
    path = Path(name_or_path)
    if not text:
        raise UserError("model: found an empty name, expected a Hugging Face id or the path of a config.json")
    if text.endswith(".json") or text.startswith((".", "/", "~")) or path.exists():
        return read_config(path.expanduser())
    candidates = [name for entry in _catalogue()["model"] for name in (*entry["aliases"], entry["id"])]
    raise unknown_name("model", text, candidates, "see: simulate --list models, or give a config.json by path")


def list_models() -> list[ModelSummary]:
    """All bundled models, in the catalogue's order. Reads every config."""
    return [
        ModelSummary(
            name=entry["id"],
            aliases=tuple(entry["aliases"]),
            parameters=load_model(entry["id"]).parameters(),
            published_parameters=entry.get("published_parameters"),
            source=entry["parameter_source"],
        )
        for entry in _catalogue()["model"]
    ]


def default_ladder() -> tuple[str, ...]:
    """Reasoning models, small to large, from which the default for a device is picked."""
    return tuple(_catalogue()["default_ladder"])
