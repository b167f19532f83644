"""Folders sorted by population: what is read back is what went in, in the promised order."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scgde._identity import fingerprint
from scgde.data import _sorting, _sources, _store
from scgde.data._store import STORE_KEY, read_description
from scgde.data.populations import encode_labels, population_labels

GENES = [f"gene_{i}" for i in range(40)]


def _dense(adata):
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def _sorted_within_rows(matrix):
    return all(
        (np.diff(matrix.indices[a:b]) > 0).all() for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    )


def _codes(adata, keys=("population",)):
    return encode_labels(population_labels(adata.obs, list(keys)))[0]


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
@pytest.mark.parametrize("dense", [False, True])
def test_what_is_read_back_is_the_input_in_another_order(tmp_path, small_chunks, kind, dense, cells, write):
    adata = cells()
    if dense:
        adata.X = _dense(adata)
    source = adata
    if kind != "memory":
        source = tmp_path / f"input.{kind}"
        (adata.write_h5ad if kind == "h5ad" else adata.write_zarr)(source)
    found = write(source, tmp_path / "out.zarr", seed=3)

    assert sp.issparse(found.X) != dense and found.X.dtype == np.float32
    assert list(found.var_names) == GENES and found.n_obs == adata.n_obs
    expected = adata[found.obs_names]
    np.testing.assert_array_equal(_dense(found), _dense(expected))
    strings = expected.obs.astype({"population": "category", "time": "category"})
    pd.testing.assert_frame_equal(found.obs, strings)
    assert list(found.obs["batch"].cat.categories) == ["y", "x"]  # an order that all inputs share is kept

    codes = _codes(found)
    np.testing.assert_array_equal(codes, np.sort(np.where(_codes(adata) < 0, 99, _codes(adata))) % 99 - (codes < 0))
    description = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs[STORE_KEY]
    assert description == read_description(tmp_path / "out.zarr")
    files = description.pop("files")
    assert description == {
        "format": 1,
        "population_key": ["population"],
        "unassigned": [],
        "n_cells": 300,
        "n_vars": 40,
        "n_populations": codes.max() + 1,
        "rows": "counts",
        "obsm_key": None,
        "seed": 3,
        "names": fingerprint(found),
        "complete": True,
    }
    for name, n_files in files.items():
        on_disk = [f for f in (tmp_path / "out.zarr" / name / "c").rglob("*") if f.is_file()]
        assert len(on_disk) == n_files, name
    assert len([d for d in tmp_path.iterdir() if d.name.startswith(".")]) == 0


@pytest.mark.parametrize("max_entries", [2000, 10**6])
def test_encoding_of_sparse_rows(tmp_path, small_chunks, monkeypatch, max_entries, cells, write):
    monkeypatch.setattr(_sorting, "MAX_ENTRIES", max_entries)  # the larger takes all rows at once
    adata = cells()
    adata.X.data[::7] = 0  # stored zeros are not written
    rng = np.random.default_rng(0)
    for i in range(adata.n_obs):  # columns out of order
        entries = slice(*adata.X.indptr[i : i + 2])
        shuffled = rng.permutation(entries.stop - entries.start)
        adata.X.indices[entries] = adata.X.indices[entries][shuffled]
        adata.X.data[entries] = adata.X.data[entries][shuffled]
    adata.X.has_sorted_indices = False
    before = adata.X.copy()
    expected = dict(zip(adata.obs_names, adata.X.toarray(), strict=True))
    found = write(adata, tmp_path / "out.zarr")
    # the input is as it was
    np.testing.assert_array_equal(adata.X.data, before.data)
    np.testing.assert_array_equal(adata.X.indices, before.indices)

    np.testing.assert_array_equal(found.X.toarray(), np.stack([expected[n] for n in found.obs_names]))
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")["X"]
    assert [group[n].dtype for n in ("data", "indices", "indptr")] == ["float32", "int32", "int32"]
    assert group["data"].chunks == (100,) and group["data"].shards == (500,)
    indices, indptr = group["indices"][:], group["indptr"][:]
    assert (group["data"][:] != 0).all() and indptr[0] == 0 and indptr[-1] == len(indices)
    assert _sorted_within_rows(found.X)


def test_shards_of_default_size(tmp_path, write):
    n = 66 * _store.CHUNK_ENTRIES // len(GENES)
    adata = ad.AnnData(sp.csr_matrix(np.ones((n, len(GENES)), np.float32)), var=pd.DataFrame(index=GENES))
    adata.obs["population"] = pd.Categorical(np.where(np.arange(n) % 2, "a", "b"))
    found = write(adata, tmp_path / "out.zarr")
    assert read_description(tmp_path / "out.zarr")["files"]["X/data"] == 2 and (found.X.data == 1).all()


@pytest.mark.parametrize("key", ["population", ["population", "time"]])
def test_several_files_are_one_anndata(tmp_path, small_chunks, key, cells, write):
    parts = [cells(n, seed, prefix=f"p{seed}") for seed, n in enumerate((150, 400, 30))]
    for i in (1, 2):  # genes in another order
        parts[i] = parts[i][:, np.random.default_rng(i).permutation(len(GENES))].copy()
    parts[1].X = parts[1].X.astype(np.int64)
    parts[0].write_h5ad(tmp_path / "0.h5ad")
    parts[2].write_zarr(tmp_path / "2.zarr")
    mixed = write([tmp_path / "0.h5ad", parts[1], str(tmp_path / "2.zarr")], tmp_path / "mixed.zarr", key)
    whole = ad.concat([p[:, GENES] for p in parts])
    single = write(whole, tmp_path / "single.zarr", key)

    np.testing.assert_array_equal(mixed.X.toarray(), single.X.toarray())
    assert _sorted_within_rows(mixed.X)
    pd.testing.assert_frame_equal(mixed.obs.astype(str), single.obs.astype(str))
    keys = [key] if isinstance(key, str) else key
    codes = _codes(mixed, keys)
    assert (np.diff(np.where(codes < 0, 99, codes)) >= 0).all()  # each population is one run
    spans = mixed.obs.groupby(codes)["population"].apply(lambda c: c.index.str[:2].nunique())
    assert spans.max() == 3


def test_content_does_not_depend_on_memory(tmp_path, monkeypatch, cells, write, contents):
    adata = cells(800)
    counts = []

    def files(name, limit):
        monkeypatch.setattr(_sorting, "MAX_ENTRIES", limit)
        folders = []
        original = _sorting.Buckets.__init__
        monkeypatch.setattr(
            _sorting.Buckets, "__init__", lambda self, *args: folders.append(args[1]) or original(self, *args)
        )
        write(adata, tmp_path / name)
        monkeypatch.setattr(_sorting.Buckets, "__init__", original)
        counts.append(len(folders[0]) - 1)
        return contents(tmp_path / name)

    # one bucket, several, and one for every row, which each has more entries than the limit
    reference = files("one.zarr", 10**6)
    assert files("some.zarr", 900) == reference and files("all.zarr", 1) == reference
    assert counts[0] == 1 and counts[1] > 10 and counts[2] == 800


def test_limits_of_blocks_and_buckets(cells):
    adata = cells(500)
    source = _sources.open_sources(adata, None, None)[0]
    blocks = list(source.blocks(adata.var_names, 300))
    assert [start for start, _ in blocks] == np.cumsum([0, *(b.shape[0] for _, b in blocks[:-1])]).tolist()
    assert max(b.nnz + 4 * b.shape[0] for _, b in blocks) <= 300 and len(blocks) < 40
    sizes = np.random.default_rng(0).integers(0, 50, 1000)
    sizes[17] = 5000  # more than the limit: a bucket of its own
    bounds = _sorting.bucket_bounds(sizes, 400)
    taken = np.add.reduceat(sizes + 4, bounds[:-1])
    assert bounds[0] == 0 and bounds[-1] == 1000 and (np.diff(bounds) > 0).all()
    assert np.sort(taken)[-1] == 5004 and np.sort(taken)[-2] <= 400 and len(taken) < 100


def test_order_within_populations_is_random(tmp_path, write):
    n = 4000
    adata = ad.AnnData(np.ones((n, 1), np.float32), pd.DataFrame({"at": np.arange(n) / n}, [f"c{i}" for i in range(n)]))
    adata.obs["population"] = np.where(np.arange(n) % 2, "a", "b")
    found = write(adata, tmp_path / "0.zarr")
    for label in "ab":
        at = found.obs.loc[found.obs["population"] == label, "at"].to_numpy()
        # windows are samples of the whole: their means have the spread of means of 100 uniform numbers, 0.029
        means = at.reshape(20, 100).mean(1)
        assert 0.015 < means.std() < 0.045 and abs(np.corrcoef(at[:-1], at[1:])[0, 1]) < 0.08
    again, other = write(adata, tmp_path / "1.zarr"), write(adata, tmp_path / "2.zarr", seed=1)
    assert (again.obs_names == found.obs_names).all() and (other.obs_names == found.obs_names).mean() < 0.01


def test_a_folder_is_sorted_again_by_another_key(tmp_path, small_chunks, cells, write):
    adata = cells()
    first = write(adata, tmp_path / "0.zarr")
    found = write(tmp_path / "0.zarr", tmp_path / "1.zarr", ["time", "batch"])
    assert (np.diff(_codes(found, ["time", "batch"])) >= 0).all()
    np.testing.assert_array_equal(found.X.toarray(), adata[found.obs_names].X.toarray())
    pd.testing.assert_frame_equal(found.obs, first.obs.loc[found.obs_names])


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_categories_as_anndata_0_7_wrote_them(tmp_path, cells, write):
    adata = cells()
    adata.write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "a") as file:
        obs = file["obs"]
        for name in ("population", "batch", "plate", "time"):
            codes, categories, ordered = obs[name]["codes"][:], obs[name]["categories"][:], obs[name].attrs["ordered"]
            del obs[name]
            obs.require_group("__categories")[name] = categories
            obs["__categories"][name].attrs["ordered"] = ordered
            obs[name] = codes
            obs[name].attrs["categories"] = obs["__categories"][name].ref
        obs.attrs["encoding-version"] = "0.1.0"
    found = write(tmp_path / "in.h5ad", tmp_path / "0.zarr")
    pd.testing.assert_frame_equal(found.obs.astype(str), adata[found.obs_names].obs.astype(str))


def test_layer_obsm_and_real_rows(tmp_path, small_chunks, cells, write):
    adata = cells(real=True)
    adata.layers["twice"] = adata.X * 2
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(adata.n_obs, 3)).astype(np.float16)
    adata.obsm["frame"] = pd.DataFrame(
        np.asarray(adata.obsm["X_pca"], float), index=adata.obs_names, columns=list("xyz")
    )
    adata.write_h5ad(tmp_path / "in.h5ad")
    for source in (adata, tmp_path / "in.h5ad"):
        found = write(source, tmp_path / "layer.zarr", layer="twice", overwrite=True)
        np.testing.assert_array_equal(found.X.toarray(), 2 * adata[found.obs_names].X.toarray())
        assert read_description(tmp_path / "layer.zarr")["rows"] == "real"
        for key in ("X_pca", "frame"):
            found = write(source, tmp_path / "obsm.zarr", obsm_key=key, overwrite=True)
            np.testing.assert_array_equal(found.X, np.asarray(adata[found.obs_names].obsm[key], np.float32))
            assert list(found.var_names) == [f"{key}_{i}" for i in range(3)]
    negative = adata.copy()
    negative.X = -abs(adata.X.ceil())
    write(negative, tmp_path / "negative.zarr")
    assert read_description(tmp_path / "negative.zarr")["rows"] == "real"


def test_genes_and_columns_to_keep(tmp_path, scgde_log, cells, write):
    a, b = cells(50, 0, prefix="a"), cells(50, 1, prefix="b")
    a.obs["_scvi_population"] = 0
    b.obs["only_b"] = 1
    chosen = GENES[10:0:-2]
    found = write([a, b], tmp_path / "0.zarr", var_names=chosen)
    assert list(found.var_names) == chosen and list(found.obs) == list(cells(1).obs)
    whole = ad.concat([a, b])[found.obs_names]
    np.testing.assert_array_equal(found.X.toarray(), whole[:, chosen].X.toarray())
    assert "only_b" in scgde_log.text and "35 of 40 genes" in scgde_log.text
    assert list(write([a, b], tmp_path / "1.zarr", columns=["depth"]).obs) == ["population", "depth"]
    b = b[:, GENES[:30]].copy()
    found = write([b, a], tmp_path / "2.zarr")
    assert list(found.var_names) == GENES[:30]
    with pytest.raises(ValueError, match=r"adata\[1\] lacks 10 of 40 genes: \['gene_30'"):
        write([a, b], tmp_path / "3.zarr")


def test_columns_that_differ_between_inputs(tmp_path, write):
    n = 4
    columns = [
        {"plate": [1, 2, 3, 4], "n": [1, 2, 3, 4], "flag": [True] * n, "cat": pd.Categorical(list("bbcc")), "empty": [np.nan] * n},
        {"plate": list("xyxy"), "n": [0.5] * n, "flag": [1] * n, "cat": pd.Categorical(list("aaad")), "empty": list("uvuv")},
    ]  # fmt: skip
    columns[0]["maybe"] = pd.array([True, None, False, True], dtype="boolean")
    columns[1]["maybe"] = pd.array([True] * n, dtype="boolean")
    columns[0]["whole"] = pd.array([1, None, 2, 3], dtype="Int64")
    columns[1]["whole"] = pd.array([1] * n, dtype="Int64")
    columns[0]["level"] = pd.Categorical([2, 10, 2, 10])
    columns[1]["level"] = pd.Categorical([3, 3, 3, np.nan])
    parts = []
    for i, values in enumerate(columns):
        obs = pd.DataFrame(values, index=[f"{'ab'[i]}{k}" for k in range(n)])
        obs["population"] = ["p", "p", "q", "q"]
        parts.append(ad.AnnData(np.ones((n, 2), np.float32), obs))
    obs = write(parts, tmp_path / "0.zarr").obs.sort_index()
    assert obs["plate"].tolist() == ["1", "2", "3", "4", "x", "y", "x", "y"]
    assert list(obs["plate"].cat.categories) == ["1", "2", "3", "4", "x", "y"]
    assert obs["n"].dtype == np.float64 and obs["n"].tolist() == [1, 2, 3, 4] + [0.5] * 4
    assert obs["flag"].tolist() == ["True"] * 4 + ["1"] * 4
    assert list(obs["cat"].cat.categories) == list("abcd") and "".join(obs["cat"]) == "bbccaaad"
    assert obs["empty"].isna().tolist() == [True] * 4 + [False] * 4 and "".join(obs["empty"][4:]) == "uvuv"
    assert obs["maybe"].tolist()[0] == "True" and obs["maybe"].isna().sum() == 1
    assert obs["whole"].dtype == np.float64 and obs["whole"].isna().tolist() == [False, True] + [False] * 6
    assert list(obs["level"].cat.categories) == [2, 3, 10] and obs["level"].isna().sum() == 1


def test_labels_are_those_of_one_anndata(tmp_path, cells, write):
    """Integer labels that one file stores as floats, unassigned ones, and joined labels that clash over files."""
    a, b = cells(40, prefix="a"), cells(40, prefix="b")
    a.obs["clone"], b.obs["clone"] = np.arange(40) % 3, np.where(np.arange(40) % 4 < 3, np.arange(40) % 4, np.nan)
    found = write([a, b], tmp_path / "0.zarr", "clone", unassigned="2")
    description = read_description(tmp_path / "0.zarr")
    assert description["n_populations"] == 2 and description["unassigned"] == ["2"]
    values = found.obs["clone"].to_numpy()
    assert (np.diff(values[:47]) >= 0).all() and set(values[:47]) == {0, 1} and not set(values[47:]) & {0, 1}
    a.obs["x"], a.obs["y"], b.obs["x"], b.obs["y"] = "u|v", "w", "u", "v|w"
    with pytest.raises(ValueError, match="both read 'u|v|w'"):
        write([a, b], tmp_path / "1.zarr", ["x", "y"])


def test_names_of_cells_that_repeat_are_kept(tmp_path, scgde_log, cells, write):
    a = cells(30)
    found = write([a, a], tmp_path / "0.zarr")
    assert "Names of cells repeat" in scgde_log.text and (found.obs_names.value_counts() == 2).all()
