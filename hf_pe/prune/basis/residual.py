"""Rotate the residual stream to its principal components, by a change of the weights that leaves the outputs the same.

An RMS norm commutes with a rotation once its weight is folded into the linear layers that read it. Then every layer
that writes to the residual stream can be rotated one way and every layer that reads it back (Ashkboos et al. 2024,
arXiv:2401.15024, section 3). Here all blocks share one rotation, so that the result stays a stock model.
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
"""Largest relative difference in float32 between the outputs before and after the rotation."""


@torch.no_grad()
def rotated(model: PreTrainedModel, axis: Axis, data: TaskData) -> PreTrainedModel:
    """Return a model with the same outputs whose residual stream is in its principal components, the largest first.

    Tied embeddings are untied, since the last norm's weight is folded into the head alone.

    Args:
        model: the model; it is not changed.
        axis: its hidden width.
        data: has the calibration rows.

    Raises:
        UsageError: the blocks do not read the residual stream through RMS norms alone, so no rotation is exact.
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
        rows = tensor.movedim(dim, -1).double()
        if owner in sources:
            rows = rows * gains[sources[owner]]
        tensor.copy_((rows @ basis).movedim(-1, dim))
    for norm in norms.values():
        (parameter,) = norm.parameters()
        parameter.fill_(1.0 - gain_offset(norm))
    if not difference(outputs_of(model, inputs), outputs_of(new, inputs)) <= TOLERANCE:
        raise UsageError(
            "prune.hidden: rotation is not exact for this model: its blocks do more with the hidden states than RMS "
            "norms and linear layers do, or it returns them. Choose hidden: selection."
        )
    return new


def untied_spec(spec: ModelSpec) -> ModelSpec:
    """Return the spec of the model that `untied` makes, from the config alone."""
    return replace(spec, config=_untied(spec.config))


def _untied(config: PretrainedConfig) -> PretrainedConfig:
    new = copy.deepcopy(config)
    new.tie_word_embeddings = new.get_text_config().tie_word_embeddings = False
    return new


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model whose output head has weights of its own."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = rebuilt(model, _untied(model.config), weights)
    new.eval()
    return new


def _gain(name: str, norm: nn.Module, size: int) -> torch.Tensor:
    """Return the factor of each coordinate of an RMS norm, [size], in float64.

    Raises:
        UsageError: the module is no RMS norm.
    """
    weight = next(norm.parameters())
    gain: torch.Tensor = norm(torch.ones(1, size).to(weight))[0].double()
    trial = torch.randn(4, size, generator=torch.Generator().manual_seed(0)).to(weight)
    normed = gain * trial.double() / trial.double().square().mean(-1, keepdim=True).sqrt()
    if len(list(norm.parameters())) != 1 or not torch.allclose(norm(trial).double(), normed, rtol=1e-2, atol=1e-2):
        raise UsageError(f"prune.hidden: {name} is no RMS norm, so a rotation is not exact. Choose hidden: selection.")
    return gain


def _sources(
    model: PreTrainedModel, axis: Axis, norms: dict[str, nn.Module], inputs: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Return the norm whose output each linear layer reads, by the layer's name, as one forward pass shows."""
    norm_outputs: dict[int, tuple[str, torch.Tensor]] = {}
    sources: dict[str, str] = {}

    def recording(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            norm_outputs[output.data_ptr()] = (name, output)  # held, so that no other tensor gets its memory

        return hook

    def matching(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            if read.data_ptr() in norm_outputs:
                sources[name] = norm_outputs[read.data_ptr()][0]

        return hook

    owners = dict.fromkeys(slot.name.rpartition(".")[0] for slot in axis.slots)
    handles = [module.register_forward_hook(recording(name)) for name, module in norms.items()]
    handles += [
        model.get_submodule(name).register_forward_pre_hook(matching(name), with_kwargs=True)
        for name in owners
        if name not in norms
    ]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return sources
