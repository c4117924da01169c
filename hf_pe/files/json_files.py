"""Read JSON that may be damaged or foreign, with a message instead of a traceback where it cannot be read."""

import json
from pathlib import Path
from typing import Any

from hf_pe.errors import UsageError

LARGEST_BYTES = 256_000_000
"""Size limit of a file; the index of a model with a million tensors has a third of it."""
AGAIN = "Take an undamaged copy: download the folder again, or save it again with save_pretrained."


def read_object(file: Path, way_out: str = AGAIN) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object: `{"key": value, ...}`.

    Args:
        file: File to read.
        way_out: A sentence about what the user can do where the file is damaged.

    Raises:
        UsageError: The file cannot be read, is not UTF-8, is not JSON or holds no object. The message has the file, the
            position in it and `way_out`.
    """
    content = read_json(file, way_out)
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected an object ({{...}}), got {kind_of(content)}. {way_out}")
    return content


def read_json(file: Path, way_out: str = AGAIN) -> Any:
    """Return the content of a JSON file; see `read_object`."""
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise UsageError(f"{file} is larger than {LARGEST_BYTES / 1e6:.0f} MB, too large to be read. {way_out}")
        text = file.read_text("utf-8-sig")
        content = json.loads(text)
        if "\\ud" in text.lower():  # a lone surrogate could not be written again
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror or error}). {way_out}") from error
    except UnicodeEncodeError as error:
        raise UsageError(f"{file} has a text with half a character (a lone surrogate). {way_out}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start + 1}). {way_out}") from error
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise UsageError(f"{file} is not valid JSON ({position}). {way_out}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise UsageError(f"{file} is not JSON that can be read ({error}). {way_out}") from error


def read_json_if_any(file: Path) -> Any:
    """Return the content of a JSON file; None where it is missing or damaged, which another reader reports."""
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object_if_any(file: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file that holds an object; None where it is missing, damaged or holds no object."""
    content = read_json_if_any(file)
    return content if isinstance(content, dict) else None


def kind_of(value: Any) -> str:
    """Return the name of a JSON value's type for messages."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
