"""Parts of the lineage benchmark on real data: clones, cell types over time, patients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from _common import CellPCA
from _lineage import Baselines, by_time, knn_divergence, quantiles, shares, trained
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score

import scgde
from scgde.perturbation.metrics import energy_distance
from scgde.perturbation.space import ExpressionSpace

ENCODERS = {"scgde, states": {"encoder": "states"}, "scgde, residual": {}}
SMALL = ("pseudobulk PCA, 10", "pseudobulk PCA, 50", "kernel mean", "exact OT, MDS")


# ---------------------------------------------------------------------- LARRY


def larry(seed: int, arguments) -> pd.DataFrame:
    """Late fate of left-out clones, five folds over clones; and how alike cells of a clone are in equal state."""
    adata = scgde.datasets.load("larry_hematopoiesis")
    obs = adata.obs
    obs["clone"], obs["state"] = obs["clone"].astype(str), obs["state"].astype(str)
    obs["day"] = pd.Categorical(np.where(obs["time"] == 6, "late", "early"), ["early", "late"], ordered=True)
    size = pd.crosstab(obs["clone"], obs["day"])
    usable = size.index[(size.min(axis=1) > 0) & (size.sum(axis=1) >= 3)]
    composition = scgde.lineage.late_composition(obs, "clone", "state", "time", 6).loc[usable]
    fates = ["Monocyte", "Neutrophil", "Baso", "Mast"]
    fate = composition[fates].idxmax(axis=1)[composition[fates].max(axis=1) == composition.max(axis=1)]
    clones = np.random.default_rng(seed).permutation(fate.index.to_numpy())
    fold = pd.Series(np.arange(len(clones)) % 5, index=clones)
    label = obs["clone"] + "|" + obs["day"].astype(str)
    n_early = size["early"]
    probability: dict[str, list[pd.DataFrame]] = {}
    latents, cells_of = [], []
    for k in range(5):
        own = obs["clone"].isin(fold.index[fold == k]).to_numpy()
        train, test = adata[~own].copy(), adata[own].copy()
        frames = {}
        model, _ = trained(train, seed, arguments.epochs, ["clone", "day"], encoder="states")
        frames["scgde, states"] = pd.concat([model.get_population_embedding(c.copy()) for c in (train, test)])
        found = Baselines(train, label[~own], seed, methods=(*SMALL, "scVI mean"))
        parts = [found(train, label[~own]), found(test, label[own])]
        frames |= {name: pd.concat([part[name] for part in parts]) for name in parts[0]}
        states = sorted(obs["state"].unique())
        frames["annotated states"] = pd.concat(
            [shares(c, label[m], "state", states) for c, m in ((train, ~own), (test, own))]
        )
        for name, frame in frames.items():
            early = by_time(frame, "early").loc[fate.index]
            result = scgde.lineage.predict_fate(early, fate, n_cells=n_early, training=list(fold.index[fold != k]))
            probability.setdefault(name, []).append(result.probabilities.reindex(columns=fates, fill_value=0.0))
        latents.append(model.get_latent_representation(test.copy()))
        cells_of.append(test.obs.assign(fold=k))
    joined = {name: pd.concat(parts).loc[fate.index] for name, parts in probability.items()}
    frequency = pd.DataFrame({f: (fate == f).mean() for f in fates}, index=fate.index)
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(fate), size=len(fate)) for _ in range(500)]
    ours = np.array([auroc(joined["scgde, states"], fate, d) for d in draws])
    rows = []
    for name, frame in (joined | {"frequency of fates": frequency}).items():
        values = np.array([auroc(frame, fate, d) for d in draws])
        low, high = quantiles(values)
        better = quantiles(ours - values)
        rows.append({"task": "fate of held-out clones, AUROC", "method": name, "value": auroc(frame, fate), "low": low, "high": high,
                     "ours_minus_low": better[0], "ours_minus_high": better[1], "n": len(fate)})  # fmt: skip
    held = pd.concat(cells_of)
    strata = held[["fold", "time", "state"]].astype(str)
    pca = CellPCA(adata.X, 20, seed)(adata[held.index].X)
    for name, x in {"scgde latent": np.concatenate(latents), "PCA": pca}.items():
        found = scgde.lineage.clonal_coupling(x, held["clone"], strata, seed=seed)
        low, high = quantiles(found.null)
        rows.append({"task": "distance within clones over that between, equal day and state", "method": name, "value": found.ratio,
                     "low": low, "high": high, "p": found.p_value, "n": found.n_pairs})  # fmt: skip
    return pd.DataFrame(rows)


def auroc(frame: pd.DataFrame, fate: pd.Series, rows=slice(None)) -> float:
    """Mean area under the curve over fates."""
    truth, values = fate.to_numpy()[rows], frame.to_numpy()[rows]
    return float(
        np.mean(
            [
                roc_auc_score(truth == f, values[:, i])
                for i, f in enumerate(frame.columns)
                if 0 < (truth == f).sum() < len(truth)
            ]
        )
    )


# ----------------------------------------------------------------- C. elegans


def embryo():
    """Cells of the embryo, their time bins in order, and populations of 20 cells or more."""
    adata = scgde.datasets.load("celegans_embryo_time")
    adata = adata[(adata.obs["cell_type"] != "AWC_ON").to_numpy()].copy()
    obs = adata.obs
    obs["cell_type"] = obs["cell_type"].astype(str)
    bins = obs.groupby(obs["embryo_time_bin"].astype(str))["embryo_time"].mean().sort_values().index.tolist()
    obs["bin"] = pd.Categorical(obs["embryo_time_bin"].astype(str), bins, ordered=True)
    label = obs["cell_type"] + "|" + obs["bin"].astype(str)
    counts = label.value_counts()
    return adata, bins, label, sorted(counts.index[counts >= 20])


def celegans(seed: int, arguments) -> pd.DataFrame:
    return pd.concat([embryo_time(seed, arguments), next_bin(seed, arguments)], ignore_index=True)


def embryo_time(seed: int, arguments) -> pd.DataFrame:
    """Mean time of populations that no part of training saw, by ridge regression, five folds."""
    adata, _, label, large = embryo()
    minutes = adata.obs.groupby(label)["embryo_time"].mean()
    fold = pd.Series(np.arange(len(large)) % 5, index=np.random.default_rng(seed).permutation(large))
    predicted: dict[str, list[pd.Series]] = {}
    for k in range(5):
        held = list(fold.index[fold == k])
        own = label.isin(held).to_numpy()
        train, test = adata[~own].copy(), adata[own].copy()
        model, _ = trained(train, seed, arguments.epochs, ["cell_type", "bin"])
        frames = {"scgde": pd.concat([model.get_population_embedding(c.copy()) for c in (train, test)])}
        found = Baselines(train, label[~own], seed, methods=SMALL)
        parts = [found(train, label[~own]), found(test, label[own])]
        frames |= {name: pd.concat([part[name] for part in parts]) for name in parts[0]}
        teach = [name for name in large if name not in held]
        for name, frame in frames.items():
            x = frame.loc[teach].to_numpy()
            scale = x.std(0).mean()
            ridge = RidgeCV(np.logspace(-3, 4, 15)).fit(x / scale, minutes[teach])
            predicted.setdefault(name, []).append(
                pd.Series(ridge.predict(frame.loc[held].to_numpy() / scale), index=held)
            )
    rows = []
    for name, parts in predicted.items():
        values = pd.concat(parts).loc[large]
        error = np.square(values - minutes[large]).sum() / np.square(minutes[large] - minutes[large].mean()).sum()
        rows.append({"task": "time of held-out populations, R2", "method": name, "value": 1 - error, "n": len(large)})
    return pd.DataFrame(rows)


def next_bin(seed: int, arguments) -> pd.DataFrame:
    """Cells of the next bin of a cell type whose later half of bins no part of training saw."""
    adata, bins, label, large = embryo()
    rows = []
    for kind in sorted({name.split("|")[0] for name in large}):
        present = [b for b in bins if f"{kind}|{b}" in large]
        if len(present) < 4:
            continue
        held = present[len(present) // 2 :]
        later = adata.obs["bin"].isin(bins[bins.index(held[0]) :]).to_numpy()
        train = adata[~(later & (adata.obs["cell_type"] == kind).to_numpy())].copy()
        model, _ = trained(train, seed, arguments.epochs, ["cell_type", "bin"])
        forecaster = scgde.lineage.Forecaster(model, "bin", "cell_type").fit()
        space = ExpressionSpace.fit(model._table(), np.arange(train.n_obs), is_count=True, seed=seed)
        for target in held:
            before = bins[bins.index(target) - 1]
            if before not in present:
                continue
            source, real = (adata[(label == f"{kind}|{b}").to_numpy()].copy() for b in (before, target))
            r, s = (space.project(space.normalise(c.X)) for c in (real, source))
            predicted = {"copy of the current bin": s}
            for method in ("sample", "transport"):
                cells = forecaster.predict(target, adata=source, n_cells=500, method=method, seed=seed)
                predicted[f"scgde, {method}"] = space.project(space.normalise(cells.X))
            shift, pasted = other_types(train, before, target, space)
            predicted["mean shift"] = space.project(space.normalise(source.X) + shift)
            predicted["other types at the time"] = pasted
            order = np.random.default_rng(seed).permutation(len(r))
            scores = {name: energy_distance(cells, r) for name, cells in predicted.items()}
            scores["ceiling (second half)"] = energy_distance(r[order[::2]], r[order[1::2]])
            rows += [{"task": "cells of the next bin, E-distance", "method": k, "value": v, "population": f"{kind}|{target}", "n": len(r)}
                     for k, v in scores.items()]  # fmt: skip
            print(rows[-1]["population"], {k: round(v, 2) for k, v in scores.items()}, flush=True)
    return pd.DataFrame(rows)


def other_types(train, before: str, target: str, space) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of other cell types over the same step, and their cells after it."""
    shifts, cells = [], []
    for kind in sorted(train.obs["cell_type"].unique()):
        groups = [
            ((train.obs["cell_type"] == kind) & (train.obs["bin"] == b)).to_numpy().nonzero()[0]
            for b in (before, target)
        ]
        if min(map(len, groups)) >= 5:
            a, b = (space.normalise(train.X[g]) for g in groups)
            shifts.append(b.mean(0) - a.mean(0))
            cells.append(space.project(b))
    return np.mean(shifts, axis=0), np.concatenate(cells)


# -------------------------------------------------------------------- samples

SEVERITY = {"Healthy": 0, "Asymptomatic": 1, "Mild": 2, "Moderate": 3, "Severe": 4, "Critical": 5}


def samples(seed: int, arguments) -> pd.DataFrame:
    """Status of the nearest and severity by the five nearest samples of other patients that trained, three folds over patients."""
    adata = scgde.datasets.load("covid_stephenson_pcs")
    label = adata.obs["sample"].astype(str)
    names = sorted(label.unique())
    codes = pd.Categorical(label, names).codes.astype(int)
    first = adata.obs.groupby(label)[["patient", "group", "Status"]].first().astype(str).loc[names]
    patient, status = first["patient"].to_numpy(), first["Status"].to_numpy()
    rank = first["group"].map(SEVERITY).to_numpy(dtype=float)
    people = np.random.default_rng(seed).permutation(np.unique(patient))
    fold = pd.Series(np.arange(len(people)) % 3, index=people).loc[patient].to_numpy()
    x = np.asarray(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X, dtype=float)
    means = np.stack([x[codes == i].mean(0) for i in range(len(names))])
    covs = np.stack([np.cov(x[codes == i].T) for i in range(len(names))])
    share = pd.crosstab(codes, adata.obs["cell_type"].astype(str).to_numpy(), normalize="index").to_numpy()
    logs = np.log(share + 0.01)
    distances = {
        "sample mean": cdist(means, means),
        "Gaussian W2": scgde.ot.pairwise_gaussian_wasserstein(means, covs),
        "composition": cdist(share, share),
        "composition, log-ratio": cdist(*[logs - logs.mean(1, keepdims=True)] * 2),
        "density distance, 10 PCs": knn_divergence(x[:, :10], codes),
    }
    for name in ("scgde, states", "scgde, residual", "scgde, divergence of laws"):
        distances[name] = np.full((len(names),) * 2, np.nan)
    for k in range(3):
        held = np.flatnonzero(fold == k)
        own = np.isin(codes, held)
        for name, choices in ENCODERS.items():
            model, _ = trained(
                adata[~own],
                seed,
                arguments.epochs,
                ["sample"],
                gene_likelihood="normal",
                geometry="emergent",
                **choices,
            )
            frame = model.get_population_embedding(adata.copy()).loc[names]
            z = frame.to_numpy()
            distances[name][held] = cdist(z[held], z)
        log = model.get_log_likelihood(adata.copy(), frame).to_numpy()
        mean = np.stack([log[codes == i].mean(0) for i in range(len(names))])
        divergence = np.diag(mean)[:, None] - mean
        distances["scgde, divergence of laws"][held] = (divergence + divergence.T)[held]
    allowed = (fold[:, None] != fold) & (patient[:, None] != patient)
    known = np.flatnonzero(np.isfinite(rank))
    rows = []
    for name, d in distances.items():
        scored = np.where(allowed, d, np.inf)
        nearest = scored.argmin(1)
        hits = status[nearest] == status
        found = severity(scored, rank, known)
        rng = np.random.default_rng(seed)
        shuffles = [rng.permutation(len(names)) for _ in range(1000)]
        chance = np.array([(status[p][nearest] == status[p]).mean() for p in shuffles])
        ranks = []
        for _ in range(1000):
            other = rank.copy()
            other[known] = rng.permutation(rank[known])
            ranks.append(severity(scored, other, known))
        boot = quantiles(np.array([hits[rng.integers(len(hits), size=len(hits))].mean() for _ in range(1000)]))
        rows.append({"task": "status of the nearest sample", "method": name, "value": hits.mean(), "low": boot[0], "high": boot[1],
                     "p": (1 + (chance >= hits.mean() - 1e-9).sum()) / 1001, "n": len(names)})  # fmt: skip
        rows.append({"task": "severity of the five nearest, Spearman", "method": name, "value": found,
                     "p": (1 + (np.array(ranks) >= found - 1e-9).sum()) / 1001, "n": len(known)})  # fmt: skip
    return pd.DataFrame(rows)


def severity(distance: np.ndarray, rank: np.ndarray, known: np.ndarray, k: int = 5) -> float:
    """Rank correlation of severity with the mean severity of the nearest labelled samples."""
    near = np.argsort(distance[np.ix_(known, known)], axis=1, kind="stable")[:, :k]
    return float(spearmanr(rank[known][near].mean(1), rank[known])[0])


# ------------------------------------------------------------------------ TCR


def tcr(seed: int, arguments) -> pd.DataFrame:
    """Distances between T cells of one clone and of several; no label of the clones that are tested is part of training."""
    adata = scgde.datasets.load("tcr_clones_trex")
    clone = adata.obs["clone"].astype(str)
    counts = clone[clone != "none"].value_counts()
    tested = clone.where(clone.isin(counts.index[counts >= 5]))
    # populations of training are clusters of cells; clones are not told
    components = CellPCA(adata.X, 20, seed)(adata.X)
    cluster = KMeans(5, n_init=10, random_state=seed).fit_predict(components)
    adata.obs["cluster"] = [f"cluster_{k}" for k in cluster]
    model, _ = trained(adata, seed, arguments.epochs, ["cluster"])
    rows = []
    for name, x in {"scgde latent": model.get_latent_representation(), "PCA": components}.items():
        for task, strata in (("all cells", None), ("cells of equal state", adata.obs["cluster"])):
            found = scgde.lineage.clonal_coupling(x, tested, strata, seed=seed)
            low, high = quantiles(found.null)
            rows.append({"task": f"distance within clones over that between, {task}", "method": name, "value": found.ratio,
                         "low": low, "high": high, "p": found.p_value, "n": found.n_pairs})  # fmt: skip
    return pd.DataFrame(rows)
