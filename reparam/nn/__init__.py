"""Training-time blocks of published multi-branch networks, in plain torch.

Take numbers of channels and a geometry. Give modules for training, whose forward is the published one. They import
nothing else of the package, have no deploy mode and do not know that they fold: they fold because of what they compute,
like any block of a user. `draw_statistics` and `draw_constants` give untrained models the numbers of trained ones.
"""

from reparam.nn.acnet import ACBlock
from reparam.nn.dbb import DiverseBranchBlock
from reparam.nn.demo import demo_network
from reparam.nn.identity_conv import IdentityBasedConv1x1
from reparam.nn.mobileone import MobileOneBlock
from reparam.nn.padded_norm import PaddedBatchNorm2d
from reparam.nn.repvgg import RepVGGBlock
from reparam.nn.statistics import draw_constants, draw_statistics

__all__ = [
    "ACBlock",
    "DiverseBranchBlock",
    "IdentityBasedConv1x1",
    "MobileOneBlock",
    "PaddedBatchNorm2d",
    "RepVGGBlock",
    "demo_network",
    "draw_constants",
    "draw_statistics",
]
