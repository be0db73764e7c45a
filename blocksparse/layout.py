"""The plan of a block-sparse matrix: its blocks, their storage order, and the kernels' tables.

Only numpy here. A `SparsityLayout` never changes; two with the same content are equal. The form of
the tables is described field for field in `src/kernels/common/lut.h`, which a test compares with
this file.
"""

import functools

import numpy as np

BLOCK_SIZES = (8, 16, 32, 64, 128)

PLAN_VERSION = 2
PLAN_HEADER = (
    "version",
    "block_size",
    "in_blocks",
    "out_blocks",
    "num_blocks",
    "lut_size",
    "num_sections",
)
# After the header, for each section: number, offset, size, and what the host must know of it.
PLAN_PARAMETERS = 3
# Sections of the lookup table, in the order of their numbers.
SECTIONS = (
    "fprop_ptr",  # int64[out_blocks + 1]: first entry of each output block column
    "fprop_entries",  # {input block, block}[num_blocks], sorted by (output block, input block)
    "fprop_order",  # int64[out_blocks]: output block columns, the longest first
    "dx_ptr",  # the same three with input and output exchanged
    "dx_entries",
    "dx_order",
    "blocks",  # {input block, output block}[num_blocks]: coordinates in storage order
    "dw_items",  # {first fprop entry, count}: runs within one column, DW_TILE_ROWS rows at most
)
# Sections that only some GPU kernels read; a layout without one gets another kernel.
# `_gpu_tables.py` makes them.
GPU_SECTIONS = (
    "wide_fprop",
    "wide_dx",
    "packed_fprop",
    "packed_dx",
    "dw_regions_0",
    "dw_regions_1",
    "wide_float_fprop",
    "wide_float_dx",
)
DW_TILE_ROWS = 128


class SparsityLayout:
    """Which B x B blocks of a [C, K] matrix are stored, and in what order.

    Rows of the mask are blocks of input features, columns blocks of output features.

    Args:
      mask: bool, integer or float [in_blocks, out_blocks]; nonzero where a block is stored.
      block_size: B, one of 8, 16, 32, 64, 128.
      z_order: True numbers the blocks along the Morton curve of (input block, output block), input
        in the even bits, as weights made with OpenAI's blocksparse are by default. False numbers
        them by (output block, input block).
      quick_plan: for a layout that will soon change: a GPU's tables are made in a tenth of the
        time, and products are up to twice as slow. Results are the same; so are equal layouts.
    Attributes:
      mask: bool[in_blocks, out_blocks], read-only.
      coordinates: int32[num_blocks, 2], read-only; (input block, output block) in storage order.
      plan, lut: int32 and int64 vectors, read-only; what the kernels read.
      in_blocks, out_blocks, num_blocks, in_features, out_features, block_size, z_order: sizes.
      density: stored blocks over all blocks.
    Raises:
      TypeError: mask is not numeric, or block_size not an integer.
      ValueError: mask has other than two dimensions, no nonzero element or a NaN; block_size is not
        supported.
    Source: block order after openai/blocksparse `matmul.py`; the rest is ours.
    Example:
      >>> layout = SparsityLayout([[1, 0], [1, 1]], block_size=8)
      >>> layout.coordinates.tolist()
      [[0, 0], [1, 0], [1, 1]]
    """

    def __init__(self, mask, block_size=32, z_order=True, quick_plan=False):
        self.block_size = _check_block_size(block_size)
        self.mask = _check_mask(mask)
        self.z_order = bool(z_order)
        self.quick_plan = bool(quick_plan)
        self.in_blocks, self.out_blocks = self.mask.shape
        self.num_blocks = int(np.count_nonzero(self.mask))
        self.in_features = self.in_blocks * self.block_size
        self.out_features = self.out_blocks * self.block_size
        # What the users of a layout derive from it and want to keep, such as copies on a device.
        self.cache = {}

    @property
    def density(self):
        return self.num_blocks / self.mask.size

    @property
    def w_shape(self):
        """Shape of the stored weights."""
        return (self.num_blocks, self.block_size, self.block_size)

    @functools.cached_property
    def coordinates(self):
        in_idx, out_idx = np.nonzero(self.mask)
        rank = (
            np.argsort(_morton(in_idx, out_idx)) if self.z_order else np.lexsort((in_idx, out_idx))
        )
        coordinates = np.stack([in_idx, out_idx], axis=1)[rank].astype(np.int32)
        return _read_only(coordinates)

    @functools.cached_property
    def sections(self):
        """The tables by name: a dict of int64 vectors."""
        in_idx, out_idx = self.coordinates.astype(np.int64).T
        sections = {}
        for direction, this, other, count in (
            ("fprop", out_idx, in_idx, self.out_blocks),
            ("dx", in_idx, out_idx, self.in_blocks),
        ):
            order = np.lexsort((other, this))
            lengths = np.bincount(this, minlength=count)
            sections[f"{direction}_ptr"] = np.concatenate([[0], np.cumsum(lengths)])
            sections[f"{direction}_entries"] = _pack(other[order], order)
            sections[f"{direction}_order"] = np.argsort(-lengths, kind="stable")
        sections["blocks"] = _pack(in_idx, out_idx)
        sections["dw_items"] = self._dw_items(sections["fprop_ptr"])
        return {name: _read_only(sections[name].astype(np.int64)) for name in SECTIONS}

    def _dw_items(self, ptr):
        per_item = DW_TILE_ROWS // self.block_size
        lengths = np.diff(ptr)
        num_items = -(-lengths // per_item)
        column = np.repeat(np.arange(self.out_blocks), num_items)
        item_in_column = np.arange(num_items.sum()) - np.repeat(
            np.cumsum(num_items) - num_items, num_items
        )
        first = ptr[column] + item_in_column * per_item
        return _pack(first, np.minimum(per_item, ptr[column + 1] - first))

    @property
    def lut(self):
        return self._tables[0]

    @property
    def plan(self):
        return self._tables[1]

    @functools.cached_property
    def _tables(self):
        return self.join_sections({})

    def join_sections(self, more):
        """(lut, plan) of the sections that every kernel needs, and of more.

        Args:
          more: dict: name in `GPU_SECTIONS` -> (int64 vector, at most PLAN_PARAMETERS integers).
        """
        sections = {name: (section, ()) for name, section in self.sections.items()} | more
        lengths = [len(section) for section, _ in sections.values()]
        offsets = np.cumsum([0, *lengths])
        header = {
            "version": PLAN_VERSION,
            "block_size": self.block_size,
            "in_blocks": self.in_blocks,
            "out_blocks": self.out_blocks,
            "num_blocks": self.num_blocks,
            "lut_size": offsets[-1],
            "num_sections": len(lengths),
        }
        plan = [header[name] for name in PLAN_HEADER]
        numbers = {name: number for number, name in enumerate(SECTIONS + GPU_SECTIONS)}
        for (name, (_, parameters)), offset, length in zip(
            sections.items(), offsets, lengths, strict=False
        ):
            padding = [0] * (PLAN_PARAMETERS - len(parameters))
            plan += [numbers[name], offset, length, *parameters, *padding]
        if max(plan) > np.iinfo(np.int32).max:
            raise ValueError(
                "SparsityLayout: the tables must have fewer than 2^31 entries. Received: "
                f"{max(plan)}"
            )
        lut = np.concatenate([section for section, _ in sections.values()])
        return _read_only(lut), _read_only(np.array(plan, np.int32))

    # ---- conversions ----

    def to_dense(self, w):
        """The [C, K] matrix of stored blocks: numpy, dtype of w; zero where nothing is stored.

        Raises:
          ValueError: w has not the shape `w_shape`.
        """
        w = np.asarray(w)
        if w.shape != self.w_shape:
            raise ValueError(
                f"SparsityLayout.to_dense: w must have shape {self.w_shape}. Received: {w.shape}"
            )
        grid = np.zeros(
            (self.in_blocks, self.out_blocks, self.block_size, self.block_size), w.dtype
        )
        grid[tuple(self.coordinates.T)] = w
        return grid.transpose(0, 2, 1, 3).reshape(self.in_features, self.out_features)

    def from_dense(self, dense, allow_loss=False):
        """The stored blocks [num_blocks, B, B] of a [C, K] matrix.

        Args:
          dense: [C, K], any dtype.
          allow_loss: False refuses a matrix with nonzero elements outside the stored blocks.
        Raises:
          ValueError: dense has another shape, or elements that would be lost.
        """
        dense = np.asarray(dense)
        if dense.shape != (self.in_features, self.out_features):
            raise ValueError(
                "SparsityLayout.from_dense: the matrix must have shape "
                f"{(self.in_features, self.out_features)}. Received: {dense.shape}"
            )
        size = self.block_size
        grid = dense.reshape(self.in_blocks, size, self.out_blocks, size).transpose(0, 2, 1, 3)
        lost = np.any(grid != 0, axis=(2, 3)) & ~self.mask
        if lost.any() and not allow_loss:
            where = np.argwhere(lost)[0].tolist()
            raise ValueError(
                "SparsityLayout.from_dense: the matrix must be zero outside the stored blocks "
                "(or pass allow_loss=True). Received: nonzero elements in "
                f"{lost.sum()} other blocks, first {where}"
            )
        return grid[tuple(self.coordinates.T)].copy()

    def to_bsr(self, w):
        """The stored blocks as a `scipy.sparse.bsr_matrix` of shape [C, K]."""
        import scipy.sparse

        w = np.asarray(w)
        if w.shape != self.w_shape:
            raise ValueError(
                f"SparsityLayout.to_bsr: w must have shape {self.w_shape}. Received: {w.shape}"
            )
        order = np.lexsort((self.coordinates[:, 1], self.coordinates[:, 0]))
        indptr = np.concatenate([[0], np.cumsum(self.mask.sum(axis=1))])
        return scipy.sparse.bsr_matrix(
            (w[order], self.coordinates[order, 1], indptr),
            shape=(self.in_features, self.out_features),
        )

    @classmethod
    def from_bsr(cls, matrix, z_order=True):
        """The layout and the stored blocks of a `scipy.sparse` BSR matrix.

        Stored blocks stay stored even where they are all zero; duplicates are summed.

        Returns:
          (SparsityLayout, w[num_blocks, B, B]).
        Raises:
          TypeError: matrix is not in BSR format.
          ValueError: its blocks are not square or of an unsupported size.
        """
        if getattr(matrix, "format", None) != "bsr":
            raise TypeError(
                "SparsityLayout.from_bsr: a scipy.sparse BSR matrix is needed. Received: "
                f"{type(matrix).__name__}"
            )
        rows, cols = matrix.blocksize
        if rows != cols or rows not in BLOCK_SIZES:
            raise ValueError(
                f"SparsityLayout.from_bsr: blocks must be square with sizes {BLOCK_SIZES}. "
                f"Received: {rows}x{cols}"
            )
        matrix = matrix.copy()
        matrix.sum_duplicates()
        in_idx = np.repeat(np.arange(len(matrix.indptr) - 1), np.diff(matrix.indptr))
        mask = np.zeros((matrix.shape[0] // rows, matrix.shape[1] // rows), bool)
        mask[in_idx, matrix.indices] = True
        layout = cls(mask, rows, z_order)
        position = np.zeros(mask.shape, np.int64)
        position[in_idx, matrix.indices] = np.arange(len(matrix.data))
        return layout, matrix.data[position[tuple(layout.coordinates.T)]]

    # ---- identity ----

    @functools.cached_property
    def _content(self):
        return (self.mask.shape, np.packbits(self.mask).tobytes(), self.block_size, self.z_order)

    def __eq__(self, other):
        return isinstance(other, SparsityLayout) and (
            self is other or self._content == other._content
        )

    def __hash__(self):
        return hash(self._content)

    def __reduce__(self):
        return SparsityLayout, (self.mask, self.block_size, self.z_order, self.quick_plan)

    def __repr__(self):
        return (
            f"SparsityLayout({self.in_blocks}x{self.out_blocks} blocks of {self.block_size}, "
            f"{self.num_blocks} stored, density {self.density:.3g})"
        )


def _check_block_size(block_size):
    if isinstance(block_size, bool) or not isinstance(block_size, int | np.integer):
        raise TypeError(f"SparsityLayout: block_size must be an integer. Received: {block_size!r}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(
            f"SparsityLayout: block_size must be one of {BLOCK_SIZES}. Received: {block_size}"
        )
    return int(block_size)


def _check_mask(mask):
    mask = np.asarray(mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(
            f"SparsityLayout: the mask must be bool, integer or float. Received: dtype {mask.dtype}"
        )
    if mask.ndim != 2:
        raise ValueError(
            "SparsityLayout: the mask must have two dimensions, input blocks and output blocks. "
            f"Received: shape {mask.shape}"
        )
    if mask.dtype.kind == "f" and np.isnan(mask).any():
        raise ValueError(
            f"SparsityLayout: the mask must not hold NaN. Received: {np.isnan(mask).sum()} of them"
        )
    mask = mask != 0
    if not mask.any():
        raise ValueError(
            "SparsityLayout: the mask must have at least one nonzero element. Received: none in "
            f"shape {mask.shape}"
        )
    return _read_only(mask)


def _read_only(array):
    array.flags.writeable = False
    return array


def _pack(low, high):
    """Pairs of int32 as int64, the first in the low word, which is where a little-endian struct has
    it.
    """
    return np.asarray(high, np.int64) << 32 | np.asarray(low, np.int64)


def _morton(even, odd):
    """Interleaves the bits of two vectors of integers below 2^31."""
    return _spread_bits(even) | _spread_bits(odd) << np.uint64(1)


def _spread_bits(values):
    values = values.astype(np.uint64)
    for shift, kept in (
        (16, 0x0000FFFF0000FFFF),
        (8, 0x00FF00FF00FF00FF),
        (4, 0x0F0F0F0F0F0F0F0F),
        (2, 0x3333333333333333),
        (1, 0x5555555555555555),
    ):
        values = (values | values << np.uint64(shift)) & np.uint64(kept)
    return values
