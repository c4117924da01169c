"""The hidden width in another basis: principal components of the residual stream, folded into the weights.

RMS norms do not see a rotation. With their weights folded into the maps that read them, every writer to the residual
stream can be turned one way and every reader back, and the model computes the same (Ashkboos et al. 2024,
arXiv:2401.15024, section 3; here one rotation for all blocks, so that the result stays a stock model).
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe.anatomy import EVERYWHERE, Axis, discover
from hf_pe.dummies.inputs import difference, example_inputs, outputs_of
from hf_pe.errors import UsageError
from hf_pe.plans import Sketch
from hf_pe.prune.statistics.moments import kept_length, residual_covariance
from hf_pe.surgery import Kept, narrowed, rebuilt
from hf_pe.tasks import TaskData
from hf_pe.verify.equivalence import kept_along, norms_along

TOLERANCE = 1e-3
"""Largest relative difference in float32 between the model and itself in the other basis."""


@torch.no_grad()
def rotated(model: PreTrainedModel, axis: Axis, data: TaskData) -> PreTrainedModel:
    """The same function with the residual stream in its principal components, the largest first.

    Tied embeddings are untied: the last norm's weights go into the head alone.

    Args:
        model: is not changed.
        axis: its hidden width.
        data: calibration rows.

    Raises:
        UsageError: the model's blocks do not read the stream through RMS norms alone, so that no rotation is exact.
    """
    new = untied(model)
    axis = next(a for a in discover(new.config, type(new)).axes if a.name == axis.name)
    norms, inputs = norms_along(new, axis), example_inputs(new)
    gains = {name: _gain(name, norm, axis.size) for name, norm in norms.items()}
    sources = _sources(new, axis, norms, inputs)
    covariance = residual_covariance(new, norms, data)
    basis = torch.linalg.eigh(covariance).eigenvectors.flip(1)  # [old, new], largest first
    state = new.state_dict()
    for slot in axis.slots:
        owner = slot.name.rpartition(".")[0]
        if owner in norms or slot.name not in state or slot.group != EVERYWHERE:
            continue
        tensor, dim = state[slot.name], slot.dim or 0
        turned = tensor.movedim(dim, -1).double()
        if owner in sources:
            turned = turned * gains[sources[owner]]
        tensor.copy_((turned @ basis).movedim(-1, dim))
    for norm in norms.values():
        (parameter,) = norm.parameters()
        parameter.fill_(1.0 - gain_offset(norm))
    if not difference(outputs_of(model, inputs), outputs_of(new, inputs)) <= TOLERANCE:
        raise UsageError(
            "prune.hidden: rotation is not exact for this model (its blocks do more with the hidden states than RMS "
            "norms and linear maps do, or it gives them out). Choose hidden: selection."
        )
    return new


def untied_sketch(sketch: Sketch) -> Sketch:
    """What `untied` makes, from the config alone."""
    return replace(sketch, config=_untied(sketch.config))


def _untied(config: PretrainedConfig) -> PretrainedConfig:
    new = copy.deepcopy(config)
    new.tie_word_embeddings = new.get_text_config().tie_word_embeddings = False
    return new


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` whose output head has weights of its own."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = rebuilt(model, _untied(model.config), weights)
    new.eval()
    return new


def gain_offset(norm: nn.Module) -> float:
    """0 where a norm's weight is what it multiplies with, 1 where that is 1 + weight (Gemma)."""
    weight = next(norm.parameters())
    if isinstance(norm, nn.LayerNorm):
        return 0.0
    given = norm(torch.ones(1, len(weight)).to(weight))[0]
    return 1.0 if (given - weight - 1).abs().mean() < (given - weight).abs().mean() else 0.0


@torch.no_grad()
def rescale_norms_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Kept, data: TaskData) -> None:
    """Let each norm along `axis` of `smaller` give what stays at the size it had: its mean now runs over fewer.

    The factor is sqrt(d / d') E[ ||x_S|| / ||x|| ], x what the norm of the original is given, S the kept of d.
    """
    _keep_normed_weights_(smaller, model, axis, kept)
    places = kept_along(model, axis, kept)
    norms = {name: norm for name in places if _normalises(norm := model.get_submodule(name))}
    if not norms:
        return
    for name, share in kept_length(model, norms, places, data).items():
        norm = smaller.get_submodule(name)
        weight = next(norm.parameters())
        offset, before = gain_offset(norm), len(next(norms[name].parameters()))
        weight.copy_((weight + offset) * share * (before / len(places[name])) ** 0.5 - offset)


def _normalises(norm: nn.Module) -> bool:
    """Whether a module gives the same for an input at any size: a layer scale does not, nor does a batch norm."""
    some = next(norm.parameters())
    if some.ndim != 1 or isinstance(norm, nn.LayerNorm):
        return some.ndim == 1
    trial = torch.randn(4, len(some), generator=torch.Generator().manual_seed(0)).to(some)
    try:
        return torch.allclose(norm(trial), norm(3 * trial), rtol=1e-2, atol=1e-2)
    except Exception:  # it wants another shape
        return False


def _keep_normed_weights_(smaller: PreTrainedModel, model: PreTrainedModel, axis: Axis, kept: Kept) -> None:
    """Weights stored as direction and length (wav2vec 2.0's positions): those that stay are what they were."""
    weights: dict[str, Any] = {}
    for slot in axis.slots:
        name, _, stored = slot.name.partition(".parametrizations.weight.")
        if stored == "original1" and slot.dim is not None:
            weight = weights.get(name, model.get_submodule(name).weight)
            weights[name] = narrowed(weight, slot, axis, kept)
    for name, weight in weights.items():
        smaller.get_submodule(name).weight = weight


def _gain(name: str, norm: nn.Module, size: int) -> torch.Tensor:
    """What an RMS norm multiplies each coordinate with, [size], in float64.

    Raises:
        UsageError: it does something else.
    """
    some = next(norm.parameters())
    gain: torch.Tensor = norm(torch.ones(1, size).to(some))[0].double()
    trial = torch.randn(4, size, generator=torch.Generator().manual_seed(0)).to(some)
    wanted = gain * trial.double() / trial.double().square().mean(-1, keepdim=True).sqrt()
    if len(list(norm.parameters())) != 1 or not torch.allclose(norm(trial).double(), wanted, rtol=1e-2, atol=1e-2):
        raise UsageError(f"prune.hidden: {name} is no RMS norm, so that a rotation is not exact. Choose selection.")
    return gain


def _sources(
    model: PreTrainedModel, axis: Axis, norms: dict[str, nn.Module], inputs: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Which norm each map reads, found in one forward pass: its input is what that norm gave."""
    given: dict[int, tuple[str, torch.Tensor]] = {}
    found: dict[str, str] = {}

    def gave(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            given[output.data_ptr()] = (name, output)  # held, so that no other tensor takes its place

        return hook

    def reads(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            if read.data_ptr() in given:
                found[name] = given[read.data_ptr()][0]

        return hook

    owners = dict.fromkeys(slot.name.rpartition(".")[0] for slot in axis.slots)
    handles = [module.register_forward_hook(gave(name)) for name, module in norms.items()]
    handles += [
        model.get_submodule(name).register_forward_pre_hook(reads(name), with_kwargs=True)
        for name in owners
        if name not in norms
    ]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
