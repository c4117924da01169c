"""Distillation as a recipe: the pruned student learns from the untouched original."""

import copy
import itertools
import tempfile
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_pe.distill.chunked import Head
from hf_pe.distill.layer_map import Pairs, last, similar, uniform
from hf_pe.distill.lora import PAPER, Lora, merged
from hf_pe.distill.losses import LOSSES, chunkable
from hf_pe.distill.trainer import DistillationTrainer
from hf_pe.errors import UsageError, nearest
from hf_pe.measure import sketch_size
from hf_pe.plans import Frozen, Plan, Sketch
from hf_pe.progress import advance
from hf_pe.tasks import Batch, Task, TaskData

ALIKE_ROWS = 16
"""Calibration rows on which hidden states are compared."""
LARGE = 4096
"""From so many words on a vocabulary's logits are never held whole."""
DEFAULTS = {"logits": {"kl": 1.0}, "embeddings": {"cosine": 1.0, "similarity": 10.0}}
"""Weights where the recipe gives none, by what the task's model gives."""


class Distillation(Frozen):
    """Train the model to give what the original gave on the same inputs."""

    recipe: Literal["distil"] = "distil"
    losses: dict[str, float] = Field(
        default_factory=dict, description=f"weights by name: {', '.join(LOSSES)}; default by task"
    )
    temperature: float = Field(2.0, gt=0)
    layers: Literal["uniform", "last", "similar"] | tuple[int, ...] = Field(
        "uniform",
        description="which of the teacher's hidden states (0: the embeddings') each of the student's learns from: "
        "spread evenly, the last ones, those most alike on calibration rows, or given one by one, rising",
    )
    steps: int = Field(300, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.01, ge=0)
    train_embeddings: bool = Field(True, description="False keeps the embedding tables as they are: faster")
    dropout: bool = Field(False, description="True leaves the student's dropout on while it learns")
    lora: Lora | None = Field(None, description="train low-rank adapters in place of all weights, and merge them")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="bfloat16 trains under autocast; auto: where the hardware has it"
    )
    seed: int = 0

    @field_validator("losses")
    @classmethod
    def _known(cls, losses: dict[str, float]) -> dict[str, float]:
        for name, weight in losses.items():
            if name not in LOSSES:
                raise ValueError(f"no loss is called '{name}'; expected {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
            if weight <= 0:
                raise ValueError(f"the weight of '{name}' must be above 0, got {weight}; leave the loss out instead")
        return losses

    def outline(self, sketch: Sketch) -> tuple[Plan, Sketch]:
        """Training changes no size."""
        used = self.losses or {}
        names = ", ".join(LOSSES[name].title for name in used) or "default losses"
        plan = Plan(
            recipe="distil",
            title=f"distillation from the original ({names}; {self.steps} steps of {self.batch_size}"
            + (f"; LoRA of rank {self.lora.rank}, merged)" if self.lora else ")"),
            exact=True,
            references=(
                *(LOSSES[name].reference for name in used if LOSSES[name].reference),
                *([PAPER] if self.lora else []),
            ),
            **sketch_size(sketch),
        )
        return plan, sketch

    def plan(self, model: PreTrainedModel, data: TaskData) -> Plan:
        """Choose the losses the task's signals allow.

        Raises:
            UsageError: a loss needs a signal that the task does not give or whose width differs from the
                teacher's, or there is no teacher.
        """
        if data.teacher is None:
            raise UsageError("distil: there is no teacher; give the original as data.teacher.")
        batch = {k: v.to(model.device) for k, v in next(data.batches(data.train, 2)).items()}
        with torch.no_grad():
            given, wanted = (data.task.signals(m, batch, hidden=True) for m in (model, data.teacher))
        for name in self.losses:
            if LOSSES[name].needs not in given:
                allowed = ", ".join(n for n, loss in LOSSES.items() if loss.needs in given)
                raise UsageError(
                    f"distil.losses.{name}: task '{data.task.name}' gives no {LOSSES[name].needs}; expected {allowed}."
                )
        chosen = self.model_copy(update={"losses": self._weights(given)})
        for name in chosen.losses:
            here, there = (_width(signals[LOSSES[name].needs]) for signals in (given, wanted))
            if name == "hidden":
                self._pairs(given["hidden_states"], wanted["hidden_states"])
            elif here != there:
                raise UsageError(
                    f"distil.losses.{name}: expected the student's {LOSSES[name].needs} as wide as the teacher's "
                    f"({there}), got {here}. Choose losses of the logits, or keep the hidden width."
                )
        return chosen.outline(Sketch(config=model.config, model_class=type(model)))[0]

    def apply(self, model: PreTrainedModel, plan: Plan, data: TaskData) -> PreTrainedModel:
        """Train a copy of `model`; returns it in evaluation mode."""
        return self.train(model, data)[0]

    def train(self, model: PreTrainedModel, data: TaskData) -> tuple[PreTrainedModel, list[tuple[int, float]]]:
        """Train a copy of `model`; returns it with its loss curve [(step, loss)]."""
        assert data.teacher is not None, "plan refuses a missing teacher"
        student = copy.deepcopy(model).train().requires_grad_(True)
        for module in student.modules():
            if isinstance(module, nn.Embedding) and not self.train_embeddings:
                module.requires_grad_(False)
            if isinstance(module, nn.Dropout) and not self.dropout:
                module.p = 0.0  # noise that the teacher's target does not have
        batch = {k: v.to(model.device) for k, v in next(data.batches(data.train, 2)).items()}
        weights = self._weights(data.task.signals(model, batch))
        learner = self.lora.wrapped(student) if self.lora else student
        heads = _heads(learner, data.teacher, batch, weights, data.task)
        pairs, projections = self._layers(student, data) if "hidden" in weights else (None, ())
        student.hidden_projections = nn.ModuleList(projections)  # where the Trainer finds them; dropped at the end
        with tempfile.TemporaryDirectory() as work:
            trainer = DistillationTrainer(
                model=learner,
                args=self._arguments(work, len(data.train)),
                train_dataset=data.train,
                data_collator=data.collate,
                callbacks=[_Progress()],
                teacher=data.teacher,
                task=data.task,
                weights=weights,
                temperature=self.temperature,
                heads=heads,
                pairs=pairs,
                projections=projections,
            )
            trainer.remove_callback(PrinterCallback)  # progress goes to our own listeners
            trainer.train()
            # under bfloat16 the Trainer leaves its autocast on the model's forward
            learner = trainer.accelerator.unwrap_model(learner, keep_fp32_wrapper=False)
        del student.hidden_projections
        student = merged(learner) if self.lora else learner
        curve = [(int(e["step"]), float(e["loss"])) for e in trainer.state.log_history if "loss" in e]
        for module, was in zip(student.modules(), model.modules(), strict=True):
            if isinstance(module, nn.Dropout) and isinstance(was, nn.Dropout):
                module.p = was.p
        return student.eval().requires_grad_(True), curve

    def _layers(self, student: PreTrainedModel, data: TaskData) -> tuple[Pairs, list[nn.Linear]]:
        """Which hidden state learns from which, and what brings the student's to the teacher's width."""
        assert data.teacher is not None, "plan refuses a missing teacher"
        batch = {k: v.to(student.device) for k, v in next(data.batches(data.calibration, ALIKE_ROWS)).items()}
        training = student.training
        with torch.no_grad():
            models = (student.eval(), data.teacher.eval())
            here, there = (data.task.signals(m, batch, hidden=True)["hidden_states"] for m in models)
        student.train(training)
        pairs = self._pairs(here, there, batch.get("attention_mask"))
        width, wanted = here[0].shape[-1], there[0].shape[-1]
        if width == wanted:
            return pairs, []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return pairs, [nn.Linear(width, wanted, bias=False).to(student.device) for _ in pairs]

    def _pairs(
        self, student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], mask: torch.Tensor | None = None
    ) -> Pairs:
        """By `layers`; `mask` says which tokens count.

        Raises:
            UsageError: given ones are too many or too few, do not rise, or are out of range.
        """
        if self.layers == "similar" and len(student) <= len(teacher):
            return similar(*([_rows(state, mask) for state in states] for states in (student, teacher)))
        if self.layers == "last":
            return last(len(student), len(teacher))
        if isinstance(self.layers, str):
            return uniform(len(student), len(teacher))
        rising = all(one < other for one, other in itertools.pairwise((-1, *self.layers, len(teacher))))
        if len(self.layers) != len(student) or not rising:
            raise UsageError(
                f"distil.layers: expected {len(student)} rising numbers within 0..{len(teacher) - 1} (0: what the "
                f"embeddings give), one for each hidden state of the student; got {list(self.layers)}."
            )
        return list(enumerate(self.layers))

    def _weights(self, given: dict[str, Any]) -> dict[str, float]:
        return self.losses or next(weights for signal, weights in DEFAULTS.items() if signal in given)

    def _arguments(self, work: str, rows: int) -> TrainingArguments:
        return TrainingArguments(
            output_dir=work,
            max_steps=self.steps,
            per_device_train_batch_size=min(self.batch_size, rows),
            learning_rate=self.learning_rate,
            warmup_steps=round(self.warmup * self.steps),
            weight_decay=self.weight_decay,
            lr_scheduler_type="cosine",
            bf16=self.precision == "bfloat16" or (self.precision == "auto" and _has_bfloat16()),
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_steps=max(self.steps // 50, 1),
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
            log_level="error",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=self.seed,
        )


def _heads(
    student: Any, teacher: PreTrainedModel, batch: Batch, weights: dict[str, float], task: Task
) -> tuple[Head, Head] | None:
    """The heads by which losses of the logits go in chunks; None where the logits are small or are asked for whole."""
    by_token = [name for name in weights if name in chunkable()]
    if not by_token or {*weights} - {*by_token, "hidden"} or not hasattr(task, "predicted"):
        return None
    if (teacher.config.get_text_config().vocab_size or 0) < LARGE:
        return None
    found = Head.of(student, batch), Head.of(teacher, batch)
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _rows(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Hidden states of the tokens that count, [tokens, width]."""
    return states.flatten(0, -2) if mask is None else states[mask.bool()]


def _width(signal: Any) -> int | None:
    """Of the last dimension of a tensor, or of the first of some; None for a single number."""
    tensor = signal[0] if isinstance(signal, tuple) else signal
    return tensor.shape[-1] if tensor.ndim else None


def _has_bfloat16() -> bool:
    """Whether products in bfloat16 are faster here than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class _Progress(TrainerCallback):
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        advance("distillation", state.global_step, state.max_steps)
