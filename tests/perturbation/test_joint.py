"""Joint training: the term of predictable shifts."""

import numpy as np
import pandas as pd
import pytest
import torch

import scgde
from scgde.data import CellTable
from scgde.perturbation import PredictableShifts


@pytest.fixture(scope="module")
def screen():
    return scgde.datasets.simulate_screen(
        8, 0, n_contexts=2, n_genes=50, n_latent=4, cells_per_population=(30, 30), control_cells=40, seed=5
    )


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return pd.DataFrame(rng.normal(size=(8, 2)), index=[f"p{i}" for i in range(8)])


def train(screen, quick_model, joint, max_epochs=12):
    options = {"max_epochs": max_epochs}
    if joint is not None:
        options["plan_kwargs"] = {"auxiliary": joint}
    return quick_model(screen.copy(), n_latent=5, n_embedding=20, geometry="emergent", train_options=options)


def unpredicted(model, features):
    """What a linear map of features leaves of the shifts of described perturbations, over the spread of embeddings."""
    predictor = scgde.PerturbationPredictor(model, "perturbation", "control", "context").fit()
    design, shifts = predictor._fitted()
    rows = np.flatnonzero(~design.is_control)
    x = features.loc[[design.treatments[i].parts[0] for i in rows]].to_numpy()
    x, y = (x - x.mean(0)) / x.std(0), shifts.shift[rows]
    left = np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum(1).mean()
    return left / design.z.var(0).sum()


class TestTerm:
    """The loss itself."""

    def make(self, features, **options):
        term = PredictableShifts("perturbation", "control", features=features, **options)
        obs = pd.DataFrame({"perturbation": ["control", "p0", "p1", "p9", None]})
        rows, nothing = np.zeros((5, 1)), np.empty((5, 0))
        table = CellTable(rows, np.array([0, 1, 2, 3, -1]), list("abcd"), np.zeros(5), nothing, nothing, None, obs)
        term.prepare(table, np.arange(5), 3)
        return term

    def test_by_hand(self, features):
        term = self.make(features, weight=2.0)
        z = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [5, 5, 5]])
        sources, weights = torch.tensor([[0, 1], [1, 0], [2, 0], [3, 0]]), torch.tensor([[1.0, 0]] * 4)
        # the map starts at zero: squared shifts of the two described ones, over the spread
        expected = 2.0 * (1 + 4) / 2 / z.var(0).sum()
        assert term(z, sources, weights).item() == pytest.approx(expected.item())

    def test_mixtures_have_no_part_and_the_last_control_is_kept(self, features):
        term = self.make(features)
        z = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]], requires_grad=True)
        sources = torch.tensor([[1, 0], [2, 0], [1, 0]])
        pure, mixed = torch.tensor([[1.0, 0]] * 3), torch.tensor([[0.5, 0.5]] * 3)
        assert term(z, sources, pure) == 0  # no control so far
        control = torch.zeros((3, 1), dtype=torch.long).repeat(1, 2)
        assert term(z, control, pure) == 0
        assert term(z, sources, mixed) == 0
        loss = term(z, sources, pure)
        assert loss > 0
        loss.backward()
        assert z.grad.abs().sum() > 0

    def test_input_that_cannot_be(self, features):
        with pytest.raises(ValueError, match="weight"):
            PredictableShifts("perturbation", "control", weight=0.0)
        with pytest.raises(ValueError, match="several rows"):
            PredictableShifts("perturbation", "control", features=pd.concat([features, features]))
        obs, nothing = pd.DataFrame({"perturbation": ["p0"]}), np.empty((1, 0))
        one = CellTable(np.zeros((1, 1)), np.array([0]), ["a"], np.zeros(1), nothing, nothing, None, obs)
        with pytest.raises(ValueError, match="no population's"):
            term = PredictableShifts("perturbation", "ctrl", features=features)
            term.prepare(one, np.arange(1), 3)
        with pytest.raises(ValueError, match="features"):
            self.make(features.rename(lambda name: f"x{name}"))
        with pytest.raises(KeyError, match="guide"):
            term = PredictableShifts("guide", "control", features=features)
            term.prepare(one, np.arange(1), 3)


class TestTraining:
    """Beside the other terms."""

    def test_shifts_become_predictable(self, screen, quick_model, features):
        two_steps = train(screen, quick_model, None, max_epochs=150)
        joint = PredictableShifts("perturbation", "control", features=features, context_key="context", weight=20.0)
        together = train(screen, quick_model, joint, max_epochs=150)
        history = together.history["auxiliary_train"].to_numpy().ravel()
        assert history[-1] < 0.6 * history[0]
        assert unpredicted(together, features) < 0.9 * unpredicted(two_steps, features)

    def test_a_column_that_varies_within_populations_is_refused(self, screen, quick_model, features):
        mixed = screen.copy()
        mixed.obs["half"] = np.where(np.arange(mixed.n_obs) % 2, "control", "p0")
        with pytest.raises(ValueError, match="varies within"):
            train(mixed, quick_model, PredictableShifts("half", "control", features=features), max_epochs=2)

    def test_the_users_random_state_is_left_alone(self, screen, quick_model, features):
        joint = PredictableShifts("perturbation", "control", features=features, context_key="context")
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        train(screen, quick_model, joint, max_epochs=2)
        assert torch.rand(1) == expected

    def test_features_are_loadings_of_genes_by_default(self, screen, quick_model):
        named = screen.copy()
        named.obs["perturbation"] = (
            named.obs["perturbation"].astype(str).replace({f"p{i}": f"gene_{i}" for i in range(8)})
        )
        named.obs["population"] = named.obs["context"].astype(str) + "|" + named.obs["perturbation"]
        joint = PredictableShifts("perturbation", "control", context_key="context")
        train(named, quick_model, joint, max_epochs=2)
        assert joint.head.weight.abs().sum() > 0
        with pytest.raises(ValueError, match="No perturbation has features"):
            train(screen, quick_model, PredictableShifts("perturbation", "control"), max_epochs=2)
