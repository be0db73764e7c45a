"""The tables of dw by regions, for either feature axis. Only numpy here.

The form is described in `src/kernels/matmul_region_dw.h`.
"""

import numpy as np

from blocksparse._region_division import divide
from blocksparse._region_large_table import large_dw_sections
from blocksparse._region_walks import pairs, walks

# Features of a chunk, by feature axis: rows of 128 bytes are what copies are fast for.
CHUNKS = (32, 64)
CHUNK_WORDS = 32
# Warps that multiply, units of each, and units of a walk, by a unit's edge.
WARPS = {16: 12, 32: 8}
SLOTS = {16: 14, 32: 6}
RUNS = {16: 14, 32: 2}


def region_dw_sections(layout, is_quick=False, axes=(0, 1)):
    """The tables of dw by regions.

    Args:
      layout: SparsityLayout.
      is_quick: for a layout that changes often; regions read a little more.
      axes: the feature axes that are wanted, for blocks up to 32.
    Returns:
      {"dw_regions_<axis>": (int64 vector, (regions, unit | clocks << 8, entries))}, or
      `large_dw_sections`.
    """
    if layout.block_size > 32:
        return large_dw_sections(layout, is_quick)
    unit, units, blocks = _units(layout)
    return {
        f"dw_regions_{axis}": _section(unit, units, blocks, CHUNKS[axis], is_quick) for axis in axes
    }


def _units(layout):
    """(edge, int64[units, 2] their coordinates, int32[units, (edge / B)^2] their blocks)."""
    block_size = layout.block_size
    coordinates = layout.coordinates.astype(np.int64)
    for unit in (16, 32):
        per_edge = unit // block_size
        if per_edge == 0:
            continue
        grid = -(-np.array(layout.mask.shape) // per_edge)
        coarse = coordinates // per_edge
        keys, index = np.unique(coarse[:, 0] * grid[1] + coarse[:, 1], return_inverse=True)
        # Where most units are there, larger ones read less.
        if unit == 32 or block_size == 16 or len(keys) < 0.6 * grid.prod():
            break
    blocks = np.full((len(keys), per_edge**2), -1, np.int32)
    inside = coordinates % per_edge
    blocks[index, inside[:, 0] * per_edge + inside[:, 1]] = np.arange(len(coordinates))
    return unit, np.stack([keys // grid[1], keys % grid[1]], axis=1), blocks


def _section(unit, units, blocks, chunk, is_quick):
    per_chunk = chunk // unit
    cells = units // per_chunk
    region, clocks = divide(cells, unit, chunk, is_quick)
    chunks, ends = _chunks(region, cells)
    ends = ends * per_chunk + units % per_chunk
    order = pairs if RUNS[unit] == 2 else walks
    steps, original = order(region, ends, WARPS[unit], SLOTS[unit])
    chunks = chunks[original]

    # Vertices of dy come after those of x.
    walk, side = steps["walk"], steps["side"]
    offset = chunks[walk // WARPS[unit], 0] * per_chunk
    start = steps["start"] + np.where(side == 1, offset, 0)
    end = steps["end"] + np.where(side == 0, offset, 0)
    counts = np.bincount(walk, minlength=len(chunks) * WARPS[unit])
    ordinal = np.arange(len(walk)) - (np.cumsum(counts) - counts)[walk]
    # A warp's entries: where a walk starts, then its steps, and so on.
    is_start = ordinal % RUNS[unit] == 0
    place = np.arange(len(walk)) + np.cumsum(is_start)
    first = np.append(0, np.cumsum(counts + -(-counts // RUNS[unit])))
    entries = np.full((first[-1], (blocks.shape[1] + 2) // 2 * 2), -1, np.int32)
    entries[place[is_start] - 1, 0] = start[is_start]
    entries[place, 0] = end
    entries[place, 1 : 1 + blocks.shape[1]] = np.where(
        steps["edge"][:, None] < 0, -1, blocks[steps["edge"]]
    )
    section = np.concatenate([first, chunks.ravel().view(np.int64), entries.ravel().view(np.int64)])
    return section, (len(chunks), unit | int(clocks) << 8, len(entries))


def _chunks(region, cells):
    """(int32[regions, CHUNK_WORDS], int64[units, 2] where in its region's list a chunk is)."""
    num_regions = region.max() + 1
    chunks = np.zeros((num_regions, CHUNK_WORDS), np.int32)
    slots = np.empty(cells.shape, np.int64)
    for side in range(2):
        size = cells[:, side].max() + 1
        keys, index = np.unique(region * size + cells[:, side], return_inverse=True)
        owner, chunk = np.divmod(keys, size)
        counts = np.bincount(owner, minlength=num_regions)
        slot = np.arange(len(keys)) - (np.cumsum(counts) - counts)[owner]
        chunks[:, side] = counts
        first = 2 + (chunks[owner, 0] if side == 1 else 0)
        chunks[owner, first + slot] = chunk
        slots[:, side] = slot[index]
    return chunks, slots
