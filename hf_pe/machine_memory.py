"""Reads how much memory this process may use: the machine's, or less where its container has a limit.

psutil reports the machine alone. A container's limit is in files of its control group (version 2: memory.max; 1:
memory.limit_in_bytes), and the groups above it may have lower limits.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""Names the groups of this process, one a line: number, controllers, path."""


def all_memory() -> int:
    """Return the largest number of bytes of memory and swap that this process may use."""
    memory = min([psutil.virtual_memory().total, *(limit for _, limit in _limits("memory.max"))])
    swap = min([psutil.swap_memory().total, *(limit for _, limit in _limits("memory.swap.max"))])
    return int(memory + swap)


def available_memory() -> int:
    """Return the number of bytes of memory that this process may still allocate."""
    below_limits = [limit - _used(group) for group, limit in _limits("memory.max")]
    return max(int(min([psutil.virtual_memory().available, *below_limits])), 0)


def _limits(name: str) -> Iterator[tuple[Path, int]]:
    """Yield the control groups of this process that have a limit, with the limit; `name` is its file in version 2."""
    for group in _groups():
        limit = _number(group / name)
        if limit is None and name == "memory.max":
            limit = _number(group / "memory.limit_in_bytes")
        if limit is not None:
            yield group, limit


def _groups() -> list[Path]:
    """Return the folders of this process's control groups for memory, and of the groups above them."""
    try:
        lines = OWN.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        root = GROUPS / "memory" if controllers else GROUPS
        inner = Path(path.lstrip("/"))
        if ".." not in inner.parts:  # with "..", the group is outside the mounted folder
            folders += [root / path for path in (inner, *inner.parents)]
        folders.append(root)
    return list(dict.fromkeys(folders))


def _used(group: Path) -> int:
    """Return the number of bytes that a group uses, without cached files, which can be freed."""
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    try:
        statistics = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        cached = 0
    return used - cached


def _number(file: Path) -> int | None:
    """Return the number in a file; None where it is "max" or the file is missing."""
    try:
        return int(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
