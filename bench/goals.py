"""What the products should reach on an H200, and what limits them there."""

# Rates that were measured on an H200: cuBLAS's dense products, and reading device memory.
DENSE_FLOPS = {"bfloat16": 790e12, "float16": 790e12, "tf32": 270e12, "fp32": 45e12}
MEMORY_BYTES = 4.3e12
# What others call an arithmetic, where that differs.
NAMES = {"fp32": "float32"}
# What tensor cores allow: half the rate for TensorFloat-32, a third for float32 as three products.
TENSOR_FLOPS = DENSE_FLOPS | {"tf32": 395e12, "fp32": 263e12}

DENSITIES = (0.05, 0.10, 0.25, 0.50)
# Useful TFLOP/s by product and block size at DENSITIES; the density below which dense loses.
# bfloat16, random layouts, 4096 x 4096 features, 8192 samples.
TFLOPS = {
    "fprop": {
        8: ((65, 100, 180, 290), 0.20),
        16: ((145, 205, 310, 410), 0.48),
        32: ((210, 300, 420, 570), 0.78),
        64: ((290, 415, 550, 650), 0.87),
        128: ((310, 470, 630, 710), 0.90),
    },
    "dw": {
        8: ((40, 65, 120, 190), 0.10),
        16: ((125, 210, 300, 350), 0.42),
        32: ((150, 245, 350, 420), 0.50),
        64: ((310, 370, 470, 570), 0.70),
        128: ((310, 430, 645, 700), 0.87),
    },
}
TFLOPS["dx"] = TFLOPS["fprop"]
# Microseconds at 1, 5, 10, 25 and 50 % by (features, samples), bfloat16, blocks of 32.
SMALL_DENSITIES = (0.01, 0.05, 0.10, 0.25, 0.50)
SMALL_US = {(12288, 32): (3, 6, 9.5, 21, 41), (4096, 64): (3, 3.5, 4.5, 6.5, 9)}
# Useful TFLOP/s of fprop at 10 %, blocks of 32.
LAYOUT_TFLOPS = {"banded": 450, "barabasi_albert": 290}
# Useful TFLOP/s of fprop in float32 at 10, 25, 50 %, blocks of 32: TensorFloat-32 and exact.
FLOAT32_TFLOPS = {"tf32": (130, 200, 260), "fp32": (105, 145, 165)}


def of(case):
    """The goal of a case, (value, unit) with unit "tflops" or "us", or None."""
    density = case["target_density"]
    group, product, block = case["group"], case["product"], case["block"]
    if group == "main" and density in DENSITIES:
        return TFLOPS[product][block][0][DENSITIES.index(density)], "tflops"
    if group == "small":
        key = case["shape"][0], case["shape"][2]
        return SMALL_US[key][SMALL_DENSITIES.index(density)], "us"
    if group == "layouts":
        return LAYOUT_TFLOPS[case["layout"]], "tflops"
    if group == "float32" and product == "fprop" and density in DENSITIES[1:]:
        return FLOAT32_TFLOPS[case["arithmetic"]][DENSITIES[1:].index(density)], "tflops"
    return None


def bound_us(arithmetic, flops, num_bytes):
    """No kernel is faster: the tensor cores' time or the memory's, whichever is longer."""
    return max(flops / TENSOR_FLOPS[arithmetic], num_bytes / MEMORY_BYTES) * 1e6
