"""Inputs that fit a model of any architecture, with random values."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.dummies.fields import GRID
from hf_pe.dummies.sizes import config_size, first_value, image_size

CHARACTERS = 128
"""Tokens where a config counts none (CANINE reads characters)."""
IMAGE = 128
"""Pixels a side where a config does not say."""
SOUND = 15360
"""Samples: a multiple of all powers of two up to 1024, of 3 and of 5."""


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
    text = isinstance(config_size(config, "vocab_size"), int)
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
            side = first_value(model.config, "patch_size", default=1)
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


def _tokens(config: PretrainedConfig, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    size = getattr(config.get_text_config(), "vocab_size", None) or config_size(config, "vocab_size") or CHARACTERS
    return torch.randint(min(6, size - 1), size, (batch, length), generator=draw)


def _image(config: PretrainedConfig, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[batch, channels, height, width]; with frames before the channels where the config has some."""
    size = image_size(config) or IMAGE
    side = size if isinstance(size, (list, tuple)) else [size] * 2
    frames = [n] if isinstance(n := first_value(config, "num_frames", "frames_per_clip"), int) else []
    return torch.randn(batch, *frames, config_size(config, "num_channels") or 3, *side, generator=draw)


def _sound(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """A second, cut to what codecs take at once, in channels where the config counts them; or a spectrogram where it
    knows its bins."""
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return torch.randn(batch, config.max_length, config.num_mel_bins, generator=draw)
    channels = [config.audio_channels] if hasattr(config, "audio_channels") else []
    return torch.randn(batch, *channels, SOUND, generator=draw)


def _spectrogram(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[batch, bins, frames], or [batch, frames, features] where the config says features."""
    positions = config_size(config, "max_source_positions")
    for field in ("feature_projection_input_dim", "input_feat_per_channel", "input_dim"):
        if features := config_size(config, field):
            return torch.randn(batch, 64, features, generator=draw)
    return torch.randn(
        batch, config_size(config, "num_mel_bins") or 80, 2 * positions if positions else 64, generator=draw
    )


def _states(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(batch, length, config_size(config, "hidden_size"), generator=draw)


def _context(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    width = first_value(config, "encoder_hidden_size", "cross_attention_hidden_size", "hidden_size")
    return torch.randn(batch, length, width, generator=draw)


def _boxes(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 9, (batch, length, 4), generator=draw)


def _patches(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """[patches of all images, values of each]."""
    depth = first_value(config, "temporal_patch_size", "patch_temporal", default=1)
    values = (
        first_value(config, "in_channels", "num_channels", default=3) * depth * config_size(config, "patch_size") ** 2
    )
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
    if lags := config_size(config, "lags_sequence"):
        return torch.randn(batch, config.context_length + max(lags), generator=draw)
    channels = [n] if (n := config_size(config, "num_input_channels")) else []
    return torch.randn(batch, config.context_length if channels else 64, *channels, generator=draw)


def _series_features(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    steps = _series(config, batch, length, draw).shape[1]
    return torch.randn(batch, steps, config_size(config, "num_time_features") or 0, generator=draw)


def _future(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(batch, config.prediction_length, generator=draw)


def _future_features(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(batch, config.prediction_length, config_size(config, "num_time_features") or 0, generator=draw)


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
        batch, length, first_value(config, "visual_feat_dim", default=8), generator=draw
    ),
    "visual_pos": lambda config, batch, length, draw: torch.rand(batch, length, 4, generator=draw),
}
"""What some forwards cannot do without, although they say so nowhere."""
BESIDE = {"past_time_features": ("future_values", "future_time_features")}
"""What a forward wants although it names it optional, where it needs the other."""
