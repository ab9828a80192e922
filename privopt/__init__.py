"""The privacy layer for federated learning: modular optimizers whose shared variables say how they sum.

Loads no framework: numpy, torch and the rest are imported when their arrays, models or tools are used.
"""

from typing import TYPE_CHECKING

from secagg.fields import adaptive as adaptive
from secagg.fields import all_ as all_
from secagg.fields import any_ as any_
from secagg.fields import averaged as averaged
from secagg.fields import counted as counted
from secagg.fields import histogram as histogram
from secagg.fields import local as local
from secagg.fields import maximum as maximum
from secagg.fields import minimum as minimum
from secagg.fields import moments as moments
from secagg.fields import public as public
from secagg.fields import quantile as quantile
from secagg.fields import same as same
from secagg.fields import sparse as sparse
from secagg.fields import summed as summed
from secagg.fields import true_count as true_count

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
        "all_",
        "any_",
        "averaged",
        "counted",
        "executor",
        "histogram",
        "list_aggregators",
        "list_optim_modules",
        "list_optim_regularizers",
        "list_rate_schedulers",
        "local",
        "maximum",
        "minimum",
        "moments",
        "public",
        "quantile",
        "same",
        "set_num_threads",
        "sparse",
        "state",
        "summed",
        "true_count",
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
