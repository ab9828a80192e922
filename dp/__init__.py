"""`dp`: local differential privacy for whoever holds data: clip, noise, account, keep a ledger, audit.

Importing it loads no framework and no accountant; each loads when it is first needed.
"""

from . import events as events
from . import random as random
from .accounting import Accountant as Accountant
from .accounting import Epsilon as Epsilon
from .accounting import epsilon as epsilon
from .calibration import check_delta as check_delta
from .calibration import noise_multiplier_for as noise_multiplier_for
from .calibration import num_steps_for as num_steps_for
from .clipping import BookkeepingClipper as BookkeepingClipper
from .clipping import ClippedSum as ClippedSum
from .clipping import Clipper as Clipper
from .clipping import LoopClipper as LoopClipper
from .clipping import OpacusClipper as OpacusClipper
from .clipping import VmapClipper as VmapClipper
from .clipping import make_clipper as make_clipper
from .errors import DPError as DPError
from .errors import LedgerError as LedgerError
from .errors import PrivacyBudgetExceeded as PrivacyBudgetExceeded
from .errors import PrivacyParameterError as PrivacyParameterError
from .errors import PrivacyWarning as PrivacyWarning
from .errors import UnsupportedEvent as UnsupportedEvent
from .errors import UnsupportedLayer as UnsupportedLayer
from .events import Neighboring as Neighboring
from .heads import HeadKeeper as HeadKeeper
from .ledger import Ledger as Ledger
from .ledger import LedgerKey as LedgerKey
from .ledger import Reservation as Reservation
from .noise import gaussian as gaussian
from .noise import release as release
from .policy import LocalPolicy as LocalPolicy
from .policy import PolicyRefused as PolicyRefused
from .private import PrivateGradient as PrivateGradient
from .random import insecure_source as insecure_source
from .random import secure_source as secure_source
from .sampling import BallsInBinsSampler as BallsInBinsSampler
from .sampling import FixedSizeSampler as FixedSizeSampler
from .sampling import PoissonSampler as PoissonSampler
from .sampling import ShuffledSampler as ShuffledSampler
from .sampling import TruncatedPoissonSampler as TruncatedPoissonSampler
