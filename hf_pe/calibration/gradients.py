"""Gradients of the loss at the linear layers that read the units of an axis."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration.consumers import consumers_of
from hf_pe.modes import frozen
from hf_pe.progress import advance
from hf_pe.tasks import TaskData, on_device

GRADIENT_BATCH = 4
"""Calibration rows in one forward and backward pass."""


class Gradients(NamedTuple):
    """Gradients of the loss at one linear layer.

    Attributes:
        gates: with respect to a gate of 1 that each input is multiplied by, one row for each example.
            *Shape:* (examples, inputs)
        outputs: sum over tokens of g g^T, g the gradient with respect to the layer's output.
            *Shape:* (outputs, outputs)
    """

    gates: torch.Tensor
    outputs: torch.Tensor


def consumer_gradients(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, Gradients]:
    """Return the gradients of each calibration example's loss at the linear layers that read units of `axis`.

    The loss is the task's own where it has one. Without one (embeddings) it is the output along a random direction: the
    mean of its squared gradient over directions is the Gauss-Newton matrix of the squared error to the output as it is.
    Gradients flow through activations only; no weight gets one.

    Returns:
        The gradients by slot name; a layer that the loss does not depend on is missing.
    """
    gates: dict[str, list[torch.Tensor]] = {}
    outputs: dict[str, torch.Tensor] = {}
    tensors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # input and output of each layer on this batch

    def recording(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            tensors[name] = (args[0], output)
            args[0].retain_grad()
            output.retain_grad()

        return record

    hooks = [model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_())]
    hooks += [m.register_forward_hook(recording(name)) for name, m in consumers_of(model, axis).items()]
    generator = torch.Generator().manual_seed(0)
    try:
        with frozen(model):
            done = 0
            for batch in data.batches(data.calibration, GRADIENT_BATCH):
                rows = len(next(iter(batch.values())))
                signals = data.task.signals(model, on_device(model, batch))
                loss: Any = signals.get("loss")
                if loss is None:
                    output: Any = signals.get("embeddings", signals.get("logits"))
                    loss = (output * torch.randn(output.shape, generator=generator).to(output)).sum() / rows
                (loss * rows).backward()
                for name, (x, y) in tensors.items():
                    if y.grad is None:  # the loss does not depend on it (BERT's pooler, for embeddings)
                        continue
                    by_gate = (x.detach() * _gradient(x)).float()
                    by_output = _gradient(y).float().flatten(0, -2)
                    gates.setdefault(name, []).append(by_gate.reshape(rows, -1, x.shape[-1]).sum(1))
                    outputs[name] = outputs.get(name, torch.zeros(())) + by_output.T @ by_output
                tensors.clear()
                done += rows
                advance(f"gradients of {axis.name}", done, len(data.calibration))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Gradients(torch.cat(parts), outputs[name]) for name, parts in gates.items()}


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    gradient: torch.Tensor | None = tensor.grad
    assert gradient is not None
    return gradient
