"""Discrete-event serving engine on SimPy: scheduler, paged KV cache, prefix cache."""

from simulator.engine.server import Server
from simulator.engine.settings import EngineSettings

__all__ = ["EngineSettings", "Server"]
