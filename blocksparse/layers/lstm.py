"""TensorFlow 1's BasicLSTMCell with fused gates, as a Keras cell."""

import keras
import tensorflow as tf

from blocksparse.lstm import basic_lstm_step


@keras.saving.register_keras_serializable(package="blocksparse")
class FusedBasicLSTMCell(keras.layers.Layer):
    """A dense LSTM cell for `keras.layers.RNN`, its elementwise half one op.

    Weights as those of TensorFlow 1's BasicLSTMCell: kernel [C + units, 4 units], columns in the
    order i, u, f, o, and bias [4 units], always float32.

    Args:
      units: features of the state.
      forget_bias: a number, added to f.
      kernel_initializer, bias_initializer: of Keras.
      **kwargs: of `keras.layers.Layer`.
    Attributes:
      state_size, output_size.
    Source: openai/blocksparse `FusedBasicLSTMCell`. The states are [h, c], as Keras has them.
    Example:
      >>> keras.layers.RNN(FusedBasicLSTMCell(8))(tf.ones([2, 5, 3])).shape.as_list()
      [2, 8]
    """

    def __init__(
        self,
        units,
        forget_bias=1.0,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise ValueError(
                f"FusedBasicLSTMCell: units must be a positive integer. Received: {units!r}"
            )
        self.supports_jit = False  # XLA does not know custom ops
        self.units, self.forget_bias = units, float(forget_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.state_size, self.output_size = [units, units], units

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1] + self.units, 4 * self.units),
            initializer=self.kernel_initializer,
            autocast=False,  # the function rounds it
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(4 * self.units,),
            initializer=self.bias_initializer,
            dtype="float32",
            autocast=False,
        )

    def call(self, inputs, states, training=None):
        """(h, [h, c]) from inputs [N, C] and states [h, c], [N, units] each."""
        x, h, c = (tf.cast(tensor, self.compute_dtype) for tensor in (inputs, *states))
        kernel, bias = (tf.convert_to_tensor(weight) for weight in (self.kernel, self.bias))
        c, h = basic_lstm_step(x, (c, h), kernel, bias, self.forget_bias)
        return h, [h, c]

    def get_initial_state(self, batch_size=None):
        """Zeros [h, c]."""
        return [tf.zeros([batch_size, size], self.compute_dtype) for size in self.state_size]

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "forget_bias": self.forget_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
