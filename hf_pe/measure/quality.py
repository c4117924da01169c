"""Quality: the task's metric, or the user's own; and how sure a change of it is."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_pe.errors import NotFiniteError, UsageError, explained, one_line
from hf_pe.modes import evaluating
from hf_pe.overflow import overflow_of
from hf_pe.report import MetricChange, SliceChange
from hf_pe.tasks import EvalResult, TaskData, as_read_by, on_device

FIRST_ROWS = 4
"""Rows on which it is seen whether a model can answer at all."""
Evaluate = Callable[[PreTrainedModel], dict[str, float]]


def evaluate_task(model: PreTrainedModel, data: TaskData) -> EvalResult:
    """Return what the task sees of every held-out example.

    Raises:
        NotFiniteError: `model` is in float16 and overflows on the first rows.
    """
    with evaluating(model):
        overflow = overflow_of(model, lambda: first_outputs(model, data))
        if overflow is not None:
            raise NotFiniteError(overflow)
        return data.task.evaluate(model, data)


def first_outputs(model: PreTrainedModel, data: TaskData) -> None:
    """Pass the first evaluation rows through `model`.

    Raises:
        UsageError: it cannot read what its processor makes of them.
    """
    rows = data.eval.select(range(min(FIRST_ROWS, len(data.eval))))
    misfit = explained(
        lambda error: (
            f"{type(model).__name__} cannot read what its tokenizer or processor makes of the data: "
            f"{one_line(error, 300)}. Check that the two belong together, and the settings of the processor "
            "(preprocessor_config.json)."
        )
    )
    with misfit, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for batch in data.batches(rows, FIRST_ROWS):
            placed = on_device(model, batch)
            data.task.signals(model, placed | as_read_by(model, batch))


def quality(model: PreTrainedModel, data: TaskData | None, evaluate: Evaluate | None = None) -> dict[str, float]:
    """Metrics of `model` by `evaluate` if given, else by the task on its held-out rows.

    Raises:
        UsageError: the user's function does not give a dict of numbers.
    """
    if evaluate is None:
        return evaluate_task(model, data).scores() if data else {}
    with evaluating(model):
        found = evaluate(model)
    if not isinstance(found, dict) or not all(isinstance(v, (int, float)) for v in found.values()):
        raise UsageError(f"evaluate(model): expected a dict of numbers, got {found!r:.200}.")
    return {name: float(value) for name, value in found.items()}


def chance_warnings(model: PreTrainedModel, scores: Mapping[str, float], data: TaskData) -> tuple[str, ...]:
    """Return a sentence where a model's metric is no better than guesses that do not look at the inputs.

    Args:
        model: the original.
        scores: its metrics on the evaluation rows.
        data: with the task that knows the level of chance.
    """
    task = data.task
    level, value = task.chance(model, data), scores[task.metric]
    if level is None or (value > level if task.higher_is_better else value < level):
        return ()
    return (
        f"The original's {task.metric} is {value:.4g} on the evaluation rows, no better than guesses that do not look "
        f"at the inputs ({level:.4g}). Check that the model, its tokenizer or processor, the labels and the task "
        "belong together.",
    )


def changes(before: EvalResult, after: EvalResult, *, resamples: int = 500, seed: int = 0) -> tuple[MetricChange, ...]:
    """Each metric's change with its 95 % interval by paired bootstrap over the same examples, and slice by slice.

    Percentile intervals (Efron & Tibshirani 1993, chapter 13): examples are drawn with replacement, the same for both
    models. A slice is looked at where it has 20 examples or more.
    """
    generator = np.random.default_rng(seed)
    one, other = before.scores(), after.scores()
    spread = _intervals(before, after, np.arange(before.count), resamples, generator)
    slices: dict[str, list[SliceChange]] = {name: [] for name in one}
    for label, mask in before.slices.items():
        rows = np.flatnonzero(mask)
        if len(rows) < 20:
            continue
        here, there = before.scores(rows), after.scores(rows)
        around = _intervals(before, after, rows, resamples // 2, generator)
        for name, (low, high) in around.items():
            found = SliceChange(
                name=label, examples=len(rows), before=here[name], after=there[name], low=low, high=high
            )
            slices[name].append(found)
    return tuple(
        MetricChange(
            metric=name,
            examples=before.count,
            before=one[name],
            after=other[name],
            low=spread[name][0],
            high=spread[name][1],
            slices=tuple(slices[name]),
        )
        for name in one
    )


def _intervals(
    before: EvalResult, after: EvalResult, rows: np.ndarray[Any, Any], resamples: int, generator: np.random.Generator
) -> dict[str, tuple[float, float]]:
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        sample = generator.choice(rows, len(rows))
        one, other = before.scores(sample), after.scores(sample)
        for name in one:
            drawn.setdefault(name, []).append(other[name] - one[name])
    return {name: (float(np.nanquantile(v, 0.025)), float(np.nanquantile(v, 0.975))) for name, v in drawn.items()}
