"""Determines which training checkpoints of a stopped run are complete, and reads them."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from hf_pe.distill.duration import Duration
from hf_pe.errors import explained, one_line
from hf_pe.files.atomic import write_whole
from hf_pe.files.json_files import read_object_if_any

WHOLE = "whole.json"
"""Name of the file that is written last into a checkpoint, with the size in bytes of each of its files."""


class MarkWhole(TrainerCallback):
    """Write the list of its files into each checkpoint that the Trainer has finished."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Mark the checkpoint of the current step."""
        folder = Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_whole(folder / WHOLE, json.dumps(_sizes(folder)) + "\n")


def last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint in `folder`; None if there is none.

    A checkpoint that was being written or removed when the run stopped is ignored.
    """
    checkpoints = sort_checkpoints(str(folder)) if folder.is_dir() else []
    return next((path for path in reversed(checkpoints) if _is_whole(Path(path))), None)


def ended_at(checkpoint: str, duration: Duration) -> bool:
    """Return whether a checkpoint is of the last step; the Trainer would train one step more if it resumed it."""
    return duration.ended(_state_of(checkpoint))


def reading_checkpoint(checkpoint: str) -> AbstractContextManager[None]:
    """Turn any error inside the block into a UsageError: files of the right size may still be damaged."""
    return explained(
        lambda error: (
            f"The training checkpoint {checkpoint} cannot be read, although it is complete: "
            f"{one_line(error, 300) or type(error).__name__}. Its files are damaged. Delete that folder to continue "
            "from the checkpoint before it (hf-pe run --resume), or begin anew (hf-pe run --restart)."
        )
    )


def load_ended_(trainer: Trainer, checkpoint: str) -> None:
    """Load the weights and the loss curve of a checkpoint whose training has ended into a trainer."""
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = _state_of(checkpoint)


def callback_state(checkpoint: str, name: str) -> object:
    """Return the attributes that a checkpoint has of the callback of this class name; None if it has none."""
    with reading_checkpoint(checkpoint):
        states = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text("utf-8"))["stateful_callbacks"]
    return states[name]["attributes"] if name in states else None


def _state_of(checkpoint: str) -> TrainerState:
    with reading_checkpoint(checkpoint):
        state: TrainerState = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    return state


def _is_whole(folder: Path) -> bool:
    return read_object_if_any(folder / WHOLE) == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a checkpoint by its path inside the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != WHOLE)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
