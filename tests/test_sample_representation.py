"""The interface of benchmarks: distances, order, and AnnData that nobody changes."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgde

QUICK = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False}
SMALL = {"n_latent": 4, "n_embedding": 6, "n_hidden": 16}


@pytest.fixture(scope="module")
def adata(make_cells):
    cells = make_cells(12, n_batches=2, unassigned_fraction=0.05)
    # numbers, in an order that is not that of strings, and missing ones
    number = cells.obs["population"].map({p: i + 5 for i, p in enumerate(cells.obs["population"].dropna().unique())})
    cells.obs["sample"] = number.astype(float)
    cells.layers["counts"] = cells.X.copy()
    cells.obsm["rows"] = np.asarray(cells.X[:, :5].todense() if hasattr(cells.X, "todense") else cells.X[:, :5])
    cells.uns["gde_sample_distances"] = np.full((2, 2), 7.0)
    return cells


def build(adata, sample_key="population", optimize_adata=False, **options):
    method = scgde.SampleRepresentation(sample_key, **{"seed": 0, "train_kwargs": QUICK} | SMALL | options)
    method.prepare_anndata(adata, optimize_adata)
    return method


@pytest.fixture(scope="module")
def method(adata):
    return build(adata, cell_group_key="no such column", batch_key="batch")


class TestDistances:
    """Samples x samples."""

    def test_are_those_of_the_model(self, method, adata):
        distances = method.calculate_distance_matrix()
        expected = method.model.get_population_distances()
        assert isinstance(distances, np.ndarray)
        assert distances == pytest.approx(expected.to_numpy(), rel=1e-5)
        assert list(method.samples) == list(expected.index) == sorted(adata.obs["population"].dropna().unique())
        assert np.array_equal(distances, distances.T)
        assert (np.diag(distances) == 0).all()
        assert (distances[~np.eye(12, dtype=bool)] > 0).all()

    def test_are_those_of_representations(self, method):
        z = method.sample_representation
        assert z.shape == (12, 6)
        assert np.array_equal(z, method.model.get_population_embedding().loc[method.samples].to_numpy())
        expected = np.linalg.norm(z[:, None] - z[None], axis=2)
        assert method.calculate_distance_matrix() == pytest.approx(expected, abs=1e-5)

    def test_are_computed_once_or_by_force(self, method):
        distances = method.calculate_distance_matrix()
        # what a benchmark writes to its result is not kept
        np.fill_diagonal(method.calculate_distance_matrix(), 9.0)
        assert np.array_equal(method.calculate_distance_matrix(), distances)
        assert np.array_equal(method.adata.uns["gde_sample_distances"], distances)
        method.adata.uns["gde_sample_distances"] = distances + 1
        assert np.array_equal(method.calculate_distance_matrix(), distances + 1)
        assert np.array_equal(method.calculate_distance_matrix(force=True), distances)
        assert np.array_equal(method.adata.uns["gde_sample_distances"], distances)

    def test_samples_as_observations(self, method):
        samples = method.to_adata()
        assert list(samples.obs_names) == list(method.samples)
        assert np.array_equal(samples.obsm["X_gde"], method.sample_representation)
        assert samples.obsp["gde_distances"] == pytest.approx(method.calculate_distance_matrix(), rel=1e-5)


class TestCells:
    """What goes in."""

    @pytest.mark.parametrize("optimize_adata", [False, True])
    def test_are_left_as_they_are(self, adata, optimize_adata):
        before = adata.copy()
        method = build(adata, optimize_adata=optimize_adata)
        method.calculate_distance_matrix()
        assert method.adata is not adata
        pd.testing.assert_frame_equal(adata.obs, before.obs)
        assert (adata.X != before.X).sum() == 0
        assert list(adata.uns) == list(before.uns)
        assert (adata.uns["gde_sample_distances"] == 7).all()
        assert list(adata.obsm) == list(before.obsm)

    def test_a_view_or_a_file_will_do(self, adata, tmp_path):
        method = build(adata[adata.obs["population"] != adata.obs["population"].dropna().iloc[0]])
        assert len(method.samples) == 11
        adata.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        assert len(build(backed, optimize_adata=True).samples) == 12
        backed.file.close()

    def test_seed_repeats_and_only_needed_parts_are_copied(self, adata):
        one, slim = build(adata, layer="counts"), build(adata, layer="counts", optimize_adata=True)
        assert np.array_equal(one.sample_representation, slim.sample_representation)
        assert slim.adata.X is None
        assert not slim.adata.obsm
        assert list(slim.adata.layers) == ["counts"]
        plain = build(adata, layer="X", optimize_adata=True)
        assert np.array_equal(plain.sample_representation, one.sample_representation)
        assert not plain.adata.layers

    @pytest.mark.parametrize("optimize_adata", [False, True])
    def test_continuous_rows(self, adata, optimize_adata):
        method = build(adata, obsm_key="rows", optimize_adata=optimize_adata)
        assert method.model.gene_likelihood_ == "normal"
        assert method.calculate_distance_matrix().shape == (12, 12)

    def test_names_of_samples_are_those_of_the_column(self, adata):
        method = build(adata, "sample", batch_key="batch")
        assert sorted(method.samples) == list(np.arange(5.0, 17.0))
        # models order labels as strings
        assert list(method.samples)[:3] == [10, 11, 12]
        for name, z in zip(method.samples, method.sample_representation, strict=True):
            cells = np.flatnonzero(adata.obs["sample"] == name)
            alone = method.model.get_population_embedding(indices=cells)
            assert alone.to_numpy() == pytest.approx(z[None], abs=1e-3)

    def test_another_preparation_starts_anew(self, adata):
        method = build(adata)
        method.calculate_distance_matrix()
        few = adata[adata.obs["sample"] > 7].copy()
        method.prepare_anndata(few)
        assert method.calculate_distance_matrix().shape == (9, 9)
        assert method.sample_representation.shape == (9, 6)


class TestInput:
    """What goes wrong."""

    def test_nothing_before_preparation(self):
        method = scgde.SampleRepresentation("population", "cell_type", "counts", seed=3)
        assert (method.sample_key, method.cell_group_key, method.layer, method.seed) == (
            "population",
            "cell_type",
            "counts",
            3,
        )
        assert method.samples is None
        assert method.sample_representation is None
        assert method.adata is None
        with pytest.raises(RuntimeError, match="prepare_anndata"):
            method.calculate_distance_matrix()
        with pytest.raises(RuntimeError, match="prepare_anndata"):
            method.to_adata()

    @pytest.mark.parametrize("optimize_adata", [False, True])
    def test_absent_columns_and_places(self, adata, optimize_adata):
        for options, name in (
            ({"sample_key": "donor"}, "donor"),
            ({"layer": "raw"}, "raw"),
            ({"obsm_key": "X_pca"}, "X_pca"),
            ({"batch_key": "lane"}, "lane"),
        ):
            with pytest.raises(KeyError, match=name):
                build(adata, optimize_adata=optimize_adata, **options)
        with pytest.raises(ValueError, match="both given"):
            build(adata, optimize_adata=optimize_adata, layer="counts", obsm_key="rows")

    def test_arguments(self, adata):
        with pytest.raises(TypeError, match="one column"):
            scgde.SampleRepresentation(["donor", "day"])
        with pytest.raises(TypeError, match="n_dims"):
            build(adata, n_dims=3)
