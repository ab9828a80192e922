"""What a layer's inputs and its outputs' gradients say of each sample's gradient, by kind of layer: floor 3.

The files of this folder load torch; `dp.clipping` loads this folder when a clipper is made.
"""

from .conv import CONV as CONV
from .embedding import EMBEDDING as EMBEDDING
from .linear import LINEAR as LINEAR
from .norm import CHANNEL_NORM as CHANNEL_NORM
from .norm import LAYER_NORM as LAYER_NORM
from .rule import RULES as RULES
from .rule import Dense as Dense
from .rule import Rule as Rule
from .rule import Share as Share
from .rule import rule_of as rule_of
