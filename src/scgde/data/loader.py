"""Loaders of whole batches that can go on in the middle of an epoch, and cells streamed through a shuffle buffer."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from scgde.data.streamed_table import StreamedTable


class BatchLoader:
    """Batches of an epoch, in order.

    Has the two methods that Lightning asks of loaders for going on where a checkpoint was written.

    Parameters
    ----------
    n_batches
        Number of batches.
    batches
        Function that gives the batches from a number on.
    """

    def __init__(self, n_batches: int, batches: Callable[[int], Iterator[dict[str, Tensor]]]) -> None:
        self.n_batches = n_batches
        self._batches = batches
        self._done = 0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        first, self._done = self._done % max(self.n_batches, 1), self._done % max(self.n_batches, 1)
        for batch in self._batches(first):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Number of batches that were given."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin after as many batches, the next time."""
        self._done = int(state["done"])


class CellStream:
    """Shuffled batches of the training cells of a table on disk.

    The cells are cut into runs of neighbours. An epoch takes the runs in random order, a few dozen at a time, and shuffles their
    cells: every cell comes once, and memory holds two such buffers, the one in use and the next, which is read meanwhile.

    Parameters
    ----------
    table
        Cells.
    train_idx
        Training cells, sorted.
    seed
        Seed of the order; what an epoch draws depends on (seed, epoch) alone.
    """

    def __init__(self, table: StreamedTable, train_idx: np.ndarray, seed: int) -> None:
        self.table, self.train_idx, self.seed = table, train_idx, seed
        self.bounds = table.read_runs()
        self.first = np.searchsorted(train_idx, self.bounds)

    def buffers(self, epoch: int, n_batches: int, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
        """Runs of each buffer of an epoch, for one of several processes; each is of one batch at least."""
        counts = np.diff(self.first)
        runs = np.random.default_rng([self.seed, epoch]).permutation(np.flatnonzero(counts))
        if len(runs) >= world_size:
            runs = runs[rank::world_size]
        n_buffers = int(np.ceil(counts[runs].sum() / self.table.cells_per_buffer))
        return np.array_split(runs, min(max(n_buffers, 1), max(len(runs), 1), n_batches))

    def batches(
        self, epoch: int, n_batches: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Cells and rows of the batches of an epoch from number ``start`` on."""
        buffers = self.buffers(epoch, n_batches, rank, world_size)
        counts = np.diff(self.first)
        ends = np.cumsum([counts[runs].sum() for runs in buffers])
        # shares of the batches that are as even as whole numbers allow
        number = np.arange(1, len(buffers) + 1)
        last = number + np.round(ends / max(ends[-1], 1) * (n_batches - len(buffers))).astype(int)
        todo = [(i, a, b) for i, (a, b) in enumerate(zip([0, *last[:-1]], last, strict=True)) if b > max(start, a)]
        if not todo:
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, buffers[todo[0][0]])
            for position, (i, first, stop) in enumerate(todo):
                cells, rows = ahead.result()
                if position + 1 < len(todo):
                    ahead = pool.submit(self._read, buffers[todo[position + 1][0]])
                order = np.random.default_rng([self.seed, epoch, rank, i]).permutation(len(cells))
                for part in np.array_split(order, stop - first)[max(start - first, 0) :]:
                    yield cells[part], rows[part]

    def _read(self, runs: np.ndarray) -> tuple[np.ndarray, Any]:
        """Training cells of runs, and their rows."""
        matrix: Any = self.table.matrix
        cells, blocks = [], []
        for run in np.sort(runs):
            start, stop = int(self.bounds[run]), int(self.bounds[run + 1])
            own = self.train_idx[self.first[run] : self.first[run + 1]]
            cells.append(own)
            block = matrix.read(start, stop)
            blocks.append(block if len(own) == stop - start else block[own - start])
        rows = sp.vstack(blocks, format="csr") if matrix.is_sparse else np.concatenate(blocks)
        return np.concatenate(cells), rows


def bounded(indices: np.ndarray, limit: int, seed: int, runs: np.ndarray | None = None) -> np.ndarray:
    """At most about ``limit`` of the indices, in order: drawn one by one, or whole runs with the given bounds."""
    if len(indices) <= limit:
        return indices
    rng = np.random.default_rng([seed, 17])
    if runs is None:
        return np.sort(rng.choice(indices, limit, replace=False))
    first = np.searchsorted(indices, runs)
    order = rng.permutation(np.flatnonzero(np.diff(first)))
    enough = int(np.searchsorted(np.cumsum(np.diff(first)[order]), limit)) + 1
    return np.concatenate([indices[first[run] : first[run + 1]] for run in np.sort(order[:enough])])
