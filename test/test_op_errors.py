"""The ops called past the Python checks: exceptions that say what is wrong, never a crash."""

import numpy as np
import pytest
import tensorflow as tf

from blocksparse import SparsityLayout
from blocksparse._ops import ops
from blocksparse.layout import PLAN_HEADER, SECTIONS

LAYOUT = SparsityLayout([[1, 0, 1], [1, 1, 0]], 8)  # 16 to 24 features, 4 blocks
TABLES = {"lut": LAYOUT.lut, "plan": LAYOUT.plan}
SIZES = {"block_size": 8, "in_blocks": 2, "out_blocks": 3}
FORM = {**TABLES, **SIZES}
MATMUL_FORM = {**FORM, "gate": [], "feature_axis": 1, "dw_dtype": "float32"}
X, DY, W = np.ones((5, 16), "f"), np.ones((5, 24), "f"), np.ones((4, 8, 8), "f")
GATE, GAIN = np.ones(4, "f"), np.ones(24, "f")

# Right arguments of each op; a case replaces some.
ARGUMENTS = {
    "matmul": {"x": X, "w": W, **MATMUL_FORM},
    "matmul_dx": {"dy": DY, "w": W, **MATMUL_FORM},
    "matmul_dw": {"x": [X], "dy": [DY], **MATMUL_FORM},
    "matmul_dg": {"dw": W, "w": W, "gate": GATE},
    "l2_normalize": {"x": W, "gain": [], "epsilon": 1e-12, "TY": "float32", **FORM},
    "l2_normalize_grad": {"dy": W, "x": W, "gain": [], "sum_sqr": GAIN, "epsilon": 1e-12, **FORM},
}
WITH_LAYOUT = [name for name in ARGUMENTS if name != "matmul_dg"]
PRODUCTS = ["matmul", "matmul_dx", "matmul_dw"]


def call(name, **changes):
    return getattr(ops, f"blocksparse_{name}")(**{**ARGUMENTS[name], **changes})


def eager(name, **changes):
    call(name, **changes)


def in_graph(name, **changes):
    """With placeholders of unknown shape, so that only the kernel can see what is wrong."""
    tf1 = tf.compat.v1
    values = {}

    def placeholder(value):
        if isinstance(value, list):
            return [placeholder(item) for item in value]
        if not isinstance(value, np.ndarray):
            return value
        tensor = tf1.placeholder(value.dtype)
        values[tensor] = value
        return tensor

    with tf.Graph().as_default(), tf1.Session() as session:
        arguments = {**ARGUMENTS[name], **changes}
        outputs = call(name, **{key: placeholder(value) for key, value in arguments.items()})
        session.run(outputs, values)


@pytest.fixture(params=[eager, in_graph], ids=lambda mode: mode.__name__)
def mode(request):
    return request.param


def assert_refused(mode, name, message, **changes):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        mode(name, **changes)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_right_arguments_pass(device, mode, name):
    mode(name)


# ---- tables --------------------------------------------------------------------------------------


def plan_with(**fields):
    plan = LAYOUT.plan.copy()
    for field, value in fields.items():
        plan[PLAN_HEADER.index(field)] = value
    return plan


def plan_with_section(name, position, value):
    """position: 0 the section's number, 1 its offset, 2 its size."""
    plan = LAYOUT.plan.copy()
    plan[len(PLAN_HEADER) + 6 * SECTIONS.index(name) + position] = value
    return plan


LUT_SIZE = len(LAYOUT.lut)
DAMAGED = {
    "short_lut": ({"lut": LAYOUT.lut[:-1]}, f"lut must have the {LUT_SIZE} .* {LUT_SIZE - 1}"),
    "long_lut": ({"lut": np.append(LAYOUT.lut, 0)}, f"lut must have the {LUT_SIZE} elements"),
    "empty_lut": ({"lut": LAYOUT.lut[:0]}, "lut must have .* Received: 0"),
    "other_version": (
        {"plan": plan_with(version=7)},
        r"this version \(2\)\. Received: 55 elements, version 7",
    ),
    "empty_plan": ({"plan": LAYOUT.plan[:0]}, "made by SparsityLayout .* Received: 0 elements"),
    "part_of_a_header": ({"plan": LAYOUT.plan[:3]}, "Received: 3 elements, version 2"),
    "header_only": ({"plan": LAYOUT.plan[:7]}, r"plan must have 7 \+ 6 .* Received: 7 for 8"),
    "truncated_plan": ({"plan": LAYOUT.plan[:-1]}, r"plan must have 7 \+ 6 .* Received: 54 for 8"),
    "long_plan": ({"plan": np.append(LAYOUT.plan, np.int32(0))}, "Received: 56 for 8 sections"),
    "negative_sections": ({"plan": plan_with(num_sections=-1)}, "Received: 55 for -1 sections"),
    "fewer_sections": (
        {"plan": plan_with(num_sections=7)[:-6]},
        "section 7 of the lut must have .* Received: 0",
    ),
    "negative_offset": (
        {"plan": plan_with_section("dx_ptr", 1, -1)},
        "section 3 must lie inside the lut",
    ),
    "negative_size": (
        {"plan": plan_with_section("dw_items", 2, -1)},
        "section 7 must lie inside the lut",
    ),
    "section_beyond_the_lut": (
        {"plan": plan_with_section("dw_items", 1, LUT_SIZE)},
        "section 7 must lie inside the lut",
    ),
    "huge_section": (
        {"plan": plan_with_section("blocks", 2, 2**31 - 1)},
        "section 6 must lie inside the lut",
    ),
    "small_section": (
        {"plan": plan_with_section("fprop_ptr", 2, 3)},
        "section 0 .* must have 4 .* Received: 3",
    ),
    "missing_section": (
        {"plan": plan_with_section("dx_entries", 0, 99)},
        "section 4 .* have 4 .* Received: 0",
    ),
    "more_blocks": ({"plan": plan_with(num_blocks=5)}, "section 1 .* must have 5 .* Received: 4"),
    "no_blocks": ({"plan": plan_with(num_blocks=0)}, "at least one block in each direction"),
    "negative_grid": ({"plan": plan_with(in_blocks=-2)}, "at least one block in each direction"),
    "other_block_size": (
        {"block_size": 16},
        "layout must have 2 x 3 blocks of 16. Received: 2 x 3 blocks of 8",
    ),
    "other_in_blocks": ({"in_blocks": 4}, "layout must have 4 x 3 blocks of 8. Received: 2 x 3"),
    "other_out_blocks": ({"out_blocks": 1}, "layout must have 2 x 1 blocks of 8. Received: 2 x 3"),
    "unsupported_block_size": (
        {"block_size": 12},
        "block_size 12 .*is not supported. Supported: 8, 16, 32, 64, 128",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_damaged_tables_are_refused(device, mode, name, damage):
    changes, message = DAMAGED[damage]
    assert_refused(mode, name, message, **changes)


@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_unknown_sections_are_skipped(device, name):
    """A later layout.py may add tables for kernels that this library does not have."""
    plan = np.append(plan_with(num_sections=9), np.int32([99, 0, LUT_SIZE, 0, 0, 0]))
    for result, expected in zip(as_list(call(name, plan=plan)), as_list(call(name)), strict=True):
        assert np.array_equal(result, expected)


def as_list(outputs):
    return [tf.convert_to_tensor(t) for t in tf.nest.flatten(outputs)]


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("name", WITH_LAYOUT)
def test_nonsense_in_a_table_is_no_crash(device, rng, name, section):
    """Such a table gives wrong numbers; that they come at all is what is asserted."""
    number = SECTIONS.index(section)
    first, size = LAYOUT.plan[len(PLAN_HEADER) :].reshape(-1, 3)[number, 1:]
    for limit in (3, 10, 2**31):
        lut = LAYOUT.lut.copy()
        nonsense = rng.integers(-limit, limit, 2 * size, np.int32).view(np.int64)
        lut[first : first + size] = nonsense
        for output, expected in zip(as_list(call(name, lut=lut)), as_list(call(name)), strict=True):
            assert output.numpy().shape == expected.shape


# ---- other inputs and attributes -----------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_LAYOUT)
@pytest.mark.parametrize("attr", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**40])
def test_sizes_out_of_range_are_refused(mode, name, attr, value):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=rf"{attr}|{value}"):
        mode(name, **{attr: value})


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"feature_axis": 2}, "feature_axis 2 is not supported. Supported: .* feature_axis 0, 1"),
        ({"feature_axis": -1}, "feature_axis -1 is not supported"),
        ({"gate": [GATE, GATE]}, "at most one gate is supported. Received: 2"),
        ({"gate": [GATE[:3]]}, r"gate must have shape \[4\]. Received: gate.shape=\[3\]"),
    ],
)
def test_wrong_gates_and_axes_are_refused(device, mode, name, changes, message):
    assert_refused(mode, name, message, **changes)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("matmul_dw", {"x": [X] * 129, "dy": [DY] * 129}, "at most 128 pairs. Received: 129"),
        (
            "matmul_dw",
            {"dw_dtype": "float16"},
            "dw_dtype must be float32 or .* of x. Received: half",
        ),
        ("matmul_dw", {"x": [X[:4]]}, r"same minibatch.* x.shape=\[4, 16\], dy.shape=\[5, 24\]"),
        (
            "matmul_dg",
            {"gate": GATE[:3]},
            r"gate must have shape \[4\]. Received: gate.shape=\[3\]",
        ),
        ("matmul_dg", {"gate": GATE[0]}, r"gate must have shape \[4\]. Received: gate.shape=\[\]"),
        ("matmul_dg", {"w": W[:, 0], "dw": W[:, 0]}, r"w must have shape \[num_blocks, B, B\]"),
        (
            "matmul_dg",
            {"w": W[:, :, :4], "dw": W[:, :, :4]},
            r"w must have shape \[num_blocks, B, B\]",
        ),
        ("matmul_dg", {"dw": W[:3]}, r"(dw|w) must have shape \[[34], 8, 8\]"),
        ("l2_normalize", {"gain": [GAIN, GAIN]}, "at most one gain is supported. Received: 2"),
        ("l2_normalize", {"gain": [GAIN[:8]]}, r"gain must have shape \[24\]"),
        (
            "l2_normalize",
            {"x": W[:3]},
            r"x must have shape \[4, 8, 8\]. Received: x.shape=\[3, 8, 8\]",
        ),
        ("l2_normalize_grad", {"dy": W[:3]}, r"dy must have shape \[4, 8, 8\]"),
        ("l2_normalize_grad", {"sum_sqr": GAIN[:8]}, r"sum_sqr must have shape \[24\]"),
        ("l2_normalize_grad", {"gain": [GAIN[:8]]}, r"gain must have shape \[24\]"),
    ],
)
def test_wrong_inputs_are_refused(device, mode, name, changes, message):
    assert_refused(mode, name, message, **changes)
