"""Push a release to the Hugging Face Hub or to an address: checked before, verified after, repeated at will."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from trajmill.errors import PublishError
from trajmill.recipe import Recipe
from trajmill.releases.addresses import check_address, push_to_address
from trajmill.releases.hub import Wish, push_to_hub
from trajmill.releases.hugging_face import ReleaseSummary, release
from trajmill.releases.shipment import Progress, PushSummary, check
from trajmill.splits import Split
from trajmill.storage import as_path
from trajmill.stores.base import Store
from trajmill.uris import without_password
from trajmill.writing import StrPath

HUB_URL = "hf://datasets/"


def release_to(
    store: Store,
    out: str,
    recipe: Recipe,
    *,
    split: Split | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
    progress: Progress = lambda *_: None,
) -> ReleaseSummary:
    """Export a store to a folder, or to `s3://bucket/prefix`: made in a temporary folder, checked and pushed.

    Args:
        store: what to export, at its version.
        out: where to; see `release` for a folder and `push` for an address.
        recipe: sections `release` and `rules`.
        split: see `release`.
        report: told frames done and frames in all.
        progress: told what of the push is being done, bytes done and bytes in all.

    Raises:
        ReleaseError: the folder is not empty, or the store holds no frames.
        PublishError: the release could not be pushed.
    """
    place = as_path(out)
    if isinstance(place, Path):
        if "://" in out:
            raise PublishError(f"{without_password(out)}: release into a folder and push it there")
        return release(store, place, recipe, split=split, report=report)
    check_address(out)
    with TemporaryDirectory(prefix="trajmill-") as scratch:
        made = Path(scratch) / "release"
        summary = release(store, made, recipe, split=split, report=report)
        push_to_address(check(made, progress), out, progress)
    return replace(summary, path=place)


def push(
    release: StrPath,
    target: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    progress: Progress = lambda *_: None,
) -> PushSummary:
    """Push a release; files that are at the target already are not sent again.

    Other files in its folder stay here.

    Args:
        release: its folder.
        target: a dataset repository `namespace/name` of the Hub, or a folder (absolute, or with a leading `./`) or
            URL that fsspec knows.
        private: Hub only: a new repository is private, and an existing one must be.
        revision: Hub only: branch to commit to.
        create_pr: Hub only: open a pull request.
        progress: told what is being done, bytes done and bytes in all.

    Raises:
        ReleaseError: the folder does not hold a whole release.
        PublishError: wrong target, or the push failed.
    """
    repo_id = _repository(target)
    if repo_id is None and (private or revision or create_pr):
        raise PublishError(
            f"{without_password(target)}: --private, --revision and --create-pr are for the Hugging Face Hub"
        )
    files = check(Path(release), progress)
    if repo_id is None:
        return push_to_address(files, target, progress)
    return push_to_hub(files, repo_id, Wish(private, revision, create_pr))


def _repository(target: str) -> str | None:
    """Return the repository that a target names; None for an address."""
    if not target.startswith("hf://") and ("://" in target or target.startswith(("/", ".", "~"))):
        return None
    repo_id = target.removeprefix(HUB_URL)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        shown = without_password(target)
        raise PublishError(f"{shown}: write namespace/name for a dataset of the Hub, ./folder or a URL for an address")
    return repo_id
