"""Latents of all cells between the two phases of training: in memory, or in a file where there are too many."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

_GAP = 256
"""Rows of a file that are read and not used where that saves a further read, at most."""


class Latents:
    """Posterior mean and standard deviation of the latent of every cell, in memory.

    Parameters
    ----------
    mean, sd
        ``(cells, n_latent)`` each.
    """

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        self.mean, self.sd = mean, sd
        self.n_latent = mean.shape[1]

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of cells, each ``(len(indices), n_latent)``."""
        rows = torch.from_numpy(indices)
        return self.mean[rows], self.sd[rows]


class FileLatents(Latents):
    """The same in a temporary file, which is gone with the object.

    Cells of a population lie together, so that a set is read at one or a few places. Plain reads are used and no memory map,
    whose pages count as the process's own.

    Parameters
    ----------
    n_cells, n_latent
        Shape.
    folder
        Where the file is; the system's folder for temporary files by default.
    """

    def __init__(self, n_cells: int, n_latent: int, folder: str | None = None) -> None:
        self.n_cells, self.n_latent = n_cells, n_latent
        self._width = 2 * n_latent
        # it has no name in any folder from here on, so that a killed process leaves none behind
        self._file = tempfile.TemporaryFile(dir=folder)

    def write(self, start: int, mean: Tensor, sd: Tensor) -> None:
        """Put latents of the cells from ``start`` on."""
        block = torch.cat([mean, sd], dim=1).contiguous().numpy()
        self._file.seek(start * self._width * 4)
        self._file.write(block.tobytes())

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        if len(indices) == 0:
            empty = torch.empty((0, self.n_latent))
            return empty, empty
        order = np.argsort(indices, kind="stable")
        wanted = np.asarray(indices)[order]
        block = np.empty((len(wanted), self._width), dtype=np.float32)
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(wanted) > _GAP) + 1, [len(wanted)]])
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            first, n = int(wanted[start]), int(wanted[stop - 1] - wanted[start]) + 1
            part = np.frombuffer(self._read(first * self._width * 4, n * self._width * 4), dtype=np.float32)
            part = part.reshape(n, self._width)
            block[order[start:stop]] = part[wanted[start:stop] - first]
        both = torch.from_numpy(block)
        return both[:, : self.n_latent], both[:, self.n_latent :]

    def _read(self, start: int, n: int) -> bytes:
        content = os.pread(self._file.fileno(), n, start)
        if len(content) == n:
            return content
        # systems read two gigabytes at once at most
        parts = [content]
        while (done := sum(map(len, parts))) < n:
            part = os.pread(self._file.fileno(), n - done, start + done)
            if not part:
                message = "The file of latents is shorter than it was written; is the disk full?"
                raise OSError(message)
            parts.append(part)
        return b"".join(parts)
