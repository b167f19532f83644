"""Embeddings of populations that lineage benchmarks compare, and what they are scored by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from _common import CellPCA, group_means, log_normalised, quiet_train
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

import scgde

if TYPE_CHECKING:
    from anndata import AnnData

N_WAVES = 100
N_LANDMARKS = 60
SCVI_STEPS = 2000
"""Steps of training of scVI on large data, about; 100 epochs at most."""


class Baselines:
    """Baselines fitted on training cells; each embeds the populations of any cells.

    Parameters
    ----------
    adata
        Training cells.
    labels
        Population of each; missing for none.
    counts
        Whether rows are counts; else they are principal components already.
    methods
        Names of the baselines to use.
    """

    def __init__(
        self,
        adata: AnnData,
        labels: pd.Series,
        seed: int,
        *,
        counts: bool = True,
        methods: tuple[str, ...] = ("pseudobulk PCA, 10", "pseudobulk PCA, 50", "kernel mean", "exact OT, MDS"),
        n_components: int = 10,
    ) -> None:
        self.methods, self.seed, self.counts = methods, seed, counts
        known = labels.notna().to_numpy()
        codes = pd.factorize(labels[known])[0]
        x = adata.X[known]
        if counts:
            self.target = float(np.median(np.maximum(np.asarray(x.sum(1)).ravel(), 1.0)))
            sample = np.random.default_rng(seed).permutation(adata.n_obs)[:20_000]
            self.components = CellPCA(adata.X[np.sort(sample)], n_components, seed)
            profiles = group_means(self._blocks(x), codes)
            self.pca = PCA(min(50, *(s - 1 for s in profiles.shape)), random_state=seed).fit(profiles)
        cells = self._cells(x)
        rng = np.random.default_rng(seed)
        some = cells[rng.permutation(len(cells))[:1000]]
        distance = np.median(np.linalg.norm(some[:500, None] - some[None, 500:], axis=-1))
        self.waves = rng.normal(size=(cells.shape[1], N_WAVES)) / distance
        if "exact OT, MDS" in methods:
            # landmark multidimensional scaling (de Silva and Tenenbaum 2004): the place of a population follows from its
            # distances to few others
            chosen = rng.permutation(codes.max() + 1)[: min(N_LANDMARKS, codes.max() + 1)]
            place = pd.Series(np.arange(len(chosen)), index=chosen).reindex(codes).to_numpy()
            at = np.isfinite(place)
            self.landmarks = cells[at], place[at].astype(int)
            squared = scgde.ot.pairwise_distances(*self.landmarks, progress=False) ** 2
            centring = np.eye(len(chosen)) - 1 / len(chosen)
            size, axes = np.linalg.eigh(-centring @ squared @ centring / 2)
            top = np.argsort(-size)[: min(n_components, (size > 1e-9 * size.max()).sum())]
            self.mean_squared, self.inverse = squared.mean(0), axes[:, top] / np.sqrt(size[top])
        if "scVI mean" in methods:
            self._train_scvi(adata)

    def _train_scvi(self, adata: AnnData) -> None:
        import scvi

        start = time.process_time()
        cells = adata.copy()
        scvi.settings.seed = self.seed
        scvi.model.SCVI.setup_anndata(cells)
        self.scvi = scvi.model.SCVI(cells)
        epochs = min(100, max(-(-SCVI_STEPS * 512 // adata.n_obs), 15))
        self.scvi.train(epochs, accelerator="cpu", batch_size=min(512, adata.n_obs // 4), enable_progress_bar=False)
        print(f"scVI trained in {time.process_time() - start:.0f} CPU s", flush=True)

    def _blocks(self, x) -> np.ndarray:
        """Log-normalised rows."""
        return log_normalised(x, self.target).astype(np.float32)

    def _cells(self, x) -> np.ndarray:
        """Principal components of cells."""
        if not self.counts:
            return np.asarray(x, dtype=np.float64)
        return np.concatenate([self.components(x[i : i + 20_000]) for i in range(0, x.shape[0], 20_000)])

    def __call__(self, adata: AnnData, labels: pd.Series) -> dict[str, pd.DataFrame]:
        """Embeddings by method, each a frame of populations x coordinates."""
        known = labels.notna().to_numpy()
        codes, names = pd.factorize(labels[known])
        x = adata.X[known]
        cells = self._cells(x)
        found: dict[str, np.ndarray] = {}
        for method in self.methods:
            if method.startswith("pseudobulk"):
                profiles = np.concatenate(
                    [
                        group_means(self._blocks(x[part]), codes[part] - codes[part].min())
                        for part in by_blocks(codes, 20_000)
                    ]
                )
                found[method] = self.pca.transform(profiles)[:, : int(method.rsplit(" ", 1)[1])]
            elif method == "kernel mean":
                angle = cells @ self.waves
                found[method] = group_means(np.concatenate([np.cos(angle), np.sin(angle)], axis=1), codes)
            elif method == "exact OT, MDS":
                points, place = self.landmarks
                d = scgde.ot.pairwise_distances(cells, codes, x_other=points, segment_other=place, progress=False)
                found[method] = (self.mean_squared - d**2) / 2 @ self.inverse
            elif method == "scVI mean":
                found[method] = group_means(self.scvi.get_latent_representation(adata[known].copy()), codes)
            elif method == "cell mean":
                found[method] = group_means(cells, codes)
        return {k: pd.DataFrame(v, index=names) for k, v in found.items()}


def trained(adata, seed: int, epochs: int | None, keys: list[str], **choices) -> tuple[scgde.GDEModel, float]:
    """A model of a copy of the cells, and the CPU seconds of its training."""
    cells = adata.copy()
    scgde.GDEModel.setup_anndata(cells, keys)
    model = scgde.GDEModel(cells, **choices)
    seconds = quiet_train(model, max_epochs=epochs, seed=seed)
    print(f"trained {choices} in {seconds:.0f} CPU s", flush=True)
    return model, seconds


def by_blocks(codes: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows of about ``size`` cells at a time, whole populations, codes in order."""
    order = np.argsort(codes, kind="stable")
    block = (np.cumsum(np.bincount(codes)) // size)[codes[order]]
    return np.split(order, np.flatnonzero(np.diff(block)) + 1)


def shares(adata: AnnData, labels: pd.Series, key: str, states: list[str]) -> pd.DataFrame:
    """Shares of annotated states, populations x states."""
    known = labels.notna().to_numpy()
    table = pd.crosstab(labels[known].to_numpy(), adata.obs[key][known].astype(str).to_numpy())
    table = table.reindex(columns=states, fill_value=0)
    return table.div(table.sum(1).clip(lower=1), axis=0)


def knn_divergence(cells: np.ndarray, codes: np.ndarray, k: int = 25) -> np.ndarray:
    """Symmetrised Kullback-Leibler divergence between densities of populations by nearest neighbours, as GloScope has it.

    (Wang et al. 2024, Genome Biol 25, 246; estimator of Wang, Kulkarni and Verdu 2009, IEEE Trans Inf Theory 55, 2392-2405.)
    """
    n, d = np.bincount(codes), cells.shape[1]
    trees = [cKDTree(cells[codes == i]) for i in range(len(n))]
    own = [trees[i].query(cells[codes == i], k + 1)[0][:, -1] for i in range(len(n))]
    result = np.zeros((len(n), len(n)))
    for i in range(len(n)):
        for j in range(len(n)):
            if i != j:
                other = trees[j].query(cells[codes == i], k)[0][:, -1]
                result[i, j] = d * np.mean(np.log(other / own[i])) + np.log(n[j] / (n[i] - 1))
    return np.maximum(result + result.T, 0)


def split_clones(clones: np.ndarray, seed: int, share: float = 0.5) -> set[str]:
    """Training clones."""
    return set(np.random.default_rng(seed).permutation(clones)[: int(len(clones) * share)])


def by_time(frame: pd.DataFrame, time_label: str) -> pd.DataFrame:
    """Embeddings of one day by clone, from labels ``clone|day``."""
    own = frame[frame.index.str.endswith(f"|{time_label}")]
    return own.set_axis(own.index.str.rsplit("|", n=1).str[0])


def quantiles(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of bootstrap values."""
    return tuple(round(float(q), 3) for q in np.quantile(values, [0.025, 0.975]))


torch.set_num_threads(1)
