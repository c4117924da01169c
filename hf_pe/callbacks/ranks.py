"""Helps callbacks in distributed training: decisions that all processes share, work that only the first one does."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from hf_pe.errors import UsageError
from hf_pe.files.atomic import write_whole
from hf_pe.files.json_files import read_object

T = TypeVar("T")


def decided(value: T) -> T:
    """Return the `value` of the first process on every process."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    box: list[T] = [value]
    broadcast_object_list(box, from_process=0)
    return box[0]


def on_first(args: TrainingArguments, work: Callable[[], T]) -> T:
    """Run `work` on the first process while the others wait, and return its result on all of them.

    Raises:
        UsageError: `work` raised it; it is raised on every process.
        RuntimeError: `work` raised it, or an OSError; it is raised on every process.
    """
    outcome: tuple[Any, str | None, type[Exception]] = (None, None, RuntimeError)
    if args.process_index == 0:
        try:
            outcome = (work(), None, RuntimeError)
        except (UsageError, RuntimeError, OSError) as error:
            outcome = (None, str(error), UsageError if isinstance(error, UsageError) else RuntimeError)
    value, wrong, kind = decided(outcome)
    if wrong is not None:
        raise kind(wrong)
    return value  # type: ignore[no-any-return]


class MetricReader:
    """Reads one metric from the evaluations of a Trainer, which may have several evaluation sets.

    A Trainer with a dict of sets evaluates them one after the other, and calls its callbacks after each set: the
    metrics of the set "dev" are called eval_dev_accuracy and so on. Evaluations of other sets do not have the metric.

    Args:
        name: of the metric, with or without "eval_" ("dev_accuracy").
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._others: set[str] = set()
        self._read = False

    def read(self, metrics: Mapping[str, float]) -> float | None:
        """Return the metric; None if the evaluation is of another set."""
        for key in (self.name, f"eval_{self.name}"):
            if key in metrics:
                self._read = True
                return float(metrics[key])
        self._others.update(metrics)
        return None

    def require(self) -> None:
        """Refuse a metric that no evaluation since the last call has had.

        Raises:
            UsageError: there were evaluations since the last call, and none had the metric; names those they had.
        """
        others, read = self._others, self._read
        self._others, self._read = set(), False
        if others and not read:
            raise UsageError(
                f"metric: the evaluation gave no '{self.name}'; expected one of {', '.join(sorted(others))}."
            )


def require_evaluation(args: TrainingArguments, who: str) -> None:
    """Refuse a Trainer that does not evaluate during training.

    Args:
        args: of the Trainer.
        who: names the callback in the error.

    Raises:
        UsageError: `eval_strategy` is "no".
    """
    if args.eval_strategy == "no":
        raise UsageError(
            f'{who} needs evaluations, and eval_strategy is "no". Expected '
            'TrainingArguments(eval_strategy="steps", eval_steps=...) or "epoch", and an eval_dataset.'
        )


def better(value: float, reference: float, *, greater_is_better: bool) -> bool:
    """Return whether a metric's `value` is better than `reference`."""
    return value > reference if greater_is_better else value < reference


def remember(file: Path, **state: Any) -> None:
    """Write the state that a resumed run needs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(state))


def recall(file: Path, *, resumed: bool) -> dict[str, Any]:
    """Return the state that `remember` wrote if the run is resumed from a checkpoint, else {}."""
    return read_object(file, "Delete it: this run then begins without it.") if resumed and file.is_file() else {}
