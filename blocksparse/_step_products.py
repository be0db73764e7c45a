"""Products of weights that many steps share, with each weight's gradient computed once.

A tape adds up the gradients of a weight that T steps use: T products, each of which writes and adds
all of it. Here the steps' (x, dy) pairs are kept and one product of the lists ends the backward
pass. Works in eager mode and in graphs.
"""

import tensorflow as tf


def run_steps(body, tensors, weights, multiply, multiply_dw):
    """Runs `body` with products whose weight gradients are computed together.

    Args:
      body: function (product, *tensors) -> list of tensors. Its products are calls of
        product(name, x), and it depends on nothing else that has a gradient.
      tensors: list of tensors; their gradients are those of `body`, by a tape.
      weights: dict of tensors; rounded once to the dtype of tensors[0].
      multiply: function (name, x, w) -> y, with the weight called `name`, rounded.
      multiply_dw: function (name, xs, dys) -> gradient of that weight, like it, from the lists of
        all its products' x and gradients of y.
    Returns:
      The list that `body` returns. Its first gradients are supported, in reverse mode.
    """
    names = list(weights)

    @tf.custom_gradient
    def steps(*args):
        inputs = args[: len(tensors)]
        masters = dict(zip(names, args[len(tensors) :], strict=True))
        values = {name: tf.cast(w, inputs[0].dtype) for name, w in masters.items()}
        pairs = {name: [] for name in names}

        def product(name, x):
            y = multiply(name, x, values[name])
            pairs[name].append((x, y))
            return y

        # Persistent, because the gradient may be asked for more than once. The weights are not
        # watched, so that the tape makes no products for them.
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            outputs = body(product, *inputs)

        def gradient(*d_outputs):
            ys = [[y for _, y in pairs[name]] for name in names]
            d_inputs, dys = tape.gradient(
                outputs, [list(inputs), ys], list(d_outputs), tf.UnconnectedGradients.ZERO
            )
            d_weights = [
                multiply_dw(name, [x for x, _ in pairs[name]], dys[number])
                if pairs[name]
                else tf.zeros_like(masters[name])
                for number, name in enumerate(names)
            ]
            return [*d_inputs, *d_weights]

        return outputs, gradient

    return steps(*tensors, *weights.values())
