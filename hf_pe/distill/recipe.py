"""Distillation as a recipe: the pruned student learns from the untouched original, or from whom it names."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from hf_pe.anatomy import meta_model
from hf_pe.distill.build import build
from hf_pe.distill.checks import require_given
from hf_pe.distill.losses.registry import LOSSES
from hf_pe.distill.precision import describe, require_loaded
from hf_pe.distill.sample import require_targets, sample_batch
from hf_pe.distill.settings import DistillationSettings
from hf_pe.distill.teachers.compatible import known_ids
from hf_pe.distill.teaching import loaded_teachers
from hf_pe.distill.training import trained
from hf_pe.errors import UsageError
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import ModelRead, StageState
from hf_pe.tasks import few_tokens


class Distillation(DistillationSettings):
    """Train the model to give what its teachers gave on the same inputs.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> recipe = Distillation(losses={"kl": 1.0, "hidden": 0.5}, temperature=2.0, steps=100)
        >>> plan, _ = recipe.dry_run(ModelSpec(config=BertConfig(num_hidden_layers=2), model_class=BertForMaskedLM))
        >>> plan.title
        'distillation from the original (KL of the logits, hidden states; 100 steps of 32)'
    """

    @property
    def leaves_precision_changed(self) -> bool:
        """Whether adapters stay on packed weights, so that nothing can come after."""
        return self.lora is not None and not self.lora.merge

    def models_read(self) -> tuple[ModelRead, ...]:
        """Return the teachers and adapters that are named."""
        models = [ModelRead("the teacher", teacher.model) for teacher in self.teachers if teacher.model]
        adapters = [ModelRead("the adapter", each.adapter, is_adapter=True) for each in self.teachers if each.adapter]
        return (*models, *adapters)

    def folders_used(self) -> dict[str, Path]:
        """Return the folder of the cache, which need not be there yet."""
        return {"distil.cache": Path(self.cache.folder)} if self.cache else {}

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Training changes no size, but for adapters that stay, on packed weights."""
        return self._dry_run(spec, spec.config.dtype or torch.float32)

    def _dry_run(self, spec: ModelSpec, stored: torch.dtype | str) -> tuple[Plan, ModelSpec]:
        """The same for weights that are stored as `stored`."""
        if self.lora is not None and self.leaves_precision_changed:
            model = meta_model(spec.config, spec.model_class)
            spec = replace(spec, bits=spec.bits | self.lora.base_bits(model))
        used = self.losses or {}
        names = ", ".join(LOSSES[name].title for name in used) or "default losses"
        plan = self.planned(
            title=f"distillation from {self._taught_by()} ({names}; {self.steps} steps of "
            f"{self.batch_size * self.gradient_accumulation_steps}"
            + (f"; LoRA of rank {self.lora.rank}, {self.lora.end})" if self.lora else ")"),
            exact=not self.leaves_precision_changed,
            notes=(
                *self._apart(used),
                describe(stored, autocast=self.autocasts, adapters=self.lora is not None),
                *(("the adapters come on top",) if self.leaves_precision_changed else ()),
            ),
            references=(
                *(LOSSES[name].reference for name in used if LOSSES[name].reference),
                *(self.lora.references if self.lora else ()),
            ),
            **spec_sizes(spec),
        )
        return plan, spec

    def check(self, state: StageState) -> None:
        """Find out what cannot work before the student is there.

        Args:
            state: with the original, from which a student will be made.

        Raises:
            UsageError: no training row has a target or one cannot be read, a layer is not on the device that trains,
                a teacher cannot be had or does not fit, or the task does not give what a loss needs.
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
            require_given(self.losses, data.task, data.task.signals(model, few, hidden=True))

    def plan(self, state: StageState) -> Plan:
        """Choose the losses the task's signals allow; load and check the teachers.

        Raises:
            UsageError: a loss needs a signal that is not given or whose width differs from the teacher's, no teacher is
                there or one does not fit, or no training row has a target.
        """
        model, data = state.model, state.data
        require_targets(data)
        with loaded_teachers(self, state) as teachers:
            batch, known = sample_batch(model, data), known_ids(data.processor)
            objective = build(model, teachers, data.task, batch, self.objective_settings, known=known)
        chosen = self.model_copy(update={"losses": dict(objective.weights)})
        return chosen._dry_run(ModelSpec(config=model.config, model_class=type(model)), model.dtype)[0]

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Train a copy of the model; return it in evaluation mode, with its loss curve.

        Args:
            state: with the student before; where `checkpoint_every` asks for them, checkpoints are written into its
                folder, and a state that resumes goes on from the last one there that was written to its end.
            plan: of this recipe.

        Raises:
            NotFiniteError: a loss became infinite or no number; checkpoints stay.
            UsageError: a layer is not on the device that trains.
        """
        require_loaded(state.model)
        return state.with_model(*trained(self, state))

    def _taught_by(self) -> str:
        """For the card."""
        return " and ".join(teacher.name for teacher in self.teachers) or "the original"

    def _apart(self, losses: Iterable[str]) -> tuple[str, ...]:
        """A sentence on losses that do not see a whole step, where it has several batches."""
        names = [name for name in losses if LOSSES[name].mean_over == "batches"]
        if self.gradient_accumulation_steps == 1 or not names:
            return ()
        rows = self.batch_size * self.gradient_accumulation_steps
        return (f"{' and '.join(names)} within each batch of {self.batch_size}, not over the {rows} rows of a step",)
