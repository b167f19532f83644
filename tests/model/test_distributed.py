"""Several processes learn what one learns from their batches together."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from scgde.data.sampler import PopulationSampler

GRADIENTS = """
    import sys
    import torch
    import torch.distributed as dist
    from scgde._constants import BATCH_KEYS
    from scgde.module import GDEModule
    from scgde.moments import PopulationMoments
    from scgde.observations import ContinuousModel

    rank, folder = int(sys.argv[1]), sys.argv[2]
    K, N = 24, 30
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codes = torch.arange(K).repeat_interleave(N)
    u = torch.randn(K, 3)[codes] + (0.4 * torch.randn(K, 3)).exp()[codes] * torch.randn(K * N, 3)
    # an encoder that learns from the isometry too, which the default one does not
    options = {"encoder": "mean_pool" if sys.argv[3] == "isometric" else "residual", "generator": sys.argv[4]}
    module = GDEModule(ContinuousModel(3), n_embedding=12, n_hidden=16, geometry=sys.argv[3], **options)
    raw = PopulationMoments.from_cells(u, codes, K)
    module.fit_populations(raw, torch.zeros_like(raw.mean), u, torch.zeros_like(u), codes, torch.ones(K, dtype=torch.bool), N)
    for parameter in module.parameters():  # no part of the gradient may be zero only because training begins
        parameter.data += 0.05 * torch.randn(parameter.shape)

    # sets of different sizes, ten in one process and six in the other
    sizes = torch.randint(5, N, (16,))
    parts = {0: range(10), 1: range(10, 16), -1: range(16)}[rank]
    kept = [torch.arange(int(n)) + k * N for k, n in enumerate(sizes)]
    rows = torch.cat([kept[k] for k in parts])
    weights = torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(parts), 1)
    sources = torch.tensor(list(parts))[:, None].repeat(1, 3)
    batch = {
        BATCH_KEYS.U_MEAN: u[rows], BATCH_KEYS.U_SD: torch.full_like(u[rows], 0.1),
        BATCH_KEYS.SEGMENT: codes[rows] - codes[rows][0],
        BATCH_KEYS.SOURCES: sources, BATCH_KEYS.SOURCE_WEIGHTS: weights,
    }

    # each cell has noise of its own, in whichever process it is
    bank = {}
    def drawn(shape, kind):
        size = tuple(shape[0]) if isinstance(shape[0], (tuple, list, torch.Size)) else tuple(shape)
        number = bank[kind] = bank.get(kind, -1) + 1
        source = torch.Generator().manual_seed(100 * number + (kind == "rand"))
        draw = normal if kind == "randn" else uniform
        return draw((K * N, *size[1:]), generator=source)[rows if size[0] == len(rows) else slice(0, size[0])]
    normal, uniform = torch.randn, torch.rand
    torch.randn = lambda *shape, generator=None, dtype=None, device=None: drawn(shape, "randn")
    torch.rand = lambda *shape, generator=None, dtype=None, device=None: drawn(shape, "rand")

    together = rank >= 0
    if together:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        if module.isometry_targets is not None:  # distances that one process knows already, as after validation
            module.isometry_targets.distances(sources[: 2 + 3 * rank], weights[: 2 + 3 * rank])
    loss = module.population_loss(batch, None, together=together)["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if together:
        for name in sorted(gradients):  # what Lightning's strategy does
            dist.all_reduce(gradients[name])
            gradients[name] /= 2
    torch.save({"loss": loss.detach(), **gradients}, f"{folder}/{rank}.pt")
"""

AVERAGE = """
    import sys
    import torch
    import torch.distributed as dist
    from scgde._distributed import GradientAverage

    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    both, first, neither, frozen = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(4))
    frozen.requires_grad_(False)
    average = GradientAverage([both, first, neither, frozen])
    means = []
    for step in range(3):
        both.grad, first.grad = torch.full((2, 3), 1.0 + 4 * rank + step), None
        if rank == 0 and step == 1:  # a gradient more than at the first step, in one process
            first.grad = torch.full((2, 3), 8.0)
        average(weight=[3.0, 1.0][rank])
        means.append([both.grad.mean(), torch.zeros(()) if first.grad is None else first.grad.mean()])
    assert neither.grad is None and frozen.grad is None and both.grad.std() == 0
    torch.save(torch.tensor(means), f"{folder}/{rank}.pt")
"""

TRAINING = """
    import sys, warnings
    import torch
    import scgde

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    cells = scgde.GDEModel.setup_zarr(sys.argv[1])
    model = scgde.GDEModel(cells, n_latent=4, n_embedding=6, n_hidden=16)
    model.train(6, strategy="ddp", devices=2, accelerator="cpu", batch_size=32, populations_per_batch=4,
                enable_progress_bar=False, early_stopping=True, checkpoint_dir=sys.argv[2] + "/checkpoints", checkpoint_every=3)
    torch.save(model.module.state_dict(), f"{sys.argv[2]}/{model.trainer.global_rank}.pt")
"""


def run(script, *arguments, **options):
    command = [sys.executable, *(["-c", textwrap.dedent(script)] if isinstance(script, str) else [str(script)])]
    command += map(str, arguments)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        command, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **streams, **options
    )


def finish(*processes):
    for process in processes:
        try:
            output, _ = process.communicate(timeout=150)
        except subprocess.TimeoutExpired:
            # one that waits for another that has failed, and what it has started
            for each in processes:
                os.killpg(each.pid, signal.SIGKILL)
            output, _ = process.communicate()
        assert process.returncode == 0, output.decode()[-3000:]


@pytest.mark.parametrize(
    ("geometry", "generator"), [("isometric", "flow"), ("emergent", "flow"), ("isometric", "sliced_wasserstein")]
)
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(tmp_path, geometry, generator):
    finish(*(run(GRADIENTS, rank, tmp_path, geometry, generator) for rank in (0, 1)))
    finish(run(GRADIENTS, -1, tmp_path, geometry, generator))
    first, second, joint = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1, -1))
    assert set(first) == set(joint) and len(joint) > 8
    assert sum(float(g.abs().sum()) > 0 for name, g in joint.items()) > 8
    for name, gradient in joint.items():
        if name == "loss":
            torch.testing.assert_close((first[name] + second[name]) / 2, gradient, rtol=1e-5, atol=1e-6)
            continue
        scale = float(gradient.abs().max())
        torch.testing.assert_close(first[name], gradient, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=0)


def test_gradients_are_averaged_by_weight_whichever_process_has_them(tmp_path):
    finish(*(run(AVERAGE, rank, tmp_path) for rank in (0, 1)))
    for rank in (0, 1):
        means = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(means, torch.tensor([[2.0, 0.0], [3.0, 6.0], [4.0, 0.0]]))


def test_training_in_two_processes_ends_with_one_model(tmp_path, make_cells):
    import scgde

    scgde.pp.write_populations(make_cells(14, sizes=(5, 40)), tmp_path / "cells.zarr", progress=False)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TRAINING))
    finish(run(script, tmp_path / "cells.zarr", tmp_path, cwd=tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["training.ckpt"]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=0)
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(("n", "k"), [(40, 8), (41, 8), (13, 8)])
def test_processes_take_other_populations_and_as_many_batches(n, k):
    codes = np.repeat(np.arange(n), 5)
    sampler = PopulationSampler(codes, populations_per_batch=k, cells_per_population=64, seed=1)
    for epoch in (0, 1):
        parts = [sampler.epoch(epoch, rank, 2) for rank in (0, 1)]
        assert len(parts[0]) == len(parts[1]) == sampler.n_batches(2)
        seen = np.concatenate([batch.sources[:, 0] for part in parts for batch in part])
        np.testing.assert_array_equal(np.sort(seen), np.arange(n))
    again = [batch.sources[:, 0].tolist() for batch in sampler.epoch(1, 0, 2)]
    assert again != [batch.sources[:, 0].tolist() for batch in sampler.epoch(0, 0, 2)]
