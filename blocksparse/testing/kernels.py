"""The kernels through their C interface (`src/kernels/c_api.h`): numpy and ctypes, no TensorFlow.

Arrays are numpy arrays (CPU), or anything with `data_ptr()` such as torch tensors (the current
GPU). This file imports nothing of the package, so that it can be loaded alone where there is no
TensorFlow.
"""

import ctypes

import numpy as np

CPU, GPU = 0, 1
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
# Of src/kernels/common/cpu_level.h; a machine has the first few.
CPU_LEVELS = ("portable", "avx2", "avx512", "avx512bf16")


class _Tables(ctypes.Structure):
    _fields_ = [
        ("plan", ctypes.c_void_p),
        ("plan_size", ctypes.c_int64),
        ("lut", ctypes.c_void_p),
        ("lut_size", ctypes.c_int64),
    ]


class _Matmul(ctypes.Structure):
    _fields_ = [
        ("device", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("feature_axis", ctypes.c_int32),
        ("is_dx", ctypes.c_int32),
        ("allow_tf32", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("tables", _Tables),
        ("x", ctypes.c_void_p),
        ("w", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    ]


class _MatmulDw(ctypes.Structure):
    _fields_ = [
        ("device", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("dw_dtype", ctypes.c_int32),
        ("feature_axis", ctypes.c_int32),
        ("allow_tf32", ctypes.c_int32),
        ("num_pairs", ctypes.c_int32),
        ("tables", _Tables),
        ("x", ctypes.c_void_p),
        ("dy", ctypes.c_void_p),
        ("batch", ctypes.c_void_p),
        ("gate", ctypes.c_void_p),
        ("dw", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    ]


class KernelError(RuntimeError):
    """A kernel returned an error; the message is the library's."""


class Kernels:
    """The functions of one shared library.

    Args:
      path: `build/libblocksparse_kernels.so` (`make kernels`), or the package's own library when
        TensorFlow is loaded.
    """

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.blocksparse_matmul_workspace.restype = ctypes.c_int64
        self._library.blocksparse_matmul_dw_workspace.restype = ctypes.c_int64
        self._library.blocksparse_last_error.restype = ctypes.c_char_p
        self._library.blocksparse_cpu_level.restype = ctypes.c_char_p

    @property
    def has_gpu(self):
        return bool(self._library.blocksparse_has_gpu())

    @property
    def cpu_level(self):
        """Name of the instruction set level of the CPU kernels, one of CPU_LEVELS; settable."""
        name = self._library.blocksparse_cpu_level()
        return name.decode() if name else self._check(1)

    @cpu_level.setter
    def cpu_level(self, name):
        self._check(self._library.blocksparse_set_cpu_level(name.encode()))

    def set_cpu_parts(self, num_parts):
        """Cuts the work of CPU calls in so many parts, as threads would; no result changes."""
        self._library.blocksparse_set_cpu_parts(num_parts)

    def is_supported(self, dtype, block_size, feature_axis):
        """Whether the products exist for this combination."""
        number = DTYPES.get(dtype, -1)
        return bool(self._library.blocksparse_matmul_is_supported(number, block_size, feature_axis))

    def workspace_bytes(self, plan, lut, x, w, y, **kwargs):
        """Bytes of workspace that `matmul` needs with these arguments."""
        call, keep = self._call(plan, lut, x, w, y, **kwargs)
        size = self._library.blocksparse_matmul_workspace(ctypes.byref(call))
        del keep
        return size if size >= 0 else self._check(1)

    def matmul(self, plan, lut, x, w, y, **kwargs):
        """y = x W into `y` (dx = dy W^T if is_dx). plan: numpy int32; lut: int64 on the device.

        Keywords: dtype, batch, feature_axis, is_dx, gate, allow_tf32, device, stream, workspace.
        """
        call, keep = self._call(plan, lut, x, w, y, **kwargs)
        self._check(self._library.blocksparse_matmul(ctypes.byref(call)))
        del keep

    def _call(
        self,
        plan,
        lut,
        x,
        w,
        y,
        *,
        dtype,
        batch,
        feature_axis=1,
        is_dx=False,
        gate=None,
        allow_tf32=False,
        device=CPU,
        stream=None,
        workspace=None,
    ):
        tables, keep = _tables(plan, lut)
        call = _Matmul(
            device,
            DTYPES[dtype],
            feature_axis,
            is_dx,
            allow_tf32,
            batch,
            tables,
            _address(x),
            _address(w),
            _address(gate),
            _address(y),
            _address(workspace),
            stream,
        )
        return call, keep

    def dw_workspace_bytes(self, plan, lut, pairs, **kwargs):
        """Bytes of workspace that `matmul_dw` needs with these arguments."""
        call, keep = self._dw_call(plan, lut, pairs, None, **kwargs)
        size = self._library.blocksparse_matmul_dw_workspace(ctypes.byref(call))
        del keep
        return size if size >= 0 else self._check(1)

    def matmul_dw(self, plan, lut, pairs, dw, **kwargs):
        """dw = sum of x^T dy over `pairs`, a list of (x, dy, batch), into `dw`.

        Keywords: dtype, dw_dtype (default dtype), feature_axis, gate, allow_tf32, device, stream,
        workspace.
        """
        call, keep = self._dw_call(plan, lut, pairs, dw, **kwargs)
        self._check(self._library.blocksparse_matmul_dw(ctypes.byref(call)))
        del keep

    def _dw_call(
        self,
        plan,
        lut,
        pairs,
        dw,
        *,
        dtype,
        dw_dtype=None,
        feature_axis=1,
        gate=None,
        allow_tf32=False,
        device=CPU,
        stream=None,
        workspace=None,
    ):
        tables, keep = _tables(plan, lut)
        pointers = ctypes.c_void_p * len(pairs)
        xs = pointers(*[_address(x) for x, _, _ in pairs])
        dys = pointers(*[_address(dy) for _, dy, _ in pairs])
        batches = (ctypes.c_int64 * len(pairs))(*[n for _, _, n in pairs])
        call = _MatmulDw(
            device,
            DTYPES[dtype],
            DTYPES[dw_dtype or dtype],
            feature_axis,
            allow_tf32,
            len(pairs),
            tables,
            *[ctypes.cast(a, ctypes.c_void_p) for a in (xs, dys, batches)],
            _address(gate),
            _address(dw),
            _address(workspace),
            stream,
        )
        return call, (keep, xs, dys, batches)

    def _check(self, code):
        if code:
            raise KernelError(self._library.blocksparse_last_error().decode())


def _tables(plan, lut):
    plan = np.ascontiguousarray(plan, np.int32)
    size = lut.numel() if hasattr(lut, "numel") else lut.size
    return _Tables(plan.ctypes.data, plan.size, _address(lut), size), plan


def _address(array):
    if array is None:
        return None
    return array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data
