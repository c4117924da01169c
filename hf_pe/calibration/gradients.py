"""Gradients of the loss at what reads the units of an axis."""

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
"""Calibration rows a forward and backward pass takes."""


class Slopes(NamedTuple):
    """Derivatives of the loss at one linear map.

    Attributes:
        gates: by a gate of 1 on each input, one row for each example, [examples, inputs].
        outputs: sum over tokens of g g^T, g the derivative by the map's output, [outputs, outputs].
    """

    gates: torch.Tensor
    outputs: torch.Tensor


def consumer_slopes(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, Slopes]:
    """Derivatives of each calibration example's loss at the maps that consume units of `axis`, by slot name.

    The loss is the task's own where it has one; else a random direction of its output (embeddings), whose squared
    derivative is, over directions, that of the squared error against the output as it is (Gauss-Newton). No weight
    gets a gradient.
    """
    gates: dict[str, list[torch.Tensor]] = {}
    outputs: dict[str, torch.Tensor] = {}
    now: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            now[name] = (args[0], output)
            args[0].retain_grad()
            output.retain_grad()

        return read

    hooks = [model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_())]
    hooks += [m.register_forward_hook(keep(name)) for name, m in consumers_of(model, axis).items()]
    draw = torch.Generator().manual_seed(0)
    try:
        with frozen(model):
            done = 0
            for batch in data.batches(data.calibration, GRADIENT_BATCH):
                rows = len(next(iter(batch.values())))
                signals = data.task.signals(model, on_device(model, batch))
                loss: Any = signals.get("loss")
                if loss is None:
                    target: Any = signals.get("embeddings", signals.get("logits"))
                    loss = (target * torch.randn(target.shape, generator=draw).to(target)).sum() / rows
                (loss * rows).backward()
                for name, (x, y) in now.items():
                    if y.grad is None:  # nothing of the loss comes through it (BERT's pooler, for embeddings)
                        continue
                    by_gate = (x.detach() * _gradient(x)).float()
                    by_output = _gradient(y).float().flatten(0, -2)
                    gates.setdefault(name, []).append(by_gate.reshape(rows, -1, x.shape[-1]).sum(1))
                    outputs[name] = outputs.get(name, torch.zeros(())) + by_output.T @ by_output
                now.clear()
                done += rows
                advance(f"gradients of {axis.name}", done, len(data.calibration))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Slopes(torch.cat(parts), outputs[name]) for name, parts in gates.items()}


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor | None = tensor.grad
    assert found is not None
    return found
