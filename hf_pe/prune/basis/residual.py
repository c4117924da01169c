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
from hf_pe.anatomy.norms import norms_along
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, outputs_of
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.refit.norms import gain_offset
from hf_pe.prune.statistics.residual import residual_covariance
from hf_pe.surgery import rebuilt
from hf_pe.tasks import TaskData

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


def untied_spec(spec: ModelSpec) -> ModelSpec:
    """What `untied` makes, from the config alone."""
    return replace(spec, config=_untied(spec.config))


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
