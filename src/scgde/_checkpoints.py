"""Checkpoints that interrupted training goes on from, to the same result."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import pandas as pd
import torch
from scvi.train import Trainer, TrainRunner

from scgde._constants import TRAINING_STATE
from scgde._identity import describe_setup, digest, fingerprint

if TYPE_CHECKING:
    from scgde.data import PopulationDataModule
    from scgde.training import EpochPlan, GDETrainingPlan

NAME = "training.ckpt"
"""Name of the file in the folder of checkpoints."""

_RUN = "scgde_run"
"""Key of what the callback adds to a checkpoint."""


class ResumePoint(pl.Callback):
    """Write where training is to a file, every so many steps.

    The file is replaced as a whole: whenever the process ends, the folder holds one that is complete.

    Parameters
    ----------
    folder
        Where the file is written.
    every
        Steps from one to the next.
    settings
        What has to be the same for a run that goes on from the file.
    """

    def __init__(self, folder: str | os.PathLike, every: int, settings: dict[str, Any]) -> None:
        self.path = Path(folder) / NAME
        self.every = every
        self.settings = settings

    def on_train_batch_end(self, trainer: pl.Trainer, plan: GDETrainingPlan, *args: Any) -> None:  # type: ignore[override]
        # after the last batch of an epoch Lightning still has to validate and to end it: the next batch will do
        if trainer.global_step % self.every == 0 and not trainer.is_last_batch:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Write the file."""
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        except OSError as error:
            message = (
                f"The checkpoint {str(self.path)!r} could not be written ({error}); the one before, if any, is as it was. Make room, and "
                "call train() with the same arguments to go on."
            )
            raise OSError(message) from error
        finally:
            if trainer.is_global_zero:
                partial.unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: pl.Trainer, plan: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        data = _recorded(trainer) or {}
        history = {
            name: {"index": frame.index.tolist(), "values": frame[name].tolist(), "axis": frame.index.name}
            for name, frame in data.items()
        }
        checkpoint[_RUN] = {"settings": self.settings, "history": history}

    def on_load_checkpoint(self, trainer: pl.Trainer, plan: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        data = _recorded(trainer)
        if data is None:
            return
        for name, values in checkpoint[_RUN]["history"].items():
            index = pd.Index(values["index"], name=values["axis"])
            data[name] = pd.DataFrame({name: values["values"]}, index=index, dtype=object)


def _recorded(trainer: pl.Trainer) -> dict[str, pd.DataFrame] | None:
    """What scvi-tools' logger has recorded; None on processes but the first, and with other loggers."""
    data = getattr(getattr(trainer.logger, "experiment", None), "data", None)
    return data if isinstance(data, dict) else None


class CarefulTrainer(Trainer):
    """Trainer that runs nothing that a checkpoint may hold."""

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Fit the model."""
        # releases without the option are covered by find_checkpoint, which reads the file in that way before
        if "weights_only" in inspect.signature(pl.Trainer.fit).parameters:
            kwargs["weights_only"] = True
        return super().fit(*args, **kwargs)


class CarefulRunner(TrainRunner):
    """Runner with such a trainer."""

    _trainer_cls = CarefulTrainer


def check_folder(folder: str | os.PathLike, every: int) -> None:
    """Make the folder of checkpoints, and remove what killed processes left half-written there.

    Raises
    ------
    ValueError
        If ``every`` is not a positive integer, or there is a file of the folder's name.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        message = f"checkpoint_every={every!r} must be a positive integer: steps from one checkpoint to the next."
        raise ValueError(message)
    if os.path.exists(folder) and not os.path.isdir(folder):
        message = f"checkpoint_dir={os.fspath(folder)!r} is a file; name a folder."
        raise ValueError(message)
    os.makedirs(folder, exist_ok=True)
    for partial in Path(folder).glob("training.*.partial"):
        number = partial.name.split(".")[1]
        if number.isdecimal() and not os.path.exists(f"/proc/{number}"):
            partial.unlink(missing_ok=True)


class SavedRun(NamedTuple):
    """What is needed of a checkpoint before training goes on.

    Attributes
    ----------
    settings
        What has to be the same.
    contrasts
        See :meth:`scgde.contrasts.Contrasts.state`; None without contrasts.
    """

    settings: dict[str, Any]
    contrasts: dict[str, Any] | None


def find_checkpoint(folder: str | os.PathLike) -> SavedRun | None:
    """The run whose checkpoint is in a folder; None if there is none. Nothing in the file is run.

    Raises
    ------
    ValueError
        If the file cannot be read or holds anything but plain types.
    """
    path = Path(folder) / NAME
    if not path.exists():
        return None
    try:
        # all of it is read once with restrictions, before Lightning reads it
        content = torch.load(path, map_location="cpu", weights_only=True)
        return SavedRun(content[_RUN]["settings"], content[TRAINING_STATE]["contrasts"])
    except Exception as error:
        message = (
            f"The checkpoint {str(path)!r} cannot be read ({type(error).__name__}); delete it to train from the start."
        )
        raise ValueError(message) from error


def run_facts(
    model: Any,
    data: PopulationDataModule,
    epochs: EpochPlan,
    options: dict[str, Any],
    *,
    early_stopping: bool,
    seed: int,
) -> dict[str, Any]:
    """What has to be the same for a run of ``model`` that goes on from the checkpoint of another; ``options`` are the plan's."""
    return {
        "seed": seed,
        "cells": fingerprint(model.adata),
        "counts": digest(data.table.totals(data.table.sample(data.train_idx, 1000, 0))),
        "training cells": digest(data.train_idx),
        "validation cells": digest(data.val_idx),
        "set-up": describe_setup(model.registry_),
        "gene_likelihood": model.gene_likelihood_,
        "early_stopping": bool(early_stopping),
        "plan_kwargs": {
            name: value if isinstance(value, str | int | float | bool | None) else type(value).__name__
            for name, value in sorted(options.items())
        },
        "trained before": bool(model.is_trained_ and not model._is_interrupted),
        "epochs": [epochs.cells, epochs.sets],
        "batch_size": data.batch_size,
        "populations_per_batch": data.sampler.populations_per_batch,
        "cells_per_population": data.sampler.cells_per_population,
        "mixing": data.sampler.mixing,
        "model": dict(model._module_options),
    }


def check_settings(saved: dict[str, Any], now: dict[str, Any], folder: str | os.PathLike) -> None:
    """Raise unless a run has the settings of the one that it would go on from."""
    different = [
        f"{name} was {saved.get(name)!r} and is {value!r}" for name, value in now.items() if saved.get(name) != value
    ]
    if different:
        message = (
            f"The checkpoint in {os.fspath(folder)!r} is of another run: {'; '.join(different)}. Call train() as then, or name another "
            "folder."
        )
        raise ValueError(message)
