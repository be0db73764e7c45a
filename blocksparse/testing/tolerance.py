"""Error bounds derived from dtypes and the number of products in a sum; numpy only.

Two checks complement each other. `random_integers` makes inputs whose sums are exact in every
dtype, so that results must be equal: indexing, layout, tail and synchronisation errors show.
`product_bound` bounds the rounding of real inputs: wrong accumulators, casts and double rounding
show.
"""

import numpy as np

# Unit roundoff: half the distance from 1 to the next number.
UNIT_ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Integers up to this magnitude are exact.
EXACT_INTEGERS = {"float32": 2**24, "float16": 2**11, "bfloat16": 2**8}


def product_bound(reference, magnitude, num_products, out_dtype, rounded_inputs=None):
    """Elementwise bound on |result - reference| of a sum of products.

    |y - ref| <= u_out |ref| + 4 sqrt(k) u_32 (|x| |W|), plus 2 u_in (|x| |W|) if the inputs are
    rounded inside: sums are in float32 and their rounding errors add up like a random walk; the
    result is rounded once.

    Args:
      reference: float64 result.
      magnitude: the same product of absolute values, |x| |W|.
      num_products: k, products in one element; a number or an array like reference.
      out_dtype: name of the result's dtype.
      rounded_inputs: name of the format that inputs are rounded to inside ("tf32", or the storage
        dtype where gates scale the weights), or None.
    Returns:
      float64 array like reference.
    """
    bound = UNIT_ROUNDOFF[out_dtype] * np.abs(reference)
    bound = bound + 4 * np.sqrt(num_products) * UNIT_ROUNDOFF["float32"] * magnitude
    if rounded_inputs is not None:
        bound += 2 * UNIT_ROUNDOFF[rounded_inputs] * magnitude
    # Below the smallest normal number of float16 the spacing is constant.
    smallest = 2.0**-25 if out_dtype == "float16" else 0.0
    return bound + smallest


def check_product(result, reference, magnitude, num_products, out_dtype, rounded_inputs=None):
    """Asserts that `result` is within `product_bound`; the message names the worst element."""
    result = np.asarray(result, np.float64)
    if result.shape != reference.shape:
        raise AssertionError(f"shape {result.shape} instead of {reference.shape}")
    bound = product_bound(reference, magnitude, num_products, out_dtype, rounded_inputs)
    error = np.abs(result - reference)
    failed = ~(error <= bound)  # also where the result is NaN
    if failed.any():
        excess = np.where(failed, np.nan_to_num(error / np.maximum(bound, 1e-300), nan=np.inf), 0)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(
            f"{failed.sum()} of {failed.size} elements are outside the bound; worst at {worst}: "
            f"{result[worst]} instead of {reference[worst]}, bound {bound[worst]:.3g}"
        )


def check_equal(result, reference):
    """Asserts that integers came out exactly; the message names the first difference."""
    result = np.asarray(result, np.float64)
    if result.shape != reference.shape:
        raise AssertionError(f"shape {result.shape} instead of {reference.shape}")
    differs = ~(result == reference)
    if differs.any():
        first = tuple(np.argwhere(differs)[0].tolist())
        raise AssertionError(
            f"{differs.sum()} of {differs.size} elements differ; first at {first}: "
            f"{result[first]} instead of {reference[first]}"
        )


def random_integers(rng, shape, num_products, dtype):
    """Random nonzero integers whose sums of `num_products` products are exact in `dtype`, as
    float32.

    A dropped or doubled product changes such a sum by at least 1. The values are -2, -1, 1, 2 where
    every sum fits the integers that the dtype holds exactly, else -1 and 1, as long as a sum of
    random signs is 7 standard deviations away from where they end.

    Raises:
      ValueError: the sums would be too large.
    """
    limit = EXACT_INTEGERS[dtype]
    if 4 * num_products <= limit:
        values = [-2, -1, 1, 2]
    elif 7 * np.sqrt(num_products) <= limit:
        values = [-1, 1]
    else:
        raise ValueError(f"sums of {num_products} products are not exact in {dtype}")
    return rng.choice(values, size=shape).astype(np.float32)
