"""Divides the stored blocks of a layout into regions for dw. Only numpy here.

A region's cost is what it reads, a few chunks of x and of dy, and what it multiplies, its units.
The units are divided so that regions cost about the same and read little: a division of the edges
of a bipartite graph whose vertices are the chunks. Where most edges are there, rectangles are best.
Elsewhere regions grow by the vertex that has the most edges to them, which at 10 % density reads
half of what a rectangle with as many blocks would.
"""

import itertools

import numpy as np

MAX_CHUNKS = 28
# Units of a side's chunks: `_region_walks.py` has a bit for each.
MAX_VERTICES = 64
# Units of a region, by their edge: their sums fit a thread block's registers, with room for steps
# that join walks.
MAX_UNITS = {16: 140, 32: 40}
# Clocks of an H200 for each 16 samples: to bring 32 features to shared memory, and from the end of
# a step to the arrival of the next one that it leaves room for, by feature axis. To multiply.
_ARRIVE = 27.0
_LATENCY = (225.0, 450.0)
_MULTIPLY = {16: 5.6, 32: 16.0}
# Steps that fit shared memory: its size in chunks.
_RING = 56
# Thread blocks that run at a time on the largest sm_90; others need more or fewer waves. And splits
# of the batch that are worth their partial sums.
_SMS = 132
_SPLITS = (1, 2, 3, 4, 6, 8)
_TIE = 2.0**-10


def divide(cells, unit, chunk, is_quick=False):
    """The region of each unit.

    Args:
      cells: int64[units, 2], the chunks of x and dy that a unit joins.
      unit: 16 or 32, its edge.
      chunk: 32 or 64, features of a chunk.
      is_quick: two thirds of the time for a large layout, regions that read a tenth more.
    Returns:
      (int64[units], regions numbered from 0 on, the dearest first; clocks of an H200 that a region
      takes for 16 samples, the mean).
    """
    sizes = cells.max(axis=0) + 1
    model = _Model(unit, chunk)
    whole = np.zeros(sizes, np.float32)
    np.add.at(whole, tuple(cells.T), 1)
    density = np.count_nonzero(whole) / whole.size
    best = _rectangles(whole, model) if density > 0.3 else None
    if density < 0.5 or best is None:
        best = min(filter(None, (best, _grown(whole, model, is_quick))), key=lambda found: found[0])
    owner, costs = best[1:]
    rank = np.empty(len(costs), np.int64)
    rank[np.argsort(-costs, kind="stable")] = np.arange(len(costs))
    return rank[owner[tuple(cells.T)]], costs.mean()


class _Model:
    """What regions cost, in clocks for each 16 samples."""

    def __init__(self, unit, chunk):
        self.unit = unit
        self.max_units = MAX_UNITS[unit]
        self.max_chunks = MAX_CHUNKS
        self.max_side = MAX_VERTICES // (chunk // unit)  # chunks of x, and of dy
        self.arrive = _ARRIVE * chunk / 32
        self.latency = _LATENCY[chunk == 64]
        self.multiply = _MULTIPLY[unit]

    def cost(self, num_chunks, num_units):
        arrive = self.arrive * num_chunks
        multiply = self.multiply * num_units
        # With few steps in shared memory, arriving and multiplying wait for each other.
        others = np.minimum(np.maximum(_RING // np.maximum(num_chunks, 1), 2), 8) - 1
        waiting = np.minimum(arrive, multiply) + self.latency / others
        return np.maximum(np.maximum(arrive, multiply), waiting)

    def whole_cost(self, num_chunks, num_units):
        """The cost where warps have pairs of units of 32, and the slowest holds up the rest."""
        if self.unit == 32:
            num_units = (num_units + 16 * ((num_units + 16) // 16) - 1) / 2
        return self.cost(num_chunks, num_units)

    def time(self, num_regions, cost, num_units):
        """Of regions that cost the same, in the best number of splits."""
        return min(
            -(-num_regions * splits // _SMS) / splits * cost + self.sums(splits, num_units)
            for splits in _SPLITS
        )

    def makespan(self, costs, num_units):
        waves = -np.sort(-costs)[::_SMS].sum() / -(-len(costs) // _SMS)
        return self.time(len(costs), waves, num_units)

    def sums(self, splits, num_units):
        """To write and read partial sums: as clocks for each 16 of 8192 samples."""
        return (splits > 1) * (6 + 1e-5 * splits * num_units * self.unit**2)


def _rectangles(weights, model):
    """(makespan, owner, costs) of the best grid; None where none fits.

    Bands of rows are whole; the columns of each are dealt out so that regions have about as many
    units.
    """
    n, m = weights.shape
    num_units = weights.sum()
    bands, parts = np.ogrid[1 : n + 1, 1 : m + 1]
    rows, columns = -(-n // bands), -(-m // parts)
    chunks = rows + columns
    regions = bands * parts
    units = num_units / regions
    cost = model.cost(chunks, 1.03 * units)
    splits = np.array(_SPLITS)[:, None, None]
    time = (-(-regions * splits // _SMS) / splits * cost + 12.0 * (splits > 1)).min(axis=0)
    is_wide = (chunks > MAX_CHUNKS) | (np.maximum(rows, columns) > model.max_side)
    time[is_wide | (1.03 * units > model.max_units)] = np.inf
    best = None
    for place in np.argsort(time, axis=None)[:16]:
        if not np.isfinite(time.flat[place]):
            break
        num_bands, num_parts = (int(i) + 1 for i in np.unravel_index(place, time.shape))
        band = np.arange(n) * num_bands // n
        counts = np.add.reduceat(weights, np.flatnonzero(np.diff(band, prepend=-1)), axis=0)
        # The fullest columns first, there and back.
        turn, part = np.divmod(np.arange(m), num_parts)
        part = np.where(turn % 2 == 0, part, num_parts - 1 - part)
        columns = np.empty((num_bands, m), np.int64)
        np.put_along_axis(columns, np.argsort(-counts, axis=1, kind="stable"), part[None], axis=1)
        owner = (np.arange(num_bands)[:, None] * num_parts + columns)[band]
        units = np.bincount(owner.ravel(), weights.ravel())
        if units.max() > model.max_units:
            continue
        kept = np.flatnonzero(units)
        number = np.zeros(len(units), np.int64)
        number[kept] = np.arange(len(kept))
        costs = model.whole_cost(-(-n // num_bands) - (-m // num_parts), units[kept])
        makespan = model.makespan(costs, num_units)
        if best is None or makespan < best[0]:
            best = makespan, number[owner], costs
    return best


def _grown(weights, model, is_quick):
    """(makespan, owner, costs) of grown regions, for the best of a few limits of their cost."""
    num_units = weights.sum()
    attempts = 4 if num_units < 2000 else 3 if num_units < 2e4 else 1
    tiles, restore = cut(weights, 32 if is_quick else _tile(weights, attempts))
    goal, limit = _goal(weights, model)
    best = None
    for _ in range(attempts):
        owner, costs = grow(tiles, limit, model)
        # One region more than fits whole waves would take another.
        found = len(costs) > goal, model.makespan(costs, num_units)
        if best is None or found < best[0]:
            best = found, owner, costs
        if 0.98 * goal <= len(costs) <= goal:
            break
        limit *= (len(costs) / goal) ** 0.8 * (1.01 if len(costs) > goal else 1)
    return best[0][1], restore(best[1]), best[2]


def _tile(weights, attempts):
    """The size of the tiles that regions are grown in: as large as a quarter of a second allows."""
    size = max(weights.shape)
    largest = np.clip(6e6 / (attempts * np.count_nonzero(weights)), 64, 220)
    return -(-size // int(-(-size // largest)))


def cut(weights, size):
    """(tiles of size x size, function that puts tiles together again)."""
    counts = [-(-n // size) for n in weights.shape]
    padded = np.zeros([count * size for count in counts], weights.dtype)
    padded[: weights.shape[0], : weights.shape[1]] = weights
    tiles = padded.reshape(counts[0], size, counts[1], size).transpose(0, 2, 1, 3)

    def restore(tiles):
        grid = tiles.reshape(*counts, size, size).transpose(0, 2, 1, 3)
        return grid.reshape(padded.shape)[: weights.shape[0], : weights.shape[1]]

    return tiles.reshape(-1, size, size), restore


def _goal(weights, model):
    """(number of regions to aim at, what one would cost)."""
    num_units = weights.sum()
    num_cells = np.count_nonzero(weights)
    density = num_cells / weights.size
    best = None
    for count in itertools.count(1):
        waves = -(-count // len(_SPLITS))
        goal = _SMS * waves // _SPLITS[-1 - count % len(_SPLITS)]
        if goal < 1:
            continue
        units = num_units / goal
        cells = num_cells / goal
        # Fitted to random layouts.
        chunks = min(cells + 1, 2.3 * cells**0.5 / density ** (1 / 6), 2 * (cells / density) ** 0.5)
        if units > 0.85 * model.max_units or chunks > 0.95 * MAX_CHUNKS:
            continue
        cost = model.cost(chunks, units)
        time = model.time(goal, cost, num_units)
        if best is None or time < best[0]:
            best = time, goal, cost
        elif waves > 1 + 2 * -(-best[1] // _SMS):
            return best[1:]
    return None


def grow(weights, limit, model):
    """Regions of the cells of each tile, all tiles at once.

    Args:
      weights: float32[tiles, n, n], the units of each cell.
      limit: what a region may cost.
      model: its `max_units`, `max_chunks`, `max_side`, `cost` and `whole_cost` of both.
    Returns:
      (int64[tiles, n, n] region of each cell that has units, float64[regions] costs).
    """
    num_tiles, n, _ = weights.shape
    # What no region has yet, from both sides: [tile, vertex of either side, vertex of the other].
    left = np.concatenate([weights, weights.transpose(0, 2, 1)], axis=1)
    owner = np.zeros(weights.shape, np.int64)
    degree = (left > 0).sum(axis=2).astype(np.float32)
    # A vertex's edges to the region; the fewer elsewhere the better. -inf for its members.
    score = np.where(degree > 0, -_TIE * degree, -np.inf).astype(np.float32)
    chosen = np.zeros((num_tiles, 2 * n), bool)
    num_chunks = np.zeros((num_tiles, 2), np.int64)  # of x and dy
    num_units = np.zeros(num_tiles)
    costs = []
    tiles = np.flatnonzero(degree.any(axis=1))
    while len(tiles):
        vertex = score[tiles].argmax(axis=1)
        top = score[tiles, vertex]
        gain = np.rint((top + _TIE * degree[tiles, vertex]) / (1 + _TIE))
        units = num_units[tiles] + gain
        is_full = (
            (model.cost(num_chunks[tiles].sum(axis=1) + 1, units) > limit)
            | (units > model.max_units)
            | (num_chunks[tiles].sum(axis=1) == model.max_chunks)
            | (num_chunks[tiles, vertex // n] == model.max_side)
            | ~np.isfinite(top)
        ) & (num_units[tiles] > 0)
        grows = ~is_full
        tile, added = tiles[grows], vertex[grows]
        num_chunks[tile, added // n] += 1
        num_units[tile] += gain[grows]
        chosen[tile, added] = True
        others = score.reshape(num_tiles, 2, n)[tile, 1 - added // n]
        others += (1 + _TIE) * left[tile, added]
        score.reshape(num_tiles, 2, n)[tile, 1 - added // n] = others
        score[tile, added] = -np.inf
        if not is_full.any():
            continue
        full = tiles[is_full]
        x, is_x = _members(chosen[full, :n])
        dy, is_dy = _members(chosen[full, n:])
        taken = left[full[:, None, None], x[:, :, None], dy[:, None]]
        number, i, j = np.nonzero(taken * is_x[:, :, None] * is_dy[:, None])
        t, i, j = full[number], x[number, i], dy[number, j]
        owner[t, i, j] = len(costs) + number
        costs.extend(model.whole_cost(num_chunks[full].sum(axis=1), num_units[full]))
        left[t, i, j] = 0
        left[t, n + j, i] = 0
        np.subtract.at(degree, (t, i), 1)
        np.subtract.at(degree, (t, n + j), 1)
        score[full] = np.where(degree[full] > 0, -_TIE * degree[full], -np.inf)
        chosen[full] = False
        num_chunks[full] = num_units[full] = 0
        tiles = tiles[degree[tiles].any(axis=1)]
    return owner, np.array(costs)


def _members(chosen):
    """(int64[tiles, most] the vertices chosen in each tile, which of these there are)."""
    tile, vertex = np.nonzero(chosen)
    counts = np.bincount(tile, minlength=len(chosen))
    vertices = np.zeros((len(chosen), counts.max()), np.int64)
    vertices[tile, np.arange(len(tile)) - (np.cumsum(counts) - counts)[tile]] = vertex
    return vertices, np.arange(counts.max()) < counts[:, None]
