// The elementwise half of an LSTM step, from the gates before their activation functions to the
// next state, and its gradient.
//
//   c' = s(f) c + s(i) tanh(u)                 s(x) = 1 / (1 + exp(-x)); i, u, f and o are the
//   h' = s(o) tanh(c')                         gates plus bias, f also plus forget_bias
//
//   do = dh' tanh(c') s'(o)                    e     = dc' + dh' s(o) (1 - tanh(c')^2)
//   di = e tanh(u) s'(i)                       dc    = e s(f)
//   du = e s(i) (1 - tanh(u)^2)                dbias = the sums of di, du, df, do over the rows,
//   df = e c s'(f)                                     before they are rounded to T
//
// The gradient computes c' again: all that this takes is read anyway, and c' keeps float32's
// precision whatever T is.
//
// Buffers, row-major, of any alignment: c, c', h' and their gradients T[rows, width]; each of the
// four gates T[rows, width] with gate_stride elements from row to row, which is 4 width where the
// gates are the quarters i, u, f, o of one tensor's rows, and width where each is a tensor of its
// own; dgates like gates. bias, dbias float[4 width] or null. Arithmetic in float32.
// dbias is added up in an order that depends on the sizes and the pointers' alignment alone, so
// results repeat bit for bit.
#ifndef BLOCKSPARSE_KERNELS_LSTM_GATES_H_
#define BLOCKSPARSE_KERNELS_LSTM_GATES_H_

#include "src/kernels/common/dtype.h"
#include "src/kernels/common/parallel_for.h"
#include "src/kernels/common/status.h"
#include "src/kernels/matmul.h"

namespace blocksparse {

// The gates' places in arrays, and in the quarters of a single tensor and of the bias.
enum LstmGate { kInputGate = 0, kUpdate = 1, kForgetGate = 2, kOutputGate = 3, kNumGates = 4 };

// What both directions read.
struct LstmGatesInputs {
  DType dtype;
  int64_t rows;
  int64_t width;
  int64_t gate_stride;
  float forget_bias;
  const void* c;
  const void* gates[kNumGates];
  const float* bias;  // null: none
};

struct LstmGatesArgs {
  LstmGatesInputs in;
  void* c_next;
  void* h_next;
};

struct LstmGatesGradArgs {
  LstmGatesInputs in;
  const void* dc_next;  // null: zero
  const void* dh_next;  // null: zero
  void* dc;
  void* dgates[kNumGates];
  float* dbias;      // null if bias is
  float* workspace;  // GPU: LstmGatesGradWorkspaceBytes, may be null if that is 0. CPU: unused
};

Status LstmGatesCpu(const LstmGatesArgs& args, const ParallelFor& parallel_for);
Status LstmGatesGradCpu(const LstmGatesGradArgs& args, const ParallelFor& parallel_for);
Status LstmGatesGpu(const LstmGatesArgs& args, Stream stream);
Status LstmGatesGradGpu(const LstmGatesGradArgs& args, Stream stream);

// Scratch of LstmGatesGradGpu: the partial sums of dbias, at most 8 MiB + 16 width bytes. All other
// fields of args must be set.
int64_t LstmGatesGradWorkspaceBytes(const LstmGatesGradArgs& args);

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_LSTM_GATES_H_
