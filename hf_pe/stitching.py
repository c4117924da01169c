"""Stitches a new body to a head that was trained on another one, by a linear layer that is merged into the head.

The *stitching layer* maps the new body's features to those of the old body. It is fitted by ridge regression, and since
the head is linear too, the product of both is a plain head for the new body. The *stitch point* is where the head reads
its features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations
from transformers import PreTrainedModel

from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.regression import Fit, fit_rows
from hf_pe.tasks import Batch, TaskData, as_read_by, counted_rows

BATCH = 16
"""Calibration rows in a forward pass."""


class StitchPoint(NamedTuple):
    """Name the module that reads the body's features in the old model, and its counterpart in the new one."""

    old: str
    new: str


class StitchingLayer(NamedTuple):
    """Hold the linear map from the new body's features to the old body's.

    Attributes:
        fit: its weight `move` [new width, old width] and intercept `shift` [old width].
        explained: fraction of the old features' variance that it explains on held-out rows; nan without such rows.
    """

    fit: Fit
    explained: float


def fit_stitching_layer(
    old: PreTrainedModel, new: PreTrainedModel, point: StitchPoint, data: TaskData
) -> StitchingLayer:
    """Fit the stitching layer at a stitch point by ridge regression on the calibration rows.

    Linear regression commutes with linear maps: a stitching layer that is best for the features, merged into a linear
    head, is best for the head's outputs too.

    Args:
        old: the model whose features the layer predicts.
        new: the model whose features the layer reads.
        point: a linear layer or convolution in both; the stitching layer has an intercept where both have a bias and no
            padding.
        data: its calibration rows pass through both models, in evaluation mode.

    Raises:
        UsageError: the features of the two have different positions (tokens, or pixels of feature maps).
    """
    modules = (old.get_submodule(point.old), new.get_submodule(point.new))
    rows = data.calibration

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(data.batches(rows, BATCH)):
            with torch.no_grad(), read_by(modules[0]) as old_features, read_by(modules[1]) as new_features:
                for model in (old, new):
                    model.eval()(**as_read_by(model, batch))
            yield _matched(point, new_features[-1], old_features[-1].to(new_features[-1].device), batch)
            advance("stitching layer", min((number + 1) * BATCH, len(rows)), len(rows))

    return StitchingLayer(*fit_rows(pairs(), bias=all(_takes_intercept(module) for module in modules)))


@torch.no_grad()
def merge_(old: nn.Module, new: nn.Module, stitching: StitchingLayer) -> None:
    """Write into `new` the product of `old` and the stitching layer: W_new = W_old B^T, b_new = b_old + W_old s."""
    weight: Any = old.weight
    flat = weight.float().flatten(2) if weight.ndim > 2 else weight.float()[..., None]
    folded = torch.einsum("oik,ji->ojk", flat, stitching.fit.move.to(flat.device))
    kept: Any = new.weight
    kept.copy_(folded.reshape(kept.shape))
    if isinstance(new.bias, torch.Tensor) and isinstance(old.bias, torch.Tensor):
        new.bias.copy_(old.bias.float() + flat.sum(-1) @ stitching.fit.shift.to(flat.device))
    elif isinstance(new.bias, torch.Tensor):
        new.bias.zero_()


def reuse_(old: PreTrainedModel, new: PreTrainedModel, point: StitchPoint, data: TaskData) -> None:
    """Replace the head of `new` by the old head behind a stitching layer, which is fitted and can then be trained.

    The old head is frozen (Chen et al. 2022, arXiv:2203.14001). `remove_stitching_` makes it a plain head again.

    Args:
        old: the model with the old head; stays as it is.
        new: the model whose head is replaced.
        point: where both heads read features.
        data: see `fit_stitching_layer`.
    """
    head, old_head = new.get_submodule(point.new), old.get_submodule(point.old)
    stitching = fit_stitching_layer(old, new, point, data).fit
    old_weight: Any = old_head.weight
    weight = old_weight.detach().float().to(stitching.move.device)
    register_parametrization(head, "weight", _Reused(weight, stitching.move.T.contiguous()), unsafe=True)
    if isinstance(head.bias, torch.Tensor):
        old_bias = old_head.bias
        bias = old_bias.detach().float() if isinstance(old_bias, torch.Tensor) else weight.new_zeros(len(weight))
        register_parametrization(head, "bias", _Shifted(weight, bias.to(weight.device), stitching.shift), unsafe=True)


def remove_stitching_(head: nn.Module) -> None:
    """Merge the stitching layer into the head, which is a plain linear layer again."""
    for name in ("weight", "bias"):
        if is_parametrized(head, name):
            remove_parametrizations(head, name, leave_parametrized=True)


def stitched_features(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return features [..., new width] as the old head reads them, [..., old width]."""
    parts: Any = head.parametrizations
    shift = parts.bias.original if is_parametrized(head, "bias") else None
    return functional.linear(features, parts.weight.original, shift)


@contextmanager
def read_by(head: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """Yield a list that gets the input of `head` in each forward pass inside the block; an empty one without a head."""
    features: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: features.append(args[0])) if head is not None else None
    try:
        yield features
    finally:
        if handle is not None:
            handle.remove()


class _Reused(nn.Module):
    """Compute a head's weight as the old weight [labels, old width] times a stitching layer [old width, new width]."""

    def __init__(self, weight: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("old", weight, persistent=False)
        self.start = start
        self.old: torch.Tensor

    def forward(self, stitching: torch.Tensor) -> torch.Tensor:
        return self.old @ stitching

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the initial stitching layer."""
        return self.start.to(weight.dtype)


class _Shifted(_Reused):
    """Compute a head's bias as the old bias plus the old weight times the stitching layer's intercept [old width]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__(weight, start)
        self.register_buffer("bias", bias, persistent=False)
        self.bias: torch.Tensor

    def forward(self, stitching: torch.Tensor) -> torch.Tensor:
        return super().forward(stitching) + self.bias


def mergeable(module: nn.Module) -> bool:
    """Return whether a stitching layer can be merged into a module."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _matched(point: StitchPoint, x: torch.Tensor, y: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features x of the new model and y of the old one as rows [positions, width], without padding."""
    x, y = (t.movedim(1, -1) if t.ndim == 4 else t for t in (x, y))
    if x.shape[:-1] != y.shape[:-1]:
        raise UsageError(
            f"swap: the features at {point.new} have other positions: expected {_positions(y)} as the original has, "
            f"got {_positions(x)}. Choose a backbone with the same strides (or the same tokens)."
        )
    mask = batch.get("attention_mask")
    mask = None if mask is None else mask.to(x.device)
    return counted_rows(x, mask), counted_rows(y, mask)


def _positions(x: torch.Tensor) -> str:
    return " x ".join(str(n) for n in x.shape[1:-1]) or "one vector"


def _takes_intercept(module: nn.Module) -> bool:
    return module.bias is not None and (not isinstance(module, nn.Conv2d) or module.padding in ((0, 0), "valid"))
