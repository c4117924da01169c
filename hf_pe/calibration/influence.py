"""Block influence: how far each layer turns the hidden states."""

from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.calibration.coverage import require_passage
from hf_pe.calibration.hooks import hidden_of, watch
from hf_pe.tasks import TaskData, counted_rows


def block_influence(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[int, float]:
    """How much each layer turns the hidden states: 1 - mean cosine between input and output.

    Men et al. 2024, arXiv:2403.03853, eq. 1.
    """
    stack = axis.groups[0]
    turned: dict[str, list[torch.Tensor]] = {str(i): [] for i in range(axis.size)}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        given = hidden_of(output)
        if given.shape != inputs.shape:  # leads into a stage of another width: never chosen
            turned[name].append(torch.ones(1))
        elif inputs.ndim == 4:  # maps, channels first or last: image by image
            turned[name].append(1 - torch.cosine_similarity(inputs.flatten(1).float(), given.flatten(1).float()))
        else:
            before, after = counted_rows(inputs, mask).float(), counted_rows(given, mask).float()
            turned[name].append(1 - torch.cosine_similarity(before, after))

    layers = {name: model.get_submodule(f"{stack}.{name}") for name in turned}
    with watch(model, layers, collect) as passes:
        passes.run(data, f"influence of {axis.name}")
    require_passage([values for values in turned.values() if values], axis)
    return {int(name): float(torch.cat(values).mean()) for name, values in turned.items()}
