"""Adam with a schedule, clipping and loss scaling, its state in named variables."""

import math

import tensorflow as tf

from blocksparse import clip_by_global_norm

LAST_RATE = 1 / 20  # of the learning rate, at the end of the schedule
LARGEST_SCALE = 2.0**15  # of a float16 loss; it starts there
GROWTH_STEPS = 1000  # without overflow, after which the scale doubles


def learning_rate(step, num_steps, flags):
    """The rate of step 0, 1, ...: a linear rise over --warmup steps, then --decay."""
    rate, warmup = flags["rate"], flags["warmup"]
    if step < warmup:
        return rate * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    left = {"cosine": (1 + math.cos(math.pi * progress)) / 2, "linear": 1 - progress, "none": 1}
    return rate * (LAST_RATE + (1 - LAST_RATE) * left[flags["decay"]])


class Adam(tf.Module):
    """Adam by TensorFlow's fused kernel, of float32 parameters whatever the products' dtype.

    Args:
      parameters: dict of `tf.Variable` by name.
      flags: clip, beta2 and dtype of `settings`.
    Attributes:
      state: dict of `tf.Variable` by name: the two moments of each parameter, the number of updates
        and, with float16, the scale of the loss.
    """

    def __init__(self, parameters, flags):
        super().__init__(name="adam")
        self._parameters = parameters
        self._beta1, self._beta2, self._epsilon = 0.9, flags["beta2"], 1e-8
        self._clip = flags["clip"]
        self._is_scaled = flags["dtype"] == "float16"
        self.state = {"updates": tf.Variable(0, dtype=tf.int64, name="updates")}
        for name, variable in parameters.items():
            for moment in ("mean", "variance"):
                key = f"{moment}/{name}"
                self.state[key] = tf.Variable(tf.zeros_like(variable), name=key)
        if self._is_scaled:
            self.state["loss_scale"] = tf.Variable(LARGEST_SCALE, name="loss_scale")
            self.state["good_steps"] = tf.Variable(0, dtype=tf.int64, name="good_steps")

    def scaled(self, loss):
        """The loss to differentiate."""
        return loss * self.state["loss_scale"] if self._is_scaled else loss

    def apply(self, gradients, rate):
        """Updates the parameters, but for gradients that are not finite.

        Args:
          gradients: dict by name, of the scaled loss.
          rate: float32 scalar.
        Returns:
          The gradients' global norm before clipping.
        """
        with tf.name_scope("optimizer"):  # which device_time.py looks for
            return self._apply(gradients, rate)

    def _apply(self, gradients, rate):
        inverse = 1 / self.state["loss_scale"] if self._is_scaled else 1.0
        norm, factor = clip_by_global_norm(list(gradients.values()), self._clip, inverse)

        def update():
            updates = tf.cast(self.state["updates"].assign_add(1), tf.float32)
            for name, gradient in gradients.items():
                self._update(name, gradient * (factor * inverse), rate, updates)
            return tf.constant(True)

        is_finite = tf.math.is_finite(norm)
        tf.cond(is_finite, update, lambda: tf.constant(False))
        if self._is_scaled:
            self._adapt_scale(is_finite)
        return norm

    def _update(self, name, gradient, rate, updates):
        tf.raw_ops.ResourceApplyAdam(
            var=self._parameters[name].handle,
            m=self.state[f"mean/{name}"].handle,
            v=self.state[f"variance/{name}"].handle,
            beta1_power=self._beta1**updates,
            beta2_power=self._beta2**updates,
            lr=rate,
            beta1=self._beta1,
            beta2=self._beta2,
            epsilon=self._epsilon,
            grad=gradient,
        )

    def _adapt_scale(self, is_finite):
        scale, good = self.state["loss_scale"], self.state["good_steps"]
        count = tf.where(is_finite, good + 1, 0)
        grows = count >= GROWTH_STEPS
        factor = tf.where(is_finite, tf.where(grows, 2.0, 1.0), 0.5)
        scale.assign(tf.clip_by_value(scale * factor, 1.0, LARGEST_SCALE))
        good.assign(tf.where(grows, tf.zeros_like(count), count))
