"""Which processes train together, by TF_CONFIG, and what all but one of them leave out.

No TensorFlow.
"""

import dataclasses
import json
import os

from errors import UserError

JOBS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together, one a machine, and which of them this is.

    Attributes:
      workers: their addresses, "host:port", the chief's first; empty for one process alone.
      number: of this process among them.
    """

    workers: tuple = ()
    number: int = 0

    num_workers = property(lambda self: max(len(self.workers), 1))
    is_chief = property(lambda self: self.number == 0)


ALONE = Cluster()


def from_environment(environ=os.environ):
    """The Cluster that TF_CONFIG describes; `ALONE` without it, or with one process in it.

    Raises:
      UserError: it is not as TensorFlow's documentation of `MultiWorkerMirroredStrategy` has it.
    """
    text = environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        if not set(jobs) <= set(JOBS):
            raise ValueError(f"its jobs may be {' and '.join(JOBS)}")
        workers = tuple(address for job in JOBS for address in jobs.get(job, ()))
        if len(workers) < 2:
            return ALONE
        if task["type"] not in jobs or not 0 <= task["index"] < len(jobs[task["type"]]):
            raise ValueError("its task is not one of the cluster")
        before = 0 if task["type"] == JOBS[0] else len(jobs.get(JOBS[0], ()))
        return Cluster(workers, before + task["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            'TF_CONFIG must be such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}: {error!r}. Received: {text}'
        ) from error


class Silent:
    """In the place of a log, a bar or a trace of a process that is not the chief: does nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None
