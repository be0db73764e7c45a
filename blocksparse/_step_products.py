"""Products of weights that many steps share, with each weight's gradient computed once.

A tape adds up the gradients of a weight that T steps use: T products, each of which writes and adds
all of it. Here the steps' (x, dy) pairs are kept and one product of the lists ends the backward
pass. Works in eager mode and in graphs.
"""

import tensorflow as tf


def run_steps(body, tensors, weights, multiply, multiply_dw, recompute=False):
    """Runs `body` with products whose weight gradients are computed together.

    Args:
      body: function (product, *tensors) -> list of tensors. Its products are calls of
        product(name, x), and it depends on nothing else that has a gradient.
      tensors: list of tensors; their gradients are those of `body`, by a tape.
      weights: dict of tensors; rounded once to the dtype of tensors[0].
      multiply: function (name, x, w) -> y, with the weight called `name`, rounded.
      multiply_dw: function (name, xs, dys) -> gradient of that weight, like it, from the lists of
        all its products' x and gradients of y.
      recompute: keep the arguments alone, and run `body` again for the gradient, when those of the
        results are there.
    Returns:
      The list that `body` returns. Its first gradients are supported, in reverse mode.
    """
    names = list(weights)

    def run(args):
        """(outputs, inputs, pairs of x and y by name, tape)."""
        inputs = list(args[: len(tensors)])
        values = {
            name: tf.cast(w, inputs[0].dtype)
            for name, w in zip(names, args[len(tensors) :], strict=True)
        }
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
        return outputs, inputs, pairs, tape

    @tf.custom_gradient
    def steps(*args):
        outputs, *rest = run(args)
        kept = None if recompute else (outputs, *rest)

        def gradient(*d_outputs):
            outputs, inputs, pairs, tape = kept or run(_after(d_outputs, args))
            ys = [[y for _, y in pairs[name]] for name in names]
            d_inputs, dys = tape.gradient(
                outputs, [inputs, ys], list(d_outputs), tf.UnconnectedGradients.ZERO
            )
            d_weights = [
                multiply_dw(name, [x for x, _ in pairs[name]], dys[number])
                if pairs[name]
                else tf.zeros_like(args[len(tensors) + number])
                for number, name in enumerate(names)
            ]
            return [*d_inputs, *d_weights]

        return outputs, gradient

    return steps(*tensors, *weights.values())


def _after(others, tensors):
    """The tensors, in a graph not before the others: TensorFlow merges equal ops, but not these."""
    with tf.control_dependencies(others):
        return [tf.identity(tensor) for tensor in tensors]
