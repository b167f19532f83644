import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import scgde


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(tmp_path / "model")
    return str(tmp_path / "model")


def test_everything_is_the_same_after_loading(trained, saved):
    loaded = scgde.GDEModel.load(saved, trained.adata.copy(), accelerator="cpu")
    for name in ("get_population_embedding", "get_cell_embedding", "get_population_standard_error"):
        np.testing.assert_array_equal(np.asarray(getattr(loaded, name)()), np.asarray(getattr(trained, name)()))
    pd.testing.assert_frame_equal(
        loaded.history["elbo_train"].astype(float), trained.history["elbo_train"].astype(float), check_names=False
    )
    np.testing.assert_array_equal(loaded.train_indices, trained.train_indices)
    assert (loaded.get_population_adata().obs["gde_split"] == trained.get_population_adata().obs["gde_split"]).all()


def test_a_model_without_its_data_generates_and_embeds(trained, saved):
    with pytest.warns(UserWarning, match="loaded without"):
        loaded = scgde.GDEModel.load(saved, accelerator="cpu")
    labels = list(trained.get_population_embedding().index[3:5])
    assert (loaded.sample(labels, 6, seed=3).X != trained.sample(labels, 6, seed=3).X).nnz == 0
    np.testing.assert_array_equal(loaded.get_population_embedding(trained.adata), trained.get_population_embedding())
    with pytest.raises(ValueError, match="pass adata="):
        loaded.get_population_embedding()
    with pytest.raises(ValueError, match="no AnnData to train on"):
        loaded.train()


def test_data_can_be_saved_along(trained, tmp_path):
    trained.save(tmp_path / "m", prefix="a_", save_anndata=True)
    loaded = scgde.GDEModel.load(tmp_path / "m", prefix="a_", accelerator="cpu")
    np.testing.assert_array_equal(loaded.get_population_embedding(), trained.get_population_embedding())


def test_registry_can_be_read_alone(saved):
    registry = scgde.GDEModel.load_registry(saved)
    assert registry["setup_args"]["batch_key"] == "batch" and registry["model_name"] == "GDEModel"


def test_the_file_holds_plain_types(saved):
    content = torch.load(os.path.join(saved, "model.pt"), weights_only=True)
    assert set(content) == {"model_state_dict", "var_names", "attr_dict"}


def test_existing_folder_is_not_overwritten(trained, saved):
    with pytest.raises(ValueError, match="overwrite=True"):
        trained.save(saved)
    trained.save(saved, overwrite=True)


def test_truncated_file(saved):
    path = os.path.join(saved, "model.pt")
    data = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged"):
        scgde.GDEModel.load(saved, False)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("read", ["load", "load_registry"])
def test_a_payload_does_not_run(writer, read, saved, tmp_path):
    path, marker = os.path.join(saved, "model.pt"), str(tmp_path / "marker")
    content = {"model_state_dict": {}, "var_names": [], "attr_dict": Payload(marker)}
    if writer == "torch":
        torch.save(content, path)
    else:
        with open(path, "wb") as file:
            pickle.dump(content, file)
    with pytest.raises(ValueError, match="plain types"):
        getattr(scgde.GDEModel, read)(saved)
    assert not os.path.exists(marker)


def test_wrong_class(saved):
    path = os.path.join(saved, "model.pt")
    content = torch.load(path, weights_only=True)
    content["attr_dict"]["registry_"]["model_name"] = "SCVI"
    torch.save(content, path)
    with pytest.raises(ValueError, match="class 'SCVI'"):
        scgde.GDEModel.load(saved, False)


def test_a_file_of_another_version(saved):
    path = os.path.join(saved, "model.pt")
    content = torch.load(path, weights_only=True)
    del content["model_state_dict"]["observation.latent_scale"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"(?s)not of a model of this version.*latent_scale"):
        scgde.GDEModel.load(saved, False)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        scgde.GDEModel.load(tmp_path / "nothing")


def test_an_interrupted_write_leaves_the_old_file(trained, saved, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        trained.save(saved, overwrite=True)
    monkeypatch.undo()
    scgde.GDEModel.load(saved, False, accelerator="cpu")
