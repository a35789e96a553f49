"""Training-time blocks, written to be read: forward only, with torch alone.

Nothing here knows how a block is folded; that the blocks fold is a matter of what they compute. Networks can be built
of them, and they serve as worked examples of the published multi-branch designs.
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
