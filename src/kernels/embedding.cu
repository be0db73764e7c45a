// The GPU side of embedding.h. The lookup copies vectors. The gradient needs no atomics:
//
//   1. The positions are sorted by index, stably, with CUB; indices out of range come last.
//   2. A warp takes a chunk of the sorted positions and a tile of columns, and adds rows of dy as
//      long as the index stays the same. A run of equal indices that lies inside the chunk is a
//      finished row of demb. The run that comes from the chunk before gives the chunk's partial
//      sum 0, and one that starts here and goes on into the next the partial sum 1.
//   3. A thread block for each run that crosses chunks adds its partial sums.
//
// So the work is even however often an index occurs, and the order of each sum depends on the
// sizes and indices alone.
#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
#include <limits>
#include <string>
#include <type_traits>

#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/elementwise.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/embedding.h"

namespace blocksparse {
namespace {

// None of these has been tuned by measurement yet.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kCopies = 4;         // vectors that a thread of the lookup has under way
constexpr int kChunk = 64;         // sorted positions of a warp
constexpr int kBatch = 8;          // of which so many are loaded at a time
constexpr int kJoinColumns = 256;  // columns of a thread block that adds partial sums
static_assert(kChunk % kBatch == 0, "a chunk is a whole number of batches");
constexpr int64_t kWorkspaceAlignment = 256;

int64_t CeilDiv(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// ---- lookup

struct LookupParams {
  EmbeddingArgs args;
  int64_t row_units;  // units of a row
  int64_t num_units;  // of y
};

// Unit: the largest type that rows are aligned for.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    EmbeddingKernel(const __grid_constant__ LookupParams p) {
  const Unit* emb = static_cast<const Unit*>(p.args.emb);
  Unit* y = static_cast<Unit*>(p.args.y);
  const int64_t first = blockIdx.x * int64_t{kThreads * kCopies} + threadIdx.x;
  Unit units[kCopies];
#pragma unroll
  for (int c = 0; c < kCopies; ++c) {
    const int64_t i = first + c * kThreads;
    units[c] = Unit{};
    if (i >= p.num_units) continue;
    // Divisions of 64 bits are slow, and seldom needed.
    const int64_t n = p.num_units <= UINT32_MAX
                          ? static_cast<uint32_t>(i) / static_cast<uint32_t>(p.row_units)
                          : i / p.row_units;
    const int64_t row = IndexOf(p.args.in, n);
    if (IsRow(p.args.in, row)) units[c] = emb[row * p.row_units + (i - n * p.row_units)];
  }
#pragma unroll
  for (int c = 0; c < kCopies; ++c) {
    const int64_t i = first + c * kThreads;
    if (i < p.num_units) y[i] = units[c];
  }
}

template <typename Unit>
bool AreRowsAligned(const EmbeddingArgs& args, int64_t row_bytes) {
  const uintptr_t addresses =
      reinterpret_cast<uintptr_t>(args.emb) | reinterpret_cast<uintptr_t>(args.y);
  return (addresses | static_cast<uintptr_t>(row_bytes)) % sizeof(Unit) == 0;
}

template <typename Unit>
Status Lookup(const EmbeddingArgs& args, int64_t row_bytes, Stream stream) {
  const int64_t row_units = row_bytes / static_cast<int64_t>(sizeof(Unit));
  const LookupParams params = {args, row_units, args.in.num_indices * row_units};
  return Launch("EmbeddingKernel", EmbeddingKernel<Unit>,
                CeilDiv(params.num_units, kThreads * kCopies), kThreads, 0, stream, params);
}

// ---- gradient

struct GradParams {
  EmbeddingGradArgs args;
  uint32_t* rows;   // sorted; `in.rows` stands for an index out of range
  uint32_t* order;  // the position of each
  float* partials;  // [num_chunks, 2, width]
  int64_t num_chunks;
  int64_t num_tiles;  // of columns
};

__global__ void __launch_bounds__(kThreads)
    EmbeddingKeysKernel(const __grid_constant__ GradParams p) {
  const int64_t n = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (n >= p.args.in.num_indices) return;
  const int64_t row = IndexOf(p.args.in, n);
  p.rows[n] = static_cast<uint32_t>(IsRow(p.args.in, row) ? row : p.args.in.rows);
  p.order[n] = static_cast<uint32_t>(n);
}

// Whether the run at the end of chunk - 1 goes on in `chunk`.
__device__ __forceinline__ bool RunCrossesInto(const GradParams& p, int64_t chunk) {
  const int64_t begin = chunk * kChunk;
  return 0 < chunk && chunk < p.num_chunks && p.rows[begin - 1] == p.rows[begin];
}
__device__ __forceinline__ float* Partial(const GradParams& p, int64_t chunk, int which) {
  return p.partials + (chunk * 2 + which) * p.args.in.width;
}

// kVector neighbouring sums.
template <int kVector>
struct Sums {
  float values[kVector];

  __device__ __forceinline__ void SetZero() {
#pragma unroll
    for (float& value : values) value = 0.f;
  }
  template <typename T>
  __device__ __forceinline__ void Add(const Vector<T, kVector>& x) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) values[v] += x.Get(v);
  }
  // As 16-byte vectors, to an aligned address, unless kVector is 1.
  template <typename T>
  __device__ __forceinline__ void Store(T* pointer) const {
    if constexpr (kVector == 1) {
      *pointer = T(values[0]);
    } else {
#pragma unroll
      for (int first = 0; first < kVector; first += kVectorOf<T>) {
        Vector<T, kVectorOf<T>> vector;
#pragma unroll
        for (int v = 0; v < kVectorOf<T>; ++v) vector.Set(v, values[first + v]);
        vector.Store(pointer + first);
      }
    }
  }
};

template <typename T, typename TGrad, int kVector>
__global__ void __launch_bounds__(kThreads)
    EmbeddingGradKernel(const __grid_constant__ GradParams p) {
  const EmbeddingInputs& in = p.args.in;
  const int64_t warp = blockIdx.x * int64_t{kWarps} + threadIdx.x / kWarpSize;
  const int64_t chunk = warp / p.num_tiles;
  const int64_t column =
      ((warp - chunk * p.num_tiles) * kWarpSize + threadIdx.x % kWarpSize) * kVector;
  if (chunk >= p.num_chunks || column >= in.width) return;
  const T* dy = static_cast<const T*>(p.args.dy) + column;
  TGrad* demb = static_cast<TGrad*>(p.args.demb) + column;

  const int64_t begin = chunk * kChunk;
  const int64_t end = min(begin + kChunk, in.num_indices);
  bool is_continued = RunCrossesInto(p, chunk);
  uint32_t row = p.rows[begin];
  Sums<kVector> sums;
  sums.SetZero();
  for (int64_t first = begin; first < end && row < in.rows; first += kBatch) {
    Vector<T, kVector> values[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (first + i < end) values[i].Load(dy + p.order[first + i] * in.width);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= end) break;
      const uint32_t next = p.rows[first + i];
      if (next != row) {
        if (is_continued) {
          sums.Store(Partial(p, chunk, 0) + column);
        } else {
          sums.Store(demb + row * in.width);
        }
        sums.SetZero();
        is_continued = false;
        row = next;
        if (row >= in.rows) break;
      }
      sums.Add(values[i]);
    }
  }
  if (row >= in.rows) return;
  if (is_continued) {
    sums.Store(Partial(p, chunk, 0) + column);
  } else if (RunCrossesInto(p, chunk + 1)) {
    sums.Store(Partial(p, chunk, 1) + column);
  } else {
    sums.Store(demb + row * in.width);
  }
}

// The first chunk after `chunk` whose first position has another row.
__device__ __forceinline__ int64_t EndOfRun(const GradParams& p, int64_t chunk, uint32_t row) {
  int64_t low = chunk + 1;
  int64_t high = p.num_chunks;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.rows[middle * kChunk] == row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <typename TGrad>
__global__ void __launch_bounds__(kThreads)
    EmbeddingJoinKernel(const __grid_constant__ GradParams p) {
  const EmbeddingInputs& in = p.args.in;
  const int64_t chunk = blockIdx.x / p.num_tiles;
  if (!RunCrossesInto(p, chunk + 1)) return;
  const uint32_t row = p.rows[(chunk + 1) * kChunk];
  if (row >= in.rows) return;
  // The run started in an earlier chunk, which another thread block starts from.
  if (RunCrossesInto(p, chunk) && p.rows[chunk * kChunk] == row) return;

  __shared__ float sums[kWarps][kWarpSize];
  const int warp = threadIdx.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t end_chunk = EndOfRun(p, chunk, row);
  const int64_t begin = (blockIdx.x - chunk * p.num_tiles) * kJoinColumns;
  const int64_t end = min(begin + kJoinColumns, in.width);
  for (int64_t first = begin; first < end; first += kWarpSize) {
    const int64_t column = first + lane;
    float sum = 0.f;
    if (column < end) {
#pragma unroll 4
      for (int64_t c = chunk + 1 + warp; c < end_chunk; c += kWarps)
        sum += Partial(p, c, 0)[column];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < end) {
      sum = Partial(p, chunk, 1)[column];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += sums[w][lane];
      static_cast<TGrad*>(p.args.demb)[row * in.width + column] = TGrad(sum);
    }
    __syncthreads();  // before the next columns overwrite the sums
  }
}

// The bits that a sort of row numbers up to `rows` must look at.
int NumBits(int64_t rows) {
  int bits = 1;
  while (rows >> bits != 0) ++bits;
  return bits;
}

// Where everything lies in the workspace.
struct Workspace {
  uint32_t* rows[2];
  uint32_t* order[2];
  float* partials;
  void* sort;
  size_t sort_bytes;
  int64_t bytes;
};

cudaError_t Sort(const EmbeddingInputs& in, const Workspace& workspace, void* temporary,
                 size_t* bytes, cub::DoubleBuffer<uint32_t>* rows,
                 cub::DoubleBuffer<uint32_t>* order, Stream stream) {
  *rows = cub::DoubleBuffer<uint32_t>(workspace.rows[0], workspace.rows[1]);
  *order = cub::DoubleBuffer<uint32_t>(workspace.order[0], workspace.order[1]);
  return cub::DeviceRadixSort::SortPairs(temporary, *bytes, *rows, *order,
                                         static_cast<int32_t>(in.num_indices), 0, NumBits(in.rows),
                                         stream);
}

Status LayOut(const EmbeddingGradArgs& args, Workspace* workspace) {
  const EmbeddingInputs& in = args.in;
  constexpr int64_t kLimit = std::numeric_limits<int32_t>::max();
  if (in.rows > kLimit || in.num_indices > kLimit)
    return Unsupported(
        "at most 2^31 - 1 rows and indices on a GPU. Received: " + std::to_string(in.rows) +
        " rows and " + std::to_string(in.num_indices) + " indices");
  *workspace = {};
  cub::DoubleBuffer<uint32_t> rows, order;
  BLOCKSPARSE_RETURN_IF_ERROR(
      CudaStatus("DeviceRadixSort",
                 Sort(in, *workspace, nullptr, &workspace->sort_bytes, &rows, &order, nullptr)));
  char* base = static_cast<char*>(args.workspace);
  int64_t& offset = workspace->bytes;
  const auto take = [&](int64_t bytes) {
    char* const start = base == nullptr ? nullptr : base + offset;
    offset += CeilDiv(bytes, kWorkspaceAlignment) * kWorkspaceAlignment;
    return start;
  };
  const int64_t list_bytes = in.num_indices * static_cast<int64_t>(sizeof(uint32_t));
  for (int i = 0; i < 2; ++i) {
    workspace->rows[i] = reinterpret_cast<uint32_t*>(take(list_bytes));
    workspace->order[i] = reinterpret_cast<uint32_t*>(take(list_bytes));
  }
  workspace->partials = reinterpret_cast<float*>(
      take(CeilDiv(in.num_indices, kChunk) * 2 * in.width * int64_t{sizeof(float)}));
  workspace->sort = take(static_cast<int64_t>(workspace->sort_bytes));
  return Status();
}

template <typename T, typename TGrad, int kVector>
Status SumRuns(GradParams params, Stream stream) {
  const int64_t width = params.args.in.width;
  params.num_tiles = CeilDiv(width, kWarpSize * kVector);
  BLOCKSPARSE_RETURN_IF_ERROR(Launch("EmbeddingGradKernel", EmbeddingGradKernel<T, TGrad, kVector>,
                                     CeilDiv(params.num_chunks * params.num_tiles, kWarps),
                                     kThreads, 0, stream, params));
  params.num_tiles = CeilDiv(width, kJoinColumns);
  return Launch("EmbeddingJoinKernel", EmbeddingJoinKernel<TGrad>,
                (params.num_chunks - 1) * params.num_tiles, kThreads, 0, stream, params);
}

bool HasWork(const EmbeddingGradArgs& args) { return args.in.num_indices > 0 && args.in.width > 0; }

}  // namespace

Status EmbeddingGpu(const EmbeddingArgs& args, Stream stream) {
  const int64_t row_bytes = args.in.width * SizeOf(args.in.dtype);
  if (row_bytes == 0) return Status();
  if (AreRowsAligned<uint4>(args, row_bytes)) return Lookup<uint4>(args, row_bytes, stream);
  if (AreRowsAligned<uint32_t>(args, row_bytes)) return Lookup<uint32_t>(args, row_bytes, stream);
  return Lookup<uint16_t>(args, row_bytes, stream);
}

Status EmbeddingGradWorkspaceBytes(const EmbeddingGradArgs& args, int64_t* bytes) {
  *bytes = 0;
  if (!HasWork(args)) return Status();
  Workspace workspace;
  BLOCKSPARSE_RETURN_IF_ERROR(LayOut(args, &workspace));
  *bytes = workspace.bytes;
  return Status();
}

Status EmbeddingGradGpu(const EmbeddingGradArgs& args, Stream stream) {
  const EmbeddingInputs& in = args.in;
  const int64_t demb_bytes = in.rows * in.width * SizeOf(args.demb_dtype);
  if (demb_bytes == 0) return Status();
  // Rows without an index stay zero.
  BLOCKSPARSE_RETURN_IF_ERROR(
      CudaStatus("cudaMemsetAsync", cudaMemsetAsync(args.demb, 0, demb_bytes, stream)));
  if (!HasWork(args)) return Status();
  Workspace workspace;
  BLOCKSPARSE_RETURN_IF_ERROR(LayOut(args, &workspace));
  GradParams params = {};
  params.args = args;
  params.partials = workspace.partials;
  params.num_chunks = CeilDiv(in.num_indices, kChunk);
  params.rows = workspace.rows[0];
  params.order = workspace.order[0];
  BLOCKSPARSE_RETURN_IF_ERROR(Launch("EmbeddingKeysKernel", EmbeddingKeysKernel,
                                     CeilDiv(in.num_indices, kThreads), kThreads, 0, stream,
                                     params));
  cub::DoubleBuffer<uint32_t> rows, order;
  BLOCKSPARSE_RETURN_IF_ERROR(CudaStatus(
      "DeviceRadixSort",
      Sort(in, workspace, workspace.sort, &workspace.sort_bytes, &rows, &order, stream)));
  params.rows = rows.Current();
  params.order = order.Current();
  return WithGpuType(in.dtype, [&](auto t) {
    using T = decltype(t);
    const bool can_vectorise =
        in.width % kVectorOf<T> == 0 && IsVectorAligned(args.dy) && IsVectorAligned(args.demb);
    return WithGpuType(args.demb_dtype, [&](auto t_grad) {
      using TGrad = decltype(t_grad);
      if constexpr (std::is_same_v<T, TGrad> || std::is_same_v<TGrad, float>) {
        return can_vectorise ? SumRuns<T, TGrad, kVectorOf<T>>(params, stream)
                             : SumRuns<T, TGrad, 1>(params, stream);
      } else {
        return Unsupported("the gradient must have the table's dtype or float32");
      }
    });
  });
}

}  // namespace blocksparse
