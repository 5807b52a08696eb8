"""Datasets of the Hugging Face Hub, read where they lie: `hf://datasets/NAMESPACE/NAME[@REVISION][/FOLDER]`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trajmill.errors import ReleaseError, require
from trajmill.uris import one_line

HUB = "hf://"
"""How the address of what is on the Hub starts."""

PUBLISHED = "LeMaterial/LeMat-Traj"
"""The repository whose stress is known to be in kBar with VASP's sign, though its files do not say so."""

_DATASET = re.compile(r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/.*)?")

log = logging.getLogger("trajmill")


def hub_path(address: str) -> Any:
    """Return a folder or file of a dataset on the Hub, with pathlib's methods.

    Server and token come from the environment, as for all of Hugging Face: `HF_ENDPOINT`, `HF_TOKEN`.

    Raises:
        MissingExtraError: huggingface_hub or universal_pathlib is not installed (extra `hub`).
        ReleaseError: the address is none of a dataset, or there is nothing that may be read.
    """
    if not (match := _DATASET.fullmatch(address)):
        raise ReleaseError(f"{address}: no address of a dataset; write hf://datasets/NAMESPACE/NAME")
    hub = require("huggingface_hub", extra="hub")
    path = require("upath", extra="hub").UPath(address)
    with explained(address):
        if not path.exists():
            hub.HfApi().dataset_info(match["repository"], revision=match["revision"])  # a missing path does not say why
            raise ReleaseError(f"{address}: there is no such folder or file in the dataset")
    return path


def known_stress(address: str) -> str | None:
    """Return the unit of stress of a dataset that is known by its name, and tell the log that it is converted."""
    match = _DATASET.fullmatch(address)
    if match is None or match["repository"] != PUBLISHED:
        return None
    log.warning(
        "%s: its stress is in kBar with VASP's sign and is converted to eV/A^3, positive under tension, on reading; "
        "that of OQMD's frames, whose unit nobody knows, is left out",
        PUBLISHED,
    )
    return "kBar"


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn the failures of the client into one line that says what to do."""
    errors = require("huggingface_hub.errors", extra="hub")
    try:
        yield
    except errors.GatedRepoError as error:
        raise ReleaseError(f"{address}: ask for access on the dataset's page, then run `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, FileNotFoundError) as error:
        raise ReleaseError(f"{address}: no such dataset or revision, or not for you; run `hf auth login`") from error
    except (errors.HfHubHTTPError, *errors.HfHubHTTPError.__bases__, OSError) as error:
        raise ReleaseError(f"{address}: the Hub cannot be read ({one_line(error)}); try again later") from error
