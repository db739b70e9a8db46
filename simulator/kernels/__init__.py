"""How long one operator takes on a device: one file per kind of kernel, each with its own few parameters.

Every function here is pure and vectorised: shapes in, `OperatorTime` out. What a forward pass consists of stands in
`simulator/operators.py`; what a step adds around the kernels in `simulator/step.py`.
"""

from simulator.kernels.spec import OperatorTime, ParameterSpec

__all__ = ["OperatorTime", "ParameterSpec"]
