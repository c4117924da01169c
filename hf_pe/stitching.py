"""Between a new body and a head that was trained on another one: a linear map, fitted and folded into the head."""

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
"""Calibration rows a forward pass takes."""


class StitchPoint(NamedTuple):
    """Where a head reads features: the module of the old model, and the one of the new model in its place."""

    old: str
    new: str


class StitchingLayer(NamedTuple):
    """From the new body's features to the old one's.

    Attributes:
        fit: `move` [new width, old width] and `shift` [old width].
        explained: share of the old features' variance that it gives on rows it had not seen; nan where there are none.
    """

    fit: Fit
    explained: float


def fit_stitching_layer(
    old: PreTrainedModel, new: PreTrainedModel, point: StitchPoint, data: TaskData
) -> StitchingLayer:
    """Fit the stitching layer at a stitch point by ridge regression on the calibration rows.

    Linear regression commutes with linear maps: a stitching layer that is best for the features, merged into a linear
    head, is best for what the head gives too.

    Args:
        old: whose features are wanted.
        new: whose features there are.
        point: a linear map or convolution in both; the stitching layer has an intercept where both have a bias and no
            padding.
        data: its calibration rows go through both models, in evaluation mode.

    Raises:
        UsageError: the features of the two stand at different places (tokens, or pixels of maps).
    """
    modules = (old.get_submodule(point.old), new.get_submodule(point.new))
    rows = data.calibration

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(data.batches(rows, BATCH)):
            with torch.no_grad(), read_by(modules[0]) as wanted, read_by(modules[1]) as given:
                for model in (old, new):
                    model.eval()(**as_read_by(model, batch))
            yield _matched(point, given[-1], wanted[-1].to(given[-1].device), batch)
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
    """Put the old head behind a stitching layer in place of the head of `new`; the layer, fitted first, is what learns.

    The old head stays as it is (Chen et al. 2022, arXiv:2203.14001). `remove_stitching_` ends it.
    """
    head, was = new.get_submodule(point.new), old.get_submodule(point.old)
    stitching = fit_stitching_layer(old, new, point, data).fit
    weight: Any = was.weight
    wide = weight.detach().float().to(stitching.move.device)
    register_parametrization(head, "weight", _Reused(wide, stitching.move.T.contiguous()), unsafe=True)
    if isinstance(head.bias, torch.Tensor):
        bias = was.bias.detach().float() if isinstance(was.bias, torch.Tensor) else wide.new_zeros(len(wide))
        register_parametrization(head, "bias", _Shifted(wide, bias.to(wide.device), stitching.shift), unsafe=True)


def remove_stitching_(head: nn.Module) -> None:
    """Fold the stitching layer into the head: a plain linear map again."""
    for name in ("weight", "bias"):
        if is_parametrized(head, name):
            remove_parametrizations(head, name, leave_parametrized=True)


def stitched_features(head: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Features [..., new width] as the old head reads them, [..., old width]."""
    parts: Any = head.parametrizations
    shift = parts.bias.original if is_parametrized(head, "bias") else None
    return functional.linear(features, parts.weight.original, shift)


@contextmanager
def read_by(head: nn.Module | None) -> Iterator[list[torch.Tensor]]:
    """What flows into `head` inside the block, one tensor a pass; nothing where it is None."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0])) if head is not None else None
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


class _Reused(nn.Module):
    """A head's weight: the old one [labels, old width] applied to a stitching layer [old width, new width]."""

    def __init__(self, weight: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("old", weight, persistent=False)
        self.start = start
        self.old: torch.Tensor

    def forward(self, stitching: torch.Tensor) -> torch.Tensor:
        return self.old @ stitching

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The stitching layer to begin with."""
        return self.start.to(weight.dtype)


class _Shifted(_Reused):
    """A head's bias: the old one, and the old weight applied to the stitching layer's intercept [old width]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__(weight, start)
        self.register_buffer("bias", bias, persistent=False)
        self.bias: torch.Tensor

    def forward(self, stitching: torch.Tensor) -> torch.Tensor:
        return super().forward(stitching) + self.bias


def mergeable(module: nn.Module) -> bool:
    """Whether a stitching layer can be folded into it."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _matched(point: StitchPoint, x: torch.Tensor, y: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [places, width] of both."""
    x, y = (t.movedim(1, -1) if t.ndim == 4 else t for t in (x, y))
    if x.shape[:-1] != y.shape[:-1]:
        raise UsageError(
            f"swap: the features at {point.new} stand at other places: expected {_places(y)} as the original has, got "
            f"{_places(x)}. Choose a backbone with the same strides (or the same tokens)."
        )
    mask = batch.get("attention_mask")
    mask = None if mask is None else mask.to(x.device)
    return counted_rows(x, mask), counted_rows(y, mask)


def _places(x: torch.Tensor) -> str:
    return " x ".join(str(n) for n in x.shape[1:-1]) or "one vector"


def _takes_intercept(module: nn.Module) -> bool:
    return module.bias is not None and (not isinstance(module, nn.Conv2d) or module.padding in ((0, 0), "valid"))
