"""Evaluate the original, the result and its variants, and measure them in turns on one device."""

from collections.abc import Mapping
from dataclasses import dataclass

from hf_pe import progress
from hf_pe.measure import Evaluate, changes, evaluate_task, measure, on_one_device
from hf_pe.recipe import StageState
from hf_pe.report import Measurement, MetricChange
from hf_pe.run.beside_original import beside_original
from hf_pe.run.order import BEFORE
from hf_pe.run.original import Original


@dataclass(frozen=True)
class SideBySide:
    """Hold the measurements of a run.

    Attributes:
        before: Measurements of the original.
        after: Measurements of the result and its variants, by name.
        changes: Changes of the metrics with their confidence intervals, by name; empty where the user's own function
            evaluates.
    """

    before: Measurement
    after: dict[str, Measurement]
    changes: dict[str, tuple[MetricChange, ...]]


def measure_side_by_side(
    original: Original, results: Mapping[str, StageState], evaluate: Evaluate | None
) -> SideBySide:
    """Evaluate the results, and measure them and the original in turns.

    Args:
        original: The original, which is evaluated already, unless `evaluate` is given.
        results: States of the result and its variants, by name.
        evaluate: The user's own function that replaces the task's metrics, or None.
    """
    progress.say("measuring before and after, side by side")
    models = {BEFORE: original.state.model} | {name: state.model for name, state in results.items()}
    first, evaluations = original.evaluation, None
    with on_one_device(models.values()):
        if first is not None:
            evaluations = {BEFORE: first} | {
                name: evaluate_task(state.model, state.data) for name, state in results.items()
            }
        measured = measure(models, original.state.data, evaluations=evaluations, evaluate=evaluate)
        for name, state in results.items():
            evaluation = evaluations[name] if evaluations else None
            compared = beside_original(original, state, evaluation)
            measured[name] = measured[name].model_copy(update=compared)
    general = original.general.evaluation if original.general else None
    before = measured.pop(BEFORE).model_copy(update={"general_quality": general.scores() if general else {}})
    metric_changes = {name: changes(evaluations[BEFORE], evaluations[name]) if evaluations else () for name in results}
    return SideBySide(before, measured, metric_changes)
