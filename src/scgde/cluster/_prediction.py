"""Predictions of many perturbations, one file each."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scgde._model_decoding import check_count
from scgde.cluster._clients import resolve_client
from scgde.cluster._contexts import Context, pack
from scgde.cluster._files import REQUEST_KEY, Request, cells_of, predictor_digest, read_stamp, write_whole
from scgde.cluster._running import Task, run_tasks
from scgde.data.populations import as_label
from scgde.data.streaming import StreamedCells
from scgde.perturbation.predictor import PerturbationPredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = ("perturbation", "context", "dose")
"""Columns of requests."""


def predict(
    predictor: PerturbationPredictor,
    requests: pd.DataFrame,
    folder: str | os.PathLike,
    *,
    client: Any = None,
    n_cells: int | None = 500,
    method: Literal["transport", "sample"] = "transport",
    unknown: Literal["raise", "mean"] = "raise",
    start: Literal["auto", "control"] = "auto",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Predict many perturbations on a Dask cluster, each to a file of its own.

    A file appears when it is whole. Requests whose file is there are not computed again, so that a call that was interrupted goes on
    where it was. The cells of a request do not depend on the other requests, nor on which worker predicts them.

    Predictor and model go to each worker once, as their saved files; the model's cells are read from their folder where they are on disk
    (:meth:`scgde.GDEModel.setup_zarr`), and go along where they are in memory.

    Parameters
    ----------
    predictor
        Fitted predictor.
    requests
        Table with a column ``perturbation``, and ``context`` (where there are several) and ``dose`` (where doses are asked for).
    folder
        Folder to write to, which this process and all workers see; it is made if it is absent.
    client
        See :func:`scgde.cluster.embed`.
    n_cells, method, unknown, start
        See :meth:`scgde.PerturbationPredictor.predict`.
    seed
        Seed that the seed of each request is made of, with its perturbation, context and dose.
    overwrite
        Whether to replace files that other settings or another predictor wrote.
    progress
        Whether to show progress.

    Returns
    -------
    The requests, with ``file`` (path), ``n_cells`` and ``status``: ``"written"`` by this call, or ``"present"`` before it.

    Raises
    ------
    KeyError
        If a perturbation or context is unknown, or a column is absent; nothing has been predicted then.
    ValueError
        If an argument is out of range, or there are no control cells.
    FileExistsError
        If files of other settings are in the folder.
    RuntimeError, FileNotFoundError, TypeError, ImportError
        See :func:`scgde.cluster.embed`.

    Examples
    --------
    >>> requests = pd.DataFrame({"perturbation": ["p0", "p1"], "context": ["K562", "K562"]})  # doctest: +SKIP
    >>> table = scgde.cluster.predict(predictor, requests, "predictions", n_cells=1000)  # doctest: +SKIP
    >>> cells = anndata.concat(map(anndata.read_h5ad, table["file"]))  # doctest: +SKIP
    """
    if not isinstance(predictor, PerturbationPredictor):
        message = f"predictor is a {type(predictor).__name__} and must be a fitted PerturbationPredictor."
        raise TypeError(message)
    predictor._fitted()
    _check_options(n_cells, method, start, seed)
    model = predictor.model
    if model.adata is None and (method == "transport" or n_cells is None):
        message = (
            "The predictor's model was loaded without its cells, which transport starts from: load it with adata= (an AnnData, or "
            "the folder of its cells), or use method='sample' with n_cells."
        )
        raise ValueError(message)
    asked = _requests(requests)
    settings = {"n_cells": n_cells, "method": method, "unknown": unknown, "start": start, "seed": int(seed)}
    stamps = {r: r.stamp({**settings, "predictor": predictor_digest(predictor)}) for r in dict.fromkeys(asked)}
    target = Path(folder).absolute()
    missing = _missing(stamps, target, overwrite)
    _check_known(predictor, missing, unknown)
    target.mkdir(parents=True, exist_ok=True)

    options: dict[str, Any] = {"n_cells": n_cells, "method": method, "unknown": unknown, "start": start}
    tasks = [Task(predict_one, (r, str(target), stamps[r], r.seed(seed), options), [r.name]) for r in missing]

    def collect(i: int, name: str) -> None:
        if not (target / name).is_file():
            message = (
                f"A worker wrote {name!r} to {str(target)!r}, and it is not there: all machines have to see one folder."
            )
            raise FileNotFoundError(message)

    with resolve_client(client) as found:
        on_disk = isinstance(model.adata, StreamedCells)
        cells: Any = model.adata if on_disk else None
        path = os.path.abspath(cells.path) if on_disk else None
        run_tasks(
            tasks,
            collect,
            client=found,
            context=Context(model, predictor, cells),
            pack=lambda: pack(model, cells, path, predictor, attached=model.adata is not None),
            paths=[p for p in (path, str(target)) if p is not None],
            progress=progress and bool(tasks),
            unit="request",
            description="Predicting",
        )
    table = requests.copy()
    table["file"] = [str(target / r.file) for r in asked]
    table["n_cells"] = [cells_of(target / r.file) for r in asked]
    written = set(missing)
    table["status"] = ["written" if r in written else "present" for r in asked]
    return table


def predict_one(context: Context, request: Request, folder: str, stamp: str, seed: int, options: dict[str, Any]) -> str:
    """Predict the cells of one request and write them; returns the name of the file."""
    predictor = context.predictor
    assert predictor is not None
    # a predictor fits what it needs when it first needs it
    with context.lock:
        cells = predictor.predict([request.perturbation], request.context, dose=request.dose, seed=seed, **options)
    asked = {name: getattr(request, name) for name in COLUMNS if getattr(request, name) is not None}
    cells.uns[REQUEST_KEY] = {**asked, "seed": seed, "stamp": stamp}
    write_whole(Path(folder) / request.file, partial(_write, cells))
    return request.file


def _write(cells: Any, path: Path) -> None:
    cells.write_h5ad(path, compression="gzip", compression_opts=1)


def _requests(table: pd.DataFrame) -> list[Request]:
    """Requests of a table, row by row."""
    if not isinstance(table, pd.DataFrame):
        message = f"requests is a {type(table).__name__} and must be a DataFrame with the columns {list(COLUMNS)}."
        raise TypeError(message)
    if "perturbation" not in table:
        message = f"requests has no column 'perturbation'; there are {list(table.columns)}."
        raise KeyError(message)
    taken = sorted({"file", "n_cells", "status"} & set(table.columns))
    if taken:
        message = f"requests has columns {taken}, which the result is to have; drop them."
        raise ValueError(message)
    if table["perturbation"].isna().any():
        message = "requests['perturbation'] has missing values; drop those rows."
        raise ValueError(message)
    columns: dict[str, Sequence[Any]] = {
        name: [None if pd.isna(v) else v for v in table[name]] if name in table else [None] * len(table)
        for name in COLUMNS
    }
    return [
        Request(as_label(p), None if c is None else as_label(c), None if d is None else float(d))
        for p, c, d in zip(*(columns[name] for name in COLUMNS), strict=True)
    ]


def _missing(stamps: dict[Request, str], folder: Path, overwrite: bool) -> list[Request]:
    """Requests that have no whole file yet."""
    found = {r: read_stamp(folder / r.file) for r in stamps}
    other = [r.file for r, stamp in found.items() if stamp is not None and stamp != stamps[r]]
    if other and not overwrite:
        message = (
            f"{str(folder)!r} has files of other settings or of another predictor, {other[:3]} ({len(other)} in all). Name another folder, or "
            "replace them with overwrite=True."
        )
        raise FileExistsError(message)
    return [r for r, stamp in found.items() if stamp != stamps[r]]


def _check_known(predictor: PerturbationPredictor, requests: list[Request], unknown: str) -> None:
    """Raise where something that is asked for cannot be predicted, before hours are spent on the rest."""
    groups: dict[tuple[str | None, bool], list[Request]] = {}
    for r in requests:
        groups.setdefault((r.context, r.dose is None), []).append(r)
    for (context, _), asked in groups.items():
        controls = predictor._controls(context, None, cells=False)
        doses = None if asked[0].dose is None else [r.dose for r in asked]
        predictor._predicted([r.perturbation for r in asked], doses, controls, unknown)


def _check_options(n_cells: Any, method: Any, start: Any, seed: Any) -> None:
    if n_cells is not None:
        check_count("n_cells", n_cells, "the number of cells for each request")
    for name, value, known in (("method", method, ("transport", "sample")), ("start", start, ("auto", "control"))):
        if value not in known:
            message = f"{name}={value!r} must be {known[0]!r} or {known[1]!r}."
            raise ValueError(message)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        message = f"seed={seed!r} must be a non-negative integer."
        raise ValueError(message)
