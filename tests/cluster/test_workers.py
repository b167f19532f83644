"""Workers that die, lack the package or do not see the folder, and calls that are interrupted."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import scgde
from scgde.cluster import _clients, _running
from scgde.cluster._blocks import cut, open_atlas
from scgde.cluster._clients import check_workers, resolve_client
from scgde.cluster._contexts import Context, Job, context_of, pack
from scgde.cluster._embedding import embed_block

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'scgde[cluster]'")

DEADLY = """
import os, signal
from scgde.cluster import _embedding

def deadly(context, block, noise, original=_embedding.embed_block):
    if {number} in block.numbers:
        try:
            open({marker!r}, "x").close()
        except FileExistsError:
            pass
        else:
            for pid in sorted({pids} or [os.getpid()], key=os.getpid().__eq__):
                os.kill(pid, signal.SIGKILL)
    return original(context, block, noise)

deadly.__name__ = deadly.__qualname__ = "embed_block"
_embedding.embed_block = deadly
"""
"""Replaces the task by one that kills its worker, or several, the first time that a certain population comes."""


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tasks_of_killed_workers_are_run_on_others(model, store, client, tmp_path, all_of_them, scgde_log):
    client.wait_for_workers(2)
    pids = client.run(os.getpid)
    marker = tmp_path / "killed"
    own = list(pids.values()) if all_of_them else []
    client.run(exec, DEADLY.format(number=8, marker=str(marker), pids=own), {})
    there = scgde.cluster.embed(model, store, client=client, cells_per_task=60, progress=False)
    assert marker.exists()
    client.wait_for_workers(2)
    left = set(pids.values()) & set(client.run(os.getpid).values())
    assert len(left) == (0 if all_of_them else 1)
    # what was sent to workers is lost with the last of them only
    assert ("are sent again" in scgde_log.text) == all_of_them
    here = scgde.cluster.embed(model, store, cells_per_task=60, progress=False)
    np.testing.assert_array_equal(there.X, here.X)
    np.testing.assert_array_equal(there.layers["standard_error"], here.layers["standard_error"])


def test_an_interrupted_call_leaves_no_tasks(model, store, client):
    atlas = open_atlas(model, store, None)
    tasks = [_running.Task(embed_block, (block, False), ["a"]) for block in cut(atlas, 30)]
    seen = []

    def collect(i, result):
        seen.append(i)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _running.run_tasks(
            tasks,
            collect,
            client=client,
            context=Context(model, cells=atlas.cells),
            pack=lambda: pack(model, atlas.cells, str(store)),
            paths=[],
            progress=False,
            unit="cell",
            description="",
        )
    for _ in range(100):
        if not client.cluster.scheduler.tasks:
            break
        time.sleep(0.1)
    assert len(seen) == 1 and not client.cluster.scheduler.tasks


def test_a_model_goes_as_bytes_and_is_loaded_once_in_a_worker(model, store, client):
    _, files = pack(model, open_atlas(model, store, None).cells, str(store))
    assert list(files) == ["model/model.pt"] and isinstance(files["model/model.pt"], bytes)
    loaded = "[id(c.model) for c in __import__('sys').modules['scgde.cluster._contexts']._LOADED.values()][-1:]"
    scgde.cluster.embed(model, store, client=client, cells_per_task=10, progress=False)
    before = client.run(eval, loaded)
    scgde.cluster.embed(model, store, client=client, cells_per_task=30, progress=False)
    assert client.run(eval, loaded) == before and all(before.values())


def test_a_worker_without_the_package_is_named(model, store):
    code = "import sys; sys.modules['scgde'] = None; from distributed.cli.dask_worker import main; main()"
    with (
        distributed.LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        address = cluster.scheduler_address
        options = ["--no-nanny", "--nthreads", "1", "--no-dashboard"]
        worker = subprocess.Popen([sys.executable, "-c", code, address, *options], stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(1, timeout=30)
            with pytest.raises(
                RuntimeError, match=r"1 of 2 .*worker tcp://.* has no scgde.*Start scheduler and workers"
            ):
                scgde.cluster.embed(model, store, client=client, progress=False)
        finally:
            worker.terminate()
            worker.wait(10)


def test_a_worker_of_another_version_is_named(client, monkeypatch):
    answers = {
        "worker a": ("node1", scgde.__version__, []),
        "worker b": ("node2", "0.0.1", []),
        _clients.SCHEDULER: ("node0", scgde.__version__, []),
    }
    monkeypatch.setattr(_clients, "probe_workers", lambda client, paths: answers)
    with pytest.raises(RuntimeError, match=r"1 of 3 .*worker b on node2 has scgde 0\.0\.1"):
        check_workers(client, [])


def test_a_worker_that_does_not_see_the_folder_is_named(client, store, tmp_path):
    check_workers(client, [str(store)])
    with pytest.raises(FileNotFoundError, match=r"worker tcp://.*does not see .*none\.zarr"):
        check_workers(client, [str(store), str(tmp_path / "none.zarr")])
    # one that came later
    job = Job("run", "digest", scgde.__version__, str(tmp_path / "none.zarr"), "names")
    with pytest.raises(FileNotFoundError, match=r"on .* cannot open .*none\.zarr"):
        context_of(job, {})
    with pytest.raises(ValueError, match="other cells"):
        context_of(Job("run", "digest", scgde.__version__, str(store), "names"), {})
    with pytest.raises(RuntimeError, match="same environment"):
        context_of(Job("run", "digest", "0.0.1", str(store), "names"), {})


def test_the_default_client_is_taken(client):
    with resolve_client(None) as found:
        assert found is None
    with client.as_current(), resolve_client(None) as found:
        assert found is client
    with resolve_client(client.scheduler.address) as found:
        assert found is not client and found.nthreads() == client.nthreads()
    assert found.status == "closed" and client.status == "running"


def test_without_dask_tasks_run_here_and_a_client_is_refused(model, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert scgde.cluster.embed(model, store, progress=False).n_obs == 18
    with pytest.raises(ImportError, match=r"scgde\[cluster\]"):
        scgde.cluster.embed(model, store, client="tcp://127.0.0.1:8786", progress=False)


def test_dask_is_imported_where_it_is_used_only():
    for file in Path(scgde.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            )
            assert not {name.split(".")[0] for name in names} & {"dask", "distributed"}, file
