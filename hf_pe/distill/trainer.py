"""Extends a Trainer of transformers so that its loss is the objective of a distillation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.parametrize import is_parametrized
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_pe.adapters import prompt_learning
from hf_pe.distill.attention import recordable
from hf_pe.distill.build import ObjectiveSettings, build
from hf_pe.distill.counts import UNITS, Unit, count
from hf_pe.distill.layer_states import DEFAULT_LAYERS, Layers
from hf_pe.distill.not_finite import why_not_finite
from hf_pe.distill.objective import Objective
from hf_pe.distill.precision import require_loaded, warn_of_half_precision
from hf_pe.distill.projections import ProjectionsMixin
from hf_pe.distill.sampling import SimilarLengthSampler
from hf_pe.distill.schedule import Scheduled
from hf_pe.distill.teachers.compatible import require_frozen, used_vocabulary_size
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.distill.term_log import TermLog
from hf_pe.errors import NotFiniteError, UsageError
from hf_pe.quantizers.registry import is_quantized, restore_layout_
from hf_pe.tasks import Batch, Task, task_named


class DistillationMixin(ProjectionsMixin):
    """Adds a teacher to any `Trainer`, as the first base class: `class Distilled(DistillationMixin, SFTTrainer)`.

    Each log entry gets the mean of every loss since the last entry as `loss_NAME`; `teacher_agreement`, if a loss needs
    the teacher (of the first optimizer step: the fraction of positions at which both models predict the same class; for
    embeddings, the mean cosine); `tokens_per_second` over all processes; and `teacher_share`, the fraction of the time
    that the teacher takes. With gradient accumulation and several processes, each loss is the mean over all rows,
    tokens or labels of an optimizer step, as for one large batch; `similarity` and `dist`, which compare the rows of a
    batch with each other, are means over the batches.

    Args:
        args: passed on to the Trainer.
        teacher: without gradients (`teacher.requires_grad_(False)`).
        task: "causal_lm" or another name in `hf_pe.tasks.TASKS`, or a Task, which computes the models' signals.
        losses: weight or `Schedule` of each loss by name; the default depends on the task.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        layers: from which hidden state of the teacher each one of the student learns; see `Distillation.layers`.
        objective: an objective, in place of the arguments above.
        kwargs: passed on to the Trainer.

    Raises:
        UsageError: the teacher is trainable, a layer of the student is not on the device that trains, a model reads
            learned prompts (PEFT), or losses, task and models do not fit together.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel | None = None,
        task: Task | str | None = None,
        losses: Mapping[str, Scheduled] | None = None,
        temperature: Scheduled = 2.0,
        beta: float = 0.5,
        layers: Layers = DEFAULT_LAYERS,
        objective: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        require_loaded(trainer.model)
        _require_no_prompts("student", trainer.model)
        _require_no_prompts("teacher", teacher)
        if not trainer.is_deepspeed_enabled:  # it keeps float32 weights of its own
            warn_of_half_precision(trainer.model)
        if objective is None:
            if teacher is None or task is None:
                raise TypeError("DistillationMixin needs `teacher` and `task`, or an `objective`.")
            objective = build(
                trainer.model,
                [LiveTeacher(teacher)],
                task_named(task) if isinstance(task, str) else task,
                _first_batch(trainer),
                ObjectiveSettings(losses or {}, temperature, beta, layers),
                used_vocabulary=used_vocabulary_size(trainer.processing_class),
            )
        head = objective.label_head
        if head is not None and not is_parametrized(head, "weight"):
            raise UsageError(
                "DistillationMixin: `features` needs the teacher's head behind a stitching layer as its head. "
                "Call hf_pe.stitching.reuse_ on the student before and remove_stitching_ after it; a Distillation "
                "recipe does both."
            )
        self.distillation = objective
        self._packed = is_quantized(trainer.model)
        for source in objective.teachers:
            if isinstance(source, LiveTeacher):
                require_frozen(trainer.model, source.model)
                source.model.eval()
            source.to(trainer.args.device)
        trainer.model_accepts_loss_kwargs = False  # the Trainer would only count labels: see `get_batch_samples`
        self._follow_projections()
        self._step_counts: torch.Tensor | None = None
        self._loss_only = False
        self._term_log = TermLog()

    @property
    def fraction_done(self) -> float:
        """The fraction of the training that is done, from 0 to 1; schedules depend on it."""
        state = self.state  # type: ignore[attr-defined]
        return float(state.global_step / max(state.max_steps, 1))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        self._term_log = TermLog()
        with self._recordable():
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's sampler, but `SimilarLengthSampler` instead of the one that groups rows by length."""
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        settings = self.args  # type: ignore[attr-defined]
        seed = settings.seed if settings.data_seed is None else settings.data_seed
        return SimilarLengthSampler(sampler.lengths, settings.train_batch_size * settings.world_size, seed)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the Trainer does."""
        with self._recordable():
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        """Predict as the Trainer does; if only the loss is needed, logits may be computed in chunks."""
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._loss_only = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of an optimizer step, and count the units of losses in them over all processes."""
        batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        counts = [count(self.distillation.task, batch) for batch in batches]
        self._step_counts = (
            trainer.accelerator.reduce(torch.stack(counts).sum(0).to(trainer.args.device)) if counts else None
        )
        return batches, items

    def _step_fractions(self, batch: Batch) -> dict[Unit, torch.Tensor] | None:
        """Return the fraction of an optimizer step's rows, tokens, ... in `batch`, times the number of processes.

        The factor is the number of processes because the Trainer averages gradients over them.
        """
        trainer: Any = self
        if self._step_counts is None or not trainer.model.training:
            return None
        own = count(self.distillation.task, batch).to(self._step_counts) * trainer.accelerator.num_processes
        return dict(zip(UNITS, own / self._step_counts.clamp_min(1), strict=True))

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the objective, and keep its terms for the log.

        Raises:
            NotFiniteError: a term is infinite or NaN; the weights are still those of the last step.
        """
        trainer: Any = self
        if self._packed and model.training:
            restore_layout_(model)
        needs_logits = return_outputs and not self._loss_only
        objective = replace(self.distillation, head=None) if needs_logits else self.distillation
        step_fractions = self._step_fractions(inputs)
        step = trainer.state.global_step
        value = objective(
            model,
            inputs,
            progress=self.fraction_done,
            autocast=trainer.accelerator.autocast,
            agreement=model.training and self._term_log.begins_with(step) and self.distillation.needs_teacher,
            step_fractions=step_fractions,
        )
        if not torch.isfinite(value.loss):
            raise NotFiniteError(why_not_finite(trainer, self.distillation, value.terms, inputs))
        if model.training:
            self._term_log.add(step, value, inputs)
        if not return_outputs:
            # the Trainer divides by the number of batches, but the sum of these losses is that of the step already
            return value.loss if step_fractions is None else value.loss * trainer.current_gradient_accumulation_steps
        outputs = {name: value.signals[name] for name in ("logits", "embeddings") if name in value.signals}
        return value.loss, outputs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the losses, the agreement and the speed to the log entries of training."""
        if "loss" in logs and self._term_log:
            logs = logs | self._term_log.summary(self.accelerator.gather)  # type: ignore[attr-defined]
            self._term_log = TermLog()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _recordable(self) -> Iterator[None]:
        """Let all models use the recording attention function inside the block, if a loss compares attention."""
        if not self.distillation.request.attentions:
            yield
            return
        plain = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        teachers = (source.model for source in self.distillation.teachers if isinstance(source, LiveTeacher))
        with recordable(plain, *teachers):
            yield


class DistillationTrainer(DistillationMixin, Trainer):
    """Trains a student with the stock `Trainer` and a teacher; see `DistillationMixin`.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> teacher, student = (LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)) for _ in range(2))
        >>> rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 64, (8, 12))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = DistillationTrainer(
        ...         model=student,
        ...         args=TrainingArguments(
        ...             folder, max_steps=2, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True
        ...         ),
        ...         train_dataset=rows,
        ...         teacher=teacher.eval().requires_grad_(False),
        ...         task="causal_lm",
        ...         losses={"kl": 1.0, "task": 0.5},
        ...     )
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> sorted(name for name in trainer.state.log_history[0] if "loss" in name)
        ['loss', 'loss_kl', 'loss_task']
    """


def _require_no_prompts(role: str, model: Any) -> None:
    """Refuse learned prompts, because the tokens that they add are not in the batch and cannot be compared."""
    kind = prompt_learning(model)
    if kind is not None:
        raise UsageError(
            f"DistillationMixin: the {role} reads learned prompts ({kind} of PEFT) before each row, so that its tokens "
            "are not those of the batch. Expected adapters inside the model, such as LoRA, or a model without any "
            f"({role}.get_base_model())."
        )


def _first_batch(trainer: Any) -> Batch:
    """Return a batch of two training rows as the Trainer's collator makes it, on its device."""
    if trainer.train_dataset is None:
        raise UsageError("DistillationMixin: expected a train_dataset, on which the models are tried; got none.")
    rows = iter(trainer.train_dataset)
    batch = trainer.data_collator([row for row, _ in zip(rows, range(2), strict=False)])
    return {k: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
