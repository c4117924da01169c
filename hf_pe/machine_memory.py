"""How much memory this process may have: that of the machine, or less where its container has a limit.

psutil knows the machine alone. A container's limit stands in files of its control group (version 2: memory.max; 1:
memory.limit_in_bytes), and the groups above may have lower ones.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""Names the groups of this process, one a line: number, controllers, path."""


def all_memory() -> int:
    """Return the bytes of memory and swap that this process may have at most."""
    memory = min([psutil.virtual_memory().total, *(limit for _, limit in _limits("memory.max"))])
    swap = min([psutil.swap_memory().total, *(limit for _, limit in _limits("memory.swap.max"))])
    return int(memory + swap)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take."""
    left = [limit - _used(group) for group, limit in _limits("memory.max")]
    return max(int(min([psutil.virtual_memory().available, *left])), 0)


def _limits(name: str) -> Iterator[tuple[Path, int]]:
    """Yield the groups of this process that have a limit, and the limit; `name` is its file in version 2."""
    for group in _groups():
        limit = _number(group / name)
        if limit is None and name == "memory.max":
            limit = _number(group / "memory.limit_in_bytes")
        if limit is not None:
            yield group, limit


def _groups() -> list[Path]:
    """Return the folders of this process's groups and of those above them that govern memory."""
    try:
        lines = OWN.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = GROUPS / "memory" if controllers else GROUPS
        inner = Path(path.lstrip("/"))
        if ".." not in inner.parts:  # outside of what is mounted here
            found += [root / each for each in (inner, *inner.parents)]
        found.append(root)
    return list(dict.fromkeys(found))


def _used(group: Path) -> int:
    """Return the bytes that a group holds, without cached files, which make room."""
    held = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    try:
        facts = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        cached = int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        cached = 0
    return held - cached


def _number(file: Path) -> int | None:
    """Return the number in a file; None where it says "max", or is not there."""
    try:
        return int(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
