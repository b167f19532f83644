"""One measurement of scale.py in a process of its own, whose peak memory is that of the work: prints one line of JSON."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import time
import warnings
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import torch

import scgde


class Kill(pl.Callback):
    """Kill the process after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Rates(pl.Callback):
    """CPU and wall seconds of every epoch's steps but the first few, and the cells in them."""

    def __init__(self, skip: int = 10) -> None:
        self.skip = skip
        self.parts: dict[str, list[tuple[float, float, int, int]]] = {"cells": [], "sets": []}

    def on_train_batch_start(self, trainer, plan, batch, batch_idx) -> None:
        if batch_idx == self.skip or not hasattr(self, "begin"):  # the first batch may be in the middle of an epoch
            self.phase = "cells" if plan.in_cell_phase else "sets"
            self.begin, self.seen, self.steps = (time.process_time(), time.perf_counter()), 0, 0

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        if hasattr(self, "begin") and batch_idx >= self.skip:
            self.seen += len(batch["X" if plan.in_cell_phase else "u_mean"])
            self.steps += 1

    def on_train_epoch_end(self, trainer, plan) -> None:
        if getattr(self, "seen", 0):
            cpu, wall = time.process_time() - self.begin[0], time.perf_counter() - self.begin[1]
            self.parts[self.phase].append((cpu, wall, self.seen, self.steps))
            self.seen = 0

    def summary(self) -> dict[str, float]:
        """Cells for each CPU second and each wall second, and CPU seconds of a step, over all epochs of a phase."""
        out = {}
        for phase, parts in self.parts.items():
            if parts:
                cpu, wall, seen, steps = (sum(column) for column in zip(*parts, strict=True))
                out |= {
                    f"{phase}_per_cpu_s": seen / cpu,
                    f"{phase}_per_s": seen / wall,
                    f"{phase}_step_ms": 1e3 * cpu / steps,
                }
        return out


def peak_gb() -> float:
    """Largest resident memory since the process began; that of getrusage goes back to the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--memory", action="store_true", help="load the cells")
    parser.add_argument("--task", default="train", choices=["train", "embed", "predict"])
    parser.add_argument("--model", help="folder to save to or load from")
    parser.add_argument("--keys", nargs="*")
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--batches", type=int, help="batches of each epoch at most")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--checkpoints", help="folder of checkpoints")
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--n-layers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    result = {"base_gb": peak_gb()}
    start, wall = time.process_time(), time.perf_counter()
    if arguments.memory:
        cells = ad.read_zarr(arguments.store)
        scgde.GDEModel.setup_anndata(cells, arguments.keys or "population")
    else:
        cells = scgde.GDEModel.setup_zarr(arguments.store, arguments.keys)
    if arguments.task == "train":
        model = scgde.GDEModel(cells, n_layers=arguments.n_layers)
        rates, options = Rates(), {}
        if arguments.devices > 1:
            options |= {"strategy": "ddp", "devices": arguments.devices, "accelerator": "cpu"}
        if arguments.batches:
            options |= {"limit_train_batches": arguments.batches, "limit_val_batches": 1}
        if arguments.checkpoints:
            options |= {"checkpoint_dir": arguments.checkpoints, "checkpoint_every": 20}
        model.train(
            arguments.max_epochs,
            seed=0,
            batch_size=arguments.batch_size,
            enable_progress_bar=False,
            callbacks=[rates, Kill(arguments.kill_at)],
            **options,
        )
        result |= rates.summary() | {"steps": model.trainer.global_step}
        if model.trainer.global_rank:
            return
        if arguments.model:
            model.save(arguments.model, overwrite=True)
    else:
        model = scgde.GDEModel.load(arguments.model, adata=arguments.store)
        start, wall = time.process_time(), time.perf_counter()
        if arguments.task == "embed":
            z, error = model.get_population_embedding(), None
            result["embedding_cpu_s"] = time.process_time() - start
            again = time.process_time()
            error = model.get_population_standard_error()
            result["with_errors_cpu_s"] = time.process_time() - again
            again = time.process_time()
            rows = cells.rows()
            for first in range(0, cells.n_obs, rows.cells_per_read):
                rows.read(first, min(first + rows.cells_per_read, cells.n_obs))
            result["reading_cpu_s"] = time.process_time() - again
            assert np.isfinite(z.to_numpy()).all() and np.isfinite(error.to_numpy()).all()
            result["n_populations"] = len(z)
        else:
            predictor = scgde.PerturbationPredictor(model, arguments.keys[0], "control", arguments.keys[1]).fit()
            result["fit_cpu_s"] = time.process_time() - start
            again = time.process_time()
            predicted = predictor.predict("p7", context="c1", n_cells=200, seed=0)
            result |= {"predict_cpu_s": time.process_time() - again, "predicted_cells": predicted.n_obs}
    result |= {"cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - wall, "peak_gb": peak_gb()}
    result["n_cells"] = cells.n_obs
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
