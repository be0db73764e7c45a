"""Puts the block columns of a result into groups that share inputs and cost the same.

Only numpy here. The order is the tables' own: neither W's storage nor any result depends on it.
"""

import contextlib
import contextvars

import numpy as np

_searches = contextvars.ContextVar("searches", default=True)
# Bounds the search: swaps tried, and words of column masks compared.
MAX_SWAPS = 300
MAX_WORDS = 1 << 24
# Elements of a mask, for which the search takes 0.4 s.
MAX_MASK = 1 << 22
# Multiprocessors of the largest sm_90, each of which computes one group at a time. The number of
# groups is chosen for small minibatches from those that cost a long one no more than this.
SMS = 132
FEW_GROUPS = 14
SMALL_BATCHES = (512, 2048)
LONG_BATCH = 8192
TOLERANCE = 1.1


@contextlib.contextmanager
def natural_order():
    """Inside, columns keep their order: no search, for tables that are wanted at once."""
    token = _searches.set(False)
    try:
        yield
    finally:
        _searches.reset(token)


def column_groups(
    mask, num_columns, row_cost, num_groups=None, power=4, max_words=MAX_WORDS, max_mask=MAX_MASK
):
    """Which columns each group has.

    A group costs row_cost for each input row that some column of it needs, and 1 for each block.
    Columns are gathered greedily, then swapped between groups while that lowers the sum of the
    costs' powers, which wants few rows and even groups alike. The natural order stays where
    that is not better.

    Args:
      mask: bool[rows, columns].
      num_columns: of a group, at most.
      row_cost: relative to a block's.
      num_groups: as many as are needed, unless more are wanted.
      power: of costs; the higher, the more the most expensive group counts.
      max_words: of column masks compared, at most.
      max_mask: elements of the mask; a larger one keeps the natural order.
    Returns:
      int64[groups, num_columns]: columns, -1 where there is none.
    """
    num_groups = num_groups or -(-mask.shape[1] // num_columns)
    bits = _bits(mask, num_groups * num_columns)
    sizes = _count(bits)

    def total(groups):
        rows = _count(np.bitwise_or.reduce(bits[groups], axis=1))
        cost = row_cost * rows + sizes[groups].sum(axis=1)
        return np.sum((cost / cost.mean()) ** power) * cost.mean()

    natural = _spread(np.arange(mask.shape[1]), num_groups, num_columns)
    if mask.size > max_mask or not _searches.get():
        return np.where(natural < mask.shape[1], natural, -1)
    groups = _spread(_gather(bits[: mask.shape[1]], num_groups), num_groups, num_columns)
    _swap(groups, bits, sizes, row_cost, power, max_words)
    if total(natural) <= total(groups):
        groups = natural
    return np.where(groups < mask.shape[1], groups, -1)


def count_groups(mask, least, num_tiles, row_cost, tile_cost):
    """How many groups to make of a mask's columns.

    Large groups share their inputs best, but some numbers leave a part of the device idle: with 38
    groups and 4 tiles of samples 132 multiprocessors take as long as with 66.

    Args:
      mask: bool[rows, columns].
      least: groups, that have room for all columns.
      num_tiles: of (int64[choices] numbers of groups, minibatch), how many tiles the busiest
        multiprocessor computes, each of them a group for some samples.
      row_cost: of an input row that a group needs, relative to a block's.
      tile_cost: of a tile, beside its rows and blocks.
    """
    if least <= FEW_GROUPS:  # the tiles of few groups divide the device well
        return least
    # Not the searched order, whose groups need a sixth fewer rows whatever their number.
    most = max(least, min(2 * least + least // 4, least + SMS, mask.shape[1]))
    choices = np.arange(least, most + 1)
    bits = _bits(mask, mask.shape[1])
    rows = [
        _count(np.bitwise_or.reduceat(bits, _starts(len(bits), n)[:-1], axis=0)).mean()
        for n in choices.tolist()
    ]
    cost = row_cost * np.array(rows) + np.count_nonzero(mask) / choices + tile_cost
    small = np.prod([num_tiles(choices, batch) * cost for batch in SMALL_BATCHES], axis=0)
    long = num_tiles(choices, LONG_BATCH) * cost
    return int(choices[np.argmin(np.where(long <= TOLERANCE * long.min(), small, np.inf))])


def balance_workers(groups, mask, num_workers, visit_cost=3, steps=150):
    """Reorders columns inside each group so that its workers have even shares of rows and blocks.

    Args:
      groups: int64[groups, columns] as of `column_groups`; each worker has the same number of
        neighbouring columns.
      mask: bool[rows, columns].
      visit_cost: of a row that a worker needs, relative to a block's.
    Returns:
      int64[groups, columns].
    """
    if not _searches.get():
        return groups
    per_worker = groups.shape[1] // num_workers
    bits = _bits(mask, mask.shape[1] + 1)  # the last one is empty: column -1
    sizes = _count(bits)

    def power(members):  # [groups, per_worker]
        rows = _count(np.bitwise_or.reduce(bits[members], axis=1))
        return (visit_cost * rows + sizes[members].sum(axis=1)).astype(float) ** 4

    rng = np.random.default_rng(0)
    shares = groups.reshape(len(groups), num_workers, per_worker).copy()
    powers = np.stack([power(shares[:, w]) for w in range(num_workers)], axis=1)
    for _ in range(steps):
        v, w = rng.choice(num_workers, 2, replace=False)
        i, j = rng.integers(per_worker, size=2)
        one, two = shares[:, v].copy(), shares[:, w].copy()
        one[:, i], two[:, j] = shares[:, w, j], shares[:, v, i]
        power_one, power_two = power(one), power(two)
        is_better = power_one + power_two < powers[:, v] + powers[:, w]
        shares[is_better, v], shares[is_better, w] = one[is_better], two[is_better]
        powers[is_better, v], powers[is_better, w] = power_one[is_better], power_two[is_better]
    return shares.reshape(groups.shape)


def _bits(mask, num_columns):
    """uint64[num_columns, words]: a bit for each row; columns behind the mask's are empty."""
    padded = np.zeros((num_columns, -(-mask.shape[0] // 64) * 64), bool)
    padded[: mask.shape[1], : mask.shape[0]] = mask.T
    return np.packbits(padded, axis=1).view(np.uint64)


def _count(bits):
    # sum() of so few elements takes longer than counting them.
    counts = np.bitwise_count(bits).astype(np.int32)
    return np.einsum("...w->...", counts).astype(np.int64)


def _starts(count, parts):
    return count * np.arange(parts + 1) // parts


def _spread(order, num_groups, num_columns):
    """[groups, num_columns]: the columns in order, the empty columns behind spread evenly."""
    starts = _starts(len(order), num_groups)
    groups = np.full((num_groups, num_columns), -1)
    index = np.arange(len(order))
    group = np.searchsorted(starts, index, side="right") - 1
    groups[group, index - starts[group]] = order
    groups[groups < 0] = np.arange(len(order), groups.size)
    return groups


def _gather(bits, num_groups):
    """Columns in an order of which each group is a stretch: the fullest one that is left, then
    always the one that adds the fewest rows.
    """
    starts = set(_starts(len(bits), num_groups).tolist())
    sizes = _count(bits)
    left = np.arange(len(bits))
    order = np.empty(len(bits), np.int64)
    for i in range(len(bits)):
        if i in starts:
            union = np.zeros(bits.shape[1], np.uint64)
            best = np.argmax(sizes[left])
        else:
            added = _count(bits[left] & ~union)
            best = np.argmin(added * (bits.shape[1] * 64 + 1) - sizes[left])
        order[i] = left[best]
        union |= bits[left[best]]
        left = np.delete(left, best)
    return order


def _without_each(bits):
    """[..., n, words]: the union of all n masks but each."""
    n = bits.shape[-2]
    others = np.array([[j for j in range(n) if j != i] for i in range(n)], int).reshape(n, n - 1)
    return np.bitwise_or.reduce(bits[..., others, :], axis=-2)


def _swap(groups, bits, sizes, row_cost, power, max_words):
    """Swaps columns of two groups while that lowers the sum of powers; changes `groups`.

    Each step tries all swaps of the dearest group with columns of the cheapest ones, as many as
    leave words for MAX_SWAPS steps, and makes the best one.
    """
    num_groups, num_columns = groups.shape
    if num_groups == 1 or num_columns == 1:
        return
    others = np.empty_like(bits)  # what a column's group needs without it
    others[groups] = _without_each(bits[groups])
    group_of = np.empty(len(bits), np.int64)
    group_of[groups] = np.arange(num_groups)[:, None]
    blocks = sizes[groups].sum(axis=1)
    rows = _count(np.bitwise_or.reduce(bits[groups], axis=1))
    costs = (row_cost * rows + blocks).astype(float)
    scale = costs.mean()
    group_words = 2 * num_columns**2 * bits.shape[1]  # compared with one other group
    most = min(max(max_words // (100 * group_words), 1), num_groups - 1)
    is_idle = np.zeros(num_groups, bool)
    for _ in range(min(MAX_SWAPS, 1 + max_words // (most * group_words))):
        if is_idle.all():
            return
        a = np.where(is_idle, -np.inf, costs).argmax()
        cheapest = np.argsort(costs, kind="stable")
        columns = groups[cheapest[cheapest != a][:most]].ravel()
        theirs = group_of[columns]
        mine = groups[a]
        more = sizes[columns] - sizes[mine][:, None]  # blocks that group a gains, [mine, column]
        cost_a = row_cost * _count(others[mine][:, None] | bits[columns]) + (blocks[a] + more)
        cost_b = row_cost * _count(others[columns] | bits[mine][:, None]) + (blocks[theirs] - more)
        gain = (
            (costs[a] / scale) ** power
            + (costs[theirs] / scale) ** power
            - (cost_a / scale) ** power
            - (cost_b / scale) ** power
        )
        i, best = np.unravel_index(np.argmax(gain), gain.shape)
        if gain[i, best] <= 1e-9:
            is_idle[a] = True
            continue
        is_idle[:] = False
        column, b = columns[best], theirs[best]
        j = np.flatnonzero(groups[b] == column)[0]
        groups[a, i], groups[b, j] = column, mine[i]
        costs[a], costs[b] = cost_a[i, best], cost_b[i, best]
        blocks[a] += more[i, best]
        blocks[b] -= more[i, best]
        for g in (a, b):
            group_of[groups[g]] = g
            others[groups[g]] = _without_each(bits[groups[g]])
