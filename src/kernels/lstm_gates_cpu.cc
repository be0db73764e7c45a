// The CPU side of lstm_gates.h: row by row. dbias is summed over fixed tiles of rows, then over the
// tiles, whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "src/kernels/lstm_gates.h"

namespace blocksparse {
namespace {

constexpr int64_t kMaxTiles = 64;  // of rows; more than the threads that dbias is worth
constexpr int64_t kCostOfElement = 100;

// s(x) and s'(x) from one exponential, which never overflows; 1 - s(x) would cancel.
struct Sigmoid {
  float value;
  float slope;
};
Sigmoid SigmoidOf(float x) {
  const float e = std::exp(-std::fabs(x));
  const float r = 1.f / (1.f + e);
  return {x >= 0.f ? r : e * r, e * r * r};
}

// The gates of one element, with bias.
struct Gates {
  Sigmoid i, f, o;
  float u;  // tanh
};
template <typename T>
Gates GatesOf(const LstmGatesInputs& in, int64_t row, int64_t column) {
  float x[kNumGates];
  for (int g = 0; g < kNumGates; ++g) {
    x[g] = ToFloat(static_cast<const T*>(in.gates[g])[row * in.gate_stride + column]);
    const float bias = in.bias == nullptr ? 0.f : in.bias[g * in.width + column];
    x[g] += g == kForgetGate ? bias + in.forget_bias : bias;
  }
  return {SigmoidOf(x[kInputGate]), SigmoidOf(x[kForgetGate]), SigmoidOf(x[kOutputGate]),
          std::tanh(x[kUpdate])};
}

template <typename T>
float ValueOf(const void* gradient, int64_t index) {
  return gradient == nullptr ? 0.f : ToFloat(static_cast<const T*>(gradient)[index]);
}

// The gradients of one element of the gates, which it also adds to dbias where that is not null.
template <typename T>
void GradientOfElement(const LstmGatesGradArgs& args, int64_t row, int64_t column, float* dbias) {
  const LstmGatesInputs& in = args.in;
  const int64_t index = row * in.width + column;
  const Gates gates = GatesOf<T>(in, row, column);
  const float c = ValueOf<T>(in.c, index);
  const float dh_next = ValueOf<T>(args.dh_next, index);
  const float h = std::tanh(gates.f.value * c + gates.i.value * gates.u);
  const float e = ValueOf<T>(args.dc_next, index) + dh_next * gates.o.value * (1.f - h * h);
  float dgates[kNumGates];
  dgates[kInputGate] = e * gates.u * gates.i.slope;
  dgates[kUpdate] = e * gates.i.value * (1.f - gates.u * gates.u);
  dgates[kForgetGate] = e * c * gates.f.slope;
  dgates[kOutputGate] = dh_next * h * gates.o.slope;
  static_cast<T*>(args.dc)[index] = FromFloat<T>(e * gates.f.value);
  for (int g = 0; g < kNumGates; ++g) {
    static_cast<T*>(args.dgates[g])[row * in.gate_stride + column] = FromFloat<T>(dgates[g]);
    if (dbias != nullptr) dbias[g * in.width + column] += dgates[g];
  }
}

// Calls f(row, column) for all elements, some thousands of them in a thread's turn.
template <class F>
void ForEachElement(const LstmGatesInputs& in, const ParallelFor& parallel_for, F f) {
  parallel_for(in.rows * in.width, kCostOfElement, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t row = i / in.width;
      const int64_t row_end = std::min(end, (row + 1) * in.width);
      for (; i < row_end; ++i) f(row, i - row * in.width);
    }
  });
}

template <typename T>
void GradientsAndBias(const LstmGatesGradArgs& args, const ParallelFor& parallel_for) {
  const LstmGatesInputs& in = args.in;
  const int64_t size = kNumGates * in.width;
  const int64_t rows_per_tile = std::max<int64_t>((in.rows + kMaxTiles - 1) / kMaxTiles, 1);
  const int64_t num_tiles = (in.rows + rows_per_tile - 1) / rows_per_tile;
  std::vector<float> partials(num_tiles * size, 0.f);
  parallel_for(num_tiles, rows_per_tile * in.width * kCostOfElement,
               [&](int64_t begin, int64_t end) {
                 for (int64_t tile = begin; tile < end; ++tile) {
                   float* sums = partials.data() + tile * size;
                   const int64_t row_end = std::min(in.rows, (tile + 1) * rows_per_tile);
                   for (int64_t row = tile * rows_per_tile; row < row_end; ++row)
                     for (int64_t column = 0; column < in.width; ++column)
                       GradientOfElement<T>(args, row, column, sums);
                 }
               });
  parallel_for(size, num_tiles, [&](int64_t begin, int64_t end) {
    std::fill(args.dbias + begin, args.dbias + end, 0.f);
    for (int64_t tile = 0; tile < num_tiles; ++tile)
      for (int64_t j = begin; j < end; ++j) args.dbias[j] += partials[tile * size + j];
  });
}

}  // namespace

Status LstmGatesCpu(const LstmGatesArgs& args, const ParallelFor& parallel_for) {
  const LstmGatesInputs& in = args.in;
  WithCpuType(in.dtype, [&](auto t) {
    using T = decltype(t);
    ForEachElement(in, parallel_for, [&](int64_t row, int64_t column) {
      const int64_t index = row * in.width + column;
      const Gates gates = GatesOf<T>(in, row, column);
      const float c_next = gates.f.value * ValueOf<T>(in.c, index) + gates.i.value * gates.u;
      static_cast<T*>(args.c_next)[index] = FromFloat<T>(c_next);
      static_cast<T*>(args.h_next)[index] = FromFloat<T>(gates.o.value * std::tanh(c_next));
    });
  });
  return Status();
}

Status LstmGatesGradCpu(const LstmGatesGradArgs& args, const ParallelFor& parallel_for) {
  WithCpuType(args.in.dtype, [&](auto t) {
    using T = decltype(t);
    if (args.dbias != nullptr) return GradientsAndBias<T>(args, parallel_for);
    ForEachElement(args.in, parallel_for, [&](int64_t row, int64_t column) {
      GradientOfElement<T>(args, row, column, nullptr);
    });
  });
  return Status();
}

}  // namespace blocksparse
