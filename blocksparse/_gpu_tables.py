"""The sections of a layout's tables that only the fastest GPU kernels read. Only numpy here."""

from blocksparse._packed_table import packed_sections
from blocksparse._region_dw_table import region_dw_sections
from blocksparse._wide_float_table import wide_float_sections
from blocksparse._wide_table import wide_sections


def gpu_tables(layout):
    """(lut, plan) of a layout for a GPU, kept by the layout."""
    if "gpu_tables" not in layout.cache:
        layout.cache["gpu_tables"] = layout.join_sections(gpu_sections(layout))
    return layout.cache["gpu_tables"]


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
