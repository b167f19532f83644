"""Two conditions, several donors: size and power of ``tl.test_groups``, its interval, and three real designs.

`power`: donors whose three cell states have means, spreads and shares that vary from donor to donor, by 0.2 and by
0.5 of the SD of cells within a state. One model with default settings is trained on 24 donors of the same law and 12
each whose mean, spread or proportions are changed; it never sees which are which. Studies of n + n donors are drawn
from these 60 again and again, their moments being of the cells of all 60: null studies are random assignments of the 24 (so few of them are independent, at most
24 / (2 n) of a model at a time), power studies draw n of the 24 and n of a changed law. Pseudobulk principal
components and shares of clusters are of the cells of all 60 donors, as the embeddings are. All methods permute the
same donors in the same ways. The transformation by S^(-1/4) and the parts that are compared were chosen on seed 0, so seeds here start at 1. The test
of cells takes the groups of a null study as two populations. `sizes`: null studies whose groups differ in numbers of
donors, of cells of a donor, and in depth, by the default call, and without matching. `intervals`: normal replicates with scales of directions
falling by 0.7 or 0.9, a difference of random direction and given length in units of a replicate's whole SD. `real`:
one model each.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from _common import CellPCA, PseudobulkPCA, group_means, options, quiet_train, report, seeds
from sklearn.cluster import KMeans

import scgde
from scgde.observations.thinning import thin_counts
from scgde.tl._moments import population_moments
from scgde.tl._permanova import distance_interval, permanova

DONORS = {"null": 24, "mean": 12, "spread": 12, "proportions": 12}
SHARES = np.array([0.5, 0.3, 0.2])
# changes that put power between its limits, by SD of donors: shift in SDs of a donor, factor of covariances, shares
CHANGES = {
    0.2: {"mean": 2.5, "spread": 1.35, "proportions": (0.42, 0.3, 0.28)},
    0.5: {"mean": 2.0, "spread": 1.65, "proportions": (0.25, 0.3, 0.45)},
}


def simulate(seed: int, sd: float, n_cells: int) -> object:
    """Cells of all donors, with ``obs["donor"]`` as KIND_NUMBER."""
    base = scgde.datasets.simulate_populations(
        3, design="independent", n_genes=200, cells_per_population=(1, 1), seed=seed
    )
    truth, rng = base.uns["simulation"], np.random.default_rng([seed, round(100 * sd)])
    mean, covariance, change = truth["mean"], truth["covariance"], CHANGES[sd]
    step = sd * np.sqrt(np.mean([np.trace(c) / len(c) for c in covariance]))
    line = rng.normal(size=mean.shape[1])
    line *= change["mean"] * step / np.linalg.norm(line)
    labels, means, covariances, counts = [], [], [], []
    for kind, n in DONORS.items():
        shares = np.array(change["proportions"]) if kind == "proportions" else SHARES
        for i in range(n):
            shift = step * rng.normal(size=mean.shape[1]) + (line if kind == "mean" else 0)
            factor = np.exp(0.4 * sd * rng.normal()) * (change["spread"] if kind == "spread" else 1)
            counts.append(rng.multinomial(n_cells, rng.dirichlet(shares * 10 / sd)))
            labels += [f"{kind}_{i}|{state}" for state in range(3)]
            means.append(mean + shift)
            covariances.append(covariance * factor)
    source = base[:1].copy()
    laws = {"populations": np.array(labels), "mean": np.concatenate(means), "covariance": np.concatenate(covariances)}
    source.uns["simulation"] = truth | laws | {"w2": np.zeros(0)}
    cells = scgde.datasets.simulate_cells(source, labels, n_cells, seed=seed)
    kept = np.concatenate([n_cells * k + np.arange(m) for k, m in enumerate(np.concatenate(counts))])
    cells = cells[kept].copy()
    del cells.uns["simulation"]
    cells.obs["donor"] = cells.obs["population"].astype(str).str.split("|").str[0].astype("category")
    return cells


def train(adata, keys, epochs, seed: int, setup=None, **settings):
    scgde.GDEModel.setup_anndata(adata, population_key=keys, **(setup or {}))
    model = scgde.GDEModel(adata, **settings)
    seconds = quiet_train(model, max_epochs=epochs, seed=seed)
    return model, seconds


def power(arguments) -> None:
    rows, seconds = [], []
    for seed in seeds(arguments):
        for sd in CHANGES:
            adata = simulate(seed, sd, arguments.cells)
            model, spent = train(adata, "donor", arguments.epochs, seed)
            seconds.append(spent)
            z = model.get_population_embedding()
            codes, kinds = z.index.get_indexer(adata.obs["donor"]), z.index.str.split("_").str[0]
            every = np.arange(adata.n_obs)
            same = np.zeros(adata.n_obs, dtype=int)
            moments = population_moments(model, model._table(), every, codes, same, None, np.random.default_rng(0))[:2]
            parts = (z.to_numpy(float), *moments)
            pseudobulk = PseudobulkPCA(adata.X, codes, 10)(adata.X, codes)
            clusters = KMeans(8, n_init=3, random_state=seed).fit_predict(CellPCA(adata.X, 20, seed)(adata.X))
            vectors = {
                "scgde": (parts, True),
                "scgde, plain distances": (parts, False),
                "embeddings alone": (z.to_numpy(float), True),
                "moments alone": (moments, True),
                "pseudobulk PCA": (pseudobulk, False),
                "pseudobulk PCA, S^-1/4": (pseudobulk, True),
                "cluster shares": (np.sqrt(group_means(np.eye(8)[clusters], codes)), False),
                "true latents, mean": (group_means(adata.obsm["X_true_latent"], codes), True),
            }
            rng = np.random.default_rng(seed)
            for n in (3, 4, 8):
                for kind in DONORS:
                    for r in range(arguments.null_studies if kind == "null" else arguments.studies):
                        some = rng.choice(
                            np.flatnonzero(kinds == "null"), 2 * n if kind == "null" else n, replace=False
                        )
                        if kind != "null":
                            some = np.concatenate([some, rng.choice(np.flatnonzero(kinds == kind), n, replace=False)])
                        groups, draw = np.repeat([0, 1], n), int(rng.integers(2**31))
                        # three donors a side cannot reach 0.05
                        level = 0.1 if n == 3 else 0.05
                        row = {"donor_sd": sd, "change": kind, "n": f"{n}+{n}", "level": level, "seed": seed}
                        for name, (x, spread) in vectors.items():
                            chosen = [part[some] for part in x] if isinstance(x, tuple) else x[some]
                            test = permanova(
                                chosen, groups, np.random.default_rng(draw), n_permutations=199, spread=spread
                            )
                            row[name] = float(test.p_value <= level + 1e-9)
                        if kind == "null" and r < arguments.cell_tests:
                            row["test of cells"] = cell_test(model, z.index[some], groups, draw, level)
                        rows.append(row)
            print(f"seed {seed} donor SD {sd}: {spent:.0f} CPU s of training", flush=True)
    table = pd.DataFrame(rows)
    names = list(table.columns[5:])
    by_seed = table[table["change"] == "null"].groupby(["donor_sd", "n", "seed"])["scgde"].mean()
    shares = table.groupby(["change", "donor_sd", "n", "level"], sort=False)[names].mean().reset_index()
    report(
        "groups",
        shares,
        arguments,
        training_seconds=[round(s) for s in seconds],
        size_range_4=[float(v) for v in by_seed.xs("4+4", level="n").agg(["min", "max"])],
        size_range_8=[float(v) for v in by_seed.xs("8+8", level="n").agg(["min", "max"])],
    )


def cell_test(model, labels, groups: np.ndarray, seed: int, level: float) -> float:
    """Whether cells of the two groups differ, as one population each."""
    donor = model.adata.obs["donor"].astype(str)
    group = donor.map(dict(zip(labels, np.array(["a", "b"])[groups], strict=True)))
    cells = model.adata[group.notna().to_numpy()].copy()
    cells.obs["donor"] = group.dropna().to_numpy()
    table = scgde.tl.test_populations(model, "a", "b", adata=cells, n_permutations=99, seed=seed)
    return float(table["p_value"][0] <= level)


UNEQUAL = {
    # donors of each group, least and most cells of a donor in each, share of the reads that the first group keeps
    "equal": ((4, 8), ((80, 80), (80, 80)), 1.0),
    "8 cells against 80": ((8, 8), ((8, 8), (80, 80)), 1.0),
    "8 against 80, few donors have few": ((4, 8), ((8, 8), (80, 80)), 1.0),
    "8 against 80, many donors have few": ((8, 4), ((8, 8), (80, 80)), 1.0),
    "20 to 80 against 80": ((4, 8), ((20, 80), (80, 80)), 1.0),
    "1 to 3 against 60": ((8, 8), ((1, 3), (60, 60)), 1.0),
    "a quarter of the reads": ((4, 8), ((80, 80), (80, 80)), 0.25),
    "a quarter of the reads, 8 cells against 80": ((8, 8), ((8, 8), (80, 80)), 0.25),
}


def unequal_study(adata, design: str, seed: int):
    """Cells of donors of one law in two groups of a design."""
    numbers, cells, share = UNEQUAL[design]
    rng = np.random.default_rng([seed, list(UNEQUAL).index(design)])
    donor = adata.obs["donor"].astype(str).to_numpy()
    chosen = rng.choice(np.unique(donor), sum(numbers), replace=False)
    rows, groups, keep = [], [], []
    for k, name in enumerate(chosen):
        group = int(k >= numbers[0])
        own = rng.permutation(np.flatnonzero(donor == name))[: rng.integers(cells[group][0], cells[group][1] + 1)]
        rows.append(own)
        groups += ["ab"[group]] * len(own)
        keep += [1.0 if group else share] * len(own)
    study = adata[np.concatenate(rows)].copy()
    study.X = thin_counts(study.X.tocsr(), np.array(keep), rng)
    study.obs["group"] = groups
    return study


def sizes(arguments) -> None:
    """Size of the default call where numbers of cells and depths go with the groups."""
    rows = []
    for seed in seeds(arguments):
        for sd in CHANGES:
            adata = simulate(seed, sd, arguments.cells)
            adata = adata[adata.obs["donor"].str.startswith("null")].copy()
            model, _ = train(adata, "donor", arguments.epochs, seed)
            for design in UNEQUAL:
                for r in range(arguments.sizes):
                    study = unequal_study(adata, design, 1000 * seed + r)
                    row = {
                        "design": design,
                        "donors": "{}+{}".format(*UNEQUAL[design][0]),
                        "donor_sd": sd,
                        "seed": seed,
                    }
                    call = {"replicate_key": "donor", "adata": study, "n_permutations": 199, "seed": r}
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        test = scgde.tl.test_groups(model, "group", **call).iloc[0]
                        plain = scgde.tl.test_groups(model, "group", match_cells=False, **call).iloc[0]
                    row |= {"p <= .05": test["p_value"] <= 0.05, "cells matched": test["matched_cells"]}
                    row |= {"depths matched": test["matched_depth"], "all cells, p <= .05": plain["p_value"] <= 0.05}
                    rows.append(row)
            print(f"sizes, seed {seed}, donor SD {sd}: done", flush=True)
    table = pd.DataFrame(rows).astype({"donor_sd": str, "seed": str})
    shares = table.groupby(["design", "donors", "donor_sd"], sort=False).mean(numeric_only=True).reset_index()
    report("groups_sizes", shares, arguments)


def intervals(arguments) -> None:
    rows, rng = [], np.random.default_rng(1)
    for design in ("groups", "pairs"):
        for n in (3, 4, 8, 16):
            groups = np.repeat([0, 1], n) if design == "groups" else np.tile([0, 1], n)
            block = None if design == "groups" else np.repeat(np.arange(n), 2)
            row = {"design": design, "n": n}
            for delta in (0.0, 0.5, 1.0, 2.0):
                covered, estimates = [], []
                for r in range(arguments.intervals):
                    scale = np.array([0.7, 0.9])[r % 2] ** np.arange(16 if r % 2 == 0 else 64)
                    line = rng.normal(size=len(scale)) * scale
                    shift = delta * np.linalg.norm(scale) * line / np.linalg.norm(line)
                    x = rng.normal(size=(2 * n, len(scale))) * scale + groups[:, None] * shift
                    estimate, low, high = distance_interval(x, groups, block=block)
                    covered.append(low <= shift @ shift <= high)
                    estimates.append((estimate - shift @ shift) / np.square(scale).sum())
                row[f"coverage at {delta:g}"] = np.mean(covered)
                row[f"bias at {delta:g}"] = np.mean(estimates)
            rows.append(row)
    report("groups_intervals", pd.DataFrame(rows), once(arguments))


def tested(name: str, model, groupby: str, keys: dict, rows: list, profiles=None, seed: int = 0, **more) -> None:
    """Append one row for each test, with the p-value of pseudobulk profiles of the same replicates where given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = scgde.tl.test_groups(model, groupby, **keys, seed=seed, **more)
    for _, row in table.iterrows():
        kept = ["n_replicates", "n_arrangements", "smallest_p", "p_value", "distance", "distance_low", "distance_high"]
        label = name if "stratum" not in row else f"{name}, {row['stratum']}"
        rows.append({"set": label, **{k: row[k] for k in kept}, "pseudobulk p": profiles})


def real(arguments) -> None:
    rows, facts = [], {}
    rng = np.random.default_rng(0)
    # sixteen samples of eight patients
    adata = scgde.datasets.load("cytof_bcrxl_16samples")
    x = np.asarray(adata.X, dtype=float)
    model, facts["cytof_seconds"] = train(adata, "sample", arguments.epochs, 0, gene_likelihood="normal")
    unit = adata.obs.drop_duplicates("sample").set_index("sample").sort_index()
    profile = group_means(x, pd.Categorical(adata.obs["sample"], categories=unit.index).codes)
    groups, block = (unit["condition"] == "BCRXL").to_numpy().astype(int), pd.factorize(unit["patient"])[0]
    p = permanova(profile, groups, rng, block=block, spread=False).p_value
    tested("BCR-XL, paired", model, "condition", {"replicate_key": "sample", "block_key": "patient"}, rows, p)
    p = permanova(profile, groups, rng, spread=False).p_value
    tested("BCR-XL, pairs ignored", model, "condition", {"replicate_key": "sample"}, rows, p)
    # no treatment: four unstimulated patients against the other four
    rest = adata[(adata.obs["condition"] == "Ref").to_numpy()].copy()
    cells = []
    for r in range(arguments.cell_tests):
        first = rng.choice(np.unique(rest.obs["patient"].astype(str)), 4, replace=False)
        fake = rest.copy()
        fake.obs["sample"] = np.where(rest.obs["patient"].isin(first), "a", "b")
        fake = fake[rng.permutation(fake.n_obs)[:4000]].copy()
        test = scgde.tl.test_populations(model, "a", "b", adata=fake, n_permutations=99, seed=r)
        cells.append(float(test["p_value"][0] <= 0.05))
    facts["cytof_cell_test_of_unstimulated_patients"] = float(np.mean(cells))

    # 37 samples of 32 people
    adata = scgde.datasets.load("covid_stephenson_pcs")
    model, facts["covid_seconds"] = train(adata, "sample", arguments.epochs, 0, gene_likelihood="normal")
    obs = adata.obs.astype(str)
    everyone, described = np.ones(len(obs), dtype=bool), (obs["Sex"] != "unknown").to_numpy()
    for name, mask, covariates in (
        ("COVID-19 and healthy", everyone, None),
        ("the same, sex and age known", described, None),
        ("the same, sex and age regressed out", described, ["Sex", "age"]),
    ):
        part = adata[mask].copy()
        part.obs["age"] = part.obs["Age_interval"].astype(str).str.extract(r"(\d+)")[0].astype(float).to_numpy()
        unit = part.obs.drop_duplicates("patient").set_index("patient").sort_index()
        profile = group_means(np.asarray(part.X, dtype=float), pd.Categorical(part.obs["patient"], unit.index).codes)
        design = None
        if covariates:
            design = np.stack([pd.factorize(unit["Sex"])[0], unit["age"].to_numpy()], axis=1).astype(float)
        p = permanova(profile, pd.factorize(unit["Status"])[0], rng, covariates=design, spread=False).p_value
        tested(name, model, "Status", {"replicate_key": "patient", "covariates": covariates}, rows, p, adata=part)

    # two donors before and after interferon
    adata = scgde.datasets.load("kang_ifnb_donors")
    model, facts["kang_seconds"] = train(adata, ["sample", "cell_type"], arguments.epochs, 0)
    keys = {"replicate_key": "sample", "block_key": "donor", "stratify_by": "cell_type"}
    tested("IFN-beta, two donors", model, "condition", keys, rows)
    report("groups_real", pd.DataFrame(rows), once(arguments), **facts)


def once(arguments):
    """Options of parts that do not go over seeds."""
    return argparse.Namespace(**vars(arguments) | {"seeds": 1})


if __name__ == "__main__":
    arguments = options(
        __doc__,
        part="all",
        first_seed=1,
        cells=80,
        studies=150,
        null_studies=400,
        sizes=40,
        cell_tests=10,
        intervals=400,
    )
    for part in (power, sizes, intervals, real):
        if arguments.part == "all" or part.__name__ in arguments.part.split(","):
            part(arguments)
