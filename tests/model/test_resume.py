"""Training that is interrupted goes on to the result it would have had."""

import os
import signal
import subprocess
import sys
import textwrap

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

import scgde

LIGHTNING = {"accelerator": "cpu", "enable_progress_bar": False}
SMALL = {"n_latent": 4, "n_embedding": 6, "n_hidden": 16}
EPOCHS = 12

SCRIPT = """
    import os, signal, sys
    import lightning.pytorch as pl
    import scgde
    import torch

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)

    model = scgde.GDEModel(scgde.GDEModel.setup_zarr(sys.argv[1]), n_latent=5, n_embedding=6, n_hidden=16)
    model.train(int(sys.argv[4]), seed=3, checkpoint_dir=sys.argv[2], checkpoint_every=4, callbacks=[Kill()], early_stopping=True,
                batch_size=32, populations_per_batch=4, mixing=0.0, accelerator="cpu", enable_progress_bar=False)
    history = {name: frame[name].tolist() for name, frame in model.history.items()}
    end = {"parameters": model.module.state_dict(), "history": history, "steps": model.trainer.global_step}
    torch.save(end, sys.argv[2] + "/end.pt")
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_cells):
    path = tmp_path_factory.mktemp("resume") / "cells.zarr"
    scgde.pp.write_populations(make_cells(14, sizes=(5, 40)), path, progress=False)
    return path


def trained(store, **options):
    model = scgde.GDEModel(scgde.GDEModel.setup_zarr(store), **SMALL)
    batches = {"batch_size": 32, "populations_per_batch": 4}
    model.train(EPOCHS, **{"seed": 3, "early_stopping": True} | batches | LIGHTNING | options)
    return model


@pytest.fixture(scope="module")
def uninterrupted(store):
    return trained(store)


def run(store, folder, step=-1):
    """Train in another process, which is killed after a step or comes to its end."""
    script = textwrap.dedent(SCRIPT)
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", script, str(store), str(folder), str(step), str(EPOCHS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == (0 if step < 0 else -signal.SIGKILL), done.stderr.decode()[-2000:]
    return torch.load(folder / "end.pt", weights_only=True) if step < 0 else None


def test_training_killed_in_both_phases_ends_with_the_same_parameters(store, tmp_path):
    whole = run(store, tmp_path / "whole")
    # in the middle of an epoch of the cell phase, and one of the population phase
    for step in (14, whole["steps"] - 5):
        run(store, tmp_path / "killed", step)
        assert [p.name for p in (tmp_path / "killed").iterdir()] == ["training.ckpt"]
    resumed = run(store, tmp_path / "killed")
    assert resumed["steps"] == whole["steps"] and resumed["history"] == whole["history"]
    for name, value in whole["parameters"].items():
        torch.testing.assert_close(resumed["parameters"][name], value, rtol=0, atol=0)


@pytest.mark.parametrize("width", [3, 5])
def test_training_on_continuous_rows_goes_on_to_the_same_parameters(tmp_path, width):
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(12), 25)
    rows = 7 * rng.normal(size=(12, width))[codes] + rng.normal(size=(300, width))
    adata = AnnData(
        rows.astype(np.float32), obs=pd.DataFrame({"population": codes.astype(str)}, index=codes.astype(str))
    )
    adata.obs_names_make_unique()

    def train_on(**options):
        scgde.GDEModel.setup_anndata(adata)
        model = scgde.GDEModel(adata, gene_likelihood="normal", n_embedding=6, n_hidden=16)
        model.train(6, seed=3, populations_per_batch=4, mixing=0.0, **LIGHTNING | options)
        return model

    whole = train_on()
    with pytest.raises(RuntimeError, match="stopped"):
        train_on(checkpoint_dir=tmp_path, checkpoint_every=2, callbacks=[Stop(whole.trainer.global_step - 3)])
    resumed = train_on(checkpoint_dir=tmp_path, checkpoint_every=2)
    for name, value in whole.module.state_dict().items():
        torch.testing.assert_close(resumed.module.state_dict()[name], value, rtol=0, atol=0)


class Stop(pl.Callback):
    """Fail after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def test_checkpoints_change_nothing(store, uninterrupted, tmp_path):
    model = trained(store, checkpoint_dir=tmp_path / "new", checkpoint_every=1)
    for name, value in uninterrupted.module.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, rtol=0, atol=0)


def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(store, tmp_path):
    trained(store, checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(ValueError, match="seed was 3 and is 4"):
        trained(store, checkpoint_dir=tmp_path, seed=4)
    with pytest.raises(ValueError, match="batch_size was 32 and is 16"):
        trained(store, checkpoint_dir=tmp_path, batch_size=16)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"plan_kwargs": {"lr_cells": 1e-4}}, "plan_kwargs"), ({"early_stopping": False}, "early_stopping")],
)
def test_a_checkpoint_of_other_options_is_refused(store, tmp_path, options, named):
    trained(store, checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(ValueError, match=named):
        trained(store, checkpoint_dir=tmp_path, **options)


def test_a_checkpoint_of_other_genes_counts_or_populations_is_refused(make_cells, tmp_path):
    def model_of(change):
        adata = make_cells(6)
        change(adata)
        scgde.GDEModel.setup_anndata(adata)
        return scgde.GDEModel(adata, **SMALL)

    def rename(adata):
        adata.var_names = [f"other{i}" for i in range(adata.n_vars)]

    def recount(adata):
        adata.X = adata.X * 2

    def relabel(adata):
        adata.obs["population"] = "x" + adata.obs["population"].astype(str)

    model_of(lambda adata: None).train(4, seed=0, checkpoint_dir=tmp_path, checkpoint_every=1, **LIGHTNING)
    for change, named in ((rename, "set-up"), (recount, "counts"), (relabel, "set-up")):
        with pytest.raises(ValueError, match=named):
            model_of(change).train(4, seed=0, checkpoint_dir=tmp_path, **LIGHTNING)


def test_further_training_does_not_go_on_from_the_end_of_the_last(store, tmp_path):
    model = trained(store, checkpoint_dir=tmp_path, checkpoint_every=3)
    with pytest.raises(ValueError, match="trained before"):
        model.train(EPOCHS, seed=3, checkpoint_dir=tmp_path, early_stopping=True, **LIGHTNING)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_steps_between_checkpoints_are_checked_first(store, tmp_path, every):
    with pytest.raises(ValueError, match="checkpoint_every"):
        trained(store, checkpoint_dir=tmp_path, checkpoint_every=every)


def test_what_a_killed_process_left_is_removed(store, tmp_path):
    (tmp_path / "training.999999999.partial").write_bytes(b"half")
    trained(store, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert [p.name for p in tmp_path.iterdir()] == ["training.ckpt"]


def test_without_a_seed_that_of_the_checkpoint_is_used(store, tmp_path):
    trained(store, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert trained(store, checkpoint_dir=tmp_path, seed=None).seed_ == 3


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "code"])
def test_a_damaged_checkpoint_is_refused_and_none_of_it_is_run(store, tmp_path, content):
    path = tmp_path / "training.ckpt"
    if content == "code":
        torch.save({"scgde_run": Evil(tmp_path / "ran")}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="delete it"):
        trained(store, checkpoint_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_checkpoint_before_to_go_on_from(store, uninterrupted, tmp_path, monkeypatch):
    write, calls = pl.Trainer.save_checkpoint, []

    def full_at_the_third(self, path, **options):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(self, path, **options)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full_at_the_third)
    with pytest.raises(OSError, match="Make room"):
        trained(store, checkpoint_dir=tmp_path, checkpoint_every=4)
    assert [p.name for p in tmp_path.iterdir()] == ["training.ckpt"]
    model = trained(store, checkpoint_dir=tmp_path, checkpoint_every=4)
    for name, value in uninterrupted.module.state_dict().items():
        torch.testing.assert_close(model.module.state_dict()[name], value, rtol=0, atol=0)


class Evil:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
