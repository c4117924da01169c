"""Plain convolutions rewritten as depthwise and pointwise ones, fitted to what the plain ones gave."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import CustomModules, Separable, custom_modules_of, meta_model, with_custom_modules
from hf_pe.calibration.cache import StatisticsKey
from hf_pe.errors import UsageError
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.progress import advance
from hf_pe.recipe import Recipe, StageState
from hf_pe.regression import fit_rows
from hf_pe.stitching import BATCH
from hf_pe.tasks import TaskData, model_inputs, on_device

PLACES = 128
"""Of a feature map that are looked at: neighbours say the same."""
CLIP = 1e-4
"""Of the largest variance: what a patch hardly does is not divided by."""


def _rewritten_key(plan: Plan) -> StatisticsKey[PreTrainedModel]:
    assert plan.custom_modules is not None
    return StatisticsKey("rewritten convolutions", tuple(plan.custom_modules.separable.items()))


class SeparableConvolutions(Recipe):
    """Rewrite plain convolutions as a depthwise and a pointwise one each; the result is in the plug-in form.

    The depthwise weights are the best factors of rank `rank` of each input channel's kernels, as its patches weigh
    them; the pointwise weights are then fitted by ridge regression to what the convolution gave in the original, layer
    after layer in the order of the forward pass, so that later ones take up the error of earlier ones. A stock config
    cannot say such layers: what is saved loads with `from_pretrained` after `import hf_pe.plugin`.
    """

    tag = "depthwise-separable"
    changes = "structure"
    needs_plain_weights = "packed convolutions cannot be rewritten"

    recipe: Literal["separate"] = "separate"
    rank: int = Field(1, ge=1, description="maps that the depthwise convolution makes of each channel")
    skip: tuple[str, ...] = Field((), description="names of convolutions that stay (with * for any letters)")
    error: float | None = Field(
        None, gt=0, le=1, description="a convolution stays where more of its output's variance than this would be lost"
    )

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Which convolutions change, and the exact sizes unless `error` lets some stay.

        Raises:
            UsageError: there is none that would get smaller, or the model is in the plug-in form already.
        """
        if custom_modules_of(spec.config) is not None:
            raise UsageError("separate: the model's convolutions have been rewritten before. Drop this step.")
        names = self._names(spec)
        return self._planned(spec, names, exact=self.error is None)

    def plan(self, state: StageState) -> Plan:
        """Return the plan with each layer's error on calibration rows, without layers where it is too large."""
        model, data, spec = state.model, state.data, state.spec
        lost: dict[str, float] = {}
        names = self._names(spec)
        made = self._rewritten(model, names, data, lost)
        changed = [name for name in names if isinstance(made.get_submodule(name), Separable)]
        if not changed:
            raise UsageError(
                f"separate.error: every convolution would lose more than {self.error:.0%} of its output's variance "
                f"(the least is {min(lost.values()):.0%}). Ask for less, or raise rank."
            )
        plan, _ = self._planned(spec, changed, exact=True)
        state.statistics.put(model, _rewritten_key(plan), made)
        told = [
            f"{name}: {share:.1%} of the output's variance lost{'' if name in changed else '; stays as it is'}"
            for name, share in lost.items()
        ]
        return plan.model_copy(update={"notes": (*plan.notes, *told)})

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Return the rewritten model in evaluation mode; it shares no memory with the one before."""
        assert plan.custom_modules is not None
        made = state.statistics.pop(state.model, _rewritten_key(plan))
        if made is None:
            names, all_of_them = list(plan.custom_modules.separable), self.model_copy(update={"error": None})
            made = all_of_them._rewritten(state.model, names, state.data, {})
        made.config = with_custom_modules(made.config, plan.custom_modules)
        return state.with_model(made)

    def _planned(self, spec: ModelSpec, names: Sequence[str], *, exact: bool) -> tuple[Plan, ModelSpec]:
        custom = CustomModules(separable=dict.fromkeys(names, self.rank))
        after = replace(spec, config=with_custom_modules(spec.config, custom))
        plan = self.planned(
            title=f"{len(names)} convolutions rewritten as depthwise (rank {self.rank}) and pointwise",
            exact=exact,
            custom_modules=custom,
            notes=("loads after `import hf_pe.plugin`: a stock config cannot say such layers",),
            references=("https://arxiv.org/abs/1704.04861",),
            **spec_sizes(after),
        )
        return plan, after

    def _names(self, spec: ModelSpec) -> list[str]:
        """Convolutions that get smaller, in the order in which they were built."""
        model = meta_model(spec.config, spec.model_class)
        found = [
            name
            for name, module in model.named_modules()
            if type(module) in (nn.Conv1d, nn.Conv2d)
            and module.groups == 1
            and module.padding_mode == "zeros"
            and _count(Separable(module, self.rank)) < _count(module)
            and not any(fnmatch(name, pattern) for pattern in self.skip)
        ]
        if not found:
            raise UsageError(
                f"separate: {spec.model_class.__name__} has no plain convolution that depthwise (rank {self.rank}) "
                "and pointwise ones would make smaller. Lower rank, or choose another recipe."
            )
        return found

    @torch.no_grad()
    def _rewritten(
        self, model: PreTrainedModel, names: Sequence[str], data: TaskData, lost: dict[str, float]
    ) -> PreTrainedModel:
        """Layer after layer, in the order in which they are called; fills `lost` with each one's error."""
        new = copy.deepcopy(model)
        new.eval()
        order = _called(model, names, data)
        for number, name in enumerate(order):
            advance("separating", number, len(order))
            plain: Any = model.get_submodule(name)
            made = Separable(plain, self.rank)
            made.depthwise.weight.copy_(_depthwise(plain, _patches(new, name, data), self.rank))
            rows = (_rows(made.depthwise(x), y) for x, y in _pairs(new, model, name, data))
            found, explained = fit_rows(rows, bias=plain.bias is not None)
            made.pointwise.weight.copy_(found.move.T.reshape(made.pointwise.weight.shape))
            if plain.bias is not None:
                made.pointwise.bias.copy_(found.shift)
            lost[name] = 1 - explained
            if self.error is None or lost[name] <= self.error:
                new.set_submodule(name, made)
        return new


class _Seen(Exception):  # noqa: N818  a signal, not an error
    """A forward pass has come as far as it is needed."""


class _At(NamedTuple):
    """What one module was given and gave."""

    given: torch.Tensor
    gave: torch.Tensor


def _looked_at(model: PreTrainedModel, name: str, batch: dict[str, torch.Tensor]) -> _At:
    """Of a forward pass that ends there."""
    seen: list[_At] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        seen.append(_At(args[0], output))
        raise _Seen

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        model(**on_device(model, model_inputs(batch)))
    except _Seen:
        pass
    finally:
        handle.remove()
    return seen[0]


def _pairs(
    new: PreTrainedModel, old: PreTrainedModel, name: str, data: TaskData
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What flows into a layer of the new model, and what the old one's layer gives, batch after batch."""
    for batch in data.batches(data.calibration, BATCH):
        yield _looked_at(new, name, batch).given, _looked_at(old, name, batch).gave


def _rows(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same places of two maps [batch, channels, ...] as rows [places, channels]."""
    flat = [t.flatten(2).movedim(1, -1) for t in (x, y)]
    places = torch.linspace(0, flat[0].shape[1] - 1, min(PLACES, flat[0].shape[1])).round().long()
    one, other = (t[:, places.to(t.device)].flatten(0, 1) for t in flat)
    return one, other


def _patches(model: PreTrainedModel, name: str, data: TaskData) -> torch.Tensor:
    """Of each input channel of a convolution the second moments of its patches, [channels, places, places]."""
    conv: Any = model.get_submodule(name)
    total: Any = 0
    for batch in data.batches(data.calibration, BATCH):
        given = _looked_at(model, name, batch).given
        count, channels = given.shape[:2]
        each = given.reshape(count * channels, 1, *given.shape[2:]).float()
        kernel = torch.eye(conv.weight[0, 0].numel(), device=given.device).reshape(-1, 1, *conv.kernel_size)
        how = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        convolve: Any = nn.functional.conv2d if given.ndim == 4 else nn.functional.conv1d
        found = convolve(each, kernel, **how).flatten(2)
        places = torch.linspace(0, found.shape[-1] - 1, min(PLACES, found.shape[-1])).round().long()
        found = found[..., places.to(found.device)].reshape(count, channels, len(kernel), -1)
        total = total + torch.einsum("bcip,bcjp->cij", found, found)
    return total  # type: ignore[no-any-return]


def _depthwise(conv: Any, patches: torch.Tensor, rank: int) -> torch.Tensor:
    """Of each input channel the kernels [out, places] in their best `rank` factors, as its patches weigh them
    (Eckart and Young 1936, of K C^1/2), [channels x rank, 1, ...]."""
    kernels = conv.weight.float().flatten(2).movedim(1, 0)  # [channels, out, places]
    values, vectors = torch.linalg.eigh(patches)
    roots = values.clamp_min(values[:, -1:] * CLIP).clamp_min(1e-12).sqrt()
    root = vectors * roots[:, None] @ vectors.mT
    back = vectors / roots[:, None] @ vectors.mT
    factors = torch.linalg.svd(kernels @ root, full_matrices=False).Vh[:, :rank]
    if factors.shape[1] < rank:
        factors = nn.functional.pad(factors, (0, 0, 0, rank - factors.shape[1]))
    found: torch.Tensor = (factors @ back).reshape(-1, 1, *conv.kernel_size).to(conv.weight.dtype)
    return found


def _called(model: PreTrainedModel, names: Sequence[str], data: TaskData) -> list[str]:
    """The names in the order in which a forward pass calls them; those that it does not call are left out."""
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name)) for name in names
    ]
    batch = next(iter(data.batches(data.calibration, 2)))
    try:
        model.eval()(**on_device(model, model_inputs(batch)))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
