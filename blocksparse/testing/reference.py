"""The definition of every op: dense float64 numpy. All claims of correctness are made against it.

No block loops, so that it shares no mistake with the kernels. Arguments may have any dtype and are
taken as they are; results are float64.
"""

import numpy as np


def _dense(w, layout, gate=None):
    w = np.asarray(w, np.float64)
    if gate is not None:
        gate = np.asarray(gate, np.float64)[:, None, None]
        w = np.where(gate == 0, 0, gate * np.where(gate == 0, 0, w))
    return layout.to_dense(w)


def _features_last(x, feature_axis):
    x = np.asarray(x, np.float64)
    return x if feature_axis == 1 else np.moveaxis(x, 0, -1)


def _features_back(y, feature_axis):
    return y if feature_axis == 1 else np.moveaxis(y, -1, 0)


def matmul(x, w, layout, feature_axis=1, gate=None):
    """y[n, k] = sum_c g W[c, k] x[n, c]."""
    return _features_back(_features_last(x, feature_axis) @ _dense(w, layout, gate), feature_axis)


def matmul_dx(dy, w, layout, feature_axis=1, gate=None):
    """dx[n, c] = sum_k g W[c, k] dy[n, k]."""
    return _features_back(
        _features_last(dy, feature_axis) @ _dense(w, layout, gate).T, feature_axis
    )


def matmul_dw(x, dy, layout, feature_axis=1, gate=None):
    """dW = x^T dy at the stored blocks, 0 where the gate is. Of lists of x and dy, the sum."""
    if isinstance(x, list | tuple):
        return sum(matmul_dw(*pair, layout, feature_axis, gate) for pair in zip(x, dy, strict=True))
    x, dy = (_features_last(t, feature_axis) for t in (x, dy))
    x, dy = (t.reshape(-1, t.shape[-1]) for t in (x, dy))
    dw = layout.from_dense(x.T @ dy, allow_loss=True)
    return dw if gate is None else dw * (np.asarray(gate) != 0)[:, None, None]


def gate_gradients(dw, w, gate):
    """(g dw, sum of dw w in each block): the gradients of the gated weights g w."""
    dw, w, gate = (np.asarray(t, np.float64) for t in (dw, w, gate))
    return gate[:, None, None] * dw, np.sum(dw * w, axis=(1, 2))


def l2_normalize(w, layout, gain=None, epsilon=1e-12):
    """gain[k] W[c, k] / sqrt(max(sum_c W[c, k]^2, epsilon))."""
    dense = _dense(w, layout)
    gain = 1.0 if gain is None else np.asarray(gain, np.float64)
    scale = gain / np.sqrt(np.maximum(np.sum(dense**2, axis=0), epsilon))
    return layout.from_dense(dense * scale)


def l2_normalize_grad(w, dy, layout, gain=None, epsilon=1e-12):
    """Gradients of `l2_normalize` with respect to w and gain."""
    dense, dy = _dense(w, layout), _dense(dy, layout)
    gain = 1.0 if gain is None else np.asarray(gain, np.float64)
    squares = np.sum(dense**2, axis=0)
    bounded = np.maximum(squares, epsilon)
    dots = np.sum(dense * dy, axis=0)
    dx = gain / np.sqrt(bounded) * (dy - (squares >= epsilon) * dense * dots / bounded)
    return layout.from_dense(dx), dots / np.sqrt(bounded)


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def _lstm_activations(gates, bias, forget_bias):
    """i, u, f and o after their activation functions; of one array of quarters, or of four."""
    if isinstance(gates, list | tuple):
        i, u, f, o = (np.asarray(gate, np.float64) for gate in gates)
    else:
        bias = 0.0 if bias is None else np.asarray(bias, np.float64)
        i, u, f, o = np.split(np.asarray(gates, np.float64) + bias, 4, axis=-1)
    return _sigmoid(i), np.tanh(u), _sigmoid(f + forget_bias), _sigmoid(o)


def lstm_gates(c, gates, bias=None, forget_bias=1.0):
    """(f c + i u, o tanh(f c + i u)), with the sigmoids of i, f, o and the tanh of u."""
    i, u, f, o = _lstm_activations(gates, bias, forget_bias)
    c_next = f * np.asarray(c, np.float64) + i * u
    return c_next, o * np.tanh(c_next)


def lstm_gates_grad(c, gates, dc_next, dh_next, bias=None, forget_bias=1.0):
    """Gradients of `lstm_gates`: that of c, and a list of those of i, u, f and o."""
    c, dc_next, dh_next = (np.asarray(t, np.float64) for t in (c, dc_next, dh_next))
    i, u, f, o = _lstm_activations(gates, bias, forget_bias)
    h = np.tanh(f * c + i * u)
    e = dc_next + dh_next * o * (1 - h**2)
    di, du = e * u * i * (1 - i), e * i * (1 - u**2)
    return e * f, [di, du, e * c * f * (1 - f), dh_next * h * o * (1 - o)]


def sparse_relu(x, alpha=1.0):
    """max(x - cut, 0) with cut = mean + alpha std of the row."""
    x = np.asarray(x, np.float64)
    cut = np.mean(x, axis=-1, keepdims=True) + alpha * np.std(x, axis=-1, keepdims=True)
    return np.maximum(x - cut, 0)


def softmax_cross_entropy(logits, labels):
    """log(sum_j exp(logits[j])) - logits[label], of each row."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    largest = np.max(logits, axis=-1)
    log_sum = np.log(np.sum(np.exp(logits - largest[..., None]), axis=-1))
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return largest - chosen + log_sum


def softmax_cross_entropy_grad(logits, labels, dloss):
    """Gradient of `softmax_cross_entropy` with respect to logits: dloss (softmax - onehot)."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    p = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    p /= np.sum(p, axis=-1, keepdims=True)
    onehot = labels[..., None] == np.arange(logits.shape[-1])
    return np.asarray(dloss, np.float64)[..., None] * (p - onehot)


def _moments(x, epsilon):
    """(xhat, rstd) of [..., S, L]."""
    deviations = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((deviations**2).mean(axis=-1, keepdims=True) + epsilon)
    return deviations * rstd, rstd


def _segmented(x, segments, feature_axis=1):
    x = _features_last(x, feature_axis)
    return x.reshape(*x.shape[:-1], segments, x.shape[-1] // segments)


def _joined(y, feature_axis=1):
    return _features_back(y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1]), feature_axis)


def layer_norm(x, g, b, feature_axis=1, segments=1, epsilon=1e-6, relu=False):
    """g xhat + b, where xhat is x with mean 0 and variance 1 in each segment of the features."""
    x, g, b = (
        _segmented(x, segments, feature_axis),
        _segmented(g, segments),
        _segmented(b, segments),
    )
    y = g * _moments(x, epsilon)[0] + b
    return _joined(np.maximum(y, 0) if relu else y, feature_axis)


def layer_norm_grad(dy, x, g, b, feature_axis=1, segments=1, epsilon=1e-6, relu=False):
    """Gradients of `layer_norm` with respect to x, g and b."""
    dy, x = (_segmented(t, segments, feature_axis) for t in (dy, x))
    g, b = _segmented(g, segments), _segmented(b, segments)
    xhat, rstd = _moments(x, epsilon)
    d = np.where(g * xhat + b > 0, dy, 0) if relu else dy
    t = g * d
    dots, sums = (np.mean(v, axis=-1, keepdims=True) for v in (t * xhat, t))
    samples = tuple(range(x.ndim - 2))
    dg, db = (np.sum(v, axis=samples).reshape(-1) for v in (d * xhat, d))
    return _joined((t - xhat * dots - sums) * rstd, feature_axis), dg, db


def embedding_lookup(emb, idx):
    """Rows of emb."""
    return np.asarray(emb, np.float64)[np.asarray(idx, np.int64)]


def embedding_lookup_grad(dy, idx, num_rows):
    """Gradient of `embedding_lookup` with respect to emb: a sum over the indices of each row."""
    dy = np.asarray(dy, np.float64)
    demb = np.zeros((num_rows, dy.shape[-1]))
    np.add.at(demb, np.asarray(idx, np.int64).reshape(-1), dy.reshape(-1, dy.shape[-1]))
    return demb


def bias_relu(x, b, axis=-1, activation=None):
    """x + b along the first or the last axis, and then "relu" or "fast_gelu"."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1) + np.asarray(b, np.float64)
    if activation == "relu":
        x = np.maximum(x, 0)
    elif activation == "fast_gelu":
        x = x / (1 + np.exp(-1.702 * x))
    return np.moveaxis(x, -1, axis)


def bias_relu_grad(dy, x, b, axis=-1, activation=None):
    """Gradients of `bias_relu` with respect to x and b."""
    dy, x = (np.moveaxis(np.asarray(t, np.float64), axis, -1) for t in (dy, x))
    z = x + np.asarray(b, np.float64)
    if activation == "relu":
        dy = np.where(z > 0, dy, 0)
    elif activation == "fast_gelu":
        s = 1 / (1 + np.exp(-1.702 * z))
        dy = dy * (s + 1.702 * z * s * (1 - s))
    return np.moveaxis(dy, -1, axis), np.sum(dy, axis=tuple(range(dy.ndim - 1)))


def dropout(x, keep_prob, mask):
    """x / keep_prob where mask, else 0."""
    return np.where(mask, np.asarray(x, np.float64) / keep_prob, 0)


def global_norm(grads, grad_scale=1.0, saturate=0.0, zero_infs=False, zero_nans=False):
    """The Euclidean length of all gradients together."""
    x = np.concatenate([np.asarray(grad, np.float64).reshape(-1) for grad in grads])
    if zero_infs:
        x = np.where(np.isinf(x), 0, x)
    if zero_nans:
        x = np.where(np.isnan(x), 0, x)
    if saturate:
        x = np.clip(x, -saturate, saturate)
    return np.sqrt(np.sum((grad_scale * x) ** 2))


def mlstm_step(x, c, h, weights, config):
    """(c, h) after one input x of the multiplicative LSTM; `config` is an MLSTMConfig.

    linear(p, x) = layer_norm(W_p x; g_p, b_p); m, a = linear(m, x), linear(a, x);
    h = linear(h0, h) * m; h = relu(linear(h1, h) + a); h = relu(linear(hs, h)) for the other
    internal steps; i, f, o, u = linear(., h); then `lstm_gates` without forget_bias. The further of
    config.lsteps updates have no m and a.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def linear(p, x):
        y = x @ _dense(weights[f"w_{p}"], config.layouts[p])
        return layer_norm(y, weights[f"g_{p}"], weights[f"b_{p}"])

    x, c, h = (_features_last(t, config.feature_axis) for t in (x, c, h))
    chosen = [list(f or range(config.nhidden)) for f in (config.mul_features, config.add_features)]
    for lstep in range(config.lsteps):
        for step in range(config.isteps):
            h = linear("h0" if config.share_isteps else f"h{step}", h)
            if step == 0 and lstep == 0:
                h[..., chosen[0]] *= linear("m", x)
            if step == 1 and lstep == 0:
                h[..., chosen[1]] += linear("a", x)
            if step >= 1:
                h = np.maximum(h, 0)
        i, f, o, u = (linear(p, h) for p in "ifou")
        c, h = lstm_gates(c, [i, u, f, o], forget_bias=0.0)
    return tuple(_features_back(t, config.feature_axis) for t in (c, h))
