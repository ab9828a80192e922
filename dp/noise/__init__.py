"""Noise mechanisms, one a file: floor 3.

Sums are released by `release`, on a lattice; the rest are the distributions alone.
"""

from ._discrete_gaussian import discrete_gaussian as discrete_gaussian
from ._discrete_gaussian import exact_discrete_gaussian as exact_discrete_gaussian
from ._gaussian import gaussian as gaussian
from ._laplace import laplace as laplace
from ._skellam import skellam as skellam
from .lattice import Release as Release
from .lattice import granularity_for as granularity_for
from .lattice import release as release
from .rounded import rounded_gaussian as rounded_gaussian
