// The GPU side of lstm_gates.h. Elementwise; a thread keeps to one vector of columns and walks down
// the rows of its split, so that the bias stays in registers, and so do the sums of dbias.
//
// dbias takes three ordered steps: each thread adds its rows, each thread block adds its threads
// and writes one row of the workspace, and SumPartialsKernel adds those rows.
#include "src/kernels/common/cuda_launch.h"
#include "src/kernels/common/dispatch.h"
#include "src/kernels/common/elementwise.cuh"
#include "src/kernels/common/reduce.cuh"
#include "src/kernels/lstm_gates.h"
#include "src/kernels/lstm_gates_policy.h"

namespace blocksparse {
namespace {

constexpr int kThreads = LstmGatesPolicy::kThreads;

template <class Args>
struct Params {
  Args args;
  LstmGatesGrid grid;
  float* sums;  // one row of float[4 width] for each split: the workspace, or dbias itself
};

// s(x) and s'(x) from one exponential, which never overflows; 1 - s(x) would cancel.
struct Sigmoid {
  float value;
  float slope;
};
template <typename T>
__device__ __forceinline__ Sigmoid SigmoidOf(float x) {
  const float e = Exp<T>(-fabsf(x));
  const float r = Reciprocal<T>(1.f + e);
  return {x >= 0.f ? r : e * r, e * r * r};
}
template <typename T>
__device__ __forceinline__ float SigmoidValue(float x) {
  return Reciprocal<T>(1.f + Exp<T>(-x));
}

// This thread's first column and rows.
struct Place {
  int64_t column;
  int64_t row_begin;
  int64_t row_end;
};
__device__ __forceinline__ Place PlaceOf(const LstmGatesGrid& grid, int64_t rows, int vector) {
  const int64_t tile = blockIdx.x % grid.column_tiles;
  const int64_t split = blockIdx.x / grid.column_tiles;
  const int64_t begin = split * grid.rows_per_split;
  return {(tile * grid.column_threads + threadIdx.x % grid.column_threads) * vector,
          begin + threadIdx.x / grid.column_threads, min(begin + grid.rows_per_split, rows)};
}

// What is added to each gate of this thread's columns.
template <bool kHasBias, int kVector>
__device__ __forceinline__ void LoadBias(float (&bias)[kNumGates][kVector],
                                         const LstmGatesInputs& in, int64_t column) {
#pragma unroll
  for (int g = 0; g < kNumGates; ++g) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      bias[g][v] = g == kForgetGate ? in.forget_bias : 0.f;
      if constexpr (kHasBias) {
        if (column < in.width) bias[g][v] += in.bias[g * in.width + column + v];
      }
    }
  }
}

// c and the gates of one vector.
template <typename T, int kVector>
struct Step {
  Vector<T, kVector> c;
  Vector<T, kVector> gates[kNumGates];

  __device__ __forceinline__ void Load(const LstmGatesInputs& in, int64_t row, int64_t column) {
    c.Load(static_cast<const T*>(in.c) + row * in.width + column);
#pragma unroll
    for (int g = 0; g < kNumGates; ++g)
      gates[g].Load(static_cast<const T*>(in.gates[g]) + row * in.gate_stride + column);
  }
};

template <typename T, int kVector, bool kHasBias>
__global__ void __launch_bounds__(kThreads)
    LstmGatesKernel(const __grid_constant__ Params<LstmGatesArgs> p) {
  const LstmGatesInputs& in = p.args.in;
  const Place place = PlaceOf(p.grid, in.rows, kVector);
  if (place.column >= in.width) return;
  float bias[kNumGates][kVector];
  LoadBias<kHasBias>(bias, in, place.column);
  for (int64_t row = place.row_begin; row < place.row_end; row += p.grid.row_threads) {
    Step<T, kVector> step;
    step.Load(in, row, place.column);
    Vector<T, kVector> c_next;
    Vector<T, kVector> h_next;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const auto gate = [&](int g) { return step.gates[g].Get(v) + bias[g][v]; };
      const float c = SigmoidValue<T>(gate(kForgetGate)) * step.c.Get(v) +
                      SigmoidValue<T>(gate(kInputGate)) * tanhf(gate(kUpdate));
      c_next.Set(v, c);
      h_next.Set(v, SigmoidValue<T>(gate(kOutputGate)) * tanhf(c));
    }
    const int64_t offset = row * in.width + place.column;
    c_next.Store(static_cast<T*>(p.args.c_next) + offset);
    h_next.Store(static_cast<T*>(p.args.h_next) + offset);
  }
}

// The gradient of a state; a state without one has zero.
template <typename T, int kVector>
__device__ __forceinline__ Vector<T, kVector> LoadGradient(const void* gradient, int64_t offset) {
  Vector<T, kVector> values;
  if (gradient != nullptr) {
    values.Load(static_cast<const T*>(gradient) + offset);
  } else {
    values.SetZero();
  }
  return values;
}

// Adds `sums` over the threads of each column, in order, and writes a split's row of sums.
template <int kVector>
__device__ __forceinline__ void WriteSums(const float (&sums)[kNumGates][kVector],
                                          const LstmGatesGrid& grid, int64_t width, int64_t column,
                                          float* split_sums) {
  __shared__ float shared[kVector][kThreads];
#pragma unroll
  for (int g = 0; g < kNumGates; ++g) {
    __syncthreads();  // the last gate's sums have been read
#pragma unroll
    for (int v = 0; v < kVector; ++v) shared[v][threadIdx.x] = sums[g][v];
    __syncthreads();
    if (threadIdx.x >= grid.column_threads || column >= width) continue;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      float sum = 0.f;
      for (int i = threadIdx.x; i < kThreads; i += grid.column_threads) sum += shared[v][i];
      split_sums[g * width + column + v] = sum;
    }
  }
}

template <typename T, int kVector, bool kHasBias>
__global__ void __launch_bounds__(kThreads, LstmGatesPolicy::kMinBlocks)
    LstmGatesGradKernel(const __grid_constant__ Params<LstmGatesGradArgs> p) {
  const LstmGatesInputs& in = p.args.in;
  const Place place = PlaceOf(p.grid, in.rows, kVector);
  float bias[kNumGates][kVector];
  LoadBias<kHasBias>(bias, in, place.column);
  float sums[kNumGates][kVector] = {};
  // A thread beyond the last column has no rows, but must reach the barriers.
  const int64_t row_end = place.column < in.width ? place.row_end : 0;
  for (int64_t row = place.row_begin; row < row_end; row += p.grid.row_threads) {
    Step<T, kVector> step;
    step.Load(in, row, place.column);
    const int64_t offset = row * in.width + place.column;
    const Vector<T, kVector> dc_next = LoadGradient<T, kVector>(p.args.dc_next, offset);
    const Vector<T, kVector> dh_next = LoadGradient<T, kVector>(p.args.dh_next, offset);
    Vector<T, kVector> dc;
    Vector<T, kVector> dgates[kNumGates];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const auto gate = [&](int g) { return step.gates[g].Get(v) + bias[g][v]; };
      const Sigmoid i = SigmoidOf<T>(gate(kInputGate));
      const Sigmoid f = SigmoidOf<T>(gate(kForgetGate));
      const Sigmoid o = SigmoidOf<T>(gate(kOutputGate));
      const float u = tanhf(gate(kUpdate));
      const float c = step.c.Get(v);
      const float dh = dh_next.Get(v);
      const float h = tanhf(f.value * c + i.value * u);
      const float e = dc_next.Get(v) + dh * o.value * (1.f - h * h);
      float gradients[kNumGates];
      gradients[kInputGate] = e * u * i.slope;
      gradients[kUpdate] = e * i.value * (1.f - u * u);
      gradients[kForgetGate] = e * c * f.slope;
      gradients[kOutputGate] = dh * h * o.slope;
      dc.Set(v, e * f.value);
#pragma unroll
      for (int g = 0; g < kNumGates; ++g) {
        dgates[g].Set(v, gradients[g]);
        if constexpr (kHasBias) sums[g][v] += gradients[g];
      }
    }
    dc.Store(static_cast<T*>(p.args.dc) + offset);
#pragma unroll
    for (int g = 0; g < kNumGates; ++g)
      dgates[g].Store(static_cast<T*>(p.args.dgates[g]) + row * in.gate_stride + place.column);
  }
  if constexpr (kHasBias) {
    const int64_t split = blockIdx.x / p.grid.column_tiles;
    WriteSums(sums, p.grid, in.width, place.column, p.sums + split * kNumGates * in.width);
  }
}

struct SumParams {
  const float* partials;  // [num_splits, size]
  float* sums;            // [size]
  int64_t num_splits;
  int64_t size;
};

// A warp's lanes are neighbouring columns; its thread block's warps share the splits.
__global__ void __launch_bounds__(kThreads) SumPartialsKernel(const __grid_constant__ SumParams p) {
  __shared__ float shared[kThreads];
  const int lane = threadIdx.x % kWarpSize;
  const int64_t column = blockIdx.x * int64_t{kWarpSize} + lane;
  float sum = 0.f;
  if (column < p.size) {
    for (int64_t s = threadIdx.x / kWarpSize; s < p.num_splits; s += kThreads / kWarpSize)
      sum += p.partials[s * p.size + column];
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarpSize || column >= p.size) return;
  sum = 0.f;
  for (int i = lane; i < kThreads; i += kWarpSize) sum += shared[i];
  p.sums[column] = sum;
}

bool CanVectorise(const LstmGatesInputs& in) {
  bool can = in.width % (kVectorBytes / SizeOf(in.dtype)) == 0 && IsVectorAligned(in.c);
  for (const void* gate : in.gates) can = can && IsVectorAligned(gate);
  return can;
}
bool CanVectorise(const LstmGatesArgs& args) {
  return CanVectorise(args.in) && IsVectorAligned(args.c_next) && IsVectorAligned(args.h_next);
}
bool CanVectorise(const LstmGatesGradArgs& args) {
  bool can = CanVectorise(args.in) && IsVectorAligned(args.dc_next) &&
             IsVectorAligned(args.dh_next) && IsVectorAligned(args.dc);
  for (const void* gate : args.dgates) can = can && IsVectorAligned(gate);
  return can;
}

template <class Args>
LstmGatesGrid GridOf(const Args& args, bool has_sums) {
  const int vector = CanVectorise(args) ? kVectorBytes / SizeOf(args.in.dtype) : 1;
  return LstmGatesGridOf(args.in.rows, args.in.width, vector, has_sums);
}

// Calls f(T, vector, has_bias) with the kernel's template arguments.
template <class Args, class F>
Status WithKernel(const Args& args, F f) {
  return WithGpuType(args.in.dtype, [&](auto t) {
    return WithBool(CanVectorise(args), [&](auto is_vector) {
      return WithBool(args.in.bias != nullptr, [&](auto has_bias) {
        return f(t, Int<is_vector() ? kVectorOf<decltype(t)> : 1>{}, has_bias);
      });
    });
  });
}

}  // namespace

Status LstmGatesGpu(const LstmGatesArgs& args, Stream stream) {
  const Params<LstmGatesArgs> params = {args, GridOf(args, false), nullptr};
  return WithKernel(args, [&](auto t, auto vector, auto has_bias) {
    return Launch("LstmGatesKernel", LstmGatesKernel<decltype(t), vector(), has_bias()>,
                  params.grid.num_blocks(), kThreads, 0, stream, params);
  });
}

int64_t LstmGatesGradWorkspaceBytes(const LstmGatesGradArgs& args) {
  const int64_t num_splits = GridOf(args, args.dbias != nullptr).num_splits;
  if (args.dbias == nullptr || num_splits == 1) return 0;
  return num_splits * kNumGates * args.in.width * static_cast<int64_t>(sizeof(float));
}

Status LstmGatesGradGpu(const LstmGatesGradArgs& args, Stream stream) {
  const LstmGatesGrid grid = GridOf(args, args.dbias != nullptr);
  const bool is_split = LstmGatesGradWorkspaceBytes(args) > 0;
  const Params<LstmGatesGradArgs> params = {args, grid, is_split ? args.workspace : args.dbias};
  BLOCKSPARSE_RETURN_IF_ERROR(WithKernel(args, [&](auto t, auto vector, auto has_bias) {
    return Launch("LstmGatesGradKernel", LstmGatesGradKernel<decltype(t), vector(), has_bias()>,
                  grid.num_blocks(), kThreads, 0, stream, params);
  }));
  if (!is_split) return Status();
  const int64_t size = kNumGates * args.in.width;
  const SumParams sum = {args.workspace, args.dbias, grid.num_splits, size};
  return Launch("SumPartialsKernel", SumPartialsKernel, (size + kWarpSize - 1) / kWarpSize,
                kThreads, 0, stream, sum);
}

}  // namespace blocksparse
