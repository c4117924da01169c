"""Files that are whole at any time."""

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write beside `file`, then rename: what lies there stays until the new text is whole."""
    fresh = file.with_name(f"{file.name}.new")
    try:
        fresh.write_text(text, "utf-8")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)
