"""Defines the settings of a distillation, which are the fields of its recipe."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator

from hf_pe.distill.augment import Augment
from hf_pe.distill.build import ObjectiveSettings
from hf_pe.distill.layer_states import DEFAULT_LAYERS, Layers
from hf_pe.distill.lora import Lora
from hf_pe.distill.losses.registry import CACHED_SIGNALS, LOSSES, losses_of
from hf_pe.distill.schedule import Schedule, Scheduled
from hf_pe.distill.teachers.cached import Cache
from hf_pe.distill.teachers.load import Teacher
from hf_pe.errors import nearest
from hf_pe.recipe import Recipe

DEFAULT_STEPS = 300
"""Optimizer steps of a training that is limited by neither steps nor minutes."""


def _name_losses(schema: dict[str, Any]) -> None:
    """Add the names of the losses to the schema of the field."""
    schema["description"] = f"weights by name: {', '.join(LOSSES)}; a number, or start, end and shape; default by task"
    schema["propertyNames"] = {"enum": list(LOSSES)}


class DistillationSettings(Recipe):
    """Holds the fields of `Distillation`."""

    tag = "distilled"
    changes = "weights"
    needs_plain_weights = "quantized weights cannot be trained"
    old_names: ClassVar = {"accumulate": "gradient_accumulation_steps"}

    recipe: Literal["distil"] = "distil"
    losses: dict[str, Scheduled] = Field(default_factory=dict, json_schema_extra=_name_losses)
    temperature: Scheduled = Field(2.0, description="of the logits; a number, or start, end and shape")
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: near 0 it is forward KL, near 1 reverse KL")
    layers: Layers = Field(
        DEFAULT_LAYERS,
        description="from which hidden state of the teacher (0: the output of the embeddings) each one of the student "
        "learns: evenly spread, the last ones, the most similar ones on calibration rows, or a list of rising numbers",
    )
    teachers: tuple[Teacher, ...] = Field((), description="default: the original")
    cache: Cache | None = Field(None, description="compute the teachers' outputs once and store them in a folder")
    steps: int | None = Field(None, ge=1, description="optimizer steps; default 300, or no limit if minutes are given")
    minutes: float | None = Field(
        None, gt=0, description="of training, by the clock; if steps are given too, the first of both ends it"
    )
    batch_size: int = Field(32, ge=1, description="rows of one forward pass")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches per optimizer step")
    learning_rate: float = Field(3e-4, gt=0, description="its peak; after the warm-up it falls along a cosine")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps in which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    train_embeddings: bool = Field(True, description="False does not train the embedding tables, which is faster")
    dropout: bool = Field(False, description="True keeps the student's dropout during training")
    lora: Lora | None = Field(None, description="train low-rank adapters instead of all weights, and merge them")
    augment: Augment | None = Field(None, description="random crops and flips, the same for student and teacher")
    head_first: float = Field(0.0, ge=0, lt=1, description="fraction of the steps in which only the head is trained")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="bfloat16 trains under autocast; auto does so if the hardware supports it"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; an interrupted run can be resumed from the last one"
    )
    evaluation_share: float = Field(
        0.05,
        ge=0,
        le=1,
        description="most of the training time for evaluations on training rows that are held out for "
        "them; the best weights are the result; 0: no row is held out, and the last weights are the result",
    )
    patience: int | None = Field(
        None, ge=1, description="evaluations in a row without a better one after which training stops; default: never"
    )
    report_to: tuple[str, ...] = Field((), description="integrations of the Trainer that log: tensorboard, wandb, ...")
    seed: int = Field(0, description="of the order of rows, dropout and weights that are drawn at random")

    @field_validator("losses")
    @classmethod
    def _existing(cls, losses: dict[str, Scheduled]) -> dict[str, Scheduled]:
        for name, weight in losses.items():
            if name not in LOSSES:
                raise ValueError(f"no loss is called '{name}'; expected {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
            most = max(weight.start, weight.end) if isinstance(weight, Schedule) else weight
            if most <= 0:
                raise ValueError(f"the weight of '{name}' must be above 0, got {most}; leave the loss out instead")
        return losses

    @field_validator("temperature")
    @classmethod
    def _positive(cls, temperature: Scheduled) -> Scheduled:
        least = min(temperature.start, temperature.end) if isinstance(temperature, Schedule) else temperature
        if least <= 0:
            raise ValueError(f"expected a temperature above 0, got {least}")
        return temperature

    @model_validator(mode="after")
    def _evaluated(self) -> "DistillationSettings":
        if self.patience is not None and self.evaluation_share == 0:
            raise ValueError("patience counts evaluations: give evaluation_share above 0, or leave out patience")
        return self

    @model_validator(mode="after")
    def _cacheable(self) -> "DistillationSettings":
        reusing = losses_of(["features"])
        if self.lora is not None and (self.head_first or any(name in self.losses for name in reusing)):
            raise ValueError(f"adapters do not train the head: leave out {', '.join(reusing)} and head_first, or lora")
        if self.cache is None:
            return self
        if self.augment is not None:
            raise ValueError("a cache holds outputs for images without augmentation: leave out augment, or the cache")
        if isinstance(self.temperature, Schedule):
            raise ValueError("a cache holds logits at one temperature: give a number, or leave out the cache")
        live = [name for name in self.losses if not LOSSES[name].is_cacheable]
        if live:
            signals = " and ".join(CACHED_SIGNALS)
            raise ValueError(f"a cache holds {signals} only: leave out {', '.join(live)}, or the cache")
        return self

    @property
    def most_steps(self) -> int | None:
        """The number of optimizer steps after which training ends; None if only minutes limit it."""
        return self.steps or (None if self.minutes else DEFAULT_STEPS)

    @property
    def length(self) -> str:
        """How long the training takes, in words: "300 steps of 32", "10 minutes, 32 rows a step"."""
        rows = self.batch_size * self.gradient_accumulation_steps
        if self.minutes is None:
            return f"{self.most_steps} steps of {rows}"
        most = f" or {self.steps} steps" if self.steps else ""
        return f"{self.minutes:g} minute{'s' * (self.minutes != 1)}{most}, {rows} rows a step"

    @property
    def autocasts(self) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.precision == "bfloat16" or (self.precision == "auto" and _has_bfloat16())

    @property
    def reuses_head(self) -> bool:
        """Whether a loss compares the inputs of the teacher's head, which the student then reuses."""
        return any(name in self.losses for name in losses_of(["features"]))

    @property
    def objective_settings(self) -> ObjectiveSettings:
        """The settings of the objective."""
        return ObjectiveSettings(self.losses, self.temperature, self.beta, self.layers, self.seed)


def _has_bfloat16() -> bool:
    """Return whether products in bfloat16 are faster on this machine than in float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
