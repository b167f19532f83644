"""Replicates, means of groups and paired lines."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

import scgde

mpl.use("agg")


@pytest.fixture
def pop():
    rng = np.random.default_rng(0)
    family = np.repeat(np.arange(5), 2)
    z = np.repeat(rng.normal(size=(5, 3)), 2, axis=0) + np.tile([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], (5, 1))
    obs = pd.DataFrame({"condition": np.tile(["control", "treated"], 5), "family": [f"f{k}" for k in family]})
    return AnnData(obs=obs.set_index(pd.Index([f"s{k}" for k in range(10)])), obsm={"X_gde": z})


def _lines(ax):
    return [c for c in ax.collections if isinstance(c, LineCollection)]


def test_points_means_and_pairs(pop):
    ax = scgde.pl.replicates(pop, "condition", block_key="family")
    (lines,) = _lines(ax)
    segments = np.array(lines.get_segments())
    assert segments.shape == (5, 2, 2)
    # all pairs have one difference, of length 4 along the first axis up to what the projection takes
    change = segments[:, 1] - segments[:, 0]
    np.testing.assert_allclose(change, np.repeat(change[:1], 5, axis=0), atol=1e-9)
    scatters = [np.asarray(c.get_offsets()) for c in ax.collections if not isinstance(c, LineCollection)]
    assert [len(points) for points in scatters] == [5, 1, 5, 1]
    for points, mean in zip(scatters[::2], scatters[1::2], strict=True):
        np.testing.assert_allclose(points.mean(0), mean[0])
    # distances on the page are those of the projection on principal axes
    z = pop.obsm["X_gde"] - pop.obsm["X_gde"].mean(0)
    left, scales, _ = np.linalg.svd(z, full_matrices=False)
    shown = np.concatenate(scatters[::2])
    np.testing.assert_allclose(np.abs(shown).sum(0), np.abs(left * scales).sum(0)[:2], rtol=1e-9)
    assert ax.get_xlabel().startswith("PC1 (") and ax.get_legend().get_title().get_text() == "condition"


def test_colours_without_blocks(pop):
    pop.obs["condition"] = pop.obs["condition"].astype("category")
    pop.uns["condition_colors"] = ["#ff0000", "#0000ff"]
    ax = scgde.pl.replicates(pop, "condition", title="all", dimensions=(0, 2))
    assert not _lines(ax) and ax.get_title() == "all" and ax.get_ylabel().startswith("PC3")
    np.testing.assert_allclose(ax.collections[0].get_facecolors()[0][:3], to_rgba("#ff0000")[:3])


def test_bad_arguments(pop):
    with pytest.raises(KeyError, match="groupby='nothing'"):
        scgde.pl.replicates(pop, "nothing")
    with pytest.raises(KeyError, match="block_key='nothing'"):
        scgde.pl.replicates(pop, "condition", block_key="nothing")
    with pytest.raises(ValueError, match=r"dimensions=\(0, 3\)"):
        scgde.pl.replicates(pop, "condition", dimensions=(0, 3))
    pop.obs.loc["s0", "family"] = None
    with pytest.raises(ValueError, match="block_key='family' is missing in 1 rows"):
        scgde.pl.replicates(pop, "condition", block_key="family")
    del pop.obsm["X_gde"]
    with pytest.raises(KeyError, match="get_population_adata"):
        scgde.pl.replicates(pop, "condition")
