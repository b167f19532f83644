import hashlib
import os
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import anndata
import numpy as np
import pytest

from scgde.datasets import _registry, has_dataset, list_datasets, load

NAME = "papalexi_eccite_299g"
# Read before the fixtures below hide the setting.
DATA_DIR = os.environ.get("SCGDE_DATA_DIR", "")


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """An empty cache and no settings of the user's."""
    monkeypatch.delenv("SCGDE_DATA_DIR", raising=False)
    monkeypatch.delenv("SCGDE_DATA_URL", raising=False)
    monkeypatch.setenv("SCGDE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A small stand-in for the published file, registered with its checksum; returns its path."""
    folder = tmp_path / "published"
    folder.mkdir()
    path = folder / f"{NAME}.h5ad"
    anndata.AnnData(np.arange(600, dtype=np.float32).reshape(30, 20)).write_h5ad(path)
    content = path.read_bytes()
    entry = replace(
        _registry.DATASETS[NAME],
        sha256=hashlib.sha256(content).hexdigest(),
        n_bytes=len(content),
        n_cells=30,
        n_genes=20,
    )
    monkeypatch.setitem(_registry.DATASETS, NAME, entry)
    return path


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(published, monkeypatch):
    """A local server of the published file; `SCGDE_DATA_URL` points to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(published.parent)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SCGDE_DATA_URL", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def cached_files(tmp_path):
    folder = tmp_path / "cache"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_list_has_one_complete_row_per_dataset():
    table = list_datasets()
    assert table.index.is_unique and len(table) == 14
    assert {"cells", "genes", "licence", "paper", "population_key"} <= set(table.columns)
    assert (table["cells"] > 0).all() and not table.isna().any(axis=None)
    assert not (table.select_dtypes(exclude="number") == "").any(axis=None)
    assert all(len(dataset.sha256) == 64 for dataset in _registry.DATASETS.values())


@pytest.mark.parametrize("function", [load, has_dataset])
def test_unknown_name_lists_the_known_ones(function):
    with pytest.raises(KeyError, match=f"'nothing'.*{NAME}"):
        function("nothing")


def test_missing_file_names_setting_source_and_citation():
    assert not has_dataset(NAME)
    with pytest.raises(FileNotFoundError) as error:
        load(NAME)
    message = str(error.value)
    for part in ("SCGDE_DATA_DIR", "SCGDE_DATA_URL", "Katsevich-Lab/sceptredata", "lowmoi_example_data.rda", "ec722d5"):
        assert part in message
    assert "Papalexi et al. 2021" in message


def test_local_folder_comes_first(published, monkeypatch, recwarn):
    monkeypatch.setenv("SCGDE_DATA_DIR", str(published.parent))
    monkeypatch.setenv("SCGDE_DATA_URL", "http://127.0.0.1:9/")
    assert has_dataset(NAME)
    assert load(NAME).shape == (30, 20)
    assert not [warning for warning in recwarn if "checksum" in str(warning.message)]


def test_truncated_local_file_is_named(published, monkeypatch):
    monkeypatch.setenv("SCGDE_DATA_DIR", str(published.parent))
    published.write_bytes(published.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"{NAME}.h5ad is damaged.*2000 bytes"):
        load(NAME)


def test_local_file_of_another_shape_is_an_error(published, monkeypatch):
    monkeypatch.setenv("SCGDE_DATA_DIR", str(published.parent))
    anndata.AnnData(np.ones((3, 20), np.float32)).write_h5ad(published)
    with pytest.raises(ValueError, match="holds 3 cells x 20 genes"):
        load(NAME)


def test_rebuilt_local_file_warns(published, monkeypatch):
    monkeypatch.setenv("SCGDE_DATA_DIR", str(published.parent))
    anndata.AnnData(np.ones((30, 20), np.float32)).write_h5ad(published)
    with pytest.warns(UserWarning, match="does not have the checksum"):
        assert load(NAME).X.sum() == 600


def test_folder_without_the_file_falls_through_to_the_download(server, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SCGDE_DATA_DIR", str(tmp_path / "empty"))
    assert load(NAME).shape == (30, 20)


def test_download_then_cache_without_the_server(server, published, tmp_path, monkeypatch):
    assert not has_dataset(NAME)
    first = load(NAME)
    assert cached_files(tmp_path) == [f"{NAME}.h5ad"]
    server.shutdown()
    server.server_close()
    assert has_dataset(NAME)
    np.testing.assert_array_equal(load(NAME).X, first.X)
    monkeypatch.delenv("SCGDE_DATA_URL")
    np.testing.assert_array_equal(load(NAME).X, first.X)


def test_wrong_checksum_leaves_nothing_in_the_cache(server, published, tmp_path):
    published.write_bytes(published.read_bytes() + b"x")
    with pytest.raises(ValueError, match="does not have the sha256 checksum"):
        load(NAME)
    assert cached_files(tmp_path) == []
    assert not has_dataset(NAME)


def test_absent_from_the_server(server, published, tmp_path):
    published.unlink()
    with pytest.raises(FileNotFoundError, match="status 404.*Katsevich-Lab"):
        load(NAME)
    assert cached_files(tmp_path) == []


def test_unreachable_server(published, monkeypatch):
    # Port 9 (discard) is closed.
    monkeypatch.setenv("SCGDE_DATA_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="could not be downloaded.*SCGDE_DATA_URL"):
        load(NAME)


def test_damaged_cache_is_named_or_downloaded_again(server, published, tmp_path, monkeypatch):
    load(NAME)
    cached = tmp_path / "cache" / f"{NAME}.h5ad"
    cached.write_bytes(cached.read_bytes()[:2000])
    with monkeypatch.context() as context:
        context.delenv("SCGDE_DATA_URL")
        with pytest.raises(ValueError, match=f"{NAME}.h5ad is damaged"):
            load(NAME)
    assert load(NAME).shape == (30, 20)
    assert cached.read_bytes() == published.read_bytes()


@pytest.mark.parametrize("name", list_datasets().index)
def test_published_files(name, monkeypatch, recwarn):
    if not DATA_DIR:
        pytest.skip("SCGDE_DATA_DIR is not set: no folder of public data")
    monkeypatch.setenv("SCGDE_DATA_DIR", DATA_DIR)
    if not has_dataset(name):
        pytest.skip(f"{name}.h5ad is not in the folder SCGDE_DATA_DIR")
    adata, row = load(name), list_datasets().loc[name]
    assert adata.shape == (row["cells"], row["genes"])
    assert adata.obs[row["population_key"]].nunique() >= 5
    if row["kind"] != "continuous":
        values = adata.X.data
        assert (values > 0).all() and (values == np.round(values)).all()
    assert not [warning for warning in recwarn if "checksum" in str(warning.message)]
