"""An atlas cut into blocks of whole neighbouring populations, and what a task reads of one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgde._model_decoding import check_count
from scgde.data.cells import as_tensor, match_genes
from scgde.data.streaming import StreamedCells
from scgde.generation import as_labels, find_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scgde import GDEModel
    from scgde.cluster._contexts import Context
    from scgde.data import CellTable


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Populations that each are a run of neighbouring cells.

    Attributes
    ----------
    starts, stops
        Where their cells lie, ``(k,)``.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Cells of each population, ``(k,)``."""
        return self.stops - self.starts


@dataclass(frozen=True, kw_only=True)
class Atlas(Runs):
    """Populations of a folder of cells, those that are asked for.

    Attributes
    ----------
    cells, table
        Cells, and as the model reads them.
    labels
        Of the populations, ``K`` of them, in the order of the result.
    codes
        Position of each cell's population in ``labels``, -1 for cells of others and of none, ``(cells,)``.
    """

    cells: StreamedCells
    table: CellTable
    labels: list[str]
    codes: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Block(Runs):
    """Populations of one task, in the order of their cells.

    Attributes
    ----------
    numbers
        Positions of the populations in the result, ``(k,)``.
    """

    numbers: np.ndarray


def open_atlas(model: GDEModel, path: Any, populations: Sequence[Any] | None) -> Atlas:
    """Find the populations of a folder.

    Parameters
    ----------
    model
        Trained model.
    path
        Folder, or cells on disk.
    populations
        Labels of some populations, in the order of the result; all by default, in the order of the model's getters.

    Raises
    ------
    TypeError
        If ``path`` is no folder.
    FileNotFoundError, ValueError, KeyError
        If the folder is absent, damaged or of other genes, or a population unknown.
    """
    model._require_trained()
    if not isinstance(path, str | os.PathLike | StreamedCells):
        message = (
            f"path is a {type(path).__name__} and must be a folder that scgde.pp.write_populations wrote; of cells in memory the methods "
            "of the model are as fast."
        )
        raise TypeError(message)
    cells = path if isinstance(path, StreamedCells) else StreamedCells(path)
    table = model._table(cells)
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(table.codes)) + 1, [table.n_cells]])
    run_codes = table.codes[bounds[:-1]]
    runs = np.argsort(run_codes, kind="stable")
    runs = runs[run_codes[runs] >= 0]
    if not len(runs):
        message = f"None of the cells of {cells.path!r} is in a population."
        raise ValueError(message)
    labels = [table.labels[code] for code in run_codes[runs]]
    if populations is not None:
        runs = runs[find_labels(dict.fromkeys(asked_labels(populations)), labels)]
        labels = [table.labels[code] for code in run_codes[runs]]
    position = np.full(len(table.labels) + 1, -1)
    position[run_codes[runs]] = np.arange(len(runs))
    return Atlas(
        cells=cells,
        table=table,
        labels=labels,
        codes=position[table.codes],
        starts=bounds[runs],
        stops=bounds[runs + 1],
    )


def asked_labels(populations: Any) -> list[str]:
    """Labels as the model has them, of one population or several.

    Raises
    ------
    ValueError
        If there is none.
    """
    labels = as_labels(populations)
    if not labels:
        message = "populations is empty; name at least one, or leave it out for all."
        raise ValueError(message)
    return labels


def cut(atlas: Atlas, cells_per_task: int) -> list[Block]:
    """Blocks of neighbouring populations with at most ``cells_per_task`` cells; a larger population is a block of its own.

    Raises
    ------
    ValueError
        If ``cells_per_task`` is no positive integer.
    """
    check_count("cells_per_task", cells_per_task, "the number of cells that one task reads")
    order = np.argsort(atlas.starts, kind="stable")
    sizes = atlas.sizes[order]
    ends, held = [], 0
    for i, size in enumerate(sizes):
        if i and held + size > cells_per_task:
            ends.append(i)
            held = 0
        held += int(size)
    return [Block(numbers=n, starts=atlas.starts[n], stops=atlas.stops[n]) for n in np.split(order, ends)]


class BlockRows:
    """Rows of the cells of a block, numbered from 0 and read as they are asked for; neither pointers nor codes of other cells are.

    Parameters
    ----------
    context
        What the tasks share.
    block
        Populations.
    """

    def __init__(self, context: Context, block: Block) -> None:
        assert context.cells is not None
        names = context.model._variables()
        expected = pd.Index(np.asarray(names, dtype=object).astype(str))
        first = int(block.starts[0])
        self.matrix = context.cells.rows(match_genes(context.cells.var_names, expected), (first, int(block.stops[-1])))
        self.codes = np.repeat(np.arange(len(block.sizes)), block.sizes)
        self._place = np.concatenate([np.arange(a, b) for a, b in zip(block.starts, block.stops, strict=True)]) - first

    def tensor(self, indices: np.ndarray, *, sparse: bool) -> Tensor:
        """Float32 rows of the given cells; see :meth:`scgde.data.CellTable.tensor`."""
        return as_tensor(self.matrix[self._place[indices]], sparse=sparse)
