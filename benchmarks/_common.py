"""What every benchmark shares: options, tables, results and free baselines."""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

RESULTS = Path(__file__).parent / "results"


def options(description: str, **defaults) -> argparse.Namespace:
    """Command line shared by the benchmarks: number of seeds, and a quick mode that checks the script itself."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, default=None, help="epochs of training; the model's own number by default"
    )
    parser.add_argument("--no-save", action="store_true", help="do not write results/")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    return arguments


def seeds(arguments: argparse.Namespace) -> range:
    """Seeds of a run, from ``--first-seed`` where a benchmark has that option: what is tuned is tuned on others than reported."""
    first = getattr(arguments, "first_seed", 0)
    return range(first, first + arguments.seeds)


def quiet_train(model, **kwargs) -> float:
    """Train without a progress bar; returns CPU seconds."""
    start = time.process_time()
    model.train(accelerator="cpu", enable_progress_bar=False, **kwargs)
    return time.process_time() - start


def report(name: str, table: pd.DataFrame, arguments: argparse.Namespace, **facts) -> None:
    """Print a table and write it with its facts to results/NAME.json."""
    print(f"\n## {name}\n")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    for key, value in facts.items():
        print(f"{key}: {value}")
    if arguments.no_save:
        return
    RESULTS.mkdir(exist_ok=True)
    content = {
        "benchmark": name,
        "options": {k: v for k, v in vars(arguments).items() if k != "no_save"},
        "versions": {name: version(name) for name in ("scgde", "scvi-tools", "torch", "numpy", "scipy", "POT")},
        "threads": torch.get_num_threads(),
        "facts": facts,
        "table": json.loads(table.to_json(orient="records", double_precision=6)),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def log_normalised(counts, target: float | None = None) -> np.ndarray:
    """log(1 + counts scaled to a common total), the median by default."""
    x = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    total = np.maximum(x.sum(1, keepdims=True), 1.0)
    return np.log1p(x / total * (np.median(total) if target is None else target)).astype(np.float64)


class CellPCA:
    """Principal components of log-normalised cells, fitted on training cells."""

    def __init__(self, counts, n_components: int = 50, seed: int = 0) -> None:
        x = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
        self.target = float(np.median(np.maximum(x.sum(1), 1.0)))
        n_components = min(n_components, min(x.shape) - 1)
        self.pca = PCA(n_components, svd_solver="randomized", random_state=seed).fit(log_normalised(x, self.target))

    def __call__(self, counts) -> np.ndarray:
        return self.pca.transform(log_normalised(counts, self.target))


class PseudobulkPCA:
    """Principal components of pseudobulk profiles: mean log-normalised cells of a population, fitted on training ones."""

    def __init__(self, counts, codes: np.ndarray, n_components: int = 50) -> None:
        x = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
        self.target = float(np.median(np.maximum(x.sum(1), 1.0)))
        profiles = group_means(log_normalised(x, self.target), codes)
        self.pca = PCA(min(n_components, min(profiles.shape) - 1)).fit(profiles)

    def __call__(self, counts, codes: np.ndarray) -> np.ndarray:
        return self.pca.transform(group_means(log_normalised(counts, self.target), codes))


def group_means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of the rows of each code, codes from 0."""
    sums = np.zeros((codes.max() + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes)[:, None]


def spread(values) -> str:
    """Mean and range over seeds, for printing."""
    values = np.asarray(values, dtype=float)
    return f"{values.mean():.4f} [{values.min():.4f}, {values.max():.4f}]"
