"""The privacy layer for federated learning: modular optimizers whose shared variables say how they sum.

Loads no framework: numpy, torch and the rest are imported when their arrays, models or tools are used.
"""

from typing import TYPE_CHECKING, Any

from secagg import adaptive as adaptive
from secagg import averaged as averaged
from secagg import counted as counted
from secagg import local as local
from secagg import public as public
from secagg import same as same
from secagg import summed as summed

from .auxvar import AuxVar as AuxVar
from .executors import executor as executor
from .executors import set_num_threads as set_num_threads
from .groups import Group as Group
from .layout import Layout as Layout
from .optimizer import Optimizer as Optimizer
from .plugin import OptiModule as OptiModule
from .plugin import Regularizer as Regularizer
from .plugin import state as state
from .registry import list_aggregators as list_aggregators
from .registry import list_optim_modules as list_optim_modules
from .registry import list_optim_regularizers as list_optim_regularizers
from .registry import list_rate_schedulers as list_rate_schedulers
from .schedules import Schedule as Schedule
from .vector import PerTensor as PerTensor
from .vector import Vector as Vector

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .federation.federation import Federation as Federation
    from .federation.federation import build_federation as build_federation


def __getattr__(name: str) -> Any:
    """The parts that run a federation are loaded when they are asked for: the core never imports the run."""
    if name in ("Federation", "build_federation"):
        from .federation import federation

        return getattr(federation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
