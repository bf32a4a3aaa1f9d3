"""The configuration of a `UNet2DModel`, as settings of our `UNet` and back.

Our `UNet` is a part of the library's family: plain and attention blocks, SiLU, one embedding of time, no classes.
Whatever would compute something else is refused by name, and so is a field that is not known; dropout, which acts in
training only, is passed over. Levels are counted from the finest, while the library lists the blocks on the way up from
the coarsest. Twice as many channels out as in mean a learned variance. What is read has shapes in place of weights,
which `weights` puts in.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax

from ..networks import UNet
from ..networks.unet import ComputeType
from .config import Config, complete, count, names, number, require

# What the constructor of UNet2DModel takes, with its defaults.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "sample_size": None,
        "in_channels": 3,
        "out_channels": 3,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (224, 448, 672, 896),
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": 0.0,
        "act_fn": "silu",
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "attn_norm_num_groups": None,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": None,
        "num_train_timesteps": None,
    }
)
_SUPPORTED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "downsample_padding": (0, 1),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "act_fn": ("silu", "swish"),
        "resnet_time_scale_shift": ("default",),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
    }
)
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")


def read_unet(
    config: Mapping[str, Any],
    image_size: tuple[int, int] | None = None,
    compute_dtype: ComputeType | None = None,
) -> UNet:
    """Return the `UNet` that a configuration describes, with `jax.ShapeDtypeStruct`s in place of its weights.

    Dropout is passed over, since it acts in training only.

    Args:
        config: the content of the file.
        image_size: height and width, where they are not those of the file.
        compute_dtype: as for `UNet`.

    Raises:
        ValueError: a field that is unknown, unsupported or of the wrong kind, named; an image that does not divide.
    """
    config = complete(config, ("UNet2DModel",), DEFAULTS)
    require(config, _SUPPORTED)
    channels = [count({"block_out_channels": c}, "block_out_channels") for c in names(config, "block_out_channels")]
    levels = len(channels)
    require(config, {"time_embedding_dim": (None, 4 * channels[0])})
    require(config, {"attn_norm_num_groups": (None, config["norm_num_groups"])})
    head = None if config["attention_head_dim"] is None else count(config, "attention_head_dim")
    settings: Config = {
        "channels": tuple(channels),
        "depth": count(config, "layers_per_block"),
        "attention": _attention(config, "down_block_types", _DOWN, levels),
        "up_attention": tuple(levels - 1 - i for i in _attention(config, "up_block_types", _UP, levels)),
        "mid_attention": bool(config["add_attention"]),
        "head_channels": head,
        "outputs": _outputs(config),
        "num_groups": count(config, "norm_num_groups"),
        "eps": number(config, "norm_eps"),
        "down_padding": (config["downsample_padding"], 1),
        "cosine_first": bool(config["flip_sin_to_cos"]),
        "frequency_shift": count(config, "freq_shift", 0),
        "compute_dtype": compute_dtype,
    }
    colours = count(config, "in_channels")
    size = _image_size(config) if image_size is None else image_size
    event_shape = size if colours == 1 else (*size, colours)
    return eqx.filter_eval_shape(lambda key: UNet(key, event_shape, **settings), jax.random.key(0))


def write_unet(net: UNet) -> Config:
    """Return the configuration that `UNet2DModel` needs to be this network.

    Raises:
        ValueError: a setting for which it has no place.
    """
    if net.activation != "silu":
        raise ValueError(f"activation: expected 'silu', which UNet2DModel has, got {net.activation!r}")
    height, width, *rest = net.event_shape
    colours = rest[0] if rest else 1
    levels = range(len(net.channels))
    return {
        **DEFAULTS,
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": colours,
        "out_channels": net.outputs * colours,
        "freq_shift": net.frequency_shift,
        "flip_sin_to_cos": net.cosine_first,
        "down_block_types": [_DOWN[level in net.attention] for level in levels],
        "up_block_types": [_UP[level in net.up_attention] for level in reversed(levels)],
        "block_out_channels": list(net.channels),
        "layers_per_block": net.depth,
        "downsample_padding": net.down_padding[0],
        "attention_head_dim": net.head_channels,
        "norm_num_groups": net.num_groups,
        "norm_eps": net.eps,
        "add_attention": net.mid_attention,
    }


def _attention(config: Config, field: str, kinds: tuple[str, str], levels: int) -> tuple[int, ...]:
    """Positions of the blocks with attention."""
    found = names(config, field)
    if unknown := sorted({str(kind) for kind in found} - {*kinds}):
        raise ValueError(f"{field}: expected {' or '.join(kinds)}, got {', '.join(unknown)}")
    if len(found) != levels:
        raise ValueError(f"{field}: expected {levels} of them, as block_out_channels has, got {len(found)}")
    return tuple(i for i, kind in enumerate(found) if kind == kinds[1])


def _outputs(config: Config) -> int:
    """1, or 2 where the network says a variance too."""
    inputs, outputs = count(config, "in_channels"), count(config, "out_channels")
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(f"out_channels: expected in_channels, {inputs}, or twice that, got {outputs}")
    return outputs // inputs


def _image_size(config: Config) -> tuple[int, int]:
    match config["sample_size"]:
        case bool():
            pass
        case int(size) if size > 0:
            return size, size
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case None:
            raise ValueError("sample_size: expected the image's size, got none; give image_size=(height, width)")
    raise ValueError(f"sample_size: expected a size or two, got {config['sample_size']!r}")
