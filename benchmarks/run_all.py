"""Run every benchmark, one after the other, and time the demo."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = ("invariance", "simulated", "generation", "standard_errors", "retrieval")

if __name__ == "__main__":
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        code = subprocess.run([sys.executable, "-m", "scgde.demo", "--out", folder], check=False).returncode
        print(f"demo: exit {code}, {time.time() - start:.0f} s", flush=True)
        if code:
            failed.append("demo")
    for name in SCRIPTS:
        start = time.time()
        code = subprocess.run([sys.executable, f"{name}.py", *sys.argv[1:]], cwd=HERE, check=False).returncode
        print(f"{name}: exit {code}, {time.time() - start:.0f} s", flush=True)
        if code:
            failed.append(name)
    sys.exit(f"failed: {failed}" if failed else 0)
