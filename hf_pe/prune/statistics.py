"""Statistics of a model's activations on calibration data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.progress import advance
from hf_pe.prune.lockstep import Stop, lockstep
from hf_pe.regression import FOLDS, Moments, add_to_fold
from hf_pe.tasks import Batch, TaskData, counted_rows, model_inputs

BATCH = 8
"""Calibration rows a forward pass takes."""
GRADIENT_BATCH = 4
"""Calibration rows a forward and backward pass takes."""


def consumer_moments(model: PreTrainedModel, axis: Axis, data: TaskData) -> dict[str, list[Moments]]:
    """Moments of what flows into every map that consumes units of `axis`, by slot, one for each fold."""
    sums, modules = _Sums(), _consumers(model, axis)
    if modules:
        with _watch(model, modules, sums.collect) as passes:
            passes.run(data, f"statistics of {axis.name}")
    return sums.taken()


def moments_by_block(model: PreTrainedModel, axis: Axis, data: TaskData) -> Iterator[dict[str, list[Moments]]]:
    """The same block by block, in one pass over the data, with the moments of one block in memory."""
    sums, modules = _Sums(), _consumers(model, axis)
    blocks = list(dict.fromkeys(slot.group for slot in axis.slots if slot.name in modules))
    if modules:
        with _watch(model, modules, sums.collect) as passes:
            for _ in passes.walk(data, blocks, f"statistics of {axis.name}"):
                yield sums.taken()


def moments_bytes(model: PreTrainedModel, axis: Axis) -> int:
    """What the moments of all blocks take."""
    state = model.state_dict()
    widths = [slot.of(state).shape[slot.dim or 0] for slot in axis.slots if slot.consumes]
    return sum(FOLDS * 4 * width**2 for width in widths)


class _Sums:
    """Moments by slot as they come in."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sums: dict[str, list[Moments]] = {}
        self.first: dict[str, str] = {}  # one is enough of maps that read the very same tensor
        self.last: list[Any] = [None, ""]

    def collect(self, name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        if inputs is self.last[0] and self.first.setdefault(name, self.last[1]) != name:
            return
        self.last[:] = inputs, self.first.setdefault(name, name)
        add_to_fold(self.sums.setdefault(name, []), number, Moments.of(counted_rows(inputs, mask)))

    def taken(self) -> dict[str, list[Moments]]:
        """What came since it was last asked for."""
        found = {name: self.sums[source] for name, source in self.first.items()}
        self._clear()
        return found


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
    with _watch(model, layers, collect) as passes:
        passes.run(data, f"influence of {axis.name}")
    return {int(name): float(torch.cat(values).mean()) for name, values in turned.items()}


def residual_covariance(model: PreTrainedModel, norms: dict[str, nn.Module], data: TaskData) -> torch.Tensor:
    """Mean of u u^T over tokens and norms, u what a norm is given over its root mean square, [width, width]."""
    total: dict[str, torch.Tensor] = {}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        rows = counted_rows(inputs, mask).float()
        rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        total["sum"] = total.get("sum", torch.zeros(())) + (rows.T @ rows).double() / len(rows)

    with _watch(model, norms, collect) as passes:
        passes.run(data, "principal components")
    return total["sum"] / total["sum"].trace()


def kept_length(
    model: PreTrainedModel, norms: dict[str, nn.Module], kept: torch.Tensor, data: TaskData
) -> dict[str, float]:
    """Of what each norm is given, centred where it centres: length of the `kept` coordinates over that of all."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in norms}

    def collect(name: str, number: int, mask: torch.Tensor | None, inputs: torch.Tensor, output: Any) -> None:
        rows = counted_rows(inputs, mask).float()
        few = rows[:, kept]
        if isinstance(norms[name], nn.LayerNorm):
            rows, few = rows - rows.mean(-1, keepdim=True), few - few.mean(-1, keepdim=True)
        seen[name].append(few.norm(dim=-1) / rows.norm(dim=-1).clamp_min(1e-12))

    with _watch(model, norms, collect) as passes:
        passes.run(data, "norms of the kept width")
    return {name: float(torch.cat(parts).mean()) for name, parts in seen.items()}


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states among what a block gives."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _body(model: PreTrainedModel, modules: list[nn.Module]) -> nn.Module:
    """The model without its head, whose logits nobody asks for, where all `modules` lie in it."""
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    return body if all(id(module) in inside for module in modules) else model


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor | None = tensor.grad
    assert found is not None
    return found


def _consumers(model: PreTrainedModel, axis: Axis) -> dict[str, nn.Module]:
    slots = (s for s in axis.slots if s.consumes and s.entry is None)
    return {s.name: model.get_submodule(s.name.rpartition(".")[0]) for s in slots}


class Passes:
    """Forward passes of a model in evaluation mode, whose hooks can ask which batch is on its way.

    Attributes:
        number, mask: of the batch, and its attention mask.
    """

    def __init__(self, model: PreTrainedModel, body: nn.Module) -> None:
        self.model, self.body = model, body
        self.number = 0
        self.mask: torch.Tensor | None = None

    def run(self, data: TaskData, what: str) -> None:
        """All calibration rows, batch by batch."""
        done = 0
        with torch.no_grad():
            for number, batch in enumerate(data.batches(data.calibration, BATCH)):
                batch = {k: v.to(self.model.device) for k, v in batch.items()}
                self._turn(number, batch)
                self.body(**model_inputs(batch))
                done += len(next(iter(batch.values())))
                advance(what, done, len(data.calibration))

    def walk(self, data: TaskData, blocks: Sequence[str], what: str) -> Iterator[str]:
        """All calibration rows through one block after the other; each is given when they are through."""
        batches = data.batches(data.calibration, BATCH)
        with lockstep(self.model, batches, [Stop(block, after=True) for block in blocks], self._turn) as doors:
            for done, (block, _) in enumerate(zip(blocks, doors, strict=True), 1):
                advance(what, done, len(blocks))
                yield block

    def _turn(self, number: int, batch: Batch) -> None:
        self.number, self.mask = number, batch.get("attention_mask")


@contextmanager
def watching(passes: Passes, handles: list[Any]) -> Iterator[Passes]:
    """Keep hooks, and evaluation mode, while `passes` run."""
    with evaluating(passes.model):
        try:
            yield passes
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside, the mode it was in afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _watch(model: PreTrainedModel, modules: dict[str, nn.Module], collect: Callable[..., None]) -> Iterator[Passes]:
    """`collect` gets what each of `modules` reads and gives."""
    passes = Passes(model, _body(model, list(modules.values())))

    def hook(name: str) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inputs = args[0] if args else kwargs["hidden_states"]
            collect(name, passes.number, passes.mask, inputs, output)

        return read

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    with watching(passes, handles):
        yield passes
