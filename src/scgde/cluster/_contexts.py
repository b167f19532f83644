"""What tasks work with: a model, cells on disk and perhaps a predictor, made once in each worker from the bytes of saved files."""

from __future__ import annotations

import hashlib
import socket
import tempfile
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scgde.data.streaming import StreamedCells

if TYPE_CHECKING:
    from scgde import GDEModel, PerturbationPredictor

KEPT_MODELS = 2
"""Models that a worker keeps, the latest ones."""

_LOADED: OrderedDict[str, Context] = OrderedDict()
_LOCK = threading.RLock()


@dataclass
class Context:
    """What the tasks of one call share in one process.

    Attributes
    ----------
    model, predictor
        The predictor is None where none is needed.
    cells
        Cells of the folder; None where the tasks read none.
    run
        Call that ``cells`` were opened for: a folder may be written anew between two.
    lock
        Held by tasks that change what they share.
    """

    model: GDEModel
    predictor: PerturbationPredictor | None = None
    cells: StreamedCells | None = None
    run: str = ""
    lock: Any = field(default_factory=threading.RLock)


@dataclass(frozen=True)
class Job:
    """What every task of a call is told.

    Attributes
    ----------
    run
        Name of the call.
    digest
        Of the files of the model.
    version
        Of the package.
    path, names
        Folder of cells and the digest of their names; None where the tasks read none.
    attached
        Whether the model has the cells of the folder as its own.
    """

    run: str
    digest: str
    version: str
    path: str | None
    names: str | None
    attached: bool = False


def pack(
    model: GDEModel,
    cells: StreamedCells | None,
    path: str | None,
    predictor: PerturbationPredictor | None = None,
    *,
    attached: bool = False,
) -> tuple[Job, dict[str, bytes]]:
    """Files of a model (and a predictor, with its AnnData where it has one in memory), and what tasks are told of them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model", save_anndata=attached and isinstance(model.adata, AnnData))
        if predictor is not None:
            predictor.save(f"{folder}/predictor")
        found = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    # models of one file may be attached to different cells
    digest.update(f"{path if attached else None}".encode())
    names = None if cells is None else cells.names
    job = Job(uuid.uuid4().hex[:12], digest.hexdigest(), version("scgde"), path, names, attached)
    return job, files


def context_of(job: Job, files: dict[str, bytes]) -> Context:
    """The context of a job in this worker; nothing in the files is run.

    Raises
    ------
    RuntimeError
        If this worker has another version of the package.
    FileNotFoundError, ValueError
        If it cannot open the folder of cells, or finds other cells there.
    """
    with _LOCK:
        context = _LOADED.get(job.digest)
        if context is not None and context.run == job.run:
            return context
        if version("scgde") != job.version:
            message = f"{_here()} has scgde {version('scgde')}, and the client {job.version}; start it in the same environment."
            raise RuntimeError(message)
        cells = None if job.path is None else _open(job)
        if context is None or (job.attached and cells is not None):
            context = _load(job, files, cells)
        context.cells, context.run = cells, job.run
        _LOADED[job.digest] = context
        _LOADED.move_to_end(job.digest)
        while len(_LOADED) > KEPT_MODELS:
            _LOADED.popitem(last=False)
        return context


def _load(job: Job, files: dict[str, bytes], cells: StreamedCells | None) -> Context:
    from scgde import GDEModel, PerturbationPredictor

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            target = Path(folder) / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        adata: Any = False
        if job.attached and cells is not None:
            adata = cells
        elif "model/adata.h5ad" in files:
            adata = None  # the one that was saved with the model
        model = GDEModel.load(f"{folder}/model", adata=adata)
        has_predictor = any(name.startswith("predictor/") for name in files)
        return Context(model, PerturbationPredictor.load(f"{folder}/predictor", model) if has_predictor else None)


def _open(job: Job) -> StreamedCells:
    assert job.path is not None
    try:
        cells = StreamedCells(job.path)
    except (OSError, ValueError) as error:
        message = f"{_here()} cannot open {job.path!r}: {error} All machines have to see the folder under this path."
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(message) from error
    if cells.names != job.names:
        message = f"{_here()} finds other cells in {job.path!r} than the client; all machines have to see one folder."
        raise ValueError(message)
    return cells


def _here() -> str:
    try:
        from distributed import get_worker

        return f"Worker {get_worker().address} on {socket.gethostname()}"
    except (ImportError, ValueError):
        return f"The process on {socket.gethostname()}"
