"""Defines the recipe `distil`: the student learns from the original model, or from other teachers."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from hf_pe.anatomy import meta_model
from hf_pe.distill.build import build
from hf_pe.distill.checks import require_task_signals
from hf_pe.distill.losses.registry import LOSSES
from hf_pe.distill.precision import describe, require_loaded
from hf_pe.distill.sample import require_targets, sample_batch
from hf_pe.distill.settings import DistillationSettings
from hf_pe.distill.teachers.compatible import used_vocabulary_size
from hf_pe.distill.teaching import loaded_teachers
from hf_pe.distill.training import trained
from hf_pe.errors import UsageError
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import ModelRead, StageState
from hf_pe.tasks import few_tokens


class Distillation(DistillationSettings):
    """Train the model to compute the outputs of its teachers on the same inputs.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> recipe = Distillation(losses={"kl": 1.0, "hidden": 0.5}, temperature=2.0, steps=100)
        >>> plan, _ = recipe.dry_run(ModelSpec(config=BertConfig(num_hidden_layers=2), model_class=BertForMaskedLM))
        >>> plan.title
        'distillation from the original (KL of the logits, hidden states; 100 steps of 32)'
    """

    @property
    def leaves_precision_changed(self) -> bool:
        """Whether adapters stay on quantized weights, so that no stage can follow."""
        return self.lora is not None and not self.lora.merge

    def models_read(self) -> tuple[ModelRead, ...]:
        """Return the teachers and adapters that the settings name."""
        models = [ModelRead("the teacher", teacher.model) for teacher in self.teachers if teacher.model]
        adapters = [teacher.adapter for teacher in self.teachers if teacher.adapter]
        return (*models, *(ModelRead("the adapter", adapter, is_adapter=True) for adapter in adapters))

    def folders_used(self) -> dict[str, Path]:
        """Return the folder of the cache, which does not have to exist."""
        return {"distil.cache": Path(self.cache.folder)} if self.cache else {}

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Return the plan; training changes no sizes, except with adapters that stay on quantized weights."""
        return self._dry_run(spec, spec.config.dtype or torch.float32)

    def _dry_run(self, spec: ModelSpec, stored: torch.dtype | str) -> tuple[Plan, ModelSpec]:
        """Return the plan for weights of the dtype `stored`."""
        if self.lora is not None and self.leaves_precision_changed:
            model = meta_model(spec.config, spec.model_class)
            spec = replace(spec, bits=spec.bits | self.lora.base_bits(model))
        used = self.losses or {}
        names = ", ".join(LOSSES[name].title for name in used) or "default losses"
        plan = self.planned(
            title=f"distillation from {self._taught_by()} ({names}; {self.length}"
            + (f"; LoRA of rank {self.lora.rank}, {self.lora.end})" if self.lora else ")"),
            exact=not self.leaves_precision_changed,
            notes=(
                *self._within_batches(used),
                describe(stored, autocast=self.autocasts, adapters=self.lora is not None),
                *(("sizes do not include the adapters",) if self.leaves_precision_changed else ()),
            ),
            references=(
                *(LOSSES[name].reference for name in used if LOSSES[name].reference),
                *(self.lora.references if self.lora else ()),
            ),
            **spec_sizes(spec),
        )
        return plan, spec

    def check(self, state: StageState) -> None:
        """Check the settings before the stages that make the student.

        Args:
            state: with the original, from which the student will be made.

        Raises:
            UsageError: no training row has a label, a training row cannot be read, a layer is not on the device that
                trains, a teacher cannot be loaded or does not fit, or a loss needs a signal that the task does not
                have.
        """
        model, data = state.model, state.data
        require_loaded(model)
        require_targets(data)
        data.check_training_rows()
        if self.augment is not None and "pixel_values" not in sample_batch(model, data):
            raise UsageError(f"distil.augment: expected images, but task '{data.task.name}' reads none. Leave it out.")
        if self.augment is not None and data.task.localizes:
            raise UsageError("distil.augment: the boxes would not move with the images. Leave it out.")
        with loaded_teachers(self, state), torch.no_grad():
            few = few_tokens(sample_batch(model, data))
            require_task_signals(self.losses, data.task, data.task.signals(model, few, hidden=True))

    def plan(self, state: StageState) -> Plan:
        """Choose the default losses if none are named; load and check the teachers.

        Raises:
            UsageError: a loss needs a signal that is missing or whose width differs from the teacher's, there is no
                teacher, a teacher does not fit, or no training row has a label.
        """
        model, data = state.model, state.data
        require_targets(data)
        with loaded_teachers(self, state) as teachers:
            batch, used_vocabulary = sample_batch(model, data), used_vocabulary_size(data.processor)
            objective = build(
                model, teachers, data.task, batch, self.objective_settings, used_vocabulary=used_vocabulary
            )
        chosen = self.model_copy(update={"losses": dict(objective.weights)})
        return chosen._dry_run(ModelSpec(config=model.config, model_class=type(model)), model.dtype)[0]

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Train a copy of the model, and return it in evaluation mode with its losses and the curve of its quality.

        Args:
            state: with the student before training. With `checkpoint_every`, checkpoints are written into its folder,
                and a state that resumes continues from the last complete one.
            plan: of this recipe.

        Raises:
            NotFiniteError: a loss became infinite or NaN; checkpoints remain.
            UsageError: a layer is not on the device that trains.
        """
        require_loaded(state.model)
        return trained(self, state)

    def _taught_by(self) -> str:
        """Return the names of the teachers for the title of the plan."""
        return " and ".join(teacher.name for teacher in self.teachers) or "the original"

    def _within_batches(self, losses: Iterable[str]) -> tuple[str, ...]:
        """Return a note on losses that compare rows of one batch only, if an optimizer step has several batches."""
        names = [name for name in losses if LOSSES[name].mean_over == "batches"]
        if self.gradient_accumulation_steps == 1 or not names:
            return ()
        rows = self.batch_size * self.gradient_accumulation_steps
        return (f"{' and '.join(names)} within each batch of {self.batch_size}, not over the {rows} rows of a step",)
