"""Train pruned models for equal processor time and compare what comes out, for the scripts recovery_*.py.

A *cut* is a pruned model before training; a *training* is a recipe that recovers it. Each pair of both is trained for
the same processor minutes on the same rows with each seed. What a run gave is stored under build/, so that runs can
follow one another over days and on several machines, and a last call collects them.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from hf_pe.distill import Distillation, training
from hf_pe.files.atomic import write_whole
from hf_pe.recipe import StageState
from hf_pe.tasks import TaskData

FINE_TUNING = "fine-tuning"
OURS = "hf_pe"
GRID = (5e-5, 1e-4, 2e-4, 4e-4)
"""Learning rates from which fine-tuning takes the best for each cut, after short runs and on trial rows."""


class Store:
    """Holds what runs gave in files of a folder under build/, one for each run.

    Args:
        name: of the script.
        settings: everything that the runs depend on; runs with other settings are kept apart.
    """

    def __init__(self, name: str, settings: object) -> None:
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
        self.folder = Path("build", "bench", f"{name}-{key}")
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of this name; `run` makes it where it is not stored yet."""
        file = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.json"
        if not file.exists():
            write_whole(file, json.dumps({"name": name, **run()}) + "\n")
        result: dict[str, Any] = json.loads(file.read_text("utf-8"))
        print(json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}), flush=True)
        return result


class Trained(NamedTuple):
    """Holds a trained model with its number of steps and the teacher's share of the time."""

    model: PreTrainedModel
    facts: dict[str, Any]


def train(cut: PreTrainedModel, data: TaskData, minutes: float, **settings: Any) -> Trained:
    """Train a cut for processor minutes by a distillation with these settings, which replace the defaults."""
    training.clock = time.process_time  # other programs on the machine do not count
    start = time.process_time()
    state = Distillation(minutes=minutes, **settings).carry_out(StageState(cut, data))
    assert state.training is not None
    facts = {
        "steps": state.training.steps,
        "training_seconds": state.training.seconds,
        "all_seconds": time.process_time() - start,
        "teacher_share": state.training.teacher_share,
    }
    return Trained(state.model, facts)


def best_rate(
    store: Store,
    name: str,
    make_cut: Callable[[], PreTrainedModel],
    data: TaskData,
    minutes: float,
    badness: Callable[[PreTrainedModel], float],
    **settings: Any,
) -> tuple[float, float]:
    """Return the learning rate with which short runs of a training come out best on trial rows, and their badness.

    Args:
        store: of the results.
        name: of the cut and the training.
        make_cut: returns the cut.
        data: to train on.
        minutes: of processor time, for each rate.
        badness: the lower, the better.
        settings: of the training.
    """

    def tried(rate: float) -> dict[str, Any]:
        return {"badness": badness(train(make_cut(), data, minutes, learning_rate=rate, **settings).model)}

    by_rate = {rate: store.get(f"{name}, rate {rate:g}", lambda r=rate: tried(r))["badness"] for rate in GRID}
    rate = min(by_rate, key=lambda each: by_rate[each])
    return rate, by_rate[rate]
