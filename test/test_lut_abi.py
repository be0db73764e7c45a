"""layout.py and the C++ headers describe the same tables: either side changing alone fails here."""

import pathlib
import re

import numpy as np
import pytest

from blocksparse import SparsityLayout, layout, matmul_ops

KERNELS = pathlib.Path(__file__).parents[1] / "src/kernels"


def source(path):
    """The header without comments."""
    return re.sub(r"//.*", "", (KERNELS / path).read_text())


def constant(path, name):
    [value] = re.findall(rf"\bconstexpr \w+ {name} = (\w+);", source(path))
    return int(value)


def enumerators(name):
    """The enumerators of an enum in lut.h, as {name: value}."""
    [body] = re.findall(rf"enum {name}\b[^{{]*{{(.*?)}};", source("common/lut.h"), re.DOTALL)
    values, value = {}, -1
    for item in filter(None, map(str.strip, body.split(","))):
        key, _, given = map(str.strip, item.partition("="))
        value = int(given) if given else value + 1
        values[key] = value
    return values


def camel_case(name):
    return "".join(word.capitalize() for word in name.split("_"))


def test_plan_header_fields_agree():
    fields = [f"kPlanField{camel_case(name)}" for name in layout.PLAN_HEADER]
    assert enumerators("PlanField") == {
        name: position for position, name in enumerate([*fields, "kPlanHeader"])
    }


def test_sections_agree():
    names = [
        *(f"kSection{camel_case(name)}" for name in layout.SECTIONS),
        "kNumRequiredSections",
        *(f"kSection{camel_case(name)}" for name in layout.GPU_SECTIONS),
        "kNumSections",
    ]
    values = enumerators("Section")
    assert list(values) == names
    number = len(layout.SECTIONS)
    assert list(values.values()) == [*range(number + 1), *range(number, len(names) - 1)]


@pytest.mark.parametrize(
    "path, name, value",
    [
        ("common/lut.h", "kPlanVersion", layout.PLAN_VERSION),
        ("common/lut.h", "kDwTileRows", layout.DW_TILE_ROWS),
        ("common/lut.h", "kPlanParameters", layout.PLAN_PARAMETERS),
        ("matmul.h", "kMaxMatmulPairs", matmul_ops.MAX_PAIRS),
    ],
)
def test_constants_agree(path, name, value):
    assert constant(path, name) == value


def test_an_entry_is_two_int32_the_index_first():
    [body] = re.findall(r"struct LutEntry {(.*?)};", source("common/lut.h"), re.DOTALL)
    assert re.findall(r"(\w+) (\w+);", body) == [("int32_t", "index"), ("int32_t", "block")]
    entries = SparsityLayout([[0, 0, 1]], 8).sections["blocks"]
    assert entries.view(np.int32).tolist() == [0, 2]


def test_section_sizes_are_those_that_the_kernels_expect():
    """The table `expected` of ParseLayout, evaluated for a layout whose sizes all differ."""
    [body] = re.findall(r"expected\[\w+\] = {(.*?)};", source("common/lut.h"), re.DOTALL)
    form = SparsityLayout([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]], 64)
    sizes = [len(section) for section in form.sections.values()]
    names = {"layout": form, "sizes": sizes, "kSectionDwItems": layout.SECTIONS.index("dw_items")}
    terms = filter(None, map(str.strip, body.replace("->", ".").split(",")))
    expected = [eval(term, names) for term in terms]
    assert sizes == expected == [6, 9, 5, 4, 9, 3, 9, 7]
