"""A folder is whole, says what it lacks, or is not there; errors say what to do."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import anndata as ad
import numpy as np
import pytest
import zarr

from scgde.data import _sorting, _staging, _store
from scgde.data._store import missing_files, read_description

GENES = [f"gene_{i}" for i in range(40)]


def test_lost_files_are_found(tmp_path, small_chunks, cells, write):
    path = tmp_path / "0.zarr"
    write(cells(), path)
    assert missing_files(path) == {}
    (path / "X" / "data" / "c" / "2").unlink()
    (path / "X" / "data" / "c" / "4").unlink()
    (path / "X" / "data" / "c" / "zarr.7.partial").touch()  # what a copy that broke off leaves is not a chunk
    (path / "obs" / "depth" / "c" / "0").unlink()
    (path / "obs" / "batch" / "codes" / "zarr.json").unlink()
    n_batch = read_description(path)["files"]["obs/batch/codes"]
    assert missing_files(path) == {"X/data": 2, "obs/depth": 1, "obs/batch/codes": n_batch}
    with pytest.raises(ValueError, match="files of .* are missing"):
        write(path, tmp_path / "1.zarr", "time")
    # what zarr gives for lost entries is no value of a row
    group = zarr.open_group(path, mode="r")["X"]
    assert np.isnan(group["data"][1000:1500]).all() and np.isfinite(group["data"][500:1000]).all()

    adata = cells()
    adata.X = adata.X.toarray()
    write(adata, tmp_path / "dense.zarr")
    (tmp_path / "dense.zarr" / "X" / "c" / "3" / "0").unlink()
    assert missing_files(tmp_path / "dense.zarr") == {"X": 1}
    adata.write_zarr(tmp_path / "plain.zarr")
    with pytest.raises(ValueError, match="is not a folder that scgde.pp.write_populations wrote"):
        missing_files(tmp_path / "plain.zarr")


@pytest.mark.parametrize("shards", [True, False])
def test_a_flipped_bit_raises(tmp_path, monkeypatch, shards, cells, write):
    monkeypatch.setattr(_store, "CHUNK_ENTRIES", 1000)
    monkeypatch.setattr(_store, "SHARD_CHUNKS", 2 if shards else 64)
    write(cells(), tmp_path / "0.zarr")
    file = tmp_path / "0.zarr" / "X" / "data" / "c" / "1"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    with pytest.raises(Exception, match="(?i)checksum"):
        ad.read_zarr(tmp_path / "0.zarr")


@pytest.mark.parametrize("place", ["buckets", "store", "obs"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_nothing_is_left_behind_by_an_error(tmp_path, monkeypatch, small_chunks, place, error, cells, write, contents):
    path = tmp_path / "0.zarr"
    write(cells(seed=5), path)
    before = contents(tmp_path)
    calls = []

    def fail_late(original, after):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) > after:
                raise error
            return original(*args, **kwargs)

        return call

    if place == "buckets":
        monkeypatch.setattr(_sorting, "_pack", fail_late(_sorting._pack, 30))
    elif place == "store":
        monkeypatch.setattr(_store.ArrayWriter, "_flush", fail_late(_store.ArrayWriter._flush, 8))
    else:
        monkeypatch.setattr(_store.StoreWriter, "column", fail_late(_store.StoreWriter.column, 3))
    with pytest.raises(type(error)) as raised:
        write(cells(), path, overwrite=True)
    assert len(calls) > 3 and contents(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["0.zarr"]
    if getattr(error, "errno", None) == errno.ENOSPC:
        assert raised.value.errno == errno.ENOSPC and "Nothing was left behind" in str(raised.value)
    else:
        assert raised.value is error


KILLED = """
    import os, signal, sys
    import anndata as ad
    import scgde
    from scgde.data import _sorting, _staging, _store

    def kill(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    place, source, path = sys.argv[1:]
    if place == "rows":
        _store.ArrayWriter.close = kill
    else:  # when the old folder is away and the new one not yet there
        rename = _staging.Path.rename
        _staging.Path.rename = lambda self, to: kill() if self.name == "store" else rename(self, to)
    scgde.pp.write_populations(source, path, overwrite=True, progress=False)
"""


def _killed(tmp_path, place):
    arguments = [place, tmp_path / "in.h5ad", tmp_path / "0.zarr"]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_a_killed_process_leaves_no_folder_and_the_next_call_tidies_up(tmp_path, cells, write):
    cells().write_h5ad(tmp_path / "in.h5ad")
    _killed(tmp_path, "rows")
    assert not (tmp_path / "0.zarr").exists() and len(list(tmp_path.iterdir())) == 2
    other = tmp_path / f".0.zarr.partial-elsewhere-{2**30}-0"  # of another computer
    mine = tmp_path / f".0.zarr.partial-{_staging._host()}-{os.getpid()}-0"  # of a process that is alive
    other.mkdir()
    mine.mkdir()
    write(tmp_path / "in.h5ad", tmp_path / "0.zarr")
    assert {p.name for p in tmp_path.iterdir()} == {"in.h5ad", "0.zarr", other.name, mine.name}


@pytest.mark.slow
def test_a_process_killed_while_it_replaces_a_folder_loses_neither(tmp_path, cells, write, contents):
    cells(seed=1).write_h5ad(tmp_path / "in.h5ad")
    write(cells(), tmp_path / "0.zarr")
    before = contents(tmp_path / "0.zarr")
    _killed(tmp_path, "swap")
    assert not (tmp_path / "0.zarr").exists()
    with pytest.raises(FileExistsError):  # the folder that the killed process moved away is back
        write(cells(), tmp_path / "0.zarr")
    assert contents(tmp_path / "0.zarr") == before
    assert {p.name for p in tmp_path.iterdir()} == {"in.h5ad", "0.zarr"}


def test_what_exists_is_kept_unless_it_may_go(tmp_path, cells, write, contents):
    path = tmp_path / "0.zarr"
    write(cells(), path)
    before = contents(path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(cells(seed=1), path)
    assert contents(path) == before
    assert write(cells(100), path, overwrite=True).n_obs == 100
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    for name in ("home", "home/thesis.txt"):
        with pytest.raises(FileExistsError, match="is not a zarr folder"):
            write(cells(), tmp_path / name, overwrite=True)
    with pytest.raises(FileNotFoundError, match="create it first"):
        write(cells(), tmp_path / "nowhere" / "0.zarr")


def test_inputs_are_not_overwritten(tmp_path, monkeypatch, cells, write, contents):
    path = tmp_path / "0.zarr"
    write(cells(), path)
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for target in ("0.zarr", path / "inside.zarr", tmp_path / "." / "0.zarr", tmp_path):
        with pytest.raises(ValueError, match="is, holds or is part of the input"):
            write(path, target, "time", overwrite=True)
    assert contents(tmp_path) == before


def test_rows_must_be_finite(tmp_path, small_chunks, cells, write):
    for value in (np.nan, np.inf):
        adata = cells()
        adata.X.data[-1] = value
        adata.write_h5ad(tmp_path / "bad.h5ad")
        with pytest.raises(ValueError, match=r"bad.h5ad, rows from \d+ on: 1 entries of the rows are NaN or infinite"):
            write([cells(), tmp_path / "bad.h5ad"], tmp_path / "0.zarr")
    adata = cells()
    adata.X = adata.X.astype(np.float64)
    adata.X.data[3] = 1e300  # finite, and not in float32
    with pytest.raises(ValueError, match="NaN or infinite"):
        write(adata, tmp_path / "0.zarr")
    adata.X.data[3] = 1
    adata.X.indices[3] = 4000
    adata.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(ValueError, match="column indices outside of its 40 genes"):
        write(tmp_path / "bad.h5ad", tmp_path / "0.zarr")
    with pytest.raises(ValueError, match="adata: .*ind"):
        write(adata, tmp_path / "0.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.h5ad"]


def test_unreadable_inputs(tmp_path, cells, write):
    adata = cells()
    adata.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "0.zarr"
    for value in ([], ()):
        with pytest.raises(ValueError, match="adata is empty"):
            write(value, out)
    with pytest.raises(TypeError, match="DataFrame is not an AnnData"):
        write([adata, adata.obs], out)
    with pytest.raises(FileNotFoundError, match="absent.h5ad"):
        write([adata, tmp_path / "absent.h5ad"], out)
    (tmp_path / "text.h5ad").write_text("no")
    with pytest.raises(ValueError, match="neither an .h5ad file nor a zarr folder"):
        write(tmp_path / "text.h5ad", out)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is not a zarr folder"):
        write(tmp_path / "folder", out)
    with pytest.raises(ValueError, match="is backed by a file. Pass the path .*in.h5ad"):
        write(ad.read_h5ad(tmp_path / "in.h5ad", backed="r"), out)
    by_columns = adata.copy()
    by_columns.X = by_columns.X.tocsc()
    by_columns.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(ValueError, match="csc.h5ad: X is stored by columns"):
        write(tmp_path / "csc.h5ad", out)
    assert write(by_columns, out).n_obs == adata.n_obs  # in memory it is converted


def test_absent_columns_layers_and_labels(tmp_path, cells, write):
    a, b = cells(), cells(50)
    b.write_h5ad(tmp_path / "b.h5ad")
    inputs, out = [a, tmp_path / "b.h5ad"], tmp_path / "0.zarr"
    a.obs["clone"] = a.obs["population"]
    with pytest.raises(
        KeyError, match=r"b.h5ad: population_key: \['clone'\] not in adata.obs.*could be populations.*'batch'"
    ):
        write(inputs, out, "clone")
    with pytest.raises(KeyError, match=r"b.h5ad has no \['clone'\]"):
        write(inputs, out, columns=["clone"])
    a.layers["counts"] = a.X
    with pytest.raises(KeyError, match="b.h5ad has no layers/counts"):
        write(inputs, out, layer="counts")
    with pytest.raises(KeyError, match="adata: layer='raw' is not in adata.layers"):
        write(a, out, layer="raw")
    a.obsm["X_pca"], b.obsm["X_pca"] = np.ones((300, 3)), np.ones((50, 4))
    with pytest.raises(KeyError, match="b.h5ad has no obsm/X_pca"):
        write(inputs, out, obsm_key="X_pca")
    with pytest.raises(ValueError, match=r"different numbers of columns: .*adata\[1\]': 4"):
        write([a, b], out, obsm_key="X_pca")
    with pytest.raises(ValueError, match="both given"):
        write(a, out, layer="counts", obsm_key="X_pca")
    with pytest.raises(ValueError, match="whose columns have no genes"):
        write(a, out, obsm_key="X_pca", var_names=GENES)
    with pytest.raises(ValueError, match="every one of the 300 cells has a missing or unassigned label"):
        write(a, out, unassigned=list("abcdefg"))
    assert not out.exists()


def test_arguments(tmp_path, cells, write):
    adata, out = cells(), tmp_path / "0.zarr"
    for memory in (9_999_999, -1, "1 GB", True, np.nan):
        with pytest.raises(ValueError, match="memory=.* must be at least 10000000 bytes"):
            write(adata, out, memory=memory)
    for seed in (-1, 0.5, "a"):
        with pytest.raises(ValueError, match="seed="):
            write(adata, out, seed=seed)
    with pytest.raises(ValueError, match="var_names: names of genes have duplicates"):
        write(adata, out, var_names=["gene_1", "gene_1"])
    with pytest.raises(ValueError, match="no genes to write"):
        write(adata, out, var_names=[])
    adata.var_names = ["same", *GENES[1:-1], "same"]
    with pytest.raises(ValueError, match="adata: names of genes have duplicates"):
        write(adata, out)
    assert list(tmp_path.iterdir()) == []
