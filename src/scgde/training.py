"""The Lightning plan: cell phase, population phase, schedules and logs."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from scgde._constants import BATCH_KEYS, TRAINING_STATE
from scgde._distributed import GradientAverage, ProcessesStrategy, agree
from scgde.population_phase import prepare_population_phase

if TYPE_CHECKING:
    from scgde.data import PopulationDataModule
    from scgde.module import GDEModule

logger = logging.getLogger(__name__)

CELL_STEPS = 1500
"""Optimisation steps of the cell phase by default."""

SET_STEPS = 800
"""Optimisation steps of the population phase by default."""

SET_PASSES = 300
"""Epochs of the population phase at most: beyond, a flow learns the cells of a few small populations by heart."""

CELL_PASSES = (15, 200)
"""Range of the limit on passes over the cells; see :func:`cell_pass_limit`."""


@dataclass(frozen=True)
class EpochPlan:
    """Epochs of the two phases."""

    cells: int
    sets: int

    @property
    def total(self) -> int:
        """All epochs."""
        return self.cells + self.sets


def cell_pass_limit(n_cells: int, n_vars: int) -> int:
    """Passes over the cells at most, so that small data are not learned by heart.

    What an autoencoder learns by heart grows with the number of genes and falls with the number of cells. In
    ``benchmarks/cell_phase.py`` the evidence bound of held-out cells is best after 20 passes at 1,400 cells of 7,000 genes
    and 40 at 550 of 2,500, where 160 make it 10 % and 7 % worse; at 11,000 cells of 300 genes 160 cost under 1 %. The limit
    is 50 times the square root of cells per gene, within 15 and 200.
    """
    low, high = CELL_PASSES
    return int(min(max(50 * math.sqrt(n_cells / max(n_vars, 1)), low), high))


def default_epochs(
    n_cell_batches: int, n_set_batches: int, *, learned: bool, max_epochs: int | None, max_passes: int = CELL_PASSES[1]
) -> EpochPlan:
    """Epochs by optimisation steps: what a model needs is steps, and an epoch of a large data set holds many.

    Without ``max_epochs`` the cell phase takes about 1,500 steps, at most ``max_passes`` over the cells and at least two,
    and the population phase about 800 steps, at most 300 epochs. With it the epochs are shared out in the same
    proportion, at least one to each phase where there are two or more.
    """
    cells = max(min(math.ceil(CELL_STEPS / n_cell_batches), max_passes), 2) if learned else 0
    sets = max(min(math.ceil(SET_STEPS / n_set_batches), SET_PASSES), 1)
    if max_epochs is None:
        return EpochPlan(cells, sets)
    if max_epochs < 1 or int(max_epochs) != max_epochs:
        message = f"max_epochs={max_epochs!r} must be a positive integer."
        raise ValueError(message)
    if not learned:
        return EpochPlan(0, int(max_epochs))
    max_epochs = int(max_epochs)
    share = min(max(round(max_epochs * cells / (cells + sets)), 1), max(max_epochs - 1, 1))
    return EpochPlan(share, max_epochs - share)


class GDETrainingPlan(pl.LightningModule):
    """Two phases under one optimiser, each with a one-cycle learning rate.

    Parameters
    ----------
    module
        The module to train.
    epochs
        Epochs of each phase.
    lr_cells, lr_sets, lr_generator
        Largest learning rate of the cell phase, and in the population phase that of set encoder and skeleton, which start
        from a closed form, and of the generator, which does not.
    weight_decay, eps
        Of Adam.
    kl_weight, kl_warmup
        Weight of the cell latent's divergence, and the share of the cell phase over which it rises to that weight.
    contrast_weight
        Weight of the term that keeps contrasts between populations in the cell latent
        (:class:`scgde.contrasts.Contrasts`).
    auxiliary
        A further term of the population phase, of the embeddings of training sets, such as
        :class:`scgde.perturbation.PredictableShifts`.
    clip
        Largest norm of a gradient.
    seed
        Training noise derives from it and the step.
    """

    def __init__(
        self,
        module: GDEModule,
        epochs: EpochPlan,
        *,
        lr_cells: float = 8e-3,
        lr_sets: float = 2e-3,
        lr_generator: float = 5e-3,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
        kl_weight: float = 1.0,
        kl_warmup: float = 0.2,
        contrast_weight: float = 3.0,
        n_contrasts: int = 0,
        auxiliary: nn.Module | None = None,
        clip: float = 50.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.module = module
        self.epochs = epochs
        self.lr_cells, self.lr_sets, self.lr_generator = lr_cells, lr_sets, lr_generator
        self.weight_decay, self.eps = weight_decay, eps
        self.kl_weight, self.kl_warmup = kl_weight, kl_warmup
        self.contrast_weight = contrast_weight if n_contrasts else 0.0
        self.auxiliary = auxiliary
        self.clip = clip
        self.seed = seed
        self._sums: dict[str, dict[str, tuple[Any, int]]] = {"train": {}, "validation": {}}
        self._saved_kept: dict[str, Tensor | None] | None = None
        self._average: GradientAverage | None = None
        self._weight = 1.0
        self.in_cell_phase = epochs.cells > 0
        self.phase_start = 0
        # Reads the contrasts off a noisy draw of the latent: they must be there at more than the noise's amplitude, and
        # may be there in any shape (a linear read-out would bend the latent towards log-normalised expression). It is
        # of no use after training.
        n_latent = module.observation.n_latent
        self.contrast_head = (
            nn.Sequential(nn.Linear(n_latent, 128), nn.ReLU(), nn.Linear(128, n_contrasts)) if n_contrasts else None
        )
        # set by scvi-tools' runner
        self.n_obs_training: int | None = None
        self.n_obs_validation: int | None = None

    @property
    def datamodule(self) -> PopulationDataModule:
        """The data module that this plan trains on."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # one group for each learning rate of the population phase; all have the same in the cell phase
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            rate = self.lr_sets
            if name.startswith("module.generator."):
                own = name.removeprefix("module.generator.")
                rate = self.lr_generator * self.module.generator.learning_rate_factor(own)
            elif name.startswith("module.set_encoder."):
                rate *= self.module.set_encoder.learning_rate_factor(name.removeprefix("module.set_encoder."))
            groups.setdefault(rate, []).append(parameter)
        options: list[dict[str, Any]] = [{"params": p, "population_rate": rate} for rate, p in groups.items()]
        # one kernel for each group and not a dozen for each of its tensors
        fused = all(p.device.type in ("cpu", "cuda") for p in self.parameters())
        return torch.optim.Adam(options, lr=self.lr_cells, eps=self.eps, weight_decay=self.weight_decay, fused=fused)

    def _progress(self) -> float:
        """Share of the current phase that is done, from 0 to 1."""
        data = self.datamodule
        if self.in_cell_phase:
            total = self.epochs.cells * data.n_cell_batches
        else:
            total = self.epochs.sets * data.n_set_batches
        return min((self.global_step - self.phase_start) / max(total - 1, 1), 1.0)

    def on_after_backward(self) -> None:
        if isinstance(self.trainer.strategy, ProcessesStrategy) and self._together:
            if self._average is None:
                self._average = GradientAverage(self.parameters())
            self._average(self._weight)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip)
        for group in optimizer.param_groups:
            peak = self.lr_cells if self.in_cell_phase else group["population_rate"]
            group["lr"] = peak * one_cycle(self._progress())

    @property
    def _together(self) -> bool:
        """Whether several processes train the model."""
        return self.trainer.world_size > 1

    def _noise(self, *key: int) -> torch.Generator:
        seed = int(np.random.SeedSequence([self.seed, *key]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(device=self.device).manual_seed(seed)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        noise = self._noise(0, self.global_step, self.trainer.global_rank)
        if self.in_cell_phase:
            weight = self.kl_weight * min(self._progress() / max(self.kl_warmup, 1e-9), 1.0)
            loss, logs, size = self._cell_step(batch, "train", weight, noise)
        else:
            loss, logs, size = self._set_step(batch, "train", noise)
        # losses of sets are those of all processes' sets already
        self._weight = float(size) if self.in_cell_phase else 1.0
        self._log(logs, "train", size, last=self.trainer.is_last_batch)
        # a closed form without a generator has nothing to train
        return loss if loss.requires_grad else None

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        noise = self._noise(1, batch_idx, self.trainer.global_rank)
        if self.in_cell_phase:
            _, logs, size = self._cell_step(batch, "validation", self.kl_weight, noise)
        else:
            _, logs, size = self._set_step(batch, "validation", noise)
        trainer = self.trainer
        n_batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._log(logs, "validation", size, last=batch_idx + 1 >= n_batches[0])

    def _cell_step(
        self, batch: dict[str, Tensor], mode: str, kl_weight: float, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        output, u = self.module.cell_loss(batch, kl_weight, noise)
        n = output.n_obs_minibatch
        reconstruction, divergence = output.reconstruction_loss_sum / n, output.kl_local_sum / n
        logs = {
            f"{mode}_loss": output.loss,
            f"elbo_{mode}": reconstruction + divergence,
            f"reconstruction_loss_{mode}": reconstruction,
            f"kl_local_{mode}": divergence,
        }
        # the prior of the weights counts once for all cells
        loss = output.loss + self.module.observation.penalty() / self.datamodule.n_train
        if self.contrast_head is not None and BATCH_KEYS.CONTRASTS in batch:
            error = self.contrast_head(u / self.module.observation.latent_scale) - batch[BATCH_KEYS.CONTRASTS]
            contrast = error.square().sum(dim=1).mean()
            loss = loss + self.contrast_weight * contrast
            logs[f"contrast_{mode}"] = contrast
        return loss, logs, n

    def _set_step(
        self, batch: dict[str, Tensor], mode: str, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        # Roots of matrices, and small differences between embeddings, are not for half precision. Processes may have different
        # numbers of batches to validate on, and must not wait for each other there.
        with torch.autocast(self.device.type, enabled=False):
            terms = self.module.population_loss(batch, noise, together=self._together and mode == "train")
        logs = {f"{mode}_loss": terms["loss"]}
        logs |= {f"{name}_{mode}": value for name, value in terms.items() if name != "loss"}
        loss, sources = terms["loss"], batch[BATCH_KEYS.SOURCES]
        if self.auxiliary is not None and mode == "train":
            scored = batch.get(BATCH_KEYS.SCORED)
            rows = slice(None) if scored is None else ~scored
            u, segment = batch[BATCH_KEYS.U_MEAN][rows], batch[BATCH_KEYS.SEGMENT][rows]
            z = self.module.set_encoder(u, segment, n_sets=len(sources))
            extra = self.auxiliary(z, sources, batch[BATCH_KEYS.SOURCE_WEIGHTS])
            loss = loss + extra
            logs[f"auxiliary_{mode}"] = extra
        return loss, logs, len(sources)

    def _log(self, values: dict[str, Tensor], mode: str, batch_size: int, *, last: bool) -> None:
        """Log means over an epoch's batches, each weighing by its size, with the last of them.

        Lightning's own averaging costs time at every step. What the last batch logs is there for all callbacks.
        """
        sums = self._sums[mode]
        for name, value in values.items():
            total, weight = sums.get(name, (0.0, 0))
            sums[name] = total + value.detach() * batch_size, weight + batch_size
        if not last:
            return
        self._sums[mode] = {}
        sync = self._together
        for name, (total, weight) in sums.items():
            bar = name.endswith("_loss")
            self.log(name, total / weight, on_step=False, on_epoch=True, prog_bar=bar, sync_dist=sync, batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[TRAINING_STATE] = {
            "in_cell_phase": self.in_cell_phase,
            "phase_start": self.phase_start,
            "epochs": [self.epochs.cells, self.epochs.sets],
            "contrasts": None if self.datamodule.contrasts is None else self.datamodule.contrasts.state(),
            "kept": None if self.in_cell_phase else self.module.kept_state(),
            "sums": {mode: {name: list(pair) for name, pair in sums.items()} for mode, sums in self._sums.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[TRAINING_STATE]
        self.in_cell_phase, self.phase_start = state["in_cell_phase"], state["phase_start"]
        self.epochs = EpochPlan(*state["epochs"])
        self._saved_kept = state["kept"]
        self.trainer.fit_loop.max_epochs = self.epochs.total
        self._sums = {mode: {name: tuple(p) for name, p in sums.items()} for mode, sums in state["sums"].items()}

    def on_fit_start(self) -> None:
        if not self.in_cell_phase and self.datamodule.latent is None:
            # training goes on in the population phase
            prepare_population_phase(self.module, self.datamodule, resumed=True)
            if self._saved_kept is not None:
                self.module.restore_kept(self._saved_kept)

    def on_train_epoch_end(self) -> None:
        if self.in_cell_phase and self.current_epoch + 1 >= self.epochs.cells:
            self.start_population_phase()

    def start_population_phase(self) -> None:
        """Fix the cell latent and start the population phase from its closed form."""
        prepare_population_phase(self.module, self.datamodule)
        if self._together:
            agree(self.module)
        # only now: who interrupts the line above has a model whose population phase must still be prepared
        self.in_cell_phase = False
        self.phase_start = self.global_step
        self._average = None  # other parameters are trained


def one_cycle(progress: float, warmup: float = 0.3) -> float:
    """Learning rate as a share of its largest value: up over ``warmup``, then down to near nothing."""
    if progress < warmup:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * progress / warmup))
    return max(0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))), 1e-4)


class PhaseEarlyStopping(pl.Callback):
    """End a phase when its validation loss has stopped falling; however it ends, go back to its best weights.

    The two phases have different losses, so one stopping rule over both would compare what cannot be compared.

    Parameters
    ----------
    patience
        Validations without improvement after which a phase ends.
    min_delta
        What counts as improvement, relative to the best loss.
    """

    def __init__(self, patience: int = 10, min_delta: float = 1e-4) -> None:
        self.patience = patience
        self.min_delta = min_delta
        self._reset()

    def _reset(self) -> None:
        self.best, self.waited = math.inf, 0
        self.phase: bool | None = None
        self.weights: dict[str, Any] | None = None

    def _restore(self, plan: GDETrainingPlan) -> None:
        if self.weights is not None and self.phase == plan.in_cell_phase:
            plan.module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "waited", "phase", "weights")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_epoch_end(self, trainer: pl.Trainer, plan: GDETrainingPlan) -> None:  # type: ignore[override]
        # before the plan's own hook of this name, which starts the population phase
        if plan.in_cell_phase and plan.current_epoch + 1 >= plan.epochs.cells:
            self._restore(plan)

    def on_train_end(self, trainer: pl.Trainer, plan: GDETrainingPlan) -> None:  # type: ignore[override]
        self._restore(plan)

    def on_validation_end(self, trainer: pl.Trainer, plan: GDETrainingPlan) -> None:  # type: ignore[override]
        if trainer.sanity_checking or "validation_loss" not in trainer.callback_metrics:
            return
        if self.phase != plan.in_cell_phase:
            self._reset()
            self.phase = plan.in_cell_phase
        value = float(trainer.callback_metrics["validation_loss"])
        if value < self.best - self.min_delta * abs(self.best if math.isfinite(self.best) else 0.0):
            self.best, self.waited = value, 0
            self.weights = copy.deepcopy(plan.module.state_dict())
            return
        self.waited += 1
        if self.waited < self.patience:
            return
        self._restore(plan)
        phase = "cell" if plan.in_cell_phase else "population"
        logger.info(f"Validation loss of the {phase} phase stopped falling at epoch {trainer.current_epoch}.")
        if plan.in_cell_phase:
            done = trainer.current_epoch + 1
            plan.epochs = EpochPlan(done, plan.epochs.sets)
            trainer.fit_loop.max_epochs = done + plan.epochs.sets
        else:
            trainer.should_stop = True
