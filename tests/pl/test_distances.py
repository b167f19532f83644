"""Properties of the heat map of distances."""

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.spatial.distance import pdist, squareform

from scgde import pl


def make_blocks(n_per_block: int = 5, seed: int = 0) -> AnnData:
    """Three tight, well separated groups of populations, in shuffled order."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat([0, 1, 2], n_per_block))
    x = rng.normal(scale=0.1, size=(len(group), 3)) + 10 * np.eye(3)[group]
    obs = pd.DataFrame(
        {"group": pd.Categorical(np.array(["a", "b", "c"])[group], categories=["c", "a", "b"])},
        index=[f"pop_{i}" for i in range(len(group))],
    )
    pop = AnnData(x, obs=obs)
    pop.obsp["gde_distances"] = squareform(pdist(x))
    return pop


@pytest.fixture
def pop():
    yield make_blocks()
    plt.close("all")


def frame_of(pop: AnnData) -> pd.DataFrame:
    return pd.DataFrame(pop.obsp["gde_distances"], index=pop.obs_names, columns=pop.obs_names)


def labels_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def test_the_map_shows_the_distance_of_the_pair_that_its_ticks_name(pop):
    ax = pl.population_distances(pop)
    names = labels_of(ax)
    assert sorted(names) == sorted(pop.obs_names)
    assert [text.get_text() for text in ax.get_xticklabels()] == names
    np.testing.assert_allclose(ax.images[0].get_array(), frame_of(pop).loc[names, names])


def test_clustering_puts_similar_populations_together(pop):
    names = labels_of(pl.population_distances(pop))
    groups = pop.obs.loc[names, "group"].to_numpy()
    assert (groups[1:] != groups[:-1]).sum() == 2
    assert labels_of(pl.population_distances(pop, cluster=False)) == list(pop.obs_names)


def test_groups_follow_their_categories_and_a_strip_shows_them(pop):
    ax = pl.population_distances(pop, groupby="group", cluster=False)
    names = labels_of(ax)
    assert list(pop.obs.loc[names, "group"]) == ["c"] * 5 + ["a"] * 5 + ["b"] * 5
    # Without clustering the order inside a group is the given one.
    assert names[:5] == list(pop.obs_names[pop.obs["group"] == "c"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["c", "a", "b"]
    strip = next(child for child in ax.child_axes if child.images)
    colors = np.asarray(strip.images[0].get_array())[0]
    assert len(np.unique(colors, axis=0)) == 3
    assert (colors[:5] == colors[0]).all()


def test_a_frame_and_a_series_give_the_same_map(pop):
    first = pl.population_distances(pop, groupby="group").images[0].get_array()
    # The series is matched by name, whatever its order.
    series = pop.obs["group"].iloc[::-1]
    second = pl.population_distances(frame_of(pop), groupby=series).images[0].get_array()
    np.testing.assert_array_equal(first, second)


def test_populations_without_a_group_come_last(pop):
    pop.obs["group"] = pop.obs["group"].where(pop.obs["group"] != "a")
    ax = pl.population_distances(pop, groupby="group")
    assert pop.obs.loc[labels_of(ax)[-5:], "group"].isna().all()
    assert ax.get_legend().get_texts()[-1].get_text() == "missing"


def test_many_populations_have_no_labels():
    pop = make_blocks(20)
    ax = pl.population_distances(pop)
    assert not labels_of(ax)
    assert ax.get_xlabel() == "60 populations"
    plt.close("all")


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_populations(pop, n):
    assert pl.population_distances(pop[:n].copy()).images[0].get_array().shape == (n, n)


def test_it_draws_on_the_given_axes(pop):
    _, ax = plt.subplots()
    assert pl.population_distances(pop, ax=ax) is ax


def broken(pop: AnnData, change: str) -> pd.DataFrame:
    frame = frame_of(pop).copy()
    if change == "asymmetric":
        frame.iloc[0, 1] += 5
    elif change == "missing":
        frame.iloc[0, 1] = np.nan
    elif change == "negative":
        frame.iloc[0, 1] = frame.iloc[1, 0] = -3
    elif change == "diagonal":
        frame.iloc[0, 0] = 2
    elif change == "rectangular":
        frame = frame.iloc[:3]
    return frame


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("asymmetric", "transpose"),
        ("missing", "2 entries|1 entries"),
        ("negative", "not negative"),
        ("diagonal", "diagonal"),
        ("rectangular", "same populations"),
    ],
)
def test_what_is_no_distance_matrix_raises(pop, change, match):
    with pytest.raises(ValueError, match=match):
        pl.population_distances(broken(pop, change))
    assert not plt.get_fignums()


def test_wrong_arguments_say_what_to_do(pop):
    with pytest.raises(TypeError, match="series"):
        pl.population_distances(frame_of(pop), groupby="group")
    with pytest.raises(KeyError, match="groupby"):
        pl.population_distances(pop, groupby="nothing")
    with pytest.raises(KeyError, match="lacks 1 populations"):
        pl.population_distances(pop, groupby=pop.obs["group"].iloc[1:])
    with pytest.raises(TypeError, match="ndarray"):
        pl.population_distances(pop.obsp["gde_distances"])
    del pop.obsp["gde_distances"]
    with pytest.raises(KeyError, match="get_population_adata"):
        pl.population_distances(pop)
