"""Write the tables of results/*.json into docs/benchmarks.md, and the first ones into README.md."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
README = HERE.parent / "README.md"
IN_README = {
    "simulated_distances": ("method", "spearman_mean", "spearman_min"),
    "inference_null": ("design", "cells", "p <= .05", "p <= .01", "beyond 2 se", "its standard error"),
    "inference_errors": ("design", "cells", "coverage", "rms error"),
    "generation": (
        "set",
        "populations",
        "E generated",
        "E redrawn",
        "E bar",
        "R2 variance",
        "variance redrawn",
        "variance bar",
    ),
    "retrieval": ("set", "size", "best baseline", "its MRR", "scgde MRR", "95 % over draws", "95 % over populations"),
    "perturbation_kang": ("method", "e_ratio", "e_ratio_top", "pearson_delta_top", "r2_top"),
    "perturbation_tapseq": ("method", "e_distance", "r2_pearson", "mse_delta", "discrimination"),
}
BEGIN, END = "<!-- benchmark tables -->", "<!-- end of benchmark tables -->"

TITLES = {
    "simulated_distances": (
        "Distances against the true Wasserstein-2 distance",
        "300 simulated populations (30-300 negative binomial cells, 500 genes, 8 latent dimensions); rank and linear "
        "correlation over all pairs of 60 populations that no part of training saw. `simulated.py`",
    ),
    "simulated_batches": (
        "Batch effect",
        "The same with two batches that differ two-fold in a third of the genes: share of populations whose nearest "
        "embedding in the other batch is their own. `simulated.py`",
    ),
    "simulated_lineage": (
        "Distances where axes differ much in spread",
        "60 clones that drift towards four fates, at three times (populations of 20-200 cells, 500 genes); pairs of 60 populations of 180 "
        "that no part of training saw, by weight of the latent's axes (the default is 0.5). `simulated.py`",
    ),
    "retrieval": (
        "Replicate retrieval on real data",
        "Mean reciprocal rank of a population's own other half among held-out cells, at the largest size at which the best "
        "baseline is at most 0.9. `retrieval.py`",
    ),
    "retrieval_mrr": ("Replicate retrieval, all sizes", "Cells per half; 0 is the whole half. `retrieval.py`"),
    "retrieval_means": (
        "Embeddings beside means of the latent, small halves",
        "Mean reciprocal rank of the other half by embeddings and by means of `u` of the same model, at 5 to 20 cells. `retrieval.py`",
    ),
    "generation": (
        "Generated cells against held-out cells",
        "Medians over populations; bars are what two halves of real cells reach, less the allowance; `redrawn` are training cells of the population, drawn again. `generation.py`",
    ),
    **{
        f"retrieval_weight{w}": (
            f"Replicate retrieval with expression_weight={w}",
            f"The default is 0.5. `retrieval.py --peers 0 --expression-weight {w} --sets papalexi,tapseq --name retrieval_weight{w}`",
        )
        for w in (0, 1)
    },
    "retrieval_latent10": (
        "Replicate retrieval with a narrower cell latent",
        "10 dimensions in place of 20. `retrieval.py --peers 0 --n-latent 10 --sets papalexi,tapseq --name retrieval_latent10`",
    ),
    "generation_latent10": (
        "Generated cells with a narrower cell latent",
        "10 dimensions in place of 20. `generation.py --n-latent 10 --sets tapseq,norman --name generation_latent10`",
    ),
    "generation_vae": ("The same with the VAE generator", "`generation.py --generator vae --name generation_vae`"),
    "standard_errors": (
        "Coverage of standard errors",
        "95 % intervals against the embedding of 100,000 cells of the law: mean and worst coordinate, and the embedding's "
        "bias in standard deviations at that n with and without the jackknife's correction. `standard_errors.py`",
    ),
    "size_law": (
        "Standard deviation of the embedding by number of cells, for every encoder",
        "Slope of its logarithm over that of the number of cells, from 10 to `largest n` (mean and range over laws and seeds; the paper: -0.493), "
        "and coverage of 95 % intervals, mean and worst coordinate; Gaussian laws in 5 dimensions. `size_law.py`",
    ),
    "geometry_gaussians": (
        "Gaussian suites: rank correlation with the true distance",
        "256 populations of 128 points train; pairs of 64 new populations of `n` points are scored against W2 in closed form (`error`: root mean square, over the "
        "mean distance). `geometry.py --part suites`",
    ),
    "geometry_gaussians_gains": (
        "Gaussian suites: gains over free estimators",
        "Mean gain in rank correlation over the draws that models were trained on, with its 95 % interval. `geometry.py --part suites`",
    ),
    "geometry_mixtures": (
        "Mixture suites: rank correlation with the true distance",
        "Mixtures of three Gaussians; truth is exact transport between 2,000 fresh points (5,000 for populations of 1,000). "
        "`geometry.py --part suites`",
    ),
    "geometry_mixtures_gains": (
        "Mixture suites: gains over free estimators",
        "As above. `geometry.py --part suites`",
    ),
    "geometry_small": (
        "Small populations",
        "Centred Gaussians in 10 dimensions: root mean square error of distances to the truth, over that of exact transport between the same points. "
        "`geometry.py --part small`",
    ),
    "geometry_cost": (
        "Cost of all pairs",
        "All pairs of 2,000 populations of 200 cells; exact transport is timed on 300 pairs and scaled. `geometry.py --part cost`",
    ),
    "peers_synthetic": (
        "Peers on points",
        "Wasserstein Wormhole on the same draws, with the CPU seconds that scgde takes. `peers.py --part synthetic`",
    ),
    "peers_counts": (
        "Peers on counts",
        "MrVI on simulated counts, with the CPU seconds that scgde takes; all populations train. `peers.py --part counts`",
    ),
    "reconstruction_gaussians": (
        "What comes back: Gaussians",
        "Five dimensions, 10,000 points in and out of new populations: true W2 of the generated cloud's moments to the law's, and its parts; inverse Wishart "
        "covariances of two scales. `reconstruction.py --part gaussians`",
    ),
    "reconstruction_mixtures": (
        "What comes back: mixtures",
        "Five dimensions, three components, 10,000 points in and out: squared mixture W2 (the paper: 1.82). `reconstruction.py --part mixtures`",
    ),
    "reconstruction_geodesics": (
        "Paths between Gaussians",
        "Error along the path between 200 pairs of populations of 10,000 points against McCann's geodesic of their laws, as a share of the distance of "
        "its ends. `reconstruction.py --part geodesics`",
    ),
    "reconstruction_midpoints": (
        "Paths between mixtures",
        "W2 of the decoded midpoint to a midpoint of exact transport between 1,000 points, over that of two such midpoints. "
        "`reconstruction.py --part midpoints`",
    ),
    "inference_null": (
        "Populations of one law, in a model that was trained on them",
        "Populations x cells, all of one law, default training and default calls (p-values of one epoch, which they do not depend on); `fresh` are as many new cells. Shares of up to 60 pairs of a data set with p at most .05 and .01, "
        "and of corrected distances beyond two standard errors; the standard error is over data sets. `inference.py --part null`",
    ),
    "inference_twins": (
        "Two populations of each of twenty laws",
        "The same for the pairs of one law; the model is trained on all forty populations. `inference.py --part twins`",
    ),
    "inference_errors": (
        "Errors of populations that trained, and of fresh ones",
        "Sixty laws train; coverage of 95 % intervals against the embedding of 5,000 cells of the law, and root mean squared error of the embedding, of sixteen laws. "
        "`inference.py --part errors`",
    ),
    "inference_real": (
        "Real control cells as perturbations without effect",
        "Control cells of Papalexi et al. 2021 at random as fake targets among the real ones, against each other and the other controls. "
        "`inference.py --part real`",
    ),
    "inference_targets": (
        "Real targets and inert guides",
        "Targets of Papalexi et al. 2021 found against controls, beside a permutation test by energy distance on 50 principal components of all cells. "
        "Guides without a target of Schraivogel et al. 2020 against each other: they do differ. `inference.py --part targets`",
    ),
    "inference_nuisance": (
        "A nuisance variable, as batch and as covariate",
        "Ten laws in two batches: median distance between the two batches of a law over the median distance between laws of one batch. The batch is named as batch, as "
        "categorical or continuous covariate, or not at all. `inference.py --part nuisance`",
    ),
    "inference_encoders": (
        "Populations of one law, with every set encoder",
        "The shares of the first table for twelve populations of 100 cells, trained. `inference.py --part encoders`",
    ),
    "inference_power": (
        "Power on populations that trained",
        "Share of pairs with p at most .05: a share of the cells of the second population is of a changed law (its mean moved by .5, its covariance halved, widened by half or turned, or an unrelated law in its place), beside a permutation test by energy distance on 50 principal "
        "components of all cells. `inference.py --part power`",
    ),
    "groups": (
        "Two conditions, several donors",
        "Share of studies of n + n donors with p at most `level` (`null`: all donors have one law): donors permuted on embeddings, means and spreads (`scgde`), on embeddings or the two moments alone, on ten pseudobulk principal components, on shares of eight clusters "
        "and on the mean of true latents; `test of cells` is `tl.test_populations` with cells as units. `groups.py --part power`",
    ),
    "groups_sizes": (
        "Groups that differ in numbers of cells, of donors and in depth",
        "Share of null studies with p at most .05 by the default call of `tl.test_groups`, and with `match_cells=False`; donors of 80 cells that trained the model, of which as many cells as are said are "
        "taken in the first group and in the second, or counts thinned in the first. `groups.py --part sizes --seeds 8`",
    ),
    "groups_intervals": (
        "Distances between groups of donors",
        "Coverage of 95 % intervals of the squared distance between group means and its bias, at true distances in SDs of a replicate. `groups.py --part intervals`",
    ),
    "groups_real": (
        "Real designs with replicates",
        "16 samples of eight patients (mass cytometry), 32 people (principal components), two donors (counts); p of the mean profiles by the same permutations. "
        "One model each. `groups.py --part real`",
    ),
    "depth": (
        "Populations of fewer reads",
        "Distance between the populations of one law at 2,500 and at 600 reads per cell, over the median distance between laws: of populations that trained and of fresh cells; "
        "`floor` has both at 2,500 reads, `no map` leaves out the map between depths. `p <= .05`: share of laws whose depths `tl.test_populations` calls different, with depths matched by thinning (the default) and without. `depth.py`",
    ),
    "depth_real": (
        "Control cells of fewer reads among knock-outs",
        "Papalexi et al. 2021, cells that did not train: distance of thinned controls (`x`: share of reads kept) from other controls, and how many of the targets that differ from controls lie "
        "nearer than they do. `depth.py`",
    ),
    "synthetic_simplex": (
        "Distances of categorical laws",
        "Linear correlation with the closed form over all pairs of a 55-point grid of the simplex, 5,000 draws each (the paper: 0.952); rows of 20 "
        "trials have another geometry (`own W2`). `synthetic.py --part simplex`",
    ),
    "synthetic_prior": (
        "The same under priors from flat to peaked",
        "Training laws from Dirichlet(alpha, 1, 1) (the paper: 0.80 at worst). `synthetic.py --part prior`",
    ),
    "synthetic_mnist": (
        "The same for mixtures of digits",
        "1,000 held-out images each (the paper: 0.976), by the rows that images are turned into. `synthetic.py --part mnist`",
    ),
    "synthetic_zeros": (
        "Probability of zero from n Poisson draws",
        "Mean squared error over 20,000 rates, and over that of the Rao-Blackwell estimator. `synthetic.py --part zeros`",
    ),
    "perturbation_kang": (
        "A cell type's response from the others",
        "Kang et al. 2018, seven cell types: stimulated cells of one held out of all training; medians over types, `e_ratio` over copied controls. "
        "`perturbation.py --part kang`",
    ),
    "perturbation_donors": (
        "The response of a donor's cell type",
        "Two donors of the same study, five types; medians over the ten pairs. `perturbation.py --part donors`",
    ),
    "perturbation_cytof": (
        "A donor's response in mass cytometry",
        "Bodenmiller et al. 2012, eight donors, 24 markers; medians over donors. `perturbation.py --part cytof`",
    ),
    "perturbation_papalexi_effect": (
        "Knock-outs never seen: those with an effect",
        "Papalexi et al. 2021, 25 targets in five folds, described by co-expression where the target is among the 299 genes (9 of 25; the others get the "
        "mean); means over the nine targets with an effect. `perturbation.py --part papalexi`",
    ),
    "perturbation_papalexi_no_effect": (
        "Knock-outs never seen: the rest",
        "The same, means over the other 16. `perturbation.py --part papalexi`",
    ),
    "perturbation_tapseq": (
        "Knock-downs never seen",
        "Schraivogel et al. 2020 (TAP-seq), 14 targets in five folds, 72 genes; means over targets. `perturbation.py --part tapseq`",
    ),
    "perturbation_guides": (
        "A guide from the other guides of its target",
        "The same data, every guide held out once; means over guides. `perturbation.py --part guides`",
    ),
    "perturbation_norman": (
        "Doubles from singles",
        "Norman et al. 2019, 250 genes, the five doubles whose singles were measured, each held out; medians. `perturbation.py --part norman`",
    ),
    "perturbation_combinations": (
        "Simulated doubles",
        "100 singles, 200 doubles of which a fifth interact, half of the doubles held out; means. `perturbation.py --part combinations`",
    ),
    "perturbation_large": (
        "A large simulated screen",
        "1,000 perturbations in two contexts, half of each missing from one; means over 20 of the missing pairs. `perturbation.py --part large`",
    ),
    "perturbation_joint": (
        "Joint training of perturbations",
        "A loss of predictable shifts beside the others, and without it; means over targets held out in five folds. `perturbation_joint.py`",
    ),
    "perturbation_calibration": (
        "Regions of predicted embeddings",
        "Share of held-out embeddings inside the 90 % region of their prediction, by part. `perturbation.py --part calibration`",
    ),
    "information": (
        "Information between vectors whose information is known",
        "300 pairs in 16 dimensions: neighbours in a few coordinates, the estimate, its SD and half the width of its 95 % interval, how often that holds the truth, and mean p-value. `sizes`: nothing but numbers of cells goes together. `information.py`",
    ),
    "lineage_simulated": (
        "Information and fate of simulated clones",
        "6,000 clones (150,000 cells, 500 genes) with a memory of four values, half of them held out of all training; `ratio` is the estimated information "
        "between early and late embeddings over what so many cells hold (`bits_of_cells`, enumerated), `auroc_bayes` what the best classifier that sees the true states reaches. "
        "`lineage.py --part simulated`",
    ),
    "lineage_overlapping": (
        "Information and fate where cell states overlap",
        "The same with states 1.5 in place of 4 units apart and a quarter of the counts: the state of a single cell is in doubt. `lineage.py --part overlapping`",
    ),
    "lineage_forecast": (
        "Late cells of simulated clones",
        "The same clones: 200 held-out ones, 100 cells forecast for each from 10 early cells; means over clones. `lineage.py --part forecast`",
    ),
    "lineage_protocol": (
        "The published estimate of information, step by step",
        "The same clones; an encoder and generator as in the GDE paper, and ours. `shuffled_clones` is what the same steps give where late populations are those of other clones: it should be "
        "zero. `lineage.py --part protocol`",
    ),
    "lineage_cost": (
        "Cost of many small populations",
        "Training on two threads, embedding of all populations, and peak memory beyond the data; then 25,000 other clones of 3 to 5 cells a day with the same model (zero: no more than the peak of the row above). `lineage.py --part cost`",
    ),
    "lineage_larry": (
        "Clones of blood progenitors",
        "Weinreb et al. 2020, a subset: main fate on day 6 of clones with three cells or more, from days 2 and 4, five folds over clones; 95 % intervals from resampled clones, and "
        "of the difference to scgde. The distance within clones has the 95 % range of permuted clones. `lineage.py --part larry`",
    ),
    "lineage_celegans": (
        "Cell types of an embryo over time",
        "Packer et al. 2019: time of held-out populations of cell type and time bin, five folds; cells of the next bin of a cell type whose later bins are held out. "
        "`lineage.py --part celegans`",
    ),
    "lineage_samples": (
        "Patients",
        "Stephenson et al. 2021, 37 samples in 50 principal components, three folds over patients; nearest samples among those of other patients that trained. `p` by permuting samples. "
        "`lineage.py --part samples`",
    ),
    "lineage_tcr": (
        "Clones of T cells",
        "Distance between cells of one clone over that between clones, eight clones; training was not told the clones. `low` and `high` are the 95 % range of permuted clones. "
        "`lineage.py --part tcr`",
    ),
    "throughput_training": (
        "Speed of training beside scVI",
        "18,000 cells of 2,000 genes, a tenth of the counts not zero; one hidden layer of 128, 10 latent dimensions, 512 cells in a batch, one thread; scVI is trained for as many cells. Rates are per CPU second: "
        "`cells_per_s` of epochs over single cells (median), `all_cells_per_s` of the whole of training, with components, set encoder, isometry and generator. `held_out_bound` is the evidence bound of 2,000 other cells, "
        "`spearman_new` the rank correlation of distances between 40 populations that did not train with the true ones, `step_over_products` the time of a step over that of its matrix products. `throughput.py --part training`",
    ),
    "throughput_rates": (
        "Speed beside scVI by turns",
        "The same, trained in turns with scVI: medians of five, and the smallest and largest ratio. `set_cells_per_s` are cells in sets of the population phase. `throughput.py --part rates`",
    ),
    "throughput_embedding": (
        "Speed of embedding",
        "The same cells in 160 populations of 75 to 175, which the jackknife embeds once for every cell left out. `throughput.py --part embedding`",
    ),
    "throughput_data_space": (
        "Speed in data space",
        "Points in 100 dimensions, 256 populations of 100, 32 in a batch, width 128, codes of 32: training by default, what is computed once and kept included; beside plain torch networks in the shapes of the GDE paper's public models (diffusion for `flow`). `throughput.py --part data_space`",
    ),
    "throughput_sampling": (
        "Speed of sampling",
        "Latents, and cells of 2,000 genes as counts from labels to AnnData, beside one gamma and one Poisson variable for each entry; and 400 passes of a diffusion model in 5 dimensions. `throughput.py --part sampling`",
    ),
    "scale_memory": (
        "Atlases on disk",
        "5,000 populations of 200 and of 400 cells, 2,000 genes; training of default length and embedding with standard errors, each in a process of its own, whose peak memory includes the "
        "0.58 GB of Python with its libraries. `scale.py --part memory`",
    ),
    "scale_streaming": (
        "Training from disk beside training in memory",
        "A million cells, by turns in one process; medians of five times 150 steps. `scale.py --part streaming`",
    ),
    "scale_screen": (
        "A perturbation screen on disk",
        "1,000 perturbations in two contexts, 500,000 cells; training, fit of the predictor and one prediction. `scale.py --part screen`",
    ),
    "scale_distances": (
        "All distances between 5,000 populations",
        "Of embeddings that are there, and exact transport between 200 cells of each in 20 dimensions, from 20 pairs. `scale.py --part distances`",
    ),
    "scale_processes": (
        "Two processes that train together",
        "Cells in batches of the first process for each second, one thread each, two cores; by turns with one process alone, and with two that each train a model of their own at the same time. `scale.py --part processes`",
    ),
    "scale_cluster": (
        "Embedding by tasks on Dask",
        "200,000 cells in 1,000 populations with standard errors: CPU seconds of the process, or of the one worker, once it has the model. `scale.py --part cluster`",
    ),
    "scale_resume": (
        "Training that was killed",
        "Training from disk in one process, and in four of which three were killed, at these steps: how far the parameters are apart in the end. `scale.py --part resume`",
    ),
    "scale_slopes": (
        "Cost against size",
        "Four epochs (two of each phase) of training from disk and embedding with standard errors, in processes of their own. `scale.py --part slopes`; figure: `docs/figures/make_scale.py`, with slopes on logarithmic axes.\n\n![CPU seconds against cells, populations, cells of a population and genes](figures/scale.png)\n\n",
    ),
    "cell_phase": (
        "Passes over the cells",
        "Evidence bound of held-out cells (lower is better) by passes in training; `limit` is the package's own choice, and `run` what "
        "it came to. `cell_phase.py`",
    ),
    "invariance": ("Exactness", "Largest absolute differences. `invariance.py`"),
}


def cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-3 and value else f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)


def table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def fill(path: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two markers; without the second, only the first is replaced."""
    head, rest = path.read_text().split(begin)
    tail = rest.split(end)[1] if end in rest else rest
    path.write_text(f"{head}{begin}\n\n{text}\n{end}{tail}")


def fact(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def section(name: str, columns: tuple[str, ...] | None = None, level: str = "##") -> str | None:
    """Heading, text and table of one result; None where there is no result."""
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    rows = content["table"] if columns is None else [{c: row.get(c) for c in columns} for row in content["table"]]
    title, text = TITLES[name]
    facts = ""
    if name.startswith("scale_") and content["facts"]:
        facts = "\n" + "".join(f"- {key}: {fact(value)}\n" for key, value in content["facts"].items())
    return f"{level} {title}\n\n{text} Seeds: {content['options']['seeds']}.\n\n{table(rows)}\n{facts}"


if __name__ == "__main__":
    parts = [part for name in TITLES if (part := section(name))]
    fill(PAGE, BEGIN, END, "\n".join(parts))
    first = [part for name, columns in IN_README.items() if (part := section(name, columns, "###"))]
    fill(README, "<!-- benchmark table -->", "<!-- end of benchmark table -->", "\n".join(first))
    print(f"{len(parts)} tables written to {PAGE.name}, {len(first)} to {README.name}")
