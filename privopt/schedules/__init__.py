"""Learning-rate schedules, one idea a file: part of floor 4. A new one is a new file, named here.

They load when one is named, here or in the registry: an optimizer with a constant rate needs none.
"""

from typing import TYPE_CHECKING

from .base import Schedule as Schedule
from .base import rates as rates
from .base import schedule_of as schedule_of

if TYPE_CHECKING:
    from .cosine import Cosine as Cosine
    from .cosine import CosineRestarts as CosineRestarts
    from .cyclic import CyclicExpRange as CyclicExpRange
    from .cyclic import CyclicTriangular as CyclicTriangular
    from .cyclic import OneCycle as OneCycle
    from .decay import Constant as Constant
    from .decay import Exponential as Exponential
    from .decay import InverseScaling as InverseScaling
    from .decay import Linear as Linear
    from .decay import Piecewise as Piecewise
    from .decay import Polynomial as Polynomial
    from .plateau import ReduceOnPlateau as ReduceOnPlateau
    from .warmup import Warmup as Warmup
else:  # hidden from type checkers, so that a misspelt name is an error to them
    from importlib import import_module

    _LATER = {
        "cosine": ["Cosine", "CosineRestarts"],
        "cyclic": ["CyclicExpRange", "CyclicTriangular", "OneCycle"],
        "decay": ["Constant", "Exponential", "InverseScaling", "Linear", "Piecewise", "Polynomial"],
        "plateau": ["ReduceOnPlateau"],
        "warmup": ["Warmup"],
    }
    _HOMES = {name: module for module, names in _LATER.items() for name in names}

    __all__ = ["Schedule", "rates", "schedule_of", *_HOMES]

    def __getattr__(name: str) -> object:
        if name in _LATER:
            return import_module(f".{name}", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER, *__all__})
