"""Lists compact backbones by name, with the sizes that their papers give."""

from typing import Any, Literal, NamedTuple

Kind = Literal["pixel_values", "input_ids"]


class Preset(NamedTuple):
    """Describe a compact architecture.

    Attributes:
        model_type: its name in transformers.
        config: values that differ from the defaults of that type.
        reference: link to the paper.
        kind: name of its main input.
    """

    model_type: str
    config: dict[str, Any]
    reference: str
    kind: Kind = "pixel_values"


def _efficientnet(width: float, depth: float, size: int, dropout: float) -> Preset:
    """Return a preset that scales width, depth and resolution (Tan and Le 2019, arXiv:1905.11946, section 3.3)."""
    config = {"width_coefficient": width, "depth_coefficient": depth, "image_size": size}
    momentum = {"batch_norm_momentum": 0.1}  # transformers' default of 0.99 keeps the last batch's statistics only
    return Preset("efficientnet", config | {"dropout_rate": dropout} | momentum, "https://arxiv.org/abs/1905.11946")


def _mobilevit(hidden: tuple[int, ...], neck: tuple[int, ...], expand: float) -> Preset:
    config = {"hidden_sizes": list(hidden), "neck_hidden_sizes": list(neck), "expand_ratio": expand}
    return Preset("mobilevit", config, "https://arxiv.org/abs/2110.02178")


def _resnet(depths: tuple[int, ...], hidden: tuple[int, ...] = (64, 128, 256, 512)) -> Preset:
    config = {"depths": list(depths), "hidden_sizes": list(hidden), "layer_type": "basic"}
    return Preset("resnet", config, "https://arxiv.org/abs/1512.03385")


def _convnext(depths: tuple[int, ...], hidden: tuple[int, ...], paper: str, model_type: str) -> Preset:
    return Preset(model_type, {"depths": list(depths), "hidden_sizes": list(hidden)}, paper)


def _bert(layers: int, width: int, heads: int, ffn: int, paper: str) -> Preset:
    config = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
    }
    return Preset("bert", config, paper, "input_ids")


_V1, _V2 = "https://arxiv.org/abs/1704.04861", "https://arxiv.org/abs/1801.04381"
_COMPACT, _TINY = "https://arxiv.org/abs/1908.08962", "https://arxiv.org/abs/1909.10351"
_MINILM, _NEXT = "https://arxiv.org/abs/2002.10957", "https://arxiv.org/abs/2301.00808"

PRESETS: dict[str, Preset] = {
    **{f"mobilenet_v1_{m}": Preset("mobilenet_v1", {"depth_multiplier": m}, _V1) for m in (0.25, 0.5, 0.75, 1.0)},
    **{f"mobilenet_v2_{m}": Preset("mobilenet_v2", {"depth_multiplier": m}, _V2) for m in (0.35, 0.5, 0.75, 1.0, 1.4)},
    "efficientnet_b0": _efficientnet(1.0, 1.0, 224, 0.2),
    "efficientnet_b1": _efficientnet(1.0, 1.1, 240, 0.2),
    "efficientnet_b2": _efficientnet(1.1, 1.2, 260, 0.3),
    "efficientnet_b3": _efficientnet(1.2, 1.4, 300, 0.3),
    "efficientnet_b4": _efficientnet(1.4, 1.8, 380, 0.4),
    "efficientnet_b5": _efficientnet(1.6, 2.2, 456, 0.4),
    "efficientnet_b6": _efficientnet(1.8, 2.6, 528, 0.5),
    "efficientnet_b7": _efficientnet(2.0, 3.1, 600, 0.5),
    "mobilevit_xxs": _mobilevit((64, 80, 96), (16, 16, 24, 48, 64, 80, 320), 2.0),
    "mobilevit_xs": _mobilevit((96, 120, 144), (16, 32, 48, 64, 80, 96, 384), 4.0),
    "mobilevit_s": _mobilevit((144, 192, 240), (16, 32, 64, 96, 128, 160, 640), 4.0),
    **{
        f"mobilevit_v2_{m}": Preset("mobilevitv2", {"width_multiplier": m}, "https://arxiv.org/abs/2206.02680")
        for m in (0.5, 0.75, 1.0)
    },
    "resnet_10": _resnet((1, 1, 1, 1)),
    "resnet_14_half": _resnet((1, 1, 2, 2), (32, 64, 128, 256)),
    "resnet_18": _resnet((2, 2, 2, 2)),
    "convnext_v2_atto": _convnext((2, 2, 6, 2), (40, 80, 160, 320), _NEXT, "convnextv2"),
    "convnext_v2_femto": _convnext((2, 2, 6, 2), (48, 96, 192, 384), _NEXT, "convnextv2"),
    "convnext_v2_pico": _convnext((2, 2, 6, 2), (64, 128, 256, 512), _NEXT, "convnextv2"),
    "bert_tiny": _bert(2, 128, 2, 512, _COMPACT),
    "bert_mini": _bert(4, 256, 4, 1024, _COMPACT),
    "bert_small": _bert(4, 512, 8, 2048, _COMPACT),
    "bert_medium": _bert(8, 512, 8, 2048, _COMPACT),
    "tinybert_4": _bert(4, 312, 12, 1200, _TINY),
    "tinybert_6": _bert(6, 768, 12, 3072, _TINY),
    "minilm_6": _bert(6, 384, 12, 1536, _MINILM),
    "minilm_12": _bert(12, 384, 12, 1536, _MINILM),
    "distilbert": Preset("distilbert", {}, "https://arxiv.org/abs/1910.01108", "input_ids"),
    "mobilebert": Preset("mobilebert", {}, "https://arxiv.org/abs/2004.02984", "input_ids"),
}
"""The presets by name; a recipe may change any value by `config`."""
