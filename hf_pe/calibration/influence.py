"""Block influence: how far each layer rotates the hidden states."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration.coverage import require_reached
from hf_pe.calibration.hooks import hidden_of, watch
from hf_pe.tasks import TaskData, counted_rows


def block_influence(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[int, float]:
    """Return the block influence of each layer: 1 - the mean cosine between its input and its output.

    Men et al. 2024, arXiv:2403.03853, eq. 1.

    Args:
        model: the model.
        axis: an axis of depth; its first stack of layers is looked at.
        data: has the calibration rows.

    Raises:
        UsageError: no calibration row reaches the layers.
    """
    stack = axis.groups[0]
    distances: dict[str, list[torch.Tensor]] = {str(i): [] for i in range(axis.size)}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        hidden = hidden_of(output)
        if hidden.shape != inputs.shape:  # a layer that leads into a stage of another width is never removed
            distances[name].append(torch.ones(1))
        elif inputs.ndim == 4:  # feature maps, channels first or last: image by image
            distances[name].append(1 - torch.cosine_similarity(inputs.flatten(1).float(), hidden.flatten(1).float()))
        else:
            before, after = counted_rows(inputs, mask).float(), counted_rows(hidden, mask).float()
            distances[name].append(1 - torch.cosine_similarity(before, after))

    layers = {name: model.get_submodule(f"{stack}.{name}") for name in distances}
    with watch(model, layers, collect) as passes:
        passes.run(data, f"influence of {axis.name}")
    require_reached([values for values in distances.values() if values], axis)
    return {int(name): float(torch.cat(values).mean()) for name, values in distances.items()}
