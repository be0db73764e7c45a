"""Orders a region's units into walks, one for each warp. Only numpy here.

A region is a bipartite graph: vertices are units of features of x and of dy, edges the units of dw.
A walk goes from vertex to vertex along edges, so that a warp loads one vertex for each edge: long
walks read little, pairs of edges give every warp as much to do. All regions are walked at the same
time here, with the neighbours of a vertex as the bits of an integer.
"""

import numpy as np

_ONE = np.uint64(1)

# Steps are dicts of int64 vectors. A step goes from vertex "start" of "side" (0: x) to vertex "end"
# of the other along "edge", which is -1 for a step that only joins two parts of a walk.


def walks(region, ends, num_warps, max_steps):
    """Walks over the edges of each region.

    Args:
      region: int64[edges].
      ends: int64[edges, 2], the vertices of x and dy, each 0 to 63.
      num_warps: walks of a region; one that needs more is repeated under a new number.
      max_steps: of a walk.
    Returns:
      (dict of the steps, sorted by "walk" = region * num_warps + warp; int64[regions] what each
      region is a copy of).
    """
    steps = _trails(region, ends)
    piece = _cut(steps, num_warps, max_steps)
    first = np.flatnonzero(np.diff(piece, prepend=-1))
    walk, rank, is_turned, original = _assign(
        steps["region"][first], steps["side"][first], np.bincount(piece), num_warps, max_steps
    )
    steps = _turn(steps, is_turned[piece])
    steps["walk"] = walk[piece]
    place = np.where(is_turned[piece], -1, 1) * np.arange(len(piece))
    order = np.lexsort((place, rank[piece], steps["walk"]))
    return _join({name: vector[order] for name, vector in steps.items()}, piece[order]), original


def _neighbours(region, ends):
    """uint64[regions, 2, 64]: the neighbours of each vertex, as bits."""
    neighbours = np.zeros((region.max() + 1, 2, 64), np.uint64)
    for side in range(2):
        bits = _ONE << ends[:, 1 - side].astype(np.uint64)
        np.bitwise_or.at(neighbours, (region, side, ends[:, side]), bits)
    return neighbours


def _lowest(bits):
    """The number of the lowest bit."""
    return np.bitwise_count((bits & (~bits + _ONE)) - _ONE).astype(np.int64)


def _trails(region, ends):
    """Steps along every edge once, as trails that go on as long as they can."""
    num_regions = region.max() + 1
    neighbours = _neighbours(region, ends)
    degree = np.bitwise_count(neighbours).astype(np.int8)
    regions = np.arange(num_regions)
    side = np.zeros(num_regions, np.int64)
    vertex = np.zeros(num_regions, np.int64)
    is_new = np.ones(num_regions, bool)
    steps = []
    while len(regions):
        bits = neighbours[regions, side, vertex]
        is_new |= bits == 0
        stuck = regions[is_new]
        if len(stuck):
            # A trail from a vertex of odd degree ends at another.
            left = degree[stuck].reshape(len(stuck), -1)
            first = ((left > 0) * (1 + left % 2)).argmax(axis=1)
            side[is_new], vertex[is_new] = np.divmod(first, 64)
            bits = neighbours[regions, side, vertex]
        is_left = bits != 0
        if not is_left.all():
            regions, side, vertex = regions[is_left], side[is_left], vertex[is_left]
            is_new, bits = is_new[is_left], bits[is_left]
        to = _lowest(bits)
        steps.append(np.stack([regions, is_new, side, vertex, to]))
        neighbours[regions, side, vertex] ^= _ONE << to.astype(np.uint64)
        neighbours[regions, 1 - side, to] ^= _ONE << vertex.astype(np.uint64)
        degree[regions, side, vertex] -= 1
        degree[regions, 1 - side, to] -= 1
        side, vertex = 1 - side, to
        is_new = np.zeros(len(regions), bool)
    steps = np.concatenate(steps, axis=1)
    steps = steps[:, np.argsort(steps[0], kind="stable")]
    steps = dict(zip(("region", "is_new", "side", "start", "end"), steps, strict=True))
    ordered = np.where(
        steps["side"] == 0,
        (steps["region"] * 64 + steps["start"]) * 64 + steps["end"],
        (steps["region"] * 64 + steps["end"]) * 64 + steps["start"],
    )
    keys = (region * 64 + ends[:, 0]) * 64 + ends[:, 1]
    order = np.argsort(keys)
    steps["edge"] = order[np.searchsorted(keys[order], ordered)]
    return steps


def _trail_lengths(steps):
    """(region, length) of each trail."""
    first = np.flatnonzero(steps["is_new"])
    return steps["region"][first], np.diff(np.append(first, len(steps["region"])))


def _trail_lengths(steps):
    """(region, length) of each trail."""
    first = np.flatnonzero(steps["is_new"])
    return steps["region"][first], np.diff(np.append(first, len(steps["region"])))


def _cut(steps, num_warps, max_steps):
    """The piece of each step: trails are cut into pieces of what a warp should have."""
    region, length = _trail_lengths(steps)
    # A warp that gets several pieces needs steps to join them.
    joints = np.maximum(np.bincount(region) - num_warps, 0)
    share = -(-(np.bincount(region, length) + joints) // num_warps)
    share = np.clip(share, 1, max_steps).astype(np.int64)
    # Even pieces, at most a little longer, need no joints where they are no more than warps.
    is_even = np.zeros(len(share), bool)
    for size in (np.minimum(share + 1, max_steps), share):
        fits = np.bincount(region, -(-length // size[region])) <= num_warps
        share = np.where(fits, size, share)
        is_even |= fits
    count = -(-length // share[region])
    trail = np.cumsum(steps["is_new"]) - 1
    place = np.arange(len(trail)) - (np.cumsum(length) - length)[trail]
    even = place * count[trail] // length[trail]
    piece = np.where(is_even[region][trail], even, place // share[region][trail])
    return (np.cumsum(count) - count)[trail] + piece


def _assign(region, side, length, num_warps, max_steps):
    """Pieces to warps: the longest first, each to the warp that then has the least to do.

    What does not fit goes to a copy of the region.

    Returns:
      (int64[pieces] walk, int64[pieces] rank in it, bool[pieces] whether a piece is turned round,
      int64[regions] original of each region).
    """
    num_regions = region.max() + 1
    walk = np.empty(len(region), np.int64)
    place = np.empty(len(region), np.int64)
    is_turned = np.zeros(len(region), bool)
    original = np.arange(num_regions)
    number = np.arange(num_regions)
    left = np.lexsort((-length, region))
    while len(left):
        load = np.zeros((num_regions, num_warps), np.int64)
        end = np.zeros((num_regions, num_warps), np.int64)
        counts = np.bincount(region[left], minlength=num_regions)
        rank = np.arange(len(left)) - (np.cumsum(counts) - counts)[region[left]]
        fits = np.zeros(len(left), bool)
        for turn in range(counts.max()):
            these = np.flatnonzero(rank == turn)
            pieces = left[these]
            r, n, start = region[pieces], length[pieces], side[pieces]
            is_odd = n % 2 == 1
            # A step joins a piece to the side where the last one does not end, or else two steps.
            joint = np.where(is_odd[:, None] | (end[r] != start[:, None]), 1, 2)
            total = load[r] + n[:, None] + joint * (load[r] > 0)
            warp = total.argmin(axis=1)
            total = total[np.arange(len(r)), warp]
            can_turn = is_odd & (load[r, warp] > 0) & (end[r, warp] == start)
            is_turned[pieces] = can_turn
            place[pieces] = turn
            walk[pieces] = number[r] * num_warps + warp
            fits[these] = total <= max_steps
            f = fits[these]
            load[r[f], warp[f]] = total[f]
            end[r[f], warp[f]] = (start ^ can_turn ^ is_odd)[f]
        left = left[~fits]
        copied = np.unique(region[left])
        number[copied] = len(original) + np.arange(len(copied))
        original = np.append(original, copied)
    return walk, place, is_turned, original


def _turn(steps, is_turned):
    """The steps, with those that `is_turned` names taken the other way."""
    turned = dict(steps)
    turned["side"] = steps["side"] ^ is_turned
    turned["start"] = np.where(is_turned, steps["end"], steps["start"])
    turned["end"] = np.where(is_turned, steps["start"], steps["end"])
    return turned


def _join(steps, piece):
    """Adds steps along no edge between the pieces of a walk."""
    walk = steps["walk"]
    next_ = np.flatnonzero(np.append(False, (piece[1:] != piece[:-1]) & (walk[1:] == walk[:-1])))
    last = next_ - 1
    # From an end to a start on the other side, or to that start's neighbour first.
    is_direct = steps["side"][last] == steps["side"][next_]
    again, next_on = last[~is_direct], next_[~is_direct]
    joints = [
        {
            "walk": walk[last],
            "side": 1 - steps["side"][last],
            "start": steps["end"][last],
            "end": np.where(is_direct, steps["start"][next_], steps["end"][next_]),
            "edge": np.full(len(last), -1),
        },
        {
            "walk": walk[again],
            "side": steps["side"][again],
            "start": steps["end"][next_on],
            "end": steps["start"][next_on],
            "edge": np.full(len(again), -1),
        },
    ]
    order = np.argsort(np.concatenate([np.arange(len(walk)), last + 0.25, again + 0.5]))
    return {
        name: np.concatenate([part[name] for part in [steps, *joints]])[order] for name in joints[0]
    }


def pairs(region, ends, num_warps, max_steps):
    """Walks of two edges, as many for each warp: steps as `walks` makes them, two for each.

    Every edge goes to one of its ends, and each vertex but one of a component gets an even number,
    which are paired there. At most one edge of a component stays alone, and has a second step along
    no edge.
    """
    owner = _owners(region, ends)
    num_regions = region.max() + 1
    at = ends[np.arange(len(ends)), owner]
    order = np.lexsort((at, owner, region))
    group = ((region * 2 + owner) * 64 + at)[order]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    length = np.diff(np.append(first, len(group)))
    rank = np.arange(len(group)) - np.repeat(first, length)
    pair = np.cumsum(rank % 2 == 0) - 1
    edges = np.full((pair[-1] + 1, 2), -1)
    edges[pair, rank % 2] = order
    one, two = edges.T
    # Whole pairs first, dealt out to the warps. A copy of the region takes what is too much.
    deal = np.lexsort((two < 0, region[one]))
    counts = np.bincount(region[one], minlength=num_regions)
    turn = np.empty(len(one), np.int64)
    turn[deal] = np.arange(len(one)) - (np.cumsum(counts) - counts)[region[one][deal]]
    warp = turn % num_warps
    copy = turn // num_warps // (max_steps // 2)
    copies = -(-counts // (num_warps * (max_steps // 2))) - 1
    original = np.concatenate([np.arange(num_regions), np.repeat(np.arange(num_regions), copies)])
    number = num_regions + (np.cumsum(copies) - copies)[region[one]] + copy - 1
    walk = np.where(copy == 0, region[one], number) * num_warps + warp
    side = owner[one]  # of the vertex in the middle
    outer = [ends[edge, 1 - side] for edge in (one, np.where(two < 0, one, two))]
    steps = {
        "walk": np.repeat(walk, 2),
        "side": np.stack([1 - side, side], axis=1).ravel(),
        "start": np.stack([outer[0], at[one]], axis=1).ravel(),
        "end": np.stack([at[one], outer[1]], axis=1).ravel(),
        "edge": edges.ravel(),
    }
    order = np.argsort(steps["walk"], kind="stable")
    return {name: vector[order] for name, vector in steps.items()}, original


def _owners(region, ends):
    """The side of the vertex that each edge goes to."""
    neighbours = _neighbours(region, ends)
    num_regions = len(neighbours)
    bit = np.arange(64, dtype=np.uint64)
    found = np.zeros((num_regions, 2), np.uint64)
    waiting = np.zeros((num_regions, 2), np.uint64)
    parent = np.full((num_regions, 2, 64), -1)
    used = np.bitwise_or.reduce(np.where(neighbours > 0, _ONE << bit, np.uint64(0)), axis=2)
    regions = np.arange(num_regions)
    visits = []
    while len(regions):
        # The next vertex of a tree, or the root of another.
        is_root = ~waiting[regions].any(axis=1)
        new = used[regions] & ~found[regions]
        waiting[regions] |= np.where(is_root[:, None], new & (~new + _ONE), np.uint64(0))
        side = (waiting[regions, 0] == 0).astype(np.int64)
        vertex = _lowest(waiting[regions, side])
        mine = _ONE << vertex.astype(np.uint64)
        waiting[regions, side] ^= mine
        found[regions, side] |= mine
        visits.append((regions, side, vertex))
        reached = neighbours[regions, side, vertex] & ~found[regions, 1 - side]
        found[regions, 1 - side] |= reached
        waiting[regions, 1 - side] |= reached
        is_child = (reached[:, None] >> bit & _ONE) > 0
        children = parent[regions, 1 - side]
        parent[regions, 1 - side] = np.where(is_child, vertex[:, None], children)
        regions = regions[(waiting[regions].any(axis=1)) | (used[regions] != found[regions]).any(1)]
    # Edges outside the trees go to x, those of the trees where they make numbers even.
    x, dy = ends.T
    is_up = parent[region, 0, x] == dy  # x's edge to its parent
    is_down = parent[region, 1, dy] == x
    is_odd = np.zeros((num_regions, 2, 64), bool)
    outside = ~(is_up | is_down)
    counts = np.zeros((num_regions, 64), np.int64)
    np.add.at(counts, (region[outside], x[outside]), 1)
    is_odd[:, 0] = counts % 2 == 1
    takes = np.zeros((num_regions, 2, 64), bool)  # whether a vertex has the edge to its parent
    for regions, side, vertex in reversed(visits):
        above = parent[regions, side, vertex]
        is_mine = is_odd[regions, side, vertex] & (above >= 0)
        takes[regions, side, vertex] = is_mine
        gives = (above >= 0) & ~is_mine
        is_odd[regions[gives], 1 - side[gives], above[gives]] ^= True
    owner = np.where(is_up, ~takes[region, 0, x], takes[region, 1, dy] & is_down)
    return owner.astype(np.int64)
