"""Writes text with a checkpoint.

python examples/lstm/sample.py runs/first --length 500 --temperature 0.7 --prime "def "
"""

import argparse
import os
import sys

import errors
import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

FLAGS = {
    "length": (500, settings.CONTROL["keep"][1], "bytes to write"),
    "temperature": (
        1.0,
        float,
        "0 always takes the likeliest byte, 1 follows the model's probabilities, more is wilder",
    ),
    "prime": ("\n", str, "text to begin with; it is not written"),
    "seed": (0, settings.MODEL["seed"][1], "of the random choices"),
    "threads": settings.CONTROL["threads"],
}


def main():
    """Parses the flags and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a run, or one of its checkpoint files")
    settings.add_flags(parser, ("sampling", {**FLAGS, "prime": (None, str, FLAGS["prime"][2])}))
    namespace = parser.parse_args()
    flags = settings.with_defaults(settings.given(namespace, FLAGS), FLAGS)
    if not 0 <= flags["temperature"] < float("inf"):
        raise errors.UserError(f"--temperature must be 0 or more. Received: {flags['temperature']}")
    if not flags["prime"]:
        raise errors.UserError("--prime must be a text of one character or more. Received: ''")

    import device
    from training import load_model

    device.prepare(flags["threads"])
    model, _ = load_model(namespace.checkpoint)
    prime = flags["prime"].encode(errors="surrogateescape")
    data = sample(model, prime, flags["length"], flags["temperature"], flags["seed"])
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    if sys.stdout.isatty():
        print()


def sample(model, prime, length, temperature=1.0, seed=0):
    """Bytes that the model writes.

    Args:
      model: LanguageModel.
      prime: bytes to begin with, at least one.
      length: of the result.
      temperature: 0 always takes the likeliest byte; otherwise logits are divided by it.
      seed: the same seed gives the same bytes.
    Returns:
      bytes, without the prime.
    """
    import tensorflow as tf

    prime = tf.constant(list(prime), tf.int32)
    num_prime = len(prime)

    def choose(logits, number):
        if temperature == 0:
            return tf.argmax(logits, axis=-1, output_type=tf.int32)
        noise = tf.random.stateless_uniform(tf.shape(logits), [seed, number], minval=1e-20)
        # the Gumbel trick: the largest of logits with this noise is drawn from the softmax
        return tf.argmax(logits / temperature - tf.math.log(-tf.math.log(noise)), axis=-1,
                         output_type=tf.int32)  # fmt: skip

    @tf.function(autograph=False)
    def write():
        def body(number, x, state, written):
            logits, state = model.step(x, state)
            chosen = choose(logits, number)
            is_prime = number + 1 < num_prime
            x = tf.where(is_prime, prime[tf.minimum(number + 1, num_prime - 1)], chosen)
            return number + 1, x, state, written.write(number, chosen[0])

        steps = num_prime + length - 1
        written = tf.TensorArray(tf.int32, steps, element_shape=[])
        loop = (tf.constant(0), prime[:1], model.initial_state(1), written)
        *_, written = tf.while_loop(lambda number, *_: number < steps, body, loop)
        return written.stack()[num_prime - 1 :]

    return bytes(write().numpy().astype("uint8"))


if __name__ == "__main__":
    errors.run(main)
