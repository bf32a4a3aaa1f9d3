"""Networks: modules called as `net(x, t)` on one unbatched example. They know nothing of diffusion."""

from .bump import BumpReadout, Dense
from .context import ContextEmbedding, ContextFeatures, SplineFeatures
from .embedding import sinusoidal
from .layers import ACTIVATIONS
from .mlp import MLP
from .multiscale import MultiScale
from .patched import Patched
from .rbf import RBF
from .series import Series
from .unet import UNET_SIZES, UNet

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "RBF",
    "UNET_SIZES",
    "BumpReadout",
    "ContextEmbedding",
    "ContextFeatures",
    "Dense",
    "MultiScale",
    "Patched",
    "Series",
    "SplineFeatures",
    "UNet",
    "sinusoidal",
]
