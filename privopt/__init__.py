"""The privacy layer for federated learning: modular optimizers whose shared variables say how they sum.

Loads no framework: numpy, torch and the rest are imported when their arrays, models or tools are used.
"""

from typing import TYPE_CHECKING

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
else:  # hidden from type checkers, so that a misspelt name is an error to them
    _LATER = ("Federation", "build_federation")

    __all__ = [
        "AuxVar",
        "Group",
        "Layout",
        "OptiModule",
        "Optimizer",
        "PerTensor",
        "Regularizer",
        "Schedule",
        "Vector",
        "adaptive",
        "averaged",
        "counted",
        "executor",
        "list_aggregators",
        "list_optim_modules",
        "list_optim_regularizers",
        "list_rate_schedulers",
        "local",
        "public",
        "same",
        "set_num_threads",
        "state",
        "summed",
        *_LATER,
    ]

    def __getattr__(name: str) -> object:
        # The core never imports the run: what runs a federation is loaded when it is asked for.
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .federation import federation

        found = globals()[name] = getattr(federation, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
