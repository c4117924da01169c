"""Distillation as a recipe: the pruned student learns from the untouched original, or from whom it names."""

import copy
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_pe.anatomy import label_head, skeleton
from hf_pe.calibration.cache import StatisticsKey
from hf_pe.distill.augment import Augment
from hf_pe.distill.build import DEFAULT_LAYERS, Layers, build, require_given
from hf_pe.distill.cache import Cache, open_cache, with_rows
from hf_pe.distill.checkpoint import MarkWhole, ended_at, last_whole_checkpoint, load_ended_
from hf_pe.distill.lora import Lora
from hf_pe.distill.losses.registry import LOSSES
from hf_pe.distill.objective import Answers, Live
from hf_pe.distill.precision import describe, require_loaded, restore_dtypes_, upcast_, with_float_inputs
from hf_pe.distill.schedule import Schedule, Scheduled
from hf_pe.distill.teacher import Teacher, frozen, known_ids
from hf_pe.distill.trainer import DistillationTrainer
from hf_pe.errors import UsageError, nearest
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.modes import evaluating
from hf_pe.plans import Plan
from hf_pe.progress import advance
from hf_pe.quantizers.bnb import kept_modules, packable, packed_bits
from hf_pe.recipe import ModelRead, Recipe, StageState
from hf_pe.stitching import Seam, folded_, reuse_
from hf_pe.tasks import Batch, TaskData, as_read_by, few_tokens

LIVE = ("hidden_states", "attentions", "features")
"""What no cache keeps."""
SLUGGISH = 0.5
"""A batch norm's momentum above which its running statistics are those of the last batches only: transformers'
MobileNets and EfficientNets have 0.99 and more. They learn with `SOUND`."""
SOUND = 0.1
ALIKE_ROWS = 16
"""Calibration rows on which hidden states are compared."""


class Distillation(Recipe):
    """Train the model to give what its teachers gave on the same inputs."""

    tag = "distilled"
    changes = "weights"
    needs_plain_weights = "packed weights cannot be trained"

    recipe: Literal["distil"] = "distil"
    losses: dict[str, Scheduled] = Field(
        default_factory=dict,
        description=f"weights by name: {', '.join(LOSSES)}; a number, or start, end and shape; default by task",
    )
    temperature: Scheduled = Field(2.0, description="of the logits; a number, or start, end and shape")
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: near 0 it is forward KL, near 1 reverse KL")
    layers: Layers = Field(
        DEFAULT_LAYERS,
        description="which of the teacher's hidden states (0: the embeddings') each of the student's learns from: "
        "spread evenly, the last ones, those most alike on calibration rows, or given one by one, rising",
    )
    teachers: tuple[Teacher, ...] = Field((), description="default: the original")
    cache: Cache | None = Field(None, description="compute the teachers' answers once and keep them in a folder")
    steps: int = Field(300, ge=1)
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1, description="batches for one step")
    learning_rate: float = Field(3e-4, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0)
    train_embeddings: bool = Field(True, description="False keeps the embedding tables as they are: faster")
    dropout: bool = Field(False, description="True leaves the student's dropout on while it learns")
    lora: Lora | None = Field(None, description="train low-rank adapters in place of all weights, and merge them")
    augment: Augment | None = Field(None, description="random crops and flips that student and teacher see alike")
    head_first: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the head alone learns")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="bfloat16 trains under autocast; auto: where the hardware has it"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps; an interrupted run that is resumed goes on from the last one"
    )
    report_to: tuple[str, ...] = Field((), description="where the log goes: tensorboard, wandb, ... as the Trainer's")
    seed: int = 0

    @field_validator("losses")
    @classmethod
    def _known(cls, losses: dict[str, Scheduled]) -> dict[str, Scheduled]:
        for name, weight in losses.items():
            if name not in LOSSES:
                raise ValueError(f"no loss is called '{name}'; expected {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
            most = max(weight.start, weight.end) if isinstance(weight, Schedule) else weight
            if most <= 0:
                raise ValueError(f"the weight of '{name}' must be above 0, got {most}; leave the loss out instead")
        return losses

    @field_validator("temperature")
    @classmethod
    def _warm(cls, temperature: Scheduled) -> Scheduled:
        least = min(temperature.start, temperature.end) if isinstance(temperature, Schedule) else temperature
        if least <= 0:
            raise ValueError(f"expected a temperature above 0, got {least}")
        return temperature

    @model_validator(mode="after")
    def _cacheable(self) -> "Distillation":
        if self.lora is not None and (self.head_first or "features" in self.losses):
            raise ValueError("adapters leave the head as it is: leave out features and head_first, or lora")
        if self.cache is None:
            return self
        if self.augment is not None:
            raise ValueError("a cache holds answers to images as they are: leave out augment, or the cache")
        if isinstance(self.temperature, Schedule):
            raise ValueError("a cache keeps logits at one temperature: give a number, or leave out the cache")
        live = [name for name in self.losses if LOSSES[name].needs in LIVE]
        if live:
            raise ValueError(f"a cache holds logits and embeddings only: leave out {', '.join(live)}, or the cache")
        return self

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
        if self.lora is not None and self.lora.base is not None and self.leaves_precision_changed:
            model, bits = skeleton(spec.config, spec.model_class), packed_bits(self.lora.base)
            linear = packable(model, kept_modules(model, self.lora.base))
            spec = replace(spec, bits=spec.bits | {f"{name}.weight": bits for name in linear})
        used = self.losses or {}
        names = ", ".join(LOSSES[name].title for name in used) or "default losses"
        plan = self.planned(
            title=f"distillation from {self._taught_by()} ({names}; {self.steps} steps of "
            f"{self.batch_size * self.accumulate}"
            + (f"; LoRA of rank {self.lora.rank}, {self.lora.end})" if self.lora else ")"),
            exact=not self.leaves_precision_changed,
            notes=(
                *self._apart(used),
                describe(stored, autocast=self._autocasts, adapters=self.lora is not None),
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
        _require_targets(data)
        data.check_training_rows()
        if self.augment is not None and "pixel_values" not in _batch(model, data):
            raise UsageError(f"distil.augment: expected images, but task '{data.task.name}' reads none. Leave it out.")
        if self.augment is not None and getattr(data.task, "has_places", False):
            raise UsageError("distil.augment: the boxes would not move with the images. Leave it out.")
        with self._teachers(state, answering=False), torch.no_grad():
            few = few_tokens(_batch(model, data))
            require_given(self.losses, data.task, data.task.signals(model, few, hidden=True))

    def plan(self, state: StageState) -> Plan:
        """Choose the losses the task's signals allow; load and check the teachers.

        Raises:
            UsageError: a loss needs a signal that is not given or whose width differs from the teacher's, no teacher is
                there or one does not fit, or no training row has a target.
        """
        model, data = state.model, state.data
        _require_targets(data)
        with self._teachers(state, answering=False) as teachers:
            batch, known = _batch(model, data), known_ids(data.processor)
            objective = build(model, teachers, data.task, batch, known=known, **self._settings())
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
        model, data, work = state.model, state.data, state.checkpoints
        require_loaded(model)
        learner = self._learner(model)
        rows, collate = with_rows(data) if self.cache else (data.train, data.collate)
        collate = self.augment.over(collate) if self.augment else collate
        collate = with_float_inputs(collate, learner.dtype)
        with tempfile.TemporaryDirectory() as scratch, self._teachers(state) as teachers:
            batch = _batch(learner, replace(data, train=rows, collate=collate))
            if "features" in self.losses:
                _reuse_head(learner, teachers, data)
            known = known_ids(data.processor)
            objective = build(learner, teachers, data.task, batch, known=known, **self._settings())
            keeps = work is not None and self.checkpoint_every is not None
            place = str(work) if keeps else scratch
            trainer = DistillationTrainer(
                model=learner,
                args=self._arguments(place, len(rows), "input_ids" in rows.column_names, keeps=keeps),
                train_dataset=rows,
                data_collator=collate,
                callbacks=[
                    _Progress(),
                    MarkWhole(),
                    *([_HeadFirst(learner, self.head_first)] if self.head_first else []),
                ],
                objective=objective,
            )
            trainer.remove_callback(PrinterCallback)  # progress goes to our own listeners
            checkpoint = last_whole_checkpoint(Path(place)) if state.resume else None
            if checkpoint is not None and ended_at(checkpoint):
                load_ended_(trainer, checkpoint)
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
            # under bfloat16 the Trainer leaves its autocast on the model's forward
            learner = trainer.accelerator.unwrap_model(learner, keep_fp32_wrapper=False)
        if objective.label_head is not None:
            folded_(objective.label_head)
        student = self.lora.ended(learner, model) if self.lora else learner
        curve = [(int(e["step"]), float(e["loss"])) for e in trainer.state.log_history if "loss" in e]
        for name, was in model.named_modules():
            module = student.get_submodule(name)
            if isinstance(module, nn.Dropout) and isinstance(was, nn.Dropout):
                module.p = was.p
            if isinstance(module, _BatchNorm) and isinstance(was, _BatchNorm):
                module.momentum = was.momentum
        restore_dtypes_(student, model)
        return state.with_model(_trainable(student.eval()), curve)

    def _learner(self, model: PreTrainedModel) -> Any:
        """A float32 copy of `model` ready to be trained; or its weights as they are, with adapters in float32."""
        student = self.lora.base_of(model) if self.lora else copy.deepcopy(model)
        if not self.lora:
            upcast_(student)
        _trainable(student.train())
        for module in student.modules():
            if isinstance(module, nn.Embedding) and not self.train_embeddings:
                module.requires_grad_(False)
            if isinstance(module, nn.Dropout) and not self.dropout:
                module.p = 0.0  # noise that the teacher's target does not have
            if isinstance(module, _BatchNorm) and (module.momentum or 0) > SLUGGISH:
                module.momentum = SOUND
        return self.lora.wrapped(student, model) if self.lora else student

    @contextmanager
    def _teachers(self, state: StageState, *, answering: bool = True) -> Iterator[list[Answers]]:
        """The teachers, none of which learns meanwhile; their caches, where `answering`."""
        data, cache = state.data, state.statistics
        wanted = self.teachers or (Teacher(),)
        models = [cache.pop(state.model, _teacher_key(teacher)) or teacher.load(data) for teacher in wanted]
        if not answering:
            for teacher, model in zip(self.teachers, models, strict=False):  # training need not load them again
                cache.put(state.model, _teacher_key(teacher), model)
        with frozen(models):
            if self.cache is None or not answering:
                yield [Live(model, teacher.weight) for teacher, model in zip(wanted, models, strict=True)]
                return
            assert not isinstance(self.temperature, Schedule), "refused before"
            yield [
                open_cache(self.cache, model, data, self.temperature, teacher.weight, f"{number}-{_slug(teacher)}")
                for number, (teacher, model) in enumerate(zip(wanted, models, strict=True), 1)
            ]

    def _taught_by(self) -> str:
        """For the card."""
        return " and ".join(teacher.name for teacher in self.teachers) or "the original"

    def _apart(self, losses: Iterable[str]) -> tuple[str, ...]:
        """A sentence on losses that do not see a whole step, where it has several batches."""
        names = [name for name in losses if LOSSES[name].mean_over == "batches"]
        if self.accumulate == 1 or not names:
            return ()
        rows = self.batch_size * self.accumulate
        return (f"{' and '.join(names)} within each batch of {self.batch_size}, not over the {rows} rows of a step",)

    @property
    def _autocasts(self) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.precision == "bfloat16" or (self.precision == "auto" and _has_bfloat16())

    def _settings(self) -> dict[str, Any]:
        """What the objective is built from, beside models and batch."""
        return {name: getattr(self, name) for name in ("losses", "temperature", "beta", "layers", "seed")}

    def _arguments(self, work: str, rows: int, text: bool, *, keeps: bool) -> TrainingArguments:
        size = min(self.batch_size, rows)
        return TrainingArguments(
            output_dir=work,
            max_steps=self.steps,
            per_device_train_batch_size=size,
            dataloader_drop_last=rows % size == 1,  # batch norms have no variance of one row at one place
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.learning_rate,
            warmup_steps=round(self.warmup * self.steps),
            weight_decay=self.weight_decay,
            lr_scheduler_type="cosine",
            bf16=self._autocasts,
            train_sampling_strategy="group_by_length" if text else "random",
            save_strategy="steps" if keeps else "no",
            save_steps=self.checkpoint_every or 500,
            save_total_limit=2,
            logging_steps=max(self.steps // 50, 1),
            use_cpu=not torch.accelerator.is_available(),
            report_to=list(self.report_to) or "none",
            log_level="error",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=self.seed,
        )


def _trainable(model: Any) -> Any:
    """All that can have a gradient wants one; packed codes cannot."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def _batch(model: PreTrainedModel, data: TaskData) -> Batch:
    """Some calibration rows, on the model's device: heads are found out and layers compared on them."""
    rows = data.calibration.select(range(min(ALIKE_ROWS, len(data.calibration))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # collators that hide tokens hide the same ones in a resumed run
        (batch,) = data.batches(rows, ALIKE_ROWS)
    return {k: v.to(model.device) for k, v in batch.items()} | as_read_by(model, batch)


def _require_targets(data: TaskData) -> None:
    """Refuse labels of which none counts.

    Raises:
        UsageError: all are -100.
    """
    if "labels" in data.train.column_names and not any(
        np.any(np.asarray(labels) != -100) for labels in data.train["labels"]
    ):
        raise UsageError(
            f"distil: no training row has a target (all {len(data.train)} have only labels of -100). "
            "Look at data.max_length, and at what masks the labels."
        )


def _teacher_key(teacher: Teacher) -> StatisticsKey[PreTrainedModel]:
    return StatisticsKey("loaded teacher", teacher)


def _slug(teacher: Teacher) -> str:
    return "".join(c if c.isalnum() else "-" for c in teacher.name)


def _has_bfloat16() -> bool:
    """Whether products in bfloat16 are faster here than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _reuse_head(student: PreTrainedModel, teachers: Sequence[Answers], data: TaskData) -> None:
    """Put the teacher's head, over a bridge, in the place of the student's."""
    live = [teacher.model for teacher in teachers if isinstance(teacher, Live)]
    names = [label_head(model.config, type(model)) for model in (*live, student)]
    if len(live) == 1 and all(names):  # else `build` says what is wrong
        with evaluating(student):
            reuse_(live[0], student, Seam(*names), data)  # type: ignore[arg-type]


class _HeadFirst(TrainerCallback):
    """At first no gradient but the head's is followed."""

    def __init__(self, model: PreTrainedModel, share: float) -> None:
        head = label_head(model.config, type(model))
        if head is None:
            raise UsageError(f"distil.head_first: {type(model).__name__} has no map to labels. Leave it out.")
        own = {id(p) for p in model.get_submodule(head).parameters()}
        self.body = [p for p in model.parameters() if id(p) not in own]
        self.share = share

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step < self.share * state.max_steps:
            for parameter in self.body:
                parameter.grad = None


class _Progress(TrainerCallback):
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        advance("distillation", state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        advance("distillation", state.global_step, state.max_steps)
