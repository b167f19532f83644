"""What early cells of a clone know about late ones, and other populations of populations.

Parts: ``simulated`` (information and fate on 6,000 simulated clones whose memory is known), ``overlapping`` (the same with cell states that
overlap, at a quarter of the depth), ``forecast`` (late cells of the same
clones), ``protocol`` (the GDE paper's estimate with its pitfalls, beside the corrected one), ``cost`` (time and memory), ``larry`` (fate of
real clones), ``celegans`` (time, and cells of the next time bin), ``samples`` (patients by status and severity), ``tcr`` (clones of T cells).
Clones are split, never the cells of one. Rows of each part and seed are kept in ``results/lineage``, and a seed that is there is not
run again.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from _common import RESULTS, options, quiet_train, report, seeds
from _lineage import Baselines, by_time, shares, split_clones, trained
from _lineage_parts import celegans, larry, samples, tcr
from sklearn.metrics import roc_auc_score

import scgde
from scgde.datasets import fate_probabilities, lineage_information
from scgde.perturbation.metrics import energy_distance
from scgde.perturbation.space import ExpressionSpace

ROWS = RESULTS / "lineage"
N_CLONES, N_EARLY, N_LATE = 6000, 10, (5, 20)
EARLY = (3, 5, 10)
FEW_CLONES = 200
OVERLAPPING = {"separation": 1.5, "depth": 500.0}
SIMULATED = ("pseudobulk PCA, 10", "pseudobulk PCA, 50", "scVI mean", "kernel mean", "exact OT, MDS")


# ------------------------------------------------------------------ simulated


def simulated_clones(seed: int, n_clones: int = N_CLONES, **difficulty):
    """Cells of 6,000 clones, ten early and 5 to 20 late ones of each, a tenth of all without barcode; and training clones."""
    sizes = {"early_cells": (N_EARLY, N_EARLY), "late_cells": N_LATE, "n_genes": 500, "unbarcoded": 0.1}
    adata = scgde.datasets.simulate_lineage(n_clones, seed=seed, **sizes, **difficulty)
    adata.obs["clone"] = adata.obs["clone"].astype(object)
    adata.obs["time"] = pd.Categorical(adata.obs["time"].astype(str), ["early", "late"], ordered=True)
    truth = adata.uns.pop("simulation")
    training = split_clones(np.asarray(truth["clones"]), seed)
    clone = adata.obs["clone"]
    own = (clone.isna() | clone.isin(training)).to_numpy()
    return adata[own].copy(), adata[~own].copy(), truth, training


def thinned(adata, n_early: int) -> np.ndarray:
    """Rows of the first ``n_early`` early cells of every clone, and of all late ones."""
    rank = adata.obs.groupby(["clone", "time"], observed=True).cumcount().to_numpy()
    keep = adata.obs["clone"].notna().to_numpy() & ((adata.obs["time"] == "late").to_numpy() | (rank < n_early))
    return np.flatnonzero(keep)


def expected_information(truth: dict, n_early: int | None, late: np.ndarray) -> float:
    """Bits that the cells of clones hold, over their numbers of late cells."""
    numbers, counts = np.unique(late, return_counts=True)
    laws = truth["joint"], truth["early_laws"], truth["late_laws"]
    bits = [lineage_information(*laws, n_early, int(n)) for n in numbers]
    return float(np.average(bits, weights=counts))


def simulated(seed: int, arguments, **difficulty) -> pd.DataFrame:
    train, test, truth, training = simulated_clones(seed, arguments.clones, **difficulty)
    states = [str(s) for s in truth["populations"]]
    clones = np.asarray(truth["clones"])
    held = np.array([c for c in clones if c not in training])
    fate = pd.Series([f"fate_{k}" for k in truth["late_law"]], index=clones)
    late = test.obs.query("time == 'late'").groupby("clone").size().loc[held].to_numpy()
    models = {
        name: trained(train, seed, arguments.epochs, ["clone", "time"], **choices)
        for name, choices in {"scgde, states": {"encoder": "states"}, "scgde, residual": {}}.items()
    }
    label = {"train": crossed(train), "test": crossed(test)}
    baselines = Baselines(train, label["train"], seed, methods=SIMULATED)
    rows = []
    for n_early in EARLY:
        parts = [(cells[keep], names[keep]) for cells, names, keep in
                 ((c, label[k], thinned(c, n_early)) for k, c in (("train", train), ("test", test)))]  # fmt: skip
        frames = {
            name: pd.concat([model.get_population_embedding(cells.copy()) for cells, _ in parts])
            for name, (model, _) in models.items()
        }
        found = [baselines(cells, names) for cells, names in parts]
        frames |= {name: pd.concat([f[name] for f in found]) for name in found[0]}
        frames["true states"] = pd.concat([shares(cells, names, "state", states) for cells, names in parts])
        # counts of few cells tie, which neighbours are not made for
        frames["true states"] += 0.02 * np.random.default_rng(seed).normal(size=frames["true states"].shape)
        value = expected_information(truth, n_early, late)
        early_states = [s for s in states if s.startswith("progenitor")]
        counts = frames_of_counts(parts[1][0], early_states).loc[held]
        best = fate_probabilities(counts.to_numpy(), truth["joint"], truth["early_laws"])
        bayes = np.mean([roc_auc_score(fate[held] == f"fate_{k}", best[:, k]) for k in range(best.shape[1])])
        for name, frame in frames.items():
            early, later = by_time(frame, "early"), by_time(frame, "late")
            information = scgde.lineage.clone_information(early, later, training=training, n_permutations=20, seed=seed)
            result = scgde.lineage.predict_fate(early, fate, training=training)
            rows.append(
                {
                    "n_early": n_early,
                    "method": name,
                    "ratio": information.bits / value,
                    "bits": information.bits,
                    "low": information.interval[0],
                    "high": information.interval[1],
                    "null": information.null.mean(),
                    "p": information.p_value,
                    "auroc": result.mean_auroc,
                    "log_loss": result.log_loss,
                    "bits_of_cells": value,
                    "auroc_bayes": bayes,
                    "cpu_s": models[name][1] if name in models else np.nan,
                }
            )
            print(rows[-1], flush=True)
        name = "scgde, states"
        shuffled = by_time(frames[name], "late")
        shuffled.index = np.random.default_rng(seed).permutation(shuffled.index)
        chance = scgde.lineage.clone_information(
            by_time(frames[name], "early"), shuffled, training=training, n_permutations=20, seed=seed
        )
        rows.append({"n_early": n_early, "method": "shuffled clones", "ratio": chance.bits / value, "bits": chance.bits,
                     "p": chance.p_value, "bits_of_cells": value})  # fmt: skip
    return pd.DataFrame(rows)


def overlapping(seed: int, arguments) -> pd.DataFrame:
    """The same with states that overlap and a quarter of the counts: what cells are in is no longer plain to see."""
    return simulated(seed, arguments, **OVERLAPPING)


def crossed(adata) -> pd.Series:
    """Labels of clone and day; missing without a clone."""
    label = adata.obs["clone"].astype(str) + "|" + adata.obs["time"].astype(str)
    return label.where(adata.obs["clone"].notna())


def frames_of_counts(adata, states: list[str]) -> pd.DataFrame:
    """Early cells of each clone in each state."""
    early = adata.obs[adata.obs["time"] == "early"]
    return scgde.lineage.late_composition(early, "clone", "state").reindex(columns=states, fill_value=0)


# ------------------------------------------------------------------- forecast


def forecast(seed: int, arguments) -> pd.DataFrame:
    """Late cells of 200 held-out clones from their early ones."""
    train, test, truth, _ = simulated_clones(seed, arguments.clones)
    model, _ = trained(train, seed, arguments.epochs, ["clone", "time"], encoder="states")
    forecaster = scgde.lineage.Forecaster(model, "time", "clone").fit()
    names = sorted(test.obs["clone"].unique())[:200]
    some = test[test.obs["clone"].isin(names).to_numpy()].copy()
    start = time.process_time()
    table = forecaster.evaluate(some, "late", seed=seed).reset_index()
    print(f"evaluated in {time.process_time() - start:.0f} CPU s; {forecaster.heads.to_string()}", flush=True)
    best = {
        "method": "ceiling: cells of the true laws, by their probability",
        **bayes_cells(test, some, truth, forecaster, seed),
    }
    return pd.concat([table, pd.DataFrame([best])], ignore_index=True)


def bayes_cells(test, some, truth: dict, forecaster, seed: int) -> dict[str, float]:
    """E-distance of a mixture of real late cells of each law, with the probabilities that early states give."""
    model, rng = forecaster.model, np.random.default_rng(seed)
    space = ExpressionSpace.fit(model._table(), np.arange(model.adata.n_obs), is_count=True)
    law = pd.Series(truth["late_law"], index=truth["clones"])
    late = test.obs["time"].to_numpy() == "late"
    own = law.loc[test.obs["clone"].to_numpy()].to_numpy()
    cells = [space.project(space.normalise(test.X[rng.choice(np.flatnonzero(late & (own == k)), 400, replace=False)]))
             for k in range(len(truth["late_laws"]))]  # fmt: skip
    states = [str(s) for s in truth["populations"] if str(s).startswith("progenitor")]
    counts = frames_of_counts(some, states)
    posterior = fate_probabilities(counts.to_numpy(), truth["joint"], truth["early_laws"])
    errors = []
    for name, p in zip(counts.index, posterior, strict=True):
        rows = ((some.obs["clone"] == name) & (some.obs["time"] == "late")).to_numpy()
        mixed = np.concatenate([c[: round(400 * share)] for c, share in zip(cells, p, strict=True)])
        errors.append(energy_distance(mixed, space.project(space.normalise(some.X[rows]))))
    return {"e_distance": float(np.mean(errors))}


# ------------------------------------------------------------------- protocol


def protocol(seed: int, arguments) -> pd.DataFrame:
    """The GDE paper's estimate and what each of its choices does; every row again with late populations of other clones."""
    train, test, truth, training = simulated_clones(seed, arguments.clones)
    label = {"train": crossed(train), "test": crossed(test)}
    paper = {"encoder": "mean_pool", "generator": "vae", "geometry": "emergent", "n_embedding": 64}
    models = {"paper's": trained(train, seed, arguments.epochs, ["clone", "time"], **paper)[0],
              "states": trained(train, seed, arguments.epochs, ["clone", "time"], encoder="states")[0]}  # fmt: skip
    late = test.obs.query("time == 'late'").groupby("clone").size().to_numpy()
    value = expected_information(truth, N_EARLY, late)
    rng = np.random.default_rng(seed)
    rows = []
    for encoder, model in models.items():
        frames = [model.get_population_embedding(c[label[k].notna().to_numpy()].copy()) for k, c in (("train", train), ("test", test))]  # fmt: skip
        data = {}
        for name, frame in zip(("train", "test"), frames, strict=True):
            early, later = by_time(frame, "early"), by_time(frame, "late")
            clones = sorted(set(early.index) & set(later.index))
            data[name] = early.loc[clones].to_numpy(float), later.loc[clones].to_numpy(float)
        for n_clones in (FEW_CLONES, len(data["test"][0])):
            part = {k: (v[0][:n_clones], v[1][:n_clones]) for k, v in data.items()}
            whiten = [_whitening(v) for v in part["train"]]
            for estimate, bits in estimates(part, whiten, rng).items():
                order = {k: rng.permutation(len(v[0])) for k, v in part.items()}
                shuffled = {k: (v[0], v[1][order[k]]) for k, v in part.items()}
                rows.append({"encoder": encoder, "clones": n_clones, "method": estimate, "bits": bits,
                             "shuffled_clones": estimates(shuffled, whiten, rng, only=estimate)[estimate],
                             "bits_of_cells": value, "bits_of_laws": lineage_information(truth["joint"])})  # fmt: skip
                print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def estimates(data: dict, whiten: list, rng, only: str | None = None) -> dict[str, float]:
    """Estimates from early and late embeddings of training and held-out clones, in the order of correction."""
    ksg, (a, b), (x, y) = scgde.lineage.ksg_information, data["train"], data["test"]
    units = np.r_[10.0, np.ones(a.shape[1] - 1)]

    def less_null(early, later) -> float:
        null = np.mean([ksg(early, later[rng.permutation(len(later))]).mean() for _ in range(3)])
        return float(ksg(early, later).mean() - null)

    def projected(teach, score) -> float:
        return less_null(*scgde.lineage.Projection(*teach)(*score))

    options = {
        "as published: all dimensions, unscaled, training clones, no null": lambda: float(ksg(a, b).mean()),
        "the same, one coordinate in units ten times smaller": lambda: float(ksg(a * units, b * units).mean()),
        "held-out clones": lambda: float(ksg(x, y).mean()),
        "held-out clones, less null": lambda: less_null(x, y),
        "held-out clones, whitened, less null": lambda: less_null(x @ whiten[0], y @ whiten[1]),
        "projection fitted to the clones it is scored on, less null": lambda: projected((x, y), (x, y)),
        "projection of training clones, held-out clones, less null": lambda: projected((a, b), (x, y)),
    }
    return {name: f() for name, f in options.items() if only in (None, name)}


def _whitening(v: np.ndarray) -> np.ndarray:
    size, axes = np.linalg.eigh(np.cov(v.T))
    return axes / np.sqrt(np.maximum(size, 1e-6 * size.max()))


# ----------------------------------------------------------------------- cost

SIMULATE = """
import sys, scgde
a = scgde.datasets.simulate_lineage(int(sys.argv[1]), early_cells=eval(sys.argv[2]), late_cells=eval(sys.argv[3]), n_genes=500,
                                    unbarcoded=0.1, seed=int(sys.argv[4]))
del a.uns["simulation"]; a.write_h5ad(sys.argv[5])
"""


def cost(seed: int, arguments) -> pd.DataFrame:
    """CPU seconds and memory beyond the data of training and embedding; and of embedding 25,000 clones."""
    torch.set_num_threads(2)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = None
        for n_clones, early, late in ((arguments.clones, (N_EARLY, N_EARLY), N_LATE), (25_000, (3, 5), (3, 5))):
            path = Path(folder) / "cells.h5ad"
            command = [sys.executable, "-c", SIMULATE, str(n_clones), str(early), str(late), str(seed), str(path)]
            subprocess.run(command, check=True)  # not in this process, whose peak is measured
            adata = anndata.read_h5ad(path)
            before, start, wall = peak_memory(), time.process_time(), time.time()
            row = {"clones": n_clones, "cells": adata.n_obs, "populations": 0, "train_cpu_s": np.nan}
            if model is None:
                scgde.GDEModel.setup_anndata(adata, ["clone", "time"])
                model = scgde.GDEModel(adata, encoder="states")
                row["train_cpu_s"] = quiet_train(model, seed=seed, max_epochs=arguments.epochs)
                row["train_wall_s"] = time.time() - wall
            start = time.process_time()
            z = model.get_population_embedding(adata)
            row |= {"populations": len(z), "embed_cpu_s": time.process_time() - start}
            row["gib_beyond_data"] = (peak_memory() - before) / 2**30
            row["data_gib"] = (adata.X.data.nbytes + adata.X.indices.nbytes) / 2**30
            rows.append({"method": f"{n_clones} clones", **row})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def peak_memory() -> int:
    """Largest resident size of the process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------------- parts

PARTS = {
    "simulated": simulated,
    "overlapping": overlapping,
    "forecast": forecast,
    "protocol": protocol,
    "cost": cost,
    "larry": larry,
    "celegans": celegans,
    "samples": samples,
    "tcr": tcr,
}


def run(part: str, seed: int, arguments) -> pd.DataFrame:
    """Rows of a part and a seed, from the file of an earlier run if there is one."""
    path = ROWS / f"{part}_{seed}.json"
    if path.exists() and not arguments.fresh:
        return pd.read_json(path, orient="records")
    start = time.process_time()
    rows = PARTS[part](seed, arguments).assign(seed=seed)
    rows["cpu_seconds"] = time.process_time() - start
    if not arguments.no_save:
        Path(ROWS).mkdir(parents=True, exist_ok=True)
        records = json.loads(rows.to_json(orient="records", double_precision=6))
        path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    return rows


def summary(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Means over seeds, and the range of the first figure."""
    figures = [c for c in rows.select_dtypes("number") if c not in (*by, "seed", "cpu_seconds")]
    grouped = rows.groupby(by, sort=False)
    table = grouped[figures].mean()
    table.insert(1, f"{figures[0]}_min", grouped[figures[0]].min())
    table.insert(2, f"{figures[0]}_max", grouped[figures[0]].max())
    return table.reset_index()


def main() -> None:
    arguments = options(__doc__, part="simulated", fresh=0, clones=N_CLONES, **{"first-seed": 0})
    for part in PARTS if arguments.part == "all" else arguments.part.split(","):
        rows = pd.concat([run(part, seed, arguments) for seed in seeds(arguments)], ignore_index=True)
        by = [c for c in ("task", "encoder", "clones", "n_early", "method") if c in rows]
        report(f"lineage_{part}", summary(rows, by), arguments)


if __name__ == "__main__":
    main()
