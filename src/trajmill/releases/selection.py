"""The rules that need all trajectories at once: they run over a whole store when a release is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from trajmill import recipe

RELEASE_RULES = ("duplicate_trajectory", "primary_agreement")
"""In the order they run."""

_ENDS = """
CREATE TABLE ends (
    asset VARCHAR, source VARCHAR, trajectory_id VARCHAR, task_id VARCHAR, last_modified VARCHAR, immutable_id VARCHAR,
    functional VARCHAR, run_type VARCHAR, formula VARCHAR, material_origin BOOLEAN, e DOUBLE
)
"""

_DUPLICATES = """
CREATE TABLE rejected AS
SELECT asset, trajectory_id, 'duplicate_trajectory' AS rule,
       'a copy of ' || coalesce(last_modified, 'unknown date') || '; kept the one of '
       || coalesce(first_value(last_modified) OVER w, 'unknown date') || ' in ' || first_value(asset) OVER w AS detail
FROM (SELECT DISTINCT asset, trajectory_id, last_modified FROM ends)
WHERE ?
WINDOW w AS (PARTITION BY trajectory_id ORDER BY last_modified DESC NULLS LAST, asset DESC
             ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
QUALIFY row_number() OVER w > 1
"""

_DISAGREEING = """
INSERT INTO rejected
SELECT asset, trajectory_id, 'primary_agreement',
       printf('%+.4f eV/atom from %s, the primary of %s', e - first_value(e) OVER w, first_value(task_id) OVER w,
              immutable_id)
FROM ends ANTI JOIN rejected USING (asset, trajectory_id)
WHERE ? AND source = 'mp' AND e IS NOT NULL
WINDOW w AS (PARTITION BY immutable_id, functional, run_type, formula
             ORDER BY material_origin DESC NULLS LAST, e, trajectory_id
             ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
QUALIFY abs(e - first_value(e) OVER w) > ?
"""


def select(
    files: Sequence[tuple[str, Path, int]], inputs: Sequence[tuple[str, Path, int]], rules: recipe.Rules
) -> pa.Table:
    """Decide which trajectories a release leaves out.

    - `duplicate_trajectory`: a trajectory that came in several assets is kept from the newest as a whole, by the
      source's date of its record, else by the asset's name.
    - `primary_agreement` (MP): the final energy per atom is within the tolerance of the primary of the same material,
      functional, run type and reduced formula. The primary is the task the material names in `origins` when it is
      here, else the one of lowest energy.

    Args:
        files: the store's files of frames, as (asset, path, rows).
        inputs: its files of unlabelled inputs.
        rules: thresholds.

    Returns:
        asset, trajectory_id, rule, detail, n_frames; sorted by asset and trajectory.
    """
    with duckdb.connect() as db:
        db.execute("SET preserve_insertion_order = false")
        names = {str(path): asset for asset, path, _ in (*files, *inputs)}
        db.register("assets", pa.table({"filename": list(names), "asset": list(names.values())}))
        db.execute(_ENDS)
        for paths, condition in ((files, "is_final"), (inputs, "true")):
            if paths:
                db.execute(
                    f"""INSERT INTO ends SELECT asset, source, trajectory_id, task_id, last_modified, immutable_id,
                        functional, run_type, chemical_formula_reduced, material_origin, energy / nsites
                        FROM read_parquet(?, filename = true, hive_partitioning = false) JOIN assets USING (filename)
                        WHERE {condition}""",
                    [[str(p) for _, p, _ in paths]],
                )
        db.execute(_DUPLICATES, [rules.duplicate_trajectory.enabled])
        db.execute(_DISAGREEING, [rules.primary_agreement.enabled, rules.primary_agreement.tolerance])
        if not names:
            return db.sql("SELECT *, 0::BIGINT AS n_frames FROM rejected").to_arrow_table()
        return db.sql(
            """SELECT rejected.asset, trajectory_id, rule, detail, count(*) AS n_frames
               FROM read_parquet(?, filename = true, hive_partitioning = false) JOIN assets USING (filename)
               JOIN rejected USING (asset, trajectory_id)
               GROUP BY ALL ORDER BY rejected.asset, trajectory_id""",
            params=[list(names)],
        ).to_arrow_table()
