// The CPU side of lstm_gates.h: a span of a row in one loop that vector instructions work on, from
// what is read to what is written. dbias is summed over fixed tiles of rows, then over the tiles,
// whatever the number of threads.
#include <algorithm>

#include "src/kernels/common/cpu_math.h"
#include "src/kernels/common/scratch.h"
#include "src/kernels/lstm_gates.h"

namespace blocksparse {
namespace {

// Columns whose part of dbias stays in the first-level cache.
constexpr int64_t kLargestSpan = 1024;
// A tile of rows with sums of its own: enough that adding up the tiles' sums counts little.
constexpr int64_t kTileRows = 8;
constexpr int64_t kMaxTiles = 64;
constexpr int64_t kCostOfElement = 5;
constexpr float kZeros[kLargestSpan] = {};  // of any type

// Some columns of one row.
struct Span {
  int64_t row;
  int64_t column;
  int64_t size;
};

BLOCKSPARSE_INLINE int64_t IndexOf(const LstmGatesInputs& in, const Span& at) {
  return at.row * in.width + at.column;
}
// In a gate's tensor.
BLOCKSPARSE_INLINE int64_t GateIndexOf(const LstmGatesInputs& in, const Span& at) {
  return at.row * in.gate_stride + at.column;
}

// The four gates with their biases, of one element of a span.
template <typename T, bool kHasBias>
struct Gates {
  const T* values[kNumGates];
  const float* bias[kNumGates];
  float shift[kNumGates] = {};

  BLOCKSPARSE_INLINE Gates(const LstmGatesInputs& in, const Span& at) {
    for (int g = 0; g < kNumGates; ++g) {
      values[g] = static_cast<const T*>(in.gates[g]) + GateIndexOf(in, at);
      bias[g] = kHasBias ? in.bias + g * in.width + at.column : nullptr;
    }
    shift[kForgetGate] = in.forget_bias;
  }
  template <LstmGate kGate>
  BLOCKSPARSE_INLINE float At(int64_t i) const {
    const float value = ToFloat(values[kGate][i]);
    return value + (kHasBias ? bias[kGate][i] + shift[kGate] : shift[kGate]);
  }
};

template <typename T, bool kHasBias>
BLOCKSPARSE_INLINE void NextState(const LstmGatesArgs& args, const Span& at) {
  const Gates<T, kHasBias> gates(args.in, at);
  const int64_t index = IndexOf(args.in, at);
  const T* c = static_cast<const T*>(args.in.c) + index;
  T* c_next = static_cast<T*>(args.c_next) + index;
  T* h_next = static_cast<T*>(args.h_next) + index;
  BLOCKSPARSE_INDEPENDENT
  for (int64_t i = 0; i < at.size; ++i) {
    const float input = SigmoidOf(gates.template At<kInputGate>(i)).value;
    const float forget = SigmoidOf(gates.template At<kForgetGate>(i)).value;
    const float output = SigmoidOf(gates.template At<kOutputGate>(i)).value;
    const float update = Tanh(gates.template At<kUpdate>(i));
    const float state = forget * ToFloat(c[i]) + input * update;
    c_next[i] = FromFloat<T>(state);
    h_next[i] = FromFloat<T>(output * Tanh(state));
  }
}

// Adds to dbias, which starts at the span's column, where there are biases.
template <typename T, bool kHasBias>
BLOCKSPARSE_INLINE void Gradients(const LstmGatesGradArgs& args, const Span& at, float* dbias) {
  const LstmGatesInputs& in = args.in;
  const Gates<T, kHasBias> gates(in, at);
  const int64_t index = IndexOf(in, at);
  const auto gradient_or_zeros = [&](const void* gradient) __attribute__((always_inline)) {
    return gradient == nullptr ? reinterpret_cast<const T*>(kZeros)
                               : static_cast<const T*>(gradient) + index;
  };
  const T* c = static_cast<const T*>(in.c) + index;
  const T* dc_next = gradient_or_zeros(args.dc_next);
  const T* dh_next = gradient_or_zeros(args.dh_next);
  T* dc = static_cast<T*>(args.dc) + index;
  T* dgates[kNumGates];
  for (int g = 0; g < kNumGates; ++g) {
    dgates[g] = static_cast<T*>(args.dgates[g]) + GateIndexOf(in, at);
  }
  BLOCKSPARSE_INDEPENDENT
  for (int64_t i = 0; i < at.size; ++i) {
    const Sigmoid input = SigmoidOf(gates.template At<kInputGate>(i));
    const Sigmoid forget = SigmoidOf(gates.template At<kForgetGate>(i));
    const Sigmoid output = SigmoidOf(gates.template At<kOutputGate>(i));
    const float update = Tanh(gates.template At<kUpdate>(i));
    const float before = ToFloat(c[i]);
    const float h = Tanh(forget.value * before + input.value * update);
    const float dh = ToFloat(dh_next[i]);
    const float e = ToFloat(dc_next[i]) + dh * output.value * (1.f - h * h);
    const float results[kNumGates] = {
        e * update * input.slope,
        e * input.value * (1.f - update * update),
        e * before * forget.slope,
        dh * h * output.slope,
    };
    dc[i] = FromFloat<T>(e * forget.value);
    dgates[kInputGate][i] = FromFloat<T>(results[kInputGate]);
    dgates[kUpdate][i] = FromFloat<T>(results[kUpdate]);
    dgates[kForgetGate][i] = FromFloat<T>(results[kForgetGate]);
    dgates[kOutputGate][i] = FromFloat<T>(results[kOutputGate]);
    if (!kHasBias) continue;
    dbias[i] += results[kInputGate];
    dbias[in.width + i] += results[kUpdate];
    dbias[2 * in.width + i] += results[kForgetGate];
    dbias[3 * in.width + i] += results[kOutputGate];
  }
}

template <typename T>
BLOCKSPARSE_INLINE void WorkOn(const LstmGatesArgs& args, const Span& at, float*) {
  if (args.in.bias == nullptr) return NextState<T, false>(args, at);
  NextState<T, true>(args, at);
}
template <typename T>
BLOCKSPARSE_INLINE void WorkOn(const LstmGatesGradArgs& args, const Span& at, float* dbias) {
  if (args.in.bias == nullptr) return Gradients<T, false>(args, at, nullptr);
  Gradients<T, true>(args, at, dbias);
}

template <class Args>
BLOCKSPARSE_INLINE void WithType(const Args& args, const Span& at, float* dbias) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return WorkOn<float>(args, at, dbias);
    case DType::kFloat16:
      return WorkOn<Half>(args, at, dbias);
    case DType::kBFloat16:
      return WorkOn<BFloat16>(args, at, dbias);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void NextStateOfSpan(const LstmGatesArgs& args, const Span& at) { WithType(args, at, nullptr); }

BLOCKSPARSE_FOR_EACH_CPU
void GradientsOfSpan(const LstmGatesGradArgs& args, const Span& at, float* dbias) {
  WithType(args, at, dbias);
}

// Calls f(span) for the elements of all rows, one after another.
template <class F>
void ForEachSpan(const LstmGatesInputs& in, const ParallelFor& parallel_for, F f) {
  parallel_for(in.rows * in.width, kCostOfElement, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t column = begin % in.width;
      const int64_t size = std::min({kLargestSpan, in.width - column, end - begin});
      f(Span{begin / in.width, column, size});
      begin += size;
    }
  });
}

// A task is a tile of some rows of some columns.
void GradientsAndBias(const LstmGatesGradArgs& args, const ParallelFor& parallel_for) {
  const LstmGatesInputs& in = args.in;
  const int64_t size = kNumGates * in.width;
  const int64_t rows = std::max(kTileRows, (in.rows + kMaxTiles - 1) / kMaxTiles);
  const int64_t num_tiles = (in.rows + rows - 1) / rows;
  const int64_t num_spans = (in.width + kLargestSpan - 1) / kLargestSpan;
  const Scratch partials(num_tiles * size);
  const int64_t cost = std::min(rows, in.rows) * std::min(kLargestSpan, in.width) * kCostOfElement;
  parallel_for(num_tiles * num_spans, cost, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t tile = task / num_spans;
      const int64_t column = task % num_spans * kLargestSpan;
      const int64_t columns = std::min(kLargestSpan, in.width - column);
      float* sums = partials.data() + tile * size + column;
      for (int g = 0; g < kNumGates; ++g) std::fill_n(sums + g * in.width, columns, 0.f);
      for (int64_t row = tile * rows; row < std::min(in.rows, (tile + 1) * rows); ++row)
        GradientsOfSpan(args, Span{row, column, columns}, sums);
    }
  });
  parallel_for(size, num_tiles, [&](int64_t begin, int64_t end) {
    std::fill(args.dbias + begin, args.dbias + end, 0.f);
    for (int64_t tile = 0; tile < num_tiles; ++tile)
      for (int64_t j = begin; j < end; ++j) args.dbias[j] += partials.data()[tile * size + j];
  });
}

}  // namespace

Status LstmGatesCpu(const LstmGatesArgs& args, const ParallelFor& parallel_for) {
  ForEachSpan(args.in, parallel_for, [&](const Span& at) { NextStateOfSpan(args, at); });
  return Status();
}

Status LstmGatesGradCpu(const LstmGatesGradArgs& args, const ParallelFor& parallel_for) {
  if (args.dbias != nullptr) {
    GradientsAndBias(args, parallel_for);
  } else {
    ForEachSpan(args.in, parallel_for, [&](const Span& at) { GradientsOfSpan(args, at, nullptr); });
  }
  return Status();
}

}  // namespace blocksparse
