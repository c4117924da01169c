"""How much of its answers a model loses when one axis alone is cut."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis
from hf_pe.progress import advance
from hf_pe.prune.budget import Setting, Tried
from hf_pe.prune.statistics import BATCH
from hf_pe.tasks import TaskData

SHARES = (0.15, 0.3, 0.5, 0.75, 1.0)
"""How far down its ladder an axis is tried; between, what is lost grows in proportion."""
ROWS = 64
"""Rows that the loss is taken on, behind those that calibrate where there are as many."""


def tried(
    model: PreTrainedModel,
    data: TaskData,
    ladders: Sequence[Sequence[Setting]],
    made: Callable[[Setting], PreTrainedModel],
    cost: Callable[[Setting], float],
) -> list[list[Tried]]:
    """Go down each ladder alone.

    Args:
        model: the original.
        data: the rows.
        ladders: one for each axis.
        made: the model cut to a setting and repaired.
        cost: of a setting.

    Returns:
        For each ladder some rungs, the first and the last among them; the loss never falls.
    """
    wanted, pairs = _answers(model, data), any(_narrows(rungs[0]) for rungs in ladders)
    found = []
    for rungs in ladders:
        last = len(rungs) - 1
        chosen = sorted({max(round(share * last), 1) for share in SHARES})
        curve = [Tried(0, 0.0, cost(rungs[0]))]
        for number, rung in enumerate(chosen, 1):
            loss = _distance(_answers(made(rungs[rung]), data), wanted, pairs=pairs)
            curve.append(Tried(rung, max(loss, curve[-1].loss), cost(rungs[rung])))
            advance(f"sensitivity along {', '.join(rungs[0])}", number, len(chosen))
        found.append(curve)
    return found


def least_loss(
    model: PreTrainedModel,
    data: TaskData,
    settings: Sequence[Setting],
    made: Callable[[Setting], PreTrainedModel],
) -> Setting:
    """Of some settings the one whose cut and repaired model loses least; the first of equals.

    Args:
        model: the original.
        data: the rows.
        settings: at least one.
        made: the model cut to a setting and repaired.
    """
    wanted, found = _answers(model, data), list[float]()
    for number, setting in enumerate(settings, 1):
        found.append(_distance(_answers(made(setting), data), wanted, pairs=_narrows(setting)))
        advance("ways to the target", number, len(settings))
    return settings[found.index(min(found))]


def least_missed(
    model: PreTrainedModel,
    axis: Axis,
    removable: Sequence[int],
    count: int,
    data: TaskData,
    gone: list[int],
) -> list[int]:
    """Layers whose absence costs the model's answers least, taken away one by one, each beside those that went before.

    As SLEB (Song et al. 2024, arXiv:2402.09025, algorithm 1), with the task's answers in place of perplexity.

    Args:
        model: the original.
        axis: of depth; layers of the same number go from all stacks.
        removable: layers that may go.
        count: how many do; as many rounds of passes over `ROWS` rows, one for each layer that is left.
        data: the rows.
        gone: those that are known to go first; gets the others.

    Returns:
        `gone`, at least `count` of them.
    """
    wanted = _answers(model, data) if len(gone) < count else None
    for number in range(len(gone), count):
        assert wanted is not None
        losses = {}
        for layer in (layer for layer in removable if layer not in gone):
            names = [f"{stack}.{i}" for stack in axis.groups for i in (*gone, layer)]
            with _skipped([model.get_submodule(name) for name in names]):
                losses[layer] = _distance(_answers(model, data), wanted)
        gone.append(min(losses, key=lambda layer: losses[layer]))
        advance(f"least missed {axis.name}", number + 1, count)
    return gone


@contextmanager
def _skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let blocks hand on what they are given."""

    def hand_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handles = [block.register_forward_hook(hand_on, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _answers(model: PreTrainedModel, data: TaskData) -> tuple[str, torch.Tensor]:
    """What is compared, and it, row by row: log-probabilities, embeddings, or the loss where tokens are predicted."""
    start = data.examples.config.calibration
    rows = data.train.select(range(start, len(data.train))) if len(data.train) - start >= ROWS else data.calibration
    found, signal = [], "logits"
    for batch in data.batches(rows.select(range(min(ROWS, len(rows)))), BATCH):
        given = data.task.signals(model, {k: v.to(model.device) for k, v in batch.items()})
        signal = next(name for name in ("embeddings", "loss", "logits") if name in given)
        if signal == "loss" and given["logits"].ndim == 2:
            signal = "logits"
        value = given[signal].float()
        found.append(
            value.log_softmax(-1) if signal == "logits" else value.reshape(-1, value.shape[-1] if value.ndim else 1)
        )
    return signal, torch.cat(found)


def _narrows(setting: Setting) -> bool:
    """Whether embeddings may become narrower than those they are compared with."""
    return any(name.rpartition(".")[2] == "hidden" for name in setting)


def _distance(found: tuple[str, torch.Tensor], wanted: tuple[str, torch.Tensor], *, pairs: bool = False) -> float:
    """KL(wanted || found), 1 - cosine, or how much more the loss is; mean over rows. With `pairs`, embeddings by how
    far the cosines between rows have moved."""
    (signal, here), (_, there) = found, wanted
    if signal == "logits":
        return float((there.exp() * (there - here)).sum(-1).mean())
    if signal == "embeddings" and pairs:
        near, far = (functional.normalize(each) @ functional.normalize(each).T for each in (here, there))
        return float((near - far).square().mean().sqrt())
    if signal == "embeddings":
        return float((1 - functional.cosine_similarity(here, there)).mean())
    return float((here - there).mean())
