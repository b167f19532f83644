"""The tutorials run from an empty kernel, on simulated data and with little training."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")
pytest.importorskip("ipykernel", reason="ipykernel, which runs notebooks, is not installed")

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = {
    "quickstart": (
        5,
        [
            "average of the cells' vectors is the population's vector: True",
            "largest difference after saving and loading: 0.0",
        ],
    ),
    "geometry": (6, ["66 populations to train on, 24 put aside"]),
    "lineage": (5, ["a vector of 64 numbers", "shuffled clones:"]),
    "perturbation_context": (5, ["integer counts: True", "from 60 control cells without any annotation"]),
    "replicates": (1, ["6 replicates can be arranged in 8 ways", "integer counts: True, 32 rows"]),
    "perturbation_screen": (4, ["was never seen and has no features", "9 of the 15 hidden pairs interact"]),
}
"""Numbers of images, and what the cells print whatever the training."""

pytestmark = pytest.mark.skipif(not TUTORIALS.is_dir(), reason="there are no tutorials beside the tests")


def _outputs(notebook) -> list:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_all_notebooks_are_listed():
    assert {path.stem for path in TUTORIALS.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(name, tmp_path, monkeypatch):
    import nbformat

    monkeypatch.delenv("SCGDE_DATA_DIR", raising=False)
    monkeypatch.setenv("SCGDE_CACHE_DIR", str(tmp_path))  # no data set here either
    monkeypatch.setenv("SCGDE_TUTORIAL_EPOCHS", "4")
    notebook = nbformat.read(TUTORIALS / f"{name}.ipynb", 4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    n_images, lines = NOTEBOOKS[name]
    printed = "".join(output["text"] for output in _outputs(notebook) if output["output_type"] == "stream")
    for line in lines:
        assert line in printed
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) == n_images


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_outputs_are_clean(name):
    import nbformat

    path = TUTORIALS / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    assert _outputs(notebook), "the notebook is to be committed with its outputs"
    for output in _outputs(notebook):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
    assert not any("execution" in cell.metadata for cell in notebook.cells), "times of execution"
    assert path.stat().st_size < 1_000_000
