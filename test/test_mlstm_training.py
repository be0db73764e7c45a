"""What the multiplicative LSTM does in training alone: dropout, and computing twice for memory."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import MLSTMConfig, mlstm_cell, mlstm_inputs, mlstm_sequence, mlstm_weights
from blocksparse.layers import MLSTM, MLSTMCell

TIME, BATCH, HIDDEN, EMBD = 5, 3, 32, 16
SEED = (3, 4)
axes = pytest.mark.parametrize("feature_axis", [1, 0], ids=["axis1", "axis0"])


def make(rng, feature_axis=1, dtype="float32", **kwargs):
    """(config, x, (c, h), weights)."""
    sizes = {"nhidden": HIDDEN, "nembd": EMBD, "isteps": 2, "block_size": 8, "masks": "ba_1"}
    config = MLSTMConfig(**{**sizes, **kwargs}, feature_axis=feature_axis, dtype=dtype)

    def random(*shape):
        shape = shape if feature_axis == 1 else (shape[-1], *shape[:-1])
        return tf.cast(rng.standard_normal(shape), dtype)

    weights = {
        name: w + 0.3 * rng.standard_normal(w.shape).astype(np.float32)
        for name, w in mlstm_weights(config).items()
    }
    return config, random(TIME, BATCH, EMBD), [random(BATCH, HIDDEN) for _ in "ch"], weights


def gradients(config, x, state, weights, mode="eager", **kwargs):
    """[outputs, c, h, gradients of all tensors], flat."""

    def run(x, state, weights):
        with tf.GradientTape() as tape:
            tape.watch([x, state or [], weights])
            results = mlstm_sequence(x, state, weights, config, **kwargs)
            loss = sum(tf.reduce_sum(tf.square(tf.cast(t, "float32"))) for t in flat(results))
        sources = [x, *(state or []), *weights.values()]
        return flat(results) + tape.gradient(loss, sources)

    run = tf.function(run) if mode == "function" else run
    return [np.asarray(tf.cast(tensor, tf.float64)) for tensor in run(x, state, weights)]


def flat(results):
    return tf.nest.flatten(results)


# ---- recompute ----


@axes
@pytest.mark.parametrize("recompute", [1, 2, TIME, TIME + 1])
def test_recomputed_gradients_are_the_same(feature_axis, recompute, rng, device):
    tensors = make(rng, feature_axis, nproj_in=16, lsteps=2)
    check_recomputing(tensors, "eager", recompute=recompute)


def test_recomputing_with_the_same_elements_dropped(rng):
    check_recomputing(make(rng), "function", recompute=2, keep_prob=0.7, seed=SEED)


def check_recomputing(tensors, mode, recompute, **kwargs):
    config, *tensors = tensors
    expected = gradients(config, *tensors, mode, **kwargs)
    results = gradients(config, *tensors, mode, **kwargs, recompute=recompute)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_recomputing_from_a_zero_state(rng):
    config, x, _, weights = make(rng)
    check_recomputing([config, x, None, weights], "eager", recompute=2)


def test_every_segment_has_one_product_for_a_weight(rng):
    config, *tensors = make(rng)

    @tf.function
    def run(x, state, weights):
        y, _ = mlstm_sequence(x, state, weights, config, recompute=2)
        return tf.gradients(y, list(weights.values()))

    ops = run.get_concrete_function(*tensors).graph.get_operations()
    pairs = [op.get_attr("num_pairs") for op in ops if op.type == "BlocksparseMatmulDW"]
    assert sorted(pairs) == sorted([2, 2, 1] * (config.isteps + 4))


@pytest.mark.parametrize("recompute", [0, 2])
def test_tensorflow_does_not_merge_what_is_computed_twice(recompute, rng):
    """The products in the graph that runs, after TensorFlow's optimisers."""
    tf1 = tf.compat.v1
    config, x, state, weights = tf.nest.map_structure(
        lambda t: t.numpy() if tf.is_tensor(t) else t, make(rng)
    )
    with tf.Graph().as_default():
        placeholders = tf.nest.map_structure(
            lambda t: tf1.placeholder(t.dtype, t.shape), [x, state, weights]
        )
        y, _ = mlstm_sequence(*placeholders, config, recompute=recompute)
        grads = tf1.gradients(tf.reduce_sum(y * y), flat(placeholders))
        feed = dict(zip(flat(placeholders), flat([x, state, weights]), strict=True))
        options = tf1.RunOptions(output_partition_graphs=True)
        metadata = tf1.RunMetadata()
        with tf1.Session() as session:
            session.run(grads, feed, options=options, run_metadata=metadata)
    products = [
        node.op
        for graph in metadata.partition_graphs
        for node in graph.node
        if node.op == "BlocksparseMatmul"
    ]
    once = TIME * (config.isteps + 4)
    assert len(products) == (2 * once if recompute else once)


@pytest.mark.gpu
def test_recomputing_saves_memory(rng):
    config = MLSTMConfig(nhidden=512, nembd=16, isteps=4, block_size=32, masks="ba_1")
    weights, x = mlstm_weights(config), tf.random.stateless_normal([32, 256, 16], [1, 2])
    peaks = []
    with tf.device("GPU:0"):
        for recompute in (0, 4):

            @tf.function
            def run(x, weights, recompute=recompute):
                y, _ = mlstm_sequence(x, None, weights, config, recompute=recompute)
                return tf.gradients(y, list(weights.values()))

            run(x, weights)
            tf.config.experimental.reset_memory_stats("GPU:0")
            before = tf.config.experimental.get_memory_info("GPU:0")["current"]
            run(x, weights)
            peaks.append(tf.config.experimental.get_memory_info("GPU:0")["peak"] - before)
    assert peaks[1] < 0.4 * peaks[0]


# ---- dropout ----


@axes
def test_the_update_is_dropped(feature_axis, rng, device):
    """c' of each element is that without update, or that with u / keep_prob."""
    config, _, state, weights = make(rng, feature_axis, nhidden=HIDDEN)
    keep_prob, u = 0.75, 0.6

    def cell(b_u, **kwargs):
        w = weights | {"g_u": tf.zeros(HIDDEN), "b_u": tf.fill([HIDDEN], b_u)}
        c, _ = mlstm_cell(None, state, w, config, **kwargs)
        return c.numpy()

    without, enlarged = cell(0.0), cell(u / keep_prob)
    kept = 0
    for seed in range(20):
        c = cell(u, keep_prob=keep_prob, seed=(0, seed))
        is_kept = np.abs(c - enlarged) < np.abs(c - without)
        np.testing.assert_allclose(c, np.where(is_kept, enlarged, without), rtol=0, atol=1e-6)
        kept += is_kept.mean() / 20
    assert abs(kept - keep_prob) < 5 * np.sqrt(keep_prob * (1 - keep_prob) / (20 * without.size))


@axes
def test_each_step_drops_by_a_seed_of_its_own(feature_axis, rng):
    config, x, (c, h), weights = make(rng, feature_axis, lsteps=2)
    dropping = {"keep_prob": 0.5, "seed": SEED}
    outputs, _ = mlstm_sequence(x, (c, h), weights, config, **dropping)
    expected = []
    for step, e in enumerate(tf.unstack(x, axis=1 - feature_axis)):
        dropping["seed"] = tf.random.experimental.stateless_fold_in(SEED, step)
        x_proj = mlstm_inputs(e, weights, config)
        c, h = mlstm_cell(x_proj, (c, h), weights, config, **dropping)
        expected.append(h)
    np.testing.assert_allclose(outputs, tf.stack(expected, 1 - feature_axis), rtol=0, atol=1e-5)


def test_seeds_decide(rng):
    config, *tensors = make(rng)

    def run(seed, keep_prob=0.5):
        return mlstm_sequence(*tensors, config, keep_prob=keep_prob, seed=seed)[0].numpy()

    np.testing.assert_array_equal(run(SEED), run(tf.constant(SEED, tf.int64)))
    assert np.any(run(SEED) != run((3, 5)))
    np.testing.assert_array_equal(run(SEED, keep_prob=1), run(None, keep_prob=1.0))


# ---- layers ----


def test_layers_drop_in_training_alone(rng):
    config, x, _, _ = make(rng)
    x = tf.transpose(x, [1, 0, 2])
    layer, copy = MLSTM(config, dropout=0.5, seed=1), MLSTM(config, dropout=0.5, seed=1)
    plain = MLSTM(config)
    np.testing.assert_array_equal(layer(x), plain(x))
    first, second = layer(x, training=True), layer(x, training=True)
    assert np.any(first != plain(x)) and np.any(first != second)
    np.testing.assert_array_equal(copy(x, training=True), first)
    rnn = tf.keras.layers.RNN(MLSTMCell(config, dropout=0.5, seed=1))
    np.testing.assert_allclose(rnn(x), plain(x), rtol=0, atol=1e-5)
    assert np.any(np.abs(rnn(x, training=True) - rnn(x)) > 1e-3)


def test_layers_train_with_both(rng):
    config, *_ = make(rng)
    x = rng.standard_normal([64, 3, EMBD]).astype(np.float32)
    layer = MLSTM(config, dropout=0.1, seed=1, recompute=2)
    model = tf.keras.Sequential([tf.keras.Input((3, EMBD)), layer, tf.keras.layers.Dense(1)])
    model.compile(tf.keras.optimizers.Adam(0.01), "mse")
    losses = model.fit(x, x[:, 0, :1], epochs=10, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_layers_are_saved_with_both(rng, tmp_path):
    config, *_ = make(rng)
    layer = MLSTM(config, dropout=0.1, seed=7, recompute=2)
    copy = MLSTM.from_config(layer.get_config())
    assert (copy.cell.dropout, copy.cell.seed, copy.recompute) == (0.1, 7, 2)
    model = tf.keras.Sequential([tf.keras.Input((3, EMBD)), layer])
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    x = rng.standard_normal([2, 3, EMBD]).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))


# ---- errors ----


def test_errors(rng):
    config, x, state, weights = make(rng)
    for keep_prob in (0, 1.5, -1):
        with pytest.raises(ValueError, match=r"keep_prob must be in \(0, 1\]. Received: "):
            mlstm_cell(None, state, weights, config, keep_prob=keep_prob, seed=SEED)
    for seed in (None, 3, (1, 2, 3), (0.5, 1.0)):
        with pytest.raises(ValueError, match="^mlstm_sequence: seed must be two integers, if keep"):
            mlstm_sequence(x, state, weights, config, keep_prob=0.5, seed=seed)
    for recompute in (-1, 2.0, True):
        with pytest.raises(ValueError, match=f"number of time steps, .* Received: {recompute}"):
            mlstm_sequence(x, state, weights, config, recompute=recompute)
    with pytest.raises(ValueError, match=r"MLSTMCell: dropout must be in \[0, 1\). Received: 1"):
        MLSTM(config, dropout=1)
