"""Check everything before a push: names, licence, files, seal, secrets, and that the result reloads."""

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
"""The only hidden files that are pushed: .env, .git, .netrc, .DS_Store and markers of hf_pe never are."""
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")


@dataclass(frozen=True)
class Outgoing:
    """Hold the files that a push would send to one branch.

    Attributes:
        branch: Name of the branch.
        report: Report of the result, with its name on the Hub.
        files: A file or its bytes, by the path in the repository.
    """

    branch: str
    report: Report
    files: dict[str, Path | bytes]

    @property
    def folder(self) -> Path:
        """The local folder of the result."""
        config = self.files["config.json"]
        assert isinstance(config, Path)
        return config.parent

    def size(self, name: str) -> int:
        """Return the number of bytes of one file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def prepare(folder: str | Path, settings: Publish, *, verify: bool = True) -> list[Outgoing]:
    """Collect and check the files that a push would send, without network.

    A result with variants gives one branch for each, "main" last, since its card may name the others.

    Args:
        folder: Folder of a result, or of a result with its variants.
        settings: Settings of the push.
        verify: Whether to verify that the weights are the measured ones and that each folder loads in a fresh process.

    Raises:
        UsageError: The name of the repository or of a branch is not allowed, there is no result, the weights are not
            the measured ones or not in safetensors, the licence forbids derivatives, or a file has a secret or a
            private fact.
        ReloadError: The folder does not load.
    """
    folder = Path(folder)
    check_names(settings)
    branches = _branches(folder, settings.branch)
    outgoing = [_outgoing(branch_folder, branch, settings) for branch, branch_folder in branches.items()]
    for result in outgoing:
        if verify or settings.load_back:
            require_code_allowed(result.report, settings)
        check_licence(result.report)
        if not any(name.endswith(".safetensors") for name in result.files):
            raise UsageError(f"{folder} has no safetensors weights; expected what hf-pe run writes.")
        if verify:
            require_measured(result.report, result.folder)
    allowed = (*settings.allow, settings.repo.partition("/")[0])  # the owner's name is public in any case
    problems = [f"branch {o.branch}: {f}" for o in outgoing for f in scan(o.files, allowed)]
    if problems:
        raise UsageError(
            "Nothing was sent, since the files contain secrets or private facts:\n  "
            + "\n  ".join(problems)
            + "\nRemove them. If a text is neither, allow it: --allow TEXT (publish.allow)."
        )
    if verify:
        for result in outgoing:
            require_sealed(result.folder, result.files)
        for result in outgoing:
            progress.say(f"loading {result.branch} in a fresh process")
            verify_reload(result.folder, result.report)
    return outgoing


def check_licence(report: Report) -> None:
    """Refuse a result whose original has a licence that forbids derivatives.

    Raises:
        UsageError: The licence does.
    """
    licence = f"{report.base.license or ''} {report.base.license_name or ''}".lower()
    if re.search(r"\bnd\b|no[- ]?deriv", licence):
        raise UsageError(
            f"The licence of {report.base.id} ({report.base.license_name or report.base.license}) forbids derivatives: "
            "a compressed copy may not be published. Ask its authors for permission, or begin with another model."
        )


def require_code_allowed(report: Report, settings: Publish) -> None:
    """Refuse a result with custom code, which the checks would run, unless the settings allow it; a report cannot.

    Raises:
        UsageError: The settings do not allow it.
    """
    if report.loading.trust_remote_code and not settings.trust_remote_code:
        raise UsageError(
            f"{report.name} comes with custom code, and loading it runs that code. Read the .py files in its folder, "
            "then allow it with --trust-remote-code (publish.trust_remote_code)."
        )


def _branches(folder: Path, branch: str) -> dict[str, Path]:
    if (folder / "report.json").is_file() or not folder.is_dir():
        return {branch: folder}
    reports = [path for path in sorted(folder.glob("*/report.json")) if not is_hidden(path.parent.name)]
    results = [require_own(folder, path).parent for path in reports]
    if not any(result.name == MAIN for result in results):
        read_report(folder)  # raises the message about a folder without a report
    variants = {result.name: result for result in results if result.name != MAIN}
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
            raise UsageError(
                f"{path} may run code when it is loaded: only safetensors files are pushed. Convert it or delete it."
            )
        files[name] = path
    if ADAPTER in files:  # its base model is the model in the same repository
        adapter_config = read_object(folder / ADAPTER) | {"base_model_name_or_path": settings.repo}
        files[ADAPTER] = (json.dumps(adapter_config, indent=2) + "\n").encode()
    template = Path(settings.template) if settings.template else None
    pictures = [(file, title) for file, (title, _) in PICTURES.items() if file in files]
    local = folder / "README.md"
    old = card_text(local.read_bytes(), str(local)) if local.is_file() else ""
    card = merge_card(render_card(report, pictures, template), old, str(local))
    files["README.md"] = card.encode()
    files["report.json"] = (report.model_dump_json(indent=2) + "\n").encode()
    return Outgoing(branch, report, files)


def _renamed(report: Report, settings: Publish, branch: str) -> Report:
    """Return the report with the name by which the result is loaded from the Hub.

    An older report does not state whether the result needs custom code; then the settings decide.
    """
    if report.reload is None:
        raise UsageError(
            f"{report.name}: report.json has no reload check; expected a result that was verified to reload. Make the "
            "result again with hf-pe run."
        )
    changes: dict[str, Any] = {"revision": None if branch == MAIN else branch}
    if report.reload.loading is None:
        changes["trust_remote_code"] = settings.trust_remote_code
    loading = report.loading.model_copy(update=changes)
    reload = report.reload.model_copy(update={"loading": loading})
    return report.model_copy(update={"name": settings.repo, "folder": None, "reload": reload})


def require_measured(report: Report, folder: Path) -> None:
    """Refuse a result whose config or weights are not the measured ones.

    Raises:
        UsageError: A file has changed since then.
    """
    measured = report.reload.sha256 if report.reload else {}
    current = weight_hashes(folder)
    differing = sorted(name for name in current.keys() | measured.keys() if current.get(name) != measured.get(name))
    if differing:
        raise UsageError(
            f"{folder}: {', '.join(differing)} changed since the card's numbers were measured, so they no longer "
            "apply. Make the result again with hf-pe run."
        )


def require_sealed(folder: Path, names: Iterable[str]) -> None:
    """Refuse a result that has changed since it was made; an edited card is accepted with a message.

    Args:
        folder: Folder of the result.
        names: Files that would be pushed.

    Raises:
        UsageError: The report or a file was changed, or a file was removed or added.
    """
    changes = changes_since_sealed(folder, names)
    if not changes.sealed:
        progress.say(f"{folder.name}: an older report, without hashes of all files; config and weights were compared")
    if changes.card:
        progress.say(
            f"{folder.name}: README.md was edited since it was made: your text is pushed too, and the blocks between "
            "marks are made again from report.json"
        )
    kinds = {"changed": changes.changed, "missing": changes.missing, "added": changes.extra}
    differences = ["report.json was changed"] if changes.report else []
    differences += [f"{kind}: {listed(files)}" for kind, files in kinds.items() if files]
    if differences:
        raise UsageError(
            f"{folder} has changed since it was made: {'; '.join(differences)}. Undo that, or make the result again "
            f"with hf-pe run. To push your own changes, accept them first: hf-pe seal {folder}"
        )


def verify_reload(folder: Path, report: Report) -> None:
    """Load a result in a fresh process and compare its number of parameters with the report.

    Raises:
        ReloadError: The result does not load, or has another number of parameters.
    """
    assert report.reload
    config = load_config(resolve(str(folder), trust_remote_code=report.loading.trust_remote_code))
    inputs = example_inputs(meta_model(config, class_for(config)), batch=1, length=8, device="cpu")
    reloaded = open_in_fresh_process(folder, report.loading, inputs, None)
    if reloaded.parameters != report.after.parameters:
        raise ReloadError(
            f"{folder.name} loads with {reloaded.parameters:,} parameters; its report states "
            f"{report.after.parameters:,}."
        )
