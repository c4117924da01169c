"""Proves that a cut does what it says, for this very config, before anyone relies on it.

A tiny model of the same architecture, with lively weights, must give the same output with the units neutralised as
with those units cut out. The proof has power only if neutralising changes the output and a wrong cut is noticed.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import CUTTABLE, EXPERT_STEP, Architecture, Axis, discover
from hf_pe.surgery import Kept, cut

TOLERANCE = 1e-5
"""Largest relative difference, in float32, between neutralised and cut."""
EFFECT = 1e-2
"""Smallest relative change that neutralising must make, and that a wrong cut must show."""
IMAGE = 224
"""Pixels a side where a config does not say."""

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
}


@dataclass(frozen=True)
class Proof:
    """The outcome for one axis: relative differences, and the reason where it does not hold."""

    axis: str
    holds: bool
    reason: str = ""
    error: float = float("nan")
    effect: float = float("nan")
    sabotage: float = float("nan")


def prove(config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept | None = None) -> Proof:
    """Prove the cut of `axis` on a tiny instance of `config`; for depth with the pattern `kept`, if given."""
    pattern = tuple((stack, tuple(units)) for stack, units in kept.items()) if kept and axis.kind == "layers" else ()
    return _prove(Architecture.of(config, model_class), axis, pattern)


@functools.lru_cache(maxsize=256)
def _prove(architecture: Architecture, axis: Axis, pattern: tuple[tuple[str, tuple[int, ...]], ...]) -> Proof:
    config, model_class, kept = architecture.config, architecture.model_class, dict(pattern)
    if axis.kind not in CUTTABLE:
        return Proof(axis.name, False, f"cutting '{axis.name}' is not supported yet; supported: {', '.join(CUTTABLE)}")
    if axis.kind == "layers" and not kept and axis.size < 2:
        return Proof(axis.name, False, "there is only one layer")
    try:
        small = tiny(config, depth=axis.kind == "layers")
        model = lively(model_class(small))
        found = [a for a in discover(small, model_class).axes if a.name == axis.name]
        if not found:
            return Proof(axis.name, False, f"the axis '{axis.name}' is not found in a tiny instance")
        return _compare(model, found[0], kept or _pattern(found[0], model))
    except Exception as error:  # whatever stops the proof is the reason why the axis is refused
        return Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")


def removable_layers(config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis) -> list[int]:
    """Layers built like their neighbours. The others (ModernBERT's first has no norm) hold their position."""
    members: dict[int, set[str]] = {}
    for slot in axis.slots:
        position, _, rest = slot.name[len(slot.group) + 1 :].partition(".")
        members.setdefault(int(position), set()).add(rest)
    shapes = list(members.values())
    common = max(shapes, key=shapes.count)
    return [i for i in sorted(members) if members[i] == common]


def tiny(config: PretrainedConfig, *, depth: bool = False) -> PretrainedConfig:
    """Shrink every size field of `config` but keep all that shapes the computation; two layers unless `depth`."""
    new = copy.deepcopy(config)
    _shrink(new, depth)
    return type(config).from_dict(new.to_dict())


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
    model: PreTrainedModel, *, batch: int = 2, length: int = 12, seed: int = 0, device: str | torch.device | None = None
) -> dict[str, torch.Tensor]:
    """Random inputs that fit `model`, read off its config and main input; on `device`, default the model's."""
    draw = torch.Generator().manual_seed(seed)
    config = model.config
    text = config.get_text_config()
    inputs: dict[str, torch.Tensor] = {}
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", None) or IMAGE
        side = size if isinstance(size, (list, tuple)) else [size] * 2
        inputs["pixel_values"] = torch.randn(batch, config.num_channels, *side, generator=draw)
    elif model.main_input_name == "input_values":
        frames = (config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (16000,)
        inputs["input_values"] = torch.randn(batch, *frames, generator=draw)  # a spectrogram, or a second of sound
    elif model.main_input_name == "input_features":
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(batch, config.num_mel_bins, frames, generator=draw)
    else:
        inputs["input_ids"] = torch.randint(6, text.vocab_size, (batch, length), generator=draw)
        inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
    if config.is_encoder_decoder and hasattr(text, "vocab_size"):  # a detector decodes boxes
        inputs["decoder_input_ids"] = torch.randint(6, text.vocab_size, (batch, min(length, 8)), generator=draw)
    return {name: tensor.to(device or model.device) for name, tensor in inputs.items()}


def outputs_of(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All floating-point tensors of the model's output, in order."""
    with torch.no_grad():
        result = model(**inputs, **no_cache(model))
    return [v for v in result.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]


def no_cache(model: PreTrainedModel) -> dict[str, bool]:
    """What to pass beside the inputs so that `model` keeps no cache; nothing where it has none."""
    return {"use_cache": False} if model.config.get_text_config().to_dict().get("use_cache") else {}


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Largest absolute difference over the largest magnitude, over all outputs."""
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in zip(one, other, strict=True))


def _compare(model: PreTrainedModel, axis: Axis, kept: Kept) -> Proof:
    inputs = example_inputs(model)
    with _neutralised(model, axis, kept):
        reference = outputs_of(model, inputs)
    effect = difference(outputs_of(model, inputs), reference)
    found = outputs_of(cut(model, axis, kept), inputs)
    if axis.kind == "hidden":
        reference = [_narrow(one, other, axis, kept) for one, other in zip(reference, found, strict=True)]
    error = difference(reference, found)
    sabotage = difference(reference, outputs_of(_wrong_cut(model, axis, kept), inputs))
    reason = ""
    if not error <= TOLERANCE:
        reason = f"cut and neutralised differ by {error:.1e} (allowed {TOLERANCE:.0e})"
    elif not effect >= EFFECT:
        reason = f"neutralising moves the output by {effect:.1e} only: the proof has no power"
    elif not sabotage >= EFFECT:
        reason = f"a wrong cut moves the output by {sabotage:.1e} only: the proof has no power"
    return Proof(axis.name, not reason, reason, error, effect, sabotage)


def _pattern(axis: Axis, model: PreTrainedModel) -> Kept:
    """Two thirds of the units, different ones per group; for depth all but a middle removable layer."""
    if axis.kind == "layers":
        free = removable_layers(model.config, type(model), axis)
        gone = free[len(free) // 2]
        return {group: [i for i in range(axis.size) if i != gone] for group in axis.groups}
    draw = torch.Generator().manual_seed(1)
    count = max(axis.size * 3 // 4 if axis.kind == "hidden" else axis.size * 2 // 3, 1)  # heads may have to divide it
    if axis.in_experts:
        count -= count % EXPERT_STEP
    return {g: sorted(torch.randperm(axis.size, generator=draw)[:count].tolist()) for g in axis.groups}


@contextlib.contextmanager
def _neutralised(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Zero the removed units in every slot, or skip the removed layers, inside the block."""
    if axis.kind == "layers":
        hooks = [
            model.get_submodule(f"{stack}.{i}").register_forward_hook(_skip, with_kwargs=True)
            for stack, units in kept.items()
            for i in set(range(axis.size)) - set(units)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        return
    if axis.kind == "experts":
        with _never_routed(model, axis, kept):
            yield
        return
    state = model.state_dict()
    saved = {slot.name: state[slot.name].clone() for slot in axis.slots if slot.name in state}
    for slot in axis.slots:
        if slot.name in state:
            gone = torch.tensor(sorted(set(range(axis.size)) - set(kept[slot.group])))
            slot.of(state).index_fill_(slot.dim or 0, slot.layout.places(gone, axis.size), 0)
    norms = _told_the_width(model, axis, kept) if axis.kind == "hidden" else []
    try:
        yield
    finally:
        for name, tensor in saved.items():
            state[name].copy_(tensor)
        for norm in norms:
            norm.remove()


NEVER = -1e30
"""The router's logit of an expert that is not there."""


class _Logits(TorchFunctionMode):
    """Where a router's weight is multiplied with, the logits of its removed experts become `NEVER`."""

    def __init__(self, gone: dict[int, list[int]]) -> None:
        super().__init__()
        self.gone = gone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        units = self.gone.get(id(args[1])) if func is nn.functional.linear and len(args) > 1 else None
        if units:
            found = found.clone()
            found[..., units] = NEVER
        return found


@contextlib.contextmanager
def _never_routed(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Inside the block the removed experts get no token: a zero router row would still be a logit of 0."""
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    slots = [slot for slot in axis.slots if slot.name in state]
    gone = {slot.name: sorted(set(range(axis.size)) - set(kept[slot.group])) for slot in slots}
    biases = {slot.name: state[slot.name].clone() for slot in slots if state[slot.name].ndim == 1}
    for name in biases:
        state[name].data[gone[name]] = NEVER
    try:
        with _Logits({id(state[s.name]): gone[s.name] for s in slots if state[s.name].ndim == 2}):
            yield
    finally:
        for name, tensor in biases.items():
            state[name].data.copy_(tensor)


def _told_the_width(model: PreTrainedModel, axis: Axis, kept: Kept) -> list[Any]:
    """Hook every norm (what holds vectors of the hidden width and nothing else) to count the kept coordinates only."""
    units = torch.as_tensor(next(iter(kept.values())))

    def narrowed(module: nn.Module) -> Any:
        small = copy.deepcopy(module)
        for parameter in small.parameters():
            parameter.data = parameter.data[units]
        if isinstance(small, nn.LayerNorm):
            small.normalized_shape = (len(units),)

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(output).index_copy(-1, units, small(args[0][..., units]))

        return module.register_forward_hook(hook)

    return [narrowed(module) for module in norms_along(model, axis).values()]


def norms_along(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    """The modules that hold vectors along `axis` and nothing else, by name: its norms (and layer scales)."""
    owners = dict.fromkeys(slot.name.rpartition(".")[0] for slot in axis.slots)
    found = {}
    for name in owners:
        module = model.get_submodule(name)
        own = [*module.parameters()]
        if own and all(p.ndim == 1 and len(p) == axis.size for p in own):
            found[name] = module
    return found


def _narrow(one: torch.Tensor, other: torch.Tensor, axis: Axis, kept: Kept) -> torch.Tensor:
    """Of an output that has the hidden width, the kept coordinates."""
    units = torch.as_tensor(next(iter(kept.values())))
    return one if one.shape == other.shape else one.index_select(-1, units.to(one.device))


def _skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook: the layer gives back the hidden states it was given."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _wrong_cut(model: PreTrainedModel, axis: Axis, kept: Kept) -> PreTrainedModel:
    """A cut with one mistake: one slot permuted, or the first two kept layers exchanged."""
    wrong = copy.deepcopy(cut(model, axis, kept))
    state = wrong.state_dict()
    if axis.kind != "layers":
        slots = [s for s in axis.slots if s.name in state]
        slot = next((s for s in slots if s.consumes), slots[0])
        tensor = slot.of(state)
        tensor.copy_(tensor.roll(1, slot.dim or 0))
        return wrong
    stack, units = next(iter(kept.items()))
    free = [i for i, unit in enumerate(units) if unit in removable_layers(model.config, type(model), axis)]
    if len(free) < 2:  # one layer left: put the removed one in its place
        gone = next(i for i in range(axis.size) if i not in units)
        return cut(model, axis, {stack: sorted([*units[:-1], gone])})
    one, other = (wrong.get_submodule(f"{stack}.{i}").state_dict() for i in free[:2])
    for key, tensor in one.items():
        held = tensor.clone()
        tensor.copy_(other[key])
        other[key].copy_(held)
    return wrong


def _shrink(config: PretrainedConfig, depth: bool) -> None:
    from hf_pe.anatomy.discover import AXIS_OF_FIELD

    kv = getattr(config, "num_key_value_heads", None)
    layers = None
    for field, value in config.to_dict().items():
        sub = vars(config).get(field)
        if isinstance(sub, PretrainedConfig):
            _shrink(sub, depth)
            continue
        axis = AXIS_OF_FIELD.get(field)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if axis == "layers" and not depth:
            layers, new = value, min(value, 2)
        elif axis in ("heads", "kv_groups"):
            fewest = kv if isinstance(kv, int) else value
            new = 1 << (min(fewest, TINY["heads"]).bit_length() - 1)  # a power of two divides the hidden width
            if axis == "heads" and isinstance(kv, int) and value > kv:
                new *= 2
        else:
            new = TINY.get(axis or "", TINY_FIELDS.get(field, value))
        if field.endswith("token_id") and value >= TINY["vocabulary"]:
            new = value % 5
        setattr(config, field, min(value, new))
    for key, value in config.to_dict().items():
        if layers and isinstance(value, list) and len(value) == layers:
            setattr(config, key, _two_kinds(value))


def _two_kinds(values: list[Any]) -> list[Any]:
    """Two entries of a per-layer list that show as many kinds as there are."""
    return [values[0], next((v for v in values if v != values[0]), values[-1])][: len(values)]
