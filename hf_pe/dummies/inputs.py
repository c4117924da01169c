"""Makes random inputs that fit a model of any architecture, from its config and the signature of its forward method."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.dummies.fields import GRID
from hf_pe.dummies.sizes import config_size, first_value, image_size

DUMMY_VOCABULARY = 128
"""Number of token ids where a config has no vocabulary size (CANINE reads characters)."""
DUMMY_PIXELS = 128
"""Pixels a side where a config does not state the image size."""
DUMMY_AUDIO_SAMPLES = 15360
"""Samples of a waveform: a multiple of all powers of two up to 1024, of 3 and of 5."""


def example_inputs(
    model: PreTrainedModel,
    *,
    batch: int = 2,
    length: int = 12,
    seed: int = 0,
    device: str | torch.device | None = None,
    pixels: Any = None,
) -> dict[str, torch.Tensor]:
    """Return random inputs that fit `model`, by the names of its forward method's parameters.

    A model with two towers gets inputs for both; a language model that can read images or audio in its text gets text
    alone.

    Args:
        model: on any device.
        batch: number of examples.
        length: tokens a text.
        seed: of the random values.
        device: of the inputs; default: the model's.
        pixels: a side, or [height, width], of images whose size the config does not state; default: `DUMMY_PIXELS`.
    """
    config = model.config
    if pixels is not None and image_size(config) is None:
        config = copy.copy(config)
        config.image_size = pixels
    parameters = inspect.signature(model.forward).parameters
    required = {n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    names = {model.main_input_name, *required}
    if model.main_input_name == "input_ids" and not any(hasattr(config, name) for name in PLACEHOLDERS):
        names |= set(parameters) & {"pixel_values", "input_features", "input_values"}  # two towers
    has_text = isinstance(config_size(config, "vocab_size"), int)
    if has_text and "input_ids" in parameters and "decoder_input_ids" not in parameters:
        names.add("input_ids")
    for name, companions in REQUIRED_WITH.items():
        names |= {*companions} if name in names else set()
    draw = torch.Generator().manual_seed(seed)
    in_patches = next((dict.fromkeys(PATCHED, make) for name, make in IN_PATCHES.items() if name in names), {})
    makers = _INPUTS | in_patches
    inputs = {name: makers[name](config, batch, length, draw) for name in parameters if name in names & {*makers}}
    if "input_ids" in inputs and "attention_mask" in parameters:
        inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
    if "input_features" in inputs and "input_features_mask" in parameters:
        inputs["input_features_mask"] = torch.ones(batch, inputs["input_features"].shape[-1], dtype=torch.long)
    if config.is_encoder_decoder and hasattr(config.get_text_config(), "vocab_size"):  # a detector decodes boxes
        inputs["decoder_input_ids"] = _tokens(config, batch, min(length, 8), draw)
        inputs = with_end_token(inputs, type(model), config)
    return {name: tensor.to(device or model.device) for name, tensor in inputs.items()}


def with_end_token(
    inputs: dict[str, torch.Tensor], model_class: type[PreTrainedModel], config: PretrainedConfig
) -> dict[str, torch.Tensor]:
    """Return inputs whose texts end with the end token, and have no other, for models that classify its state.

    These are encoder-decoders with a classification head (BART, T5), which take no decoder inputs. Inputs of other
    models are returned as they are.
    """
    end = getattr(config.get_text_config(), "eos_token_id", None)
    classifies = config.is_encoder_decoder and model_class.__name__.endswith("ForSequenceClassification")
    if not classifies or "input_ids" not in inputs or not isinstance(end, int):
        return inputs
    tokens = inputs["input_ids"]
    tokens = tokens.masked_fill(tokens == end, end - 1 if end else 1)
    tokens[:, -1] = end
    return {name: tensor for name, tensor in inputs.items() if name != "decoder_input_ids"} | {"input_ids": tokens}


def input_kind(model_class: type[PreTrainedModel]) -> str:
    """Return the name of a model's main input, with " in patches" where its forward method takes images as patches."""
    parameters = inspect.signature(model_class.forward).parameters
    return model_class.main_input_name + (" in patches" if IN_PATCHES.keys() & parameters else "")


def possible_inputs(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs to try one after the other, the likeliest first.

    Neither config nor signature states which dimension of a spectrogram is time, whether a waveform has channels or a
    patch is flat, and which optional parameters a forward method cannot do without.
    """
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
    parameters = {*inspect.signature(model.forward).parameters}
    draw = torch.Generator().manual_seed(0)
    batch = len(next(iter(inputs.values()), ()))
    optional = {
        name: make(model.config, batch, 12, draw) for name, make in _OPTIONAL.items() if name in parameters - {*inputs}
    }
    if optional:
        yield inputs | {name: tensor.to(model.device) for name, tensor in optional.items()}


PLACEHOLDERS = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "video_token_id")
"""Config fields of models that read images or audio in the place of tokens, and also texts without any."""


def _tokens(config: PretrainedConfig, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    vocab_size = getattr(config.get_text_config(), "vocab_size", None) or config_size(config, "vocab_size")
    size = vocab_size or DUMMY_VOCABULARY
    return torch.randint(min(6, size - 1), size, (batch, length), generator=draw)


def _image(config: PretrainedConfig, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return [batch, channels, height, width], with frames before the channels where the config has some."""
    size = image_size(config) or DUMMY_PIXELS
    side = size if isinstance(size, (list, tuple)) else [size] * 2
    frames = [n] if isinstance(n := first_value(config, "num_frames", "frames_per_clip"), int) else []
    return torch.randn(batch, *frames, config_size(config, "num_channels") or 3, *side, generator=draw)


def _sound(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return a waveform of about a second, [batch, samples], with channels before the samples if the config has some.

    Where the config has mel bins and a length it is a spectrogram, [batch, frames, bins].
    """
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return torch.randn(batch, config.max_length, config.num_mel_bins, generator=draw)
    channels = [config.audio_channels] if hasattr(config, "audio_channels") else []
    return torch.randn(batch, *channels, DUMMY_AUDIO_SAMPLES, generator=draw)


def _spectrogram(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return [batch, bins, frames], or [batch, frames, features] where the config has a number of features."""
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
    """Return [patches of all images, values of a patch]."""
    depth = first_value(config, "temporal_patch_size", "patch_temporal", default=1)
    values = (
        first_value(config, "in_channels", "num_channels", default=3) * depth * config_size(config, "patch_size") ** 2
    )
    return torch.randn(batch * GRID**2, values, generator=draw)


def _patches_by_image(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return [batch, patches, values of a patch]."""
    return _patches(config, batch, length, draw).reshape(batch, GRID**2, -1)


def _grid(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return frames, height and width of each image in patches, [batch, 3]."""
    return torch.tensor([[1, GRID, GRID]] * batch)


def _patch_coordinates(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return column and row of each patch, [batch, patches, 2]."""
    return torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).expand(batch, -1, -1)


def _series(config: Any, batch: int, length: int, draw: torch.Generator) -> torch.Tensor:
    """Return [batch, time], with channels behind the time where the config has some."""
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
    "past_observed_mask": lambda *arguments: torch.ones_like(_series(*arguments)),
    "past_values_padding": lambda *arguments: torch.zeros_like(_series(*arguments)),
    "past_time_features": _series_features,
    "future_values": _future,
    "future_time_features": _future_features,
    "freq": lambda config, batch, length, draw: torch.zeros(batch, 1, dtype=torch.long),
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "merge_sizes": lambda config, batch, length, draw: torch.ones(batch, dtype=torch.long),
    "spatial_shapes": lambda *arguments: _grid(*arguments)[:, 1:],
    "pixel_attention_mask": lambda config, batch, length, draw: torch.ones(batch, GRID**2, dtype=torch.long),
    "pixel_position_ids": _patch_coordinates,
}
"""Functions that make an input, by the name of the forward method's parameter."""

PATCHED = ("pixel_values", "hidden_states")
"""Parameters that hold patches where the forward method has one of those in `IN_PATCHES`."""
IN_PATCHES = {
    "grid_thw": _patches,
    "image_grid_thw": _patches,
    "spatial_shapes": _patches_by_image,
    "pixel_position_ids": _patches_by_image,
}
"""Parameters of forward methods that take images as patches, with the function that makes the patches."""
_OPTIONAL: dict[str, Callable[[Any, int, int, torch.Generator], torch.Tensor]] = {
    "bbox": _boxes,
    "encoder_hidden_states": _context,
    "lang_ids": lambda config, batch, length, draw: torch.zeros(batch, dtype=torch.long),
    "visual_feats": lambda config, batch, length, draw: torch.randn(
        batch, length, first_value(config, "visual_feat_dim", default=8), generator=draw
    ),
    "visual_pos": lambda config, batch, length, draw: torch.rand(batch, length, 4, generator=draw),
}
"""Optional parameters that some forward methods cannot do without."""
REQUIRED_WITH = {"past_time_features": ("future_values", "future_time_features")}
"""Optional parameters that a forward method needs where it requires another one."""
