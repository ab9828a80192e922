"""Loss-regularization plug-ins: part of floor 4. Each adds its term's gradient before the modules run."""

from .feddyn import FedDyn as FedDyn
from .fedprox import FedProx as FedProx
from .fedprox import FedProx as FedProxRegularizer
from .penalties import ElasticNet as ElasticNet
from .penalties import ElasticNet as ElasticNetRegularizer
from .penalties import Lasso as Lasso
from .penalties import Lasso as LassoRegularizer
from .penalties import Penalty as Penalty
from .penalties import Ridge as Ridge
from .penalties import Ridge as RidgeRegularizer

__all__ = [
    "ElasticNet",
    "ElasticNetRegularizer",
    "FedDyn",
    "FedProx",
    "FedProxRegularizer",
    "Lasso",
    "LassoRegularizer",
    "Penalty",
    "Ridge",
    "RidgeRegularizer",
]
