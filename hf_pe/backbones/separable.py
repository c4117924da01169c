"""Rewrites plain convolutions as depthwise and pointwise ones that are fitted to the outputs of the plain ones."""

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

MAX_POSITIONS = 128
"""Positions of a feature map that are used: neighbouring ones are nearly the same."""
MIN_VARIANCE = 1e-4
"""Smallest variance of a direction of a channel's patches that is divided by, as a fraction of the largest."""


def _rewritten_key(plan: Plan) -> StatisticsKey[PreTrainedModel]:
    assert plan.custom_modules is not None
    return StatisticsKey("rewritten convolutions", tuple(plan.custom_modules.separable.items()))


class SeparableConvolutions(Recipe):
    """Rewrite each plain convolution as a depthwise and a pointwise one; the result has custom modules.

    The depthwise weights are the best approximation of rank `rank` of each input channel's kernels, weighted by the
    second moments of its patches. The pointwise weights are then fitted by ridge regression to the outputs of the
    original convolution, layer by layer in the order of the forward pass, so that later layers correct errors of
    earlier ones. A stock config cannot express such layers: the saved model loads with `from_pretrained` after
    `import hf_pe.plugin`.
    """

    tag = "depthwise-separable"
    changes = "structure"
    needs_plain_weights = "quantized convolutions cannot be rewritten"

    recipe: Literal["separate"] = "separate"
    rank: int = Field(1, ge=1, description="outputs of the depthwise convolution for each input channel")
    skip: tuple[str, ...] = Field((), description="names of convolutions that are not rewritten (* for any letters)")
    error: float | None = Field(
        None, gt=0, le=1, description="largest fraction of its output's variance that a rewritten convolution may lose"
    )

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Return the plan with the convolutions that change; its sizes are exact unless `error` is set.

        Raises:
            UsageError: no convolution would become smaller, or the model has custom modules already.
        """
        if custom_modules_of(spec.config) is not None:
            raise UsageError("separate: the model's convolutions have been rewritten before. Drop this step.")
        names = self._names(spec)
        return self._planned(spec, names, exact=self.error is None)

    def plan(self, state: StageState) -> Plan:
        """Return the plan with each layer's error on calibration rows, without layers whose error is too large.

        Raises:
            UsageError: as `dry_run`; or every layer's error is too large.
        """
        model, data, spec = state.model, state.data, state.spec
        lost_variance: dict[str, float] = {}
        names = self._names(spec)
        rewritten = self._rewritten(model, names, data, lost_variance)
        changed = [name for name in names if isinstance(rewritten.get_submodule(name), Separable)]
        if not changed:
            raise UsageError(
                f"separate.error: every convolution would lose more than {self.error:.0%} of its output's variance "
                f"(at least {min(lost_variance.values()):.0%}). Raise error or rank."
            )
        plan, _ = self._planned(spec, changed, exact=True)
        state.statistics.put(model, _rewritten_key(plan), rewritten)
        notes = [
            f"{name}: {share:.1%} of the output's variance lost{'' if name in changed else '; not rewritten'}"
            for name, share in lost_variance.items()
        ]
        return plan.model_copy(update={"notes": (*plan.notes, *notes)})

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Return the rewritten model in evaluation mode; it shares no memory with the one before."""
        assert plan.custom_modules is not None
        new = state.statistics.pop(state.model, _rewritten_key(plan))
        if new is None:
            names, without_limit = list(plan.custom_modules.separable), self.model_copy(update={"error": None})
            new = without_limit._rewritten(state.model, names, state.data, {})
        new.config = with_custom_modules(new.config, plan.custom_modules)
        return state.with_model(new)

    def _planned(self, spec: ModelSpec, names: Sequence[str], *, exact: bool) -> tuple[Plan, ModelSpec]:
        custom = CustomModules(separable=dict.fromkeys(names, self.rank))
        after = replace(spec, config=with_custom_modules(spec.config, custom))
        plan = self.planned(
            title=f"{len(names)} convolutions rewritten as depthwise (rank {self.rank}) and pointwise",
            exact=exact,
            custom_modules=custom,
            notes=("loads after `import hf_pe.plugin`: a stock config cannot express such layers",),
            references=("https://arxiv.org/abs/1704.04861",),
            **spec_sizes(after),
        )
        return plan, after

    def _names(self, spec: ModelSpec) -> list[str]:
        """Return the names of the convolutions that become smaller, in the order in which they were built."""
        model = meta_model(spec.config, spec.model_class)
        names = [
            name
            for name, module in model.named_modules()
            if type(module) in (nn.Conv1d, nn.Conv2d)
            and module.groups == 1
            and module.padding_mode == "zeros"
            and _count(Separable(module, self.rank)) < _count(module)
            and not any(fnmatch(name, pattern) for pattern in self.skip)
        ]
        if not names:
            raise UsageError(
                f"separate: {spec.model_class.__name__} has no plain convolution that depthwise (rank {self.rank}) "
                "and pointwise ones would make smaller. Lower rank, or choose another recipe."
            )
        return names

    @torch.no_grad()
    def _rewritten(
        self, model: PreTrainedModel, names: Sequence[str], data: TaskData, lost_variance: dict[str, float]
    ) -> PreTrainedModel:
        """Return a copy of the model with convolutions rewritten, one after the other as the forward pass calls them.

        Args:
            model: stays as it is.
            names: of the convolutions.
            data: has the calibration rows.
            lost_variance: gets the fraction of each output's variance that is lost, by name.
        """
        new = copy.deepcopy(model)
        new.eval()
        order = _called(model, names, data)
        for number, name in enumerate(order):
            advance("separating", number, len(order))
            plain: Any = model.get_submodule(name)
            separable = Separable(plain, self.rank)
            separable.depthwise.weight.copy_(_depthwise(plain, _patches(new, name, data), self.rank))
            rows = (_rows(separable.depthwise(x), y) for x, y in _pairs(new, model, name, data))
            fit, explained = fit_rows(rows, bias=plain.bias is not None)
            separable.pointwise.weight.copy_(fit.move.T.reshape(separable.pointwise.weight.shape))
            if plain.bias is not None:
                separable.pointwise.bias.copy_(fit.shift)
            lost_variance[name] = 1 - explained
            if self.error is None or lost_variance[name] <= self.error:
                new.set_submodule(name, separable)
        return new


class _Reached(Exception):  # noqa: N818  a signal, not an error
    """A forward pass has reached the module whose tensors are read."""


class _Call(NamedTuple):
    """Hold the input and the output of a module."""

    inputs: torch.Tensor
    output: torch.Tensor


def _call_of(model: PreTrainedModel, name: str, batch: dict[str, torch.Tensor]) -> _Call:
    """Return the input and the output of a module in a forward pass, which ends there."""
    calls: list[_Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        calls.append(_Call(args[0], output))
        raise _Reached

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        model(**on_device(model, model_inputs(batch)))
    except _Reached:
        pass
    finally:
        handle.remove()
    return calls[0]


def _pairs(
    new: PreTrainedModel, old: PreTrainedModel, name: str, data: TaskData
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a layer's input in the new model and its output in the old one, batch after batch."""
    for batch in data.batches(data.calibration, BATCH):
        yield _call_of(new, name, batch).inputs, _call_of(old, name, batch).output


def _rows(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same positions of two maps [batch, channels, ...] as rows [positions, channels]."""
    flat_x, flat_y = (t.flatten(2).movedim(1, -1) for t in (x, y))
    positions = _spread_positions(flat_x.shape[1])
    return (
        flat_x[:, positions.to(x.device)].flatten(0, 1),
        flat_y[:, positions.to(y.device)].flatten(0, 1),
    )


def _spread_positions(count: int) -> torch.Tensor:
    """Return at most `MAX_POSITIONS` indices below `count`, spread evenly."""
    return torch.linspace(0, count - 1, min(MAX_POSITIONS, count)).round().long()


def _patches(model: PreTrainedModel, name: str, data: TaskData) -> torch.Tensor:
    """Return the second moments of the patches that each input channel of a convolution shows to its kernels.

    Args:
        model: has the convolution.
        name: of the convolution.
        data: has the calibration rows.

    Returns:
        [channels, kernel size, kernel size], the kernel's positions flattened.
    """
    conv: Any = model.get_submodule(name)
    total: Any = 0
    for batch in data.batches(data.calibration, BATCH):
        inputs = _call_of(model, name, batch).inputs
        count, channels = inputs.shape[:2]
        single_channels = inputs.reshape(count * channels, 1, *inputs.shape[2:]).float()
        kernel = torch.eye(conv.weight[0, 0].numel(), device=inputs.device).reshape(-1, 1, *conv.kernel_size)
        options = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        convolve: Any = nn.functional.conv2d if inputs.ndim == 4 else nn.functional.conv1d
        patches = convolve(single_channels, kernel, **options).flatten(2)
        positions = _spread_positions(patches.shape[-1])
        patches = patches[..., positions.to(patches.device)].reshape(count, channels, len(kernel), -1)
        total = total + torch.einsum("bcip,bcjp->cij", patches, patches)
    return total  # type: ignore[no-any-return]


def _depthwise(conv: Any, patches: torch.Tensor, rank: int) -> torch.Tensor:
    """Return depthwise kernels that span the best approximation of rank `rank` of each input channel's kernels.

    With K the kernels of one channel [out, kernel size] and C the second moments of its patches, these are the first
    `rank` right singular vectors of K C^1/2, times C^-1/2 (Eckart and Young 1936).

    Args:
        conv: the plain convolution.
        patches: C of each channel, [channels, kernel size, kernel size].
        rank: kernels for each channel.

    Returns:
        [channels x rank, 1, ...], the kernel's dimensions last.
    """
    kernels = conv.weight.float().flatten(2).movedim(1, 0)  # [channels, out, kernel size]
    values, vectors = torch.linalg.eigh(patches)
    roots = values.clamp_min(values[:, -1:] * MIN_VARIANCE).clamp_min(1e-12).sqrt()
    root = vectors * roots[:, None] @ vectors.mT
    inverse_root = vectors / roots[:, None] @ vectors.mT
    factors = torch.linalg.svd(kernels @ root, full_matrices=False).Vh[:, :rank]
    if factors.shape[1] < rank:
        factors = nn.functional.pad(factors, (0, 0, 0, rank - factors.shape[1]))
    weight: torch.Tensor = (factors @ inverse_root).reshape(-1, 1, *conv.kernel_size).to(conv.weight.dtype)
    return weight


def _called(model: PreTrainedModel, names: Sequence[str], data: TaskData) -> list[str]:
    """Return the names of modules in the order in which a forward pass calls them, without those it does not call."""
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
