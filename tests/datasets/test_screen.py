"""The simulated screen does what its docstring says."""

import numpy as np
import pytest

from scgde.datasets import simulate_cells, simulate_screen

SMALL = {"n_genes": 40, "cells_per_population": (5, 8), "control_cells": 20}


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(30, 60, n_contexts=2, context_effect=0.0, seed=3, **SMALL)


def shifts(adata, context="context_0"):
    truth = adata.uns["simulation"]
    mean = dict(zip(truth["populations"], truth["mean"], strict=True))
    control = mean[f"{context}|control"]
    return {label.split("|")[1]: m - control for label, m in mean.items() if label.startswith(context)}


def test_shape_and_labels(screen):
    assert screen.obs["perturbation"].nunique() == 91
    assert (
        screen.obs["population"] == screen.obs["context"].astype(str) + "|" + screen.obs["perturbation"].astype(str)
    ).all()
    sizes = screen.obs["population"].value_counts()
    assert (sizes[["context_0|control", "context_1|control"]] == 20).all()
    assert sizes.drop(["context_0|control", "context_1|control"]).between(5, 8).all()
    assert (screen.X.data == screen.X.data.round()).all()


def test_combinations_that_do_not_interact_are_sums(screen):
    truth, effect = screen.uns["simulation"], shifts(screen)
    for label, acts in zip(truth["combinations"], truth["interacting"], strict=True):
        first, second = label.split("+")
        departure = np.linalg.norm(effect[label] - effect[first] - effect[second])
        assert (departure > 0.1) == acts
    assert 0.1 <= truth["interacting"].mean() <= 0.45


def test_one_pathway_is_one_direction(screen):
    truth, effect = screen.uns["simulation"], shifts(screen)
    names, pathway = truth["perturbations"], truth["pathway"]
    unit = np.stack([effect[n] / np.linalg.norm(effect[n]) for n in names])
    same = pathway[:, None] == pathway
    cosine = unit @ unit.T
    np.fill_diagonal(same, False)
    assert cosine[same].mean() > 0.7
    assert abs(cosine[~same & ~np.eye(len(names), dtype=bool)].mean()) < 0.3


def test_contexts_change_shifts_as_asked(screen):
    assert np.allclose(shifts(screen)["p0"], shifts(screen, "context_1")["p0"])
    other = simulate_screen(5, n_contexts=2, context_effect=1.0, **SMALL)
    assert np.linalg.norm(shifts(other)["p0"] - shifts(other, "context_1")["p0"]) > 0.3


def test_seed_and_fresh_cells(screen):
    again = simulate_screen(30, 60, n_contexts=2, context_effect=0.0, seed=3, **SMALL)
    assert (again.X != screen.X).nnz == 0
    assert simulate_cells(screen, "context_1|p0", 7).shape == (7, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_perturbations": 3, "n_combinations": 4}, "have 3 pairs"),
        ({"interacting": 1.5}, "fraction"),
        ({"effect": 0}, "above 0"),
        ({"n_contexts": 0}, "at least 1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_screen(**options)
