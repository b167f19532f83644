import os
import signal
import subprocess
import sys
import textwrap

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader


class Interrupt(pl.Callback):
    """Ctrl-C in the given phase, after some epochs of it."""

    def __init__(self, phase, after=1):
        self.phase, self.after, self.epochs = phase, after, 0

    def on_train_batch_start(self, trainer, plan, batch, batch_idx):
        if plan.in_cell_phase == (self.phase == "cell"):
            if self.epochs >= self.after:
                raise KeyboardInterrupt
            self.epochs += batch_idx == 0


@pytest.mark.parametrize("phase", ["cell", "population"])
def test_an_interrupted_model_generates_populations_where_they_are(phase, make_cells, make_model, train):
    adata = make_cells(12)
    model = make_model(adata)
    with pytest.warns(UserWarning, match=f"in the {phase} phase"):
        train(model, 400, callbacks=[Interrupt(phase, after=10)])
    z, u = model.get_population_embedding(), model.get_latent_representation()
    real = np.stack([u[(adata.obs["population"] == label).to_numpy()].mean(0) for label in z.index])
    rows = torch.tensor(z.to_numpy()).repeat_interleave(4000, 0)
    with torch.no_grad():
        made = model.module.sample_latent(rows, torch.Generator().manual_seed(0)).reshape(12, -1, 4).mean(1).numpy()
    # of the spread between populations, generated means keep most although six coordinates hold fourteen moments
    assert np.square(made - real).sum() < 0.2 * np.square(real - real.mean(0)).sum()


@pytest.mark.parametrize("phase", ["cell", "population"])
def test_an_interrupted_model_can_be_trained_further(phase, make_cells, make_model, train):
    model = make_model(make_cells(6))
    with pytest.warns(UserWarning, match=r"call train\(\) again"):
        train(model, 10, callbacks=[Interrupt(phase)])
    before = model.get_population_embedding()
    train(model, 3)
    after = model.get_population_embedding()
    assert np.isfinite(after).all(axis=None) and np.abs(before - after).max(axis=None) > 0


def test_other_errors_and_exits_are_not_swallowed(make_cells, make_model, train):
    class Exit(pl.Callback):
        def on_train_start(self, trainer, plan):
            raise SystemExit(3)

    model = make_model(make_cells(6))
    with pytest.raises(SystemExit) as stop:
        train(model, 4, callbacks=[Exit()])
    assert stop.value.code == 3 and not model.is_trained


def test_interruption_between_two_epochs(make_cells, make_model, train, monkeypatch):
    class NextEpoch(pl.Callback):
        def on_train_epoch_end(self, trainer, plan):
            # the trainer's loader of the coming epoch exists and has not started: clearing up raises a RuntimeError
            def stop(*args, **kwargs):
                raise KeyboardInterrupt

            monkeypatch.setattr(CombinedLoader, "__iter__", stop)

    model = make_model(make_cells(6))
    with pytest.warns(UserWarning, match="interrupted"):
        train(model, 8, train_size=1.0, callbacks=[NextEpoch()])
    assert np.isfinite(model.get_population_embedding().to_numpy()).all()


def test_a_signal_at_any_moment_ends_training_and_the_next_one_interrupts_as_before(tmp_path):
    code = """
        import os, signal, threading, numpy as np, scgde, lightning.pytorch as pl
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
        class Later(pl.Callback):
            def on_train_start(self, trainer, plan):
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        adata = scgde.datasets.simulate_populations(6, cells_per_population=(10, 20), n_genes=30)
        scgde.GDEModel.setup_anndata(adata)
        model = scgde.GDEModel(adata, n_latent=3, n_embedding=4, n_hidden=8)
        model.train(max_epochs=1_000_000, accelerator="cpu", enable_progress_bar=False, callbacks=[Later()])
        print("usable", np.isfinite(model.get_population_embedding().to_numpy()).all())
        print("handler", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            print("ignored")
        except KeyboardInterrupt:
            print("interrupted again")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        cwd=tmp_path,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[-4:-1] == ["usable True", "handler True", "interrupted again"]
    assert "Training was interrupted in epoch" in done.stderr


def test_the_handler_of_the_caller_survives_training(make_cells, make_model, train):
    def own(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, own)
    try:
        with pytest.warns(UserWarning, match="interrupted"):
            train(make_model(make_cells(6)), 4, callbacks=[Interrupt("cell")])
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
