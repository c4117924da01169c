"""Seal a result: its report states the SHA-256 of every file and of itself, so that later changes are detected.

    files    SHA-256 of each file of the result except `report.json`, by its path
    seal     SHA-256 of `report.json` without this field, as canonical JSON

A seal is no signature: whoever changes a result can seal it again (`hf-pe seal`), but does so on purpose.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_pe.files.atomic import files_below, is_hidden, write_whole
from hf_pe.files.hashes import sha256, sha256_of
from hf_pe.outputs import REPORT
from hf_pe.report import Report, read_report

CARD = "README.md"


class Changes(NamedTuple):
    """Hold the differences between a result and its seal.

    Attributes:
        sealed: False for a result of an older version, whose report has no seal; then nothing else is known.
        report: Whether `report.json` itself was changed.
        changed: Names of changed files, apart from the card.
        missing: Names of missing files, apart from the card.
        extra: Names of additional files.
        card: Whether the card was changed.
    """

    sealed: bool
    report: bool = False
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    card: bool = False


def sealed(report: Report, files: Mapping[str, str]) -> Report:
    """Return the report with the hashes of all other files, and with its seal."""
    report = report.model_copy(update={"files": dict(sorted(files.items())), "seal": None})
    return report.model_copy(update={"seal": _digest(json.loads(report.model_dump_json()))})


def write_sealed(report: Report, folder: Path, hashes: Mapping[str, str] | None = None) -> Report:
    """Hash the files of a result, write its report as the last of them, and return the sealed report.

    Args:
        report: Report of the result.
        folder: Folder of the result.
        hashes: Hashes of files that were computed just before.
    """
    hashes = hashes or {}
    report = sealed(report, {name: hashes.get(name) or sha256(folder / name) for name in result_files(folder)})
    write_whole(folder / REPORT, report.model_dump_json(indent=2) + "\n")
    return report


def reseal(folder: Path, names: Iterable[str]) -> bool:
    """Update the hashes of the files `names`, which were made again from the report, and no others.

    Returns:
        Whether the report was sealed and unchanged; otherwise nothing is written.
    """
    if _is_broken(folder) is not False:
        return False
    report = read_report(folder)
    fresh = {name: sha256(folder / name) for name in names if (folder / name).is_file()}
    write_whole(folder / REPORT, sealed(report, report.files | fresh).model_dump_json(indent=2) + "\n")
    return True


def changes_since_sealed(folder: Path, names: Iterable[str]) -> Changes:
    """Compare a result with its seal.

    Args:
        folder: Folder of the result.
        names: Paths of the files to compare, in addition to the sealed ones.
    """
    broken = _is_broken(folder)
    if broken is None:
        return Changes(sealed=False)
    files = read_report(folder).files
    current = {name for name in names if name not in (REPORT, CARD, ".gitattributes")}  # the Hub makes the last one
    missing = sorted(name for name in files if not (folder / name).is_file() and name != CARD)
    differing = [name for name in files if name not in missing and (folder / name).is_file()
                 and sha256(folder / name) != files[name]]  # fmt: skip
    return Changes(
        sealed=True,
        report=broken,
        changed=tuple(sorted(name for name in differing if name != CARD)),
        missing=tuple(missing),
        extra=tuple(sorted(current - files.keys())),
        card=CARD in differing,
    )


def result_files(folder: Path) -> list[str]:
    """Return the paths of all files of a result except its report, without hidden files, unfinished files and links."""
    files = [path for path in files_below(folder, lambda inside: is_hidden(inside.name)) if not path.is_symlink()]
    return sorted(path.relative_to(folder).as_posix() for path in files if path != folder / REPORT)


def _is_broken(folder: Path) -> bool | None:
    """Return whether a report was changed since it was sealed; None for a report of a version without seals."""
    content = json.loads((folder / REPORT).read_text("utf-8"))
    seal, files = content.get("seal"), content.get("files")
    if not seal and not files and not (content.get("reload") or {}).get("loading"):
        return None
    return bool(seal != _digest(content))


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a report's content without its seal.

    The content is that of the file, so that fields that a later version adds do not break older seals.
    """
    return sha256_of({key: value for key, value in content.items() if key != "seal"})
