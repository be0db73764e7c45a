"""The checks tell correct results from planted faults, and the reference's gradients are right."""

import numpy as np
import pytest

from blocksparse import SparsityLayout
from blocksparse.testing import reference, tolerance

SIGNIFICANT_BITS = {"float32": 24, "tf32": 11, "float16": 11, "bfloat16": 8}
DEPTH = 512


def rounded(x, form):
    """x rounded to nearest even in a format, as float64; without the limits of its exponent."""
    unit = np.exp2(np.frexp(x)[1].astype(np.float64) - SIGNIFICANT_BITS[form])
    return np.round(x / unit) * unit


class Product:
    """A correct result of x [128, DEPTH] times w [DEPTH, 96], and what the checks need."""

    def __init__(self, rng, dtype, integers=False):
        shapes = (128, DEPTH), (DEPTH, 96)
        if integers:
            x, w = (tolerance.random_integers(rng, shape, DEPTH, dtype) for shape in shapes)
        else:
            x, w = (rounded(rng.standard_normal(shape), dtype) for shape in shapes)
        self.x, self.w, self.dtype = np.float64(x), np.float64(w), dtype
        self.reference = self.x @ self.w
        self.magnitude = np.abs(self.x) @ np.abs(self.w)
        self.result = rounded(np.float32(x) @ np.float32(w), dtype)

    def check(self, result, rounded_inputs=None):
        tolerance.check_product(
            result, self.reference, self.magnitude, DEPTH, self.dtype, rounded_inputs
        )


def one_element_zeroed(product):
    product.result[17, 5] = 0


def one_block_zeroed(product):
    product.result[64:96, 32:64] = 0


def one_product_dropped_in_one_row(product):
    product.result[3] = rounded(product.result[3] - product.x[3, 40] * product.w[40], product.dtype)


def one_product_doubled_in_one_row(product):
    product.result[3] = rounded(product.result[3] + product.x[3, 40] * product.w[40], product.dtype)


def two_blocks_exchanged(product):
    product.result[:, :64] = np.roll(product.result[:, :64], 32, axis=1)


def one_nan(product):
    product.result[127, 95] = np.nan


def one_infinity(product):
    product.result[0, 0] = np.inf


def unwritten_tile(product):
    product.result[96:, 64:] = product.result[:32, :32]


WRONG_SUMS = [
    one_element_zeroed,
    one_block_zeroed,
    one_product_dropped_in_one_row,
    one_product_doubled_in_one_row,
    two_blocks_exchanged,
    one_nan,
    one_infinity,
    unwritten_tile,
]


def float16_accumulator(product):
    total = np.zeros_like(product.result, np.float16)
    for x, w in zip(product.x.T, product.w, strict=True):
        total += np.outer(x, w).astype(np.float16)
    product.result = total


def bfloat16_output(product):
    product.result = rounded(product.result, "bfloat16")


def tf32_inputs(product):
    product.result = np.float32(rounded(product.x, "tf32")) @ np.float32(rounded(product.w, "tf32"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_correct_products_pass(rng, dtype):
    product = Product(rng, dtype)
    product.check(product.result)
    integers = Product(rng, dtype, integers=True)
    tolerance.check_equal(integers.result, integers.reference)


@pytest.mark.parametrize("fault", WRONG_SUMS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_rounding_check_fails_wrong_sums(rng, dtype, fault):
    product = Product(rng, dtype)
    fault(product)
    with pytest.raises(AssertionError, match="outside the bound"):
        product.check(product.result)


@pytest.mark.parametrize("fault", WRONG_SUMS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_exact_check_fails_wrong_sums(rng, dtype, fault):
    product = Product(rng, dtype, integers=True)
    product.result[17, 5] = product.reference[17, 5] = 1  # the sum that is zeroed is not 0 already
    fault(product)
    with pytest.raises(AssertionError, match="elements differ"):
        tolerance.check_equal(product.result, product.reference)


@pytest.mark.parametrize(
    "dtype, fault",
    [
        ("float16", float16_accumulator),
        ("float16", bfloat16_output),
        ("float32", float16_accumulator),
        ("float32", bfloat16_output),
        ("float32", tf32_inputs),
    ],
)
def test_the_rounding_check_fails_lost_precision(rng, dtype, fault):
    product = Product(rng, dtype)
    fault(product)
    with pytest.raises(AssertionError, match="outside the bound"):
        product.check(product.result)


def test_tf32_passes_where_it_is_claimed_and_a_dropped_product_still_fails(rng):
    product = Product(rng, "float32")
    tf32_inputs(product)
    product.check(product.result, "tf32")
    one_product_dropped_in_one_row(product)
    with pytest.raises(AssertionError, match="outside the bound"):
        product.check(product.result, "tf32")


def test_messages_name_the_worst_element(rng):
    product = Product(rng, "float16")
    product.result[1, 2] += 1
    product.result[4, 3] += 100
    with pytest.raises(AssertionError, match=r"^2 of 12288 elements .* worst at \(.*4.*, .*3.*\)"):
        product.check(product.result)
    with pytest.raises(AssertionError, match=r"^1 of 3 .* at \(1,\): 5.0 instead of 1"):
        tolerance.check_equal([0, 5, 2], np.arange(3))


def test_another_shape_fails_although_it_broadcasts():
    with pytest.raises(AssertionError, match=r"shape \(1,\) instead of \(3,\)"):
        tolerance.check_equal(np.zeros(1), np.zeros(3))
    with pytest.raises(AssertionError, match=r"shape \(1,\) instead of \(3,\)"):
        tolerance.check_product(np.zeros(1), np.zeros(3), np.ones(3), 1, "float32")


def test_constants_follow_the_significant_bits():
    assert {form: 2.0**-b for form, b in SIGNIFICANT_BITS.items()} == tolerance.UNIT_ROUNDOFF
    for dtype, integer in tolerance.EXACT_INTEGERS.items():
        assert rounded(np.float64(integer - 1), dtype) == integer - 1
        assert rounded(np.float64(integer + 1), dtype) != integer + 1


@pytest.mark.parametrize(
    "dtype, depth, values",
    [
        ("float32", 1, [-2, -1, 1, 2]),
        ("float32", 2**22, [-2, -1, 1, 2]),
        ("float32", 2**22 + 1, [-1, 1]),
        ("float16", 512, [-2, -1, 1, 2]),
        ("float16", 513, [-1, 1]),
        ("float16", 85598, [-1, 1]),
        ("bfloat16", 64, [-2, -1, 1, 2]),
        ("bfloat16", 65, [-1, 1]),
        ("bfloat16", 1337, [-1, 1]),
    ],
)
def test_random_integers_have_exact_sums(rng, dtype, depth, values):
    drawn = tolerance.random_integers(rng, (64,), depth, dtype)
    assert np.unique(drawn).tolist() == values and drawn.dtype == np.float32
    terms = min(depth, 100000)
    x, w = (tolerance.random_integers(rng, (terms, 32), depth, dtype) for _ in range(2))
    sums = np.sum(x * w, axis=0, dtype=np.float64)
    assert np.array_equal(rounded(sums, dtype), sums)


@pytest.mark.parametrize(
    "dtype, depth", [("bfloat16", 1338), ("float16", 85599), ("float32", 2**43)]
)
def test_random_integers_refuse_long_sums(rng, dtype, depth):
    with pytest.raises(ValueError, match=f"sums of {depth} products are not exact in {dtype}"):
        tolerance.random_integers(rng, (1,), depth, dtype)


# ---- the reference ----

LAYOUT = SparsityLayout([[1, 0, 1], [1, 0, 0]], 8)


def numeric_gradient(function, at, step=1e-5):
    """Of a scalar function of one array, by central differences."""
    gradient = np.empty(at.size)
    for i in range(at.size):
        there, back = at.copy(), at.copy()
        there.flat[i] += step
        back.flat[i] -= step
        gradient[i] = (function(there) - function(back)) / (2 * step)
    return gradient.reshape(at.shape)


def assert_is_gradient(gradient, function, at):
    np.testing.assert_allclose(gradient, numeric_gradient(function, at), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("axis, batch", [(0, (3,)), (1, (3,)), (0, (2, 2)), (1, (2, 2))])
@pytest.mark.parametrize("gate", [None, [0.5, 0.0, -2.0]], ids=["plain", "gated"])
def test_reference_products_are_gradients(rng, axis, batch, gate):
    def shape(features):
        return (*batch, features) if axis == 1 else (features, *batch)

    x, w, dy = (
        rng.standard_normal(s)
        for s in (shape(LAYOUT.in_features), LAYOUT.w_shape, shape(LAYOUT.out_features))
    )

    def loss(x, w, gate):
        return np.sum(dy * reference.matmul(x, w, LAYOUT, axis, gate))

    dx = reference.matmul_dx(dy, w, LAYOUT, axis, gate)
    assert_is_gradient(dx, lambda x: loss(x, w, gate), x)
    dw = reference.matmul_dw(x, dy, LAYOUT, axis)
    if gate is None:
        return assert_is_gradient(dw, lambda w: loss(x, w, None), w)
    dw, dgate = reference.gate_gradients(dw, w, gate)
    assert_is_gradient(dw, lambda w: loss(x, w, gate), w)
    return assert_is_gradient(dgate, lambda gate: loss(x, w, gate), np.array(gate))


def test_reference_skips_closed_blocks_whatever_they_hold(rng):
    x, w = rng.standard_normal((2, 16)), rng.standard_normal(LAYOUT.w_shape)
    w[1] = 0
    expected = reference.matmul(x, w, LAYOUT)
    w[1] = np.nan
    assert np.array_equal(reference.matmul(x, w, LAYOUT, gate=[1, 0, 1]), expected)


def test_reference_dw_sums_pairs_and_skips_closed_blocks(rng):
    xs, dys = rng.standard_normal((2, 5, 16)), rng.standard_normal((2, 5, 24))
    whole = reference.matmul_dw(xs, dys, LAYOUT)
    np.testing.assert_allclose(reference.matmul_dw(list(xs), list(dys), LAYOUT), whole, rtol=1e-12)
    gated = reference.matmul_dw(xs, dys, LAYOUT, gate=[0.5, 0, 1])
    assert np.array_equal(gated[[0, 2]], whole[[0, 2]]) and not gated[1].any()


@pytest.mark.parametrize("has_gain", [False, True], ids=["no_gain", "gain"])
@pytest.mark.parametrize("epsilon", [1e-12, 9.0], ids=["long", "some_short"])
def test_reference_l2_normalize_has_the_gradient_it_claims(rng, has_gain, epsilon):
    w, dy = rng.standard_normal((2, *LAYOUT.w_shape))
    gain = rng.standard_normal(LAYOUT.out_features) if has_gain else None
    dw, dgain = reference.l2_normalize_grad(w, dy, LAYOUT, gain, epsilon)

    def loss(w, gain):
        return np.sum(dy * reference.l2_normalize(w, LAYOUT, gain, epsilon))

    lengths = np.sqrt(np.sum(LAYOUT.to_dense(w) ** 2, axis=0))
    assert (lengths > 3).any() and (lengths < 3).sum() > 8
    assert_is_gradient(dw, lambda w: loss(w, gain), w)
    ones = np.ones(LAYOUT.out_features)
    assert_is_gradient(dgain, lambda gain: loss(w, gain), gain if has_gain else ones)
