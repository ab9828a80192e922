"""Gradient-altering plug-ins, one mechanism a file: part of floor 4. A new one is a new file, named here."""

from .adaptive import Adam as Adam
from .adaptive import Adam as AdamModule
from .clipping import L2Clipping as L2Clipping
from .clipping import L2GlobalClipping as L2GlobalClipping
from .momentum import Momentum as Momentum
from .momentum import Momentum as MomentumModule
from .noise import GaussianNoise as GaussianNoise
from .noise import GaussianNoise as GaussianNoiseModule
from .noise import NoiseModule as NoiseModule
from .scaffold import ScaffoldAuxVar as ScaffoldAuxVar
from .scaffold import ScaffoldClient as ScaffoldClient
from .scaffold import ScaffoldClient as ScaffoldClientModule
from .scaffold import ScaffoldServer as ScaffoldServer
from .scaffold import ScaffoldServer as ScaffoldServerModule
from .scaffold import ScaffoldState as ScaffoldState

__all__ = [
    "Adam",
    "AdamModule",
    "GaussianNoise",
    "GaussianNoiseModule",
    "L2Clipping",
    "L2GlobalClipping",
    "Momentum",
    "MomentumModule",
    "NoiseModule",
    "ScaffoldAuxVar",
    "ScaffoldClient",
    "ScaffoldClientModule",
    "ScaffoldServer",
    "ScaffoldServerModule",
    "ScaffoldState",
]
