"""A source that makes its records up, and tasks that misbehave when told to: importable by worker processes.

A fake raw file is JSON: `{"seed": 1, "records": 12}`. Records follow from the seed: some good, some with frames that a
rule rejects, some unreadable. `facts.json` beside the files is what a real source joins: a licence by task id.
Files in `control/` make a build pause or die at a phase of an asset, see `reach`.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chores import wait_for
from trajmill import pipeline
from trajmill.errors import SourceError, StoreError, TrajmillError
from trajmill.raw import sha256
from trajmill.recipe import load
from trajmill.sources.base import Asset, Record, Rejection
from trajmill.trajectory import Trajectory

# --- records -------------------------------------------------------------------------------------------------------


def trajectory(task_id="t-1", *, asset="mp/one.json", n_frames=4, n_atoms=2, seed=0, **fields):
    """Make a trajectory that all rules keep."""
    rng = np.random.default_rng(seed)
    edge = 4.0 + rng.random()
    sites = np.linspace(0, 1, n_atoms, endpoint=False)[:, None] * np.ones(3)
    defaults = {
        "source": "mp",
        "asset": asset,
        "task_id": task_id,
        "trajectory_id": f"{task_id}-pbe",
        "immutable_id": f"mp-{task_id}",
        "numbers": np.array([11, 17, 26, 8])[np.arange(n_atoms) % 4],
        "lattice": np.repeat(np.eye(3)[None] * edge * n_atoms, n_frames, axis=0),
        "positions": sites * edge * n_atoms + rng.normal(0, 0.01, (n_frames, n_atoms, 3)),
        "energy": -3.0 * n_atoms - 0.001 * np.arange(n_frames),
        "forces": rng.normal(0, 0.1, (n_frames, n_atoms, 3)),
        "stress": np.repeat(np.eye(3)[None] * 0.01, n_frames, axis=0),
        "relaxation_number": np.zeros(n_frames, np.int32),
        "relaxation_step": np.arange(n_frames, dtype=np.int32),
        "functional": "pbe",
        "run_type": "GGA",
        "encut": np.full(n_frames, 520.0),
        "electronic_steps": np.full(n_frames, 10, np.int32),
        "nelm": np.full(n_frames, 60, np.int32),
        "ispin": np.full(n_frames, 2, np.int32),
        "hubbard_u": {},
        "license": "BY-C",
        "last_modified": "2024-01-01",
    }
    return Trajectory(**(defaults | fields))


def unreadable(task_id, *, asset="mp/one.json", n_frames=None):
    """Make the rejection of a record that does not parse."""
    return Rejection(
        source="mp", asset=asset, rejected_by="readable", detail="no JSON", n_frames=n_frames, task_id=task_id
    )


def record(index, *, asset, seed, licence="BY-C"):
    """Make record number `index`: every fifth is unreadable, every fourth loses a frame, every third lacks a label."""
    task_id = f"{asset.rpartition('/')[2].partition('.')[0]}-{index}"
    if index % 5 == 4:
        return Record(n_frames=0, rejections=(unreadable(task_id, asset=asset),))
    made = trajectory(
        task_id, asset=asset, n_frames=2 + index % 4, n_atoms=1 + index % 3, seed=1000 * seed + index, license=licence
    )
    if index % 4 == 3:
        made.energy[0] = np.nan
    if index % 3 == 2:
        made.stress[-1] = np.nan
    return Record(n_frames=len(made), trajectories=(made,))


@dataclass(frozen=True)
class FakeSource:
    """Files of made-up records in a folder."""

    root: Path
    name: str = "mp"

    def prepare(self, workspace, report=lambda *_: None):
        workspace.mkdir(parents=True, exist_ok=True)

    def assets(self):
        files = sorted(self.root.glob("*.raw"))
        if not files:
            raise SourceError(f"{self.root}: no *.raw files here")
        return [Asset(name=f"mp/{f.name}", path=f, size=f.stat().st_size) for f in files]

    def raw_digest(self, asset):
        return sha256(asset.path)

    def facts_digest(self, task_ids):
        facts = json.loads((self.root / "facts.json").read_text())
        return json.dumps(sorted((t, facts.get(t, "BY-C")) for t in set(task_ids)))

    def read(self, asset):
        facts = json.loads((self.root / "facts.json").read_text())
        raw = json.loads(asset.path.read_text())
        with (self.root / "read.log").open("a") as log:
            log.write(f"{asset.name}\n")
        reach(self.root, asset.name, "read")
        if error := raw.get("error"):
            raise RuntimeError(error)
        for i in range(raw["records"]):
            if 2 * i >= raw["records"]:
                reach(self.root, asset.name, "middle")
            task_id = f"{asset.path.stem}-{i}"
            made = record(i, asset=asset.name, seed=raw["seed"], licence=facts.get(task_id, "BY-C"))
            if i == raw.get("lie"):
                made = Record(n_frames=made.n_frames + 1, trajectories=made.trajectories, rejections=made.rejections)
            yield made


def write_raw(root, name, *, seed, records=12, **more):
    """Write a fake raw file."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.raw").write_text(json.dumps({"seed": seed, "records": records, **more}))


def write_facts(root, **licences):
    """Write what the fake source joins."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "facts.json").write_text(json.dumps(licences))


# --- misbehaving ---------------------------------------------------------------------------------------------------


def _control(root, asset, phase):
    return root / "control" / f"{asset.replace('/', '_')}.{phase}"


def arrange(root, asset, phase, what):
    """Arrange that the process working on an asset does `what` when it next reaches a phase: `kill` or `pause`."""
    file = _control(root, asset, phase)
    file.parent.mkdir(exist_ok=True)
    file.write_text(what)
    return file


def paused(file):
    """Pid of the process that pauses there; it goes on once the file is gone."""
    text = file.read_text() if file.exists() else ""
    return int(text) if text.isdigit() else None


def reach(root, asset, phase):
    """Do what was arranged for this phase of this asset: die, or wait until the file is gone."""
    file = _control(root, asset, phase)
    what = file.read_text() if file.exists() else ""
    if what == "kill":
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "pause":
        temporary = file.with_suffix(".new")
        temporary.write_text(str(os.getpid()))
        temporary.replace(file)
        wait_for(lambda: not file.exists(), what=f"leave to go on from {phase}")


def build_asset(job, report=lambda *_: None):
    """Build an asset as trajmill does, with small batches, and with phases before and after the files are in place."""
    pipeline.BATCH_SIZE = pipeline.BATCH_RECORDS = 200
    outcome = pipeline.build_asset(job, report)
    reach(job.source.root, job.asset.name, "written")
    return outcome


def die_on_b(job, report):
    """Build an asset, unless it is b: die, each time."""
    if job.asset.name == "mp/b.raw":
        os.kill(os.getpid(), signal.SIGKILL)
    return build_asset(job, report)


def no_room(job, report):
    """Fail as a full disk makes the store fail."""
    raise StoreError("the disk is full")


def recipe(store, workers=1, *settings):
    """Make a recipe for the fake source; without the annotation that takes a worker a second to import."""
    fixed = [f"store.path={json.dumps(str(store))}", f"engine.workers={workers}", "annotation.energy_corrected=false"]
    return load(None, [*fixed, *settings])


def main():
    """Run a build of its own: `python -m fakes RAW STORE WORKERS`; prints what it did as JSON."""
    import trajmill.builder

    raw, store, workers = sys.argv[1:]
    trajmill.builder.open_sources = lambda _: [FakeSource(Path(raw))]
    trajmill.builder.build_asset = build_asset
    try:
        summary = trajmill.builder.build(recipe(store, int(workers)))
    except TrajmillError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"built": sorted(summary.built), "stopped": summary.stopped, "version": summary.version}))


if __name__ == "__main__":
    import fakes  # what is pickled must be found under this name by the workers

    fakes.main()
