"""Embeddings and distances by tasks are those of the getters, on a cluster and without one."""

import shutil

import numpy as np
import pandas as pd
import pytest

import scgde
from scgde.cluster._blocks import cut, open_atlas
from scgde.data.streaming import DamagedStoreError

# delete-one values multiply the rounding of float32 by the number of cells, at most 300 of them
CLOSE = {"rtol": 0, "atol": 1e-4}


def test_a_block_is_of_whole_neighbouring_populations(model, store):
    atlas = open_atlas(model, store, None)
    # populations that the model has not seen come last in results and anywhere in the folder
    assert (np.diff(atlas.starts) < 0).any()
    for limit in (1, 50, 100, 10_000):
        blocks = cut(atlas, limit)
        numbers = np.concatenate([b.numbers for b in blocks])
        np.testing.assert_array_equal(np.sort(numbers), np.arange(len(atlas.labels)))
        assert all(b.sizes.sum() <= limit or len(b.sizes) == 1 for b in blocks)
        starts = np.concatenate([b.starts for b in blocks])
        assert (np.diff(starts) > 0).all()
    assert len(cut(atlas, 1)) == len(atlas.labels) and len(cut(atlas, 10_000)) == 1


def assert_same(mine, theirs):
    assert list(mine.obs_names) == list(theirs.obs_names)
    pd.testing.assert_frame_equal(mine.obs, theirs.obs)
    np.testing.assert_allclose(mine.X, theirs.X, **CLOSE)
    np.testing.assert_array_equal(mine.X, mine.obsm["X_gde"])
    np.testing.assert_allclose(mine.layers["standard_error"], theirs.layers["standard_error"], **CLOSE)
    assert np.isnan(mine.layers["standard_error"]).all(1).sum() == 1
    assert mine.uns["gde"]["params"] == theirs.uns["gde"]["params"] and not mine.obsp


@pytest.mark.parametrize("cells_per_task", [1, 90, 20_000])
def test_populations_are_those_of_the_getter(model, store, cells_per_task):
    mine = scgde.cluster.embed(model, store, cells_per_task=cells_per_task, progress=False)
    assert_same(mine, model.get_population_adata(str(store)))
    assert {"tissue", "gde_n_cells", "gde_split"} < set(mine.obs) and "depth" not in mine.obs


def test_workers_embed_as_this_process_does(model, store, client):
    there = scgde.cluster.embed(model, store, client=client, cells_per_task=90, progress=False)
    here = scgde.cluster.embed(model, store, cells_per_task=90, progress=False)
    assert_same(there, model.get_population_adata(str(store)))
    np.testing.assert_array_equal(there.X, here.X)
    np.testing.assert_array_equal(there.layers["standard_error"], here.layers["standard_error"])


def test_some_populations_come_in_the_order_in_which_they_are_asked_for(model, store):
    whole = model.get_population_adata(str(store))
    chosen = [whole.obs_names[i] for i in (9, 2, 14)]
    mine = scgde.cluster.embed(model, store, populations=chosen, cells_per_task=60, progress=False)
    np.testing.assert_allclose(mine.X, whole[chosen].X, **CLOSE)
    assert list(mine.obs["tissue"]) == list(whole.obs.loc[chosen, "tissue"])
    with pytest.raises(KeyError, match="clone_0|d2"):
        scgde.cluster.embed(model, store, populations=["clone_O|d2"], progress=False)


def test_the_split_of_a_models_own_cells_is_told(predictor):
    own = predictor.model
    mine = scgde.cluster.embed(own, own.adata, progress=False)
    assert list(mine.obs["gde_split"]) == list(own.get_population_adata().obs["gde_split"]) != ["query"] * mine.n_obs


@pytest.mark.parametrize(
    "options",
    [{}, {"return_std": True}, {"bias_correction": True}, {"return_std": True, "bias_correction": False}],
    ids=str,
)
def test_latent_distances_are_those_of_the_getter(model, store, options):
    mine = scgde.cluster.distances(model, store, cells_per_task=90, progress=False, **options)
    theirs = model.get_population_distances(str(store), **options)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (mine, theirs)), strict=True):
        pd.testing.assert_frame_equal(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", ["here", "there"])
def test_exact_distances_are_those_of_the_getter(model, store, where, request, monkeypatch):
    from scgde.cluster import _distances

    monkeypatch.setattr(_distances, "CELLS_PER_PAIR_BLOCK", 60)
    found = request.getfixturevalue("client") if where == "there" else None
    labels = open_atlas(model, store, None).labels
    chosen = [labels[i] for i in (3, 5, 4, 0, 17, 3)]
    mine = scgde.cluster.distances(model, store, client=found, populations=chosen, metric="wasserstein", progress=False)
    theirs = model.get_population_distances(str(store), populations=chosen, metric="wasserstein")
    pd.testing.assert_frame_equal(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_failed_task_raises_its_own_error_with_the_labels(model, store, client, tmp_path):
    shutil.copytree(store, tmp_path / "copy.zarr")
    file = max((tmp_path / "copy.zarr" / "X" / "data").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    for found in (None, client):
        with pytest.raises(DamagedStoreError, match="cannot be read") as caught:
            scgde.cluster.embed(model, tmp_path / "copy.zarr", client=found, cells_per_task=90, progress=False)
        assert "In the task of 'clone_" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"metric": "euclid"}, ValueError, "metric"),
        ({"metric": "wasserstein", "return_std": True}, ValueError, "latent"),
        ({"populations": []}, ValueError, "empty"),
        ({"cells_per_task": 0}, ValueError, "cells_per_task"),
        ({"client": 3}, TypeError, "distributed.Client"),
    ],
)
def test_arguments_are_checked(model, store, options, error, match):
    if "client" in options:
        pytest.importorskip("distributed", reason="Dask is not installed")
    with pytest.raises(error, match=match):
        scgde.cluster.distances(model, store, progress=False, **options)


def test_cells_in_memory_are_refused_with_the_remedy(model):
    with pytest.raises(TypeError, match="write_populations"):
        scgde.cluster.embed(model, model.adata)
