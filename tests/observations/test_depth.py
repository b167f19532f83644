import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scgde
from scgde.observations import ContinuousModel
from scgde.observations._depth import LEVELS, DepthMap
from scgde.observations.thinning import thin_counts


@pytest.fixture(scope="module")
def cells():
    """Poisson counts of three groups in two programmes, about 400 reads each, and an encoder that shrinks."""
    rng = np.random.default_rng(0)
    groups = np.repeat([[-1.0, 0.5], [1.0, 0.5], [0.0, -1.0]], 700, axis=0)
    u = groups + 0.3 * rng.normal(size=groups.shape)
    loadings = rng.normal(size=(2, 60))
    rates = np.exp(0.5 * u @ loadings)
    depth = 400 * np.exp(0.3 * rng.normal(size=len(u)))
    counts = sp.csr_matrix(rng.poisson(depth[:, None] * rates / rates.sum(1, keepdims=True)).astype(np.float32))

    def encode(block):
        total = np.asarray(block.sum(1))
        scores = np.log1p(block.toarray() * 400 / np.maximum(total, 1)) @ loadings.T / 30
        reliability = total / (total + 150)
        mean = torch.from_numpy(reliability * (scores - 0.3)).float()
        return mean, torch.from_numpy(np.sqrt(1 - reliability)).float().expand_as(mean)

    return counts, encode, np.repeat(np.arange(3), 700)


def _mapped(depth_map, encode, counts):
    total = torch.from_numpy(np.asarray(counts.sum(1), dtype=np.float32)).clamp_min(1)
    mean, sd = depth_map(*encode(counts), total)
    return mean.numpy(), sd.numpy()


def test_a_map_that_is_not_fitted_leaves_latents_as_they_are():
    mean, sd = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.rand(50, 4)
    moved, wide = DepthMap(4)(mean, sd, torch.logspace(0, 6, 50)[:, None])
    torch.testing.assert_close(moved, mean)
    torch.testing.assert_close(wide, sd)


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.1])
def test_thinned_cells_have_mean_and_covariance_of_the_whole_ones(cells, keep):
    counts, encode, codes = cells
    depth_map = DepthMap(2)
    thinned = thin_counts(counts, np.full(counts.shape[0], keep), np.random.default_rng(1))
    before = encode(counts)[0].numpy(), encode(thinned)[0].numpy()
    depth_map.fit(counts, encode)
    after = _mapped(depth_map, encode, counts), _mapped(depth_map, encode, thinned)

    def gap(one, two):
        means = [np.stack([u[codes == k].mean(0) for k in range(3)]) for u in (one, two)]
        return (
            np.linalg.norm(means[0] - means[1], axis=1).mean()
            / np.linalg.norm(means[0] - means[0].mean(0), axis=1).mean()
        )

    old, new = gap(*before), gap(after[0][0], after[1][0])
    assert new < 0.12 and new < old / 4
    spread = [np.trace(np.cov(u.T)) for u in (after[0][0], after[1][0])]
    assert abs(spread[1] / spread[0] - 1) < 0.08
    assert abs(np.square(after[1][1]).mean() / np.square(after[0][1]).mean() - 1) < 0.05


def test_cells_at_the_reference_and_maps_beyond_all_depths(cells):
    counts, encode, _ = cells
    depth_map = DepthMap(2)
    depth_map.fit(counts, encode)
    mean, sd = encode(counts[:20])
    reference = depth_map.log_reference.exp().expand(20, 1)
    torch.testing.assert_close(depth_map(mean, sd, reference)[0], mean)
    far = depth_map(mean, sd, reference * 2.0 ** (LEVELS[0] - 8))[0]
    torch.testing.assert_close(far, depth_map(mean, sd, reference * 2.0 ** LEVELS[0])[0])
    assert far.isfinite().all()


def test_few_or_empty_cells_leave_the_map_finite(cells):
    counts, encode, _ = cells
    for block in (counts[:40], counts[:3], sp.csr_matrix((10, 60), dtype=np.float32)):
        depth_map = DepthMap(2)
        depth_map.fit(block, encode)
        assert all(buffer.isfinite().all() for buffer in depth_map.buffers())


def test_continuous_rows_have_no_map():
    assert not any("depth" in name for name in ContinuousModel(3).state_dict())


@pytest.fixture(scope="module")
def two_depths():
    """A model of eight laws, each a population at 2,500 reads and one at a quarter of them, and fresh cells of both."""

    def thin(adata, seed):
        rng = np.random.default_rng(seed)
        shallow = rng.random(adata.n_obs) < 0.5
        adata.X = thin_counts(adata.X, np.where(shallow, 0.25, 1.0), rng)
        adata.obs["population"] = adata.obs["population"].astype(str) + np.where(shallow, "|b", "|a")
        return adata

    adata = scgde.datasets.simulate_populations(
        8, design="independent", cells_per_population=(150, 150), n_genes=120, depth=2500, seed=3
    )
    query = thin(scgde.datasets.simulate_cells(adata, sorted(adata.obs["population"].unique()), 600, seed=1), 2)
    adata = thin(adata, 1)
    scgde.GDEModel.setup_anndata(adata)
    model = scgde.GDEModel(adata, n_latent=10)
    model.train(max_epochs=100, seed=0, accelerator="cpu", enable_progress_bar=False)
    return model, query


def test_fresh_cells_of_one_law_lie_together_whatever_their_depth(two_depths):
    model, query = two_depths
    distance = model.get_population_distances(query, bias_correction=True)
    deep, shallow = ([name for name in distance.index if name.endswith(end)] for end in ("|a", "|b"))
    between = np.median(distance.loc[deep, deep].to_numpy()[np.triu_indices(8, 1)])
    assert np.diag(distance.loc[deep, shallow]).mean() < 0.04 * between


def test_the_map_is_saved_and_forgotten_when_cells_are_trained_again(two_depths, tmp_path):
    model, query = two_depths
    z = model.get_population_embedding(query)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = scgde.GDEModel.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.get_population_embedding(query), z, rtol=1e-5, atol=1e-5)
    depth_map, seen = loaded.module.observation.depth_map, []
    assert not torch.equal(depth_map.gain, torch.eye(10).expand_as(depth_map.gain))
    encode = loaded.module.cell_loss

    def cell_loss(*args, **kwargs):
        seen.append(depth_map.shift.abs().max().item())
        return encode(*args, **kwargs)

    loaded.module.cell_loss = cell_loss
    loaded.train(max_epochs=2, seed=0, accelerator="cpu", enable_progress_bar=False)
    assert seen and max(seen) == 0
    assert depth_map.shift.abs().max() > 0
