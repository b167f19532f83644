"""Cells on disk: rates beside memory, peak memory, embedding of atlases, distances, two processes, and cost against every size.

Each measurement is a process of its own (``_scale_worker.py``), on one thread; rates that are compared are measured by turns. Atlases are
simulated and kept in ``--folder`` (4 GB for all parts).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from _atlas import AtlasLaw, atlas_pieces, write_pieces
from _common import RESULTS, options, report

import scgde
from scgde import ot
from scgde.components import CellComponents
from scgde.contrasts import Contrasts
from scgde.data import PopulationDataModule
from scgde.data.populations import split_by_cell
from scgde.population_phase import prepare_population_phase
from scgde.serialization import read_model

CELLS_PER_PIECE = 50_000
MEMORY_BAR, RATE_BAR = 2.0, 0.8


def store(folder: Path, n_populations: int, each: int, n_genes: int = 2000, contexts: int = 0) -> Path:
    """An atlas on disk, written once."""
    name = f"{'screen' if contexts else 'atlas'}_{n_populations}x{each}_{n_genes}"
    path = folder / f"{name}.zarr"
    if not path.exists():
        start = time.process_time()
        law = AtlasLaw(n_genes)
        n_pieces = max(n_populations * each // CELLS_PER_PIECE, 1)
        pieces = write_pieces(folder / name, atlas_pieces(law, n_populations, each, n_pieces, contexts=contexts))
        simulated, again = time.process_time() - start, time.process_time()
        scgde.pp.write_populations(
            pieces, path, ["perturbation", "context"] if contexts else "population", progress=False
        )
        written = time.process_time() - again
        print(f"{name}: simulated in {simulated:.0f} CPU s, written sorted in {written:.0f} CPU s", flush=True)
        for piece in pieces:
            piece.unlink()
    return path


def measure(path: Path, *arguments: str, processes: int = 1, timeout: int = 7200) -> dict:
    """Result of one measurement in a process of its own, and what it starts."""
    command = [sys.executable, str(Path(__file__).parent / "_scale_worker.py"), str(path), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=work)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.seek(0)
        output = log.read().decode(errors="replace")
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(output[-3000:])
    return json.loads(lines[0].removeprefix("RESULT "))


def streaming(arguments, folder: Path) -> None:
    """Step rates of training from disk over those from memory, by turns in one process."""
    path = store(folder, 5000, 200)
    in_memory = ad.read_zarr(path)
    scgde.GDEModel.setup_anndata(in_memory, "population")
    trainings = {}
    for place, cells in (("disk", scgde.GDEModel.setup_zarr(path)), ("memory", in_memory)):
        model = scgde.GDEModel(cells)
        table = model._table()
        train, validation, test = split_by_cell(table.codes, 0.9, 0.1, np.random.default_rng(0))
        data = PopulationDataModule(table, train, validation, test, sparse=True)
        components = CellComponents.fit(table, train)
        model._fit_rows(data, components, 0)
        data.set_contrasts(Contrasts.fit(table, train, components))
        trainings[place] = model.module.train(), data
    rows = []
    for phase in ("cells", "sets"):
        steps = {place: steps_of(*training, phase) for place, training in trainings.items()}
        for turn in range(arguments.turns + 1):
            for place, step in steps.items():
                start, wall = time.process_time(), time.perf_counter()
                n = sum(next(step) for _ in range(arguments.batches))
                cpu, wall = time.process_time() - start, time.perf_counter() - wall
                if turn:  # the first is to get going
                    rows.append(
                        {
                            "turn": turn,
                            "phase": phase,
                            "place": place,
                            "cells per CPU s": n / cpu,
                            "cells per s": n / wall,
                        }
                    )
                    print(rows[-1], flush=True)
        if phase == "cells":
            for module, data in trainings.values():
                prepare_population_phase(module, data)
    table, facts = pd.DataFrame(rows), {}
    for phase, part in table.groupby("phase"):
        wide = part.pivot_table(index="turn", columns="place", values="cells per CPU s")
        ratio = wide["disk"] / wide["memory"]
        facts[f"{phase}: rate from disk over rate from memory"] = (
            f"{ratio.median():.3f} [{ratio.min():.3f}, {ratio.max():.3f}]"
        )
    summary = table.groupby(["phase", "place"])[["cells per CPU s", "cells per s"]].median().reset_index()
    report("scale_streaming", summary, arguments, **facts, bar=f"at least {RATE_BAR}")


def steps_of(module, data, phase: str):
    """Optimisation steps without end, each of which gives its number of cells."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    noise = torch.Generator().manual_seed(0)
    while True:
        for batch in data.train_dataloader():
            loss = (
                module.cell_loss(batch, 1.0, noise)[0].loss
                if phase == "cells"
                else module.population_loss(batch, noise)["loss"]
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 50.0)
            optimizer.step()
            yield len(batch["X" if phase == "cells" else "u_mean"])


def memory(arguments, folder: Path) -> None:
    """Whole training and embedding of a million and of two million cells."""
    rows = []
    for each in (200, 400):
        path = store(folder, 5000, each)
        kept = folder / f"model_{each}"
        trained = measure(path, "--model", kept)
        embedded = measure(path, "--task", "embed", "--model", kept)
        rows.append({
            "cells": trained["n_cells"], "train CPU s": trained["cpu_s"], "cells per CPU s": trained["cells_per_cpu_s"],
            "train peak GB": trained["peak_gb"], "embed CPU s": embedded["with_errors_cpu_s"], "of it reading": embedded["reading_cpu_s"],
            "embed peak GB": embedded["peak_gb"],
        })  # fmt: skip
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    growth = {
        name: f"{table[name].iloc[1] / table[name].iloc[0] - 1:+.3f}" for name in ("train peak GB", "embed peak GB")
    }
    report(
        "scale_memory",
        table,
        arguments,
        growth=growth,
        bars=f"peak {MEMORY_BAR} GB, growth 0.1, embedding 60 CPU s and reading",
    )


def screen(arguments, folder: Path) -> None:
    """A screen of 1,000 perturbations in two contexts on disk, trained on and predicted from."""
    path, keys = store(folder, 2000, 250, contexts=2), ("--keys", "perturbation", "context")
    kept = folder / "model_screen"
    trained = measure(path, *keys, "--model", kept)
    predicted = measure(path, *keys, "--task", "predict", "--model", kept)
    row = {"cells": trained["n_cells"], "train CPU s": trained["cpu_s"], "train peak GB": trained["peak_gb"]}
    row |= {name: predicted[name] for name in ("fit_cpu_s", "predict_cpu_s", "predicted_cells")} | {
        "predict peak GB": predicted["peak_gb"]
    }
    report("scale_screen", pd.DataFrame([row]), arguments)


def distances(arguments, folder: Path) -> None:
    """All distances between 5,000 populations, beside exact transport on a sample of pairs."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5000, 64))
    start = time.process_time()
    from scgde.inference import euclidean

    euclidean(z)
    ours = time.process_time() - start
    clouds = rng.normal(size=(40, 200, 20)) + rng.normal(size=(40, 1, 20))
    start = time.process_time()
    for i in range(0, 40, 2):
        ot.wasserstein(clouds[i], clouds[i + 1])
    pair = (time.process_time() - start) / 20
    exact = pair * 5000 * 4999 / 2
    table = pd.DataFrame(
        [
            {
                "populations": 5000,
                "scgde CPU s": ours,
                "exact ms a pair": 1e3 * pair,
                "exact CPU s": exact,
                "times": exact / ours,
            }
        ]
    )
    known = RESULTS / "scale_memory.json"
    if known.exists():  # run before this part
        embedding = json.loads(known.read_text())["table"][0]["embed CPU s"]
        table = table.assign(**{"embedding CPU s": embedding, "times with it": exact / (ours + embedding)})
    report("scale_distances", table, arguments, bar="1000 times")


def processes(arguments, folder: Path) -> None:
    """Two processes that train together beside one, and beside two that each train alone, by turns, one thread each."""
    path, rows = store(folder, 1000, 200), []
    options = (path, "--batches", arguments.batches)
    for turn in range(arguments.turns):
        with ThreadPoolExecutor(2) as pool:
            results = {
                "one": measure(*options),
                "two apart": next(iter(list(pool.map(lambda _: measure(*options), range(2))))),
                "two together": measure(*options, "--devices", 2),
            }
        for name, result in results.items():
            rows.append({"turn": turn, "processes": name, **result})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    facts = {}
    for phase in ("cells", "sets"):
        wide = table.pivot_table(index="turn", columns="processes", values=f"{phase}_per_s")
        for name in ("two together", "two apart"):
            ratio = 2 * wide[name] / wide["one"]
            facts[f"{phase}: rate of {name} over that of one"] = (
                f"{ratio.median():.2f} [{ratio.min():.2f}, {ratio.max():.2f}]"
            )
    summary = table.groupby("processes")[["cells_per_s", "sets_per_s"]].median().reset_index()
    report(
        "scale_processes",
        summary,
        arguments,
        **facts,
        bar="1.6 together; what two that do not talk reach is the most that the computer allows",
        note="rates are of the first process alone",
    )


def resume(arguments, folder: Path) -> None:
    """Training that is killed in the middle of an epoch of each phase, and goes on in other processes, beside one that is not."""
    path, rows = store(folder, 500, 50, 1000), []
    whole = measure(path, "--max-epochs", 6, "--model", folder / "model_whole")
    with tempfile.TemporaryDirectory() as checkpoints:
        options = ("--max-epochs", 6, "--model", folder / "model_resumed", "--checkpoints", checkpoints)
        for step in (30, 75, whole["steps"] - 7):
            try:
                measure(path, *options, "--kill-at", step)
            except RuntimeError:  # it has no result
                rows.append({"killed after step": step, "of": whole["steps"]})
        measure(path, *options)
    first, second = (read_model(str(folder / f"model_{name}"), None)[0] for name in ("whole", "resumed"))
    largest = max(
        float((first[name].double() - second[name].double()).abs().max()) for name in first if first[name].numel()
    )
    report(
        "scale_resume", pd.DataFrame(rows), arguments, **{"largest difference of a parameter": largest}, bar="identical"
    )


def cluster(arguments, folder: Path) -> None:
    """Embedding by tasks: in this process, and on one Dask worker with memory kept and given back as Dask has it."""
    import dask
    from distributed import Client, LocalCluster

    path, kept, rows = store(folder, 1000, 200), folder / "model_cluster", []
    measure(path, "--model", kept, "--max-epochs", 4)
    model = scgde.GDEModel.load(str(kept), adata=path)
    start = time.process_time()
    here = scgde.cluster.embed(model, path, progress=False)
    rows.append({"where": "this process", "CPU s": time.process_time() - start, "largest difference": 0.0})
    for name, threshold in (("a worker", None), ("a worker, MALLOC_MMAP_THRESHOLD_", 2**30)):
        setting = {} if threshold is None else {"distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": threshold}
        with (
            dask.config.set(setting),
            LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as local,
            Client(local) as client,
        ):
            scgde.cluster.embed(model, path, client=client, progress=False)  # imports, and the model
            before = sum(client.run(time.process_time).values())
            there = scgde.cluster.embed(model, path, client=client, progress=False)
            spent = sum(client.run(time.process_time).values()) - before
        rows.append({"where": name, "CPU s": spent, "largest difference": float(np.abs(there.X - here.X).max())})
        print(rows[-1], flush=True)
    report("scale_cluster", pd.DataFrame(rows), arguments)


SIZES = {
    "cells": [(500, 50, 1000), (500, 100, 1000), (500, 200, 1000), (500, 400, 1000)],
    "populations": [(500, 100, 1000), (1000, 100, 1000), (2000, 100, 1000), (4000, 100, 1000)],
    "cells of a population": [(1000, 50, 1000), (500, 100, 1000), (250, 200, 1000), (125, 400, 1000)],
    "genes": [(500, 100, 500), (500, 100, 1000), (500, 100, 2000), (500, 100, 4000)],
}


def slopes(arguments, folder: Path) -> None:
    """CPU seconds of two epochs of each phase against cells, populations and genes, and the slope on logarithmic axes."""
    rows, facts, known = [], {}, {}
    for what, sizes in SIZES.items():
        for shape in sizes:
            n_populations, each, n_genes = shape
            if shape not in known:
                path, kept = store(folder, *shape), folder / "model_slope"
                # as many epochs for all, which is what the cost is to be compared at
                trained = measure(path, "--model", kept, "--max-epochs", 4)
                embedded = measure(path, "--task", "embed", "--model", kept)
                known[shape] = {"train CPU s": trained["cpu_s"], "embed CPU s": embedded["with_errors_cpu_s"]}
                print(shape, known[shape], flush=True)
            size = {"cells": n_populations * each, "populations": n_populations, "genes": n_genes}.get(what, each)
            rows.append({"against": what, "size": size, "populations": n_populations, "cells": n_populations * each, "genes": n_genes, **known[shape]})  # fmt: skip
        own = pd.DataFrame([r for r in rows if r["against"] == what])
        for name in ("train CPU s", "embed CPU s"):
            facts[f"{name} against {what}: slope"] = round(
                float(np.polyfit(np.log(own["size"]), np.log(own[name]), 1)[0]), 3
            )
    report(
        "scale_slopes", pd.DataFrame(rows), arguments, **facts, bar="at most 1.05 against cells, populations and genes"
    )


PARTS = {f.__name__: f for f in (streaming, memory, screen, distances, processes, slopes, resume, cluster)}


def main() -> None:
    defaults = {"part": "all", "folder": "", "turns": 5, "batches": 150}
    arguments = options(__doc__, **defaults)
    folder = Path(arguments.folder or tempfile.gettempdir()) / "scgde_scale"
    folder.mkdir(parents=True, exist_ok=True)
    arguments.seeds = 1  # of the one simulated atlas of each size
    arguments.folder = ""  # no path of a machine in the results
    for name in PARTS if arguments.part == "all" else arguments.part.split(","):
        PARTS[name](arguments, folder)


if __name__ == "__main__":
    main()
