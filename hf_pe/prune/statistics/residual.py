"""Statistics of the residual stream: its covariance, and the fraction of its length that kept coordinates hold."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.calibration import watch
from hf_pe.tasks import TaskData, counted_rows


def residual_covariance(model: PreTrainedModel, norms: dict[str, nn.Module], data: TaskData) -> torch.Tensor:
    """Return the mean of u u^T over tokens and norms, scaled to a trace of 1; u is a norm's input over its size.

    Args:
        model: the model.
        norms: norms that read the residual stream, by name.
        data: has the calibration rows.

    Returns:
        *Shape:* (width, width)
    """
    total: dict[str, torch.Tensor] = {}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        rows = counted_rows(inputs, mask).float()
        rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        total["sum"] = total.get("sum", torch.zeros(())) + (rows.T @ rows).double() / len(rows)

    with watch(model, norms, collect) as passes:
        passes.run(data, "principal components")
    return total["sum"] / total["sum"].trace()


def kept_length(
    model: PreTrainedModel, norms: dict[str, nn.Module], kept: dict[str, torch.Tensor], data: TaskData
) -> dict[str, float]:
    """Return for each norm the length of the `kept` coordinates of its input over that of all, as a mean over tokens.

    Where the norm subtracts a mean (LayerNorm), both are centred first.

    Args:
        model: the model.
        norms: the norms, by name.
        kept: indices of the kept coordinates, by name of the norm.
        data: has the calibration rows.
    """
    fractions: dict[str, list[torch.Tensor]] = {}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        channels_last = inputs.shape[-1] == len(next(norms[name].parameters()))
        rows = counted_rows(inputs if channels_last else inputs.movedim(1, -1), mask).float()
        kept_rows = rows[:, kept[name]]
        if isinstance(norms[name], nn.LayerNorm):
            rows, kept_rows = rows - rows.mean(-1, keepdim=True), kept_rows - kept_rows.mean(-1, keepdim=True)
        fractions.setdefault(name, []).append(kept_rows.norm(dim=-1) / rows.norm(dim=-1).clamp_min(1e-12))

    with watch(model, norms, collect) as passes:
        passes.run(data, "norms of the kept width")
    return {name: float(torch.cat(parts).mean()) for name, parts in fractions.items()}
