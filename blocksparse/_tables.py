"""A layout's tables as tensors: constants of a graph, or eager copies kept by the layout."""

import tensorflow as tf

from blocksparse._gpu_tables import gpu_tables


def layout_tensors(layout, like):
    """The tables of `layout` for an op that runs beside the tensor `like`.

    Nothing is copied in a training step: `lut` lies in the memory of the device, `plan` in the
    host's. In a graph both are constants, so they travel inside a SavedModel and never enter a
    checkpoint.

    Returns:
      (lut, plan): int64 and int32 vectors.
    """
    if tf.executing_eagerly():
        device = like.device
        if device not in layout.cache:
            lut, plan = _arrays(layout, device)
            with tf.device(device):
                lut = tf.constant(lut)
            with tf.device("CPU:0"):
                layout.cache[device] = lut, tf.constant(plan)
        return layout.cache[device]
    return _graph_constants(layout, tf.compat.v1.get_default_graph())


def _arrays(layout, device):
    """(lut, plan) for a device, "" for one that is not known yet."""
    is_cpu = "CPU:" in device or not tf.config.list_physical_devices("GPU")
    return (layout.lut, layout.plan) if is_cpu else gpu_tables(layout)


def _graph_constants(layout, graph):
    # The graph keeps its constants, for each device once: a layer that is called for a thousand
    # time steps shares them. (Kept with the layout they would keep the graph alive.)
    with tf.control_dependencies(None):
        lut, plan = _arrays(layout, device="")
        plan = tf.constant(plan, name="plan")
        constants = getattr(graph, "_blocksparse_luts", None)
        if constants is None:
            constants = graph._blocksparse_luts = {}
        key = layout, plan.device
        if key not in constants:
            constants[key] = tf.constant(lut, name="lut")
        return constants[key], plan
