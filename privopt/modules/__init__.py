"""Gradient-altering plug-ins, one mechanism a file: part of floor 4. A new one is a new file, named here."""

from .adaptive import AdaBelief as AdaBelief
from .adaptive import AdaBelief as AdaBeliefModule
from .adaptive import AdaGrad as AdaGrad
from .adaptive import AdaGrad as AdaGradModule
from .adaptive import Adam as Adam
from .adaptive import Adam as AdamModule
from .adaptive import MomentsModule as MomentsModule
from .adaptive import NAdam as NAdam
from .adaptive import NAdam as NAdamModule
from .adaptive import RAdam as RAdam
from .adaptive import RAdam as RAdamModule
from .adaptive import RMSProp as RMSProp
from .adaptive import RMSProp as RMSPropModule
from .adaptive import Yogi as Yogi
from .adaptive import Yogi as YogiModule
from .adaptive_clipping import AdaptiveClippingAuxVar as AdaptiveClippingAuxVar
from .adaptive_clipping import AdaptiveClippingClient as AdaptiveClippingClient
from .adaptive_clipping import AdaptiveClippingServer as AdaptiveClippingServer
from .adaptive_clipping import AdaptiveClippingState as AdaptiveClippingState
from .averaging import EMAWeights as EMAWeights
from .averaging import EMAWeights as EMAWeightsModule
from .averaging import Lookahead as Lookahead
from .averaging import Lookahead as LookaheadModule
from .averaging import ScheduleFree as ScheduleFree
from .averaging import ScheduleFree as ScheduleFreeModule
from .clipping import ClipValue as ClipValue
from .clipping import ClipValue as ClipValueModule
from .clipping import L2Clipping as L2Clipping
from .clipping import L2Clipping as L2ClippingModule
from .clipping import L2GlobalClipping as L2GlobalClipping
from .clipping import L2GlobalClipping as L2GlobalClippingModule
from .direction import Cautious as Cautious
from .direction import Cautious as CautiousModule
from .direction import Centralize as Centralize
from .direction import Centralize as CentralizeModule
from .direction import Normalize as Normalize
from .direction import Normalize as NormalizeModule
from .direction import Sign as Sign
from .direction import Sign as SignModule
from .feddyn import FedDynServer as FedDynServer
from .mime import MimeLiteAuxVar as MimeLiteAuxVar
from .mime import MimeLiteClient as MimeLiteClient
from .mime import MimeLiteServer as MimeLiteServer
from .mime import MimeLiteState as MimeLiteState
from .momentum import Decaying as Decaying
from .momentum import Ewma as EWMAModule
from .momentum import Ewma as Ewma
from .momentum import Lion as Lion
from .momentum import Lion as LionModule
from .momentum import Momentum as Momentum
from .momentum import Momentum as MomentumModule
from .momentum import YogiMomentum as YogiMomentum
from .momentum import YogiMomentum as YogiMomentumModule
from .noise import GaussianNoise as GaussianNoise
from .noise import GaussianNoise as GaussianNoiseModule
from .noise import LaplaceNoise as LaplaceNoise
from .noise import LaplaceNoise as LaplaceNoiseModule
from .noise import NoiseModule as NoiseModule
from .scaffold import ScaffoldAuxVar as ScaffoldAuxVar
from .scaffold import ScaffoldClient as ScaffoldClient
from .scaffold import ScaffoldClient as ScaffoldClientModule
from .scaffold import ScaffoldServer as ScaffoldServer
from .scaffold import ScaffoldServer as ScaffoldServerModule
from .scaffold import ScaffoldState as ScaffoldState
from .scaffold import WeightedScaffoldAuxVar as WeightedScaffoldAuxVar
from .trust import Lamb as Lamb
from .trust import Lamb as LambModule
from .trust import Lars as Lars
from .trust import Lars as LarsModule

__all__ = [
    "AdaBelief",
    "AdaBeliefModule",
    "AdaGrad",
    "AdaGradModule",
    "Adam",
    "AdamModule",
    "AdaptiveClippingAuxVar",
    "AdaptiveClippingClient",
    "AdaptiveClippingServer",
    "AdaptiveClippingState",
    "Cautious",
    "CautiousModule",
    "Centralize",
    "CentralizeModule",
    "ClipValue",
    "ClipValueModule",
    "Decaying",
    "EMAWeights",
    "EMAWeightsModule",
    "EWMAModule",
    "Ewma",
    "FedDynServer",
    "GaussianNoise",
    "GaussianNoiseModule",
    "L2Clipping",
    "L2ClippingModule",
    "L2GlobalClipping",
    "L2GlobalClippingModule",
    "Lamb",
    "LambModule",
    "LaplaceNoise",
    "LaplaceNoiseModule",
    "Lars",
    "LarsModule",
    "Lion",
    "LionModule",
    "Lookahead",
    "LookaheadModule",
    "MimeLiteAuxVar",
    "MimeLiteClient",
    "MimeLiteServer",
    "MimeLiteState",
    "MomentsModule",
    "Momentum",
    "MomentumModule",
    "NAdam",
    "NAdamModule",
    "NoiseModule",
    "Normalize",
    "NormalizeModule",
    "RAdam",
    "RAdamModule",
    "RMSProp",
    "RMSPropModule",
    "ScaffoldAuxVar",
    "ScaffoldClient",
    "ScaffoldClientModule",
    "ScaffoldServer",
    "ScaffoldServerModule",
    "ScaffoldState",
    "ScheduleFree",
    "ScheduleFreeModule",
    "Sign",
    "SignModule",
    "WeightedScaffoldAuxVar",
    "Yogi",
    "YogiModule",
    "YogiMomentum",
    "YogiMomentumModule",
]
