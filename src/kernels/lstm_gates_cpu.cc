// The CPU side of lstm_gates.h: a few columns of a row at a time, in float32 buffers that vector
// instructions work on. dbias is summed over fixed tiles of rows, then over the tiles, whatever the
// number of threads.
#include <algorithm>
#include <vector>

#include "src/kernels/common/cpu_math.h"
#include "src/kernels/lstm_gates.h"

namespace blocksparse {
namespace {

constexpr int64_t kChunk = 64;     // columns
constexpr int64_t kMaxTiles = 64;  // of rows; more than the threads that dbias is worth
constexpr int64_t kCostOfElement = 12;

// Some columns of one row.
struct Chunk {
  int64_t row;
  int64_t column;
  int64_t size;  // at most kChunk
};

template <typename T>
BLOCKSPARSE_INLINE void Read(const void* from, int64_t index, int64_t size, float* to) {
  const T* values = static_cast<const T*>(from) + index;
  for (int64_t i = 0; i < size; ++i) to[i] = ToFloat(values[i]);
}

template <typename T>
BLOCKSPARSE_INLINE void ReadOrZero(const void* from, int64_t index, int64_t size, float* to) {
  if (from == nullptr) return std::fill(to, to + size, 0.f);
  Read<T>(from, index, size, to);
}

template <typename T>
BLOCKSPARSE_INLINE void Write(const float* from, int64_t size, void* to, int64_t index) {
  T* values = static_cast<T*>(to) + index;
  for (int64_t i = 0; i < size; ++i) values[i] = FromFloat<T>(from[i]);
}

// c and the gates with bias.
template <typename T>
struct Inputs {
  float c[kChunk];
  float gates[kNumGates][kChunk];

  BLOCKSPARSE_INLINE Inputs(const LstmGatesInputs& in, const Chunk& at) {
    Read<T>(in.c, at.row * in.width + at.column, at.size, c);
    for (int g = 0; g < kNumGates; ++g) {
      Read<T>(in.gates[g], at.row * in.gate_stride + at.column, at.size, gates[g]);
      const float shift = g == kForgetGate ? in.forget_bias : 0.f;
      if (in.bias == nullptr) {
        for (int64_t i = 0; i < at.size; ++i) gates[g][i] += shift;
      } else {
        const float* bias = in.bias + g * in.width + at.column;
        for (int64_t i = 0; i < at.size; ++i) gates[g][i] += bias[i] + shift;
      }
    }
  }
};

template <typename T>
BLOCKSPARSE_INLINE void NextState(const LstmGatesArgs& args, const Chunk& at) {
  const LstmGatesInputs& in = args.in;
  const Inputs<T> inputs(in, at);
  float c_next[kChunk];
  float h_next[kChunk];
  for (int64_t i = 0; i < at.size; ++i) {
    const float input = SigmoidOf(inputs.gates[kInputGate][i]).value;
    const float forget = SigmoidOf(inputs.gates[kForgetGate][i]).value;
    const float output = SigmoidOf(inputs.gates[kOutputGate][i]).value;
    c_next[i] = forget * inputs.c[i] + input * Tanh(inputs.gates[kUpdate][i]);
    h_next[i] = output * Tanh(c_next[i]);
  }
  const int64_t index = at.row * in.width + at.column;
  Write<T>(c_next, at.size, args.c_next, index);
  Write<T>(h_next, at.size, args.h_next, index);
}

// Adds to dbias where that is not null.
template <typename T>
BLOCKSPARSE_INLINE void Gradients(const LstmGatesGradArgs& args, const Chunk& at, float* dbias) {
  const LstmGatesInputs& in = args.in;
  const int64_t index = at.row * in.width + at.column;
  const Inputs<T> inputs(in, at);
  float dc_next[kChunk];
  float dh_next[kChunk];
  ReadOrZero<T>(args.dc_next, index, at.size, dc_next);
  ReadOrZero<T>(args.dh_next, index, at.size, dh_next);
  float dc[kChunk];
  float dgates[kNumGates][kChunk];
  for (int64_t i = 0; i < at.size; ++i) {
    const Sigmoid input = SigmoidOf(inputs.gates[kInputGate][i]);
    const Sigmoid forget = SigmoidOf(inputs.gates[kForgetGate][i]);
    const Sigmoid output = SigmoidOf(inputs.gates[kOutputGate][i]);
    const float update = Tanh(inputs.gates[kUpdate][i]);
    const float c = inputs.c[i];
    const float h = Tanh(forget.value * c + input.value * update);
    const float e = dc_next[i] + dh_next[i] * output.value * (1.f - h * h);
    dc[i] = e * forget.value;
    dgates[kInputGate][i] = e * update * input.slope;
    dgates[kUpdate][i] = e * input.value * (1.f - update * update);
    dgates[kForgetGate][i] = e * c * forget.slope;
    dgates[kOutputGate][i] = dh_next[i] * h * output.slope;
  }
  Write<T>(dc, at.size, args.dc, index);
  for (int g = 0; g < kNumGates; ++g) {
    Write<T>(dgates[g], at.size, args.dgates[g], at.row * in.gate_stride + at.column);
    if (dbias == nullptr) continue;
    float* sums = dbias + g * in.width + at.column;
    for (int64_t i = 0; i < at.size; ++i) sums[i] += dgates[g][i];
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void NextStateOfChunk(const LstmGatesArgs& args, const Chunk& at) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return NextState<float>(args, at);
    case DType::kFloat16:
      return NextState<Half>(args, at);
    case DType::kBFloat16:
      return NextState<BFloat16>(args, at);
  }
}

BLOCKSPARSE_FOR_EACH_CPU
void GradientsOfChunk(const LstmGatesGradArgs& args, const Chunk& at, float* dbias) {
  switch (args.in.dtype) {
    case DType::kFloat32:
      return Gradients<float>(args, at, dbias);
    case DType::kFloat16:
      return Gradients<Half>(args, at, dbias);
    case DType::kBFloat16:
      return Gradients<BFloat16>(args, at, dbias);
  }
}

// Calls f(chunk) for the elements [begin, end) of all rows, one after another.
template <class F>
void ForEachChunk(int64_t width, int64_t begin, int64_t end, F f) {
  while (begin < end) {
    const int64_t row = begin / width;
    const int64_t column = begin % width;
    const int64_t size = std::min({kChunk, width - column, end - begin});
    f(Chunk{row, column, size});
    begin += size;
  }
}

void GradientsAndBias(const LstmGatesGradArgs& args, const ParallelFor& parallel_for) {
  const LstmGatesInputs& in = args.in;
  const int64_t size = kNumGates * in.width;
  const int64_t rows_per_tile = std::max<int64_t>((in.rows + kMaxTiles - 1) / kMaxTiles, 1);
  const int64_t num_tiles = (in.rows + rows_per_tile - 1) / rows_per_tile;
  std::vector<float> partials(num_tiles * size, 0.f);
  parallel_for(
      num_tiles, rows_per_tile * in.width * kCostOfElement, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) {
          const int64_t row_end = std::min(in.rows, (tile + 1) * rows_per_tile);
          ForEachChunk(
              in.width, tile * rows_per_tile * in.width, row_end * in.width,
              [&](const Chunk& at) { GradientsOfChunk(args, at, partials.data() + tile * size); });
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
  parallel_for(args.in.rows * args.in.width, kCostOfElement, [&](int64_t begin, int64_t end) {
    ForEachChunk(args.in.width, begin, end, [&](const Chunk& at) { NextStateOfChunk(args, at); });
  });
  return Status();
}

Status LstmGatesGradCpu(const LstmGatesGradArgs& args, const ParallelFor& parallel_for) {
  if (args.dbias != nullptr) {
    GradientsAndBias(args, parallel_for);
    return Status();
  }
  parallel_for(args.in.rows * args.in.width, kCostOfElement, [&](int64_t begin, int64_t end) {
    ForEachChunk(args.in.width, begin, end,
                 [&](const Chunk& at) { GradientsOfChunk(args, at, nullptr); });
  });
  return Status();
}

}  // namespace blocksparse
