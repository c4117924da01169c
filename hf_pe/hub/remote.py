"""Compare one repository on the Hub with a result, and send, tag and download its files."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import (
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import get_session

from hf_pe import progress
from hf_pe.checkpoints.save import weight_hashes
from hf_pe.errors import PushError, UsageError
from hf_pe.hub.merge import card_text, merge_card
from hf_pe.hub.outgoing import Outgoing, verify_reload
from hf_pe.hub.patience import patiently
from hf_pe.hub.seal import sealed
from hf_pe.hub.settings import Publish, Sent
from hf_pe.outputs import REPORT
from hf_pe.report import MAIN

WEIGHTS = re.compile(r"(model|pytorch_model|tf_model|flax_model)[\w.-]*\.(safetensors|bin|h5|msgpack)(\.index\.json)?")
"""Matches weight files, of which an old copy could be loaded instead of the pushed ones."""


class Remote:
    """Read and change one repository through the Hub's client, with repeated tries.

    Attributes:
        api: Client of the Hub.
        settings: Settings of the push.
    """

    def __init__(self, api: HfApi, settings: Publish) -> None:
        self.api, self.settings = api, settings

    @property
    def repo(self) -> str:
        """The id of the repository: USER/NAME."""
        return self.settings.repo

    def user(self) -> str:
        """Return the name of the user that the token belongs to."""
        try:
            return str(patiently(self.repo, "whoami", self.api.whoami)["name"])
        except LocalTokenNotFoundError as error:
            raise UsageError("There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN.") from error

    def open(self) -> None:
        """Check the token, create the repository where it does not exist, and check its visibility and tags."""
        self.user()
        patiently(
            self.repo,
            "create repo",
            lambda: self.api.create_repo(self.repo, private=self.settings.private, exist_ok=True),
        )
        self.require_fit()

    def require_fit(self) -> None:
        """Refuse a repository that is public though the settings do not say so, or that has the tag already.

        Raises:
            UsageError: It is, or it has. A repository that does not exist yet is accepted.
        """
        public = patiently(self.repo, "look at the repository", self._is_public)
        if public is None:
            return
        if self.settings.private and public:
            raise UsageError(
                f"{self.repo} is public: anyone can read what is pushed there. Nothing was sent. If you want that, "
                "give --public (publish.private: false). Otherwise choose another name, or make the repository private."
            )
        tag = self.settings.tag
        if tag and not self.settings.create_pr and self._tag(tag):
            raise UsageError(f"The tag {tag} exists in {self.repo} and is not moved. Choose another name.")

    def _is_public(self) -> bool | None:
        """Return whether anyone can read the repository; None where it does not exist."""
        try:
            return self.api.model_info(self.repo).private is False
        except RepositoryNotFoundError:
            return None

    def send(self, outgoing: Outgoing) -> Sent:
        """Commit the files that differ, then compare hashes; a branch created for this is deleted if it fails."""
        branch = outgoing.branch
        refs = patiently(self.repo, "list refs", lambda: self.api.list_repo_refs(self.repo))
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        if branch in heads:
            return self._send(outgoing, heads[branch])
        patiently(
            self.repo,
            "create branch",
            lambda: self.api.create_branch(self.repo, branch=branch, revision=heads[MAIN], exist_ok=True),
        )
        try:
            return self._send(outgoing, heads[MAIN])
        except BaseException:
            with contextlib.suppress(PushError, UsageError):
                if self._head(branch) == heads[MAIN]:
                    patiently(self.repo, "delete branch", lambda: self.api.delete_branch(self.repo, branch=branch))
            raise

    def _send(self, outgoing: Outgoing, head: str) -> Sent:
        branch, remote_files = outgoing.branch, self._tree(head)
        files = dict(outgoing.files)
        readme = files["README.md"]
        assert isinstance(readme, bytes)
        if "README.md" in remote_files:
            files["README.md"] = self._merged_card(readme, branch, head)
        adds = {name: CommitOperationAdd(name, content) for name, content in files.items()}
        hashes = {name: add.upload_info.sha256.hex() for name, add in adds.items() if name != REPORT}
        report = sealed(outgoing.report, hashes).model_dump_json(indent=2) + "\n"
        adds[REPORT] = CommitOperationAdd(REPORT, report.encode())
        changed = tuple(name for name, add in adds.items() if not _same(remote_files.get(name), add))
        removed = tuple(name for name in remote_files if name not in files and WEIGHTS.fullmatch(name))
        if not changed and not removed:
            return Sent(branch=branch, commit=head, changed=())
        return self._commit(branch, head, adds, changed, removed)

    def check_card(self, outgoing: Outgoing) -> None:
        """Check before anything is sent that an existing card on the Hub can be merged.

        Raises:
            UsageError: It cannot be read.
        """
        refs = patiently(self.repo, "list refs", lambda: self.api.list_repo_refs(self.repo))
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
        create_pr = self.settings.create_pr

        def arrived() -> Sent | None:
            """Return the result of an earlier try whose answer was lost; None where it was not carried out."""
            if create_pr:
                requests = self.api.get_repo_discussions(self.repo, discussion_type="pull_request")
                number = next((d.num for d in requests if d.title == title and d.status == "open"), None)
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
                create_pr=create_pr,
                parent_commit=head,
            )
            return Sent(branch=branch, commit=done.oid, changed=changed, removed=removed, pull_request=done.pr_url)

        if create_pr and (earlier := patiently(self.repo, "list pull requests", arrived)):
            return earlier
        progress.say(f"sending {len(changed)} files to {self.repo}, branch {branch}")
        sent = patiently(self.repo, f"commit to {branch}", commit, arrived)
        if not patiently(self.repo, "compare", lambda: self._holds(sent.commit, adds, removed)):
            raise PushError(f"{self.repo}, commit {sent.commit}: the remote's files differ from those that were sent.")
        return sent

    def tag(self, sent: Sent) -> None:
        """Set the tag on the pushed commit."""
        name = self.settings.tag
        assert name
        patiently(
            self.repo,
            "create tag",
            lambda: self.api.create_tag(self.repo, tag=name, revision=sent.commit),
            lambda: self._tag(name) == sent.commit or None,
        )

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        def listed() -> dict[str, RepoFile]:
            tree = self.api.list_repo_tree(self.repo, recursive=True, revision=revision)
            return {item.path: item for item in tree if isinstance(item, RepoFile)}

        return patiently(self.repo, "list files", listed)

    def _holds(self, revision: str, adds: Mapping[str, CommitOperationAdd], removed: tuple[str, ...]) -> bool:
        files = self._tree(revision)
        return all(_same(files.get(n), add) for n, add in adds.items()) and not any(n in files for n in removed)

    def _head(self, revision: str) -> str:
        info = patiently(self.repo, "look at the branch", lambda: self.api.model_info(self.repo, revision=revision))
        assert info.sha
        return info.sha

    def _tag(self, name: str) -> str | None:
        refs = patiently(self.repo, "list refs", lambda: self.api.list_repo_refs(self.repo))
        return next((ref.target_commit for ref in refs.tags if ref.name == name), None)

    def _read(self, name: str, revision: str) -> bytes:
        url = f"{self.api.endpoint}/{self.repo}/resolve/{revision}/{name}"

        def read() -> bytes:
            response = get_session().get(url, headers=self.api._build_hf_headers())
            response.raise_for_status()
            return bytes(response.content)

        return patiently(self.repo, "read the card", read)


def _same(remote_file: RepoFile | None, add: CommitOperationAdd) -> bool:
    """Return whether a remote file has the same content, by its hash: SHA-256 of a large file, else git's blob id."""
    if remote_file is None:
        return False
    if remote_file.lfs:
        return bool(remote_file.lfs.sha256 == add.upload_info.sha256.hex())
    with add.as_file() as file:
        content = file.read()
    return remote_file.blob_id == hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def load_back(remote: Remote, outgoing: Outgoing, sent: Sent) -> None:
    """Download a commit, compare its weights with the sent ones, and load it in a fresh process.

    Raises:
        PushError: The weights differ.
    """
    progress.say(f"downloading {sent.branch} and loading it in a fresh process")
    api, reload = remote.api, outgoing.report.reload
    assert reload
    with tempfile.TemporaryDirectory() as folder:

        def download() -> str:
            return snapshot_download(
                remote.repo, revision=sent.commit, local_dir=folder, endpoint=api.endpoint, token=api.token
            )

        patiently(remote.repo, "download", download)
        if weight_hashes(Path(folder)) != reload.sha256:
            raise PushError(f"{remote.repo}, branch {sent.branch}: the downloaded weights differ from the sent ones.")
        verify_reload(Path(folder), outgoing.report)
