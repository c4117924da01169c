"""Stops training when a metric falls below a floor, and keeps the best model so far."""

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
    """Stop training when an evaluation falls below `floor`, and keep the best model in `output_dir/best`.

    If training is stopped by the floor, the best weights are loaded back into the model; of a model with adapters
    (PEFT), only these are kept and loaded. A run that is resumed from a checkpoint continues with the best value so
    far, which is stored beside the best model.

    Args:
        metric: name of the metric, with or without "eval_". With several evaluation sets it begins with the name of the
            set (`eval_dataset={"dev": ..., "hard": ...}`: "dev_accuracy").
        floor: the worst value at which training continues.
        greater_is_better: False for losses and perplexities.
    """

    def __init__(self, metric: str, floor: float, *, greater_is_better: bool = True) -> None:
        self.metric, self.floor, self.greater_is_better = metric, floor, greater_is_better
        self.reader = MetricReader(metric)
        self.best: float | None = None
        self.fell = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check the settings, and read the best value of a run that is resumed.

        Raises:
            UsageError: the Trainer does not evaluate during training, or the folder for the best model cannot be used.
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
        """Keep the model if it is the best so far, and stop training if its metric is below the floor."""
        value = decided(self.reader.read(metrics or {}))
        if value is None:
            return control
        if not math.isnan(value) and (self.best is None or self._better(value, self.best)):
            self.best = value
            on_first(args, lambda: self._keep(args, model, value))
        if value != self.floor and not self._better(value, self.floor):
            self.fell = control.should_training_stop = True
            if state.is_world_process_zero:
                say(f"{self.metric} {value:.4f} fell below the floor {self.floor}: training stops")
        return control

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise UsageError if no evaluation set has the metric."""
        self.reader.require()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: Any,
    ) -> None:
        """Load the best weights back if the floor stopped training."""
        self.reader.require()
        if not self.fell or model is None:
            return
        weights = self._folder(args) / "model.safetensors"
        if weights.is_file():
            load_model(model, str(weights), strict=False, device=str(model.device))
        else:
            load_adapters_(model, self._folder(args))

    def _better(self, value: float, reference: float) -> bool:
        return better(value, reference, greater_is_better=self.greater_is_better)

    def _keep(self, args: TrainingArguments, model: Any, value: float) -> None:
        with replaced(self._folder(args), overwrite=True) as fresh:
            model.save_pretrained(fresh, max_shard_size="100GB")
            remember(fresh / self._note(args).name, best=value)

    def _folder(self, args: TrainingArguments) -> Path:
        return Path(str(args.output_dir), "best")

    def _note(self, args: TrainingArguments) -> Path:
        return self._folder(args) / "quality_floor.json"
