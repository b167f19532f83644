"""Run a graph of tasks, on a cluster or in this process."""

from __future__ import annotations

import logging
from collections import Counter
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scgde.cluster._clients import check_workers
from scgde.cluster._contexts import Context, Job, context_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

MAX_ROUNDS = 5
"""Times in a row that what was lost with workers is sent again without one more task being completed."""

RETRIES = 1
"""Times that a task is tried again after an error: a file system may fail for a moment."""

SHOWN_LABELS = 8
"""Labels that are named in an error."""


@dataclass(frozen=True)
class Task:
    """One call of a function.

    Attributes
    ----------
    function
        Function of a module, called as ``function(context, *args, *inputs)``; given the same arguments it has the same result.
    args
        Small arguments.
    labels
        What the task is about, for errors.
    inputs
        Positions of earlier tasks whose results are arguments.
    wanted
        Whether the result is wanted, or only serves as an input.
    weight
        Share of progress.
    """

    function: Callable[..., Any]
    args: tuple
    labels: Sequence[str]
    inputs: tuple[int, ...] = ()
    wanted: bool = True
    weight: int = 1


def run_tasks(
    tasks: Sequence[Task],
    collect: Callable[[int, Any], None],
    *,
    client: Any,
    context: Context,
    pack: Callable[[], tuple[Job, dict[str, bytes]]],
    paths: Sequence[str],
    progress: bool,
    unit: str,
    description: str,
) -> None:
    """Run tasks and give each wanted result to ``collect``, in whatever order they come.

    On a cluster the scheduler runs the tasks of a worker that dies on others. An error in a task is raised here, with a note on what the
    task was about, after everything else has been cancelled; so is a KeyboardInterrupt.

    Parameters
    ----------
    tasks
        Tasks, each after its inputs.
    collect
        Called with the position of a task and its result.
    client
        Client, or None to run in this process.
    context
        What tasks work with in this process.
    pack
        Gives the job and the files that workers make their context from.
    paths
        Folders that workers have to see.
    progress
        Whether to show progress, in units of the weight of tasks.
    unit, description
        Of the progress bar.
    """
    from tqdm.auto import tqdm

    total = sum(task.weight for task in tasks if task.wanted)
    with tqdm(total=total, unit=unit, unit_scale=True, desc=description, disable=not progress) as bar:

        def collected(position: int, result: Any) -> None:
            collect(position, result)
            bar.update(tasks[position].weight)

        if client is None:
            _run_here(tasks, collected, context)
        else:
            _run_there(tasks, collected, client, paths, *pack())


def execute(
    job: Job, files: dict[str, bytes], function: Callable[..., Any], args: tuple, *inputs: Any
) -> Any:  # pragma: no cover - runs in workers
    """A task, as a worker runs it."""
    return function(context_of(job, files), *args, *inputs)


def _run_here(tasks: Sequence[Task], collect: Callable[[int, Any], None], context: Context) -> None:
    left = Counter(position for task in tasks for position in task.inputs)
    held: dict[int, Any] = {}
    for position, task in enumerate(tasks):
        try:
            result = task.function(context, *task.args, *(held[i] for i in task.inputs))
        except Exception as error:
            _note(error, task)
            raise
        if task.wanted:
            collect(position, result)
        if left[position]:
            held[position] = result
        for i in task.inputs:
            left[i] -= 1
            if not left[i]:
                del held[i]


def _run_there(
    tasks: Sequence[Task],
    collect: Callable[[int, Any], None],
    client: Any,
    paths: Sequence[str],
    job: Job,
    files: dict[str, bytes],
) -> None:
    from distributed import as_completed

    pending = {i for i, task in enumerate(tasks) if task.wanted}
    rounds, fruitless = 0, 0
    while pending:
        check_workers(client, paths)
        before = len(pending)
        futures = _submit(tasks, pending, client, job, files, rounds)
        position_of = {futures[i]: i for i in pending}
        try:
            for future in as_completed(list(position_of), loop=client.loop):
                position = position_of.pop(future)
                # workers keep a result as long as the client has its future
                del futures[position]
                try:
                    result = future.result()
                except CancelledError:
                    # lost: see below
                    continue
                except Exception as error:
                    _note(error, tasks[position])
                    raise
                collect(position, result)
                pending.discard(position)
        finally:
            client.cancel(list(futures.values()), force=True)
        # what was sent to workers that all died cannot be computed again, and what hangs on it is cancelled: it is sent again
        rounds, fruitless = rounds + 1, 0 if len(pending) < before else fruitless + 1
        if fruitless >= MAX_ROUNDS:
            message = f"{len(pending)} of {len(tasks)} tasks were lost with their workers {MAX_ROUNDS} times; see the logs of the workers."
            raise RuntimeError(message)
        if pending:
            logger.warning(f"{len(pending)} tasks were lost with their workers and are sent again.")


def _submit(
    tasks: Sequence[Task], pending: set[int], client: Any, job: Job, files: dict[str, bytes], rounds: int
) -> dict[int, Any]:
    """Futures of the tasks that are pending and of their inputs, by position, and of the files, at -1."""
    sent = client.scatter([files], broadcast=True, hash=False)[0]
    futures = {-1: sent}

    def submit(i: int) -> Any:
        if i not in futures:
            task = tasks[i]
            inputs = [submit(j) for j in task.inputs]
            # the name of the call is part of the key: an earlier one may have read other files
            key = f"{task.function.__name__}-{job.run}-{rounds}-{i}"
            futures[i] = client.submit(execute, job, sent, task.function, task.args, *inputs, key=key, retries=RETRIES)
        return futures[i]

    for i in sorted(pending):
        submit(i)
    return futures


def _note(error: Exception, task: Task) -> None:
    """Say in an error what its task was about."""
    labels = [repr(str(label)) for label in task.labels]
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    note = f"In the task of {', '.join(labels[:SHOWN_LABELS])}{more}."
    if type(error).__name__ == "KilledWorker":
        note += (
            " Workers died in it again and again, most often for lack of memory: give them more, or tasks fewer cells."
        )
    error.add_note(note)
