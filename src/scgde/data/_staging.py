"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextmanager
def staged_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``path``; what is written to its ``store`` becomes ``path`` at the end of the block.

    An exception leaves ``path`` as it was and nothing beside it. A killed process leaves a hidden folder that names the
    process, and the next call for the same ``path`` removes it. A folder that is replaced goes only when the new one is
    whole.

    Raises
    ------
    FileNotFoundError
        If the parent folder does not exist.
    FileExistsError
        If ``path`` exists, unless it may be overwritten and is a zarr folder.
    """
    path = Path(os.path.abspath(path))
    if not path.parent.is_dir():
        message = f"path: the folder {path.parent} does not exist; create it first."
        raise FileNotFoundError(message)
    _sweep(path)
    _check_absent(path, overwrite=overwrite)
    stage = path.parent / f"{_prefix(path)}{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    stage.mkdir()
    try:
        yield stage
        _check_absent(path, overwrite=overwrite)  # another process may have written it meanwhile
        _swap(stage, path)
    finally:
        _remove(stage)


def _swap(stage: Path, path: Path) -> None:
    """Put the new folder in the place of ``path``, whose old content waits in ``stage`` until then."""
    old = stage / "old"
    replaced = path.exists()
    if replaced:
        path.rename(old)
    try:
        (stage / "store").rename(path)
    except OSError as error:
        if replaced:
            old.rename(path)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(
                errno.EEXIST, f"path={str(path)!r} was written by another process meanwhile"
            ) from error
        raise


def _check_absent(path: Path, *, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        message = f"path={str(path)!r} exists. Name another folder, or replace it with overwrite=True."
        raise FileExistsError(message)
    if path.is_symlink() or not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        message = f"path={str(path)!r} is not a zarr folder, and nothing else is overwritten. Name another folder."
        raise FileExistsError(message)


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _host() -> str:
    return "".join(c for c in socket.gethostname() if c.isalnum()) or "host"


def _sweep(path: Path) -> None:
    """Remove what killed processes of this computer left behind, and put back a folder that one was about to replace."""
    for stage in [entry for entry in path.parent.iterdir() if entry.name.startswith(_prefix(path))]:
        host, pid = (stage.name.removeprefix(_prefix(path)).split("-") + ["", ""])[:2]
        if host != _host() or not pid.isdecimal() or _alive(int(pid)):
            logger.warning(f"{stage} is another process writing the same folder, or what is left of one elsewhere.")
            continue
        if (stage / "old").exists() and not path.exists():
            (stage / "old").rename(path)
        _remove(stage)


def _alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere the question would stop the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _remove(stage: Path) -> None:
    """Remove a folder, into which a thread of zarr may still be writing its last chunk."""
    for _ in range(10):
        shutil.rmtree(stage, ignore_errors=True)
        if not stage.exists():
            return
        time.sleep(0.05)
    logger.warning(f"{stage} could not be removed; remove it by hand.")
