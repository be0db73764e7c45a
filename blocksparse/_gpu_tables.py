"""The sections of a layout's tables that only the fastest GPU kernels read. Only numpy here."""

from blocksparse._column_groups import natural_order
from blocksparse._packed_table import packed_sections
from blocksparse._region_dw_table import region_dw_sections
from blocksparse._wide_float_table import wide_float_sections
from blocksparse._wide_table import wide_sections


def gpu_tables(layout):
    """(lut, plan) of a layout for a GPU, kept by the layout."""
    if "gpu_tables" not in layout.cache:
        sections = quick_sections(layout) if layout.quick_plan else gpu_sections(layout)
        layout.cache["gpu_tables"] = layout.join_sections(sections)
    return layout.cache["gpu_tables"]


def quick_sections(layout):
    """Tables in a tenth of the time: no order of columns is searched; dw has those of any GPU."""
    with natural_order():
        return wide_sections(layout) | packed_sections(layout)


def gpu_sections(layout):
    """The tables of every kernel that can serve the layout.

    Returns:
      dict: a name in `layout.GPU_SECTIONS` -> (int64 vector, integers that the host needs to launch
      the kernel).
    """
    return (
        wide_sections(layout)
        | wide_float_sections(layout)
        | packed_sections(layout)
        | region_dw_sections(layout)
    )
