"""Run every benchmark, one after the other, and time the demo."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("invariance",),
    ("simulated",),
    ("generation",),
    ("generation", "--generator", "vae", "--name", "generation_vae"),
    ("standard_errors",),
    ("size_law", "--seeds", "2"),
    ("geometry", "--seeds", "5"),
    ("reconstruction",),
    ("synthetic",),
    ("peers",),
    ("inference", "--seeds", "20", "--part", "null,twins,real"),
    ("inference", "--part", "targets"),
    ("inference", "--seeds", "5", "--part", "nuisance"),
    ("inference", "--seeds", "6", "--part", "power"),
    ("inference", "--seeds", "8", "--part", "errors,encoders"),
    ("groups", "--part", "power,intervals,real"),
    ("groups", "--part", "sizes", "--seeds", "8"),
    ("depth",),
    ("perturbation", "--part", "all"),
    ("perturbation", "--part", "calibration"),
    ("perturbation_joint",),
    ("lineage", "--part", "all"),
    ("information", "--seeds", "20"),
    ("throughput",),
    ("scale",),
    ("retrieval",),
    ("generation", "--n-latent", "10", "--sets", "tapseq,norman", "--name", "generation_latent10"),
    ("retrieval", "--peers", "0", "--n-latent", "10", "--sets", "papalexi,tapseq", "--name", "retrieval_latent10"),
    *(
        (
            "retrieval",
            "--peers",
            "0",
            "--expression-weight",
            str(w),
            "--sets",
            "papalexi,tapseq",
            "--name",
            f"retrieval_weight{w}",
        )
        for w in (0, 1)
    ),
    ("cell_phase",),
)

if __name__ == "__main__":
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        code = subprocess.run([sys.executable, "-m", "scgde.demo", "--out", folder], check=False).returncode
        print(f"demo: exit {code}, {time.time() - start:.0f} s", flush=True)
        if code:
            failed.append("demo")
    for script, *options in RUNS:
        start = time.time()
        command = [sys.executable, f"{script}.py", *options, *sys.argv[1:]]
        code = subprocess.run(command, cwd=HERE, check=False).returncode
        name = " ".join([script, *options])
        print(f"{name}: exit {code}, {time.time() - start:.0f} s", flush=True)
        if code:
            failed.append(name)
    sys.exit(f"failed: {failed}" if failed else 0)
