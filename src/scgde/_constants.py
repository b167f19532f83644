"""Names of registry keys, of AnnData slots and of defaults, in one place."""

from typing import NamedTuple

POPULATION_KEY = "population"
"""Registry key of the population field, and the default ``obs`` column."""

UNASSIGNED_CODE = -1
"""Population code of a cell that belongs to no population."""

LABEL_SEPARATOR = "|"
"""Joins the parts of a crossed label."""

OWN_PREFIX = "gde_"
"""Prefix of every ``obs`` column that the package adds."""

SCVI_PREFIX = "_scvi_"
"""Prefix of the ``obs`` columns that scvi-tools adds at registration."""


class _BatchKeys(NamedTuple):
    """Keys of one training batch (a dict of tensors)."""

    X: str = "X"
    BATCH: str = "batch"
    CATEGORICAL: str = "extra_categorical_covs"
    CONTINUOUS: str = "extra_continuous_covs"
    SIZE_FACTOR: str = "size_factor"
    CONTRASTS: str = "contrasts"
    # population phase: cells come as their cached latent posterior
    U_MEAN: str = "u_mean"
    U_SD: str = "u_sd"
    SEGMENT: str = "segment"
    SOURCES: str = "sources"
    SOURCE_WEIGHTS: str = "source_weights"
    SCORED: str = "scored"


BATCH_KEYS = _BatchKeys()

PREDICTED = "predicted"
"""Label of predicted cells in population columns that the prediction has no value of: they are of none of the populations that were seen."""

TRAINING_STATE = "scgde"
"""Key of what the training plan adds to a checkpoint."""
