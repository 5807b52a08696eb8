"""The rules that need all trajectories at once: they run over a whole store when a release is made."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from trajmill import recipe
from trajmill.stores.base import Store, stream

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


_COLUMNS = [
    "asset", "source", "trajectory_id", "task_id", "last_modified", "immutable_id", "functional", "run_type",
    "chemical_formula_reduced", "material_origin", "energy", "nsites", "is_final",
]  # fmt: skip


def select(store: Store, rules: recipe.Rules) -> pa.Table:
    """Decide which trajectories a release leaves out.

    - `duplicate_trajectory`: a trajectory that came in several assets is kept from the newest as a whole, by the
      source's date of its record, else by the asset's name.
    - `primary_agreement` (MP): the final energy per atom is within the tolerance of the primary of the same material,
      functional, run type and reduced formula. The primary is the task the material names in `origins` when it is
      here, else the one of lowest energy.

    Args:
        store: whose frames and unlabelled inputs are to be released.
        rules: thresholds.

    Returns:
        asset, trajectory_id, rule, detail, n_frames; sorted by asset and trajectory.
    """
    with duckdb.connect() as db:
        db.execute("SET preserve_insertion_order = false")
        db.execute(_ENDS)
        for role, condition in (("frame", "is_final"), ("input", "true")):
            with stream(store, role, _COLUMNS) as rows:
                db.register("rows", rows)
                db.execute(
                    f"""INSERT INTO ends SELECT asset, source, trajectory_id, task_id, last_modified, immutable_id,
                        functional, run_type, chemical_formula_reduced, material_origin, energy / nsites
                        FROM rows WHERE {condition}"""
                )
        db.execute(_DUPLICATES, [rules.duplicate_trajectory.enabled])
        db.execute(_DISAGREEING, [rules.primary_agreement.enabled, rules.primary_agreement.tolerance])
        db.execute("CREATE TABLE sizes (asset VARCHAR, trajectory_id VARCHAR)")
        affected = [asset for (asset,) in db.sql("SELECT DISTINCT asset FROM rejected").fetchall()]
        for role in ("frame", "input"):
            with stream(store, role, ["asset", "trajectory_id"], assets=affected) as rows:
                db.register("rows", rows)
                db.execute("INSERT INTO sizes SELECT * FROM rows SEMI JOIN rejected USING (asset, trajectory_id)")
        return db.sql(
            """SELECT asset, trajectory_id, rule, detail, count(*) AS n_frames
               FROM sizes JOIN rejected USING (asset, trajectory_id) GROUP BY ALL ORDER BY asset, trajectory_id"""
        ).to_arrow_table()
