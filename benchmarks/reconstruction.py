"""What comes back from an embedding: populations in five dimensions, and paths between populations.

``--part gaussians``: the paper's prior (mean U(0, 5)^5, inverse Wishart covariance, scale 1 and 0.1), every set encoder with
the flow and every generator with the residual encoder, with and without the skeleton; 10,000 points in and out, true W2.
``--part mixtures``: five-dimensional mixtures of three, 10,000 points, squared mixture W2 after a fit started at the truth.
The paper trains on 50,000 sets; 20,000 populations of 128 points train here, for 8 epochs in batches of 64 sets (2,500 steps), with 512 hidden units
and 192 coordinates. A default model, trained for one epoch, is shown beside it.
``--part geodesics``: decoded paths and the line between two embeddings against McCann's geodesic of Gaussians. They train on populations of 1,024 points, in ten
dimensions with 128 coordinates.
``--part midpoints``: the decoded midpoint of two-dimensional mixtures against that of exact transport; 20,000 populations of 128 points
train for 4 epochs in batches of 64 sets, with 256 hidden units. A default model, trained for one epoch, is shown beside it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from _common import options, report
from _suites import Mixture, as_adata, draw_laws, draw_points, draw_wishart, fit_model
from scipy.stats import invwishart

from scgde import ot
from scgde.encoders import ENCODERS
from scgde.generators import GENERATORS
from scgde.paths import path_frames

D, N_POINTS = 5, 10_000
N_GAUSSIANS, N_MIXTURES = 12, 50
"""Test laws: there are many pairs of encoder and generator, and few models of mixtures."""

MIXTURE_EPOCHS, MIXTURE_HIDDEN, MIXTURE_WIDTH, MIXTURE_BATCH = 8, 512, 192, 64
MIDPOINT_POPULATIONS, MIDPOINT_EPOCHS, MIDPOINT_HIDDEN = 20_000, 4, 256
MIXTURE_MODELS = [("shape", "mixture"), ("residual", "flow")]


def seeds_of(arguments) -> range:
    """Seeds of this run; settings are chosen on seeds from 100, and tables made with seeds from 0."""
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def generate(model, x: np.ndarray, codes: np.ndarray, n: int, seed: int) -> list[np.ndarray]:
    """``n`` points of each new population from its embedding."""
    z = model.get_population_embedding(as_adata(x, codes, "t")).sort_index()
    cells = model.sample(z, n, seed=seed)
    return np.split(np.asarray(cells.X, dtype=np.float64), len(z))


def moment_errors(clouds: list[np.ndarray], laws: list[Mixture]) -> dict[str, float]:
    """Mean over laws of the true W2 between the moments of a cloud and its law, and of its two parts."""
    mean, cov = (np.stack(v) for v in zip(*(law.moments() for law in laws), strict=True))
    own = np.stack([c.mean(0) for c in clouds]), np.stack([np.cov(c.T) for c in clouds])
    shift, spread = np.linalg.norm(own[0] - mean, axis=1), ot.bures(own[1], cov)
    return {"W2": np.hypot(shift, spread).mean(), "mean part": shift.mean(), "Bures part": spread.mean()}


def pairs_of_parts() -> list[tuple[str, str, bool]]:
    """Encoder, generator and whether there is a skeleton."""
    chosen = [(encoder, "flow", True) for encoder in ENCODERS]
    chosen += [("residual", generator, True) for generator in GENERATORS if generator != "flow"]
    return chosen + [(encoder, generator, False) for encoder, generator, _ in chosen]


def run_gaussians(arguments) -> None:
    rows = []
    for scale in (float(x) for x in arguments.scales.split(",")):
        for seed in seeds_of(arguments):
            rng = np.random.default_rng([seed, int(10 * scale)])
            laws = [draw_wishart(D, rng, scale) for _ in range(N_GAUSSIANS)]
            x, codes = draw_points(laws, N_POINTS, rng)
            train = draw_points([draw_wishart(D, rng, scale) for _ in range(arguments.populations)], 128, rng)
            given = np.split(x, N_GAUSSIANS)

            def add(method: str, clouds: list[np.ndarray], skeleton, seconds: float = 0.0) -> None:
                rows.append(
                    {"scale": scale, "seed": seed, "method": method, "skeleton": skeleton, "CPU s": seconds}  # noqa: B023
                    | moment_errors(clouds, laws)  # noqa: B023
                )

            add("another draw of the law, sampled once", [law.sample(N_POINTS, rng) for law in laws], "")
            # sampled twice, as every method is: once to be embedded and once to be generated
            add(
                "floor: a normal of own moments",
                [rng.multivariate_normal(c.mean(0), np.cov(c.T), N_POINTS) for c in given],
                "",
            )
            average = ot.sqrtm_psd(np.mean([np.cov(c.T) for c in given], axis=0))
            add("trivial: own mean, average covariance",
                [c.mean(0) + rng.normal(size=c.shape) @ average for c in given], "")  # fmt: skip
            for encoder, generator, skeleton in pairs_of_parts():
                if arguments.only and f"{encoder}+{generator}" not in arguments.only.split(","):
                    continue
                model = fit_model(
                    *train, seed, epochs=arguments.epochs, encoder=encoder, generator=generator, skeleton=skeleton
                )
                # attention is quadratic in the number of points
                subset = slice(None) if encoder != "attention" else np.arange(len(x)) % N_POINTS < 1000
                clouds = generate(model, x[subset], codes[subset], N_POINTS, seed)
                add(f"{encoder} + {generator}", clouds, "yes" if skeleton else "no", model.cpu_seconds)
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    columns = ["W2", "mean part", "Bures part", "CPU s"]
    summary = table.groupby(["scale", "method", "skeleton"], sort=False)[columns].mean().reset_index()
    trivial = summary[summary.method.str.startswith("trivial")].set_index("scale")["W2"]
    summary["worse than trivial"] = np.where(summary.W2 > summary.scale.map(trivial), "worse", "")
    report("reconstruction_gaussians", summary, arguments)


def draw_wide_mixture(rng: np.random.Generator) -> Mixture:
    """The paper's test mixtures: weights Dirichlet(1, 1, 1), means U(0, 5)^5, covariances inverse Wishart(10, I)."""
    covs = np.stack([invwishart(df=10, scale=np.eye(D)).rvs(random_state=rng) for _ in range(3)])
    return Mixture(rng.dirichlet(np.ones(3)), rng.uniform(0, 5, (3, D)), covs)


def run_mixtures(arguments) -> None:
    rows = []
    for seed in seeds_of(arguments):
        rng = np.random.default_rng([seed, 33])
        laws = [draw_wide_mixture(rng) for _ in range(N_MIXTURES)]
        x, codes = draw_points(laws, N_POINTS, rng)
        train = draw_points([draw_wide_mixture(rng) for _ in range(arguments.mixtures)], 128, rng)

        def score(clouds: list[np.ndarray], laws=laws) -> float:
            squared = []
            for cloud, law in zip(clouds, laws, strict=True):
                fit = ot.fit_gaussian_mixture(
                    cloud, 3, means_init=law.means, weights_init=law.weights, covs_init=law.covs
                )
                squared.append(ot.mixture_wasserstein(*fit, law.weights, law.means, law.covs, squared=True))
            return float(np.mean(squared))

        rows.append(
            {
                "seed": seed,
                "method": "floor: another draw",
                "MW2 squared": score([law.sample(N_POINTS, rng) for law in laws]),
            }
        )
        own = [rng.multivariate_normal(c.mean(0), np.cov(c.T), N_POINTS) for c in np.split(x, N_MIXTURES)]
        rows.append({"seed": seed, "method": "own moments, normal", "MW2 squared": score(own)})
        for encoder, generator in MIXTURE_MODELS:
            wide = {"n_hidden": MIXTURE_HIDDEN, "n_embedding": MIXTURE_WIDTH} if encoder == "shape" else {}
            sets = {"cells_per_population": 128, "populations_per_batch": MIXTURE_BATCH}
            epochs = arguments.epochs or (MIXTURE_EPOCHS if wide else 1)
            model = fit_model(*train, seed, epochs=epochs, encoder=encoder, generator=generator, train=sets, **wide)
            clouds = generate(model, x, codes, N_POINTS, seed)
            method = f"{encoder} + {generator}"
            rows.append({"seed": seed, "method": method, "MW2 squared": score(clouds), "CPU s": model.cpu_seconds})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby("method", sort=False)[["MW2 squared", "CPU s"]].mean().reset_index()
    report("reconstruction_mixtures", table, arguments)


def decoded_moments(model, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of decoded cells as the skeleton gives them, in the units of the points."""
    observation = model.module.observation
    with torch.no_grad():
        mean, root = model.module.skeleton(torch.from_numpy(z.astype(np.float32)))
        root = root * observation.scale
        mean = mean * observation.scale + observation.centre
    return mean.double().numpy(), (root @ root.mT).double().numpy()


def path_moments(model, source: np.ndarray, target: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the decoded step at ``t``, in the units of the points, for each pair of embeddings."""
    observation = model.module.observation
    scale, centre = float(observation.scale), observation.centre.double().numpy()
    frames = [path_frames(model.module, a, b, np.array([t])) for a, b in zip(source, target, strict=True)]
    mean, root = (np.concatenate(x) for x in zip(*frames, strict=True))
    return mean * scale + centre, root @ root * scale**2


def gaussian_path_errors(model, laws: list[Mixture], x, codes, rng: np.random.Generator) -> dict:
    """Errors along paths between 200 pairs, as shares of the endpoints' distance.

    Of the moments of decoded steps; of those that points on the line between the embeddings would be decoded with; and of both kinds
    of path in the moments of the points that are embedded, which is what an exact embedding would give. The straight line in
    mean and root covariance of the law has no sampling error.
    """
    given = np.split(x, len(laws))
    own = np.stack([g.mean(0) for g in given]), ot.sqrtm_psd(np.stack([np.cov(g.T) for g in given]))
    z = model.get_population_embedding(as_adata(x, codes, "t")).sort_index().to_numpy()
    i, j = rng.choice(len(laws), (2, 400))
    i, j = i[i != j][:200], j[i != j][:200]
    mean, cov = (np.stack(v) for v in zip(*(law.moments() for law in laws), strict=True))
    root, length = ot.sqrtm_psd(cov), ot.gaussian_wasserstein(mean[i], cov[i], mean[j], cov[j])
    own_cov = own[1] @ own[1]
    errors: dict[str, list] = {}
    for t in (0.25, 0.5, 0.75):
        truth = ot.gaussian_geodesic(mean[i], cov[i], mean[j], cov[j], t)
        methods = {"scgde": path_moments(model, z[i], z[j], t)}
        methods["line between embeddings"] = decoded_moments(model, (1 - t) * z[i] + t * z[j])
        for name, (m, r) in {"line in moments": (mean, root), "line in own moments": own}.items():
            middle = (1 - t) * r[i] + t * r[j]
            methods[name] = (1 - t) * m[i] + t * m[j], middle @ middle
        methods["geodesic of own moments"] = ot.gaussian_geodesic(own[0][i], own_cov[i], own[0][j], own_cov[j], t)
        for name, law in methods.items():
            errors.setdefault(name, []).append(ot.gaussian_wasserstein(*law, *truth) / length)
    out = {}
    for name, values in errors.items():
        out[f"{name}, median"], out[f"{name}, 95th"] = np.percentile(np.concatenate(values), [50, 95])
    return out


def mixture_midpoint_ratio(model, method: str, labels: list[str], laws, adata, pairs, rng, seed: int) -> float:
    """W2 of a path's midpoint to an exact-transport midpoint, over that of two independent such midpoints."""
    n, ratios, floors = 1000, [], []
    for a, b in pairs:
        midpoints = [
            ot.displacement_interpolation(laws[a].sample(n, rng), laws[b].sample(n, rng), 0.5) for _ in range(2)
        ]
        path = model.interpolate(labels[a], labels[b], n_steps=3, n_cells=n, method=method, adata=adata, seed=seed)
        middle = np.asarray(path[path.obs["gde_t"] == 0.5].X, dtype=np.float64)
        ratios.append(np.mean([ot.wasserstein(middle, m) for m in midpoints]))
        floors.append(ot.wasserstein(*midpoints))
    return float(np.mean(ratios) / np.mean(floors))


def run_geodesics(arguments) -> None:
    rows = []
    for d, centred in ((2, False), (2, True), (10, False), (10, True)):
        for seed in seeds_of(arguments):
            rng = np.random.default_rng([seed, d, 5])
            train = draw_points(draw_laws("gaussians", d, 256, rng, centred=centred), 1024, rng)
            # ten dimensions have 65 moments, one more than the default embedding
            model = fit_model(*train, seed, epochs=arguments.epochs, n_embedding=64 if d == 2 else 128)
            laws = draw_laws("gaussians", d, 40, rng, centred=centred)
            x, codes = draw_points(laws, N_POINTS, rng)
            rows.append({"d": d, "centred": centred, "seed": seed} | gaussian_path_errors(model, laws, x, codes, rng))
    table = pd.DataFrame(rows).groupby(["d", "centred"], sort=False).mean().drop(columns="seed").reset_index()
    report("reconstruction_geodesics", table, arguments)


def run_midpoints(arguments) -> None:
    rows = []
    for seed in seeds_of(arguments):
        rng = np.random.default_rng([seed, 2, 6])
        train = draw_points(draw_laws("mixtures", 2, MIDPOINT_POPULATIONS, rng), 128, rng)
        laws = draw_laws("mixtures", 2, 20, rng)
        adata = as_adata(*draw_points(laws, 1000, rng), "t")
        labels = sorted(adata.obs["population"].unique())
        pairs = [(k, k + 1) for k in range(0, 20, 2)]
        for encoder, generator in MIXTURE_MODELS:
            wide = {"n_hidden": MIDPOINT_HIDDEN} if encoder == "shape" else {}
            sets = {"cells_per_population": 128, "populations_per_batch": MIXTURE_BATCH}
            epochs = arguments.epochs or (MIDPOINT_EPOCHS if wide else 1)
            model = fit_model(*train, seed, epochs=epochs, encoder=encoder, generator=generator, train=sets, **wide)
            for method in ("latent", "displacement"):
                ratio = mixture_midpoint_ratio(model, method, labels, laws, adata, pairs, rng, seed)
                rows.append({"seed": seed, "model": f"{encoder} + {generator}", "method": method, "ratio": ratio})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby(["model", "method"], sort=False)["ratio"].mean().reset_index()
    report("reconstruction_midpoints", table, arguments)


if __name__ == "__main__":
    arguments = options(
        __doc__,
        part="gaussians,mixtures,geodesics,midpoints",
        populations=2000,
        mixtures=20_000,
        only="",
        scales="1,0.1",
        **{"first-seed": 0},
    )
    parts = {"gaussians": run_gaussians, "mixtures": run_mixtures}
    parts |= {"geodesics": run_geodesics, "midpoints": run_midpoints}
    for part in arguments.part.split(","):
        parts[part](arguments)
