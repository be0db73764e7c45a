"""SparseProj: a one-to-one selection of features, applied in either direction.

gather        z[j] = x[lut[j]]                  [nhidden, ...] -> [nproj, ...]
scatter       z[lut[j]] = x[j], zeros elsewhere [nproj, ...]   -> [nhidden, ...]
scatter_add   z = x;  z[lut[j]] += y[j]
scatter_mul   z = x;  z[lut[j]] *= y[j]

Each feature is chosen at most once, so that both directions, and so every gradient, are gathers: no
additions, no atomics. TensorFlow's gather runs at memory speed; a kernel of our own would gain
nothing for gather and scatter, and save one pass over x for the other two.
"""

import numpy as np
import tensorflow as tf


class SparseProj:
    """Selects `nproj` of `nhidden` features.

    Exactly one of nproj, proj_stride and gather_lut chooses the features.

    Args:
      nhidden: number of features.
      nproj: so many of them at random, in ascending order.
      proj_stride: every proj_stride-th, as many as make whole blocks of block_size.
      block_size: see proj_stride.
      gather_lut: the chosen features: distinct integers in [0, nhidden), any order, int32 or int64.
      name: optional name of the ops.
      seed: of `numpy.random.default_rng` for nproj; None draws anew.
      feature_axis: 0 for features first, as the original has it, 1 for features last.
    Attributes:
      gather_lut: int[nproj]; scatter_lut: int[nhidden], its inverse, -1 where nothing is chosen.
      nhidden, nproj.
    Raises:
      ValueError: none or several of the three are given, or gather_lut is not a selection.
    Source: openai/blocksparse `SparseProj`.
    """

    def __init__(
        self,
        nhidden,
        nproj=None,
        proj_stride=None,
        block_size=32,
        gather_lut=None,
        name=None,
        seed=None,
        feature_axis=0,
    ):
        if gather_lut is not None:
            gather_lut = _check_lut(gather_lut, nhidden)
            if nproj not in (None, len(gather_lut)) or proj_stride is not None:
                raise ValueError(
                    "SparseProj: gather_lut excludes proj_stride and another nproj. "
                    f"Received: nproj={nproj}, proj_stride={proj_stride}, {len(gather_lut)} indices"
                )
        elif (nproj is None) == (proj_stride is None):
            raise ValueError(
                "SparseProj: exactly one of nproj, proj_stride and gather_lut is needed. "
                f"Received: nproj={nproj}, proj_stride={proj_stride}, gather_lut=None"
            )
        elif nproj is not None:
            if not 1 <= nproj <= nhidden:
                raise ValueError(
                    f"SparseProj: nproj must be 1 to nhidden={nhidden}. Received: {nproj}"
                )
            chosen = np.random.default_rng(seed).permutation(nhidden)[:nproj]
            gather_lut = np.sort(chosen).astype(np.int32)
        else:
            gather_lut = _strided_lut(nhidden, proj_stride, block_size)
        if feature_axis not in (0, 1):
            raise ValueError(f"SparseProj: feature_axis must be 0 or 1. Received: {feature_axis!r}")
        self.nhidden, self.nproj = nhidden, len(gather_lut)
        self.gather_lut = gather_lut
        self.scatter_lut = np.full(nhidden, -1, gather_lut.dtype)
        self.scatter_lut[gather_lut] = np.arange(self.nproj)
        self.feature_axis = feature_axis
        self.name = name or "SparseProj"

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}

    def gather(self, x):
        """x[nhidden, ...] -> [nproj, ...]. Gradient: `scatter`."""
        return self._gather(self._checked("x", x, self.nhidden))

    def scatter(self, x):
        """x[nproj, ...] -> [nhidden, ...], zero where nothing is chosen. Gradient: `gather`."""
        return self._scatter(self._checked("x", x, self.nproj))

    def scatter_add(self, x, y):
        """x[nhidden, ...] with y[nproj, ...] added at the chosen features. Neither is changed."""
        x, y = self._checked_pair(x, y)
        return x + self._scatter(y)

    def scatter_mul(self, x, y):
        """x[nhidden, ...] times y[nproj, ...] at the chosen features. Neither is changed."""
        x, y = self._checked_pair(x, y)
        return x * tf.where(self._is_chosen(x), self._scatter(y), tf.ones([], x.dtype))

    # ---- one gather in each direction, each the other's gradient ----

    def _axis(self, x):
        return 0 if self.feature_axis == 0 else x.shape.rank - 1

    def _is_chosen(self, x):
        shape = [1] * x.shape.rank
        shape[self._axis(x)] = self.nhidden
        return tf.reshape(tf.constant(self.scatter_lut >= 0), shape)

    @property
    def _gather(self):
        @tf.custom_gradient
        def gather(x):
            z = tf.gather(x, self.gather_lut, axis=self._axis(x), name=f"{self.name}_gather")
            return z, self._scatter

        return gather

    @property
    def _scatter(self):
        @tf.custom_gradient
        def scatter(x):
            lut = np.maximum(self.scatter_lut, 0)
            z = tf.gather(x, lut, axis=self._axis(x), name=f"{self.name}_scatter")
            return tf.where(self._is_chosen(z), z, tf.zeros([], z.dtype)), self._gather

        return scatter

    def _checked(self, name, x, num_features):
        x = tf.convert_to_tensor(x)
        if x.shape.rank is None or x.shape.rank < 1:
            raise ValueError(
                f"{self.name}: {name} must have a known rank of at least 1. "
                f"Received: {name}.shape={x.shape}"
            )
        if x.shape[self._axis(x)] not in (None, num_features):
            raise ValueError(
                f"{self.name}: {name} must have {num_features} features on axis {self._axis(x)}. "
                f"Received: {name}.shape={x.shape}"
            )
        return x

    def _checked_pair(self, x, y):
        x, y = self._checked("x", x, self.nhidden), self._checked("y", y, self.nproj)
        expected = x.shape.as_list()
        expected[self._axis(x)] = self.nproj
        if not y.shape.is_compatible_with(expected):
            raise ValueError(
                f"{self.name}: y must have the shape of x but for {self.nproj} features, "
                f"{expected}. Received: y.shape={y.shape}"
            )
        return x, y


def _check_lut(gather_lut, nhidden):
    lut = np.asarray(gather_lut)
    is_selection = (
        lut.ndim == 1
        and lut.size > 0
        and lut.dtype.kind in "iu"
        and lut.min() >= 0
        and lut.max() < nhidden
        and len(np.unique(lut)) == len(lut)
    )
    if not is_selection:
        raise ValueError(
            f"SparseProj: gather_lut must hold distinct integers in [0, {nhidden}). "
            f"Received: dtype {lut.dtype}, shape {lut.shape}"
        )
    return lut.astype(np.int32 if lut.dtype.itemsize <= 4 else np.int64)


def _strided_lut(nhidden, proj_stride, block_size):
    end = nhidden // proj_stride // block_size * block_size * proj_stride if proj_stride > 0 else 0
    if end == 0:
        raise ValueError(
            f"SparseProj: proj_stride must leave at least one block of {block_size} of nhidden="
            f"{nhidden} features. Received: {proj_stride}"
        )
    return np.arange(0, end, proj_stride, dtype=np.int32)
