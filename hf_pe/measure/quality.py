"""Quality: the task's metric, or the user's own."""

from collections.abc import Callable

from transformers import PreTrainedModel

from hf_pe.errors import UsageError
from hf_pe.tasks import TaskData

Evaluate = Callable[[PreTrainedModel], dict[str, float]]


def quality(model: PreTrainedModel, data: TaskData | None, evaluate: Evaluate | None = None) -> dict[str, float]:
    """Metrics of `model` by `evaluate` if given, else by the task on its held-out rows.

    Raises:
        UsageError: the user's function does not give a dict of numbers.
    """
    training = model.training
    model.eval()
    found = evaluate(model) if evaluate is not None else data.task.evaluate(model, data) if data else {}
    model.train(training)
    if not isinstance(found, dict) or not all(isinstance(v, (int, float)) for v in found.values()):
        raise UsageError(f"evaluate(model): expected a dict of numbers, got {found!r:.200}.")
    return {name: float(value) for name, value in found.items()}
