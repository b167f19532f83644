"""The tutorial runs from an empty kernel, on simulated data and with little training."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="nbclient, which runs notebooks, is not installed")
pytest.importorskip("ipykernel", reason="ipykernel, which runs notebooks, is not installed")

QUICKSTART = Path(__file__).parents[1] / "tutorials" / "quickstart.ipynb"


def _printed(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


@pytest.mark.skipif(not QUICKSTART.is_file(), reason="there are no tutorials beside the tests")
def test_quickstart(tmp_path, monkeypatch):
    import nbformat

    monkeypatch.delenv("SCGDE_DATA_DIR", raising=False)
    monkeypatch.setenv("SCGDE_CACHE_DIR", str(tmp_path))  # no data set here either
    monkeypatch.setenv("SCGDE_TUTORIAL_EPOCHS", "4")
    notebook = nbformat.read(QUICKSTART, 4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()

    printed = _printed(notebook)
    assert "average of the cells' vectors is the population's vector: True" in printed
    assert "largest difference after saving and loading: 0.0" in printed
    images = sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    assert images == 5


@pytest.mark.skipif(not QUICKSTART.is_file(), reason="there are no tutorials beside the tests")
def test_committed_outputs_are_clean():
    import nbformat

    notebook = nbformat.read(QUICKSTART, 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs, "the notebook is to be committed with its outputs"
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
    assert QUICKSTART.stat().st_size < 1_000_000
