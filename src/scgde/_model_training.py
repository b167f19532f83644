"""Training of :class:`scgde.GDEModel`."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from scgde._checkpoints import NAME as CHECKPOINT_NAME
from scgde._checkpoints import CarefulRunner, ResumePoint, check_folder, check_settings, find_checkpoint, run_facts
from scgde._distributed import ProcessesStrategy
from scgde._identity import fingerprint
from scgde._seeds import resolve_seed
from scgde.components import CellComponents
from scgde.contrasts import Contrasts
from scgde.data import PopulationDataModule
from scgde.data.cells import UNSEEN_BATCH
from scgde.data.populations import split_by_cell, split_by_column, split_by_population
from scgde.population_phase import finish_population_phase, prepare_population_phase
from scgde.training import GDETrainingPlan, PhaseEarlyStopping, cell_pass_limit, default_epochs

if TYPE_CHECKING:
    from anndata import AnnData

    from scgde.data import CellTable
    from scgde.module import GDEModule

logger = logging.getLogger(__name__)

FEW_POPULATIONS = 100
"""Below this many training populations, half of the training sets are mixtures of populations."""

MAX_WARM_START = 5_000_000
"""Entries of the sample of rows that the decoder's linear start is fitted on, at most."""

# advice on loader workers and log intervals, and a private deprecation, that no user of this model can act upon
_LIGHTNING_ADVICE = (
    ".*does not have many workers.*",
    "The number of training batches .* is smaller than the logging interval.*",
    ".*treespec, LeafSpec.*",
)


_STRATEGIES = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}
"""Lightning's strategies of several processes, and how they start them."""


class TrainingMixin:
    """Training, splits and what is kept of them."""

    adata: AnnData | None
    module: GDEModule
    summary_stats: Any
    is_trained_: bool
    registry_: dict
    _module_options: dict
    train_indices_: Any
    validation_indices_: Any
    test_indices_: Any
    _is_interrupted = False

    if TYPE_CHECKING:

        def _table(self, adata: AnnData | None = None) -> CellTable: ...
        def _build_module(self, seed: int | None) -> GDEModule: ...
        def _remember_populations(self, data: PopulationDataModule) -> None: ...

    def train(
        self,
        max_epochs: int | None = None,
        *,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float = 0.9,
        validation_size: float | None = None,
        split_by: Literal["cell", "population"] = "cell",
        split_key: str | None = None,
        populations_per_batch: int = 32,
        cells_per_population: int = 64,
        batch_size: int | None = None,
        mixing: float | Literal["auto"] = "auto",
        early_stopping: bool = False,
        plan_kwargs: dict | None = None,
        datamodule: PopulationDataModule | None = None,
        seed: int | None = None,
        checkpoint_dir: str | os.PathLike | None = None,
        checkpoint_every: int = 500,
        **trainer_kwargs: Any,
    ) -> None:
        """Train: first the cell latent, then set encoder and generator.

        Interrupting (Ctrl-C) keeps what was learned; the model stays usable and a warning says how far it got.

        Parameters
        ----------
        max_epochs
            Epochs of both phases together. By default as many as give about 1,500 steps of the cell phase (fewer
            on small data: :func:`scgde.training.cell_pass_limit`) and 800 steps of the population phase (at most 300 epochs).
        accelerator, devices
            Passed to the trainer.
        train_size, validation_size
            Shares of cells (or populations) to train and validate on; what is left of both is a test set.
        split_by
            ``"cell"`` holds out cells of every population, ``"population"`` whole populations.
        split_key
            Column of ``obs`` with ``train``, ``validation`` or ``test`` for every cell, in place of a random split.
        populations_per_batch, cells_per_population
            Sets in a batch and cells in a set, at most; smaller populations are used whole, larger ones subsampled
            anew at every step.
        batch_size
            Cells in a batch of the cell phase: by default 512, or 128 for fewer than 5,000 cells.
        mixing
            Probability that a training set is a mixture of up to three populations. ``"auto"``: one half with fewer
            than 100 populations, else zero.
        early_stopping
            End each phase when its validation loss stops falling.
        plan_kwargs
            Options of :class:`~scgde.training.GDETrainingPlan`.
        datamodule
            A data module in place of the one built here.
        seed
            Makes splits, batches, noise and (for a model never trained before) initial weights repeatable. By default
            ``scvi.settings.seed``, else fresh (zero where several processes train).
        checkpoint_dir
            Folder where a checkpoint of the run is kept. If there is one, training goes on from it, with the result that it would
            have had without the interruption: after a crash or at the end of a job's time the same script is run again.
        checkpoint_every
            Steps of the optimiser from one checkpoint to the next.
        **trainer_kwargs
            Passed to the trainer. With ``strategy="ddp"`` as many processes as there are ``devices`` (and ``num_nodes``) train
            together: ``batch_size`` and ``populations_per_batch`` are of each, each takes other cells and populations, and the
            sets of all are compared with each other.

        Raises
        ------
        ValueError
            If an argument is out of range, there is nothing to train on, or the checkpoint is damaged or of another run.
        """
        if self.adata is None:
            message = "This model has no AnnData to train on; load it with one, or make a new model."
            raise ValueError(message)
        seed = resolve_seed(seed)
        saved = None
        if checkpoint_dir is not None:
            check_folder(checkpoint_dir, checkpoint_every)
            saved = find_checkpoint(checkpoint_dir)
        if saved is not None and seed is None:
            seed = saved.settings["seed"]
        if seed is None and _several_processes(trainer_kwargs.get("strategy")):
            seed = 0  # processes must draw alike
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        elif not self.is_trained_:
            self.module = self._build_module(seed)
        if datamodule is None:
            table = self._table()
            if (table.batch == UNSEEN_BATCH).any():
                message = (
                    f"Values of obs[{self.registry_['setup_args']['batch_key']!r}] are not those of setup_anndata; turn them "
                    "into strings, and set up again."
                )
                raise ValueError(message)
            train_idx, val_idx, test_idx = self._split(table, train_size, validation_size, split_by, split_key, seed)
            n_populations = len(np.unique(table.codes[train_idx][table.codes[train_idx] >= 0]))
            if n_populations < 2:
                message = f"Training cells hold {n_populations} population(s); at least two are needed."
                raise ValueError(message)
            datamodule = PopulationDataModule(
                table,
                train_idx,
                val_idx,
                test_idx,
                batch_size=batch_size or (512 if len(train_idx) >= 5000 else 128),
                populations_per_batch=populations_per_batch,
                cells_per_population=cells_per_population,
                mixing=(0.5 if n_populations < FEW_POPULATIONS else 0.0) if mixing == "auto" else mixing,
                sparse=self.module.observation.reads_sparse,
                seed=seed,
            )
        if early_stopping and datamodule.n_val == 0:
            message = "early_stopping=True needs validation cells; lower train_size."
            raise ValueError(message)
        _warn_of_single_cells(datamodule)
        options = dict(plan_kwargs or {})
        learned = self.module.observation.is_learned
        epochs = default_epochs(
            datamodule.n_cell_batches,
            datamodule.n_set_batches,
            learned=learned,
            max_epochs=max_epochs,
            max_passes=cell_pass_limit(datamodule.n_train, datamodule.table.matrix.shape[1]),
        )
        facts = {}
        if checkpoint_dir is not None:
            facts = run_facts(self, datamodule, epochs, options, early_stopping=early_stopping, seed=seed)
        if saved is not None:
            assert checkpoint_dir is not None
            check_settings(saved.settings, facts, checkpoint_dir)
            logger.info(f"Training goes on from the checkpoint in {os.fspath(checkpoint_dir)!r}.")
            # what was fitted before training is in the checkpoint: fitted again it might be rounded in another way
            if saved.contrasts is not None:
                datamodule.set_contrasts(Contrasts.from_state(saved.contrasts, datamodule.table, datamodule.train_idx))
        else:
            components = CellComponents.fit(datamodule.table, datamodule.train_idx, seed) if learned else None
            self._fit_rows(datamodule, components, seed)
            if components is not None and options.get("contrast_weight") != 0:
                datamodule.set_contrasts(Contrasts.fit(datamodule.table, datamodule.train_idx, components, seed))
        if options.get("auxiliary") is not None:
            rows = np.sort(np.concatenate([datamodule.train_idx, datamodule.val_idx]))
            options["auxiliary"].prepare(datamodule.table, rows, self.module.set_encoder.n_embedding)
        n_contrasts = 0 if datamodule.contrasts is None else datamodule.contrasts.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plan = GDETrainingPlan(self.module, epochs, seed=seed, n_contrasts=n_contrasts, **options)
        if learned and saved is None:
            self.module.observation.reset_depth()  # of earlier training
        elif saved is None:
            # their latent being fixed, further training goes on from what is there
            prepare_population_phase(self.module, datamodule, further=self.is_trained_)
        callbacks = list(trainer_kwargs.pop("callbacks", []))
        if early_stopping:
            callbacks.append(PhaseEarlyStopping())
        if checkpoint_dir is not None:
            if saved is not None:
                trainer_kwargs["ckpt_path"] = os.fspath(Path(checkpoint_dir) / CHECKPOINT_NAME)
            callbacks.append(ResumePoint(checkpoint_dir, checkpoint_every, facts))
        trainer_kwargs["callbacks"] = callbacks
        if datamodule.n_val:
            # scvi-tools' trainer would never validate
            trainer_kwargs.setdefault("check_val_every_n_epoch", max(epochs.total // 50, 1))
        strategy = trainer_kwargs.get("strategy")
        if strategy in _STRATEGIES:
            trainer_kwargs["strategy"] = ProcessesStrategy(start_method=_STRATEGIES[strategy])  # type: ignore[arg-type]
        runner = CarefulRunner(
            self,
            training_plan=plan,
            data_splitter=datamodule,
            max_epochs=epochs.total,
            accelerator=accelerator,
            devices=devices,
            reload_dataloaders_every_n_epochs=1,
            **trainer_kwargs,
        )
        self._run(runner, plan, datamodule)
        self._finish(datamodule, seed)

    def _split(
        self, table: CellTable, train_size: float, validation_size: float | None, by: str, key: str | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if key is not None:
            if key not in table.columns:
                message = f"split_key={key!r} is not in adata.obs; there are {table.columns}."
                raise KeyError(message)
            return split_by_column(table.column(key), key)
        check_choice("split_by", by, ("cell", "population"))
        validation_size = 1 - train_size if validation_size is None else validation_size
        if not (0 < train_size <= 1 and 0 <= validation_size and train_size + validation_size <= 1 + 1e-9):
            message = (
                f"train_size={train_size} and validation_size={validation_size} must be shares of at most 1 in all."
            )
            raise ValueError(message)
        split = split_by_cell if by == "cell" else split_by_population
        return split(table.codes, train_size, validation_size, np.random.default_rng(seed))

    def _fit_rows(self, data: PopulationDataModule, components: CellComponents | None, seed: int) -> None:
        """Statistics of the training rows and the linear model that the observation model starts from."""
        if self.is_trained_:
            return
        observation, table, gain = self.module.observation, data.table, 1.0
        if not observation.is_count:
            observation.fit(*_column_moments(table, data.train_idx), 1.0)
        else:
            if table.size_factor is not None:
                own = table.totals(data.train_idx).sum(dtype=np.float64)
                gain = float(own / table.size_factor[data.train_idx].sum(dtype=np.float64))
            nothing = torch.zeros(self.summary_stats.n_vars)
            observation.fit(nothing, nothing, gain)
        if components is not None:
            limit = max(MAX_WARM_START // self.summary_stats.n_vars, 500)
            sample = table.sample(data.train_idx, limit, seed)
            self.module.observation.warm_start(components, data.table.rows(sample), data.table.library(sample, gain))
        if data.table.continuous.shape[1]:
            self.module.observation.fit_covariates(torch.from_numpy(data.table.continuous[data.train_idx]))

    def _run(self, runner: CarefulRunner, plan: GDETrainingPlan, data: PopulationDataModule) -> None:
        """Run the trainer, keeping what was learned when the user interrupts."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            with warnings.catch_warnings():
                for text in _LIGHTNING_ADVICE:
                    warnings.filterwarnings("ignore", message=text)
                runner()
            if plan.in_cell_phase:
                prepare_population_phase(self.module, data)
                message = (
                    f"Training ended in the cell phase, after {runner.trainer.global_step} steps: set encoder and generator are as "
                    "they start. Train longer, or use max_epochs=, which leaves a share to both phases."
                )
                warnings.warn(message, UserWarning, stacklevel=3)
            else:
                finish_population_phase(self.module, data)
            self._is_interrupted = False
            return
        except (KeyboardInterrupt, SystemExit, RuntimeError) as stop:
            # Lightning turns Ctrl-C into SystemExit(1) and ignores further ones: both would end a notebook's kernel. Between
            # two epochs its own clearing up then fails, too.
            if not _is_interruption(stop):
                raise
        finally:
            if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
                signal.signal(signal.SIGINT, handler)
        phase = "cell" if plan.in_cell_phase else "population"
        message = (
            f"Training was interrupted in epoch {runner.trainer.current_epoch + 1} of {plan.epochs.total}, in the {phase} "
            "phase. The model keeps what it has learned and is usable; call train() again to train further."
        )
        self._is_interrupted = True
        if plan.in_cell_phase:
            prepare_population_phase(self.module, data)
        else:
            finish_population_phase(self.module, data)
        self.train_indices, self.validation_indices, self.test_indices = data.train_idx, data.val_idx, data.test_idx
        self.module.eval()
        self.is_trained_ = True
        self.history_ = getattr(runner.trainer.logger, "history", None)
        warnings.warn(message, UserWarning, stacklevel=3)

    def _finish(self, data: PopulationDataModule, seed: int) -> None:
        """Keep what getters and generation need once training is done."""
        self.seed_ = seed
        for attribute in ("train_indices_", "validation_indices_", "test_indices_"):
            setattr(self, attribute, np.asarray(getattr(self, attribute), dtype=np.int64))
        self.cells_ = "" if self.adata is None else fingerprint(self.adata)
        self._remember_populations(data)
        # a model keeps its trainer, and that the file of latents
        data.latent = None


def _several_processes(strategy: Any) -> bool:
    return "ddp" in str(strategy).lower() or int(os.environ.get("WORLD_SIZE", "1")) > 1


def _is_interruption(error: BaseException | None) -> bool:
    """Whether an exception is Ctrl-C, or was raised on the way out from it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _column_moments(table: CellTable, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every column over cells, ``(n_vars,)`` each, block by block."""
    total = square = np.zeros(table.matrix.shape[1])
    for block in np.array_split(indices, len(indices) // 4096 + 1):
        rows = table.rows(block).astype(np.float64)
        total, square = total + rows.sum(0), square + (rows**2).sum(0)
    mean = total / len(indices)
    variance = np.maximum(square / len(indices) - mean**2, 0)
    return torch.from_numpy(mean).float(), torch.from_numpy(variance).float()


def _warn_of_single_cells(data: PopulationDataModule) -> None:
    codes = data.table.codes
    sizes = np.bincount(codes[codes >= 0])
    single = int((sizes == 1).sum())
    if single:
        warnings.warn(
            f"{single} of {(sizes > 0).sum()} populations have one cell. They are embedded like any other, without a "
            "standard error; their spread is taken to be the average one.",
            UserWarning,
            stacklevel=3,
        )


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise unless ``value`` is one of the choices."""
    if value not in choices:
        message = f"{name}={value!r} is not one of {sorted(choices)}."
        raise ValueError(message)
