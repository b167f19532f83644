"""Wasserstein Wormhole in its own environment: `python _peer_wormhole.py INPUT.npz OUTPUT.npz`.

Input: `train` (sets, points, d), `test` (sets, points, d), `seconds` (CPU seconds of training), `points` (drawn anew from every
set in each step; 0: all), `iterations` (of Sinkhorn), `rate` (initial learning rate), `steps` (at most) and `seed`. Output:
`embedding` of the test sets, `steps` taken, and CPU seconds of set-up and compilation, of training and of embedding.

The package trains for a number of steps and not for a time, so that the training step is wrapped: its first call, which compiles
and takes one step, is not counted, and training ends at the first step that would begin after the CPU time is spent.
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np
from wassersteinwormhole import Wormhole


class TimeSpentError(Exception):
    """The CPU seconds of training are spent."""


def main(source: str, target: str) -> None:
    given = np.load(source)
    seconds, seed = float(given["seconds"]), int(given["seed"])
    np.random.seed(seed)
    begin = time.process_time()
    # What the package would find by itself, on pairs padded to 2,048 points for 5,000 iterations: hours on one core and several
    # GiB. Its functions have 200 by default. The decoder does not enter distances: the package's own `Zeros` drops its transport.
    model = Wormhole(
        point_clouds=list(given["train"].astype(np.float32)),
        num_sinkhorn_iter=int(given["iterations"]),
        dist_func_dec="Zeros",
        coeff_dec=0.0,
    )
    step, started, steps = model.train_step, 0.0, 0

    def timed(*arguments):
        nonlocal started, steps
        if steps and time.process_time() - started >= seconds:
            raise TimeSpentError
        out = jax.block_until_ready(step(*arguments))
        if not steps:
            started = time.process_time()
        steps += 1
        return out

    model.train_step = timed
    try:
        # `verbose` beyond the last step: its report would fetch the losses of every step
        model.train(
            training_steps=int(given["steps"]),
            shape_sample=int(given["points"]) or None,
            init_lr=float(given["rate"]),
            key=jax.random.key(seed),
            verbose=10**9,
        )
    except TimeSpentError:
        pass
    trained = time.process_time()
    test = given["test"].astype(np.float32)
    embedding = np.asarray(model.encode(test))
    np.savez(
        target,
        embedding=embedding,
        steps=steps,
        setup_s=started - begin,
        train_s=trained - started,
        embed_s=time.process_time() - trained,
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
