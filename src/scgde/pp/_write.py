"""Cells of files that do not fit in memory, written sorted by population."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde._constants import POPULATION_KEY, UNASSIGNED_CODE
from scgde.data._merging import joint_codes, merge_column, population_order
from scgde.data._sorting import write_rows
from scgde.data._sources import FileSource, Source, check_columns, check_unique, gene_columns, open_sources
from scgde.data._staging import staged_folder
from scgde.data._store import StoreWriter
from scgde.data.populations import as_keys, as_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

logger = logging.getLogger(__name__)

MIN_MEMORY = 10_000_000
"""Bytes below which blocks would be so small that most time goes into opening files."""


def write_populations(
    adata: AnnData | str | os.PathLike | Sequence[AnnData | str | os.PathLike],
    path: str | os.PathLike,
    population_key: str | Sequence[str] = POPULATION_KEY,
    *,
    layer: str | None = None,
    obsm_key: str | None = None,
    unassigned: Any = None,
    var_names: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
    seed: int = 0,
    memory: int = 1_000_000_000,
    progress: bool = True,
) -> None:
    """Write cells of one or many files to one zarr folder, sorted by population, for training from disk.

    The cells of a population lie next to each other, in random order, so that any run of its rows is a random sample of it
    and is read at once. Populations come in the order of their labels, cells in no population at the end. The folder is an
    ordinary AnnData (:func:`anndata.read_zarr`) with rows, the names of cells and genes, and columns of ``obs``.

    Inputs are read once from start to end. Rows are distributed to temporary files beside ``path``, each for a range of
    places in the sorted order that fits in memory, and these are then sorted one by one. The temporary files take about as much room
    as the folder itself, and are gone at the end.

    Parameters
    ----------
    adata
        AnnData, path of an ``.h5ad`` file or of a zarr folder, or a list of these in any mixture. A population may span
        several. Sparse rows on disk must be stored by rows (CSR).
    path
        Folder to write, for example ``"atlas.zarr"``. It appears when it is complete: after an error, or if the process is
        killed, there is none, or the one that was there before.
    population_key
        Column of ``obs`` with the population of each cell, or a list of columns to cross, as in
        :meth:`scgde.GDEModel.setup_anndata`.
    layer
        Layer with the rows; ``X`` by default.
    obsm_key
        Array of ``obsm`` with the rows, which are then written as a dense ``X`` with variables ``{obsm_key}_0``, ...
    unassigned
        Label(s) that mean "in no population". Missing labels always do.
    var_names
        Genes to keep, in this order; those of the first input by default. All inputs must have them, in any order.
    columns
        Columns of ``obs`` to keep beside those of ``population_key``; by default those that all inputs have.
        Strings are written as categories.
    overwrite
        Whether to replace ``path`` if it exists.
    seed
        Seed of the order within populations.
    memory
        Bytes to work in, about, beside 60 bytes or so for each cell, and one column of ``obs`` at a time. With more of it
        fewer temporary files are needed: best is a hundredth of the data or more.
    progress
        Whether to show progress.

    Raises
    ------
    FileNotFoundError
        If an input, or the parent folder of ``path``, does not exist.
    FileExistsError
        If ``path`` exists, unless it is a zarr folder that may be overwritten.
    KeyError
        If an input lacks a column, the layer or the array.
    ValueError
        If there is no input, no cell is in a population, genes are missing or duplicated, rows are not finite numbers, or
        an argument is out of range.
    TypeError
        If an argument is of the wrong type.
    OSError
        If the disk is full; nothing is left behind.

    Examples
    --------
    >>> scgde.pp.write_populations(["plate_1.h5ad", "plate_2.h5ad"], "atlas.zarr", ["drug", "cell_line"])
    """
    keys = as_keys(population_key)
    unassigned = [] if unassigned is None else [unassigned] if np.isscalar(unassigned) else list(unassigned)
    unassigned = [as_label(label) for label in unassigned]
    _check_numbers(memory, seed)
    if isinstance(var_names, str):
        var_names = [var_names]
    sources = open_sources(adata, layer, obsm_key)
    _check_target(Path(path), sources)
    genes = _genes(sources, var_names, obsm_key)
    kept = _columns(sources, keys, columns)

    codes, labels = joint_codes(sources, keys, unassigned)
    if not labels:
        message = (
            f"population_key={keys}: every one of the {len(codes)} cells has a missing or unassigned label, so there is no "
            "population. Check the column(s) and the unassigned= argument."
        )
        raise ValueError(message)
    n_missing = int((codes == UNASSIGNED_CODE).sum())
    if n_missing:
        logger.info(f"{n_missing} of {len(codes)} cells are in no population and come last.")
    order = population_order(codes, seed)
    del codes

    n_entries = sum(int(source.row_entries().sum(dtype=np.int64)) for source in sources)
    with staged_folder(Path(path), overwrite=overwrite) as stage:
        try:
            store = StoreWriter(stage / "store")
            summary = write_rows(
                sources, order, genes, store, stage / "buckets", memory=memory, progress=_bar(progress)
            )
            store.frame("var", genes.to_numpy())
            digest = _write_obs(sources, order, kept, store)
            store.complete(
                {
                    "population_key": keys,
                    "unassigned": unassigned,
                    "n_cells": len(order),
                    "n_vars": len(genes),
                    "n_populations": len(labels),
                    "rows": "counts" if summary.is_counts else "real",
                    "obsm_key": obsm_key,
                    "seed": int(seed),
                    "names": digest,
                }
            )
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = (
                f"No space left for {os.fspath(path)!r}: its {n_entries} entries need between {3 * n_entries / 1e9:.2g} GB "
                f"(counts) and {12 * n_entries / 1e9:.2g} GB (real numbers) while they are sorted. Nothing was left behind. Free some space, or write to another disk."
            )
            raise OSError(error.errno, message) from error


def _write_obs(sources: list[Source], order: np.ndarray, columns: list[str], store: StoreWriter) -> str:
    """Write ``obs`` column by column; returns the digest of the names of cells."""
    names = np.concatenate([source.obs_names() for source in sources])[order]
    if not pd.Index(names).is_unique:
        logger.warning("Names of cells repeat. They are kept; make them unique to find cells by name.")
    store.frame("obs", names, columns)
    digest = hashlib.sha256()
    for start in range(0, len(names), 100_000):
        digest.update((("\n" if start else "") + "\n".join(names[start : start + 100_000])).encode())
    del names
    for name in columns:
        try:
            values = merge_column([source.column(name) for source in sources])
        except TypeError as error:
            message = f"obs[{name!r}]: {error}"
            raise TypeError(message) from error
        store.column("obs", name, values[order])
    return digest.hexdigest()


def _genes(sources: list[Source], var_names: Sequence[str] | None, obsm_key: str | None) -> pd.Index:
    """Genes to write, checked to be in all inputs."""
    if obsm_key is not None:
        if var_names is not None:
            message = f"var_names is given with obsm_key={obsm_key!r}, whose columns have no genes; leave it out."
            raise ValueError(message)
        widths = {source.name: len(source.var_names) for source in sources}
        if len(set(widths.values())) > 1:
            message = (
                f"obsm[{obsm_key!r}] has different numbers of columns: {widths}. Compute it for all cells together."
            )
            raise ValueError(message)
        return sources[0].var_names
    genes = sources[0].var_names if var_names is None else pd.Index([str(name) for name in var_names], dtype=object)
    if len(genes) == 0:
        message = "There are no genes to write; check var_names=."
        raise ValueError(message)
    check_unique(genes, sources[0].name if var_names is None else "var_names")
    for source in sources:
        gene_columns(source, genes)
        dropped = len(source.var_names) - len(genes)
        if dropped:
            logger.info(f"{source.name}: {dropped} of {len(source.var_names)} genes are left out.")
    return genes


def _columns(sources: list[Source], keys: list[str], columns: Sequence[str] | None) -> list[str]:
    """Columns of ``obs`` to write, those of the population key among them."""
    if columns is not None:
        wanted = [columns] if isinstance(columns, str) else list(columns)
        check_columns(sources, keys, wanted)
        return list(dict.fromkeys([*keys, *wanted]))
    check_columns(sources, keys, [])
    shared = set.intersection(*(set(source.obs_columns) for source in sources))
    left_out = sorted(set().union(*(source.obs_columns for source in sources)) - shared)
    if left_out:
        logger.info(f"Columns of obs that not all inputs have are left out: {left_out}.")
    return [name for name in sources[0].obs_columns if name in shared]


def _check_numbers(memory: Any, seed: Any) -> None:
    if isinstance(memory, bool) or not isinstance(memory, int | float | np.number) or not memory >= MIN_MEMORY:
        message = f"memory={memory!r} must be at least {MIN_MEMORY} bytes; the default is 1_000_000_000."
        raise ValueError(message)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        message = f"seed={seed!r} must be a non-negative integer."
        raise ValueError(message)


def _check_target(path: Path, sources: list[Source]) -> None:
    """Raise if the folder to write is an input, lies in one or holds one."""
    target = Path(os.path.realpath(path))
    for source in sources:
        if not isinstance(source, FileSource):
            continue
        found = Path(os.path.realpath(source.name))
        if target == found or target in found.parents or found in target.parents:
            message = (
                f"path={os.fspath(path)!r} is, holds or is part of the input {source.name!r}; name another folder."
            )
            raise ValueError(message)


def _bar(progress: bool) -> Any:
    from tqdm.auto import tqdm

    return partial(tqdm, unit="cell", unit_scale=True, disable=not progress)
