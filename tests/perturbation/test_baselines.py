"""Baselines are what their names say."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from scgde.perturbation.baselines import PASTED, BaselineData, forecasts
from scgde.perturbation.design import Treatment

RNG = np.random.default_rng(0)
GENES = 12


def make(pairs, features=None):
    """Training means of pairs of a context and a label; expression is random, cells are rows of their own number."""
    expression = RNG.normal(2, 1, size=(len(pairs), GENES))
    cells = [np.arange(3) + 3 * i for i in range(len(pairs))]
    rows = np.repeat(expression, 3, axis=0)
    return BaselineData(
        [c for c, _ in pairs],
        [Treatment.parse(t, "+", control="ctrl") for _, t in pairs],
        np.array([t == "ctrl" for _, t in pairs]),
        expression,
        expression[:, :4],
        cells,
        SimpleNamespace(rows=lambda index: rows[index], var_names=pd.Index([f"p{i}" for i in range(GENES)])),
        SimpleNamespace(normalise=lambda x: x),
        features,
    )


def ask(data, label, context, control):
    return forecasts(data, Treatment.parse(label, "+"), context, control, np.random.default_rng(0))


@pytest.fixture
def contexts():
    return make([(c, t) for c in "abc" for t in ("ctrl", "stim")] + [("d", "ctrl")])


def test_new_context(contexts):
    control = contexts.expression[contexts.control["d"]]
    found = ask(contexts, "stim", "d", control)
    delta = contexts.delta[[1, 3, 5]]
    assert np.allclose(found["mean shift"].shift, delta.mean(0))
    assert np.allclose(found["latent shift"].latent, delta[:, :4].mean(0))
    assert np.allclose(found["control copy"].shift, 0)
    nearest = np.square(contexts.expression[[0, 2, 4]] - control).sum(1).argmin()
    assert np.allclose(found["nearest"].shift, delta[nearest])
    assert sorted(map(tuple, found[PASTED].cells)) == sorted(
        map(tuple, np.repeat(contexts.expression[[1, 3, 5]], 3, 0))
    )
    assert "additive" not in found


def test_the_asked_context_has_no_part_in_its_own_baselines(contexts):
    found = ask(contexts, "stim", "a", contexts.expression[0])
    # the pair itself was seen: its replicates are what a baseline has
    assert np.allclose(found["mean shift"].shift, contexts.delta[1])
    unseen = make([("a", "ctrl"), ("b", "ctrl"), ("b", "stim"), ("c", "ctrl"), ("c", "stim")])
    found = ask(unseen, "stim", "a", unseen.expression[0])
    assert np.allclose(found["mean shift"].shift, unseen.delta[[2, 4]].mean(0))


def test_new_perturbation():
    features = pd.DataFrame(RNG.normal(size=(6, 2)), index=[f"p{i}" for i in range(6)])
    data = make([("a", "ctrl"), *(("a", f"p{i}") for i in range(5)), ("a", "p0+p1")], features)
    found = ask(data, "p5", "a", data.expression[0])
    # singles only, without the combination
    assert np.allclose(found["mean shift"].shift, data.delta[1:6].mean(0))
    nearest = np.square(features.to_numpy()[:5] - features.to_numpy()[5]).sum(1).argmin()
    assert np.allclose(found["nearest"].shift, data.delta[1 + nearest])
    assert not np.allclose(found["linear"].shift, found["mean shift"].shift)
    without = ask(make([("a", "ctrl"), ("a", "p0"), ("a", "p1")]), "p5", "a", data.expression[0])
    assert np.allclose(without["linear"].shift, without["mean shift"].shift)


def test_target_gene_alone():
    data = make([("a", "ctrl"), *(("a", f"p{i}") for i in range(4))])
    found = ask(data, "p7", "a", data.expression[0])["target gene alone"].shift
    assert np.flatnonzero(found).tolist() == [7]
    assert found[7] == pytest.approx(np.mean([data.delta[i + 1, i] for i in range(4)]))
    assert not ask(data, "drug", "a", data.expression[0])["target gene alone"].shift.any()


def test_combination():
    data = make([("a", "ctrl"), *(("a", f"p{i}") for i in range(4)), ("a", "p0+p2"), ("a", "p1+p3")])
    found = ask(data, "p0+p1", "a", data.expression[0])
    assert np.allclose(found["additive"].shift, data.delta[1] + data.delta[2])
    assert np.allclose(found["latent shift"].latent, (data.delta[1] + data.delta[2])[:4])
    assert np.allclose(found["mean shift"].shift, data.delta[1:].mean(0))
    unknown = ask(data, "p0+p9", "a", data.expression[0])
    assert "additive" not in unknown
    # half of the parts of one treatment, a third of those of the other
    assert np.allclose(unknown["nearest"].shift, data.delta[1])


def test_linear_recovers_effects_of_parts():
    names = [f"p{i}" for i in range(12)]
    pairs = [("a", "ctrl"), *(("a", n) for n in names), *(("a", f"p{i}+p{i + 1}") for i in range(0, 10, 2))]
    data = make(pairs)
    effects = RNG.normal(size=(12, GENES))
    for i, treatment in enumerate(data.treatments):
        own = [int(p[1:]) for p in treatment.parts if p != "ctrl"]
        data.expression[i] = 2 + effects[own].sum(0)
    data.__post_init__()
    found = ask(data, "p1+p10", "a", data.expression[0])
    truth = effects[[1, 10]].sum(0)
    assert np.corrcoef(found["linear"].shift, truth)[0, 1] > 0.9
    assert np.allclose(found["additive"].shift, truth)
