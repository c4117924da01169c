"""Statistics of a model's activations on calibration data."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import EVERYWHERE, Axis
from hf_pe.calibration import BATCH, comes_by, hidden_of, moments, moments_by_block, watch
from hf_pe.errors import UsageError
from hf_pe.progress import advance
from hf_pe.regression import FOLDS, Moments
from hf_pe.tasks import TaskData, counted_rows

GRADIENT_BATCH = 4
"""Calibration rows a forward and backward pass takes."""


def consumer_moments(
    model: PreTrainedModel, axis: Axis, data: TaskData, *, weighed: bool = False
) -> dict[str, list[Moments]]:
    """Moments of what flows into every map that consumes units of `axis`, by slot, one for each fold.

    With `weighed` each token counts by how far its state turns (`hf_pe.calibration.moments`, `added`).
    """
    modules = _consumers(model, axis)
    return moments(model, modules, data, f"statistics of {axis.name}", _blocks(axis, modules) if weighed else {})


def consumer_moments_by_block(
    model: PreTrainedModel, axis: Axis, data: TaskData, *, weighed: bool = False
) -> Iterator[dict[str, list[Moments]]]:
    """The same block by block, in one pass over the data, with the moments of one block in memory."""
    modules = _consumers(model, axis)
    blocks, what = _blocks(axis, modules), f"statistics of {axis.name}"
    order = list(dict.fromkeys(blocks.values()))
    return moments_by_block(model, modules, order, data, what, blocks if weighed else {})


def moments_bytes(model: PreTrainedModel, axis: Axis) -> int:
    """What the moments of all blocks take."""
    state = model.state_dict()
    widths = [slot.of(state).shape[slot.dim or 0] for slot in axis.slots if slot.consumes]
    return sum(FOLDS * 4 * width**2 for width in widths)


def require_passage(seen: Collection[Any], axis: Axis) -> None:
    """Refuse to choose along an axis of which nothing was seen.

    Raises:
        UsageError: no calibration row goes through it: it lies in another tower.
    """
    if not seen:
        raise UsageError(
            f"prune: no calibration row goes through what '{axis.name}' counts, so that nothing tells its units apart. "
            "Give data that do, leave this axis out, or set its size with keep and choose by magnitude_l2."
        )


def reached(model: PreTrainedModel, axis: Axis, data: TaskData) -> list[str]:
    """Modules of an axis that the first calibration batch goes through which goes through any."""
    names = {slot.group if axis.kind != "layers" else f"{slot.group}.0" for slot in axis.slots}
    names |= {slot.name.rpartition(".")[0] for slot in axis.slots}
    modules = {name: module for name, module in model.named_modules() if name and name in names}
    batches = data.batches(data.calibration, BATCH)
    return next((list(found) for batch in batches if (found := comes_by(model, modules, batch))), [])


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

    wanted = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval().requires_grad_(False)
    start = model.get_input_embeddings().register_forward_hook(lambda m, a, out: out.requires_grad_())
    hooks = [m.register_forward_hook(keep(name)) for name, m in _consumers(model, axis).items()]
    draw = torch.Generator().manual_seed(0)
    try:
        done = 0
        for batch in data.batches(data.calibration, GRADIENT_BATCH):
            rows = len(next(iter(batch.values())))
            signals = data.task.signals(model, {k: v.to(model.device) for k, v in batch.items()})
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
        for hook in [start, *hooks]:
            hook.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)
    return {name: Slopes(torch.cat(parts), outputs[name]) for name, parts in gates.items()}


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


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor | None = tensor.grad
    assert found is not None
    return found


def _blocks(axis: Axis, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The block of each, where the axis has one in every block."""
    return {s.name: s.group for s in axis.slots if s.consumes and s.name in modules and s.group != EVERYWHERE}


def _consumers(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    slots = (s for s in axis.slots if s.consumes and s.entry is None)
    return {s.name: model.get_submodule(s.name.rpartition(".")[0]) for s in slots}
