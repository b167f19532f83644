"""Cells on disk are read, trained on and embedded as the same cells in memory are."""

import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scgde
from scgde.data import streamed_table, streaming
from scgde.data.loader import BatchLoader, CellStream, bounded
from scgde.data.streaming import DamagedStoreError

SETUP = {"batch_key": "batch", "continuous_covariate_keys": ["age"], "categorical_covariate_keys": ["sex"]}
SMALL = {"n_latent": 4, "n_embedding": 6, "n_hidden": 16}
LIGHTNING = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_cells):
    adata = make_cells(14, sizes=(5, 40), n_batches=2, unassigned_fraction=0.1)
    adata.obs["age"] = np.linspace(20, 60, adata.n_obs)
    adata.obs["sex"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 3, "f", "m"))
    path = tmp_path_factory.mktemp("store") / "cells.zarr"
    scgde.pp.write_populations(adata, path, progress=False)
    return path


@pytest.fixture
def in_memory(store):
    adata = ad.read_zarr(store)
    scgde.GDEModel.setup_anndata(adata, **SETUP)
    return adata


@pytest.fixture(scope="module")
def trained(store):
    """Models of the same cells, on disk and in memory, trained alike."""
    adata = ad.read_zarr(store)
    scgde.GDEModel.setup_anndata(adata, **SETUP)
    models = [scgde.GDEModel(cells, **SMALL) for cells in (scgde.GDEModel.setup_zarr(store, **SETUP), adata)]
    for model in models:
        model.train(4, seed=0, **LIGHTNING)
    return models


def streamed(store, **setup):
    return scgde.GDEModel(scgde.GDEModel.setup_zarr(store, **(setup or SETUP)), **SMALL)


def test_table_on_disk_is_the_table_in_memory(store, in_memory):
    mine, theirs = streamed(store)._table(), scgde.GDEModel(in_memory, **SMALL)._table()
    assert mine.labels == theirs.labels
    for name in ("codes", "batch", "categorical", "continuous"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    rng = np.random.default_rng(0)
    n = theirs.n_cells
    for indices in (np.arange(n), rng.permutation(n), np.array([5, 5, 2]), np.arange(3, 60, 7), np.arange(0)):
        np.testing.assert_array_equal(mine.rows(indices), theirs.rows(indices))
        np.testing.assert_array_equal(mine.totals(indices), theirs.rows(indices).sum(1))
    pd.testing.assert_frame_equal(mine.obs, theirs.obs[mine.columns], check_names=False, check_column_type=False)


@pytest.mark.parametrize("ahead", [1, 40, 4000])
def test_rows_do_not_depend_on_how_much_is_read_at_once(store, in_memory, monkeypatch, ahead):
    monkeypatch.setattr(streaming, "READ_AHEAD", ahead)
    matrix = scgde.GDEModel.setup_zarr(store).rows()
    indices = np.random.default_rng(1).choice(matrix.shape[0], 80)
    np.testing.assert_array_equal(matrix[indices].toarray(), in_memory.X[indices].toarray())
    for start in range(0, 60, 10):
        block = np.arange(start, start + 10)
        np.testing.assert_array_equal(matrix[block].toarray(), in_memory.X[block].toarray())


def test_rows_of_matrices_with_two_types_of_indices_are_taken_as_quickly(in_memory):
    before = in_memory.X[::3].toarray()
    in_memory.X.indptr = in_memory.X.indptr.astype(np.int64)
    table = scgde.GDEModel(in_memory, **SMALL)._table()
    assert table.matrix.indptr.dtype == table.matrix.indices.dtype and table.matrix.data is in_memory.X.data
    np.testing.assert_array_equal(table.rows(np.arange(0, table.n_cells, 3)), before)


def test_registry_is_that_of_the_cells_in_memory(store, in_memory):
    mine = streamed(store)
    theirs = scgde.GDEModel(in_memory, **SMALL)
    assert dict(mine.summary_stats) == dict(theirs.summary_stats)
    for name, entry in theirs.registry_["field_registries"].items():
        own = mine.registry_["field_registries"][name]["state_registry"]
        assert set(own) == set(entry["state_registry"])
        for key, value in entry["state_registry"].items():
            assert repr(own[key]) == repr(value), (name, key)


def test_training_on_a_folder_smaller_than_a_buffer_is_that_in_memory(trained):
    mine, theirs = (model.module.state_dict() for model in trained)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)


def test_getters_read_the_folder(trained):
    mine, theirs = trained
    theirs.module.load_state_dict(mine.module.state_dict())
    for method in ("get_population_embedding", "get_population_standard_error", "get_population_distances"):
        pd.testing.assert_frame_equal(getattr(mine, method)(), getattr(theirs, method)(), rtol=1e-3, atol=1e-5)
    for method in ("get_latent_representation", "get_cell_embedding"):
        np.testing.assert_allclose(getattr(mine, method)(), getattr(theirs, method)(), rtol=1e-3, atol=1e-4)
    own, other = mine.get_population_adata(), theirs.get_population_adata()
    assert list(own.obs.columns) == list(other.obs.columns)
    assert own.obs["gde_split"].tolist() == other.obs["gde_split"].tolist()
    likelihood = [model.get_log_likelihood(indices=[3, 1]) for model in trained]
    assert likelihood[0].index.tolist() == likelihood[1].index.tolist()
    assert mine.sample("pop_0" if "pop_0" in own.obs_names else own.obs_names[0], 5, seed=0).n_obs == 5
    chosen = scgde.tl.test_populations(mine, own.obs_names[0], own.obs_names[1], n_permutations=19, seed=0)
    again = scgde.tl.test_populations(theirs, own.obs_names[0], own.obs_names[1], n_permutations=19, seed=0)
    assert chosen["p_value"].iloc[0] == again["p_value"].iloc[0]


def test_getters_take_the_path_of_a_folder(trained, store):
    mine = trained[1].get_population_embedding(str(store))
    pd.testing.assert_frame_equal(mine, trained[1].get_population_embedding(), rtol=1e-3, atol=1e-5)


def test_a_saved_model_is_loaded_with_its_folder(trained, store, tmp_path):
    trained[0].save(tmp_path / "model")
    loaded = scgde.GDEModel.load(tmp_path / "model", adata=store)
    pd.testing.assert_frame_equal(loaded.get_population_embedding(), trained[0].get_population_embedding())
    assert (loaded.get_population_adata().obs["gde_split"] == "train").all()


def test_a_folder_attached_with_genes_in_another_order_is_matched_by_name(trained, store, tmp_path):
    adata = ad.read_zarr(store)
    order = np.random.default_rng(0).permutation(adata.n_vars)
    scgde.pp.write_populations(adata[:, order].copy(), tmp_path / "other.zarr", progress=False)
    mine = trained[0].get_population_embedding(tmp_path / "other.zarr")
    pd.testing.assert_frame_equal(mine, trained[0].get_population_embedding(), rtol=1e-3, atol=1e-4)


def test_every_training_cell_comes_once_in_an_epoch_in_another_order_each_time(store, monkeypatch):
    monkeypatch.setattr(streamed_table, "CELLS_PER_BUFFER", 64)
    table = streamed(store)._table()
    train = np.flatnonzero(np.arange(table.n_cells) % 4)
    stream = CellStream(table, train, seed=5)
    n = 12
    assert len(stream.buffers(0, 100)) > 2
    epochs = [list(stream.batches(epoch, n)) for epoch in (0, 1)]
    for batches in epochs:
        assert len(batches) == n
        np.testing.assert_array_equal(np.sort(np.concatenate([cells for cells, _ in batches])), train)
        for cells, rows in batches:
            np.testing.assert_array_equal(rows.toarray(), table.rows(cells))
    first, second = (np.concatenate([cells for cells, _ in batches]) for batches in epochs)
    assert not np.array_equal(first, second)
    # a buffer mixes cells of many places
    assert max(np.corrcoef(first, np.arange(len(first)))[0, 1], 0) < 0.5
    for start in (1, 5, 11, 12):
        rest = list(stream.batches(0, n, start))
        assert [c.tolist() for c, _ in rest] == [c.tolist() for c, _ in epochs[0][start:]]


def test_processes_share_the_cells_of_an_epoch(store, monkeypatch):
    monkeypatch.setattr(streamed_table, "CELLS_PER_BUFFER", 64)
    table = streamed(store)._table()
    stream = CellStream(table, np.arange(table.n_cells), seed=5)
    parts = [[cells for cells, _ in stream.batches(0, 6, 0, rank, 2)] for rank in (0, 1)]
    assert [len(p) for p in parts] == [6, 6]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts[0] + parts[1])), np.arange(table.n_cells))


def test_training_through_several_buffers_learns_what_training_in_memory_does(store, trained, monkeypatch):
    monkeypatch.setattr(streamed_table, "CELLS_PER_BUFFER", 64)
    model = streamed(store)
    model.train(12, seed=0, **LIGHTNING)
    theirs = trained[1]
    adata = theirs.adata
    other = scgde.GDEModel(adata, **SMALL)
    other.train(12, seed=0, **LIGHTNING)
    own, ref = (float(m.history["elbo_train"].iloc[-1, 0]) for m in (model, other))
    assert abs(own - ref) < 0.03 * ref


def test_loader_goes_on_after_the_batches_it_has_given():
    loader = BatchLoader(5, lambda start: ({"i": i} for i in range(start, 5)))
    taken = [batch["i"] for batch, _ in zip(loader, range(2), strict=False)]
    assert taken == [0, 1]
    other = BatchLoader(5, lambda start: ({"i": i} for i in range(start, 5)))
    other.load_state_dict({"done": 2})
    assert [b["i"] for b in other] == [2, 3, 4] and len(other) == 5
    assert [b["i"] for b in other] == [0, 1, 2, 3, 4]


def test_validation_takes_a_bounded_number_of_cells_in_runs():
    indices = np.arange(0, 10_000, 2)
    few = bounded(indices, 300, 0)
    assert len(few) == 300 and np.isin(few, indices).all() and (np.diff(few) > 0).all()
    runs = np.arange(0, 10_001, 100)
    near = bounded(indices, 300, 0, runs)
    assert 300 <= len(near) <= 350 and len(np.unique(near // 100)) == 6 or len(np.unique(near // 100)) == 7
    np.testing.assert_array_equal(bounded(indices, 10_000, 0), indices)


def test_perturbations_are_predicted_from_a_folder(tmp_path, make_cells):
    adata = make_cells(12, sizes=(20, 40))
    labels = adata.obs["population"].astype(str)
    number = {label: i for i, label in enumerate(sorted(labels.unique()))}
    codes = labels.map(number).to_numpy()
    adata.obs["drug"] = pd.Categorical(np.array(["control", "a", "b", "c"])[codes % 4])
    adata.obs["donor"] = pd.Categorical(np.array(["x", "y", "z"])[codes // 4 % 3])
    path = tmp_path / "screen.zarr"
    scgde.pp.write_populations(adata, path, ["drug", "donor"], progress=False)
    on_disk = scgde.GDEModel.setup_zarr(path)
    in_memory = ad.read_zarr(path)
    scgde.GDEModel.setup_anndata(in_memory, ["drug", "donor"])
    predicted = []
    for cells in (on_disk, in_memory):
        model = scgde.GDEModel(cells, **SMALL)
        model.train(3, seed=0, **LIGHTNING)
        if predicted:
            model.module.load_state_dict(predicted[0][0].module.state_dict())
        predictor = scgde.PerturbationPredictor(model, "drug", "control", "donor").fit()
        predicted.append((model, predictor.predict("a", context="x", n_cells=30, seed=0)))
    mine, theirs = (cells for _, cells in predicted)
    assert mine.n_obs == 30 and mine.obs["gde_source_cell"].tolist() == theirs.obs["gde_source_cell"].tolist()
    assert abs(mine.X.sum() / theirs.X.sum() - 1) < 0.02


def test_a_folder_sorted_by_several_keys_can_be_used_by_the_first(tmp_path, make_cells):
    adata = make_cells(12, sizes=(10, 20))
    codes = pd.factorize(adata.obs["population"])[0]
    adata.obs["drug"], adata.obs["donor"] = np.array(["a", "a-b", "c"])[codes % 3], np.array(["x", "y"])[codes // 3 % 2]
    scgde.pp.write_populations(adata, tmp_path / "both.zarr", ["drug", "donor"], progress=False)
    table = scgde.GDEModel(scgde.GDEModel.setup_zarr(tmp_path / "both.zarr", "drug"), **SMALL)._table()
    assert table.labels == ["a", "a-b", "c"]
    counts = adata.obs["drug"].value_counts()
    assert np.bincount(table.codes).tolist() == [counts[label] for label in table.labels]
    with pytest.raises(ValueError, match="do not lie together"):
        scgde.GDEModel.setup_zarr(tmp_path / "both.zarr", "donor")


# ------------------------------------------------------------------ bad input


@pytest.fixture
def copy(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy.zarr")
    return tmp_path / "copy.zarr"


def chunks(path, name):
    return sorted(p for p in (path / name).rglob("*") if p.is_file() and p.name != "zarr.json")


@pytest.mark.parametrize("name", ["X/data", "X/indices", "X/indptr"])
def test_a_missing_chunk_is_told_when_the_folder_is_opened(copy, name):
    chunks(copy, name)[0].unlink()
    with pytest.raises(DamagedStoreError, match=name):
        scgde.GDEModel.setup_zarr(copy)


def test_a_truncated_chunk_is_told_when_it_is_read(copy):
    file = chunks(copy, "X/data")[0]
    file.write_bytes(file.read_bytes()[:-20])
    model = streamed(copy)
    with pytest.raises(DamagedStoreError, match="cannot be read"):
        model.train(2, seed=0, **LIGHTNING)


def test_a_flipped_bit_is_told_when_it_is_read(copy):
    file = chunks(copy, "X/data")[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DamagedStoreError):
        streamed(copy)._table().rows(np.arange(50))


def test_populations_that_lie_apart_are_refused_with_the_remedy(store):
    with pytest.raises(ValueError, match=r"write_populations.*population_key=\['sex'\]"):
        scgde.GDEModel.setup_zarr(store, "sex")


def test_a_folder_that_was_not_written_to_its_end_is_refused(copy):
    import zarr

    group = zarr.open_group(copy)
    group.attrs["scgde_store"] = {**group.attrs["scgde_store"], "complete": False}
    with pytest.raises(DamagedStoreError, match="not to its end"):
        scgde.GDEModel.setup_zarr(copy)


def test_an_ordinary_zarr_of_anndata_is_refused_with_the_remedy(in_memory, tmp_path):
    in_memory.write_zarr(tmp_path / "plain.zarr")
    with pytest.raises(ValueError, match="write_populations"):
        scgde.GDEModel.setup_zarr(tmp_path / "plain.zarr")


def test_absent_folders_and_columns_are_named(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="write_populations"):
        scgde.GDEModel.setup_zarr(tmp_path / "none.zarr")
    with pytest.raises(KeyError, match="donor"):
        scgde.GDEModel.setup_zarr(store, batch_key="donor")
    with pytest.raises(ValueError, match="setup_zarr"):
        scgde.GDEModel(streaming.StreamedCells(store))


def test_rows_that_are_no_counts_are_modelled_as_continuous(in_memory, tmp_path):
    adata = in_memory[:, :5].copy()
    adata.X = np.log1p(adata.X.toarray())
    scgde.pp.write_populations(adata, tmp_path / "real.zarr", progress=False)
    cells = scgde.GDEModel.setup_zarr(tmp_path / "real.zarr")
    with pytest.raises(ValueError, match="raw counts"):
        scgde.GDEModel(cells, gene_likelihood="nb")
    model = scgde.GDEModel(cells, n_embedding=6, n_hidden=16)
    assert model.gene_likelihood_ == "normal"
    model.train(2, seed=0, **LIGHTNING)
    assert np.isfinite(model.get_population_embedding().to_numpy()).all()


# ------------------------------------------------------------------ writing


def test_embeddings_are_written_to_the_folder_and_replaced(trained, copy):
    model = trained[0]
    model.embed_populations(copy)
    first = ad.read_zarr(copy)
    np.testing.assert_allclose(first.obsm["X_gde"], model.get_cell_embedding(copy), rtol=1e-5, atol=1e-5)
    broadcast, codes = first.obsm["X_gde_population"], model._table(copy).codes
    assert np.isnan(broadcast[codes < 0]).all() and np.isfinite(first.obsm["X_gde"]).all()
    embedding = model.get_population_embedding(copy)
    np.testing.assert_allclose(broadcast[codes >= 0], embedding.to_numpy()[codes[codes >= 0]], rtol=1e-5)
    pd.testing.assert_frame_equal(first.uns["gde"]["populations"], embedding, check_names=False)
    assert first.uns["gde"]["params"]["n_embedding"] == 6
    place = (copy / "obsm" / "X_gde").stat().st_ino
    trained[0].embed_populations(str(copy))
    assert (copy / "obsm" / "X_gde").stat().st_ino != place
    np.testing.assert_array_equal(ad.read_zarr(copy).obsm["X_gde"], first.obsm["X_gde"])
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    # the folder still is one that can be trained on
    scgde.GDEModel.setup_zarr(copy)


def test_what_is_interrupted_leaves_the_folder_as_it_was(trained, copy, monkeypatch):
    trained[0].embed_populations(copy)
    before = ad.read_zarr(copy).obsm["X_gde"]

    def full(self, rows, vectors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scgde.data.embedding_store.EmbeddingStore.put", full)
    with pytest.raises(OSError, match="No space"):
        trained[0].embed_populations(copy)
    np.testing.assert_array_equal(ad.read_zarr(copy).obsm["X_gde"], before)
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


# ------------------------------------------------------------------ what changes under a model


def test_a_file_that_is_lost_after_opening_is_told(copy):
    model = streamed(copy)
    model.train(2, seed=0, **LIGHTNING)
    for name in ("obs/batch/codes", "X/data"):
        file = chunks(copy, name)[0]
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(DamagedStoreError, match=name):
            model.get_population_adata()
        file.write_bytes(content)
    assert len(model.get_population_adata()) == 12


def test_a_folder_that_is_written_anew_is_not_taken_for_the_old_one(copy, in_memory):
    model = streamed(copy)
    scgde.pp.write_populations(in_memory[::2].copy(), copy, overwrite=True, progress=False)
    with pytest.raises(DamagedStoreError, match="written anew"):
        model.train(2, seed=0, **LIGHTNING)
    shutil.rmtree(copy)
    with pytest.raises(DamagedStoreError, match="gone"):
        model._table()


def test_batches_larger_than_a_buffer_still_take_every_cell(store, monkeypatch):
    monkeypatch.setattr(streamed_table, "CELLS_PER_BUFFER", 30)
    table = streamed(store)._table()
    stream = CellStream(table, np.arange(table.n_cells), seed=1)
    for n in (1, 2, 3, 7):
        batches = [cells for cells, _ in stream.batches(0, n)]
        assert len(batches) == n
        np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(table.n_cells))


def test_the_labels_of_cells_in_no_population_are_those_of_the_folder(tmp_path, make_cells):
    adata = make_cells(6)
    adata.obs["number"] = pd.factorize(adata.obs["population"])[0]
    scgde.pp.write_populations(adata, tmp_path / "n.zarr", "number", unassigned=0, progress=False)
    for key, unassigned in ((None, None), ("number", None), ("number", 0), ("number", "0")):
        cells = scgde.GDEModel.setup_zarr(tmp_path / "n.zarr", key, unassigned=unassigned)
        assert scgde.GDEModel(cells, **SMALL).summary_stats.n_population == 5
    assert (
        scgde.GDEModel(
            scgde.GDEModel.setup_zarr(tmp_path / "n.zarr", unassigned=[]), **SMALL
        ).summary_stats.n_population
        == 6
    )


def test_whole_numbers_of_obsm_are_no_counts_by_default(in_memory, tmp_path):
    in_memory.obsm["protein"] = np.arange(in_memory.n_obs * 3).reshape(-1, 3) % 7
    scgde.pp.write_populations(in_memory, tmp_path / "p.zarr", obsm_key="protein", progress=False)
    cells = scgde.GDEModel.setup_zarr(tmp_path / "p.zarr")
    assert scgde.GDEModel(cells, n_embedding=6, n_hidden=16).gene_likelihood_ == "normal"


def test_methods_that_need_more_than_rows_take_a_path_too(trained, store):
    model = trained[0]
    labels = model.get_population_embedding().index
    moved = model.transport(str(store), labels[0], labels[1], seed=0)
    assert moved.obs["gde_source_cell"].tolist() == model.adata.obs_names.tolist()
    assert model.get_log_likelihood(str(store), indices=[1]).index[0] == model.adata.obs_names[1]
    expression = model.get_normalized_expression(store, indices=[0, 3])
    assert expression.index.tolist() == model.adata.obs_names[[0, 3]].tolist()


def test_misplaced_cells_are_told_where_they_belong(store):
    for misplaced in (str(store), scgde.GDEModel.setup_zarr(store)):
        with pytest.raises(TypeError, match="setup_zarr"):
            scgde.GDEModel.setup_anndata(misplaced)
    with pytest.raises(TypeError, match="setup_zarr"):
        scgde.GDEModel(str(store))
    with pytest.raises(ValueError, match="key_added"):
        streamed(store).embed_populations(key_added="a/b")


def test_a_large_population_is_embedded_in_blocks(monkeypatch):
    from scgde.encoders import ENCODERS, base

    encoder = ENCODERS["residual"](4, 6, 16).eval()
    u = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    codes = torch.arange(500) // 350
    whole = encoder.influence(u, codes, 2)
    monkeypatch.setattr(base, "_CELLS_PER_BLOCK", 64)
    for mine, theirs in zip(encoder.influence(u, codes, 2), whole, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_latents_are_read_whole_where_the_system_reads_less(monkeypatch):
    import os

    from scgde.data import latents

    file = latents.FileLatents(50, 3)
    mean = torch.arange(150.0).reshape(50, 3)
    file.write(0, mean, -mean)
    file.flush()
    read = os.pread
    monkeypatch.setattr(latents.os, "pread", lambda fd, n, at: read(fd, min(n, 100), at))
    found = file.rows(np.array([40, 3, 4, 49]))
    torch.testing.assert_close(found[0], mean[[40, 3, 4, 49]])
    torch.testing.assert_close(found[1], -mean[[40, 3, 4, 49]])
