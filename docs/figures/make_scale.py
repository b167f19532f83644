"""Draw docs/figures/scale.png: CPU seconds against the sizes of an atlas, from benchmarks/results/scale_slopes.json."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

HERE = Path(__file__).parent
COLOURS = {"train CPU s": "#4c72b0", "embed CPU s": "#dd8452"}
NAMES = {"train CPU s": "training", "embed CPU s": "embedding with standard errors"}

table = pd.DataFrame(json.loads((HERE.parents[1] / "benchmarks/results/scale_slopes.json").read_text())["table"])
groups = list(table.groupby("against", sort=False))
figure, axes = plt.subplots(1, len(groups), figsize=(3 * len(groups), 3), sharey=True, layout="constrained")
for axis, (what, part) in zip(axes, groups, strict=True):
    for name, colour in COLOURS.items():
        slope, start = np.polyfit(np.log(part["size"]), np.log(part[name]), 1)
        axis.plot(part["size"], part[name], "o", color=colour, label=NAMES[name])
        axis.plot(part["size"], np.exp(start) * part["size"] ** slope, color=colour, lw=1)
        last = part.iloc[-1]
        axis.annotate(
            f"{slope:.2f}",
            (last["size"], last[name]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    axis.set(xscale="log", yscale="log", xlabel=what)
    axis.set_xticks(part["size"], [f"{int(v):,}" for v in part["size"]], rotation=30)
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("CPU seconds")
axes[2].legend(frameon=False, fontsize=8, loc="upper right")
figure.savefig(HERE / "scale.png", dpi=150)
