"""How much of its answers a model loses when one axis alone is cut."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel

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
    wanted = _answers(model, data)
    found = []
    for rungs in ladders:
        last = len(rungs) - 1
        chosen = sorted({max(round(share * last), 1) for share in SHARES})
        curve = [Tried(0, 0.0, cost(rungs[0]))]
        for number, rung in enumerate(chosen, 1):
            loss = _distance(_answers(made(rungs[rung]), data), wanted)
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
        found.append(_distance(_answers(made(setting), data), wanted))
        advance("ways to the target", number, len(settings))
    return settings[found.index(min(found))]


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


def _distance(found: tuple[str, torch.Tensor], wanted: tuple[str, torch.Tensor]) -> float:
    """KL(wanted || found), 1 - cosine, or how much more the loss is; mean over rows."""
    (signal, here), (_, there) = found, wanted
    if signal == "logits":
        return float((there.exp() * (there - here)).sum(-1).mean())
    if signal == "embeddings":
        return float((1 - functional.cosine_similarity(here, there)).mean())
    return float((here - there).mean())
