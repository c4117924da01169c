"""Notes the work folders of runs in the user's cache, so that `--resume` finds them from another output or disk."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from hf_pe.files.atomic import write_whole
from hf_pe.outputs.marker import run_id


def remember_run(folder: Path) -> None:
    """Note a work folder in the user's cache; without the note, `--resume` only searches beside outputs."""
    with suppress(OSError):
        _notes().mkdir(parents=True, exist_ok=True)
        write_whole(_notes() / run_id(folder), str(folder.absolute()))


def noted_parents() -> set[Path]:
    """Return the folders that contain noted work folders; notes of removed work folders are deleted."""
    parents = set()
    with suppress(OSError):
        for note in sorted(_notes().iterdir()):
            folder = Path(note.read_text("utf-8"))
            if run_id(folder) == note.name:
                parents.add(folder.parent)
            elif folder.parent.is_dir():  # otherwise its disk may just not be mounted
                note.unlink(missing_ok=True)
    return parents


def _notes() -> Path:
    return Path(constants.HF_HOME, "hf_pe", "runs")
