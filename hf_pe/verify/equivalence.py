"""Proves that a cut does what it says, for this very config, before anyone relies on it.

A tiny model of the same architecture, with lively weights, must give the same output with the units neutralised as
with those units cut out. The proof has power only if neutralising changes the output and a wrong cut is noticed.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import (
    EVERYWHERE,
    EXPERT_STEP,
    Architecture,
    Axis,
    Layout,
    discover,
    is_norm,
    rows_in_place,
    skeleton,
    tokens_named,
)
from hf_pe.dummies.inputs import LARGEST, difference, ended, instances, lively, outputs_of, possible_inputs, tiny
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.padding import classifies_rows_alone, name_padding_
from hf_pe.surgery import Kept, cut, cut_config
from hf_pe.verify.generation import depth_fault, generation_fault

TOLERANCE = 1e-5
"""Largest relative difference, in float32, between neutralised and cut."""
EFFECT = 1e-2
"""Smallest relative change that neutralising must make, and that a wrong cut must show."""
TRIES = 12
"""Wrong cuts that are tried until one is noticed: half of them in the largest slots, the others spread."""
NOT_THERE = "the axis is not found in a tiny instance"


@dataclass(frozen=True)
class Proof:
    """The outcome for one axis: relative differences, and the reason where it does not hold."""

    axis: str
    holds: bool
    reason: str = ""
    error: float = float("nan")
    effect: float = float("nan")
    sabotage: float = float("nan")


def prove(
    config: PretrainedConfig,
    model_class: type[PreTrainedModel],
    axis: Axis,
    kept: Kept | None = None,
    *,
    generates: bool = True,
) -> Proof:
    """Prove the cut of `axis` alone on a tiny instance of `config`.

    Args:
        config, model_class: of the model.
        axis: that is cut.
        kept: of depth, the pattern; default: without a layer in the middle.
        generates: the model still has to generate; of several towers that may need a cut of the others as well.
    """
    return _prove(Architecture.of(config, model_class), axis, _as_pattern(axis, kept), generates=generates)


def _as_pattern(axis: Axis, kept: Kept | None) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((stack, tuple(units)) for stack, units in kept.items()) if kept and axis.kind == "layers" else ()


def require_proof(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept | None = None
) -> None:
    """Refuse the cut of `axis` where `prove` finds none.

    Whether a model that lost layers still generates depends on all of its towers: see `require_generation`.

    Raises:
        UsageError: the proof does not hold.
    """
    pattern, generates = _as_pattern(axis, kept), axis.kind != "layers"
    proof = _prove(Architecture.of(config, model_class), axis, pattern, generates=generates)
    if not proof.holds:
        raise UsageError(
            f"Cutting '{axis.name}' of {model_class.__name__} could not be proved and is refused: {proof.reason}. See "
            "`hf-pe inspect` for the axes that can be cut."
        )


def require_generation(
    config: PretrainedConfig, model_class: type[PreTrainedModel], kept: Mapping[str, Kept]
) -> tuple[str, ...]:
    """Refuse cuts of depth after which a model that generates cannot do so, or says other tokens with its cache.

    Args:
        config: of the model before.
        model_class: of the model.
        kept: the kept layers of each stack, by axis.

    Returns:
        A sentence where it could not be checked, else nothing.

    Raises:
        UsageError: it cannot generate any more.
    """
    after = config
    for name, layers in kept.items():
        axis = next(axis for axis in discover(after, model_class).axes if axis.name == name)
        after = cut_config(after, axis, len(next(iter(layers.values()))), layers)
    fault = depth_fault(config, after, model_class) if kept else ""
    if fault:
        raise UsageError(
            f"Cutting {', '.join(kept)} of {model_class.__name__} like this leaves a model that cannot generate: "
            f"{fault}. Keep other layers, or as many in each tower."
        )
    if fault is not None:
        return ()
    return (
        f"whether {model_class.__name__} still generates could not be checked: no tiny model of this kind generates",
    )


@functools.lru_cache(maxsize=256)
def _prove(
    architecture: Architecture, axis: Axis, pattern: tuple[tuple[str, tuple[int, ...]], ...], *, generates: bool
) -> Proof:
    config, model_class, kept = architecture.config, architecture.model_class, dict(pattern)
    if not axis.native:
        return Proof(axis.name, False, "needs the plug-in form (the stock config cannot say it)")
    if axis.size < 2 and not kept:
        return Proof(axis.name, False, "there is only one")
    first = found = None
    try:
        for small, again in instances(config, depth=axis.kind == "layers"):
            if again and found is not None and not math.isnan(found.effect):
                continue
            found = _on_instance(small, model_class, axis, kept, generates)
            if found.holds or found.error > TOLERANCE:
                return found
            first = first or found  # it could not be run, or says nothing: a larger one may
        if first is not None and first.reason == NOT_THERE and axis.kind != "layers":  # Jamba's only attention is deep
            return _on_instance(tiny(config, depth=True), model_class, axis, kept, generates)
    except Exception as error:  # a config that cannot be made smaller in this way
        pass_on_memory_errors(error)
        first = first or Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")
    assert first is not None
    return first


def _on_instance(
    config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis, kept: Kept, generates: bool
) -> Proof:
    try:
        if sum(p.numel() for p in skeleton(config, model_class).parameters()) > LARGEST:
            return Proof(axis.name, False, f"an instance that can be built has more than {LARGEST:,} parameters")
        if classifies_rows_alone(config, model_class):
            name_padding_(config, 0)  # no input has it
        model = lively(model_class(copy.deepcopy(config)))
        found = [a for a in discover(config, model_class).axes if a.name == axis.name]
        if not found:
            return Proof(axis.name, False, NOT_THERE)
        kept = kept or _pattern(found[0], model)
        proof = _compare(model, found[0], kept)
        after = cut_config(config, found[0], len(next(iter(kept.values()))), kept)
        fault = generation_fault(config, after, model_class) if proof.holds and generates else ""
        return (
            replace(proof, holds=False, reason=f"cut alone, it cannot generate: {fault}", error=math.inf)
            if fault
            else proof
        )
    except Exception as error:  # whatever stops the proof is the reason why the axis is refused
        pass_on_memory_errors(error)
        return Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")


def removable_layers(config: PretrainedConfig, model_class: type[PreTrainedModel], axis: Axis) -> list[int]:
    """Layers built like their neighbours. The others (ModernBERT's first has no norm, SAM's last looks at all of an
    image) hold their position."""
    shapes_of = {name: tuple(tensor.shape) for name, tensor in skeleton(config, model_class).state_dict().items()}
    members: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for slot in axis.slots:
        position, _, rest = slot.name[len(slot.group) + 1 :].partition(".")
        members.setdefault(int(position), set()).add((rest, shapes_of.get(slot.name, ())))
    shapes = list(members.values())
    # of two kinds that are as frequent the later one: the first layer may lead into a stage
    common = max(reversed(shapes), key=shapes.count)
    return [i for i in sorted(members) if members[i] == common]


class _Case(NamedTuple):
    """A model, what is cut from it, and the model inside both ("": the whole) that is run."""

    model: PreTrainedModel
    smaller: PreTrainedModel
    axis: Axis
    kept: Kept
    place: str

    def run(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        part: Any = model.get_submodule(self.place)
        return outputs_of(part, inputs)


def _compare(model: PreTrainedModel, axis: Axis, kept: Kept) -> Proof:
    """On the whole model; where that cannot be run or does not depend on the axis (an image tower beside a text), on
    the largest model inside that holds all of the axis."""
    smaller, first = cut(model, axis, kept), None
    for place in _places(model, axis):
        case = _Case(model, smaller, axis, kept, place)
        part: Any = model.get_submodule(place)
        for inputs in possible_inputs(part):
            try:
                plain = case.run(model, inputs)
            except Exception as error:  # whatever stops it: other inputs, or a smaller part, may still be run
                pass_on_memory_errors(error)
                first = first or Proof(axis.name, False, f"the proof could not run: {type(error).__name__}: {error}")
                continue
            found = _compare_tokens(case, inputs) if axis.kind == "vocabulary" else _compare_at(case, inputs, plain)
            if found.holds or found.error > TOLERANCE:
                return found
            first = first or found
    assert first is not None
    return first


def _places(model: PreTrainedModel, axis: Axis) -> list[str]:
    """The model ("") and the models inside it that hold all slots, from the outside in."""
    inside = [n for n, m in model.named_modules() if n and isinstance(m, PreTrainedModel)]
    return ["", *(n for n in inside if all(slot.name.startswith(n + ".") for slot in axis.slots))]


def _compare_at(case: _Case, inputs: dict[str, torch.Tensor], plain: list[torch.Tensor]) -> Proof:
    """Units neutralised and units cut out; `plain` is what the model gives as it is."""
    with _neutralised(case.model, case.axis, case.kept):
        reference = case.run(case.model, inputs)
    try:
        found = case.run(case.smaller, inputs)
    except Exception as error:  # the original ran: a larger instance would end in the same way
        pass_on_memory_errors(error)
        return Proof(case.axis.name, False, f"what is cut cannot be run: {type(error).__name__}: {error}", math.inf)
    effect = difference(plain, reference)
    if case.axis.kind in ("hidden", "layers"):
        reference = [_narrow(one, other, case.axis, case.kept) for one, other in zip(reference, found, strict=True)]
    return _judged(case, inputs, reference, found, effect)


def _compare_tokens(case: _Case, inputs: dict[str, torch.Tensor]) -> Proof:
    """Rows of the vocabulary: on texts of kept tokens only, by their old and by their new numbers."""
    units = torch.as_tensor(case.kept[EVERYWHERE])
    ids = [name for name in inputs if name.endswith("input_ids")]
    part: Any = case.smaller.get_submodule(case.place)

    def renumbered(more: int) -> dict[str, torch.Tensor]:
        found = inputs | {name: (inputs[name] + more) % len(units) for name in ids}
        return ended(found, type(part), case.smaller.config)

    new, other = renumbered(0), renumbered(1)
    found = case.run(case.smaller, new)
    reference = case.run(case.model, inputs | {name: units[new[name]] for name in ids})
    reference = [_narrow(one, narrow, case.axis, case.kept) for one, narrow in zip(reference, found, strict=True)]
    return _judged(case, new, reference, found, difference(reference, case.run(case.smaller, other)))


def _judged(
    case: _Case,
    inputs: dict[str, torch.Tensor],
    reference: list[torch.Tensor],
    found: list[torch.Tensor],
    effect: float,
) -> Proof:
    error, sabotage, reason = difference(reference, found), float("nan"), ""
    if error <= TOLERANCE and effect >= EFFECT:
        for wrong in _wrong_cuts(case.model, case.smaller, case.kept, case.axis):
            sabotage = difference(reference, case.run(wrong, inputs))
            if sabotage >= EFFECT:
                break
    if not error <= TOLERANCE:
        reason = f"cut and neutralised differ by {error:.1e} (allowed {TOLERANCE:.0e})"
    elif not effect >= EFFECT:
        reason = f"neutralising moves the output by {effect:.1e} only: the proof has no power"
    elif not sabotage >= EFFECT:
        reason = f"a wrong cut moves the output by {sabotage:.1e} only: the proof has no power"
    return Proof(case.axis.name, not reason, reason, error, effect, sabotage)


def _pattern(axis: Axis, model: PreTrainedModel) -> Kept:
    """Two thirds of the units, different ones per group; for depth all but a middle removable layer."""
    if axis.kind == "layers":
        free = removable_layers(model.config, type(model), axis)
        if not free:
            raise ValueError("each layer is built in another way than its neighbours")
        gone = free[len(free) // 2]
        return {group: [i for i in range(axis.size) if i != gone] for group in axis.groups}
    draw = torch.Generator().manual_seed(1)
    count = max(axis.size * 3 // 4 if axis.kind == "hidden" else axis.size * 2 // 3, 1)  # heads may have to divide it
    count -= count % (EXPERT_STEP if axis.in_experts else axis.heads)
    drawn = {g: axis.largest(g, torch.rand(axis.size, generator=draw), count) for g in axis.groups}
    if axis.kind == "vocabulary":
        named = {i for part in _configs(model.config) for i in tokens_named(part.to_dict())}
        named |= {*range(rows_in_place(model, {slot.name.rpartition(".")[0] for slot in axis.slots}))}
        drawn = {g: [*units, *(i for i in named if i < axis.size)] for g, units in drawn.items()}
    return {g: sorted({*units}) for g, units in drawn.items()}


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The config and all its parts."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            yield from _configs(part)


@contextlib.contextmanager
def _neutralised(model: PreTrainedModel, axis: Axis, kept: Kept) -> Iterator[None]:
    """Zero the removed units in every slot, or skip the removed layers, inside the block."""
    if axis.kind == "layers":
        names = [f"{stack}.{i}" for stack, units in kept.items() for i in set(range(axis.size)) - set(units)]
        with skipped([model.get_submodule(name) for name in names]):
            yield
        return
    if axis.kind == "experts":
        with _never_routed(model, axis, kept):
            yield
        return
    state = model.state_dict()
    saved = {slot.name: state[slot.name].clone() for slot in axis.slots if slot.name in state}
    for slot in axis.slots:
        if slot.name in state:
            gone = torch.tensor(sorted(set(range(axis.size)) - set(kept[slot.group])), dtype=torch.long)
            slot.of(state).index_fill_(slot.dim or 0, slot.layout.places(gone, axis.size), 0)
    norms = _told_the_width(model, axis, kept)
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
    """Let every norm along `axis`, of the hidden width those without weights too, count the kept coordinates only."""

    def narrowed(module: nn.Module, places: torch.Tensor, width: int) -> Any:
        small = copy.deepcopy(module)
        for parameter in small.parameters():
            parameter.data = parameter.data[..., places]
        if hasattr(small, "normalized_shape"):
            small.normalized_shape = (len(places),)  # type: ignore[assignment]
        if isinstance(small, nn.GroupNorm):
            small.num_channels = len(places)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not args:
                return None
            dim = next((d for d in (-1, 1) if args[0].shape[d] == width), None)
            if dim is None:  # of a head
                return None
            given = small(args[0].index_select(dim, places), *args[1:], **kwargs)
            if isinstance(output, tuple):  # with the scale of its integers (I-BERT)
                return (torch.zeros_like(output[0]).index_copy(dim, places, given[0]), *given[1:])
            return torch.zeros_like(output).index_copy(dim, places, given)

        return module.register_forward_hook(hook, with_kwargs=True)

    hooks = []
    for name, places in kept_along(model, axis, kept).items():
        module = model.get_submodule(name)
        grouped = isinstance(module, nn.GroupNorm) and module.num_groups > 1  # other channels would come together
        if not grouped and not isinstance(module, _BatchNorm):  # which takes each channel for itself
            hooks.append(narrowed(module, places, next(module.parameters()).shape[-1]))
    if axis.kind == "hidden":
        units = torch.as_tensor(kept[EVERYWHERE])
        free = [m for m in model.modules() if is_norm(m) and not [*m.parameters(), *m.buffers()]]
        hooks += [narrowed(module, units, axis.size) for module in free]
    return hooks


def norms_along(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    """The modules that hold vectors along `axis` and nothing else, by name: its norms (and layer scales).

    All hold the hidden width; of heads, OLMo 2 norms all queries as one; of the FFN, some norm what is in between.
    """
    found = {}
    for slot in axis.slots if axis.kind not in ("layers", "experts") else ():
        module = model.get_submodule(slot.name.rpartition(".")[0])
        own, width = [*module.parameters()], slot.layout.length(axis.size)
        if own and all(p.ndim not in (0, 2) and p.numel() == p.shape[-1] == width for p in own):  # a matrix is a map
            found[slot.name.rpartition(".")[0]] = module
    return found


def kept_along(model: PreTrainedModel, axis: Axis, kept: Kept) -> dict[str, torch.Tensor]:
    """Which coordinates stay of what each of the norms along `axis` is given."""
    slots = {slot.name.rpartition(".")[0]: slot for slot in axis.slots}
    return {
        name: slots[name].layout.places(torch.as_tensor(kept[slots[name].group]), axis.size)
        for name in norms_along(model, axis)
    }


def _narrow(one: torch.Tensor, other: torch.Tensor, axis: Axis, kept: Kept) -> torch.Tensor:
    """Of an output that has the hidden width, or a multiple of it (Swin's later stages), the kept coordinates; of one
    with an entry for each layer (a detector's boxes) those of the kept layers."""
    units = torch.as_tensor(kept[axis.groups[0]])
    for dim, (length, left) in enumerate(zip(one.shape, other.shape, strict=False)):
        times = length // axis.size
        if length != left and length == times * axis.size and left == times * len(units):
            places = Layout((1,) * times).places(units, axis.size)
            one = one.index_select(dim, places.to(one.device))
    return one


@contextlib.contextmanager
def skipped(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block, layers hand on what they are given."""
    hooks = [layer.register_forward_hook(_skip, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A forward hook: the layer gives back each stream that it was given; a head of its own on top of it (a detector's
    boxes, each layer correcting the last) gives 0."""
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
    passed = 0

    def through(found: Any) -> Any:
        nonlocal passed
        if isinstance(found, (tuple, list)):
            return type(found)(through(each) for each in found)
        same = next(
            (i for i, e in enumerate(given) if isinstance(found, torch.Tensor) and e.shape == found.shape), None
        )
        if same is None:
            return found
        passed += 1
        return given.pop(same)

    skipped = through(output)
    return skipped if passed or not isinstance(output, torch.Tensor) else torch.zeros_like(output)


def _wrong_cuts(model: PreTrainedModel, smaller: PreTrainedModel, kept: Kept, axis: Axis) -> Iterator[PreTrainedModel]:
    """Cuts with one mistake: one of the slots permuted, or two kept layers exchanged. One has to be noticed."""
    if axis.kind != "layers":
        stored = smaller.state_dict()
        slots = [slot for slot in axis.slots if slot.name in stored]
        slots = sorted(slots, key=lambda slot: (not slot.consumes, -stored[slot.name].numel()))
        slots = list({slot.name: slot for slot in slots}.values())
        first, others = slots[: TRIES // 2], slots[TRIES // 2 :]
        for slot in [*first, *others[:: -(-len(others) * 2 // TRIES) or 1]]:
            wrong = copy.deepcopy(smaller)
            tensor = slot.of(wrong.state_dict())
            tensor.copy_(tensor.roll(1, slot.dim or 0))
            yield wrong
        return
    stack, units = next(iter(kept.items()))
    removable = removable_layers(model.config, type(model), axis)
    free = [i for i, unit in enumerate(units) if unit in removable]
    wrong = copy.deepcopy(smaller)
    if len(free) < 2:  # none to exchange it with: one that stays has its largest weights in another order
        largest = max(wrong.get_submodule(f"{stack}.{len(units) - 1}").parameters(), key=torch.numel)
        largest.data = largest.data.roll(1, 0)
        yield wrong
        return
    one, other = (wrong.get_submodule(f"{stack}.{i}").state_dict() for i in free[:2])
    for key, tensor in one.items():
        held = tensor.clone()
        tensor.copy_(other[key])
        other[key].copy_(held)
    yield wrong
