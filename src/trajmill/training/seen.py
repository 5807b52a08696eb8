"""What models have seen of test sets: trajectories with a run, a material or a structure in common.

Databases of one origin share materials, so that a model trained on one may have been trained on what another tests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trajmill.dataset import Dataset
from trajmill.errors import ModelError
from trajmill.leakage import SIGNS, find_leakage
from trajmill.writing import whole

SCHEMA = pa.schema([(name, pa.string()) for name in ("trajectory_id", "sign", "trained_on")])
"""A trajectory of the test set, what it has in common, and with which one of the training set."""


def find_seen(
    train: Dataset, test: Dataset, file: Path, report: Callable[[int, int], None] = lambda *_: None
) -> set[str]:
    """Find what a training set has seen of a test set, and write it; what a file that is there says is taken.

    Args:
        train: what is trained on.
        test: what models are tried on.
        file: Parquet file to make, a row for each sign of each trajectory; `prototype` is not one that is looked at.
        report: told how much is done, and how much there is.

    Returns:
        The trajectories of the test set with any sign.

    Raises:
        ModelError: the file cannot be written.
    """
    if not file.is_file():
        found = find_leakage(train, test, report=report).found
        rows = [(ours, sign, theirs) for sign in SIGNS[1:] for ours, theirs in found[sign]]
        with whole(file, ModelError) as aside:
            pq.write_table(pa.Table.from_pylist([dict(zip(SCHEMA.names, r, strict=True)) for r in rows], SCHEMA), aside)
    return set(pq.read_table(file)["trajectory_id"].to_pylist())
