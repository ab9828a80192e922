"""Learning-rate schedules, one idea a file: part of floor 4. A new one is a new file, named here."""

from .base import Schedule as Schedule
from .base import rates as rates
from .base import schedule_of as schedule_of
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

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "CyclicExpRange",
    "CyclicTriangular",
    "Exponential",
    "InverseScaling",
    "Linear",
    "OneCycle",
    "Piecewise",
    "Polynomial",
    "ReduceOnPlateau",
    "Schedule",
    "Warmup",
    "rates",
    "schedule_of",
]
