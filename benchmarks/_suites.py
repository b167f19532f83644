"""Laws of the synthetic geometry suites, their true distances and the free estimators of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from _common import quiet_train
from anndata import AnnData
from scipy.stats import invwishart, spearmanr

import scgde
from scgde import ot

CACHE = Path(__file__).parent / "results" / "cache"
N_TRAIN, N_TEST, SIZE_TRAIN, SIZE_TEST, SIZE_CEILING = 256, 64, 128, 64, 500


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians; a Gaussian is a mixture of one.

    Attributes
    ----------
    weights, means, covs
        ``(c,)``, ``(c, d)`` and ``(c, d, d)``.
    """

    weights: np.ndarray
    means: np.ndarray
    covs: np.ndarray

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """``(n, d)`` independent points."""
        component = rng.choice(len(self.weights), n, p=self.weights)
        roots = ot.sqrtm_psd(self.covs)
        noise = rng.normal(size=(n, self.means.shape[1]))
        return self.means[component] + np.einsum("nij,nj->ni", roots[component], noise)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``(d,)`` and covariance ``(d, d)`` of the law."""
        mean = self.weights @ self.means
        centred = self.means - mean
        second = self.covs + centred[:, :, None] * centred[:, None, :]
        return mean, np.einsum("c,cij->ij", self.weights, second)

    def centred(self) -> Mixture:
        """The same law about its mean."""
        return replace(self, means=self.means - self.moments()[0])


def draw_gaussian(d: int, rng: np.random.Generator) -> Mixture:
    """Mean U(0, 5)^d, covariance A A' / (d + 2) times U(0.3, 2)."""
    a = rng.normal(size=(d, d + 2))
    return Mixture(np.ones(1), rng.uniform(0, 5, (1, d)), (a @ a.T / (d + 2) * rng.uniform(0.3, 2))[None])


def draw_mixture(d: int, rng: np.random.Generator) -> Mixture:
    """Three components, weights Dirichlet(1, 1, 1), means U(0, 5)^d, covariances A A' / (d + 2) times 0.25."""
    a = rng.normal(size=(3, d, d + 2))
    return Mixture(rng.dirichlet(np.ones(3)), rng.uniform(0, 5, (3, d)), a @ a.transpose(0, 2, 1) / (d + 2) * 0.25)


def draw_wishart(d: int, rng: np.random.Generator, scale: float) -> Mixture:
    """The prior of the paper's tables: mean U(0, 5)^d, covariance inverse of Wishart(10 (d - 1), scale I)."""
    cov = invwishart(df=10 * (d - 1), scale=np.eye(d) / scale).rvs(random_state=rng)
    return Mixture(np.ones(1), rng.uniform(0, 5, (1, d)), np.asarray(cov).reshape(1, d, d))


DRAW = {"gaussians": draw_gaussian, "mixtures": draw_mixture}


def draw_laws(family: str, d: int, n: int, rng: np.random.Generator, *, centred: bool = False) -> list[Mixture]:
    """``n`` laws of a suite."""
    laws = [DRAW[family](d, rng) for _ in range(n)]
    return [law.centred() for law in laws] if centred else laws


def draw_points(laws: list[Mixture], n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``n`` points of every law: flat rows and codes."""
    return np.concatenate([law.sample(n, rng) for law in laws]), np.repeat(np.arange(len(laws)), n)


def draw_pairs(n: int, n_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """``(2, p)`` distinct pairs of ``n`` things: all of them, or ``n_pairs`` at random."""
    pairs = np.stack(np.triu_indices(n, 1))
    return pairs if pairs.shape[1] <= n_pairs else pairs[:, rng.choice(pairs.shape[1], n_pairs, replace=False)]


def gaussian_truth(laws: list[Mixture], pairs: np.ndarray) -> np.ndarray:
    """Closed-form W2 of pairs of Gaussian laws, ``(p,)``; of their moments where they are mixtures."""
    mean, cov = (np.stack(x) for x in zip(*(law.moments() for law in laws), strict=True))
    i, j = pairs
    return ot.gaussian_wasserstein(mean[i], cov[i], mean[j], cov[j])


def exact_pairs(points: list[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Exact W2 of pairs of clouds, ``(p,)``."""
    return np.array([ot.wasserstein(points[i], points[j]) for i, j in pairs.T])


def mixture_truth(laws: list[Mixture], pairs: np.ndarray, n: int, rng: np.random.Generator, name: str) -> np.ndarray:
    """Exact W2 between fresh draws of ``n`` points, kept in a cache under ``name``: hours for thousands of pairs.

    Points are centred first and the distance of the *true* means is put back, which takes the noise of means out of the
    estimate and lets the centred suite use the same computation.
    """
    path = CACHE / f"{name}.npy"
    if path.exists():
        return np.load(path)
    points = [p - p.mean(0) for p in (law.sample(n, rng) for law in laws)]
    centred = exact_pairs(points, pairs)
    CACHE.mkdir(parents=True, exist_ok=True)
    np.save(path, centred)
    return centred


@dataclass(frozen=True)
class Suite:
    """One draw of the populations of a suite.

    Attributes
    ----------
    laws
        Laws of the test populations.
    pairs
        Pairs of them that are scored, ``(2, p)``.
    truth
        W2 of the pairs, ``(p,)``.
    tests
        Points and codes of the test populations, by the number of points of each.
    train
        Points and codes of the training populations.
    """

    laws: list[Mixture]
    pairs: np.ndarray
    truth: np.ndarray
    tests: dict[int, tuple[np.ndarray, np.ndarray]]
    train: tuple[np.ndarray, np.ndarray]


def draw_suite(
    family: str,
    d: int,
    centred: bool,
    seed: int,
    *,
    n_pairs: int = 300,
    n_truth: int = 2000,
    sizes: tuple[int, ...] = (),
) -> Suite:
    """64 test populations of 64 points (and of other ``sizes``), 256 training populations of 128.

    The truth is in closed form for Gaussians. For mixtures it is exact W2 between fresh draws of ``n_truth`` points, which the
    centred suite shares: with the distance of the means put back it is that of the laws as they are.
    """
    rng = np.random.default_rng([seed, d, family == "mixtures"])
    plain = draw_laws(family, d, N_TEST, rng)
    pairs = draw_pairs(N_TEST, n_pairs, rng)
    laws = [law.centred() for law in plain] if centred else plain
    if family == "gaussians":
        truth = gaussian_truth(laws, pairs)
    else:
        name = f"mixtures_{d}_{seed}_{n_pairs}_{n_truth}"
        truth = mixture_truth(plain, pairs, n_truth, np.random.default_rng([seed, d, 7]), name)
        mean = np.stack([law.moments()[0] for law in laws])
        truth = np.hypot(truth, np.linalg.norm(mean[pairs[0]] - mean[pairs[1]], axis=1))
    rng = np.random.default_rng([seed, d, family == "mixtures", centred, 1])
    train = draw_points(draw_laws(family, d, N_TRAIN, rng, centred=centred), SIZE_TRAIN, rng)
    tests = {n: draw_points(laws, n, rng) for n in (SIZE_TEST, *sizes)}
    return Suite(laws, pairs, truth, tests, train)


def free_estimators(
    x: np.ndarray, codes: np.ndarray, pairs: np.ndarray, *, exact: bool = True
) -> dict[str, np.ndarray]:
    """Distances of pairs that need no training, from the same points."""
    i, j = pairs
    groups = np.split(x, np.flatnonzero(np.diff(codes)) + 1)
    mean = np.stack([g.mean(0) for g in groups])
    cov = np.stack([np.atleast_2d(np.cov(g.T)) for g in groups])
    root = ot.sqrtm_psd(cov)
    spread = np.sqrt(((root[i] - root[j]) ** 2).sum((1, 2)))
    distances = {
        "mean": np.linalg.norm(mean[i] - mean[j], axis=1),
        "mean + root covariance": np.hypot(np.linalg.norm(mean[i] - mean[j], axis=1), spread),
        "Bures": ot.gaussian_wasserstein(mean[i], cov[i], mean[j], cov[j]),
        "sliced W2": ot.pairwise_distances(x, codes, metric="sliced", progress=False)[i, j],
    }
    if exact:
        distances["exact OT"] = exact_pairs(groups, pairs)
    return distances


def ceiling(suite: Suite, family: str, seed: int) -> np.ndarray:
    """The best free estimator on another, larger draw of the same laws."""
    x, codes = draw_points(suite.laws, SIZE_CEILING, np.random.default_rng([seed, 8]))
    name = "Bures" if family == "gaussians" else "exact OT"
    return free_estimators(x, codes, suite.pairs, exact=family == "mixtures")[name]


def rank(distance: np.ndarray, truth: np.ndarray) -> float:
    """Spearman correlation."""
    return float(spearmanr(distance, truth).statistic)


def as_adata(x: np.ndarray, codes: np.ndarray, prefix: str = "p") -> AnnData:
    """Points as rows of ``obsm["points"]``, codes as labels in order."""
    adata = AnnData(np.zeros((len(x), 1), dtype=np.float32))
    adata.obsm["points"] = x.astype(np.float32)
    adata.obs["population"] = [f"{prefix}{code:05d}" for code in codes]
    return adata


def fit_model(x: np.ndarray, codes: np.ndarray, seed: int, *, epochs: int | None = None, **options) -> scgde.GDEModel:
    """A model of continuous points trained on all of them; its CPU seconds are in ``model.cpu_seconds``."""
    adata = as_adata(x, codes)
    scgde.GDEModel.setup_anndata(adata, "population", obsm_key="points")
    train_options = options.pop("train", {})
    model = scgde.GDEModel(adata, **options)
    model.cpu_seconds = quiet_train(model, max_epochs=epochs, seed=seed, train_size=1.0, **train_options)
    return model


def embed_points(model: scgde.GDEModel, x: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Embeddings of new populations in the units of the points, in the order of their codes."""
    z = model.get_population_embedding(as_adata(x, codes, "t")).sort_index()
    return z.to_numpy(dtype=np.float64) * float(model.module.observation.scale)


def model_distances(model: scgde.GDEModel, x: np.ndarray, codes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Distances of pairs of new populations in the units of the points, ``(p,)``."""
    z = embed_points(model, x, codes)
    return np.linalg.norm(z[pairs[0]] - z[pairs[1]], axis=1)
