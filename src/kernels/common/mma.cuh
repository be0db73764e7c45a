// Matrix instructions of one warp, in one shape for every arithmetic: C[16, 8] += A[16, kDepth]
// B[kDepth, 8].
//
// Each Math type has T (storage), kDepth, fragments of A and B, their loads from shared memory, and
// Multiply. The four sums of a lane lie in C the same way for all of them: lane = 4 g + t holds
// C[g][2t], C[g][2t + 1], C[g + 8][2t] and C[g + 8][2t + 1], which is the layout of mma.sync's
// accumulators.
//
// Loads take a Tile and the corner (row, depth) or (depth, col) of the fragment. kIsDepthMajor: the
// tile's rows hold the depth.
#ifndef BLOCKSPARSE_KERNELS_COMMON_MMA_CUH_
#define BLOCKSPARSE_KERNELS_COMMON_MMA_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "src/kernels/common/arch.h"
#include "src/kernels/common/load_store.cuh"
#include "src/kernels/common/round.cuh"

namespace blocksparse {

constexpr int kMmaRows = 16;
constexpr int kMmaCols = 8;

__device__ __forceinline__ int Lane() { return threadIdx.x % kWarpSize; }
// Where a lane's sums lie: row and first column.
__device__ __forceinline__ int MmaRow() { return Lane() / 4; }
__device__ __forceinline__ int MmaCol() { return Lane() % 4 * 2; }

// The same number, of which the compiler knows nothing: what is computed from it is computed where
// it is used, and takes no register in between.
__device__ __forceinline__ uint32_t Opaque(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// ldmatrix: four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix
// i / 8.
template <bool kIsTransposed>
__device__ __forceinline__ void LoadMatrix4(uint32_t row, uint32_t (&r)[4]) {
  if constexpr (kIsTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
  }
}
template <bool kIsTransposed>
__device__ __forceinline__ void LoadMatrix4(const void* row, uint32_t (&r)[4]) {
  LoadMatrix4<kIsTransposed>(SharedAddress(row), r);
}
// Transposes an 8 x 8 matrix of 16-bit elements: lane 4 g + t holds [g][2t] and [g][2t + 1].
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t r) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(r));
  return transposed;
}
// The same for two matrices, addressed by lanes 0 to 15.
template <bool kIsTransposed>
__device__ __forceinline__ void LoadMatrix2(const void* row, uint32_t (&r)[2]) {
  if constexpr (kIsTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(SharedAddress(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(SharedAddress(row))
                 : "memory");
  }
}

// Fragments of 16-bit types: A = 16 x 16 in four registers, B = 16 x 8 in two, low half first.
template <typename T_>
struct Math16 {
  using T = T_;
  static constexpr int kDepth = 16;
  struct FragmentA {
    uint32_t r[4];
  };
  struct FragmentB {
    uint32_t r[2];
  };

  template <bool kIsDepthMajor, class SharedTile>
  static __device__ __forceinline__ void LoadA(FragmentA& a, SharedTile tile, int row, int depth) {
    // Matrices in the order of the registers: (rows 0-7, depth 0-7), (8-15, 0-7), (0-7, 8-15),
    // (8-15, 8-15).
    const int matrix_row = row + (Lane() / 8 % 2) * 8;
    const int matrix_depth = depth + Lane() / 16 * 8;
    const T* address = kIsDepthMajor ? tile.At(matrix_row + Lane() % 8, matrix_depth)
                                     : tile.At(matrix_depth + Lane() % 8, matrix_row);
    LoadMatrix4<!kIsDepthMajor>(address, a.r);
  }

  // kNumTiles fragments side by side, eight columns each.
  template <bool kIsDepthMajor, int kNumTiles, class SharedTile>
  static __device__ __forceinline__ void LoadB(FragmentB (&b)[kNumTiles], SharedTile tile,
                                               int depth, int col) {
    const int matrix_depth = depth + (Lane() / 8 % 2) * 8;
    const auto address = [&](int matrix_col) {
      return kIsDepthMajor ? tile.At(matrix_col + Lane() % 8, matrix_depth)
                           : tile.At(matrix_depth + Lane() % 8, matrix_col);
    };
    if constexpr (kNumTiles == 1) {
      LoadMatrix2<!kIsDepthMajor>(address(col), b[0].r);
    } else {
#pragma unroll
      for (int j = 0; j < kNumTiles; j += 2) {
        uint32_t r[4];
        LoadMatrix4<!kIsDepthMajor>(address(col + (j + Lane() / 16) * kMmaCols), r);
        b[j].r[0] = r[0];
        b[j].r[1] = r[1];
        b[j + 1].r[0] = r[2];
        b[j + 1].r[1] = r[3];
      }
    }
  }

  // Multiplies depths 0 to 7 of the fragment by g[0] and 8 to 15 by g[1], in float32, and rounds to
  // T.
  static __device__ __forceinline__ void ScaleB(FragmentB& b, const float (&g)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T pair[2];
      *reinterpret_cast<uint32_t*>(pair) = b.r[i];
      pair[0] = T(static_cast<float>(pair[0]) * g[i]);
      pair[1] = T(static_cast<float>(pair[1]) * g[i]);
      b.r[i] = *reinterpret_cast<uint32_t*>(pair);
    }
  }

  // Not volatile: the compiler may interleave it with the loads of the next fragments.
  static __device__ __forceinline__ void Multiply(float (&c)[4], const FragmentA& a,
                                                  const FragmentB& b) {
    if constexpr (std::is_same_v<T, __half>) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
          "{%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
          "{%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
    }
  }
};

struct Fp16Math : Math16<__half> {};
struct Bf16Math : Math16<__nv_bfloat16> {};

// Element (row, depth) of A or (depth, col) of B, whichever index is contiguous.
template <bool kIsDepthMajor, class SharedTile>
__device__ __forceinline__ float TileElement(SharedTile tile, int other, int depth) {
  return kIsDepthMajor ? *tile.At(other, depth) : *tile.At(depth, other);
}

// float32 storage, products of inputs rounded to TensorFloat-32 on the tensor cores, sums in
// float32.
struct Tf32Math {
  using T = float;
  static constexpr int kDepth = 8;
  struct FragmentA {
    float v[4];
  };
  struct FragmentB {
    float v[2];
  };

  template <bool kIsDepthMajor, class SharedTile>
  static __device__ __forceinline__ void LoadA(FragmentA& a, SharedTile tile, int row, int depth) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a.v[i] = TileElement<kIsDepthMajor>(tile, row + Lane() / 4 + i % 2 * 8,
                                          depth + Lane() % 4 + i / 2 * 4);
#pragma unroll
    for (float& v : a.v) v = Round(v);
  }

  // Rounded in Multiply, after the gate.
  template <bool kIsDepthMajor, int kNumTiles, class SharedTile>
  static __device__ __forceinline__ void LoadB(FragmentB (&b)[kNumTiles], SharedTile tile,
                                               int depth, int col) {
#pragma unroll
    for (int j = 0; j < kNumTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        b[j].v[i] = TileElement<kIsDepthMajor>(tile, col + j * kMmaCols + Lane() / 4,
                                               depth + Lane() % 4 + i * 4);
    }
  }

  static __device__ __forceinline__ void ScaleB(FragmentB& b, const float (&g)[2]) {
    b.v[0] *= g[0];
    b.v[1] *= g[0];
  }

  static __device__ __forceinline__ void Multiply(float (&c)[4], const FragmentA& a,
                                                  const FragmentB& b) {
    const float b0 = Round(b.v[0]);
    const float b1 = Round(b.v[1]);
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(Bits(a.v[0])), "r"(Bits(a.v[1])), "r"(Bits(a.v[2])), "r"(Bits(a.v[3])), "r"(Bits(b0)),
          "r"(Bits(b1)));
  }

 private:
  static __device__ __forceinline__ uint32_t Bits(float v) { return __float_as_uint(v); }
  static __device__ __forceinline__ float Round(float v) { return __uint_as_float(RoundToTf32(v)); }
};

// float32 throughout, on the ordinary arithmetic units.
struct Fp32Math {
  using T = float;
  static constexpr int kDepth = 1;
  struct FragmentA {
    float v[2];
  };
  struct FragmentB {
    float v[2];
  };

  template <bool kIsDepthMajor, class SharedTile>
  static __device__ __forceinline__ void LoadA(FragmentA& a, SharedTile tile, int row, int depth) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      a.v[i] = TileElement<kIsDepthMajor>(tile, row + MmaRow() + i * 8, depth);
  }

  template <bool kIsDepthMajor, int kNumTiles, class SharedTile>
  static __device__ __forceinline__ void LoadB(FragmentB (&b)[kNumTiles], SharedTile tile,
                                               int depth, int col) {
#pragma unroll
    for (int j = 0; j < kNumTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        b[j].v[i] = TileElement<kIsDepthMajor>(tile, col + j * kMmaCols + MmaCol() + i, depth);
    }
  }

  static __device__ __forceinline__ void ScaleB(FragmentB& b, const float (&g)[2]) {
    b.v[0] *= g[0];
    b.v[1] *= g[0];
  }

  static __device__ __forceinline__ void Multiply(float (&c)[4], const FragmentA& a,
                                                  const FragmentB& b) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = fmaf(a.v[i / 2], b.v[i % 2], c[i]);
  }
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_MMA_CUH_
