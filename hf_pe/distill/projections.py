"""Extends a Trainer to train and save the projections of hidden states, which are not part of the model."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback

from hf_pe.distill.checkpoint import reading_checkpoint
from hf_pe.distill.objective import Objective
from hf_pe.surgery import main_dtype

PROJECTIONS = "hidden_projections.safetensors"
"""Name of the file in a checkpoint with the projections of hidden states to the teacher's width."""


class ProjectionsMixin:
    """Trains the projections of an objective with the model, and saves them in its checkpoints."""

    distillation: Objective

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the Trainer's optimizer, which also trains the projections."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self._projections():
            optimizer.add_param_group({"params": self._projections()})
        return optimizer

    def _projections(self) -> list[torch.nn.Parameter]:
        return list(torch.nn.ModuleList(self.distillation.projections).parameters())

    def _follow_projections(self) -> None:
        """Average their gradients over processes and drop them after each step, as the Trainer does for the model."""
        for parameter in self._projections():
            parameter.register_post_accumulate_grad_hook(_average_over_processes)  # type: ignore[no-untyped-call]
        if self._projections():
            self.add_callback(_DropGradients(self._projections()))  # type: ignore[attr-defined]

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
            stored = load_file(file)
            for number, parameter in enumerate(self._projections()):
                parameter.data.copy_(stored[str(number)])


class _DropGradients(TrainerCallback):
    """Drops the gradients of projections after each step; the Trainer drops those of its model only."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _average_over_processes(parameter: torch.Tensor) -> None:
    """Replace a gradient by its mean over processes, as DDP does for the model's parameters."""
    if dist.is_available() and dist.is_initialized() and parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def _load_renamed(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that a checkpoint has under the names of an older layout of the architecture (ViT's layers).

    `save_pretrained` writes these names and `from_pretrained` reads them, but the Trainer ignores them when it resumes.
    """
    stored = {n: t for file in folder.glob("model*.safetensors") for n, t in load_file(file).items()}
    own = model.state_dict()
    if not stored.keys() - own.keys():
        return
    renamed = type(model).from_pretrained(folder, config=model.config, dtype=main_dtype(model)).state_dict()
    model.load_state_dict(renamed | stored, strict=False)
