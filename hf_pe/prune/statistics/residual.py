"""The covariance of the residual stream, and how much of it kept coordinates hold."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.calibration import watch
from hf_pe.tasks import TaskData, counted_rows


def residual_covariance(model: PreTrainedModel, norms: dict[str, nn.Module], data: TaskData) -> torch.Tensor:
    """Mean of u u^T over tokens and norms, u what a norm is given over its root mean square, [width, width]."""
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
    """Of what each norm is given, centred where it centres: length of its `kept` coordinates over that of all."""
    seen: dict[str, list[torch.Tensor]] = {}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        last = inputs.shape[-1] == len(next(norms[name].parameters()))
        rows = counted_rows(inputs if last else inputs.movedim(1, -1), mask).float()
        few = rows[:, kept[name]]
        if isinstance(norms[name], nn.LayerNorm):
            rows, few = rows - rows.mean(-1, keepdim=True), few - few.mean(-1, keepdim=True)
        seen.setdefault(name, []).append(few.norm(dim=-1) / rows.norm(dim=-1).clamp_min(1e-12))

    with watch(model, norms, collect) as passes:
        passes.run(data, "norms of the kept width")
    return {name: float(torch.cat(parts).mean()) for name, parts in seen.items()}
