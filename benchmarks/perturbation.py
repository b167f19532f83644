"""Prediction of held-out perturbed populations, with every baseline and the ceiling in the same table.

Parts: ``kang`` (a cell type's response from the others), ``donors`` (that of a donor's cell type), ``papalexi`` and ``tapseq`` (targets never seen,
from co-expression), ``guides`` (a guide from the other guides of its target), ``norman`` (doubles from singles), ``cytof`` (a donor's
response), ``combinations`` (simulated doubles), ``large`` (cost); ``calibration`` sums up the regions of all that were run. Nothing of a held-out population is seen in training, by the
autoencoder neither. Rows of each part and seed are kept in ``results/perturbation``, and a seed that is there is not run again.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from _common import RESULTS, options, quiet_train, report, seeds
from sklearn.metrics import roc_auc_score

import scgde

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

ROWS = RESULTS / "perturbation"
METRICS = [
    "e_distance",
    "e_ratio",
    "e_ratio_top",
    "mmd",
    "wasserstein",
    "pearson_delta",
    "pearson_delta_top",
    "r2_pearson",
    "r2",
    "r2_top",
    "mse_delta",
    "de_overlap",
    "de_direction",
    "discrimination",
    "in_region",
]


def with_effect(adata: AnnData) -> list[str]:
    """Targets whose mean lies further from control, squared, than twice what the sampling of cells explains."""
    values = scgde.perturbation.metrics.log_normalise(adata.X)
    target = adata.obs["target"].to_numpy().astype(str)
    control = values[target == "non-targeting"]
    spread, found = control.var(0).sum(), []
    for name in sorted(set(target) - {"non-targeting"}):
        own = values[target == name]
        if np.square(own.mean(0) - control.mean(0)).sum() > 2 * spread * (1 / len(own) + 1 / len(control)):
            found.append(name)
    return found


def fitted(train: AnnData, seed: int, arguments, predictor: dict, **setup: Any) -> scgde.PerturbationPredictor:
    """A predictor on a model of the training cells, with the defaults of both."""
    train = train.copy()
    scgde.GDEModel.setup_anndata(train, **setup)
    model = scgde.GDEModel(train)
    quiet_train(model, seed=seed, max_epochs=arguments.epochs)
    return scgde.PerturbationPredictor(model, **predictor).fit()


def kang(seed: int, arguments) -> Iterator[pd.DataFrame]:
    adata = scgde.datasets.load("kang_ifnb_celltypes")
    for cell_type in sorted(adata.obs["cell_type"].unique()):
        held = ((adata.obs["cell_type"] == cell_type) & (adata.obs["condition"] == "stim")).to_numpy()
        keys = {"perturbation_key": "condition", "control": "ctrl", "context_key": "cell_type"}
        predictor = fitted(adata[~held], seed, arguments, keys, population_key=["cell_type", "condition"])
        yield predictor.evaluate(adata[held].copy(), per_population=True, seed=seed)


def donors(seed: int, arguments) -> Iterator[pd.DataFrame]:
    adata = scgde.datasets.load("kang_ifnb_donors")
    adata.obs["context"] = adata.obs["donor"].astype(str) + " " + adata.obs["cell_type"].astype(str)
    for context in sorted(adata.obs["context"].unique()):
        held = ((adata.obs["context"] == context) & (adata.obs["condition"] == "stim")).to_numpy()
        keys = {"perturbation_key": "condition", "control": "ctrl", "context_key": "context"}
        predictor = fitted(adata[~held], seed, arguments, keys, population_key=["context", "condition"])
        yield predictor.evaluate(adata[held].copy(), per_population=True, seed=seed)


def _screen(name: str, seed: int, arguments) -> Iterator[pd.DataFrame]:
    adata = scgde.datasets.load(name)
    targets = sorted(set(adata.obs["target"]) - {"non-targeting"})
    order = np.random.default_rng(seed).permutation(targets)
    for fold in range(5):
        held = adata.obs["target"].isin(order[fold::5]).to_numpy()
        keys = {"perturbation_key": "target", "control": "non-targeting"}
        batch = "batch" if "batch" in adata.obs else None
        predictor = fitted(adata[~held], seed, arguments, keys, population_key="target", batch_key=batch)
        yield predictor.evaluate(adata[held].copy(), per_population=True, seed=seed, unknown="mean")


def papalexi(seed: int, arguments) -> Iterator[pd.DataFrame]:
    yield from _screen("papalexi_eccite_299g", seed, arguments)


def tapseq(seed: int, arguments) -> Iterator[pd.DataFrame]:
    yield from _screen("tapseq_k562_chr8", seed, arguments)


def guides(seed: int, arguments) -> Iterator[pd.DataFrame]:
    """Every guide once, in five folds that leave each target with others; and whether its target is found again."""
    adata = scgde.datasets.load("tapseq_k562_chr8")
    rng = np.random.default_rng(seed)
    pairs = adata.obs[["target", "guide"]].drop_duplicates()
    sizes = adata.obs["guide"].value_counts()
    pairs = pairs[(pairs["target"] != "non-targeting") & (sizes[pairs["guide"]].to_numpy() >= 20)]
    fold = pd.Series(-1, index=pairs["guide"])
    for _, own in pairs.groupby("target", observed=True):
        names = rng.permutation(own["guide"].to_numpy())
        if len(names) > 1:
            fold[names] = np.arange(len(names)) % 5
    for k in range(5):
        chosen = fold.index[fold == k]
        held = adata.obs["guide"].isin(chosen).to_numpy()
        keys = {"perturbation_key": "target", "control": "non-targeting"}
        predictor = fitted(adata[~held], seed, arguments, keys, population_key=["target", "guide"], batch_key="batch")
        space = predictor.get_perturbation_adata()
        control = predictor.model.get_population_embedding()
        control = control[control.index.str.startswith("non-targeting|")].mean(0).to_numpy()
        for guide in chosen:
            own = adata[adata.obs["guide"] == guide].copy()
            frame = predictor.evaluate(own, per_population=True, seed=seed).assign(guide=guide)
            shift = predictor.model.get_population_embedding(own).to_numpy()[0] - control
            distance = np.linalg.norm(space.X[1:] - shift, axis=1)
            rank = int(np.argsort(np.argsort(distance))[list(space.obs_names[1:]).index(own.obs["target"].iloc[0])]) + 1
            frame.loc[frame["method"] == "scgde", "reciprocal_rank"] = 1 / rank
            yield frame.assign(reciprocal_rank_pseudobulk=_pseudobulk_rank(adata, held, own))


def _pseudobulk_rank(adata: AnnData, held: np.ndarray, own: AnnData) -> float:
    """Reciprocal rank of a guide's target among the changes of mean log-normalised expression."""
    values = scgde.perturbation.metrics.log_normalise(adata.X)
    target = adata.obs["target"].to_numpy().astype(str)
    control = values[~held & (target == "non-targeting")].mean(0)
    names = sorted(set(target) - {"non-targeting"})
    means = np.stack([values[~held & (target == n)].mean(0) for n in names]) - control
    mine = scgde.perturbation.metrics.log_normalise(own.X).mean(0) - control
    order = np.argsort(np.linalg.norm(means - mine, axis=1))
    return 1 / (1 + int(np.flatnonzero(order == names.index(str(own.obs["target"].iloc[0])))[0]))


def norman(seed: int, arguments) -> Iterator[pd.DataFrame]:
    adata = scgde.datasets.load("norman_mcfaline_500hvg")
    adata = adata[adata.obs["cell_type"] == "k562"].copy()
    adata = adata[:, np.asarray(adata.X.sum(0)).ravel() > 0].copy()
    names = set(adata.obs["condition"])
    doubles = sorted(n for n in names if "+" in n and set(n.split("+")) <= names)
    for double in doubles:
        held = (adata.obs["condition"] == double).to_numpy()
        keys = {"perturbation_key": "condition", "control": "control"}
        predictor = fitted(adata[~held], seed, arguments, keys, population_key="condition")
        yield predictor.evaluate(adata[held].copy(), per_population=True, seed=seed)


def cytof(seed: int, arguments) -> Iterator[pd.DataFrame]:
    adata = scgde.datasets.load("cytof_bcrxl_16samples")
    adata.obsm["markers"] = np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=np.float32)
    for donor in sorted(adata.obs["patient"].unique()):
        held = ((adata.obs["patient"] == donor) & (adata.obs["condition"] == "BCRXL")).to_numpy()
        keys = {"perturbation_key": "condition", "control": "Ref", "context_key": "patient"}
        setup = {"population_key": ["patient", "condition"], "obsm_key": "markers"}
        predictor = fitted(adata[~held], seed, arguments, keys, **setup)
        yield predictor.evaluate(adata[held].copy(), per_population=True, seed=seed)


def combinations(seed: int, arguments) -> Iterator[pd.DataFrame]:
    adata = scgde.datasets.simulate_screen(100, 200, cells_per_population=(60, 60), seed=seed)
    truth = adata.uns["simulation"]
    held_names = np.random.default_rng(seed).permutation(truth["combinations"])[:100]
    held = adata.obs["perturbation"].isin(held_names).to_numpy()
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    predictor = fitted(adata[~held], seed, arguments, keys, population_key="population")
    frame = predictor.evaluate(adata[held].copy(), per_population=True, seed=seed)
    acts = dict(zip(truth["combinations"], truth["interacting"].tolist(), strict=True))
    frame["interacting"] = frame["perturbation"].map(acts)
    strength = predictor.get_interactions(held_names).set_index("perturbation")["strength"]
    y = np.array([acts[n] for n in strength.index])
    yield frame.assign(auroc=roc_auc_score(y, strength.to_numpy()))


def large(seed: int, arguments) -> Iterator[pd.DataFrame]:
    """1,000 perturbations in two contexts, each half of them missing from one."""
    adata = scgde.datasets.simulate_screen(
        1000, n_contexts=2, cells_per_population=(100, 100), control_cells=1000, n_pathways=20, seed=seed
    )
    number = adata.obs["perturbation"].astype(str).str.removeprefix("p")
    number = pd.to_numeric(number, errors="coerce").fillna(-1).to_numpy()
    first = (adata.obs["context"] == "context_0").to_numpy()
    held = (number >= 0) & ((number < 500) == first)
    start = time.process_time()
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    predictor = fitted(adata[~held], seed, arguments, keys, population_key="population")
    trained = time.process_time()
    cells = [
        predictor.predict([f"p{i}" for i in part], context, n_cells=200, seed=seed)
        for part, context in ((range(500), "context_0"), (range(500, 1000), "context_1"))
    ]
    predicted = time.process_time()
    some = held & np.isin(number, np.arange(0, 1000, 50))
    frame = predictor.evaluate(adata[some].copy(), per_population=True, seed=seed)
    yield frame.assign(
        n_cells=adata.n_obs,
        train_seconds=trained - start,
        predict_seconds=predicted - trained,
        n_predicted=sum(c.n_obs for c in cells),
        peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    )


PARTS = {f.__name__: f for f in (kang, donors, papalexi, tapseq, guides, norman, cytof, combinations, large)}


def run(part: str, seed: int, arguments) -> pd.DataFrame:
    """Rows of a part and a seed: from their file, or computed and written to it."""
    path = ROWS / f"{part}_{seed}.json"
    if path.exists() and not arguments.fresh:
        return pd.read_json(path, orient="records")
    start, frames = time.process_time(), []
    for frame in PARTS[part](seed, arguments):
        frames.append(frame)
        own = frame[frame["method"] == "scgde"].iloc[0]
        print(f"{part} seed {seed}: {own['context']} {own['perturbation']}, E ratio {own['e_ratio']:.3f}", flush=True)
    rows = pd.concat(frames, ignore_index=True).assign(seed=seed, cpu_seconds=time.process_time() - start)
    if not arguments.no_save:
        Path(ROWS).mkdir(parents=True, exist_ok=True)
        records = json.loads(rows.to_json(orient="records", double_precision=6))
        path.write_text("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")
    return rows


def summary(rows: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """Metrics of each method over held-out populations: within seeds by ``statistic``, then the mean over seeds.

    A prediction of no change explains nothing: its correlation counts as zero. Ratios of E-distances are those of the means where means are
    shown, since a population without an effect makes its own ratio anything.
    """
    present = [m for m in METRICS if m in rows]
    rows = rows.copy()
    for column in ("pearson_delta", "pearson_delta_top", "r2_pearson"):
        rows[column] = rows[column].fillna(0.0)
    by_seed = rows.groupby(["method", "seed"], sort=False)[present].agg(statistic)
    if statistic == "mean":
        for name in ("", "_top"):
            top = rows.groupby(["method", "seed"], sort=False)[f"e_distance{name}"].mean()
            by_seed[f"e_ratio{name}"] = top / top.loc["control copy"].reindex(top.index, level="seed")
    table = by_seed.groupby("method", sort=False).mean()
    spread = by_seed["e_ratio"].groupby("method", sort=False).agg(["min", "max"])
    table.insert(2, "e_ratio_min", spread["min"])
    table.insert(3, "e_ratio_max", spread["max"])
    if "in_region" in rows:  # a median of yes and no says nothing
        table["in_region"] = rows.groupby("method", sort=False)["in_region"].mean()
    return table.reset_index()


def against_rows(rows: pd.DataFrame) -> dict[str, Any]:
    """Our E-distance over each baseline's: ratio of the means over populations, median and worst of the ratios, and how often it is less."""
    unit = [c for c in ("seed", "context", "perturbation", "guide") if c in rows and rows[c].notna().any()]
    e = rows.pivot_table(index=unit, columns="method", values="e_distance")
    facts = {}
    for name in e.columns.drop(["scgde", "ceiling (second draw)"], errors="ignore"):
        both = e[["scgde", name]].dropna()
        ratio = both["scgde"] / both[name]
        values = (
            both["scgde"].mean() / both[name].mean(),
            ratio.median(),
            ratio.max(),
            (both["scgde"] < both[name]).mean(),
        )
        facts[name] = [round(float(v), 3) for v in values]
    return facts


def calibration(arguments) -> None:
    """Share of held-out embeddings inside their 90 % region, from the rows of all parts that have been run."""
    frames = []
    for path in sorted(ROWS.glob("*.json")):
        rows = pd.read_json(path, orient="records")
        own = rows[(rows["method"] == "scgde") & rows["in_region"].notna()]
        frames.append(own.assign(part=path.stem.rsplit("_", 1)[0]))
    joined = pd.concat(frames)
    table = joined.groupby("part").agg(
        populations=("in_region", "size"), in_region=("in_region", "mean"), median_level=("region_level", "median")
    )
    table.loc["all"] = [len(joined), joined["in_region"].mean(), joined["region_level"].median()]
    table.loc["mean of parts"] = [np.nan, *table.iloc[:-1][["in_region", "median_level"]].mean()]
    report("perturbation_calibration", table.reset_index(), arguments)


def main() -> None:
    arguments = options(__doc__, part="kang", fresh=0, **{"first-seed": 0})
    if arguments.part == "calibration":
        calibration(arguments)
        return
    for part in PARTS if arguments.part == "all" else arguments.part.split(","):
        rows = pd.concat([run(part, seed, arguments) for seed in seeds(arguments)], ignore_index=True)
        if rows.drop_duplicates(["context", "perturbation"]).shape[0] <= 30:
            index = ["context", "perturbation"]
            for metric in ("e_distance", "e_ratio", "pearson_delta"):
                wide = rows.pivot_table(index=index, columns="method", values=metric, dropna=False)
                print(
                    f"\n{metric} of each population\n{wide.dropna(how='all').to_string(float_format='{:.3f}'.format)}"
                )
        facts: dict[str, Any] = {
            "populations": len(rows.drop_duplicates([c for c in ("context", "perturbation", "guide") if c in rows])),
            "situations": rows.loc[rows["method"] == "scgde", "situation"].value_counts().to_dict(),
            "E-distance over that of (means, median, worst; share of populations with less)": against_rows(rows),
            "cpu_seconds": round(float(rows.drop_duplicates("seed")["cpu_seconds"].mean()), 1),
        }
        once = rows.drop_duplicates("seed")
        for column in ("auroc", "train_seconds", "predict_seconds", "n_predicted", "n_cells", "peak_gib"):
            if column in rows:
                facts[column] = [round(float(v), 3) for v in once[column]]
        for column in ("reciprocal_rank", "reciprocal_rank_pseudobulk"):
            if column in rows:
                facts[f"mean {column}"] = round(float(rows.loc[rows["method"] == "scgde", column].mean()), 3)
        if part == "papalexi":
            strong = rows["perturbation"].isin(with_effect(scgde.datasets.load("papalexi_eccite_299g")))
            for name, chosen in (("effect", strong), ("no_effect", ~strong)):
                report(f"perturbation_papalexi_{name}", summary(rows[chosen], "mean"), arguments, **facts)
            continue
        statistic = "median" if part in ("kang", "donors", "norman", "cytof") else "mean"
        report(f"perturbation_{part}", summary(rows, statistic), arguments, statistic=statistic, **facts)


if __name__ == "__main__":
    main()
