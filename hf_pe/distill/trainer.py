"""Any Trainer with one method replaced: the loss looks at teachers too."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrize import is_parametrized
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import sort_checkpoints

from hf_pe.adapters import prompt_learning
from hf_pe.distill.attention import watchable
from hf_pe.distill.build import DEFAULT_LAYERS, Layers, build
from hf_pe.distill.checkpoint import reading_checkpoint
from hf_pe.distill.counts import UNITS, Unit, count
from hf_pe.distill.objective import Live, Objective
from hf_pe.distill.precision import require_loaded, warn_of_half_precision
from hf_pe.distill.sampling import SimilarLengthSampler
from hf_pe.distill.schedule import Scheduled
from hf_pe.distill.teacher import known_ids, require_frozen
from hf_pe.errors import NotFiniteError, UsageError
from hf_pe.overflow import overflow_of, overflows
from hf_pe.quantizers.bnb import plain_layout_
from hf_pe.surgery import main_dtype
from hf_pe.tasks import Batch, Task, task_named

PROJECTIONS = "hidden_projections.safetensors"
"""In a checkpoint: what brings hidden states to the teacher's width."""


class DistillationMixin:
    """Put before any `Trainer`: `class Distilled(DistillationMixin, SFTTrainer)`. The student learns from a teacher.

    Each log entry gets the mean of every term since the last one as `loss_NAME`, `teacher_agreement` (of the batch
    before the entry: share of positions where both find the same class likeliest; embeddings: mean cosine) and
    `tokens_per_second` over all processes. With gradient accumulation and several processes, each loss is the mean over
    all rows, tokens or labels of a step, as that of one large batch; `similarity` and `dist`, which compare the rows of
    a batch with each other, are means over the batches.

    Args:
        args: those of the Trainer.
        teacher: evaluation mode, without gradients (`teacher.requires_grad_(False)`).
        task: "causal_lm" or another name of `hf_pe.tasks.TASKS`, or a Task: what the models give for a batch.
        losses: loss name to weight or `Schedule`; default by task.
        temperature: of the logits.
        beta: of the Jensen-Shannon divergence.
        layers: which hidden state learns from which; see `Distillation.layers`.
        objective: all of this already made.
        kwargs: those of the Trainer.

    Raises:
        UsageError: the teacher is left trainable, the student's layers are not all on the device that trains, a model
            reads learned prompts (PEFT), or losses, task and models do not fit together.
    """

    distillation: Objective

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
                [Live(teacher)],
                task_named(task) if isinstance(task, str) else task,
                _first_batch(trainer),
                losses=losses or {},
                temperature=temperature,
                beta=beta,
                layers=layers,
                known=known_ids(trainer.processing_class),
            )
        head = objective.label_head
        if head is not None and not is_parametrized(head, "weight"):
            raise UsageError(
                "DistillationMixin: `features` needs the student's head to be the teacher's over a bridge. Call "
                "hf_pe.stitching.reuse_ on the student before, and folded_ after; a Distillation recipe does both."
            )
        self.distillation = objective
        self._packed = any(hasattr(parameter, "quant_state") for parameter in trainer.model.parameters())
        for each in objective.teachers:
            if isinstance(each, Live):
                require_frozen(trainer.model, each.model)
                each.model.eval()
            each.to(trainer.args.device)
        trainer.model_accepts_loss_kwargs = False  # the Trainer would count labels alone: see `get_batch_samples`
        for parameter in self._projections():
            parameter.register_post_accumulate_grad_hook(_averaged)  # type: ignore[no-untyped-call]
        if self._projections():
            trainer.add_callback(_Forgetting(self._projections()))
        self._step_counts: torch.Tensor | None = None
        self._loss_only = False
        self._reset()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        self._reset()
        with self._watchable():
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the projections of hidden states, which are no part of the model, learn along."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self._projections():
            optimizer.add_param_group({"params": self._projections()})
        return optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; but where it sorts batches by length, they come in random order."""
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        settings = self.args  # type: ignore[attr-defined]
        seed = settings.seed if settings.data_seed is None else settings.data_seed
        return SimilarLengthSampler(sampler.lengths, settings.train_batch_size * settings.world_size, seed)

    def _projections(self) -> list[torch.nn.Parameter]:
        return list(torch.nn.ModuleList(self.distillation.projections).parameters())

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        folder = Path(trainer._get_output_dir(trial=None), f"checkpoint-{trainer.state.global_step}")
        if self._projections() and trainer.args.should_save and folder.is_dir():
            save_file({str(i): p.data for i, p in enumerate(self._projections())}, folder / PROJECTIONS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        with reading_checkpoint(resume_from_checkpoint):
            self._load_weights(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading_checkpoint(str(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading_checkpoint(str(checkpoint)):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _load_weights(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        if isinstance(model, PreTrainedModel):
            _load_renamed(model, Path(resume_from_checkpoint))
        file = Path(resume_from_checkpoint, PROJECTIONS)
        if file.is_file():
            kept = load_file(file)
            for number, parameter in enumerate(self._projections()):
                parameter.data.copy_(kept[str(number)])

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        with self._watchable():
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; where the loss alone is asked for, whole logits are not made."""
        self._loss_only = prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._loss_only = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; what losses are means over is counted over all batches of the step, in all processes."""
        batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        counts = [count(self.distillation.task, batch) for batch in batches]
        self._step_counts = (
            trainer.accelerator.reduce(torch.stack(counts).sum(0).to(trainer.args.device)) if counts else None
        )
        return batches, items

    def _shares(self, batch: Batch) -> dict[Unit, torch.Tensor] | None:
        """Which share of a step's rows, tokens and so on `batch` has; processes are averaged afterwards."""
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
        """The objective's; its terms are kept for the log.

        Raises:
            NotFiniteError: a term is infinite or no number; the weights are still those of the step before.
        """
        trainer: Any = self
        if self._packed and model.training:
            plain_layout_(model)
        whole = return_outputs and not self._loss_only
        objective = replace(self.distillation, head=None) if whole else self.distillation
        shares = self._shares(inputs)
        state, every = trainer.state, max(int(trainer.args.logging_steps), 1)
        found = objective(
            model,
            inputs,
            progress=state.global_step / max(state.max_steps, 1),
            autocast=trainer.accelerator.autocast,
            agreement=model.training and (state.global_step + 1) % every == 0,
            shares=shares,
        )
        if not torch.isfinite(found.loss):
            raise NotFiniteError(self._what_failed(found.terms, inputs))
        if model.training:
            self._count(found.terms, inputs)
        if not return_outputs:
            # the Trainer divides by the number of batches; these losses add up to the step's already
            return found.loss if shares is None else found.loss * trainer.current_gradient_accumulation_steps
        given = {name: found.signals[name] for name in ("logits", "embeddings") if name in found.signals}
        return found.loss, given

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the terms, the agreement and the speed to what the Trainer logs about training."""
        if "loss" in logs and self._terms:
            logs = logs | self._summary()
            self._reset()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _reset(self) -> None:
        self._terms: dict[str, dict[int, torch.Tensor]] = {}
        self._tokens: list[torch.Tensor] = []
        self._since = time.perf_counter()

    def _count(self, terms: dict[str, torch.Tensor], inputs: Batch) -> None:
        """Remember, without waiting for the device."""
        step = self.state.global_step  # type: ignore[attr-defined]
        for name, value in terms.items():
            by_step = self._terms.setdefault(name, {})
            by_step[step] = by_step.get(step, 0) + value.float()
        first = next(iter(inputs.values()))
        mask = inputs.get("attention_mask", inputs.get("input_ids"))
        counted = torch.tensor(len(first) if mask is None else mask.numel(), device=first.device)
        self._tokens.append(mask.sum() if mask is not None and "attention_mask" in inputs else counted)

    def _summary(self) -> dict[str, float]:
        gather = self.accelerator.gather  # type: ignore[attr-defined]
        device = self._tokens[0].device
        found = {}
        for name, values in sorted(self._terms.items()):
            mean = float(gather(torch.stack(list(values.values())).mean().to(device)).mean())
            found["teacher_agreement" if name == "agreement" else f"loss_{name}"] = mean
        tokens = float(gather(torch.stack(self._tokens).sum().float()).sum())
        found["tokens_per_second"] = tokens / max(time.perf_counter() - self._since, 1e-9)
        return found

    def _what_failed(self, terms: dict[str, torch.Tensor], inputs: Batch) -> str:
        trainer: Any = self
        wrong = [f"{name} ({float(value)})" for name, value in terms.items() if not torch.isfinite(value)]
        rows = _rows_of(inputs, trainer.train_dataset)
        first = next(iter(inputs.values()))
        where = f"training rows {rows}" if rows else f"a batch of {tuple(first.shape)}"
        checkpoints = sort_checkpoints(trainer.args.output_dir) if trainer.args.save_strategy != "no" else []
        kept = f"; checkpoints in {trainer.args.output_dir} are as they were" if checkpoints else ""
        return (
            f"Step {trainer.state.global_step + 1}: {', '.join(wrong) or 'the sum of all terms'} is not finite in "
            f"{where}. The run stopped before these weights changed{kept}. "
            + (self._what_teacher_failed(inputs) or "Look at these rows, lower learning_rate, or train in float32.")
        )

    def _what_teacher_failed(self, inputs: Batch) -> str:
        """Return whether a teacher's own answers on a batch are not finite, in sentences; "" where all are."""
        objective = self.distillation
        for number, teacher in enumerate(objective.teachers, 1):
            ask = partial(teacher.signals, inputs, task=objective.task, hidden=False, attentions=False)
            wrong = [name for name, value in ask().items() if not _is_finite(value)]
            if not wrong:
                continue
            which = f"teacher {number}" if len(objective.teachers) > 1 else "the teacher"
            overflow = overflow_of(teacher.model, ask) if isinstance(teacher, Live) else None
            way_out = overflow or "Load it in float32 or bfloat16, look at these rows, or take another teacher."
            return f"The cause is {which}: its {' and '.join(wrong)} on these rows are no numbers. {way_out}"
        return ""

    @contextmanager
    def _watchable(self) -> Iterator[None]:
        """Where attention is looked at, all models attend by the function that remembers."""
        if not self.distillation.attentions:
            yield
            return
        plain = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        with watchable(plain, *(each.model for each in self.distillation.teachers if isinstance(each, Live))):
            yield


class DistillationTrainer(DistillationMixin, Trainer):
    """The stock `Trainer` with a teacher; see `DistillationMixin`."""


class _Forgetting(TrainerCallback):
    """The Trainer forgets the gradients of its model only."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _require_no_prompts(role: str, model: Any) -> None:
    """Refuse learned prompts: tokens that they add are no tokens of the batch, which the losses compare."""
    kind = prompt_learning(model)
    if kind is not None:
        raise UsageError(
            f"DistillationMixin: the {role} reads learned prompts ({kind} of PEFT) before each row, so that its tokens "
            "are not those of the batch. Expected adapters inside the model, such as LoRA, or a model without any "
            f"({role}.get_base_model())."
        )


def _averaged(parameter: torch.Tensor) -> None:
    """Make a gradient the mean over processes, as DDP does for what is inside the model."""
    if dist.is_available() and dist.is_initialized() and parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def _is_finite(signal: Any) -> bool:
    """Return whether no tensor of a signal holds NaN or plus infinity."""
    return all(map(_is_finite, signal)) if isinstance(signal, list | tuple) else not overflows(signal)


def _load_renamed(model: PreTrainedModel, folder: Path) -> None:
    """Load what a checkpoint holds under the names of an older layout of the architecture (ViT's layers).

    `save_pretrained` writes these names, `from_pretrained` understands them; the Trainer's resuming passes over them.
    """
    stored = {n: t for file in folder.glob("model*.safetensors") for n, t in load_file(file).items()}
    own = model.state_dict()
    if not stored.keys() - own.keys():
        return
    understood = type(model).from_pretrained(folder, config=model.config, dtype=main_dtype(model)).state_dict()
    model.load_state_dict(understood | stored, strict=False)


def _first_batch(trainer: Any) -> Batch:
    """Two rows as the Trainer will see them, on its device."""
    if trainer.train_dataset is None:
        raise UsageError("DistillationMixin: expected a train_dataset to find out what the models give, got none.")
    rows = iter(trainer.train_dataset)
    batch = trainer.data_collator([row for row, _ in zip(rows, range(2), strict=False)])
    return {k: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _rows_of(inputs: Batch, rows: Any) -> list[int]:
    """Which training rows a batch was made of, by their tokens; none where that cannot be told."""
    if "input_ids" not in inputs or not hasattr(rows, "column_names") or "input_ids" not in rows.column_names:
        return []
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    wanted = {tuple(ids[kept].tolist()) for ids, kept in zip(inputs["input_ids"], mask, strict=True)}
    return [number for number, ids in enumerate(rows["input_ids"]) if tuple(ids) in wanted][: len(wanted)]
