"""Tiny models of any architecture: configs shrunk, weights that hide nothing, inputs that fit."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import by_layer, keep_layers_, names_tokens
from hf_pe.anatomy.discover import AXIS_OF_FIELD, DEPTHS

CHARACTERS = 128
"""Tokens where a config counts none (CANINE reads characters)."""
IMAGE = 128
"""Pixels a side where a config does not say."""
SOUND = 15360
"""Samples: a multiple of all powers of two up to 1024, of 3 and of 5."""
GRID = 4
"""Patches a side of an image whose patches keep their size."""
LARGE = 512
"""Pixels a side from which an image is made smaller where widths are not: to a grid of patches, else to a sixteenth."""
TINY = {
    "ffn": 24,
    "heads": 4,
    "hidden": 32,
    "vocabulary": 99,
    "experts": 4,
    "expert_ffn": 16,
}
TINY_FIELDS = {
    "head_dim": 8,
    "d_kv": 8,
    "rotary_dim": 4,
    "decoder_vocab_size": 99,
    "vocab_size_per_layer_input": 99,
    "hidden_size_per_layer_input": 16,
    "global_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_source_positions": 32,
    "max_target_positions": 32,
    "num_mel_bins": 8,
    "image_size": 32,
    "patch_size": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
    "local_attention": 6,
    "pooler_output_size": 32,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "first_k_dense_replace": 1,
    "topk_group": 1,
    "upsample_groups": 32,
    "upsample_initial_channel": 64,
    "d_head": 8,
    "context_size": 8,
    "max_2d_position_embeddings": 64,
    "entity_vocab_size": 99,
    "entity_emb_size": 12,
    "codebook_size": 64,
    "t2u_vocab_size": 99,
    "unit_hifi_gan_vocab_size": 99,
    "encoder_hash_byte_group_vocab": 50,
    "true_hidden_size": 128,
    "qk_head_dim": 16,
    "word_embed_proj_dim": 32,
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "n_groups": 2,
    "state_size": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "num_filters": 4,
    "zero_expert_num": 4,
    "moe_topk": 2,
    "d_latents": 32,
    "num_latents": 16,
    "num_self_attends_per_block": 2,
    "pred_num_attention_heads": 4,
    "frames_per_clip": 4,
    "feedforward_size": 24,
    "image_embedding_size": GRID,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}


def tiny(config: PretrainedConfig, *, depth: bool = False, sections: tuple[int, ...] = ()) -> PretrainedConfig:
    """Shrink every size field of `config` but keep all that shapes the computation; two layers unless `depth`.

    `sections` are of rotations in three parts, which have to add up to half of the head size.
    """
    new = copy.deepcopy(config)
    _shrink(new, depth)
    if sections:
        text = new.get_text_config()
        text.rope_parameters = {**text.rope_parameters, "mrope_section": list(sections)}
    return type(config).from_dict(new.to_dict())


SECTIONS = (2, 1, 1), (1, 1, 0), (1, 0, 0)
"""Of a rotation in three parts, where all of a small head is rotated, a half or a quarter."""
DEEPEST = 4
"""Layers of a stage, where a list tells them."""
LARGEST = 130_000_000
"""Parameters up to which a model is run where a smaller one cannot be."""


def instances(config: PretrainedConfig, *, depth: bool = False) -> Iterator[tuple[PretrainedConfig, bool]]:
    """Small configs of the same architecture, the smallest first: `tiny`, then with its own widths, at first with small
    images, then as it is.

    What belongs together in a config is not always told: a narrower one may be none, and is left out. With each comes
    whether it is the one before with its rotation in other parts, which only helps where that could not be run.
    """

    def as_wide(*more: str) -> PretrainedConfig:
        new = copy.deepcopy(config)
        _shrink(new, depth, only=("layers", "vocabulary", *more))
        return type(config).from_dict(new.to_dict())

    rope = config.get_text_config().to_dict().get("rope_parameters") or {}
    parts = SECTIONS if "rope_theta" in rope else ()
    ways: list[tuple[Callable[[], PretrainedConfig], bool]] = [
        (lambda: tiny(config, depth=depth), False),
        *((functools.partial(tiny, config, depth=depth, sections=each), True) for each in parts),
        (lambda: as_wide("images"), False),
        (as_wide, False),
        (lambda: copy.deepcopy(config), False),
    ]
    last = None
    for way, again in ways:
        try:
            small = way()
        except Exception:  # a config may refuse with anything
            continue
        if last is None or small.to_dict() != last.to_dict():
            yield small, again
        last = small


def lively(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Redraw all parameters so that nothing is zero: vectors around 1, biases around 0, matrices by fan-in."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim > 1:
            owner = model.get_submodule(name.rpartition(".")[0])
            stacked = parameter.ndim == 3 and not isinstance(owner, nn.Conv1d)  # one matrix for each expert
            noise *= (min(parameter.shape[1:]) if stacked else parameter[0].numel()) ** -0.5 * 1.5
        elif name.endswith("bias"):
            noise *= 0.3
        else:
            noise = 1 + 0.2 * noise
        parameter.data = noise.to(parameter)
    model.eval().float()
    return model


def example_inputs(
    model: PreTrainedModel,
    *,
    batch: int = 2,
    length: int = 12,
    seed: int = 0,
    device: str | torch.device | None = None,
    pixels: Any = None,
) -> dict[str, torch.Tensor]:
    """Random inputs that fit `model`, read off its config and what its forward asks for; on `device`, default its own.

    Both of two towers are fed; a model that can read images or sounds in a text gets a text. Images have the config's
    size, else `pixels` a side (or [height, width]), else `IMAGE`.
    """
    config = model.config
    if pixels is not None and image_size(config) is None:
        config = copy.copy(config)
        config.image_size = pixels
    takes = inspect.signature(model.forward).parameters
    needed = {n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    names = {model.main_input_name, *needed}
    if model.main_input_name == "input_ids" and not any(hasattr(config, name) for name in PLACEHOLDERS):
        names |= set(takes) & {"pixel_values", "input_features", "input_values"}  # two towers
    text = isinstance(_named(config, "vocab_size"), int)
    if text and "input_ids" in takes and "decoder_input_ids" not in takes:
        names.add("input_ids")
    for name, others in BESIDE.items():
        names |= {*others} if name in names else set()
    draw = torch.Generator().manual_seed(seed)
    made = _INPUTS | next((dict.fromkeys(PATCHED, make) for name, make in IN_PATCHES.items() if name in names), {})
    inputs = {name: made[name](config, batch, length, draw) for name in takes if name in names & {*made}}
    if "input_ids" in inputs and "attention_mask" in takes:
        inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
    if "input_features" in inputs and "input_features_mask" in takes:
        inputs["input_features_mask"] = torch.ones(batch, inputs["input_features"].shape[-1], dtype=torch.long)
    if config.is_encoder_decoder and hasattr(config.get_text_config(), "vocab_size"):  # a detector decodes boxes
        inputs["decoder_input_ids"] = _tokens(config, batch, min(length, 8), draw)
        inputs = ended(inputs, type(model), config)
    return {name: tensor.to(device or model.device) for name, tensor in inputs.items()}


def ended(
    inputs: dict[str, torch.Tensor], model_class: type[PreTrainedModel], config: PretrainedConfig
) -> dict[str, torch.Tensor]:
    """Return inputs in which each text has one end, its last token, where a decoder reads the text too and its state at
    the end is classified (BART, T5); others as they are."""
    end = config.get_text_config().eos_token_id
    classifies = config.is_encoder_decoder and model_class.__name__.endswith("ForSequenceClassification")
    if not classifies or "input_ids" not in inputs or not isinstance(end, int):
        return inputs
    tokens = inputs["input_ids"]
    tokens = tokens.masked_fill(tokens == end, end - 1 if end else 1)
    tokens[:, -1] = end
    return {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"} | {"input_ids": tokens}


def reads(model_class: type[PreTrainedModel]) -> str:
    """The name of what a model takes, and whether images come in patches."""
    takes = inspect.signature(model_class.forward).parameters
    return model_class.main_input_name + (" in patches" if IN_PATCHES.keys() & takes else "")


def possible_inputs(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs to try, the likeliest first: which way a spectrogram lies is not told, nor whether a sound has channels
    or a patch is flat, nor what else a forward cannot do without."""
    inputs = example_inputs(model)
    yield inputs
    if "input_features" in inputs:
        yield inputs | {"input_features": inputs["input_features"].mT.contiguous()}
    if "input_values" in inputs and inputs["input_values"].ndim == 2:
        yield inputs | {"input_values": inputs["input_values"][:, None]}
    for name in PATCHED if any(name in inputs for name in IN_PATCHES) else ():
        if name in inputs and inputs[name].ndim == 2:
            side = _first(model.config, "patch_size", default=1)
            yield inputs | {name: inputs[name].reshape(len(inputs[name]), -1, side, side)}
    takes = inspect.signature(model.forward).parameters
    draw = torch.Generator().manual_seed(0)
    batch = len(next(iter(inputs.values()), ()))
    more = {
        name: make(model.config, batch, 12, draw) for name, make in _OPTIONAL.items() if name in {*takes} - {*inputs}
    }
    if more:
        yield inputs | {name: tensor.to(model.device) for name, tensor in more.items()}


PLACEHOLDERS = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "video_token_id")
"""Fields of models that read images or sounds in the place of tokens, and texts without them."""


def _named(config: Any, name: str) -> Any:
    """A value of the config, else of one of its parts; None where there is none."""
    own = vars(config).get(name)
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    return next((v for v in (own, *(_named(part, name) for part in parts)) if v is not None), None)


def _first(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these values that the config knows."""
    return next((v for name in names if (v := _named(config, name)) is not None), default)


def image_size(config: PretrainedConfig) -> Any:
    """Pixels a side, or [height, width], where the config says it: those of plain convolutional nets need not."""
    return _first(config, "image_size", "input_size")


def processor_size(processor: Any) -> int | list[int] | None:
    """Return the size that an image processor gives every image: pixels a side, or [height, width].

    None where it makes no images, or leaves them different sizes (a detector's, between a shortest and a longest edge).
    """
    maker = getattr(processor, "image_processor", processor)
    timm = getattr(maker, "data_config", None)
    if isinstance(timm, dict) and "input_size" in timm:
        return _one_side(*timm["input_size"][-2:])
    if getattr(maker, "do_center_crop", None) and getattr(maker, "crop_size", None):
        return _side(maker.crop_size)
    return _side(getattr(maker, "size", None)) if getattr(maker, "do_resize", False) else None


def _side(size: Any) -> int | list[int] | None:
    """Return what a processor's size says, which is a number of pixels or a dict of heights, widths and edges."""
    if isinstance(size, int):
        return size
    told = dict(size) if size is not None else {}
    if told.get("height") and told.get("width"):
        return _one_side(told["height"], told["width"])
    return told.get("shortest_edge") if told.get("longest_edge") is None else None


def _one_side(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _tokens(config: PretrainedConfig, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    size = getattr(config.get_text_config(), "vocab_size", None) or _named(config, "vocab_size") or CHARACTERS
    return torch.randint(min(6, size - 1), size, (batch, length), generator=draw)


def _image(config: PretrainedConfig, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[batch, channels, height, width]; with frames before the channels where the config has some."""
    size = image_size(config) or IMAGE
    side = size if isinstance(size, (list, tuple)) else [size] * 2
    frames = [n] if isinstance(n := _first(config, "num_frames", "frames_per_clip"), int) else []
    return torch.randn(batch, *frames, _named(config, "num_channels") or 3, *side, generator=draw)


def _sound(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """A second, cut to what codecs take at once, in channels where the config counts them; or a spectrogram where it
    knows its bins."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return torch.randn(batch, config.max_length, config.num_mel_bins, generator=draw)
    channels = [config.audio_channels] if hasattr(config, "audio_channels") else []
    return torch.randn(batch, *channels, SOUND, generator=draw)


def _spectrogram(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[batch, bins, frames], or [batch, frames, features] where the config says features."""
    positions = _named(config, "max_source_positions")
    for field in ("feature_projection_input_dim", "input_feat_per_channel", "input_dim"):
        if features := _named(config, field):
            return torch.randn(batch, 64, features, generator=draw)
    return torch.randn(batch, _named(config, "num_mel_bins") or 80, 2 * positions if positions else 64, generator=draw)


def _states(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(batch, length, _named(config, "hidden_size"), generator=draw)


def _context(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    width = _first(config, "encoder_hidden_size", "cross_attention_hidden_size", "hidden_size")
    return torch.randn(batch, length, width, generator=draw)


def _boxes(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 9, (batch, length, 4), generator=draw)


def _patches(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[patches of all images, values of each]."""
    depth = _first(config, "temporal_patch_size", "patch_temporal", default=1)
    values = _first(config, "in_channels", "num_channels", default=3) * depth * _named(config, "patch_size") ** 2
    return torch.randn(batch * GRID**2, values, generator=draw)


def _patches_by_image(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[batch, patches, values of each]."""
    return _patches(config, batch, length, draw).reshape(batch, GRID**2, -1)


def _grid(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Frames, height and width of each image in patches."""
    return torch.tensor([[1, GRID, GRID]] * batch)


def _places(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Column and row of each patch."""
    return torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).expand(batch, -1, -1)


def _series(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[batch, time], with channels behind where the config counts them."""
    if lags := _named(config, "lags_sequence"):
        return torch.randn(batch, config.context_length + max(lags), generator=draw)
    channels = [n] if (n := _named(config, "num_input_channels")) else []
    return torch.randn(batch, config.context_length if channels else 64, *channels, generator=draw)


def _series_features(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    steps = _series(config, batch, length, draw).shape[1]
    return torch.randn(batch, steps, _named(config, "num_time_features") or 0, generator=draw)


def _future(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(batch, config.prediction_length, generator=draw)


def _future_features(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(batch, config.prediction_length, _named(config, "num_time_features") or 0, generator=draw)


_INPUTS: dict[str, Callable[[Any, int, int, torch.Generator], torch.Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "qformer_input_ids": _tokens,
    "pixel_values": _image,
    "pixel_values_videos": _image,
    "prompt_pixel_values": _image,
    "prompt_masks": _image,
    "input_values": _sound,
    "input_features": _spectrogram,
    "hidden_states": _states,
    "query_embeds": _states,
    "inputs_embeds": _states,
    "encoder_hidden_states": _context,
    "bbox": _boxes,
    "latents": lambda config, batch, length, draw: _states(config, batch, length, draw).mT,
    "past_values": _series,
    "past_observed_mask": lambda *told: torch.ones_like(_series(*told)),
    "past_values_padding": lambda *told: torch.zeros_like(_series(*told)),
    "past_time_features": _series_features,
    "future_values": _future,
    "future_time_features": _future_features,
    "freq": lambda config, batch, length, draw: torch.zeros(batch, 1, dtype=torch.long),
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "merge_sizes": lambda config, batch, length, draw: torch.ones(batch, dtype=torch.long),
    "spatial_shapes": lambda *told: _grid(*told)[:, 1:],
    "pixel_attention_mask": lambda config, batch, length, draw: torch.ones(batch, GRID**2, dtype=torch.long),
    "pixel_position_ids": _places,
}
"""What models ask for, by the name that their forward gives it."""

PATCHED = ("pixel_values", "hidden_states")
IN_PATCHES = {
    "grid_thw": _patches,
    "image_grid_thw": _patches,
    "spatial_shapes": _patches_by_image,
    "pixel_position_ids": _patches_by_image,
}
"""What a forward asks for that takes images as patches, and how they lie."""
_OPTIONAL: dict[str, Callable[[Any, int, int, torch.Generator], torch.Tensor]] = {
    "bbox": _boxes,
    "encoder_hidden_states": _context,
    "lang_ids": lambda config, batch, length, draw: torch.zeros(batch, dtype=torch.long),
    "visual_feats": lambda config, batch, length, draw: torch.randn(
        batch, length, _first(config, "visual_feat_dim", default=8), generator=draw
    ),
    "visual_pos": lambda config, batch, length, draw: torch.rand(batch, length, 4, generator=draw),
}
"""What some forwards cannot do without, although they say so nowhere."""
BESIDE = {"past_time_features": ("future_values", "future_time_features")}
"""What a forward wants although it names it optional, where it needs the other."""


def outputs_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All floating-point tensors of the model's output, in order; what it draws at random is always the same."""
    return tensors_of(result_of(model, inputs))


def result_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Any:
    """Return the output of a model without gradients; what it draws at random is always the same."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model(**inputs, **no_cache(model))


def tensors_of(result: Any) -> list[torch.Tensor]:
    """All floating-point tensors of a model's output, in order."""
    parts = result.values() if hasattr(result, "values") else result if isinstance(result, tuple) else [result]
    found = [v for v in parts if isinstance(v, torch.Tensor) and v.is_floating_point()]
    inside = (v for part in parts if isinstance(part, tuple) for v in part)  # MGP-STR gives nothing else
    return found or [v for v in inside if isinstance(v, torch.Tensor) and v.is_floating_point()]


def no_cache(model: PreTrainedModel) -> dict[str, bool]:
    """What to pass beside the inputs so that `model` keeps no cache; nothing where it has none."""
    keeps = model.config.get_text_config().to_dict().get("use_cache")
    return {"use_cache": False} if keeps else {}


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest absolute difference, relative to the largest magnitude, over all outputs.

    Infinities of the same sign at the same places are equal: models mask logits with them. Whatever cannot be compared
    gives NaN, which is neither small nor large. Callers state what they require (`not difference(...) <= tolerance`),
    so that NaN fails.

    Args:
        one: outputs that set the scale.
        other: outputs on the same device.

    Returns:
        0.0 for equal outputs; NaN where their number or shapes differ, there are none, or any value is not finite.
    """
    if not one or len(one) != len(other):
        return math.nan
    gaps = [_relative_gap(a, b) for a, b in zip(one, other, strict=True)]
    return max(gaps) if all(math.isfinite(gap) for gap in gaps) else math.nan


def _relative_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of one pair of tensors; not finite where they cannot be compared."""
    if one.shape != other.shape:
        return math.nan
    if not one.numel():
        return 0.0
    a, b = one.float(), other.float()
    masked = a.isinf() & (a == b)
    gap, scale = (a - b).masked_fill(masked, 0).abs().max(), a.masked_fill(masked, 0).abs().max()
    return float(gap / scale.clamp_min(1e-12))


def _shrink(config: PretrainedConfig, depth: bool, only: tuple[str, ...] | None = None) -> None:
    """In place; with `only`, these axes and what goes with them."""
    kv = vars(config).get("num_key_value_heads")  # asking for what differs between layers raises
    layers = None
    told = config.to_dict()
    for field, value in told.items():
        sub = vars(config).get(field)
        if isinstance(sub, PretrainedConfig):
            _shrink(sub, depth, only)
            continue
        if field in DEPTHS and isinstance(value, list):
            if any(key.endswith("_blocks") and isinstance(each, list) for key, each in told.items()):
                continue  # which name some of them by number
            setattr(config, field, [min(each, DEEPEST) for each in value])
            continue
        if field == "backbone_feature_sizes":  # of maps of an image, the last of which has its patches
            setattr(config, field, [[side * GRID // value[-1][-1] for side in each] for each in value])
            continue
        if field == "image_size" and isinstance(value, list) and min(value) >= LARGE:
            setattr(config, field, [side // 16 for side in value])
            continue
        axis = AXIS_OF_FIELD.get(field)
        if axis == "layers" and any(
            key in DEPTHS and isinstance(v, list) and len(v) == value for key, v in told.items()
        ):
            continue  # stages
        if axis == "hidden" and any(isinstance(each, list) and each[:1] == [value] for each in told.values()):
            continue  # of the first of some stages, whose widths stay
        ids = names_tokens(field)
        if ids and isinstance(value, (list, dict)):
            setattr(config, field, _token(value))
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        patch = vars(config).get("patch_size")
        if only and field == "image_size" and isinstance(patch, int) and ("images" in only or value >= LARGE):
            setattr(config, field, min(value, GRID * patch))
            continue
        if only and not ids and axis not in only and field != "image_embedding_size":
            continue
        if axis == "layers" and not depth:
            layers, new = value, min(value, 2)
        elif axis in ("heads", "kv_groups"):
            fewest = kv if isinstance(kv, int) else value
            new = 1 << (min(fewest, TINY["heads"]).bit_length() - 1)  # a power of two divides the hidden width
            if axis == "heads" and isinstance(kv, int) and value > kv:
                new *= 2
        else:
            follows = TINY["hidden"] if field.endswith("hidden_size") else value
            new = TINY.get(axis or "", TINY_FIELDS.get(field, follows))
            if field == "embed_dim" and isinstance(heads := vars(config).get("num_heads"), (list, tuple)):
                new = heads[0] * TINY_FIELDS["head_dim"]
        setattr(config, field, _token(value) if ids else min(value, new))
    told = config.to_dict()
    if isinstance(told.get("expand"), int) and {"num_heads", "head_dim"} <= told.keys() and not only:  # Mamba 2
        config.head_dim = told["expand"] * told["hidden_size"] // told["num_heads"]
    if layers is None or layers <= 2:
        return
    lists = [v for v in config.to_dict().values() if isinstance(v, list) and len(v) == layers]
    named = [int(key) for v in config.to_dict().values() if by_layer(v) for key in v]
    other = next((i for each in lists for i in range(layers) if each[i] != each[0]), (named or [layers - 1])[0])
    keep_layers_(config, layers, [0, other])


def _token(value: Any) -> Any:
    """A token id within the tiny vocabulary; of lists and dicts of ids all of them."""
    if isinstance(value, dict):
        return {_token(key): _token(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_token(each) for each in value)
    return value % 5 if isinstance(value, int) and value >= TINY["vocabulary"] else value
