"""Replicate retrieval on real data: does a population find its own other half?

Half of each population's cells train. The other half is redrawn into two halves 20 times, whole and thinned to 5-50 cells;
each half is embedded as a new population and ranks all other halves by distance. Score: mean reciprocal rank (MRR) of the
own other half, both ways. The contrast term of the model was chosen on papalexi and tapseq with seeds 0 and 1, the weight of the
latent's axes (--expression-weight) too, and the width of its latent with seeds 100 and 101: report these two sets on other seeds (--first-seed). The bar of each data set is at the largest
size at which the best baseline is at most 0.9.

A second table has embeddings beside the means of ``u`` of the same model in small halves, where the spread of a population is mostly
noise.

scVI and exact OT take most of the time and do not change with the model: with --peers 0 their columns are kept from the last
results of the same seeds and redraws; where there are none, the script stops.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import scvi
from _common import RESULTS, CellPCA, PseudobulkPCA, group_means, options, quiet_train, report
from scipy.spatial.distance import cdist

import scgde
from scgde.inference import embed, encode_cells

SETS = {
    "papalexi": ("papalexi_eccite_299g", ["target"]),
    "tapseq": ("tapseq_k562_chr8", ["guide"]),
    "kang": ("kang_ifnb_celltypes", ["cell_type", "condition"]),
    "kang_donors": ("kang_ifnb_donors", ["cell_type", "sample"]),
    "cell_lines": ("cell_lines_5cl", ["cell_line"]),
}
SIZES = (5, 10, 20, 50, 0)  # 0: the whole half
BASELINES = ("pseudobulk PCA", "scVI mean latent", "exact OT in PCA space")
OT_DRAWS = 5


def reciprocal_ranks(distance: np.ndarray) -> np.ndarray:
    """Of the own other half, both ways, for each population."""
    own = np.diag(distance)
    forward = 1.0 / (1 + (distance < own[:, None]).sum(1))
    backward = 1.0 / (1 + (distance < own[None, :]).sum(0))
    return (forward + backward) / 2


def halves(codes: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two disjoint halves of every population, thinned to ``size`` cells."""
    first, second = [], []
    for k in range(codes.max() + 1):
        rows = rng.permutation(np.flatnonzero(codes == k))
        a, b = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        first.append(a[:size] if size else a)
        second.append(b[:size] if size else b)
    return np.concatenate(first), np.concatenate(second)


def scvi_latents(train, test, seed: int, epochs: int | None) -> tuple[np.ndarray, float]:
    """Latents of the test cells from scVI at its defaults, and the CPU seconds of its training."""
    start = time.process_time()
    scvi.settings.seed = seed
    cells = train.copy()
    scvi.model.SCVI.setup_anndata(cells)
    peer = scvi.model.SCVI(cells)
    peer.train(accelerator="cpu", enable_progress_bar=False, early_stopping=True, max_epochs=epochs)
    scvi.settings.seed = None
    return peer.get_latent_representation(test.copy()), time.process_time() - start


def run(name: str, seed: int, epochs: int | None, draws: int, peers: bool, **model_options) -> list[dict]:
    dataset, keys = SETS[name]
    adata = scgde.datasets.load(dataset)
    label = adata.obs[keys].astype(str).agg("|".join, axis=1)
    codes, names = pd.factorize(label)
    rng = np.random.default_rng(seed)
    trains = np.zeros(len(codes), dtype=bool)
    for k in range(len(names)):
        rows = rng.permutation(np.flatnonzero(codes == k))
        trains[rows[: len(rows) // 2]] = True
    train, test, test_codes = adata[trains].copy(), adata[~trains].copy(), codes[~trains]

    scgde.GDEModel.setup_anndata(train, keys)
    model = scgde.GDEModel(train, **model_options)
    seconds = quiet_train(model, max_epochs=epochs, seed=seed)
    u, _ = encode_cells(model.module, model._table(test), np.arange(test.n_obs))

    scvi_latent, scvi_seconds = scvi_latents(train, test, seed, epochs) if peers else (None, np.nan)
    print(f"{name} seed {seed}: scgde {seconds:.0f} CPU s, scVI {scvi_seconds:.0f} CPU s", flush=True)

    components = CellPCA(train.X, 50, seed)(test.X)
    pseudobulk = PseudobulkPCA(train.X, codes[trains])

    def embedding(rows: np.ndarray) -> np.ndarray:
        return embed(model.module.set_encoder, u[rows], test_codes[rows], list(names), None).z

    methods = {
        "scgde": embedding,
        "mean of scgde's u": lambda r: group_means(u[r].numpy(), test_codes[r]),
        "pseudobulk PCA": lambda r: pseudobulk(test.X[r], test_codes[r]),
        "mean of cell PCs": lambda r: group_means(components[r], test_codes[r]),
    }
    if peers:
        methods["scVI mean latent"] = lambda r: group_means(scvi_latent[r], test_codes[r])
    rows = []
    for size in SIZES:
        for draw in range(draws):
            a, b = halves(test_codes, size, np.random.default_rng([seed, size, draw]))
            ranks = {m: reciprocal_ranks(cdist(f(a), f(b))) for m, f in methods.items()}
            if draw < OT_DRAWS and peers:
                distance = scgde.ot.pairwise_distances(
                    components[a], test_codes[a], x_other=components[b], segment_other=test_codes[b], progress=False
                )
                ranks["exact OT in PCA space"] = reciprocal_ranks(np.asarray(distance))
            rows += [
                {"set": name, "seed": seed, "size": size, "draw": draw, "method": m, "population": names[k], "rr": v[k]}
                for m, v in ranks.items()
                for k in range(len(names))
            ]
    return rows


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Bootstrap 95 % interval of a mean."""
    means = rng.choice(values, (4000, len(values))).mean(1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def kept_peers(arguments) -> pd.DataFrame | None:
    """Columns of the peers in the last results, for --peers 0; exits unless these are of the same splits and sets."""
    if arguments.peers:
        return None
    path = RESULTS / "retrieval_mrr.json"
    last = json.loads(path.read_text()) if path.exists() else None
    same = last and all(last["options"][o] == getattr(arguments, o) for o in ("seeds", "draws", "first_seed"))
    frame = pd.DataFrame(last["table"] if same else [], columns=None if same else ["set"])
    if not set(BASELINES) <= set(frame.columns) or not set(arguments.sets.split(",")) <= set(frame["set"]):
        raise SystemExit(f"{path} holds no peers of these sets, seeds and redraws: run without --peers 0")
    return frame[["set", "size", *(b for b in BASELINES if b != "pseudobulk PCA")]]


def summarise(table: pd.DataFrame, peers: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    mrr = table.groupby(["set", "size", "method"], sort=False)["rr"].mean().unstack("method").reset_index()
    if peers is not None:
        mrr = mrr.merge(peers, on=["set", "size"], how="left")
    verdicts = []
    rng = np.random.default_rng(0)
    for name, part in table.groupby("set", sort=False):
        means = mrr[mrr["set"] == name].set_index("size")
        best = means[[b for b in BASELINES if b in means]].max(axis=1)
        order = [s for s in SIZES if s in best.index and best[s] <= 0.9]
        if not order:
            verdicts.append({"set": name, "size": "none with best <= 0.9"})
            continue
        size = order[-1]
        baseline = means.loc[size, [b for b in BASELINES if b in means]].idxmax()
        if baseline not in part["method"].unique():
            raise SystemExit(f"{baseline} is best on {name}, and its ranks were not kept: run without --peers 0")
        wide = part[part["size"] == size].pivot_table(
            index=["seed", "draw", "population"], columns="method", values="rr"
        )
        difference = (wide["scgde"] - wide[baseline]).dropna()
        low, high = interval(difference.groupby(["seed", "draw"]).mean().to_numpy(), rng)
        low_p, high_p = interval(difference.groupby("population").mean().to_numpy(), rng)
        verdicts.append(
            {
                "set": name,
                "size": "half" if size == 0 else str(size),
                "best baseline": baseline,
                "its MRR": means.loc[size, baseline],
                "scgde MRR": means.loc[size, "scgde"],
                "difference": difference.mean(),
                "95 % over draws": f"[{low:+.4f}, {high:+.4f}]",
                "95 % over populations": f"[{low_p:+.4f}, {high_p:+.4f}]",
            }
        )
    return mrr, pd.DataFrame(verdicts)


def beside_means(table: pd.DataFrame) -> pd.DataFrame:
    """How much more often embeddings find the other half than means of ``u`` of the same model do."""
    rows, rng = [], np.random.default_rng(0)
    for (name, size), part in table[table["size"].between(1, 20)].groupby(["set", "size"], sort=False):
        wide = part.pivot_table(index=["seed", "draw", "population"], columns="method", values="rr")
        difference = wide["scgde"] - wide["mean of scgde's u"]
        low, high = interval(difference.groupby(["seed", "draw"]).mean().to_numpy(), rng)
        low_p, high_p = interval(difference.groupby("population").mean().to_numpy(), rng)
        rows.append(
            {
                "set": name,
                "size": size,
                "scgde": wide["scgde"].mean(),
                "mean of scgde's u": wide["mean of scgde's u"].mean(),
                "difference": difference.mean(),
                "95 % over draws": f"[{low:+.4f}, {high:+.4f}]",
                "95 % over populations": f"[{low_p:+.4f}, {high_p:+.4f}]",
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    arguments = options(
        __doc__,
        sets=",".join(SETS),
        draws=20,
        name="retrieval",
        peers=1,
        **{"first-seed": 2, "n-latent": 20, "expression-weight": 0.5},
    )
    peers = kept_peers(arguments)  # before anything is trained
    rows = []
    for name in arguments.sets.split(","):
        if not scgde.datasets.has_dataset(SETS[name][0]):
            print(f"{name}: not available (set SCGDE_DATA_DIR), skipped")
            continue
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            rows += run(
                name,
                seed,
                arguments.epochs,
                arguments.draws,
                bool(arguments.peers),
                n_latent=arguments.n_latent,
                expression_weight=arguments.expression_weight,
            )
    table = pd.DataFrame(rows)
    mrr, verdicts = summarise(table, peers)
    print(mrr.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    report(f"{arguments.name}_mrr", mrr, arguments)
    report(f"{arguments.name}_means", beside_means(table), arguments)
    report(arguments.name, verdicts, arguments)
