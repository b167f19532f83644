import numpy as np
import pytest
import torch

from scgde.data import PopulationDataModule
from scgde.data.latents import Latents
from scgde.data.populations import split_by_cell, split_by_population
from scgde.data.sampler import SetBatch


@pytest.fixture
def table(make_cells, make_model):
    adata = make_cells(8, sizes=(3, 30), n_batches=2, unassigned_fraction=0.1)
    adata.obs["age"] = np.linspace(0, 1, adata.n_obs)
    model = make_model(adata, {"batch_key": "batch", "continuous_covariate_keys": ["age"]})
    return model._table()


def make_datamodule(table, split=split_by_cell, train_size=0.6, **options):
    parts = split(table.codes, train_size, 1 - train_size, np.random.default_rng(0))
    return PopulationDataModule(table, *parts, **{"batch_size": 32, "populations_per_batch": 4} | options)


def with_latent(data):
    """Latents that carry the number of their cell."""
    mean = torch.arange(data.table.n_cells, dtype=torch.float32)[:, None].repeat(1, 3)
    data.set_latent(Latents(mean, torch.ones_like(mean)))
    return data


def test_cell_batches_cover_the_training_cells_once_unassigned_included(table):
    data = make_datamodule(table)
    numbers = {tuple(row): i for i, row in enumerate(table.rows(np.arange(table.n_cells)))}
    assert len(numbers) == table.n_cells, "the test needs distinct rows"
    seen = [numbers[tuple(row)] for batch in data.train_dataloader() for row in batch["X"].numpy()]
    assert sorted(seen) == data.train_idx.tolist()
    assert (table.codes[seen] == -1).any()


def test_cell_batches_have_nearly_equal_sizes_and_carry_their_covariates(table):
    batches = list(make_datamodule(table).train_dataloader())
    sizes = [len(batch["X"]) for batch in batches]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 32
    for batch, n in zip(batches, sizes, strict=True):
        assert batch["batch"].shape == (n, 1) and batch["extra_continuous_covs"].shape == (n, 1)
        assert batch["X"].dtype == torch.float32 and batch["batch"].dtype == torch.int64


def test_set_batches_are_ragged_flat_and_without_unassigned_or_held_out_cells(table):
    data = with_latent(make_datamodule(table, mixing=0.5))
    sizes = set()
    for batch in data.train_dataloader():
        cells, segment = batch["u_mean"][:, 0].long().numpy(), batch["segment"].numpy()
        assert set(cells) <= set(data.train_idx) and (table.codes[cells] >= 0).all()
        for k, (sources, weights) in enumerate(zip(batch["sources"].numpy(), batch["source_weights"], strict=True)):
            members = cells[segment == k]
            assert set(table.codes[members]) == set(sources[weights.numpy() > 0])
            sizes.add(len(members))
    assert len(sizes) > 2, "sets keep their own sizes"


def test_validation_sets_encode_training_cells_and_score_held_out_ones(table):
    data = with_latent(make_datamodule(table))
    scored_cells = []
    for batch in data.val_dataloader():
        cells, segment, scored = batch["u_mean"][:, 0].long().numpy(), batch["segment"].numpy(), batch["scored"].numpy()
        assert set(cells[~scored]) <= set(data.train_idx) and set(cells[scored]) <= set(data.val_idx)
        for k, sources in enumerate(batch["sources"].numpy()):
            assert set(table.codes[cells[segment == k]]) == {sources[0]}
            assert scored[segment == k].any() and not scored[segment == k].all()
        scored_cells += cells[scored].tolist()
    held_out = data.val_idx[table.codes[data.val_idx] >= 0]
    assert sorted(scored_cells) == held_out.tolist()


def test_held_out_populations_are_encoded_from_one_half_and_scored_on_the_other(table):
    data = with_latent(make_datamodule(table, split_by_population))
    populations = set()
    for batch in data.val_dataloader():
        cells, segment, scored = batch["u_mean"][:, 0].long().numpy(), batch["segment"].numpy(), batch["scored"].numpy()
        assert set(cells) <= set(data.val_idx) and len(set(cells)) == len(cells)
        for k, sources in enumerate(batch["sources"].numpy()):
            n_scored, n = scored[segment == k].sum(), (segment == k).sum()
            assert n == (table.codes == sources[0]).sum() and abs(2 * n_scored - n) <= 1
            populations.add(int(sources[0]))
    assert populations == set(table.codes[data.val_idx])


def test_validation_of_the_cell_phase_covers_the_validation_cells(table):
    data = make_datamodule(table)
    assert sum(len(batch["X"]) for batch in data.val_dataloader()) == data.n_val


def test_batches_depend_on_the_seed_only(table):
    def cells(seed):
        batches = with_latent(make_datamodule(table, seed=seed)).train_dataloader()
        return torch.cat([batch["u_mean"][:, 0] for batch in batches]).tolist()

    assert cells(0) == cells(0)
    assert cells(0) != cells(1)


def test_loading_batches_leaves_global_random_state_alone(table):
    data = with_latent(make_datamodule(table))
    state = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_set_batch_takes_the_latents_of_its_rows(table):
    data = with_latent(make_datamodule(table))
    sets = SetBatch(np.array([5, 2, 9]), np.array([0, 0, 1]), np.array([[1, 1, 1], [2, 2, 2]]), np.eye(2, 3))
    batch = data.set_batch(sets)
    assert batch["u_mean"][:, 0].tolist() == [5, 2, 9] and "scored" not in batch


def test_no_validation_cells_means_no_validation_batches(table):
    assert list(make_datamodule(table, train_size=1.0).val_dataloader()) == []
