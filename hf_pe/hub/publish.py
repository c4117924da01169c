"""The push: everything is checked first, one atomic commit a branch, and the remote is compared afterwards."""

import contextlib
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import get_session
from huggingface_hub.utils._validators import validate_repo_id
from pydantic import Field

from hf_pe import progress
from hf_pe.anatomy import skeleton
from hf_pe.checkpoints.load import ADAPTER, class_for, load_config, open_in_fresh_process, resolve, weight_hashes
from hf_pe.dummies.inputs import example_inputs
from hf_pe.errors import PushError, ReloadError, UsageError, listed, one_line
from hf_pe.files.atomic import files_below, is_hidden
from hf_pe.files.json_files import read_object
from hf_pe.files.own_files import require_own
from hf_pe.hub.card import render_card
from hf_pe.hub.merge import card_text, merge_card
from hf_pe.hub.pictures import PICTURES
from hf_pe.hub.refs import require_ref
from hf_pe.hub.scan import scan
from hf_pe.hub.seal import changes_since_sealed, sealed
from hf_pe.outputs import REPORT
from hf_pe.plans import Frozen
from hf_pe.report import MAIN, Report, read_report

HIDDEN_THAT_GO = (".gitattributes",)
"""Of hidden files and folders (.env, .git, .netrc, .DS_Store, our own marks) these alone go out."""
UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
WEIGHTS = re.compile(r"(model|pytorch_model|tf_model|flax_model)[\w.-]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?")
"""Remote files that a stale copy of would be loaded in place of what is pushed."""
TRIES = 4
TIMEOUT = 120.0
"""Seconds a request may stay silent."""
T = TypeVar("T")


class Publish(Frozen):
    """Where a result goes on the Hub, and how."""

    repo: str = Field(description="NAME or USER/NAME")
    private: bool = Field(
        True, description="of a repo that is made; False is also needed for one that is public already"
    )
    branch: str = MAIN
    tag: str | None = Field(None, description="set on what was pushed")
    create_pr: bool = Field(False, description="open a pull request in place of a commit")
    message: str | None = Field(None, description="of the commit")
    template: str | None = Field(None, description="the user's own Jinja file for the card")
    allow: tuple[str, ...] = Field((), description="texts that the scan for secrets shall let pass")
    load_back: bool = Field(False, description="afterwards download it and load it in a fresh process")
    trust_remote_code: bool = Field(False, description="run code that the result brings along, to see that it loads")


class Sent(Frozen):
    """What one branch got."""

    branch: str
    commit: str
    changed: tuple[str, ...] = Field(description="files that the commit adds or changes; empty: nothing was new")
    removed: tuple[str, ...] = ()
    pull_request: str | None = None


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


def prepare(folder: str | Path, settings: Publish, *, prove: bool = True) -> list[Outgoing]:
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
    _check_names(settings)
    outgoing = [_outgoing(place, branch, settings) for branch, place in _branches(folder, settings.branch).items()]
    for each in outgoing:
        if prove or settings.load_back:
            require_code_allowed(each.report, settings)
        check_licence(each.report)
        if not any(name.endswith(".safetensors") for name in each.files):
            raise UsageError(f"{folder} has no safetensors weights; expected what hf-pe run writes.")
        if prove:
            require_measured(each.report, each.folder)
    allowed = (*settings.allow, settings.repo.partition("/")[0])  # whose repository it is, everyone can read
    problems = [f"branch {o.branch}: {f}" for o in outgoing for f in scan(o.files, allowed)]
    if problems:
        raise UsageError(
            "Nothing was sent: what would go out holds secrets or private facts.\n  "
            + "\n  ".join(problems)
            + "\nRemove them, or let a text pass that is none: --allow TEXT (publish.allow)."
        )
    if prove:
        for each in outgoing:
            require_sealed(each.folder, each.files)
        for each in outgoing:
            progress.say(f"loading {each.branch} in a fresh process")
            _prove(each.folder, each.report)
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


def push(folder: str | Path, settings: Publish, *, api: HfApi | None = None, prove: bool = True) -> list[Sent]:
    """Check a result, then send it: one commit a branch, card and weights together.

    Files that the remote has already are not sent again; after a broken connection only what is missing is. Weight
    files of an older push that would be loaded in place of the new ones are removed in the same commit. On a remote
    card only the marked blocks are exchanged.

    Args:
        folder: a result, or a folder of them (with variants).
        settings: where to, and how.
        api: the Hub client; default: `HfApi()` with the token of this machine.
        prove: False only for a folder that was saved, and so proved, just now.

    Raises:
        UsageError: see `prepare`; or the token is missing or may not write there; or the tag is taken.
        PushError: the Hub did not answer as it should in several tries, or the remote changed meanwhile.
    """
    _check_names(settings)
    remote = _Remote(api or HfApi(), settings)
    if "/" not in settings.repo:
        settings = remote.settings = _in_full(settings, remote.user())
    outgoing = prepare(folder, settings, prove=prove)
    remote.open()
    for each in outgoing:
        remote.check_card(each)
    sent: list[Sent] = []
    try:
        sent += (remote.send(each) for each in outgoing)
        if settings.tag and not settings.create_pr:
            remote.tag(sent[-1])
    except (PushError, UsageError) as error:
        if sent:
            arrived = ", ".join(f"{s.branch} (commit {s.commit[:8]})" for s in sent)
            raise PushError(f"{error}\nWhole and in place: {arrived}. Push again for the rest.") from error
        raise
    if settings.load_back:
        for each, done in zip(outgoing, sent, strict=True):
            remote.load_back(each, done)
    return sent


def check_access(settings: Publish, api: HfApi | None = None) -> None:
    """Check before hours of work what a push would refuse: the names, the token, and the repository where it exists.

    Raises:
        UsageError: a name is none or the token is not good, the repository is public without the user's word, or the
            tag is taken.
        PushError: the Hub does not answer.
    """
    _check_names(settings)
    remote = _Remote(api or HfApi(), settings)
    user = remote.user()
    remote.settings = _in_full(settings, user)
    remote.require_fit()


def _check_names(settings: Publish) -> None:
    try:
        validate_repo_id(settings.repo)
    except HFValidationError as error:
        raise UsageError(f"publish.repo: expected NAME or USER/NAME, got '{settings.repo}'. {error}") from error
    require_ref(settings.branch, "publish.branch")
    if settings.tag is not None:
        require_ref(settings.tag, "publish.tag")


def _in_full(settings: Publish, user: str) -> Publish:
    """Return the settings with the repository as USER/NAME, as the card names it."""
    if "/" in settings.repo:
        return settings
    return settings.model_copy(update={"repo": f"{user}/{settings.repo}"})


class _Remote:
    """One repository, through the client, with patience."""

    def __init__(self, api: HfApi, settings: Publish) -> None:
        self.api, self.settings = api, settings

    @property
    def repo(self) -> str:
        """USER/NAME."""
        return self.settings.repo

    def user(self) -> str:
        """Whose token this is."""
        try:
            return str(self._patiently("whoami", self.api.whoami)["name"])
        except LocalTokenNotFoundError as error:
            raise UsageError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.") from error

    def open(self) -> None:
        """Find out whether the token is good, make the repository, see whether it fits."""
        self.user()
        self._patiently(
            "create repo",
            lambda: self.api.create_repo(self.repo, private=self.settings.private, exist_ok=True),
        )
        self.require_fit()

    def require_fit(self) -> None:
        """Refuse a repository that is public without the user's word, or has the tag; one that is not made yet fits.

        Raises:
            UsageError: it is.
        """
        public = self._patiently("look at the repository", self._is_public)
        if public is None:
            return
        if self.settings.private and public:
            raise UsageError(
                f"{self.repo} is public: anyone can read what is pushed there. Nothing was sent. If that is what you "
                "mean, say so: --public (publish.private: false). Otherwise choose another name, or make it private."
            )
        tag = self.settings.tag
        if tag and not self.settings.create_pr and self._tag(tag):
            raise UsageError(f"The tag {tag} is taken in {self.repo}. Choose another: a tag is a promise.")

    def _is_public(self) -> bool | None:
        """Return whether anyone can read the repository; None where there is none."""
        try:
            return self.api.model_info(self.repo).private is False
        except RepositoryNotFoundError:
            return None

    def send(self, outgoing: Outgoing) -> Sent:
        """Commit what differs, then compare hashes. A branch that was made for it goes again if it fails."""
        branch = outgoing.branch
        refs = self._patiently("list refs", lambda: self.api.list_repo_refs(self.repo))
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        if branch in heads:
            return self._send(outgoing, heads[branch])
        self._patiently(
            "create branch",
            lambda: self.api.create_branch(self.repo, branch=branch, revision=heads[MAIN], exist_ok=True),
        )
        try:
            return self._send(outgoing, heads[MAIN])
        except BaseException:
            with contextlib.suppress(PushError, UsageError):
                if self._head(branch) == heads[MAIN]:
                    self._patiently("delete branch", lambda: self.api.delete_branch(self.repo, branch=branch))
            raise

    def _send(self, outgoing: Outgoing, head: str) -> Sent:
        branch, there = outgoing.branch, self._tree(head)
        files = dict(outgoing.files)
        readme = files["README.md"]
        assert isinstance(readme, bytes)
        if "README.md" in there:
            files["README.md"] = self._merged_card(readme, branch, head)
        adds = {name: CommitOperationAdd(name, content) for name, content in files.items()}
        hashes = {name: add.upload_info.sha256.hex() for name, add in adds.items() if name != REPORT}
        report = sealed(outgoing.report, hashes).model_dump_json(indent=2) + "\n"
        adds[REPORT] = CommitOperationAdd(REPORT, report.encode())
        changed = tuple(name for name, add in adds.items() if not _same(there.get(name), add))
        removed = tuple(name for name in there if name not in files and WEIGHTS.fullmatch(name))
        if not changed and not removed:
            return Sent(branch=branch, commit=head, changed=())
        return self._commit(branch, head, adds, changed, removed)

    def check_card(self, outgoing: Outgoing) -> None:
        """See that the card that is on the Hub can be merged with, before anything is sent.

        Raises:
            UsageError: it cannot be read.
        """
        refs = self._patiently("list refs", lambda: self.api.list_repo_refs(self.repo))
        head = next((ref.target_commit for ref in refs.branches if ref.name == outgoing.branch), None)
        readme = outgoing.files["README.md"]
        assert isinstance(readme, bytes)
        if head is not None and "README.md" in self._tree(head):
            self._merged_card(readme, outgoing.branch, head)

    def _merged_card(self, card: bytes, branch: str, head: str) -> bytes:
        where = f"README.md of {self.repo}, branch {branch},"
        return merge_card(card.decode(), card_text(self._read("README.md", head), where), where).encode()

    def _commit(
        self,
        branch: str,
        head: str,
        adds: dict[str, CommitOperationAdd],
        changed: tuple[str, ...],
        removed: tuple[str, ...],
    ) -> Sent:
        hashes = sorted((name, add.upload_info.sha256) for name, add in adds.items())
        content = hashlib.sha256(repr(hashes).encode()).hexdigest()[:8]
        title = f"{self.settings.message or 'Push of a compressed model'} ({content})"
        asked = self.settings.create_pr

        def arrived() -> Sent | None:
            """What an answer that was lost would have said."""
            if asked:
                waiting = self.api.get_repo_discussions(self.repo, discussion_type="pull_request")
                number = next((d.num for d in waiting if d.title == title and d.status == "open"), None)
                if number is None:
                    return None
                commit, link = self._head(f"refs/pr/{number}"), f"{self.api.endpoint}/{self.repo}/discussions/{number}"
            else:
                commit, link = self._head(branch), None
            if commit == head or not self._holds(commit, adds, removed):
                return None
            return Sent(branch=branch, commit=commit, changed=changed, removed=removed, pull_request=link)

        def commit() -> Sent:
            done = self.api.create_commit(
                self.repo,
                [*(adds[name] for name in changed), *(CommitOperationDelete(name) for name in removed)],
                commit_message=title,
                revision=branch,
                create_pr=asked,
                parent_commit=head,
            )
            return Sent(branch=branch, commit=done.oid, changed=changed, removed=removed, pull_request=done.pr_url)

        if asked and (earlier := self._patiently("list pull requests", arrived)):
            return earlier
        progress.say(f"sending {len(changed)} files to {self.repo}, branch {branch}")
        sent = self._patiently(f"commit to {branch}", commit, arrived)
        if not self._patiently("compare", lambda: self._holds(sent.commit, adds, removed)):
            raise PushError(f"{self.repo}, commit {sent.commit}: the remote's files differ from those that were sent.")
        return sent

    def tag(self, sent: Sent) -> None:
        """Set the tag on what was sent."""
        name = self.settings.tag
        assert name
        self._patiently(
            "create tag",
            lambda: self.api.create_tag(self.repo, tag=name, revision=sent.commit),
            lambda: self._tag(name) == sent.commit or None,
        )

    def load_back(self, outgoing: Outgoing, sent: Sent) -> None:
        """Download a commit and load it in a fresh process."""
        progress.say(f"downloading {sent.branch} and loading it in a fresh process")
        with tempfile.TemporaryDirectory() as place:
            get = lambda: snapshot_download(  # noqa: E731
                self.repo, revision=sent.commit, local_dir=place, endpoint=self.api.endpoint, token=self.api.token
            )
            self._patiently("download", get)
            assert outgoing.report.reload
            if weight_hashes(Path(place)) != outgoing.report.reload.sha256:
                raise PushError(f"{self.repo}, branch {sent.branch}: what came back is not what was sent.")
            _prove(Path(place), outgoing.report)

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        def listed() -> dict[str, RepoFile]:
            found = self.api.list_repo_tree(self.repo, recursive=True, revision=revision)
            return {item.path: item for item in found if isinstance(item, RepoFile)}

        return self._patiently("list files", listed)

    def _holds(self, revision: str, adds: Mapping[str, CommitOperationAdd], removed: tuple[str, ...]) -> bool:
        there = self._tree(revision)
        return all(_same(there.get(n), add) for n, add in adds.items()) and not any(n in there for n in removed)

    def _head(self, revision: str) -> str:
        info = self._patiently("look at the branch", lambda: self.api.model_info(self.repo, revision=revision))
        assert info.sha
        return info.sha

    def _tag(self, name: str) -> str | None:
        refs = self._patiently("list refs", lambda: self.api.list_repo_refs(self.repo))
        return next((ref.target_commit for ref in refs.tags if ref.name == name), None)

    def _read(self, name: str, revision: str) -> bytes:
        url = f"{self.api.endpoint}/{self.repo}/resolve/{revision}/{name}"

        def read() -> bytes:
            answer = get_session().get(url, headers=self.api._build_hf_headers())
            answer.raise_for_status()
            return bytes(answer.content)

        return self._patiently("read the card", read)

    def _patiently(self, what: str, call: Callable[[], T], arrived: Callable[[], T | None] | None = None) -> T:
        """Call until it works: again after a broken connection or a server's error, with growing waits.

        Args:
            what: named in messages.
            call: the request.
            arrived: asked before another try whether the one that seemed to fail was carried out.
        """
        for attempt in range(TRIES):
            get_session().timeout = TIMEOUT  # the client's own default is to wait for ever
            try:
                if attempt and arrived and (done := arrived()) is not None:
                    return done
                return call()
            except (LocalTokenNotFoundError, PushError):
                raise
            except (HfHubHTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:
                last = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
            except ValueError as error:  # what the Hub says of a card's metadata
                raise UsageError(f"{what}: {error}") from error
            except Exception as error:  # the transport's own family, which has no common public name
                if not type(error).__module__.startswith("http"):
                    raise
                last = error
            self._give_up_on(what, last)
            progress.say(f"{what}: {_short(last)}; trying again")
            time.sleep(_wait(attempt, last))
        raise PushError(f"{what}: gave up after {TRIES} tries, last: {_short(last)}. Push again to go on from here.")

    def _give_up_on(self, what: str, error: BaseException) -> None:
        """Raise at once where waiting does not help."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            raise UsageError(
                f"{what}: the Hub does not know this token (401). Log in anew: `hf auth login`."
            ) from error
        if status == 403:
            raise UsageError(
                f"{what}: this token may not write to {self.repo} (403). Use one with write access to it."
            ) from error
        if status in (409, 412):
            raise PushError(
                f"{what}: someone else changed {self.repo} meanwhile ({status}). Nothing of this push is in it; see "
                "what is there now, then push again."
            ) from error
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            raise PushError(f"{what}: the Hub refused it ({status}): {_short(error)}") from error


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


def _prove(folder: Path, report: Report) -> None:
    assert report.reload
    config = load_config(resolve(str(folder), trust_remote_code=report.loading.trust_remote_code))
    inputs = example_inputs(skeleton(config, class_for(config)), batch=1, length=8, device="cpu")
    seen = open_in_fresh_process(folder, report.loading, inputs, None)
    if seen.parameters != report.after.parameters:
        raise ReloadError(f"{folder.name} loads with {seen.parameters} parameters; its report says other.")


def _same(there: RepoFile | None, add: CommitOperationAdd) -> bool:
    """Whether the remote has this very content, by the hash it keeps: SHA-256 of a large file, else git's blob id."""
    if there is None:
        return False
    if there.lfs:
        return bool(there.lfs.sha256 == add.upload_info.sha256.hex())
    with add.as_file() as file:
        content = file.read()
    return there.blob_id == hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _wait(attempt: int, error: BaseException) -> float:
    """Seconds: 1, 2, 4, 8, or what the Hub asks for."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("retry-after", "")
    return min(max(2.0**attempt, float(asked) if str(asked).isdigit() else 0.0), 60.0)


def _short(error: Any) -> str:
    text = one_line(error) or type(error).__name__
    return text[:200]
