"""TensorFlow's settings for a run, its traces and what it says about the device."""

import tensorflow as tf
from errors import UserError


def prepare(threads=0, replicas=1):
    """Makes results repeat bit for bit, and sets up the devices.

    To be called before TensorFlow is used.

    Args:
      threads: of the CPU, 0 for all.
      replicas: GPUs to use; where there is none, the CPU becomes so many logical devices.
    Raises:
      UserError: there are fewer GPUs.
    """
    tf.config.experimental.enable_op_determinism()
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and replicas > len(gpus):
        raise UserError(f"--replicas={replicas} needs as many GPUs. This machine has {len(gpus)}")
    tf.config.set_visible_devices(gpus[:replicas], "GPU")
    for gpu in gpus[:replicas]:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus and replicas > 1:
        logical = [tf.config.LogicalDeviceConfiguration()] * replicas
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], logical
        )


def report():
    """{"device": name}, and of GPUs "devices", their number, and "peak_bytes", of one's memory."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return {"device": "CPU"}
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    peaks = [
        tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"]
        for number in range(len(gpus))
    ]
    return {"device": name, "devices": len(gpus), "peak_bytes": max(peaks)}


class Tracer:
    """Traces some steps of a run, from the fourth on: the first ones build graphs.

    Args:
      folder: where TensorFlow's profiler writes.
      steps: to trace; 0 traces none.
    """

    FIRST = 3

    def __init__(self, folder, steps):
        self._folder, self._steps = folder, steps
        self._is_on = False

    def before(self, number, last):
        """To be called before each step, with its number in this process and the last loss."""
        if self._steps and number == self.FIRST:
            float(last)  # so that no step before is traced
            # Level 3 has all ops of the CPU; of a GPU's kernels, 1 has as many.
            level = 1 if tf.config.list_physical_devices("GPU") else 3
            options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=level)
            tf.profiler.experimental.start(str(self._folder), options)
            self._is_on = True

    def after(self, number, last):
        """To be called after each step, with its number and loss: whether a trace ended here."""
        if not self._is_on or number < self.FIRST + self._steps - 1:
            return False
        self.close(last)
        return True

    def close(self, last):
        """Ends the trace, if it is on, as after the last step of a run."""
        if self._is_on:
            float(last)
            tf.profiler.experimental.stop()
            self._is_on = False
