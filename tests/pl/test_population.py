"""Properties of the scatter plot of populations."""

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_rgba
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from scgde import pl
from scgde.pl._axes import axes_beyond_noise, principal_axes
from scgde.pl._population import confidence_ellipses

N_EMBEDDING = 32


def make_populations(n: int = 30, seed: int = 0) -> AnnData:
    """Populations in the form that `get_population_adata` returns, the first one of a single cell."""
    rng = np.random.default_rng(seed)
    scale = np.r_[3.0, 1.5, np.full(N_EMBEDDING - 2, 0.2)]
    x = (rng.normal(size=(n, N_EMBEDDING)) * scale).astype(np.float32)
    n_cells = rng.integers(5, 400, size=n)
    n_cells[0] = 1
    error = np.abs(rng.normal(0.6, 0.1, size=x.shape)) / np.sqrt(n_cells)[:, None]
    error[0] = np.nan
    obs = pd.DataFrame(
        {
            "gde_n_cells": n_cells,
            "gde_split": pd.Categorical(np.where(np.arange(n) % 5 == 0, "test", "train")),
            "state": pd.Categorical(rng.choice(["early", "late", "mid"], size=n), categories=["early", "mid", "late"]),
            "dose": rng.uniform(0, 10, size=n),
        },
        index=[f"pop_{i}" for i in range(n)],
    )
    pop = AnnData(x, obs=obs, layers={"standard_error": error.astype(np.float32)})
    pop.obsm["X_gde"] = x
    pop.obsp["gde_distances"] = squareform(pdist(x)).astype(np.float32)
    pop.uns["gde"] = {"params": {}}
    return pop


@pytest.fixture
def pop():
    yield make_populations()
    plt.close("all")


def scatter_of(ax) -> PathCollection:
    return next(c for c in ax.collections if type(c) is PathCollection)


def ellipses_of(ax) -> list[np.ndarray]:
    found = [c for c in ax.collections if isinstance(c, PolyCollection)]
    return [path.vertices[:-1] for c in found for path in c.get_paths()]


def legend_texts(ax) -> list[list[str]]:
    legends = [child for child in ax.get_children() if isinstance(child, mpl.legend.Legend)]
    return [[text.get_text() for text in legend.get_texts()] for legend in legends]


def test_pca_shows_every_population_in_centred_principal_coordinates(pop):
    ax = pl.population_embedding(pop)
    points = np.asarray(scatter_of(ax).get_offsets())
    assert points.shape == (pop.n_obs, 2)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-5)
    # The variance along the two axes is that of the two leading eigenvalues of the covariance.
    leading = np.sort(np.linalg.eigvalsh(np.cov(pop.X.T.astype(float))))[::-1][:2]
    np.testing.assert_allclose(np.cov(points.T), np.diag(leading), atol=1e-4)
    share = leading[0] / np.trace(np.cov(pop.X.T.astype(float)))
    assert f"({share:.0%} of variance)" in ax.get_xlabel()


def test_linear_bases_share_one_scale_and_umap_does_not(pop):
    pop.obsm["X_umap"] = pop.X[:, :2]
    assert pl.population_embedding(pop, basis="pca").get_aspect() == 1.0
    assert pl.population_embedding(pop, basis="X_gde").get_aspect() == 1.0
    assert pl.population_embedding(pop, basis="umap").get_aspect() == "auto"


def test_principal_axes_do_not_depend_on_the_sign_of_the_solver():
    x = np.random.default_rng(1).normal(size=(40, 5)) * [4, 3, 2, 1, 0.5]
    axes, share = principal_axes(x)
    np.testing.assert_allclose(axes.T @ axes, np.eye(5), atol=1e-10)
    assert share.sum() == pytest.approx(1)
    assert (axes[np.abs(axes).argmax(axis=0), range(5)] > 0).all()


def test_ellipse_along_the_coordinates_has_the_standard_errors_as_half_axes():
    error = np.array([[0.3, 0.1, 9.0]])
    outline = confidence_ellipses(error, np.eye(3)[:, :2], n_vertices=360)[0]
    radius = np.sqrt(stats.chi2.ppf(0.95, 2))
    # The longest and shortest chord of a polygon with 360 corners miss the axes by less than 1e-4.
    np.testing.assert_allclose(np.abs(outline).max(axis=0), radius * error[0, :2], rtol=1e-3)


def test_ellipse_with_few_cells_is_hotellings_region():
    error = np.full((4, 2), 0.5)
    outlines = confidence_ellipses(error, np.eye(2), np.array([2, 3, 10, 10**7]))
    radius = np.linalg.norm(outlines, axis=2).max(axis=1) / 0.5
    assert np.isnan(radius[0])
    expected = np.sqrt(2 * 9 / 8 * stats.f.ppf(0.95, 2, 8))
    assert radius[2] == pytest.approx(expected)
    assert radius[1] > radius[2] > radius[3]
    assert radius[3] == pytest.approx(np.sqrt(stats.chi2.ppf(0.95, 2)), rel=1e-4)


def test_maps_do_not_draw_noise_as_structure():
    rng = np.random.default_rng(0)
    error = rng.uniform(0.05, 0.3, size=(1, 40)) * rng.uniform(0.7, 1.3, size=(12, 1))

    def share_inside(axes, x):
        points = (x - x.mean(0)) @ axes[:, :2]
        cov = np.einsum("ki,pk,kj->pij", axes[:, :2], error**2, axes[:, :2])
        return np.mean(np.einsum("pi,pij,pj->p", points, np.linalg.inv(cov), points) <= 5.99)

    inside, plain, kept = [], [], []
    for _ in range(40):
        x = rng.normal(size=(12, 40)) * error
        axes, _, n = axes_beyond_noise(x, error)
        assert np.allclose(axes.T @ axes, np.eye(12))
        inside.append(share_inside(axes, x))
        plain.append(share_inside(principal_axes(x)[0], x))
        kept.append(n)
    # 95 % ellipses around populations of one law hold their common mean; along plain principal axes most do not
    assert np.mean(inside) > 0.9 > 0.75 > np.mean(plain)
    assert np.mean(np.array(kept) > 0) < 0.2
    # one true direction is kept, and it is the first
    x = rng.normal(size=(12, 40)) * error
    x[:, 3] += 3 * rng.normal(size=12)
    axes, share, n = axes_beyond_noise(x, error)
    assert n == 1 and abs(axes[3, 0]) > 0.9 and share[0] > 0.5
    assert axes_beyond_noise(x, np.full(x.shape, np.nan))[2] == 12


def test_ellipses_cover_the_projected_truth_in_95_percent_of_draws():
    rng = np.random.default_rng(2)
    error = np.array([1.0, 0.2, 0.5, 2.0])
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0][:, :2]
    outline = confidence_ellipses(error[None], axes, n_vertices=256)[0]
    draws = (rng.normal(size=(20_000, 4)) * error) @ axes
    covered = mpl.path.Path(outline).contains_points(draws).mean()
    # Three binomial standard deviations of 20,000 draws, plus what a polygon of 256 corners cuts off.
    assert covered == pytest.approx(0.95, abs=0.006)


@pytest.mark.parametrize("basis", ["pca", "X_gde"])
def test_ellipses_are_drawn_around_their_points_except_for_one_cell(pop, basis):
    ax = pl.population_embedding(pop, basis=basis, size=None)
    outlines = ellipses_of(ax)
    assert len(outlines) == pop.n_obs - 1
    points = np.asarray(scatter_of(ax).get_offsets())
    np.testing.assert_allclose([outline.mean(axis=0) for outline in outlines], points[1:], atol=1e-5)


def test_ellipses_can_be_turned_off_and_need_standard_errors(pop):
    assert not ellipses_of(pl.population_embedding(pop, error_ellipses=False))
    del pop.layers["standard_error"]
    assert not ellipses_of(pl.population_embedding(pop))
    with pytest.raises(KeyError, match="standard_error"):
        pl.population_embedding(pop, error_ellipses=True)


def test_ellipses_on_a_umap_raise_when_asked_for_and_are_left_out_otherwise(pop):
    pop.obsm["X_umap"] = pop.X[:, :2]
    assert not ellipses_of(pl.population_embedding(pop, basis="umap"))
    with pytest.raises(ValueError, match="not a linear map"):
        pl.population_embedding(pop, basis="umap", error_ellipses=True)


def test_a_huge_ellipse_does_not_shrink_the_picture(pop):
    before = np.ptp(pl.population_embedding(pop).get_xlim())
    pop.layers["standard_error"][3] = 1e3
    ax = pl.population_embedding(pop)
    assert len(ellipses_of(ax)) == pop.n_obs - 1
    assert np.ptp(ax.get_xlim()) <= before * 1.01


def test_marker_area_is_linear_in_the_root_of_the_number_of_cells(pop):
    ax = pl.population_embedding(pop)
    areas = np.sort(scatter_of(ax).get_sizes())
    roots = np.sort(np.sqrt(pop.obs["gde_n_cells"].to_numpy(dtype=float)))
    assert np.corrcoef(areas, roots)[0, 1] == pytest.approx(1)
    assert np.unique(scatter_of(pl.population_embedding(pop, size=40)).get_sizes()) == pytest.approx(40)


def test_size_legend_spans_the_smallest_to_the_largest_population(pop):
    (texts,) = legend_texts(pl.population_embedding(pop))
    numbers = [float(text) for text in texts]
    assert numbers == sorted(numbers)
    assert numbers[0] == 1
    assert numbers[-1] == pytest.approx(pop.obs["gde_n_cells"].max(), rel=0.05)


def test_categories_keep_their_order_and_get_one_colour_each(pop):
    ax = pl.population_embedding(pop, color="state", size=None)
    assert legend_texts(ax) == [["early", "mid", "late"]]
    colors = scatter_of(ax).get_facecolors()[:, :3]
    for state in ("early", "mid", "late"):
        assert len(np.unique(colors[(pop.obs["state"] == state).to_numpy()], axis=0)) == 1
    assert len(np.unique(colors, axis=0)) == 3


def test_scanpys_stored_colours_are_used_and_nothing_is_written(pop):
    pop.uns["state_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    keys = set(pop.uns)
    ax = pl.population_embedding(pop, color="state", size=None)
    late = (pop.obs["state"] == "late").to_numpy()
    np.testing.assert_allclose(scatter_of(ax).get_facecolors()[late, :3], [to_rgba("#0000ff")[:3]] * late.sum())
    assert set(pop.uns) == keys


def test_missing_categories_are_grey_and_named(pop):
    pop.obs["state"] = pop.obs["state"].where(np.arange(pop.n_obs) > 2)
    ax = pl.population_embedding(pop, color="state", size=None)
    assert legend_texts(ax)[0][-1] == "missing"
    assert len(np.unique(scatter_of(ax).get_facecolors()[:3], axis=0)) == 1


def test_a_legend_of_many_categories_is_capped_and_counts_the_rest():
    pop = make_populations(60)
    pop.obs["clone"] = [f"clone_{min(i, 40)}" for i in range(60)]
    (texts,) = legend_texts(pl.population_embedding(pop, color="clone", size=None, max_legend_entries=6))
    assert len(texts) == 7
    assert texts[-1] == "and 35 more"
    assert "clone_40" in texts  # the most frequent one stays
    plt.close("all")


def test_legends_stay_inside_the_figure_and_apart():
    pop = make_populations(60)
    pop.obs["clone"] = [f"a clone with a long name, number {i}" for i in range(60)]
    ax = pl.population_embedding(pop, color="clone")
    ax.figure.canvas.draw()
    figure = ax.figure.bbox
    boxes = [child.get_window_extent() for child in ax.get_children() if isinstance(child, mpl.legend.Legend)]
    assert len(boxes) == 2
    for box in boxes:
        assert box.x0 > ax.get_window_extent().x1
        assert box.x1 <= figure.x1
        assert box.y0 >= figure.y0
    assert not boxes[0].overlaps(boxes[1])
    plt.close("all")


def test_numbers_get_a_colour_bar_and_order_the_colours(pop):
    ax = pl.population_embedding(pop, color="dose", size=None)
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "dose"
    assert bar.get_ylim() == pytest.approx((pop.obs["dose"].min(), pop.obs["dose"].max()))
    expected = plt.get_cmap("viridis")(plt.Normalize()(pop.obs["dose"].to_numpy()))
    np.testing.assert_allclose(scatter_of(ax).get_facecolors()[:, :3], expected[:, :3], atol=1e-6)


def test_it_draws_on_the_given_axes_and_annotates(pop):
    _, ax = plt.subplots()
    assert pl.population_embedding(pop, ax=ax, annotate=["pop_4"]) is ax
    (text,) = [text for text in ax.texts if text.get_text() == "pop_4"]
    np.testing.assert_allclose(
        text.xy, (pop.X - pop.X.mean(0))[4] @ principal_axes(pop.X.astype(float))[0][:, :2], atol=1e-5
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_populations_are_enough(n):
    pop = make_populations(40)[-n:].copy()
    if n == 1:
        ax = pl.population_embedding(pop, basis="X_gde")
    else:
        ax = pl.population_embedding(pop)
    assert len(scatter_of(ax).get_offsets()) == n
    plt.close("all")


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"basis": "tsne"}, ValueError, "'pca', 'umap' or 'X_gde'"),
        ({"basis": "umap"}, KeyError, "sc.tl.umap"),
        ({"color": "nothing"}, KeyError, "gde_n_cells"),
        ({"size": "state"}, ValueError, "non-negative"),
        ({"size": -1.0}, ValueError, "positive"),
        ({"dimensions": (0, 32)}, ValueError, "dimensions"),
        ({"dimensions": (1, 1)}, ValueError, "dimensions"),
        ({"annotate": ["who"]}, ValueError, "who"),
    ],
    ids=["basis", "no umap", "no color", "text as size", "negative size", "dimension", "same dimension", "annotate"],
)
def test_wrong_arguments_say_what_to_do(pop, kwargs, error, match):
    with pytest.raises(error, match=match):
        pl.population_embedding(pop, **kwargs)
    assert not plt.get_fignums(), "a rejected call must not leave an empty figure behind"
