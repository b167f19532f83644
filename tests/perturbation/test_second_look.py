"""What users who tried to break the predictor found."""

import numpy as np
import pytest

import scgde
from scgde import PerturbationPredictor

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}


class TestSecondLook:
    """What a user who tried to break it found."""

    def test_one_context_is_taken_over_as_it_is(self, screen, quick_model, scgde_log):
        adata = screen[screen.obs["context"] == "context_0"].copy()
        predictor = PerturbationPredictor(quick_model(adata, n_latent=5, n_embedding=20), **KEYS).fit()
        other = screen[screen.obs["context"] == "context_1"].copy()
        shift = predictor._shifts.shift[predictor._shifts.rows["p0",]["context_0"][None]]
        z = predictor.predict_embedding("p0", "context_1", adata=other)
        control, _ = predictor.model._embed_rows(
            predictor.model._table(other), np.flatnonzero(other.obs["perturbation"] == "control")
        )
        assert np.allclose(z.to_numpy()[0] - control, shift, atol=0.02 * np.abs(shift).max())
        assert "one context only" in scgde_log.text
        error = np.array(z.attrs["standard_error"])
        assert 0.3 < np.square(error).sum() / np.square(shift).sum() < 5

    def test_cells_of_the_test_part_have_no_part_in_the_fit(self, screen, quick_model):
        adata = screen[screen.obs["context"] == "context_0"].copy()
        adata.obs["part"] = np.where(np.arange(adata.n_obs) % 3 == 0, "test", "train")
        model = quick_model(adata, n_latent=5, n_embedding=20, train_options={"max_epochs": 2, "split_key": "part"})
        first = PerturbationPredictor(model, **KEYS).fit()
        test = (adata.obs["part"] == "test").to_numpy()
        x = adata.X.toarray()
        x[test] = x[test][:, ::-1]
        model.adata.X = type(adata.X)(x)
        second = PerturbationPredictor(model, **KEYS).fit()
        assert np.allclose(first._design.z, second._design.z)
        cells = second.predict("p0", n_cells=None, seed=0)
        assert not set(cells.obs["gde_source_cell"]) & set(adata.obs_names[test])
        assert "scgde" in second.evaluate(adata[test].copy()).index

    def test_other_cells_than_those_of_training_are_refused(self, model, split, tmp_path):
        model.save(str(tmp_path / "m"))
        other = scgde.GDEModel.load(str(tmp_path / "m"), adata=split[0][::-1].copy())
        with pytest.raises(ValueError, match="other cells than it was trained on, or in another order"):
            PerturbationPredictor(other, **KEYS).fit()

    def test_control_among_parts_and_parts_named_twice_add_nothing(self, screen, quick_model):
        adata = screen[screen.obs["context"] == "context_0"].copy()
        names = adata.obs["perturbation"].astype(str)
        single = names.str.fullmatch(r"p\d")
        adata.obs["perturbation"] = np.where(
            single & (names != "p5"), names + "+control", np.where(names == "p5", "p5+p5", names)
        )
        model = quick_model(adata, {"population_key": "perturbation"}, n_latent=5, n_embedding=20)
        predictor = PerturbationPredictor(model, **KEYS).fit()
        assert predictor.perturbations[:6] == [f"p{i}" for i in range(6)]
        assert predictor.predict_embedding("p0").attrs["situation"] == ["seen"]
        assert predictor.predict_embedding("p0+p4").attrs["situation"] == ["combination"]
        assert np.allclose(predictor.predict_embedding("p5"), predictor.predict_embedding("p5+p5"))

    def test_controls_without_a_context_column_are_of_the_context_asked_for(self, screen, quick_model):
        model = quick_model(
            screen.copy(),
            {"population_key": ["context", "perturbation"]},
            n_latent=5,
            n_embedding=20,
            train_options={"max_epochs": 2},
        )
        predictor = PerturbationPredictor(model, **KEYS).fit()
        own = screen[screen.obs["context"] == "context_0"].copy()
        own.obs = own.obs[["perturbation"]].copy()
        cells = predictor.predict("p0", "liver", adata=own, n_cells=5, seed=0)
        assert set(cells.obs["context"]) == {"liver"}
        with pytest.raises(ValueError, match="context is needed: the control cells of adata are of several"):
            predictor.predict("p0", adata=screen, n_cells=5)

    def test_combinations_without_dose_beside_singles_of_many_doses(self, screen, quick_model):
        adata = screen[screen.obs["context"] == "context_0"].copy()
        adata.obs["dose"] = np.where(adata.obs["perturbation"].str.contains("+", regex=False), np.nan, 1.0)
        p0 = np.flatnonzero(adata.obs["perturbation"] == "p0")
        adata.obs.iloc[p0[::2], list(adata.obs.columns).index("dose")] = 10.0
        adata.obs["population"] = adata.obs["perturbation"].astype(str) + adata.obs["dose"].astype(str)
        predictor = PerturbationPredictor(
            quick_model(adata, n_latent=5, n_embedding=20), "perturbation", "control", dose_key="dose"
        ).fit()
        assert predictor.predict_embedding("p0+p4", dose=1).attrs["situation"] == ["combination"]
        assert [n for n in predictor.get_perturbation_adata().obs_names if n.startswith("p0@")] == ["p0@1", "p0@10"]

    def test_parts_that_were_seen_in_combinations_only(self, screen, quick_model):
        adata = screen[(screen.obs["context"] == "context_0") & (screen.obs["perturbation"] != "p5")].copy()
        predictor = PerturbationPredictor(quick_model(adata, n_latent=5, n_embedding=20), **KEYS).fit()
        for asked in ("p5", "p0+p5"):
            assert predictor.predict_embedding(asked).attrs["situation"] == ["combination"]

    @pytest.mark.parametrize("dose", ["high", True, -1.0, np.nan])
    def test_doses_that_are_no_doses(self, screen, model, dose):
        predictor = PerturbationPredictor(model, **KEYS).fit()
        predictor.dose_key = "dose"
        with pytest.raises(ValueError, match="must be a finite number"):
            predictor.predict("p0", "context_0", dose=dose)

    def test_one_context_needs_no_name_and_models_without_data_still_embed(self, predictor, model, tmp_path):
        predictor.save(str(tmp_path / "p"))
        model.save(str(tmp_path / "m"))
        bare = scgde.GDEModel.load(str(tmp_path / "m"), adata=False)
        again = PerturbationPredictor.load(str(tmp_path / "p"), bare)
        assert np.allclose(again.predict_embedding("p0", "context_2"), predictor.predict_embedding("p0", "context_2"))

    def test_ratio_of_the_table_is_that_of_its_means(self, predictor, split):
        table = predictor.evaluate(split[1])
        assert table.loc["scgde", "e_ratio"] == pytest.approx(
            table.loc["scgde", "e_distance"] / table.loc["control copy", "e_distance"]
        )


def test_targets_among_the_genes_change_their_own_gene_first(screen, quick_model):
    """Knock-downs of genes of the data: an unseen target's gene falls, and errors say what has no description."""
    rng = np.random.default_rng(0)
    adata = screen[screen.obs["perturbation"].isin(["control", *(f"p{i}" for i in range(6))])].copy()
    genes = {f"p{i}": f"gene_{i}" for i in range(6)}
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace(genes)
    x = adata.X.toarray()
    for gene in genes.values():
        rows, column = np.flatnonzero(adata.obs["perturbation"] == gene), adata.var_names.get_loc(gene)
        x[rows, column] = rng.binomial(x[rows, column].astype(int), 0.2)
    adata.X = type(adata.X)(x.astype(np.float32))
    adata.obs["population"] = adata.obs["context"].astype(str) + "|" + adata.obs["perturbation"]
    held = (adata.obs["perturbation"] == "gene_0").to_numpy()
    model = quick_model(adata[~held].copy(), n_latent=5, n_embedding=20)
    predictor = PerturbationPredictor(model, **KEYS).fit()
    assert predictor.features.shape[0] == adata.n_vars
    cells = predictor.predict("gene_0", "context_0", n_cells=None, seed=0)
    control = model.adata[cells.obs["gde_source_cell"]]
    share = [c[:, "gene_0"].X.sum() / c.X.sum() for c in (cells, control)]
    assert 0.1 < share[0] / share[1] < 0.35
    table = predictor.evaluate(adata[held].copy())
    assert table.loc["target gene alone", "pearson_delta"] > 0.2
    assert set(cells.obs["gde_situation"]) == {"features"}
    with pytest.raises(KeyError, match="those of genes of the data, and it is none"):
        predictor.predict("drug", "context_0")
