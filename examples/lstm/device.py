"""TensorFlow's settings for a run, its traces and what it says about the device."""

import tensorflow as tf


def prepare(threads=0):
    """Makes results repeat bit for bit, and sets the number of CPU threads (0: all).

    To be called before TensorFlow is used.
    """
    tf.config.experimental.enable_op_determinism()
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def report():
    """{"device": name, "peak_bytes": of GPU memory, where there is one}."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return {"device": "CPU"}
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return {"device": name, "peak_bytes": tf.config.experimental.get_memory_info("GPU:0")["peak"]}


class Tracer:
    """Traces some steps of a run, from the fourth on: the first ones build graphs.

    Args:
      folder: where TensorFlow's profiler writes.
      steps: to trace; 0 traces none.
    """

    FIRST = 3

    def __init__(self, folder, steps):
        self._folder, self._steps = folder, steps

    def before(self, number):
        """To be called before each step, with its number in this process."""
        if self._steps and number == self.FIRST:
            tf.profiler.experimental.start(str(self._folder))
        if self._steps and number == self.FIRST + self._steps:
            tf.profiler.experimental.stop()
