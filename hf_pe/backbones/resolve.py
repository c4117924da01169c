"""Determines the model after a swap from configs alone: its config, its class, and its stitch points."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from hf_pe.anatomy import label_head, meta_model
from hf_pe.backbones.presets import PRESETS
from hf_pe.backbones.strides import reduce_strides_
from hf_pe.checkpoints.classes import auto_class_of, class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.dummies.inputs import input_kind
from hf_pe.errors import UsageError, nearest, pass_on_memory_errors
from hf_pe.stitching import StitchPoint, mergeable

CARRIED = (
    "id2label", "label2id", "problem_type", "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id",
    "max_position_embeddings", "num_channels", "image_size", "classifier_proj_size", "dtype",
)  # fmt: skip
"""Config values that belong to the task, the tokens or the images and not to the backbone: they are kept."""
LAST_CHANNELS = 1280
"""Channels of an EfficientNet's last convolution, before its width is scaled."""
INTERFACE = ("out_features", "num_channels", "image_size", "dtype", "reshape_hidden_states", "apply_layernorm")
"""Values of a sub-config that describe its inputs, and the form in which the rest of the model reads its features."""
REPEATED = {"auxiliary_in_channels": 2, "reassemble_hidden_size": -1}
"""Fields that repeat the channels of one of the backbone's feature maps, with the index of that map."""
PART = "backbone_config"
"""The sub-config that is exchanged where a model has it and the recipe names no other."""


class SwapSpec(NamedTuple):
    """Describe the model after a swap.

    Attributes:
        config: of the whole model.
        model_class: of the whole model.
        stitch_points: where the head reads the body's features.
        prefix: of the exchanged part's parameters; "" where the whole body is exchanged.
        source: where the backbone's weights come from, if it has any.
        notes: for the plan.
        references: links to papers.
    """

    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    stitch_points: tuple[StitchPoint, ...]
    prefix: str
    source: Source | None
    notes: tuple[str, ...]
    references: tuple[str, ...]


def resolve_swap(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    to: str | None,
    changes: Mapping[str, Any],
    part: str | None,
    image_size: int | None,
) -> SwapSpec:
    """Return the model that a swap makes of `config`.

    Args:
        config: of the model.
        model_class: of the model, whose head is kept.
        to: see `BackboneSwap`.
        changes: `BackboneSwap.config`.
        part: see `BackboneSwap`.
        image_size: pixels a side; None leaves the config's.

    Raises:
        UsageError: the preset is unknown, the values build no model, the architecture has no head of this kind, or the
            head has no features to stitch.
    """
    part = part or (PART if getattr(config, PART, None) is not None else None)
    if part is not None:
        return _with_part(config, model_class, to, changes, part)
    new, source, references = _requested(config, to, changes)
    for name in CARRIED:
        if hasattr(new, name) and getattr(config, name, None) is not None and name not in changes:
            setattr(new, name, copy.deepcopy(getattr(config, name)))
    labels: Any = config.num_labels
    if new.num_labels != labels:  # some configs count them without naming them
        new.num_labels = labels
    has_images = model_class.main_input_name == "pixel_values"
    size = image_size or getattr(config, "image_size", None)
    notes: list[str] = []
    if has_images and isinstance(size, int):
        new.image_size = size
        notes += reduce_strides_(new, size, keep=changes.keys())
    new_class = class_for(new, auto_class_of(config, model_class))
    if input_kind(new_class) != input_kind(model_class):
        raise UsageError(
            f"swap.to: expected a model that reads {input_kind(model_class)} as {model_class.__name__} does; "
            f"{new_class.__name__} reads {input_kind(new_class)}."
        )
    _built(new, new_class)
    stitch_points = _body_stitch_points(config, model_class, new, new_class)
    return SwapSpec(new, new_class, stitch_points, "", source, tuple(notes), references)


def is_known_by_name(to: str | None) -> bool:
    """Return whether `to` names an architecture alone: a preset, a model type, or None for the model's own."""
    return to is None or to in PRESETS or to in CONFIG_MAPPING


def _requested(
    config: PretrainedConfig, to: str | None, changes: Mapping[str, Any]
) -> tuple[PretrainedConfig, Source | None, tuple[str, ...]]:
    """Return the backbone's config as the recipe requests it, the source of its weights, and links to its papers."""
    source: Source | None = None
    references: tuple[str, ...] = ()
    if to is None:
        if not changes:
            raise UsageError("swap: expected `to` (a preset, a Hub id or a folder), or `config` values to change.")
        kind, values = config.model_type, config.to_dict()
    elif to in PRESETS:
        kind, values = PRESETS[to].model_type, dict(PRESETS[to].config)
        references = (PRESETS[to].reference,)
    elif to in CONFIG_MAPPING:
        kind, values = to, {}
    else:
        if not to.startswith("package:") and "/" not in to and not Path(to).expanduser().exists():
            raise UsageError(
                f"swap.to: no preset is called '{to}'; expected one of {', '.join(PRESETS)}, a model type, a Hub id "
                f"(OWNER/NAME) or a folder.{nearest(to, [*PRESETS, *CONFIG_MAPPING])}"
            )
        source = resolve(to)
        source_config = load_config(source)
        kind, values = source_config.model_type, source_config.to_dict()
    unknown = [name for name in changes if name not in CONFIG_MAPPING[kind]().to_dict() and name not in values]
    if unknown:
        fields = CONFIG_MAPPING[kind]().to_dict()
        raise UsageError(f"swap.config: '{kind}' has no {unknown[0]}.{nearest(unknown[0], fields)}")
    try:
        new: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values | dict(changes))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"swap.config: {error}") from error
    if kind == "efficientnet":  # its hidden_dim has to be the channels of the last convolution, which follow the width
        last = round_filters(new, LAST_CHANNELS)  # type: ignore[arg-type]
        if changes.get("hidden_dim", last) != last:
            raise UsageError(f"swap.config.hidden_dim: expected {last} with this width_coefficient; leave it out.")
        new.hidden_dim = last
    return new, source, references


def _built(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """Return the model on the meta device.

    Raises:
        UsageError: no model can be built with these config values.
    """
    try:
        return meta_model(config, model_class)
    except Exception as error:  # values that do not fit together may raise anything
        pass_on_memory_errors(error)
        raise UsageError(f"swap.config: {model_class.__name__} cannot be built: {error}") from error


def _body_stitch_points(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    new: PretrainedConfig,
    new_class: type[PreTrainedModel],
) -> tuple[StitchPoint, ...]:
    """Return the stitch point of a whole body: the layer that computes labels, or token logits, in both models."""
    if "Classification" in model_class.__name__ or "QuestionAnswering" in model_class.__name__:
        heads = label_head(config, model_class), label_head(new, new_class)
        for head, name in zip(heads, (model_class.__name__, new_class.__name__), strict=True):
            if head is None:
                raise UsageError(
                    f"swap: {name} has no single linear layer to its labels, so there are no features to stitch. "
                    "Fine-tune a plain classification head first."
                )
        return (StitchPoint(*heads),)  # type: ignore[arg-type]
    old_head, new_head = (_vocabulary_head(config, model_class), _vocabulary_head(new, new_class))
    if old_head and new_head:
        return (StitchPoint(old_head, new_head),)
    if not old_head and config.hidden_size != new.hidden_size and not model_class.can_generate():
        raise UsageError(
            f"swap: the embeddings would be {new.hidden_size} wide in place of {config.hidden_size}, and the model has "
            "no layer after them into which a stitching layer could be merged. Keep the width (config: {hidden_size: "
            f"{config.hidden_size}}})."
        )
    return ()


def _vocabulary_head(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str | None:
    """Return the name of the linear layer that computes token logits; None where its weight is tied to embeddings."""
    model: Any = meta_model(config, model_class)
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    is_tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    if not isinstance(head, nn.Linear) or head is embedding or is_tied:
        return None
    return next(str(name) for name, module in model.named_modules() if module is head)


def _with_part(  # noqa: C901  one step after the other
    config: PretrainedConfig, model_class: type[PreTrainedModel], to: str | None, changes: Mapping[str, Any], part: str
) -> SwapSpec:
    """Return the model with one sub-config exchanged.

    Modules outside the part keep their parameters; those that read its features are stitched.
    """
    old_part = getattr(config, part, None)
    if not isinstance(old_part, PretrainedConfig):
        parts = [name for name in config.to_dict() if isinstance(vars(config).get(name), PretrainedConfig)]
        raise UsageError(f"swap.part: {model_class.__name__} has no {part}; expected {' or '.join(parts) or 'none'}.")
    new_part, source, references = _requested(old_part, to, changes)
    for name in INTERFACE:
        if getattr(old_part, name, None) is not None and hasattr(new_part, name) and name not in changes:
            if name != "out_features":
                setattr(new_part, name, copy.deepcopy(getattr(old_part, name)))
            elif len(old_part.out_features) <= len(new_part.stage_names):
                first = len(new_part.stage_names) - len(old_part.out_features)
                new_part.out_features = new_part.stage_names[max(first, 1) :][-len(old_part.out_features) :]
    new = copy.deepcopy(config)
    setattr(new, part, new_part)
    for name, index in REPEATED.items():
        if hasattr(new, name):
            setattr(new, name, _channels(new_part)[index])
    config, new = (type(c).from_dict(c.to_dict()) for c in (config, new))  # so that tuples become lists in both
    old_model, model = _built(config, model_class), _built(new, model_class)
    prefix = _prefix(old_model, type(old_part))
    before, after = (
        {n: p for n, p in m.state_dict().items() if not n.startswith(prefix + ".")} for m in (old_model, model)
    )
    different = sorted(before.keys() ^ after.keys())
    if different:
        raise UsageError(
            f"swap: outside of {part} the two models differ ({different[0]}), so the backbone does not fit this head. "
            f"Choose one with {len(getattr(old_part, 'out_features', None) or [1])} feature maps."
        )
    stitch_points = []
    for name in dict.fromkeys(n.rpartition(".")[0] for n in before if before[n].shape != after[n].shape):
        module = model.get_submodule(name)
        changed = [n for n in before if n.rpartition(".")[0] == name and before[n].shape != after[n].shape]
        same_outputs = all(before[n].shape[0] == after[n].shape[0] for n in changed)
        if not mergeable(module) or not same_outputs:
            raise UsageError(
                f"swap: {name} ({type(module).__name__}) changes with the backbone and is no linear layer on its "
                "features, so a stitching layer cannot be merged into it. Choose a backbone with the same widths."
            )
        stitch_points.append(StitchPoint(name, name))
    notes = (f"{part}: {old_part.model_type} replaced by {new_part.model_type}",)
    return SwapSpec(new, model_class, tuple(stitch_points), prefix, source, notes, references)


def _channels(part: PretrainedConfig) -> list[int]:
    """Return the number of channels of each feature map of a backbone."""
    model: Any = _built(part, class_for(part, "AutoBackbone"))
    return list(model.channels)


def _prefix(model: PreTrainedModel, config_class: type[PretrainedConfig]) -> str:
    """Return the name of the first module that is a model with a config of this class."""
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and type(module.config) is config_class:
            return str(name)
    raise UsageError(f"swap: {type(model).__name__} holds no model of {config_class.__name__}.")
