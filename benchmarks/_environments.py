"""Peers in virtual environments of their own: create one, install pinned releases, run a worker in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / "results" / "cache" / "envs"
PINS = {
    "wormhole": (
        "wassersteinwormhole==0.3.7",
        "flax==0.10.7",
        "jax==0.10.2",
        "jaxlib==0.10.2",
        "numpy==2.4.6",
        "optax==0.2.8",
        "ott-jax==0.4.9",
    ),
    "mrvi": ("scvi-tools==1.4.2", "torch==2.13.0", "xarray==2026.9.0"),
}
ONE_THREAD = {
    **dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"),
        "1",
    ),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


def environment(name: str) -> Path:
    """The Python of the environment of a peer, which is created at its first use and again where its pins change."""
    folder = ENVIRONMENTS / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, pins = folder / "pins.txt", "\n".join(PINS[name])
    if stamp.exists() and stamp.read_text() == pins and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"creating the environment {folder.relative_to(HERE)}: {', '.join(PINS[name])}", flush=True)
    # A path of the caller's would let other releases than the pinned ones in
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, env=clean)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS[name]]
    done = subprocess.run(install, check=False, env=clean, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        last = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")) or done.stderr[-2000:]
        sys.exit(
            f"{last}\n\npip could not install {' '.join(PINS[name])} for Python {sys.version.split()[0]}. Run where pip reaches PyPI or a "
            "mirror (PIP_INDEX_URL), or give it a folder with these wheels (PIP_FIND_LINKS); or leave this peer out "
            f"with `--part {'counts' if name == 'wormhole' else 'synthetic'}`."
        )
    stamp.write_text(pins)
    return python


def run_worker(name: str, **arrays) -> dict[str, np.ndarray]:
    """Arrays through ``_peer_NAME.py`` in the environment of the peer, with one thread and no accelerator."""
    python = environment(name)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ONE_THREAD
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **arrays)
        command = [str(python), str(HERE / f"_peer_{name}.py"), str(source), str(target)]
        done = subprocess.run(command, check=False, env=clean, capture_output=True, text=True)
        if done.returncode:
            sys.exit(
                f"{done.stderr[-3000:]}\n\nThe worker of {name} ended with exit code {done.returncode} (above). If its environment is broken, "
                f"delete {ENVIRONMENTS / name} and run again."
            )
        with np.load(target) as out:
            return dict(out)
