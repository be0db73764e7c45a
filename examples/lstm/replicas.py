"""Several GPUs: each has a replica of the model and streams of its own; gradients are averaged.

All communication is TensorFlow's: `MirroredStrategy` on one machine, `MultiWorkerMirroredStrategy`
over several. Where there is no GPU, logical CPU devices take their place, to try it out.
"""

import contextlib
import faulthandler
import functools
import hashlib
import json
import re
import signal

import numpy as np
import tensorflow as tf
from cluster import ALONE
from errors import UserError

LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.CancelledError,
)


def open_replicas(on_each, cluster=ALONE, wait=600):
    """`Replicas` on the devices that `device.prepare` has set up.

    Args:
      on_each: replicas on each machine.
      cluster: Cluster.
      wait: seconds until all its processes must be there, or else this one ends.
    Raises:
      UserError: a machine of several has no GPU for each replica; an address cannot be used.
    """
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if cluster.workers:
        if kind == "CPU" and on_each > 1:
            raise UserError(
                f"--replicas={on_each} needs as many GPUs on each of several machines; there is "
                "none here, and the CPU holds one replica"
            )
        return Replicas(_join(cluster, wait), cluster)
    if on_each > 1:
        devices = [f"{kind}:{number}" for number in range(on_each)]
        return Replicas(tf.distribute.MirroredStrategy(devices))
    return Replicas()


def _join(cluster, wait):
    """MultiWorkerMirroredStrategy, when all workers are there."""
    print(
        f"worker {cluster.number} of {', '.join(cluster.workers)} waits for the others, {wait} s "
        "at most",
        flush=True,
    )
    # TensorFlow waits an hour, and no Python runs meanwhile, neither threads nor signal handlers.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.dump_traceback_later(wait, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:
        raise UserError(
            f"worker {cluster.number}, {cluster.workers[cluster.number]}, cannot join the others: "
            f"{error}"
        ) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGINT, handler)


class Replicas:
    """The replicas of a model on all machines, those of this process among them.

    Args:
      strategy: `tf.distribute.Strategy`; by default the current one, which has one replica.
      cluster: Cluster.
    Attributes:
      strategy.
      count: replicas in all.
    """

    def __init__(self, strategy=None, cluster=ALONE):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.count = self.strategy.num_replicas_in_sync
        self._cluster = cluster
        self._local = self.count // cluster.num_workers  # replicas of this process

    # ---- values ----

    def streams(self, batch):
        """The range of the streams, of `batch` in all, that this process reads.

        Raises:
          UserError: the replicas cannot have equally many.
        """
        if batch % self.count:
            raise UserError(
                f"--batch is the number of streams of all replicas together and must be a multiple "
                f"of their number, {self.count}. Received: {batch}"
            )
        size = batch // self.count * self._local
        return range(self._cluster.number * size, (self._cluster.number + 1) * size)

    def split(self, array, axis=1):
        """An equal part for each replica of this process, along the axis of the streams."""
        parts = np.split(np.asarray(array), self._local, axis)
        return self._each(lambda number: tf.constant(parts[number]))

    def function(self, function):
        """A graph that runs `function` in each replica."""

        @functools.wraps(function)  # whose name TensorFlow's messages then have
        def run(*args):
            return self.strategy.run(function, args=args)

        return tf.function(run, autograph=False)

    def first(self, value):
        """The value of this process's first replica."""
        return self.strategy.experimental_local_results(value)[0]

    def sum(self, value):
        """The sum over all replicas, a float."""
        return float(self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None))

    def _each(self, function):
        """function(number) for each replica of this process, counted from 0."""
        first = self._cluster.number * self._local
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: function(context.replica_id_in_sync_group - first)
        )

    # ---- processes ----

    def any(self, flag):
        """Whether the flag is True in any process; all must ask."""
        if not self._cluster.workers:
            return flag
        return self.sum(self._each(lambda _: tf.constant(float(flag)))) > 0

    def check_same(self, facts):
        """Raises UserError, in all processes, if a fact differs between them.

        Args:
          facts: {name: what JSON can hold}.
        """
        if not self._cluster.workers:
            return
        texts = [json.dumps(fact, sort_keys=True) for fact in facts.values()]
        hashes = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        mine = np.array([[int.from_bytes(digest, "big", signed=True) for digest in hashes]])
        everyone = self._each(lambda _: tf.constant(mine, tf.int64))
        everyone = self.strategy.gather(everyone, axis=0).numpy()
        for name, text, column in zip(facts, texts, everyone.T, strict=True):
            if len(set(column.tolist())) > 1:
                raise UserError(
                    f"the workers differ in {name}. Worker {self._cluster.number}: {text}. All "
                    "must be started with the same command and see the same files"
                )

    @contextlib.contextmanager
    def lost_workers_named(self):
        """Within it, the end of another process is a UserError that says what to do."""
        try:
            yield
        except LOST as error:
            if not self._cluster.workers:
                raise
            match = re.search(r"aborted by: (.*)", error.message)
            raise UserError(
                f"worker {self._cluster.number} has lost another one, which has ended, stands still"
                " or cannot be reached. Start all of them again: they continue from the last "
                f"checkpoint. TensorFlow: {match[1] if match else error.message}"
            ) from error


# ---- in a replica ----


def replica_number():
    """Of this replica among all, an integer or int32 scalar."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def average(values):
    """The means over all replicas of the tensors of a structure, in one call."""
    # TensorFlow asks for a tensor's device, which a variable's value has not: identity has.
    values = tf.nest.map_structure(tf.identity, values)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, values)


def gather(value, axis):
    """The tensors of all replicas, joined along an axis."""
    return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis)
