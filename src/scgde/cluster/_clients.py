"""Which Dask client runs tasks, and whether its workers can."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

# Evaluated by workers with what every Python has: one that lacks the package could not even receive a function of it.
PROBE = """(lambda importlib, metadata, os, socket: (
    socket.gethostname(),
    next((d.version for d in metadata.distributions(name="scgde")), None) if importlib.find_spec("scgde") else None,
    [path for path in {paths!r} if not os.path.isdir(path)],
))(*(__import__("importlib").import_module(name) for name in ("importlib.util", "importlib.metadata", "os", "socket")))"""


@contextmanager
def resolve_client(client: Any) -> Iterator[Any]:
    """The client that is asked for, the default one, or None where tasks run in this process.

    Parameters
    ----------
    client
        A client, the address of a scheduler, or None for the default client of this process if there is one.

    Raises
    ------
    ImportError
        If a client is asked for and Dask is not installed.
    TypeError
        If it is no client, or an asynchronous one.
    """
    if client is None:
        # who has a client has imported the module; nobody else should wait for it
        imported: Any = sys.modules.get("distributed")
        try:
            default = None if imported is None else imported.default_client()
        except ValueError:
            default = None
        yield default
        return
    try:
        import distributed
    except ImportError as error:
        message = (
            f"client={client!r} needs Dask, which is not installed: `pip install 'scgde[cluster]'`. With client=None the tasks run "
            "in this process."
        )
        raise ImportError(message) from error
    if isinstance(client, str):
        with distributed.Client(client, set_as_default=False) as own:
            yield own
        return
    if not isinstance(client, distributed.Client) or client.asynchronous:
        kind = "an asynchronous client" if isinstance(client, distributed.Client) else f"a {type(client).__name__}"
        message = (
            f"client is {kind} and must be a distributed.Client that waits for results, or the address of a scheduler; of a cluster "
            "take cluster.get_client()."
        )
        raise TypeError(message)
    yield client


def check_workers(client: Any, paths: Sequence[str]) -> None:
    """Raise unless scheduler and workers have this version of the package, and workers see some folders.

    Waits for the first worker.

    Raises
    ------
    RuntimeError
        If the package is missing somewhere or is of another version.
    FileNotFoundError
        If a worker does not see a folder.
    """
    own = version("scgde")
    if not client.nthreads():
        logger.info("The cluster has no workers yet; waiting for the first.")
        client.wait_for_workers(1)
    answers = probe_workers(client, paths)
    unlike = {
        place: f"{place} on {host} has {'no scgde' if found is None else f'scgde {found}'}"
        for place, (host, found, _) in answers.items()
        if found != own
    }
    if unlike:
        message = (
            f"{len(unlike)} of {len(answers)} processes of the cluster cannot run scgde {own}: {_some(unlike.values())}. Start scheduler and "
            f"workers in the environment of this process, or install scgde {own} in theirs, and start them again."
        )
        raise RuntimeError(message)
    blind = {
        f"{place} on {host} does not see {absent}"
        for place, (host, _, absent) in answers.items()
        if absent and place != SCHEDULER
    }
    if blind:
        message = (
            f"{len(blind)} workers do not see what they have to read or write: {_some(sorted(blind))}. Put it on a disk that all machines share, "
            "under the same path."
        )
        raise FileNotFoundError(message)


SCHEDULER = "the scheduler"


def probe_workers(client: Any, paths: Sequence[str]) -> dict[str, tuple[str, str | None, list[str]]]:
    """Of the scheduler and each worker: host, version of the package (None without it), and those of the paths that are no folders."""
    expression = PROBE.format(paths=[os.fspath(path) for path in paths])
    answers = client.run(eval, expression, on_error="return")
    # one that went away meanwhile is no reason to stop
    found = {f"worker {address}": answer for address, answer in answers.items() if isinstance(answer, tuple)}
    # it reads the graph of tasks, and so the functions in it
    found[SCHEDULER] = client.run_on_scheduler(eval, expression)
    return found


def _some(items: Any, limit: int = 5) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return "; ".join(items[:limit]) + more
