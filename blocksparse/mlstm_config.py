"""What a multiplicative LSTM (`mlstm.py`) consists of: sizes, masks, shapes of its weights."""

import base64
import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np

from blocksparse import _checks, patterns
from blocksparse.layout import BLOCK_SIZES, SparsityLayout
from blocksparse.sparse_proj import SparseProj

DTYPES = tuple(dtype.name for dtype in _checks.DTYPES)
GATES = ("i", "f", "o", "u")


@dataclasses.dataclass(frozen=True)
class DenseLayout:
    """Of a weight that is one matrix [in_features, out_features]; like `SparsityLayout` otherwise.

    What stores all blocks needs no blocks: its product is TensorFlow's.
    """

    in_features: int
    out_features: int

    @property
    def w_shape(self):
        return self.in_features, self.out_features

    def to_dense(self, w):
        """The weight itself."""
        return np.asarray(w).reshape(self.w_shape)

    def from_dense(self, dense, allow_loss=False):
        """The matrix itself."""
        return self.to_dense(dense)


@dataclasses.dataclass(frozen=True)
class MLSTMConfig:
    """Sizes and masks of an mLSTM with internal steps; immutable, equal by content, hashable.

    Args:
      nhidden: features of the state, a multiple of block_size.
      nembd: features of the input, a multiple of 8.
      isteps: internal steps, 2 or more: the first multiplies by the input, the second adds it.
      lsteps: LSTM updates for each input; those after the first see no input.
      block_size: 8, 16, 32, 64 or 128, of the products of the state.
      feature_axis: 1 for features last, 0 for features first.
      masks: which blocks those products store, each mask [nhidden / block_size] * 2: a name that
        `patterns.from_name` knows ("dense", "ba_5"), which gives each internal step its own mask,
        and the four gates one; or one mask for all; or a dict of names or masks for "h0", "h1",
        ..., "gates". Becomes a tuple of `SparsityLayout` in this order.
      seed: of the random masks and features; a non-negative integer.
      nproj_in: features of m and a, a multiple of 8; None means nhidden. If fewer than nhidden,
        they go to as many features of the state, chosen at random for m and for a.
      share_masks: internal steps and gates have one mask, but weights of their own.
      share_isteps: all internal steps have the weights of the first.
      forget_bias: what b_f starts with; nothing else is added to f.
      dtype: "float32", "float16" or "bfloat16", of activations and products.
      mul_features, add_features: the features of the state that m multiplies and a is added to,
        nproj_in increasing integers, such as range(0, nhidden, 2), instead of random ones. Become
        tuples, or None if these are all features.
    Attributes:
      layouts: of each product, by the name of its weights: m, a, h0, ..., i, f, o, u. A
        `SparsityLayout`, or `DenseLayout` for m, a and masks that store all blocks.
      weight_shapes: shape by name: w_m, g_m, b_m, w_a, ... w are weights, g and b the gains and
        biases of the layer norms.
      num_parameters: their number of elements.
    Raises:
      TypeError, ValueError: an argument is not as above.
    Source: openai/blocksparse `examples/lstm/train.py`, `layers.py` `LSTM_scott`.
    Example:
      >>> config = MLSTMConfig(nhidden=1024, nembd=64, masks="ba_2", nproj_in=512)
      >>> config.weight_shapes["w_m"], config.weight_shapes["g_i"], config.num_parameters
      ((64, 512), (1024,), 1505280)
    """

    nhidden: int
    nembd: int
    isteps: int = 5
    lsteps: int = 1
    block_size: int = 32
    feature_axis: int = 1
    masks: object = "dense"
    seed: int = 0
    nproj_in: int | None = None
    share_masks: bool = False
    share_isteps: bool = False
    forget_bias: float = 1.0
    dtype: str = "float32"
    mul_features: object = dataclasses.field(default=None, repr=False)
    add_features: object = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        self._set("block_size", _check_integer("block_size", self.block_size, 1))
        if self.block_size not in BLOCK_SIZES:
            _fail("block_size", f"one of {', '.join(map(str, BLOCK_SIZES))}", self.block_size)
        self._set("nhidden", _check_integer("nhidden", self.nhidden, 1, self.block_size))
        self._set("nembd", _check_integer("nembd", self.nembd, 1, 8))
        self._set("isteps", _check_integer("isteps", self.isteps, 2))
        self._set("lsteps", _check_integer("lsteps", self.lsteps, 1))
        self._set("seed", _check_integer("seed", self.seed, 0))
        _checks.check_feature_axis("MLSTMConfig", self.feature_axis)
        for name in ("share_masks", "share_isteps"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                _fail(name, "True or False", getattr(self, name), TypeError)
        if isinstance(self.forget_bias, str) or not np.isfinite(self.forget_bias):
            _fail("forget_bias", "a finite number", self.forget_bias)
        dtype = getattr(self.dtype, "name", self.dtype)
        if dtype not in DTYPES:
            _fail("dtype", f"one of {', '.join(DTYPES)}", dtype)
        self._set("dtype", dtype)
        nproj_in = self.nhidden if self.nproj_in is None else self.nproj_in
        self._set("nproj_in", _check_integer("nproj_in", nproj_in, 1, 8))
        if self.nproj_in > self.nhidden:
            _fail("nproj_in", f"at most nhidden={self.nhidden}", self.nproj_in)
        self._set("masks", self._resolved_masks())
        for number, name in enumerate(("mul_features", "add_features")):
            self._set(name, self._resolved_features(name, number))

    def _set(self, name, value):
        object.__setattr__(self, name, value)

    # ---- masks and features ----

    @property
    def step_names(self):
        """The names of the internal steps' weights, in order, each once."""
        return tuple(f"h{step}" for step in range(1 if self.share_isteps else self.isteps))

    def _resolved_masks(self):
        names, masks = (*self.step_names, "gates"), self.masks
        if isinstance(masks, tuple) and all(isinstance(m, SparsityLayout) for m in masks):
            if len(masks) != len(names):
                _fail("masks", f"{len(names)} layouts, for {', '.join(names)}", len(masks))
            masks = dict(zip(names, masks, strict=True))
        if isinstance(masks, Mapping):
            if set(masks) != set(names):
                _fail("masks", f"a dict of {', '.join(names)}", ", ".join(map(str, masks)))
            layouts = [self._layout(masks[name], number) for number, name in enumerate(names)]
            if self.share_masks and len(set(layouts)) > 1:
                _fail("masks", "one mask or equal ones, with share_masks", "different ones")
            return tuple(layouts)
        if self.share_masks or not isinstance(masks, str):
            return (self._layout(masks, 0),) * len(names)
        return tuple(self._layout(masks, number) for number in range(len(names)))

    def _layout(self, mask, number):
        size = self.nhidden // self.block_size
        if isinstance(mask, str):
            mask = patterns.from_name(mask, size, np.random.default_rng([self.seed, 0, number]))
        if not isinstance(mask, SparsityLayout):
            mask = SparsityLayout(mask, self.block_size)
        if mask.mask.shape != (size, size) or mask.block_size != self.block_size:
            _fail("masks", f"of [{size}, {size}] blocks of {self.block_size}", f"{mask!r}")
        if not mask.z_order:
            _fail("masks", "in z-order", f"{mask!r}")
        return mask

    def _resolved_features(self, name, number):
        chosen = getattr(self, name)
        if self.nproj_in == self.nhidden:
            if chosen is not None:
                _fail(name, f"None, as nproj_in is nhidden={self.nhidden}", "a choice of features")
            return None
        if chosen is None:
            rng = np.random.default_rng([self.seed, 1, number])
            chosen = np.sort(rng.permutation(self.nhidden)[: self.nproj_in])
        lut = np.asarray(chosen)
        is_choice = lut.shape == (self.nproj_in,) and lut.dtype.kind in "iu"
        if not is_choice or lut[0] < 0 or lut[-1] >= self.nhidden or np.any(np.diff(lut) <= 0):
            _fail(
                name,
                f"{self.nproj_in} increasing integers in [0, {self.nhidden})",
                f"dtype {lut.dtype}, shape {lut.shape}",
            )
        return tuple(lut.tolist())

    @functools.cached_property
    def mul_proj(self):
        """Where m goes: a `SparseProj`, or None for everywhere."""
        return self._proj(self.mul_features)

    @functools.cached_property
    def add_proj(self):
        """Where a goes: a `SparseProj`, or None for everywhere."""
        return self._proj(self.add_features)

    def _proj(self, lut):
        if lut is None:
            return None
        return SparseProj(self.nhidden, gather_lut=list(lut), feature_axis=self.feature_axis)

    # ---- weights ----

    @functools.cached_property
    def layouts(self):
        inputs = DenseLayout(self.nembd, self.nproj_in)
        square = [
            DenseLayout(self.nhidden, self.nhidden) if layout.mask.all() else layout
            for layout in self.masks
        ]
        steps = dict(zip(self.step_names, square, strict=False))
        return {"m": inputs, "a": inputs, **steps, **dict.fromkeys(GATES, square[-1])}

    @functools.cached_property
    def weight_shapes(self):
        shapes = {}
        for name, layout in self.layouts.items():
            shapes[f"w_{name}"] = layout.w_shape
            shapes[f"g_{name}"] = shapes[f"b_{name}"] = (layout.out_features,)
        return shapes

    @property
    def num_parameters(self):
        return sum(math.prod(shape) for shape in self.weight_shapes.values())

    # ---- as JSON ----

    def get_config(self):
        """The arguments as a dict of numbers and strings: masks and features as base64 bits."""
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        names = (*self.step_names, "gates")
        codes = [_encode(layout.mask) for layout in self.masks]
        one = len(set(codes)) == 1
        config["masks"] = codes[0] if one else dict(zip(names, codes, strict=True))
        for name in ("mul_features", "add_features"):
            if config[name] is not None:
                is_chosen = np.zeros(self.nhidden, bool)
                is_chosen[list(config[name])] = True
                config[name] = _encode(is_chosen)
        return config

    @classmethod
    def from_config(cls, config):
        """The MLSTMConfig of a dict that `get_config` made."""
        config = dict(config)
        masks = config["masks"]
        if isinstance(masks, str):
            config["masks"] = _decode(masks)
        else:
            config["masks"] = {name: _decode(code) for name, code in masks.items()}
        for name in ("mul_features", "add_features"):
            if config[name] is not None:
                config[name] = np.flatnonzero(_decode(config[name]))
        return cls(**config)


def _encode(bits):
    """A bool array as text: its shape and its bits, "4x4:hCE="."""
    code = base64.b64encode(np.packbits(bits).tobytes()).decode()
    return f"{'x'.join(map(str, bits.shape))}:{code}"


def _decode(text):
    shape, code = text.split(":")
    shape = [int(size) for size in shape.split("x")]
    packed = np.frombuffer(base64.b64decode(code), np.uint8)
    return np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)


def _check_integer(name, value, least, multiple=1):
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        _fail(name, "an integer", repr(value), TypeError)
    value = value.__index__()
    if value < least or value % multiple:
        what = f"{least} or more" if multiple == 1 else f"a positive multiple of {multiple}"
        _fail(name, what, value)
    return value


def _fail(name, expected, received, error=ValueError):
    raise error(f"MLSTMConfig: {name} must be {expected}. Received: {received}")
