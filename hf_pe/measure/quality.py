"""Measures quality by the task's metrics or a function of the user, and the confidence interval of a change."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_pe.errors import NotFiniteError, UsageError, explained, one_line
from hf_pe.measure.bootstrap import Rows, intervals
from hf_pe.modes import evaluating
from hf_pe.overflow import overflow_of
from hf_pe.report import MetricChange, SliceChange
from hf_pe.tasks import EvalResult, TaskData, as_read_by, on_device

FIRST_ROWS = 4
"""Number of rows on which the forward pass is tried before the evaluation."""
Evaluate = Callable[[PreTrainedModel], dict[str, float]]


def evaluate_task(model: PreTrainedModel, data: TaskData) -> EvalResult:
    """Evaluate `model` by the task of `data` on every evaluation row.

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
        UsageError: the model cannot read the inputs that its processor makes.
    """
    rows = data.eval.select(range(min(FIRST_ROWS, len(data.eval))))
    misfit = explained(
        lambda error: (
            f"{type(model).__name__} cannot read the inputs that its tokenizer or processor makes of the data: "
            f"{one_line(error, 300)}. Check that the two belong together, and the settings of the processor "
            "(preprocessor_config.json)."
        )
    )
    with misfit, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for batch in data.batches(rows, FIRST_ROWS):
            data.task.signals(model, on_device(model, batch) | as_read_by(model, batch))


def quality(model: PreTrainedModel, data: TaskData | None, evaluate: Evaluate | None = None) -> dict[str, float]:
    """Return the metrics of `model`: by `evaluate` if it is set, else by the task of `data`; {} without both.

    Raises:
        UsageError: `evaluate` does not return a dict of numbers.
    """
    if evaluate is None:
        return evaluate_task(model, data).scores() if data else {}
    with evaluating(model):
        metrics = evaluate(model)
    if not isinstance(metrics, dict) or not all(isinstance(v, (int, float)) for v in metrics.values()):
        raise UsageError(f"evaluate(model): expected a dict of numbers, got {metrics!r:.200}.")
    return {name: float(value) for name, value in metrics.items()}


def chance_warnings(model: PreTrainedModel, scores: Mapping[str, float], data: TaskData) -> tuple[str, ...]:
    """Return a warning if a model's metric is no better than guessing without the inputs.

    Args:
        model: the original.
        scores: its metrics on the evaluation rows.
        data: has the task, which defines the metric of guessing.
    """
    task = data.task
    level, value = task.chance(model, data), scores[task.metric]
    if level is None or (value > level if task.higher_is_better else value < level):
        return ()
    return (
        f"The original's {task.metric} is {value:.4g} on the evaluation rows, no better than guessing without the "
        f"inputs ({level:.4g}). Check that the model, its tokenizer or processor, the labels and the task belong "
        "together.",
    )


def changes(before: EvalResult, after: EvalResult, *, resamples: int = 500, seed: int = 0) -> tuple[MetricChange, ...]:
    """Return the change of each metric with its 95 % confidence interval, over all examples and over each slice.

    The intervals are percentile intervals of a paired bootstrap (Efron & Tibshirani 1993, chapter 13): examples are
    drawn with replacement, the same for both models. Slices with fewer than 20 examples are left out.

    Args:
        before: evaluation of the original.
        after: evaluation of the smaller model on the same examples.
        resamples: bootstrap samples of all examples; slices have half as many.
        seed: of the samples.
    """
    generator = np.random.default_rng(seed)
    original, smaller = before.scores(), after.scores()
    ranges = _intervals(before, after, np.arange(before.count), resamples, generator)
    slices: dict[str, list[SliceChange]] = {name: [] for name in original}
    for label, mask in before.slices.items():
        rows = np.flatnonzero(mask)
        if len(rows) < 20:
            continue
        slice_before, slice_after = before.scores(rows), after.scores(rows)
        for name, (low, high) in _intervals(before, after, rows, resamples // 2, generator).items():
            change = SliceChange(
                name=label, examples=len(rows), before=slice_before[name], after=slice_after[name], low=low, high=high
            )
            slices[name].append(change)
    return tuple(
        MetricChange(
            metric=name,
            examples=before.count,
            before=original[name],
            after=smaller[name],
            low=ranges[name][0],
            high=ranges[name][1],
            slices=tuple(slices[name]),
        )
        for name in original
    )


def _intervals(
    before: EvalResult, after: EvalResult, rows: Rows, resamples: int, generator: np.random.Generator
) -> dict[str, tuple[float, float]]:
    def change(sample: Rows) -> dict[str, float]:
        original, smaller = before.scores(sample), after.scores(sample)
        return {name: smaller[name] - original[name] for name in original}

    return intervals(change, [rows], resamples, generator)
