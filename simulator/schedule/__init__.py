"""The language in which a strategy is written."""

from simulator.engine.sequence import Pass
from simulator.schedule.calls import Call, Wait
from simulator.schedule.graph import Node
from simulator.schedule.run import Run
from simulator.schedule.text import Text

__all__ = ["Call", "Node", "Pass", "Run", "Text", "Wait"]
