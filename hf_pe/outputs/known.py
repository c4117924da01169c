"""Where work folders of runs lie on this machine: `--resume` finds them from another output on another disk."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from hf_pe.files.atomic import write_whole
from hf_pe.outputs.marker import run_id


def remember_run(folder: Path) -> None:
    """Note a work folder in the user's cache; where that cannot be written, `--resume` looks beside outputs only."""
    with suppress(OSError):
        _notes().mkdir(parents=True, exist_ok=True)
        write_whole(_notes() / run_id(folder), str(folder.absolute()))


def known_parents() -> set[Path]:
    """Return the folders that hold noted work folders; notes of those that are gone are removed."""
    parents = set()
    with suppress(OSError):
        for note in sorted(_notes().iterdir()):
            folder = Path(note.read_text("utf-8"))
            if run_id(folder) == note.name:
                parents.add(folder.parent)
            elif folder.parent.is_dir():  # else its disk may not be there at the moment
                note.unlink(missing_ok=True)
    return parents


def _notes() -> Path:
    return Path(constants.HF_HOME, "hf_pe", "runs")
