import hashlib
import os
import warnings
from pathlib import Path

import anndata
import pandas as pd
from anndata import AnnData

from ._registry import DATASETS, Dataset


def list_datasets() -> pd.DataFrame:
    """The data sets that :func:`load` knows.

    Returns
    -------
    One row per data set, indexed by name, with columns ``cells``, ``genes``, ``kind`` (``"counts"``, ``"read counts"``
    or ``"continuous"``), ``population_key`` (a column of ``obs`` to start with), ``description``, ``paper``,
    ``licence`` and ``source``.

    Examples
    --------
    >>> int(list_datasets().loc["papalexi_eccite_299g", "cells"])
    16192
    """
    rows = [
        {
            "name": dataset.name,
            "cells": dataset.n_cells,
            "genes": dataset.n_genes,
            "kind": dataset.kind,
            "population_key": dataset.population_key,
            "description": dataset.description,
            "paper": dataset.paper,
            "licence": dataset.licence,
            "source": dataset.source,
        }
        for dataset in DATASETS.values()
    ]
    return pd.DataFrame(rows).set_index("name")


def load(name: str) -> AnnData:
    """Load a public data set from a local folder, the cache, or a download.

    The file ``<name>.h5ad`` is looked for in this order:

    1. the folder named by the environment variable ``SCGDE_DATA_DIR``;
    2. the cache: the folder named by ``SCGDE_CACHE_DIR``, by default the user's cache folder;
    3. the address ``<SCGDE_DATA_URL>/<name>.h5ad``, from which it is downloaded to the cache and checked.

    Parameters
    ----------
    name
        Name of the data set; :func:`list_datasets` lists them.

    Returns
    -------
    The data: counts in ``X`` (or continuous values, see ``kind`` in :func:`list_datasets`) and labels in ``obs``.

    Raises
    ------
    KeyError
        If the name is unknown.
    FileNotFoundError
        If the file is in none of these places, or no address is set.
    OSError
        If the download fails.
    ValueError
        If a file is truncated or does not have the checksum of the data set. A download that fails the check is
        removed again.

    Warns
    -----
    UserWarning
        If a file in ``SCGDE_DATA_DIR`` can be read and has the right shape, but other bytes than the published one.
    """
    dataset = _get(name)
    local = _local_file(dataset)
    if local is not None:
        return _read_local(dataset, local)
    cached = _cache_folder() / dataset.file_name
    base_url = os.environ.get("SCGDE_DATA_URL", "").strip()
    if not (cached.is_file() and _sha256(cached) == dataset.sha256):
        if not base_url:
            raise _damaged(dataset, cached) if cached.is_file() else _not_found(dataset)
        _download(dataset, base_url.rstrip("/"), cached)
    return anndata.read_h5ad(cached)


def has_dataset(name: str) -> bool:
    """Whether :func:`load` finds a data set without a download, in ``SCGDE_DATA_DIR`` or the cache.

    Parameters
    ----------
    name
        Name of the data set.

    Returns
    -------
    True if the file is there. Its content is checked when it is loaded.

    Raises
    ------
    KeyError
        If the name is unknown.
    """
    dataset = _get(name)
    return _local_file(dataset) is not None or (_cache_folder() / dataset.file_name).is_file()


def _get(name: str) -> Dataset:
    if name not in DATASETS:
        raise KeyError(f"`name` is {name!r}: it must be one of {', '.join(DATASETS)}. See `list_datasets()`.")
    return DATASETS[name]


def _local_file(dataset: Dataset) -> Path | None:
    folder = os.environ.get("SCGDE_DATA_DIR", "").strip()
    path = Path(folder).expanduser() / dataset.file_name
    return path if folder and path.is_file() else None


def _cache_folder() -> Path:
    folder = os.environ.get("SCGDE_CACHE_DIR", "").strip()
    if folder:
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("scgde"))


def _read_local(dataset: Dataset, path: Path) -> AnnData:
    published = _sha256(path) == dataset.sha256
    try:
        adata = anndata.read_h5ad(path)
    # A damaged file fails in as many ways as the reader has layers: OSError, KeyError, ValueError, ...
    except Exception as error:
        raise _damaged(dataset, path) from error
    if published:
        return adata
    if adata.shape != (dataset.n_cells, dataset.n_genes):
        raise ValueError(
            f"{path} (from SCGDE_DATA_DIR) holds {adata.n_obs} cells x {adata.n_vars} genes: data set {dataset.name!r} "
            f"has {dataset.n_cells} x {dataset.n_genes}. Replace the file, or unset SCGDE_DATA_DIR."
        )
    # A file rebuilt from the source has the same data in other bytes.
    warnings.warn(
        f"{path} does not have the checksum of data set {dataset.name!r}, but its shape: it is used as it is.",
        UserWarning,
        stacklevel=3,
    )
    return adata


def _download(dataset: Dataset, base_url: str, path: Path) -> None:
    import pooch
    import requests

    url = f"{base_url}/{dataset.file_name}"
    # What is left of a damaged file must not outlive a download that fails.
    path.unlink(missing_ok=True)
    try:
        # Pooch downloads to a temporary file, which it moves here only if the checksum is right.
        pooch.retrieve(url, known_hash=f"sha256:{dataset.sha256}", fname=path.name, path=path.parent)
    except requests.HTTPError as error:
        status = None if error.response is None else error.response.status_code
        kind = FileNotFoundError if status == 404 else OSError
        raise kind(
            f"{url} answered with status {status}. Check the setting SCGDE_DATA_URL. {_origin(dataset)}"
        ) from error
    except requests.RequestException as error:
        raise OSError(
            f"{url} could not be downloaded ({type(error).__name__}). Check the connection and the setting "
            f"SCGDE_DATA_URL. {_origin(dataset)}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"The file at {url} does not have the sha256 checksum {dataset.sha256} of data set {dataset.name!r}; it "
            f"was not kept. Try again, or correct the setting SCGDE_DATA_URL. {_origin(dataset)}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(dataset: Dataset, path: Path) -> ValueError:
    return ValueError(
        f"{path} is damaged or is another file: it has {path.stat().st_size} bytes and data set {dataset.name!r} has "
        f"{dataset.n_bytes}. Delete the file, then copy or download it again. {_origin(dataset)}"
    )


def _not_found(dataset: Dataset) -> FileNotFoundError:
    folder = os.environ.get("SCGDE_DATA_DIR", "").strip()
    looked = f"SCGDE_DATA_DIR ({folder})" if folder else "SCGDE_DATA_DIR (not set)"
    return FileNotFoundError(
        f"Data set {dataset.name!r} was not found in the folder {looked} or the cache, and SCGDE_DATA_URL is not set. "
        f"Put {dataset.file_name} in a folder and set SCGDE_DATA_DIR to it, or set SCGDE_DATA_URL to an address that "
        f"serves it. {_origin(dataset)}"
    )


def _origin(dataset: Dataset) -> str:
    return f"The data come from {dataset.source} (licence {dataset.licence}); cite {dataset.paper}."
