"""MrVI (PyTorch) in its own environment: `python _peer_mrvi.py INPUT.npz OUTPUT.npz`.

Input: `counts` (cells, genes), `codes` (cells,) of populations from 0, `seconds` (CPU seconds of training) and `seed`. Output: between
all pairs of populations, `local` (get_local_sample_distances averaged over cells) and `representation` (Euclidean, between
representations of the samples averaged over cells); `u` and `z` of the cells; `epochs`; and CPU seconds of set-up, of training
and of distances.

Training has the package's defaults, and ends after the first minibatch at which the CPU time is spent.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist
from scvi.external import MRVI


class StopAtTime(Callback):
    """Ends training once the process has used ``seconds`` of CPU since it began."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = 0.0

    def on_train_start(self, trainer, module) -> None:
        self.started = time.process_time()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if time.process_time() - self.started >= self.seconds:
            trainer.should_stop = True


def main(source: str, target: str) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    begin = time.process_time()
    given = np.load(source)
    torch.set_num_threads(1)
    scvi.settings.seed = int(given["seed"])
    codes = given["codes"]
    # zero-padded, so that the order of the categories is that of the codes
    obs = pd.DataFrame(
        {"population": [f"{k:06d}" for k in codes], "all": "all"}, index=np.arange(len(codes)).astype(str)
    )
    adata = anndata.AnnData(csr_matrix(given["counts"].astype(np.float32)), obs=obs.astype("category"))
    MRVI.setup_anndata(adata, sample_key="population", backend="torch")
    model = MRVI(adata)
    timer = StopAtTime(float(given["seconds"]))
    model.train(
        accelerator="cpu",
        enable_progress_bar=False,
        max_epochs=int(given["epochs"]) or None,
        callbacks=[timer],
    )
    trained = time.process_time()
    order = [int(k) for k in model.sample_order]
    if order != list(range(codes.max() + 1)):
        raise RuntimeError(f"MrVI orders the samples as {order[:5]}...: the codes would not be theirs.")
    local = model.get_local_sample_distances(keep_cell=False, groupby="all", batch_size=64)["all"].to_numpy()[0]
    timed = time.process_time()
    representation = model.get_local_sample_representation(batch_size=64).to_numpy().mean(0)
    np.savez(
        target,
        local=local,
        representation=cdist(representation, representation),
        u=model.get_latent_representation(give_z=False),
        z=model.get_latent_representation(give_z=True),
        epochs=model.trainer.current_epoch,
        steps=model.trainer.global_step,
        setup_s=timer.started - begin,
        train_s=trained - timer.started,
        embed_s=timed - trained,
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
