"""Stop when quality falls under a floor; the best model so far is kept."""

import math
from pathlib import Path
from typing import Any

from safetensors.torch import load_model
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_pe.adapters import load_adapters_
from hf_pe.callbacks.ranks import MetricReader, better, decided, on_first, recall, remember, require_evaluation
from hf_pe.outputs import check_output, replaced
from hf_pe.progress import say


class QualityFloor(TrainerCallback):
    """End training when an evaluation falls under `floor`; keep the best model in `output_dir/best`.

    When training ends by the floor, the best weights are loaded back into the model; of a model with adapters (PEFT)
    these alone are kept and loaded. Survives a resume from a checkpoint: the best value is remembered beside the best
    model.

    Args:
        metric: of the evaluation, with or without "eval_"; of one among several evaluation sets with its name before it
            (`eval_dataset={"dev": ..., "hard": ...}`: "dev_accuracy").
        floor: the worst value that is borne.
        greater_is_better: False for losses and perplexities.
    """

    def __init__(self, metric: str, floor: float, *, greater_is_better: bool = True) -> None:
        self.metric, self.floor, self.greater_is_better = metric, floor, greater_is_better
        self.reader = MetricReader(metric)
        self.best: float | None = None
        self.fell = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take up what an earlier part of this run kept.

        Raises:
            UsageError: nothing is evaluated while this training lasts.
        """
        assert args.output_dir
        require_evaluation(args, "QualityFloor")
        self.best = decided(recall(self._note(args), resumed=state.global_step > 0).get("best"))
        self.fell = False
        on_first(args, lambda: check_output(self._folder(args), overwrite=True))

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> TrainerControl:
        """Keep the model if it is the best, stop if it fell."""
        value = decided(self.reader.read(metrics or {}))
        if value is None:
            return control
        if not math.isnan(value) and (self.best is None or self._better(value, self.best)):
            self.best = value
            on_first(args, lambda: self._keep(args, model, value))
        if value != self.floor and not self._better(value, self.floor):
            self.fell = control.should_training_stop = True
            if state.is_world_process_zero:
                say(f"{self.metric} {value:.4f} fell under the floor {self.floor}: training stops")
        return control

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Refuse a metric that no evaluation set has."""
        self.reader.require()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        """Load the best weights back where the floor ended training."""
        self.reader.require()
        if not self.fell or model is None:
            return
        weights = self._folder(args) / "model.safetensors"
        if weights.is_file():
            load_model(model, str(weights), strict=False, device=str(model.device))
        else:
            load_adapters_(model, self._folder(args))

    def _better(self, one: float, other: float) -> bool:
        return better(one, other, greater_is_better=self.greater_is_better)

    def _keep(self, args: TrainingArguments, model: Any, value: float) -> None:
        with replaced(self._folder(args), overwrite=True) as fresh:
            model.save_pretrained(fresh, max_shard_size="100GB")
            remember(fresh / self._note(args).name, best=value)

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(str(args.output_dir), "best")

    def _note(self, args: TrainingArguments) -> Path:
        return self._folder(args) / "quality_floor.json"
