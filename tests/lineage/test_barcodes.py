"""Clone labels from matrices, and clones that two samples share by accident."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scgde.lineage import clone_labels, shared_clones

COUNTS = np.array([[1, 0, 0], [0, 0, 0], [0, 3, 1], [2, 2, 0], [0, 0, 5]])


@pytest.fixture(params=[np.asarray, sp.csr_matrix, sp.csc_matrix])
def adata(request):
    cells = ad.AnnData(np.ones((5, 2), dtype=np.float32))
    cells.obsm["X_clone"] = request.param(COUNTS)
    return cells


class TestLabels:
    """Cells x clones."""

    def test_cells_with_several_clones_have_none(self, adata):
        labels = clone_labels(adata)
        assert labels.isna().tolist() == [False, True, True, True, False]
        assert labels.dropna().tolist() == ["0", "2"]

    def test_or_the_largest(self, adata):
        labels = clone_labels(adata, multiple="largest", names=["a", "b", "c"])
        assert labels.isna().tolist() == [False, True, False, True, False]
        assert labels.dropna().tolist() == ["a", "b", "c"]

    def test_few_molecules_are_no_evidence(self, adata):
        assert clone_labels(adata, min_count=1).dropna().tolist() == ["1", "2"]

    def test_columns_name_clones(self, adata):
        adata.obsm["X_clone"] = pd.DataFrame(COUNTS, index=adata.obs_names, columns=["x", "y", "z"])
        assert clone_labels(adata).dropna().tolist() == ["x", "z"]

    def test_the_matrix_is_left_as_it_is(self, adata):
        before = adata.obsm["X_clone"].copy()
        clone_labels(adata, min_count=2)
        assert abs(adata.obsm["X_clone"] - before).sum() == 0

    def test_input_that_cannot_be(self, adata):
        with pytest.raises(KeyError, match="X_barcode"):
            clone_labels(adata, "X_barcode")
        with pytest.raises(ValueError, match="several clones"):
            clone_labels(adata, multiple="raise")
        with pytest.raises(ValueError, match="names has 2"):
            clone_labels(adata, names=["a", "b"])
        with pytest.raises(ValueError, match="multiple="):
            clone_labels(adata, multiple="first")
        adata.obsm["X_clone"] = -COUNTS
        with pytest.raises(ValueError, match="negative"):
            clone_labels(adata)

    def test_many_clones_are_never_dense(self):
        n = 200_000
        cells = ad.AnnData(sp.csr_matrix((n, 1), dtype=np.float32))
        cells.obsm["X_clone"] = sp.csr_matrix((np.ones(n), (np.arange(n), np.arange(n) // 4)), (n, n // 4))
        assert clone_labels(cells).nunique() == n // 4


def test_clones_that_samples_share(scgde_log):
    obs = pd.DataFrame({"clone": ["1", "1", "2", None, "3"], "mouse": ["a", "b", "a", "a", "b"]})
    assert shared_clones(obs, "clone", "mouse").to_dict() == {"1": 2}
    assert "population_key" in scgde_log.text
    with pytest.raises(KeyError, match="sample_key"):
        shared_clones(obs, "clone", "animal")
