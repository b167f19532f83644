"""What early cells of a clone know about late ones, and other populations of populations.

Parts: ``simulated`` (information and fate on 6,000 simulated clones whose memory is known), ``forecast`` (late cells of the same
clones), ``protocol`` (the GDE paper's estimate with its pitfalls, beside the corrected one), ``cost`` (time and memory), ``larry`` (fate of
real clones), ``celegans`` (time, and cells of the next time bin), ``samples`` (patients by status and severity), ``tcr`` (clones of T cells).
Clones are split, never the cells of one. Rows of each part and seed are kept in ``results/lineage``, and a seed that is there is not
run again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from _common import RESULTS, options, quiet_train, report, seeds
from _lineage import Baselines, by_time, shares, split_clones
from _lineage_parts import celegans, larry, samples, tcr
from sklearn.metrics import roc_auc_score

import scgde
from scgde.datasets import fate_probabilities, lineage_information

ROWS = RESULTS / "lineage"
N_CLONES, N_EARLY, N_LATE = 6000, 10, (5, 20)
EARLY = (3, 5, 10)
SIMULATED = ("pseudobulk PCA, 10", "pseudobulk PCA, 50", "scVI mean", "kernel mean", "exact OT, MDS")


# ------------------------------------------------------------------ simulated


def simulated_clones(seed: int, n_clones: int = N_CLONES):
    """Cells of 6,000 clones, ten early and 5 to 20 late ones of each, a tenth of all without barcode; and training clones."""
    adata = scgde.datasets.simulate_lineage(
        n_clones, early_cells=(N_EARLY, N_EARLY), late_cells=N_LATE, n_genes=500, unbarcoded=0.1, seed=seed
    )
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


def trained(adata, seed: int, epochs: int | None, keys: list[str], **choices):
    """A model of clones and days."""
    cells = adata.copy()
    scgde.GDEModel.setup_anndata(cells, keys)
    model = scgde.GDEModel(cells, **choices)
    seconds = quiet_train(model, max_epochs=epochs, seed=seed)
    print(f"trained {choices} in {seconds:.0f} CPU s", flush=True)
    return model, seconds


def expected_information(truth: dict, n_early: int | None, late: np.ndarray) -> float:
    """Bits that the cells of clones hold, over their numbers of late cells."""
    numbers, counts = np.unique(late, return_counts=True)
    laws = truth["joint"], truth["early_laws"], truth["late_laws"]
    bits = [lineage_information(*laws, n_early, int(n)) for n in numbers]
    return float(np.average(bits, weights=counts))


def simulated(seed: int, arguments) -> pd.DataFrame:
    train, test, truth, training = simulated_clones(seed, arguments.clones)
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


def crossed(adata) -> pd.Series:
    """Labels of clone and day; missing without a clone."""
    label = adata.obs["clone"].astype(str) + "|" + adata.obs["time"].astype(str)
    return label.where(adata.obs["clone"].notna())


def frames_of_counts(adata, states: list[str]) -> pd.DataFrame:
    """Early cells of each clone in each state."""
    early = adata.obs[adata.obs["time"] == "early"]
    return scgde.lineage.late_composition(early, "clone", "state").reindex(columns=states, fill_value=0)


# ---------------------------------------------------------------------- parts

PARTS = {"simulated": simulated, "larry": larry, "celegans": celegans, "samples": samples, "tcr": tcr}


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
        by = [c for c in ("task", "n_early", "method") if c in rows]
        report(f"lineage_{part}", summary(rows, by), arguments)


if __name__ == "__main__":
    main()
