"""MACE trains here, in a process of its own: its models, losses and steps; our frames, their order and checkpoints.

    python -m trajmill.training.mace_process FOLDER

The folder is one that `trajmill.training.mace.train` has prepared. What is found out goes to `metrics.jsonl` and to
standard output, a JSON object a line. With several processes, each has its share of every epoch.

The order of frames depends on seed and epoch alone, and a checkpoint has all that the next step depends on. So a
training that was killed and goes on has the curve of one that was not; with MACE's own program it has another, since
that repeats an epoch with its frames in the order of the first. Told to end, by a file, by SIGTERM or since nobody
listens any more, it ends after the step that it is in, with a checkpoint: then no step is done twice.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mace.modules
import numpy as np
import torch
from mace.tools import build_default_arg_parser, check_args
from mace.tools.model_script_utils import configure_model
from mace.tools.scripts_utils import get_optimizer, get_params_options
from mace.tools.train import evaluate, take_step
from mace.tools.utils import AtomicNumberTable
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch_ema import ExponentialMovingAverage
from torchdata.stateful_dataloader import StatefulDataLoader

from trajmill.elements import SYMBOLS
from trajmill.errors import ModelError, TrajmillError
from trajmill.locking import Lock
from trajmill.mace_data import ToGraphs
from trajmill.pieces import Pieces
from trajmill.torch_data import FrameStream
from trajmill.training.tasks import GRACE, LAUNCHED, METRICS, PARENT, STOP, TASK, Epoch, Steps, Task, said
from trajmill.writing import whole

STATE, BEST = "state.pt", "best.pt"
"""Files in the folder: the last checkpoint, and the weights with the lowest loss so far."""

ROWS = 100
"""Rows on training that an epoch has, about."""

PATIENCE = 10
"""s to wait for another training in the same folder: one that nobody listens to any more ends after a step."""

ENDING = threading.Event()
"""Set when it is time to end."""

HEADS = ["Default"]

OUTPUTS = {"energy": True, "forces": True, "virials": False, "stress": True}
"""What models are asked for."""


class StoppedError(TrajmillError):
    """It was told to end before it was done."""


class Training:
    """A training in progress: model, optimiser, how far it is."""

    def __init__(self, out: Path, task: Task, device: torch.device) -> None:
        recipe = task.recipe
        self._out, self._recipe, self._device = out, recipe, device
        self._rank, self._ranks = _place()
        self._first = self._rank == 0
        args = _arguments(task)
        self._model = (_tuned if recipe.foundation else _new)(task, args).to(device)
        self._spread: Any = self._model
        if self._ranks > 1:
            self._spread = DistributedDataParallel(self._model, device_ids=[device] if device.type == "cuda" else None)
        self._optimizer = get_optimizer(args, get_params_options(args, self._model))
        self._clip = args.clip_grad
        self._ema = ExponentialMovingAverage(self._model.parameters(), recipe.ema) if recipe.ema else None
        graphs = ToGraphs(float(self._model.r_max), self._model.atomic_numbers.tolist())
        self._stream, self._loader = self._loaded(task.train, graphs, task.workers, shuffle=True)
        validated, self._valid = self._loaded(task.valid, graphs, task.workers, shuffle=False)
        n_batches = validated.n_batches(max(1, self._valid.num_workers))
        self._a_batch = validated.n_frames / (self._ranks * n_batches)
        self._steps = self._stream.n_batches(max(1, self._loader.num_workers))
        self._epoch = self._step = 0
        self._lowest = math.inf
        self._losses: list[float] = []

    def _loaded(
        self, frames: Pieces, graphs: ToGraphs, workers: int, shuffle: bool
    ) -> tuple[FrameStream, StatefulDataLoader]:
        recipe = self._recipe
        stream = FrameStream(
            frames, energy=recipe.energy, batch_size=recipe.batch_size, shuffle=shuffle, seed=recipe.seed,
            even=self._ranks > 1, transform=graphs,
        )  # fmt: skip
        loader = StatefulDataLoader(
            stream, batch_size=None, num_workers=workers if workers > 1 else 0, worker_init_fn=_outlive,
            pin_memory=self._device.type == "cuda",
        )  # fmt: skip
        if not stream.n_batches(max(1, loader.num_workers)):
            raise ModelError(f"{stream.n_frames} frames are too few for so many processes")
        return stream, loader

    def run(self) -> None:
        """Train from where the last checkpoint is to the end, and write the model with the lowest loss.

        Raises:
            StoppedError: it was told to end; there is a checkpoint.
            ModelError: the loss is no number any more.
        """
        if not self._resumed():
            self._tell(self._validated(None))
        while self._epoch < self._recipe.epochs:
            if self._step == 0 and self._recipe.stage_two and self._epoch == self._recipe.stage_two.start:
                self._lowest = math.inf  # of another loss
            speed, waited = self._trained()
            errors = replace(self._validated(self._epoch), lr=self._stage.lr, frames_per_s=speed, waited=waited)
            self._tell(errors)
            if not math.isfinite(errors.loss):
                raise ModelError(f"the loss is {errors.loss} after epoch {self._epoch}; learn more slowly (lr)")
            if errors.loss < self._lowest:
                self._lowest = errors.loss
                with self._averaged():
                    self._save(BEST, self._model.state_dict())
            self._epoch, self._step = self._epoch + 1, 0
            self._checkpoint(None)
        if self._first:
            self._model.load_state_dict(torch.load(self._out / BEST, weights_only=True))
            self._save(f"{self._recipe.name}.model", self._model.cpu())

    @property
    def _stage(self) -> Any:
        """Return what weights and learning rate are taken from now."""
        two = self._recipe.stage_two
        return two if two and self._epoch >= two.start else self._recipe

    def _loss(self) -> torch.nn.Module:
        energy, forces, stress = self._stage.weights
        loss: torch.nn.Module = mace.modules.WeightedEnergyForcesStressLoss(energy, forces, stress).to(self._device)
        return loss

    def _trained(self) -> tuple[float | None, float | None]:
        """Train for an epoch, or for what is left of it; return frames a second, and the share of time waited."""
        if self._step == self._steps:  # it was stopped before it was validated
            return None, None
        loss, told = self._loss(), max(1, self._steps // ROWS)
        for group in self._optimizer.param_groups:
            group["lr"] = self._stage.lr
        if self._step == 0:
            self._stream.set_epoch(self._epoch)
        clock = _Clock()
        for batch in clock.timed(self._loader):
            _, found = take_step(
                self._spread, loss, batch, self._optimizer, self._ema, OUTPUTS, self._clip, self._device
            )
            self._losses.append(float(found["loss"]))
            self._step += 1
            if self._step % told == 0 or self._step == self._steps:
                self._tell(Steps(self._epoch, self._step, self._steps, float(np.mean(self._losses)), *clock.facts()))
                self._losses.clear()
            if self._step == self._steps:
                self._checkpoint(None)  # what comes now takes long as well
            elif (stopped := self._stopped()) or self._step % self._recipe.save_every == 0:
                self._checkpoint(self._loader.state_dict())
                if stopped:
                    raise StoppedError(f"stopped after step {self._step} of epoch {self._epoch}; run again to go on")
        return clock.facts()

    def _stopped(self) -> bool:
        """Tell whether it is time to end: for all processes as soon as for one, since none goes on alone."""
        told = torch.tensor(float(ENDING.is_set()), device="cpu")
        if self._ranks > 1:
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told)

    def _validated(self, epoch: int | None) -> Epoch:
        with self._averaged():
            loss, found = evaluate(self._spread, self._loss(), self._valid, OUTPUTS, self._device)
        names = {"energy": "e_per_atom", "force": "f", "stress": "stress"}
        errors: dict[str, Any] = {
            f"{name}_{kind}": float(found[f"{kind}_{theirs}"]) if f"{kind}_{theirs}" in found else None
            for name, theirs in names.items()
            for kind in ("mae", "rmse")
        }
        stage = 1 if self._stage is self._recipe else 2
        # MACE's is the sum over batches by the number of frames; while training it is the mean over batches
        return Epoch(epoch, stage, self._a_batch * float(loss), **errors)

    def _averaged(self) -> Any:
        """Return what puts averaged weights in the place of the model's for a while, where there are any."""
        return self._ema.average_parameters() if self._ema else nullcontext()

    def _checkpoint(self, loader: Any) -> None:
        """Keep all that the next step depends on; `loader` is how far each process is within an epoch, or None."""
        loaders = [loader] * self._ranks
        if self._ranks > 1:
            distributed.all_gather_object(loaders, loader)
        state = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self._ema.state_dict() if self._ema else None,
            "epoch": self._epoch,
            "step": self._step,
            "lowest": self._lowest,
            "losses": self._losses,
            "loaders": loaders,
            "workers": self._loader.num_workers,
            "told": self._metrics.stat().st_size if self._metrics.is_file() else 0,
        }
        self._save(STATE, state)

    def _resumed(self) -> bool:
        """Load the last checkpoint; what was told after it is told again."""
        file = self._out / STATE
        if not file.is_file():
            if self._first:
                self._metrics.write_bytes(b"")
            return False
        state = torch.load(file, map_location=self._device, weights_only=False)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema:
            self._ema.load_state_dict(state["ema"])
        self._epoch, self._step, self._lowest = state["epoch"], state["step"], state["lowest"]
        self._losses = state["losses"]
        if 0 < self._step < self._steps:
            ranks, workers = len(state["loaders"]), max(1, state["workers"])
            if (ranks, workers) != (self._ranks, max(1, self._loader.num_workers)):
                raise ModelError(f"it stopped within an epoch of {ranks} processes with {workers} workers; use as many")
            self._loader.load_state_dict(state["loaders"][self._rank])
        if self._first:
            with self._metrics.open("r+b") as told:
                told.truncate(state["told"])
        return True

    @property
    def _metrics(self) -> Path:
        return self._out / METRICS

    def _tell(self, row: Steps | Epoch) -> None:
        if self._first:
            line = said(row)
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(line)
            with suppress(BrokenPipeError):  # nobody listens any more: a checkpoint is yet to come
                sys.stdout.write(line)
                sys.stdout.flush()

    def _save(self, name: str, content: Any) -> None:
        """Write a file at once or not at all."""
        if self._first:
            with whole(self._out / name, ModelError) as aside:
                torch.save(content, aside)


class _Clock:
    """Tells how fast training is, and which share of the time it waits for frames."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._frames = 0

    def timed(self, loader: StatefulDataLoader) -> Iterator[Any]:
        """Yield what the loader does, and count."""
        frames = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(frames, None)
            if batch is None:
                return
            self._waited += time.perf_counter() - asked
            self._frames += batch.num_graphs
            yield batch

    def facts(self) -> tuple[float, float]:
        """Return frames a second of this process and the share of time that it waited for them, so far."""
        took = time.perf_counter() - self._began
        return round(self._frames / took, 1), round(self._waited / took, 4)


def _arguments(task: Task) -> Any:
    """Return MACE's own options for a model and an optimiser, by its own parser, with its defaults."""
    recipe = task.recipe
    values = {
        "name": recipe.name, "train_file": "none", "loss": "stress", "lr": recipe.lr, "seed": recipe.seed,
        "device": task.device, "default_dtype": recipe.dtype, "avg_num_neighbors": task.neighbours,
        "mean": 0.0, "std": task.force_rms, **recipe.model.model_dump(),
    }  # fmt: skip
    args, _ = check_args(build_default_arg_parser().parse_args([f"--{name}={value}" for name, value in values.items()]))
    return args


def _new(task: Task, args: Any) -> torch.nn.Module:
    numbers = sorted(task.e0s)
    args.mean, args.std = [args.mean], [args.std]
    for output in ("energy", "forces", "dipole", "polarizability"):
        setattr(args, f"compute_{output}", output in OUTPUTS)
    e0s = np.array([[task.e0s[z] for z in numbers]])
    model: torch.nn.Module = configure_model(args, None, e0s, heads=HEADS, z_table=AtomicNumberTable(numbers))[0]
    return model


def _tuned(task: Task, _: Any) -> torch.nn.Module:
    """Return the model that training goes on from, all of its elements too, with our energies of elements."""
    file = task.recipe.foundation
    try:
        model = torch.load(file, map_location="cpu", weights_only=False).to(getattr(torch, task.recipe.dtype))
        known = model.atomic_numbers.tolist()
    except (AttributeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file} is no model of MACE's") from error
    if new := sorted(set(task.e0s) - set(known)):
        raise ModelError(f"{file} does not know {SYMBOLS[new[0]]}, which is trained on")
    if len(model.heads) > 1:
        raise ModelError(f"{file} has {len(model.heads)} heads ({', '.join(model.heads)}); choose a model with one")
    energies = model.atomic_energies_fn.atomic_energies
    for z, e0 in task.e0s.items():
        energies[..., known.index(z)] = e0
    for parameter in model.parameters():
        parameter.requires_grad = True  # MACE's own program saves models without
    return model


def main() -> None:
    """Train what the folder says."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    out = Path(sys.argv[1])
    task: Task = pickle.loads((out / TASK).read_bytes())  # noqa: S301 (our own, just written)
    signal.signal(signal.SIGTERM, lambda *_: ENDING.set())
    threading.Thread(target=_watch, args=[out], daemon=True).start()
    device = _begun(task.device)
    torch.set_default_dtype(getattr(torch, task.recipe.dtype))
    torch.manual_seed(task.recipe.seed)
    try:
        with _alone(out) if _place()[0] == 0 else nullcontext():
            Training(out, task, device).run()
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")  # and no error, of which launchers say much
    except TrajmillError as error:
        sys.exit(str(error))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _watch(out: Path) -> None:
    """See when it is time to end: told so, or when the process that listens is gone, however that ended.

    With a launcher that may be on another machine.
    """
    parent = Path("/proc", os.environ[PARENT])
    watched = LAUNCHED not in sys.argv and parent.parent.is_dir()
    while not (out / STOP).exists() and (parent.is_dir() or not watched):
        time.sleep(1)
    ENDING.set()
    time.sleep(GRACE)
    os._exit(1)


def _outlive(_: int) -> None:
    """Let a process that loads end with the one that trains, not before: schedulers send SIGTERM to all."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _alone(out: Path) -> Lock:
    """Lock the folder; one whose `trajmill train` was killed ends soon."""
    for _ in range(PATIENCE):
        lock = Lock(out / ".lock")
        if lock.holder is None:
            return lock
        time.sleep(1)
    raise ModelError(f"{out}: process {lock.holder} trains here; wait for it, or end it")


def _begun(device: str) -> torch.device:
    """Join the other processes, where a launcher has started several."""
    if LAUNCHED in sys.argv and "RANK" not in os.environ:
        os.environ.update(_by_slurm())
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return torch.device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        place = torch.device("cuda", distributed.get_node_local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(place)
        return place
    return torch.device(device)


def _place() -> tuple[int, int]:
    """Return which process this is, from 0, and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _by_slurm() -> dict[str, str]:
    """Return what torch asks for, from what srun says."""
    try:
        its = {name: os.environ[f"SLURM_{name}"] for name in ("PROCID", "LOCALID", "NTASKS", "JOB_ID", "JOB_NODELIST")}
        names = ["scontrol", "show", "hostnames", its["JOB_NODELIST"]]
        hosts = subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
    except (KeyError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the launcher says neither RANK and WORLD_SIZE, as torchrun does, nor what SLURM does ({error})")
    return {
        "RANK": its["PROCID"], "LOCAL_RANK": its["LOCALID"], "WORLD_SIZE": its["NTASKS"], "MASTER_ADDR": hosts[0],
        "MASTER_PORT": str(20_000 + int(its["JOB_ID"]) % 20_000),
    }  # fmt: skip


if __name__ == "__main__":
    main()
