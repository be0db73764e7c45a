"""What a torch user would run instead of our kernels: dense cuBLAS, a plain Triton kernel, BSR.

Triton's is one program for each block column and 128 samples (fprop, dx), or for each block (dw).
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def dense(product, x, dy, w, axis):
    """The dense product as a call without arguments; w: dense [C, K]."""
    if product == "fprop":
        return (lambda: torch.mm(x, w)) if axis == 1 else (lambda: torch.mm(w.T, x))
    if product == "dx":
        return (lambda: torch.mm(dy, w.T)) if axis == 1 else (lambda: torch.mm(w, dy))
    return (lambda: torch.mm(x.T, dy)) if axis == 1 else (lambda: torch.mm(x, dy.T))


def bsr(layout, x, w):
    """torch's BSR product y = x W for features last, which it computes as (W^T x^T)^T."""
    dense_w = torch.zeros(layout.in_features, layout.out_features, dtype=w.dtype, device=w.device)
    size = layout.block_size
    for (c, k), block in zip(layout.coordinates.tolist(), w, strict=True):
        dense_w[c * size : (c + 1) * size, k * size : (k + 1) * size] = block
    matrix = dense_w.T.contiguous().to_sparse_bsr(size)
    return lambda: torch.nn.functional.linear(x, matrix)


if triton is not None:

    @triton.jit
    def _product_kernel(
        x, w, y, ptr, entries, samples, x_sample, x_feature, y_sample, y_feature,
        B: tl.constexpr, ROWS: tl.constexpr, IS_DX: tl.constexpr, TF32: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(0)
        n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        i = tl.arange(0, B)
        is_sample = (n < samples)[:, None]
        sums = tl.zeros((ROWS, B), dtype=tl.float32)
        for entry in range(tl.load(ptr + column), tl.load(ptr + column + 1)):
            source = tl.load(entries + 2 * entry)
            block = tl.load(entries + 2 * entry + 1).to(tl.int64)
            features = source * B + i
            tile = tl.load(
                x + n[:, None].to(tl.int64) * x_sample + features[None, :] * x_feature,
                mask=is_sample,
                other=0.0,
            )
            if IS_DX:
                weights = tl.load(w + block * B * B + i[None, :] * B + i[:, None])
            else:
                weights = tl.load(w + block * B * B + i[:, None] * B + i[None, :])
            sums += tl.dot(tile, weights, input_precision=TF32)
        to = y + n[:, None].to(tl.int64) * y_sample + (column * B + i)[None, :] * y_feature
        tl.store(to, sums.to(y.dtype.element_ty), mask=is_sample)

    @triton.jit
    def _dw_kernel(
        x, dy, dw, blocks, samples, x_sample, x_feature, dy_sample, dy_feature,
        B: tl.constexpr, DEPTH: tl.constexpr, TF32: tl.constexpr,
    ):  # fmt: skip
        block = tl.program_id(0)
        i = tl.arange(0, B)
        rows = tl.load(blocks + 2 * block) * B + i
        cols = tl.load(blocks + 2 * block + 1) * B + i
        sums = tl.zeros((B, B), dtype=tl.float32)
        for start in range(0, samples, DEPTH):
            n = (start + tl.arange(0, DEPTH)).to(tl.int64)
            is_sample = n < samples
            a = tl.load(
                x + n[None, :] * x_sample + rows[:, None] * x_feature,
                mask=is_sample[None, :],
                other=0.0,
            )
            b = tl.load(
                dy + n[:, None] * dy_sample + cols[None, :] * dy_feature,
                mask=is_sample[:, None],
                other=0.0,
            )
            sums += tl.dot(a, b, input_precision=TF32)
        to = dw + block.to(tl.int64) * B * B + i[:, None] * B + i[None, :]
        tl.store(to, sums.to(dw.dtype.element_ty))


def plain_triton(product, layout, x, dy, w, out, axis, tf32=True):
    """The product by the plain kernel, or None where Triton has no such tile (B < 16) or is absent.

    Returns a call without arguments that writes `out`.
    """
    size = layout.block_size
    if triton is None or size < 16:
        return None
    precision = "tf32" if tf32 else "ieee"
    as_int32 = lambda a: torch.from_numpy(a.copy()).view(torch.int32).to(x.device)  # noqa: E731
    features_in, features_out = layout.in_features, layout.out_features
    samples = x.numel() // features_in
    strides = lambda features: (features, 1) if axis == 1 else (1, samples)  # noqa: E731
    if product == "dw":
        blocks = as_int32(layout.sections["blocks"])
        return lambda: _dw_kernel[(layout.num_blocks,)](
            x, dy, out, blocks, samples, *strides(features_in), *strides(features_out),
            B=size, DEPTH=64 if size < 128 else 32, TF32=precision,
            num_warps=4 if size < 128 else 8, num_stages=4 if x.element_size() == 2 else 2,
        )  # fmt: skip
    is_dx = product == "dx"
    ptr = torch.from_numpy(layout.sections[f"{product}_ptr"].astype("int32")).to(x.device)
    entries = as_int32(layout.sections[f"{product}_entries"])
    source, features = (dy, features_out) if is_dx else (x, features_in)
    columns = layout.in_blocks if is_dx else layout.out_blocks
    rows = 128 if samples > 64 else max(16, samples)
    return lambda: _product_kernel[(columns, triton.cdiv(samples, rows))](
        source, w, out, ptr, entries, samples, *strides(features),
        *strides(columns * size), B=size, ROWS=rows, IS_DX=is_dx, TF32=precision,
        num_warps=4 if size < 128 else 8,
        num_stages=(4 if size < 64 else 3) if x.element_size() == 2 else 2,
    )  # fmt: skip
