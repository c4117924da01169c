"""What the swapped model will be: its config, its class, and where a stitching layer has to be folded. No weights."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.efficientnet.modeling_efficientnet import round_filters

from hf_pe.anatomy import label_head, meta_model
from hf_pe.backbones.presets import PRESETS
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
"""Values that belong to the task, the tokens or the images, not to the backbone."""
OUTPUT_STRIDES = {"mobilenet_v2": (2, 4, 8, 16, 32), "mobilevit": (8, 16, 32), "mobilevitv2": (8, 16, 32)}
"""What stock configs can say, by model type."""
FIXED = {"mobilenet_v1": 32, "resnet": 32}
"""Strides that no stock config can change."""
SMALLEST_MAP = 4
"""Pixels a side that the last feature map should keep."""
LAST_CHANNELS = 1280
"""Of an EfficientNet's last convolution, before its width is scaled."""
READ_AS = ("out_features", "num_channels", "image_size", "dtype", "reshape_hidden_states", "apply_layernorm")
"""Values of a part that say what it reads and in which form what lies outside reads its features."""
REPEATED = {"auxiliary_in_channels": 2, "reassemble_hidden_size": -1}
"""Fields beside a backbone that say again how many channels one of its feature maps has, and which one."""
PART = "backbone_config"
"""The part that is exchanged where a model has it and no other is named."""


class SwapSpec(NamedTuple):
    """The model after a swap.

    Attributes:
        config: whole.
        model_class: as transformers calls it.
        stitch_points: where the head reads the body's features.
        prefix: of the exchanged part's parameters; "" where the whole body is.
        source: where weights come from, if any.
        notes: for the plan.
        references: papers.
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
    """What `config` becomes; see `BackboneSwap` for the arguments.

    Raises:
        UsageError: an unknown preset, values that build no model, no head of this kind for the architecture, a head
            without features to stitch.
    """
    part = part or (PART if getattr(config, PART, None) is not None else None)
    if part is not None:
        return _with_part(config, model_class, to, changes, part)
    new, source, references = _wanted(config, to, changes)
    for name in CARRIED:
        if hasattr(new, name) and getattr(config, name, None) is not None and name not in changes:
            setattr(new, name, copy.deepcopy(getattr(config, name)))
    labels: Any = config.num_labels
    if new.num_labels != labels:  # some configs count them without naming them
        new.num_labels = labels
    pixels = model_class.main_input_name == "pixel_values"
    size = image_size or getattr(config, "image_size", None)
    notes: list[str] = []
    if pixels and isinstance(size, int):
        new.image_size = size
        notes += adapt_(new, size, keep=changes.keys())
    new_class = class_for(new, auto_class_of(config, model_class))
    if input_kind(new_class) != input_kind(model_class):
        raise UsageError(
            f"swap.to: expected a model that reads {input_kind(model_class)} as {model_class.__name__} does; "
            f"{new_class.__name__} reads {input_kind(new_class)}."
        )
    _built(new, new_class)
    stitch_points = _body_stitch_points(config, model_class, new, new_class)
    return SwapSpec(new, new_class, stitch_points, "", source, tuple(notes), references)


def adapt_(config: PretrainedConfig, size: int, keep: Any = ()) -> list[str]:
    """Change early strides in place so that images of `size` pixels a side do not shrink to nothing; says what it did.

    Fields in `keep` stay as they are. What a stock config cannot say stays too, and is said.
    """
    most, kind = max(size // SMALLEST_MAP, 1), config.model_type
    if kind == "efficientnet":
        field, strides = "strides", list(config.strides)
        for place, each in enumerate(strides):
            if 2 * math.prod(strides) > most and each == 2:
                strides[place] = 1
        fitting: Any = strides
    elif kind in ("convnext", "convnextv2"):
        field, shrunk = "patch_size", 2 ** (len(config.depths) - 1)
        fitting = min(config.patch_size, max(most // shrunk, 1))
    elif kind in OUTPUT_STRIDES:
        field = "output_stride"
        fitting = max((s for s in OUTPUT_STRIDES[kind] if s <= most), default=OUTPUT_STRIDES[kind][0])
    elif FIXED.get(kind, 0) > most:
        return [f"a stock {kind} config cannot say other strides than {FIXED[kind]}: {size} pixels end in few"]
    else:
        return []
    before = getattr(config, field)
    if field in keep or fitting in (before, list(before) if isinstance(before, tuple) else None):
        return []
    setattr(config, field, fitting)
    how = " (dilation in place of strides)" if field == "output_stride" else ""
    return [f"{field} {before} made {fitting}{how} for images of {size} pixels"]


def is_known_by_name(to: str | None) -> bool:
    """Return whether `to` names an architecture alone: a preset, a model type, or None for the model's own."""
    return to is None or to in PRESETS or to in CONFIG_MAPPING


def _wanted(
    config: PretrainedConfig, to: str | None, changes: Mapping[str, Any]
) -> tuple[PretrainedConfig, Source | None, tuple[str, ...]]:
    """The backbone's config as it is asked for, where its weights are, its papers."""
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
        found = load_config(source)
        kind, values = found.model_type, found.to_dict()
    unknown = [name for name in changes if name not in CONFIG_MAPPING[kind]().to_dict() and name not in values]
    if unknown:
        known = CONFIG_MAPPING[kind]().to_dict()
        raise UsageError(f"swap.config: '{kind}' has no {unknown[0]}.{nearest(unknown[0], known)}")
    try:
        made: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values | dict(changes))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"swap.config: {error}") from error
    if kind == "efficientnet":  # what its last convolution gives follows from the width, and is asked for again
        last = round_filters(made, LAST_CHANNELS)  # type: ignore[arg-type]
        if changes.get("hidden_dim", last) != last:
            raise UsageError(f"swap.config.hidden_dim: expected {last} with this width_coefficient; leave it out.")
        made.hidden_dim = last
    return made, source, references


def _built(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """On the meta device.

    Raises:
        UsageError: no model comes of these values.
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
    """The map to the labels, or to the vocabulary, in both."""
    if "Classification" in model_class.__name__ or "QuestionAnswering" in model_class.__name__:
        heads = label_head(config, model_class), label_head(new, new_class)
        for found, name in zip(heads, (model_class.__name__, new_class.__name__), strict=True):
            if found is None:
                raise UsageError(
                    f"swap: {name} has no single linear map to its labels, so there are no features to stitch. "
                    "Fine-tune a plain classification head first."
                )
        return (StitchPoint(*heads),)  # type: ignore[arg-type]
    old_out, new_out = (_vocabulary_head(*each) for each in ((config, model_class), (new, new_class)))
    if old_out and new_out:
        return (StitchPoint(old_out, new_out),)
    if not old_out and config.hidden_size != new.hidden_size and not model_class.can_generate():
        raise UsageError(
            f"swap: the embeddings would be {new.hidden_size} wide in place of {config.hidden_size}, and nothing after "
            "the model reads them that a stitching layer could be folded into. Keep the width (config: {hidden_size: "
            f"{config.hidden_size}}})."
        )
    return ()


def _vocabulary_head(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str | None:
    """The map to the vocabulary, where its weight is its own."""
    model: Any = meta_model(config, model_class)
    head = model.get_output_embeddings()
    inner = model.get_input_embeddings()
    tied = getattr(config.get_text_config(), "tie_word_embeddings", False)
    if not isinstance(head, nn.Linear) or head is inner or tied:
        return None
    return next(str(name) for name, module in model.named_modules() if module is head)


def _with_part(  # noqa: C901  one step after the other
    config: PretrainedConfig, model_class: type[PreTrainedModel], to: str | None, changes: Mapping[str, Any], part: str
) -> SwapSpec:
    """A sub-config exchanged: what lies outside keeps its parameters; what reads the part's features is stitched."""
    old_part = getattr(config, part, None)
    if not isinstance(old_part, PretrainedConfig):
        parts = [name for name in config.to_dict() if isinstance(vars(config).get(name), PretrainedConfig)]
        raise UsageError(f"swap.part: {model_class.__name__} has no {part}; expected {' or '.join(parts) or 'none'}.")
    new_part, source, references = _wanted(old_part, to, changes)
    for name in READ_AS:
        if getattr(old_part, name, None) is not None and hasattr(new_part, name) and name not in changes:
            if name != "out_features":
                setattr(new_part, name, copy.deepcopy(getattr(old_part, name)))
            elif len(old_part.out_features) <= len(new_part.stage_names):
                kept = len(new_part.stage_names) - len(old_part.out_features)
                new_part.out_features = new_part.stage_names[max(kept, 1) :][-len(old_part.out_features) :]
    new = copy.deepcopy(config)
    setattr(new, part, new_part)
    for name, place in REPEATED.items():
        if hasattr(new, name):
            setattr(new, name, _channels(new_part)[place])
    config, new = (type(c).from_dict(c.to_dict()) for c in (config, new))  # lists, no tuples
    old_model, model = _built(config, model_class), _built(new, model_class)
    prefix = _prefix(old_model, type(old_part))
    before, after = (
        {n: p for n, p in m.state_dict().items() if not n.startswith(prefix + ".")} for m in (old_model, model)
    )
    strange = sorted(before.keys() ^ after.keys())
    if strange:
        raise UsageError(
            f"swap: outside of {part} the two models differ ({strange[0]}), so the backbone does not fit this head. "
            f"Choose one with {len(getattr(old_part, 'out_features', None) or [1])} feature maps."
        )
    stitch_points = []
    for name in dict.fromkeys(n.rpartition(".")[0] for n in before if before[n].shape != after[n].shape):
        module = model.get_submodule(name)
        moved = [n for n in before if n.rpartition(".")[0] == name and before[n].shape != after[n].shape]
        same = all(before[n].shape[0] == after[n].shape[0] for n in moved)
        if not mergeable(module) or not same:
            raise UsageError(
                f"swap: {name} ({type(module).__name__}) changes with the backbone and is no linear map of its "
                "features, so a stitching layer cannot be folded into it. Choose a backbone with the same widths."
            )
        stitch_points.append(StitchPoint(name, name))
    notes = (f"{part}: {old_part.model_type} made {new_part.model_type}",)
    return SwapSpec(new, model_class, tuple(stitch_points), prefix, source, notes, references)


def _channels(part: PretrainedConfig) -> list[int]:
    """Of each feature map that a backbone gives."""
    model: Any = _built(part, class_for(part, "AutoBackbone"))
    return list(model.channels)


def _prefix(model: PreTrainedModel, config_class: type[PretrainedConfig]) -> str:
    """Name of the first module that is a model of this config."""
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and type(module.config) is config_class:
            return str(name)
    raise UsageError(f"swap: {type(model).__name__} holds no model of {config_class.__name__}.")
