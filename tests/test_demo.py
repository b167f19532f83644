"""The demonstration, in its short form and shortened further."""

import anndata as ad
import numpy as np
import pytest

from scgde import demo


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return demo.run(out, size=demo.Size(12, (20, 40), 8), seed=3), out


def test_writes_what_it_says(written):
    paths, out = written
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in paths.values())
    assert paths["figure"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_cells_carry_embeddings(written):
    cells = ad.read_h5ad(written[0]["cells"])
    loose = cells.obs["clone"].isna().to_numpy()
    assert loose.any()
    assert np.isfinite(cells.obsm["X_gde"]).all()
    np.testing.assert_array_equal(np.isnan(cells.obsm["X_gde_population"]).all(axis=1), loose)
    assert set(cells.uns["gde"]) == {"populations", "standard_error", "n_cells", "params"}
    # the per-cell vectors of a population average to its vector, whatever the training
    label = cells.uns["gde"]["populations"].index[0]
    rows = (cells.obs["population"] == label).to_numpy()
    expected = cells.uns["gde"]["populations"].loc[label]
    np.testing.assert_allclose(cells.obsm["X_gde"][rows].mean(axis=0), expected, atol=1e-4)


def test_populations_carry_distances(written):
    pop = ad.read_h5ad(written[0]["populations"])
    assert pop.n_obs == 12
    assert {"clone", "time", "fate", "gde_n_cells"} <= set(pop.obs)
    assert np.isfinite(pop.layers["standard_error"]).all()
    z = pop.obsm["X_gde"]
    expected = np.linalg.norm(z[:, None] - z[None], axis=-1)
    np.testing.assert_allclose(pop.obsp["gde_distances"], expected, atol=1e-3)


def test_generated_cells_are_counts_of_late_populations(written):
    generated = ad.read_h5ad(written[0]["generated"])
    assert (generated.X.data == np.round(generated.X.data)).all()
    sizes = generated.obs["gde_population"].value_counts()
    assert (sizes == demo.N_GENERATED).all()
    assert all(label.endswith("|d6") for label in sizes.index)


def test_ceiling_of_the_comparison(written):
    """Estimates from the simulation's own latents must come close to the truth, or pairs are out of order."""
    cells, pop = (ad.read_h5ad(written[0][name]) for name in ("cells", "populations"))
    truth, estimates = demo.compare(cells, pop)
    (ceiling,) = (values for name, values in estimates.items() if "ceiling" in name)
    assert len(truth) == 66
    assert np.corrcoef(truth, ceiling)[0, 1] > 0.9


@pytest.mark.slow
def test_command_line(tmp_path, capsys):
    demo.main(["--out", str(tmp_path), "--short"])
    printed = capsys.readouterr().out
    assert "Spearman" in printed
    for name in ("cells.h5ad", "populations.h5ad", "generated.h5ad", "demo.png"):
        assert (tmp_path / name).is_file()
        assert str(tmp_path / name) in printed
