"""Per-sample clipping: a batch becomes one sum of bounded vectors. Engines load their framework late."""

from .auto import make_clipper as make_clipper
from .base import ClippedSum as ClippedSum
from .base import Clipper as Clipper
from .bookkeeping import BookkeepingClipper as BookkeepingClipper
from .loop import LoopClipper as LoopClipper
from .opacus import OpacusClipper as OpacusClipper
from .vmap import VmapClipper as VmapClipper
