"""Push a release to a dataset repository of the Hugging Face Hub: one commit, verified by what the Hub then lists."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from trajmill.errors import PublishError, require
from trajmill.releases.shipment import LocalFile, PushSummary, stale
from trajmill.uris import without_password

NOT_FOUND = 404
AGAIN = "run the same command again: files that arrived whole are not sent again"


@dataclass(frozen=True)
class Wish:
    """How a release is to be pushed.

    Attributes:
        private: a repository that has to be made is private; one that is there must be.
        revision: branch to commit to, made when it is not there; None for the main one.
        create_pr: open a pull request in place of a commit.
    """

    private: bool = False
    revision: str | None = None
    create_pr: bool = False


def push_to_hub(files: list[LocalFile], repo_id: str, wish: Wish) -> PushSummary:
    """Commit a release to a dataset repository.

    The commit names the one it was made for as its parent, so that another commit in between is not lost.

    Args:
        files: the whole release.
        repo_id: `namespace/name`; made when it is not there.
        wish: how.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        PublishError: the Hub refused, failed, or holds other bytes than it was sent.
    """
    hub = require("huggingface_hub", extra="hub")
    token = hub.get_token()
    if not token:
        raise PublishError("no Hugging Face token: run `hf auth login` or set HF_TOKEN")
    api = hub.HfApi(token=token, library_name="trajmill")
    with _explained(hub, repo_id, api.endpoint, token), _quiet(hub):
        repository = _Repository(hub, api, repo_id, wish)
        head = repository.head()
        there = repository.files(head)
        new = [f for f in files if not _same(f, there.get(f.name))]
        gone = stale(there, files)
        url = commit = None
        if new or gone:
            url, commit = repository.commit(head, new, gone)
            _verify(repo_id, commit, files, gone, repository.files(commit))
    names = {f.name for f in new}
    return PushSummary(
        target=without_password(f"{api.endpoint}/datasets/{repo_id}"),
        url=url and without_password(url),
        commit=commit,
        uploaded=tuple(f.name for f in new),
        unchanged=tuple(f.name for f in files if f.name not in names),
        deleted=tuple(gone),
        n_bytes=sum(f.size for f in new),
    )


@dataclass(frozen=True)
class _Repository:
    """A dataset repository as huggingface_hub sees it."""

    hub: Any
    api: Any
    repo_id: str
    wish: Wish

    def head(self) -> str:
        """Return the commit to build on; make the repository and the branch where they are not there."""
        api, branch = self.api, self.wish.revision
        try:
            info = api.dataset_info(self.repo_id)
        except self.hub.errors.RepositoryNotFoundError:
            if self.wish.create_pr:
                raise PublishError(f"{self.repo_id}: there is no such dataset to open a pull request for") from None
            api.create_repo(self.repo_id, repo_type="dataset", private=self.wish.private or None, exist_ok=True)
            info = api.dataset_info(self.repo_id)
        if self.wish.private and not info.private:
            raise PublishError(f"{self.repo_id}: is public; make it private on its page, or leave out --private")
        if branch in (None, "main"):
            return str(info.sha)
        try:
            return str(api.dataset_info(self.repo_id, revision=branch).sha)
        except self.hub.errors.RevisionNotFoundError:
            if self.wish.create_pr:
                raise PublishError(f"{self.repo_id}: has no branch {branch} to open a pull request for") from None
        api.create_branch(self.repo_id, repo_type="dataset", branch=branch, exist_ok=True)
        return str(api.dataset_info(self.repo_id, revision=branch).sha)

    def files(self, commit: str) -> dict[str, Any]:
        """List the files of a commit by name, with sizes and hashes."""
        entries = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=commit, recursive=True)
        return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}

    def commit(self, head: str, new: list[LocalFile], gone: list[str]) -> tuple[str, str]:
        """Upload what the Hub does not have and commit everything at once; return the page and the id."""
        operations = [self.hub.CommitOperationAdd(path_in_repo=f.name, path_or_fileobj=f.path) for f in new]
        operations += [self.hub.CommitOperationDelete(path_in_repo=name, is_folder=False) for name in gone]
        with nullcontext() if self._has_xet() else _without_xet():
            made = self.api.create_commit(
                self.repo_id,
                operations,
                commit_message="Release by trajmill",
                repo_type="dataset",
                revision=self.wish.revision,
                create_pr=self.wish.create_pr,
                parent_commit=head,
            )
        return made.pr_url or made.commit_url, made.oid

    def _has_xet(self) -> bool:
        """Whether the server has Xet storage. Some that are not huggingface.co have Git LFS alone.

        With hf_xet installed huggingface_hub 2 takes Xet for granted, where older versions ask.
        """
        branch = quote(self.wish.revision or "main", safe="")
        url = f"{self.api.endpoint}/api/datasets/{self.repo_id}/xet-write-token/{branch}"
        headers = self.hub.utils.build_hf_headers(token=self.api.token)
        return bool(self.hub.utils.get_session().get(url, headers=headers).status_code != NOT_FOUND)


def _same(file: LocalFile, there: Any) -> bool:
    """Whether the Hub lists the same content: by sha256 for large files, by git's own hash for the others."""
    if there is None or there.size != file.size:
        return False
    if there.lfs is not None:
        return bool(there.lfs.sha256 == file.sha256)
    return bool(there.blob_id == _git_hash(file))


def _git_hash(file: LocalFile) -> str:
    content = file.path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _without_xet() -> Iterator[None]:
    constants = require("huggingface_hub.constants", extra="hub")
    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _verify(repo_id: str, commit: str, files: list[LocalFile], gone: list[str], there: dict[str, Any]) -> None:
    """Compare what the Hub lists in the new commit with what is here, by size and hash."""
    wrong = [f.name for f in files if not _same(f, there.get(f.name))] + [name for name in gone if name in there]
    if wrong:
        raise PublishError(
            f"{repo_id}: commit {commit[:10]} does not hold what was sent: {wrong[0]}"
            + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            + " differ in size or hash; do not use that commit, push again"
        )


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Silence huggingface_hub: its notes on retries name signed addresses; its bars are for terminals only."""
    logging = hub.utils.logging
    level = logging.get_verbosity()
    bars = sys.stderr.isatty() or hub.utils.are_progress_bars_disabled()
    logging.set_verbosity_error()
    if not bars:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not bars:
            hub.utils.enable_progress_bars()


@contextmanager
def _explained(hub: Any, repo_id: str, endpoint: str, token: str) -> Iterator[None]:
    """Turn every failure of the client into one line that says what to do; the token is never part of it."""
    http = hub.errors.HfHubHTTPError
    # its bases are those of whatever HTTP library this version uses; a RuntimeError wraps a failed upload
    failures = (http, *http.__bases__, RuntimeError, ValueError)
    try:
        yield
    except failures as error:
        cause: BaseException = error
        while not isinstance(cause, http) and isinstance(cause.__cause__, failures):
            cause = cause.__cause__
        text = _explain(cause, repo_id, endpoint) if isinstance(cause, http) else _unreachable(cause, endpoint)
        text = without_password(" ".join(text.split())).replace(token, "***")
        raise PublishError(f"{repo_id}: {text}") from None


def _explain(error: Any, repo_id: str, endpoint: str) -> str:
    """Say what a refusal or failure of the Hub means."""
    status = error.response.status_code
    said = f" (the Hub says: {error.server_message})" if error.server_message else ""
    namespace = repo_id.partition("/")[0]
    meaning = {
        401: f"the token was refused; make one that may write at {endpoint}/settings/tokens, then run `hf auth login` "
        "or set HF_TOKEN",
        403: f"not allowed; the token needs the right to write to {namespace}",
        404: f"not found, or the token may not see it; is {namespace} the right namespace?",
        409: "someone else changed the repository at the same time; nothing was committed, run the same command again",
        412: "someone else committed in between; nothing was committed, run the same command again",
        429: "too many requests; wait some minutes and run the same command again",
    }
    if status in meaning:
        return f"{meaning[status]}{said}"
    if status >= 500:
        return f"the Hub failed ({status}); {AGAIN}{said}"
    return f"the Hub answered {status}{said}"


def _unreachable(error: BaseException, endpoint: str) -> str:
    if isinstance(error, ValueError):  # the client's own checks: a wrong name, a card that the Hub would not take
        return str(error)
    return f"the connection to {endpoint} failed ({type(error).__name__}: {error}); {AGAIN}"
