"""Per-sample clipping: a batch becomes one sum of bounded vectors. Engines load their framework late."""

from .base import ClippedSum as ClippedSum
from .base import Clipper as Clipper
from .bookkeeping import BookkeepingClipper as BookkeepingClipper
from .loop import LoopClipper as LoopClipper
from .opacus import OpacusClipper as OpacusClipper
