"""Predictions of many requests: one whole file each, the same wherever it is computed, and not computed twice."""

import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scgde
from scgde.cluster._files import Request, predictor_digest, write_whole

REQUESTS = pd.DataFrame(
    {"perturbation": ["p0", "p2", "p0+p2", "p2"], "context": ["context_2", "context_0", "context_1", "context_0"]},
    index=list("abcd"),
)
OPTIONS = {"n_cells": 40, "progress": False}


@pytest.fixture(scope="module")
def predicted(predictor, client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted") / "new"
    return scgde.cluster.predict(predictor, REQUESTS, folder, client=client, seed=3, **OPTIONS)


def test_each_request_has_its_file(predicted, predictor):
    pd.testing.assert_frame_equal(predicted[["perturbation", "context"]], REQUESTS)
    assert (predicted["status"] == "written").all() and (predicted["n_cells"] == 40).all()
    assert predicted.loc["b", "file"] == predicted.loc["d", "file"]
    folder = os.path.dirname(predicted.loc["a", "file"])
    assert sorted(os.listdir(folder)) == sorted({os.path.basename(f) for f in predicted["file"]})
    for _, row in predicted.iterrows():
        cells = ad.read_h5ad(row["file"])
        assert cells.n_obs == 40 and (cells.obs["perturbation"] == row["perturbation"]).all()
        assert (cells.obs["context"] == row["context"]).all()
        request = Request(row["perturbation"], row["context"], None)
        local = predictor.predict(request.perturbation, request.context, n_cells=40, seed=request.seed(3))
        np.testing.assert_array_equal(cells.X.toarray(), local.X.toarray())
        assert list(cells.obs["gde_source_cell"]) == list(local.obs["gde_source_cell"])


def test_a_request_does_not_depend_on_the_others_nor_on_where_it_runs(predicted, predictor, tmp_path):
    alone = scgde.cluster.predict(predictor, REQUESTS.loc[["c"]], tmp_path, seed=3, **OPTIONS)
    assert os.path.basename(alone["file"].iloc[0]) == os.path.basename(predicted.loc["c", "file"])
    mine, theirs = (ad.read_h5ad(f) for f in (alone["file"].iloc[0], predicted.loc["c", "file"]))
    np.testing.assert_array_equal(mine.X.toarray(), theirs.X.toarray())


def test_only_what_is_missing_or_damaged_is_computed(predictor, tmp_path, monkeypatch):
    from scgde.cluster import _prediction

    asked, original = [], _prediction.predict_one

    def counted(context, request, *args):
        asked.append(request.perturbation)
        return original(context, request, *args)

    monkeypatch.setattr(_prediction, "predict_one", counted)
    first = scgde.cluster.predict(predictor, REQUESTS[:2], tmp_path, **OPTIONS)
    assert asked == ["p0", "p2"]
    size = os.path.getsize(first["file"].iloc[1])
    os.truncate(first["file"].iloc[1], size // 2)
    again = scgde.cluster.predict(predictor, REQUESTS, tmp_path, **OPTIONS)
    assert asked == ["p0", "p2", "p2", "p0+p2"]
    assert list(again["status"]) == ["present", "written", "written", "written"]
    assert ad.read_h5ad(first["file"].iloc[1]).n_obs == 40


def test_files_of_other_settings_are_replaced_on_request_only(predictor, tmp_path):
    first = scgde.cluster.predict(predictor, REQUESTS[:1], tmp_path, **OPTIONS)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        scgde.cluster.predict(predictor, REQUESTS, tmp_path, seed=1, **OPTIONS)
    assert len(os.listdir(tmp_path)) == 1
    other = scgde.cluster.predict(predictor, REQUESTS[:1], tmp_path, seed=1, overwrite=True, **OPTIONS)
    assert other["file"].iloc[0] == first["file"].iloc[0] and other["status"].iloc[0] == "written"


def test_a_saved_and_loaded_predictor_goes_on(predictor, screen_store, tmp_path):
    predictor.model.save(tmp_path / "model")
    predictor.save(tmp_path / "predictor")
    model = scgde.GDEModel.load(tmp_path / "model", adata=screen_store)
    loaded = scgde.PerturbationPredictor.load(tmp_path / "predictor", model)
    assert predictor_digest(loaded) == predictor_digest(predictor)
    loaded.model.module.skeleton.state_dict()
    name, value = next(iter(loaded.model.module.named_parameters()))
    value.data.view(-1)[0] += 1e-3
    assert predictor_digest(loaded) != predictor_digest(predictor), name


def test_cells_in_memory_go_along(predictor, screen_store, client, tmp_path):
    adata = ad.read_zarr(screen_store)
    scgde.GDEModel.setup_anndata(adata)
    predictor.model.save(tmp_path / "model")
    predictor.save(tmp_path / "predictor")
    model = scgde.GDEModel.load(tmp_path / "model", adata=adata)
    loaded = scgde.PerturbationPredictor.load(tmp_path / "predictor", model)
    there = scgde.cluster.predict(loaded, REQUESTS[:1], tmp_path / "there", client=client, **OPTIONS)
    here = scgde.cluster.predict(loaded, REQUESTS[:1], tmp_path / "here", **OPTIONS)
    mine, theirs = (ad.read_h5ad(t["file"].iloc[0]) for t in (there, here))
    np.testing.assert_array_equal(mine.X.toarray(), theirs.X.toarray())


def test_what_is_unknown_is_told_before_anything_is_predicted(predictor, tmp_path):
    table = pd.DataFrame({"perturbation": ["p0", "nothing"], "context": "context_0"})
    with pytest.raises(KeyError, match="nothing"):
        scgde.cluster.predict(predictor, table, tmp_path / "new", **OPTIONS)
    with pytest.raises(KeyError, match="context_9"):
        scgde.cluster.predict(predictor, table[:1].assign(context="context_9"), tmp_path / "new", **OPTIONS)
    with pytest.raises(KeyError, match="perturbation"):
        scgde.cluster.predict(predictor, table[["context"]], tmp_path / "new", **OPTIONS)
    with pytest.raises(ValueError, match="seed"):
        scgde.cluster.predict(predictor, table[:1], tmp_path / "new", seed=-1, **OPTIONS)
    assert not (tmp_path / "new").exists()


def test_names_of_files_are_safe_and_of_one_request_alone():
    labels = ["a/b", "a b", "a:b", "../a b", "x" * 300, "x" * 301]
    names = [Request(label, "../c", 1.0).file for label in labels]
    assert len(set(names)) == len(labels) and not any("/" in n or n.startswith(".") or len(n) > 255 for n in names)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fails(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.h5ad", fails)
    assert not list(tmp_path.iterdir())
