"""Everything that is checked before a push: names, licence, files, seal, secrets, reload."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_pe import progress
from hf_pe.anatomy import meta_model
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.reload import open_in_fresh_process
from hf_pe.checkpoints.save import weight_hashes
from hf_pe.checkpoints.source import ADAPTER, resolve
from hf_pe.dummies.inputs import example_inputs
from hf_pe.errors import ReloadError, UsageError, listed
from hf_pe.files.atomic import files_below, is_hidden
from hf_pe.files.json_files import read_object
from hf_pe.files.own_files import require_own
from hf_pe.hub.card import render_card
from hf_pe.hub.merge import card_text, merge_card
from hf_pe.hub.pictures import PICTURES
from hf_pe.hub.refs import require_ref
from hf_pe.hub.scan import scan
from hf_pe.hub.seal import changes_since_sealed
from hf_pe.hub.settings import Publish, check_names
from hf_pe.report import MAIN, Report, read_report

HIDDEN_THAT_GO = (".gitattributes",)
"""Of hidden files and folders (.env, .git, .netrc, .DS_Store, our own marks) these alone go out."""


UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


@dataclass(frozen=True)
class Outgoing:
    """All that would go to one branch: path in the repository to a file or its bytes."""

    branch: str
    report: Report
    files: dict[str, Path | bytes]

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        config = self.files["config.json"]
        assert isinstance(config, Path)
        return config.parent

    def size(self, name: str) -> int:
        """Bytes of one file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def prepare(folder: str | Path, settings: Publish, *, verify: bool = True) -> list[Outgoing]:
    """Find what would go out and check it, without network.

    A result with variants gives one branch for each, "main" last: its card may name the others.

    Args:
        folder: a result, or a folder of them (with variants).
        settings: of the push.
        prove: see that the weights are those that were measured, and load each folder in a fresh process.

    Raises:
        UsageError: a wrong repository or branch name; no result; weights that are not those that were measured, or not
            in safetensors; a licence that forbids derivatives; a secret or private fact.
        ReloadError: the folder does not load.
    """
    folder = Path(folder)
    check_names(settings)
    outgoing = [_outgoing(place, branch, settings) for branch, place in _branches(folder, settings.branch).items()]
    for each in outgoing:
        if verify or settings.load_back:
            require_code_allowed(each.report, settings)
        check_licence(each.report)
        if not any(name.endswith(".safetensors") for name in each.files):
            raise UsageError(f"{folder} has no safetensors weights; expected what hf-pe run writes.")
        if verify:
            require_measured(each.report, each.folder)
    allowed = (*settings.allow, settings.repo.partition("/")[0])  # whose repository it is, everyone can read
    problems = [f"branch {o.branch}: {f}" for o in outgoing for f in scan(o.files, allowed)]
    if problems:
        raise UsageError(
            "Nothing was sent: what would go out holds secrets or private facts.\n  "
            + "\n  ".join(problems)
            + "\nRemove them, or let a text pass that is none: --allow TEXT (publish.allow)."
        )
    if verify:
        for each in outgoing:
            require_sealed(each.folder, each.files)
        for each in outgoing:
            progress.say(f"loading {each.branch} in a fresh process")
            verify_reload(each.folder, each.report)
    return outgoing


def check_licence(report: Report) -> None:
    """Stop where the original's licence forbids derivatives.

    Raises:
        UsageError: it does.
    """
    said = f"{report.base.license or ''} {report.base.license_name or ''}".lower()
    if re.search(r"\bnd\b|no[- ]?deriv", said):
        raise UsageError(
            f"The licence of {report.base.id} ({report.base.license_name or report.base.license}) forbids derivatives: "
            "a compressed copy may not be published. Ask its authors for leave, or begin with another model."
        )


def require_code_allowed(report: Report, settings: Publish) -> None:
    """Stop where a check would run the result's own code, and the user has not allowed it: a report cannot.

    Raises:
        UsageError: it would.
    """
    if report.loading.trust_remote_code and not settings.trust_remote_code:
        raise UsageError(
            f"{report.name} brings code of its own, and loading it runs that code. Read the .py files in its folder, "
            "then allow it with --trust-remote-code (publish.trust_remote_code)."
        )


def _branches(folder: Path, branch: str) -> dict[str, Path]:
    if (folder / "report.json").is_file() or not folder.is_dir():
        return {branch: folder}
    reports = [path for path in sorted(folder.glob("*/report.json")) if not is_hidden(path.parent.name)]
    places = [require_own(folder, path).parent for path in reports]
    if not any(p.name == MAIN for p in places):
        read_report(folder)  # says what a result looks like
    variants = {p.name: p for p in places if p.name != MAIN}
    for name in variants:
        require_ref(name, f"branch of the variant {folder.name}/{name}")
    if branch in variants:
        raise UsageError(
            f"branch: '{branch}' is the branch of the variant with that name. Choose another for the main result."
        )
    return variants | {branch: folder / MAIN}


def _outgoing(folder: Path, branch: str, settings: Publish) -> Outgoing:
    report = _renamed(read_report(folder), settings, branch)
    files: dict[str, Path | bytes] = {}
    for path in files_below(folder, lambda inside: is_hidden(inside.name, HIDDEN_THAT_GO)):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UsageError(f"{path} is a link: it may lead out of the result. Put the file itself there.")
        if path.suffix.lower() in UNSAFE:
            raise UsageError(f"{path} may run code when loaded: only safetensors goes out. Convert it or delete it.")
        files[name] = path
    if ADAPTER in files:  # from the Hub it is looked up where the model lies
        told = read_object(folder / ADAPTER) | {"base_model_name_or_path": settings.repo}
        files[ADAPTER] = (json.dumps(told, indent=2) + "\n").encode()
    template = Path(settings.template) if settings.template else None
    pictures = [(file, title) for file, (title, _) in PICTURES.items() if file in files]
    local = folder / "README.md"
    old = card_text(local.read_bytes(), str(local)) if local.is_file() else ""
    card = merge_card(render_card(report, pictures, template), old, str(local))
    files["README.md"] = card.encode()
    files["report.json"] = (report.model_dump_json(indent=2) + "\n").encode()
    return Outgoing(branch, report, files)


def _renamed(report: Report, settings: Publish, branch: str) -> Report:
    """The report with the name that people will load it by.

    An older report does not state whether the result needs code of its own: the user's word stands for it.
    """
    if report.reload is None:
        raise UsageError(f"{report.name}: report.json tells of no reload proof. Make the result again with hf-pe run.")
    changes: dict[str, Any] = {"revision": None if branch == MAIN else branch}
    if report.reload.loading is None:
        changes["trust_remote_code"] = settings.trust_remote_code
    loading = report.loading.model_copy(update=changes)
    reload = report.reload.model_copy(update={"loading": loading})
    return report.model_copy(update={"name": settings.repo, "folder": None, "reload": reload})


def require_measured(report: Report, folder: Path) -> None:
    """Refuse a result whose config or weights are not those that were measured.

    Raises:
        UsageError: they are others.
    """
    stated = report.reload.sha256 if report.reload else {}
    seen = weight_hashes(folder)
    differing = sorted(n for n in seen.keys() | stated.keys() if seen.get(n) != stated.get(n))
    if differing:
        raise UsageError(
            f"{folder}: {', '.join(differing)} changed since the card's numbers were measured. A card must tell the "
            "truth: make the result again with hf-pe run."
        )


def require_sealed(folder: Path, names: Iterable[str]) -> None:
    """Refuse a result that is not as it was made; an edited card is said, and goes along.

    Args:
        folder: of the result.
        names: files that would go out.

    Raises:
        UsageError: the report or a file was changed, a file is missing, or one is there that was not made.
    """
    changes = changes_since_sealed(folder, names)
    if not changes.sealed:
        progress.say(f"{folder.name}: an older report, without hashes of all files; config and weights were compared")
    if changes.card:
        progress.say(
            f"{folder.name}: README.md was edited since it was made: what you wrote goes along, and the blocks between "
            "its marks are made anew from report.json"
        )
    kinds = {"changed": changes.changed, "missing": changes.missing, "not made with it": changes.extra}
    wrong = ["report.json was changed"] if changes.report else []
    wrong += [f"{kind}: {listed(files)}" for kind, files in kinds.items() if files]
    if wrong:
        raise UsageError(
            f"{folder} is not as it was made: {'; '.join(wrong)}. Undo that, or make the result again with hf-pe run. "
            f"Where the changes are yours and shall go out: hf-pe seal {folder}"
        )


def verify_reload(folder: Path, report: Report) -> None:
    """Load a result in a fresh process and compare its number of parameters with the report."""
    assert report.reload
    config = load_config(resolve(str(folder), trust_remote_code=report.loading.trust_remote_code))
    inputs = example_inputs(meta_model(config, class_for(config)), batch=1, length=8, device="cpu")
    seen = open_in_fresh_process(folder, report.loading, inputs, None)
    if seen.parameters != report.after.parameters:
        raise ReloadError(f"{folder.name} loads with {seen.parameters} parameters; its report says other.")
