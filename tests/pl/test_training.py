"""Properties of the training curves."""

import matplotlib as mpl

mpl.use("agg")

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scgde import pl

EPOCHS = pd.RangeIndex(20, name="epoch")


@pytest.fixture
def history():
    train = np.exp(-np.arange(20) / 5)
    yield {
        # scvi-tools records this one with object dtype.
        "train_loss_epoch": pd.DataFrame({"train_loss_epoch": train.astype(object)}, index=EPOCHS),
        # Validation runs every fifth epoch.
        "validation_loss": pd.DataFrame({"validation_loss": train[::5] + 0.1}, index=EPOCHS[::5]),
        "flow_train": pd.DataFrame({"flow_train": train * 2}, index=EPOCHS),
        "kl_weight": pd.DataFrame({"kl_weight": np.ones(20)}, index=EPOCHS),
    }
    plt.close("all")


def test_the_default_is_the_loss_in_both_sets(history):
    ax = pl.training_curves(history)
    train, validation = ax.lines
    np.testing.assert_allclose(train.get_ydata(), np.exp(-np.arange(20) / 5))
    np.testing.assert_array_equal(validation.get_xdata(), [0, 5, 10, 15])
    assert train.get_color() == validation.get_color()
    assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss, train", "loss, validation"]
    assert ax.get_ylabel() == "loss"


def test_a_model_and_its_history_give_the_same_curves(history):
    model = SimpleNamespace(history=history)
    of_model, of_history = pl.training_curves(model), pl.training_curves(history)
    for first, second in zip(of_model.lines, of_history.lines, strict=True):
        np.testing.assert_array_equal(first.get_xydata(), second.get_xydata())


def test_keys_choose_the_curves(history):
    ax = pl.training_curves(history, keys=["flow_train", "kl_weight"])
    assert [line.get_label() for line in ax.lines] == ["flow, train", "kl_weight"]
    assert len({line.get_color() for line in ax.lines}) == 2


def test_a_history_without_a_loss_is_drawn_whole(history):
    rest = {name: history[name] for name in ("flow_train", "kl_weight")}
    assert len(pl.training_curves(rest).lines) == 2


def test_missing_epochs_are_left_out(history):
    history["train_loss_epoch"].iloc[3, 0] = np.nan
    assert 3 not in pl.training_curves(history).lines[0].get_xdata()


def test_a_single_epoch_is_visible():
    record = pd.DataFrame({"train_loss_epoch": [1.0]}, index=pd.RangeIndex(1, name="epoch"))
    assert pl.training_curves({"train_loss_epoch": record}).lines[0].get_marker() == "o"
    plt.close("all")


def test_wrong_arguments_say_what_to_do(history):
    with pytest.raises(ValueError, match="Call `train` first"):
        pl.training_curves(SimpleNamespace(history=None))
    with pytest.raises(KeyError, match="kl_weight"):
        pl.training_curves(history, keys=["elbo_train"])
    with pytest.raises(ValueError, match="2 columns"):
        pl.training_curves({"loss": pd.DataFrame({"a": [1.0], "b": [2.0]})})
    assert not plt.get_fignums()
