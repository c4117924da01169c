"""Pushes a model to the Hub during or after training, in a new folder that is checked and has a model card."""

import tempfile
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_pe.callbacks.compression_report import CompressionReport, plain_copy, use_of
from hf_pe.callbacks.ranks import MetricReader, better, decided, on_first, recall, remember, require_evaluation
from hf_pe.errors import UsageError
from hf_pe.hub import Publish, PushError, check_access, push
from hf_pe.progress import say
from hf_pe.run.folder import finish_result, write_result


class PublishCallback(TrainerCallback):
    """Push the model with a fresh card at every save, at every new best metric, or at the end of training.

    Only the first process saves and pushes; all others wait. If a push fails during training, a message is printed and
    the next push makes up for it; a push that fails at the end is an error. The token is checked before training.

    Args:
        repo: NAME or USER/NAME, or all settings of a push.
        report: the `CompressionReport` of the same Trainer, which must come before this callback.
        when: "end", "save" or "best" (by `metric_for_best_model`).
        api: the Hub client; default: `HfApi()`.
    """

    def __init__(
        self,
        repo: str | Publish,
        report: CompressionReport,
        *,
        when: Literal["end", "save", "best"] = "end",
        api: HfApi | None = None,
    ) -> None:
        if when not in ("end", "save", "best"):
            raise UsageError(f"PublishCallback.when: expected end, save or best; got {when!r}.")
        self.settings = repo if isinstance(repo, Publish) else Publish(repo=repo)
        self.report, self.when, self.api = report, when, api
        self.best: float | None = None
        self.behind = False
        self.reader: MetricReader | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Check the settings and the token, and read the best value of a run that is resumed.

        Raises:
            UsageError: there would be nothing to push at these times, the report is not a callback of this Trainer, the
                Trainer has no tokenizer or other processor, or the token is refused.
        """
        self._require_occasions(args)
        if self.report.state is not state:
            raise UsageError(
                "PublishCallback: its CompressionReport does not watch this training, so the card would have no "
                "figures. Give both to the Trainer, the report first: callbacks=[report, PublishCallback(...)]."
            )
        if processing_class is None:
            raise UsageError(
                "PublishCallback: the Trainer has no processing_class, and what is published needs its tokenizer (or "
                "image processor) beside it. Give Trainer(processing_class=tokenizer)."
            )
        on_first(args, lambda: check_access(self.settings, self.api))
        self.best = decided(recall(self._note(args), resumed=state.global_step > 0).get("best"))

    def _require_occasions(self, args: TrainingArguments) -> None:
        if self.when == "best":
            if not args.metric_for_best_model:
                raise UsageError('PublishCallback: when="best" needs TrainingArguments(metric_for_best_model=...).')
            require_evaluation(args, 'PublishCallback(when="best")')
        if self.when == "save" and args.save_strategy == "no":
            raise UsageError(
                'PublishCallback: when="save" pushes at every save, and save_strategy is "no". '
                'Expected TrainingArguments(save_strategy="steps"), or when="end".'
            )

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Push the model that was just saved."""
        if self.when == "save":
            self._push(args, state, model, processing_class)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Push the model if the metric is better than ever."""
        if self.when != "best":
            return
        self.reader = self.reader or MetricReader(str(args.metric_for_best_model))
        value = decided(self.reader.read(metrics or {}))
        if value is None:
            return
        if self.best is None or better(value, self.best, greater_is_better=bool(args.greater_is_better)):
            self.best = value
            self._push(args, state, model, processing_class)
            if state.is_world_process_zero:
                remember(self._note(args), best=value)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Raise UsageError if no evaluation set has the metric."""
        if self.reader is not None:
            self.reader.require()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """Push the final model, or one whose earlier push failed."""
        if self.reader is not None:
            self.reader.require()
        if self.when == "end" or (self.behind and self.when == "save"):
            self._push(args, state, model, processing_class, last=True)

    def _push(
        self, args: TrainingArguments, state: TrainerState, model: Any, processor: Any, last: bool = False
    ) -> None:
        def work() -> bool:
            copied = plain_copy(model)
            if not self.report.measurements:
                self.report._measure(model)
            report = self.report.report(args, state, copied)
            with tempfile.TemporaryDirectory() as parent:
                folder = Path(parent, self.settings.repo.rpartition("/")[2])
                auto_class, source = use_of(copied).auto_class, self.report.source
                finish_result(write_result(copied, processor, folder, folder.name, report, auto_class, source), folder)
                try:
                    push(folder, self.settings, api=self.api, verify=False)  # the saved folder has just been verified
                except PushError as error:
                    if last:
                        raise
                    say(f"not published at step {state.global_step}: {error}")
                    return True
            return False

        self.behind = on_first(args, work)

    def _note(self, args: TrainingArguments) -> Path:
        return Path(str(args.output_dir), "publish.json")
