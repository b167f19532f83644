import numpy as np
import pandas as pd
import pytest
import torch

from scgde.serialization import from_plain, read_model, to_plain, write_model

FRAME = pd.DataFrame({"a": [1.0, np.nan], "b": [3, 4]}, index=pd.Index(["x/y", "z|w"], name="epoch"))


def through_a_file(value, tmp_path):
    write_model(str(tmp_path / "model.pt"), {}, [], {"value": value})
    return read_model(str(tmp_path))[2]["value"]


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", [1, "a", None], {"a": {"b": [1.5]}}, {}, []], ids=repr)
def test_plain_values_come_back_as_they_are(value, tmp_path):
    back = through_a_file(value, tmp_path)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array([1.5, np.nan], dtype=np.float32),
        np.array(["a/b", "c"], dtype=object),
        np.array([["x", "y"]], dtype="<U3"),
        np.array([], dtype=np.int64),
        np.array([True, False]),
        np.arange(6.0).reshape(2, 3)[:, ::-1],
    ],
    ids=["integers", "floats", "objects", "strings", "empty", "booleans", "negative strides"],
)
def test_arrays_keep_values_shape_and_kind(array, tmp_path):
    back = through_a_file(array, tmp_path)
    assert isinstance(back, np.ndarray) and back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.dtype == (object if array.dtype.kind in "OU" else array.dtype)


def test_frames_keep_index_columns_and_values(tmp_path):
    back = through_a_file(FRAME, tmp_path)
    pd.testing.assert_frame_equal(back, FRAME, check_index_type=False)


def test_numpy_scalars_and_tuples_become_plain(tmp_path):
    back = through_a_file({"n": np.int64(3), "t": (1, np.float32(0.5))}, tmp_path)
    assert back == {"n": 3, "t": [1, 0.5]} and type(back["n"]) is int


def test_state_and_names_come_back(tmp_path):
    state = {"weight": torch.arange(4.0)}
    write_model(str(tmp_path / "pre_model.pt"), state, np.array(["g1", "g2"]), {})
    read, names, attributes = read_model(str(tmp_path), "pre_")
    assert torch.equal(read["weight"], state["weight"]) and names == ["g1", "g2"] and attributes == {}
    assert [p.name for p in tmp_path.iterdir()] == ["pre_model.pt"], "no temporary file is left"


@pytest.mark.parametrize("value", [object(), len, {"a": [torch.nn.ReLU()]}], ids=["object", "function", "nested"])
def test_values_without_a_plain_form_are_refused(value):
    with pytest.raises(TypeError, match="plain types only"):
        to_plain(value)


def test_a_file_of_something_else_is_no_model(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="no model file.*model_state_dict"):
        read_model(str(tmp_path))


def test_nested_containers_are_walked():
    value = {"a": [np.arange(2), {"b": FRAME}]}
    back = from_plain(to_plain(value))
    np.testing.assert_array_equal(back["a"][0], [0, 1])
    pd.testing.assert_frame_equal(back["a"][1]["b"], FRAME, check_index_type=False)
