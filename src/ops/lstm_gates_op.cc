// TensorFlow's view of the lstm_gates room: registration, shapes, allocation. The arithmetic is in
// src/kernels/lstm_gates.h.
#include "src/kernels/lstm_gates.h"
#include "src/ops/layout_inputs.h"  // Dims and CheckShape
#include "src/ops/op_utils.h"
#include "tensorflow/core/framework/op.h"

namespace blocksparse {
namespace {

using ::tensorflow::OpInputList;
using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::OpOutputList;
using ::tensorflow::Tensor;
using ::tensorflow::shape_inference::InferenceContext;

// One tensor holds the gates as quarters, or each has its own.
absl::Status CheckCounts(const std::string& op, int num_gates, int num_biases) {
  if (num_gates != 1 && num_gates != kNumGates)
    return InvalidArgument(op, ": gates must be 1 tensor or 4 (i, u, f, o). Received: ", num_gates);
  if (num_biases > (num_gates == 1 ? 1 : 0))
    return InvalidArgument(op, ": ", num_gates == 1 ? "at most one bias is" : "no bias is",
                           " supported with ", num_gates, " gates. Received: ", num_biases);
  return absl::OkStatus();
}

// The shapes of gates and bias follow from that of c.
absl::Status CheckShapes(const std::string& op, const Dims& c, const std::vector<Dims>& gates,
                         const std::vector<Dims>& biases) {
  if (!c.has_rank) return absl::OkStatus();
  Dims expected = c;
  if (gates.size() == 1) {
    if (c.rank() < 1)
      return InvalidArgument(op, ": c must have rank 1 or more. Received: c.shape=", c.ToString());
    if (expected.sizes.back() != Dims::kUnknown) expected.sizes.back() *= kNumGates;
  }
  for (const Dims& gate : gates) {
    const absl::Status status = CheckShape(op, "gates", gate, expected);
    if (!status.ok()) return status;
  }
  for (const Dims& bias : biases) {
    const absl::Status status = CheckShape(op, "bias", bias, {true, {expected.sizes.back()}});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckOpShapes(InferenceContext* c, const std::string& op) {
  int32_t num_gates = 0;
  int32_t num_biases = 0;
  TF_RETURN_IF_ERROR(c->GetAttr("num_gates", &num_gates));
  TF_RETURN_IF_ERROR(c->GetAttr("num_biases", &num_biases));
  TF_RETURN_IF_ERROR(CheckCounts(op, num_gates, num_biases));
  std::vector<Dims> gates, biases;
  for (int i = 0; i < num_gates; ++i) gates.push_back(DimsOf(c, c->input(1 + i)));
  for (int i = 0; i < num_biases; ++i) biases.push_back(DimsOf(c, c->input(1 + num_gates + i)));
  return CheckShapes(op, DimsOf(c, c->input(0)), gates, biases);
}

REGISTER_OP("BlocksparseLstmGates")
    .Input("c: T")
    .Input("gates: num_gates * T")
    .Input("bias: num_biases * float")
    .Output("c_next: T")
    .Output("h_next: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("num_gates: int >= 1")
    .Attr("num_biases: int >= 0")
    .Attr("forget_bias: float")
    .SetShapeFn([](InferenceContext* c) {
      TF_RETURN_IF_ERROR(CheckOpShapes(c, "BlocksparseLstmGates"));
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(0));
      return absl::OkStatus();
    })
    .Doc(R"(
The next state of an LSTM: c_next = sigmoid(f + forget_bias) c + sigmoid(i) tanh(u),
h_next = sigmoid(o) tanh(c_next).

c: [..., K].
gates: one [..., 4 K] with the quarters i, u, f, o, or these four, each of the shape of c.
bias: none, or one float[4 K] beside a single tensor of gates.
)");

REGISTER_OP("BlocksparseLstmGatesGrad")
    .Input("c: T")
    .Input("gates: num_gates * T")
    .Input("bias: num_biases * float")
    .Input("dc_next: num_dc_next * T")
    .Input("dh_next: num_dh_next * T")
    .Output("dc: T")
    .Output("dgates: num_gates * T")
    .Output("dbias: num_biases * float")
    .Attr("T: {float, half, bfloat16}")
    .Attr("num_gates: int >= 1")
    .Attr("num_biases: int >= 0")
    .Attr("num_dc_next: int >= 0")
    .Attr("num_dh_next: int >= 0")
    .Attr("forget_bias: float")
    .SetShapeFn([](InferenceContext* c) {
      TF_RETURN_IF_ERROR(CheckOpShapes(c, "BlocksparseLstmGatesGrad"));
      for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, c->input(i));
      return absl::OkStatus();
    })
    .Doc(R"(
The gradient of BlocksparseLstmGates with respect to c, gates and bias.

dc_next: none (zero), or one of the shape of c.
dh_next: none (zero), or one of the shape of c.
)");

std::vector<Dims> AllDimsOf(const OpInputList& list) {
  std::vector<Dims> dims;
  for (const Tensor& tensor : list) dims.push_back(DimsOf(tensor));
  return dims;
}

// The inputs that both directions share.
class LstmGatesKernel : public OpKernel {
 public:
  explicit LstmGatesKernel(OpKernelConstruction* context) : OpKernel(context) {
    int32_t num_gates = 0;
    int32_t num_biases = 0;
    OP_REQUIRES_OK(context, context->GetAttr("num_gates", &num_gates));
    OP_REQUIRES_OK(context, context->GetAttr("num_biases", &num_biases));
    OP_REQUIRES_OK(context, context->GetAttr("forget_bias", &forget_bias_));
    OP_REQUIRES_OK(context, CheckCounts(type_string(), num_gates, num_biases));
  }

 protected:
  absl::Status ReadInputs(OpKernelContext* context, LstmGatesInputs* in) const {
    OpInputList gates, biases;
    TF_RETURN_IF_ERROR(context->input_list("gates", &gates));
    TF_RETURN_IF_ERROR(context->input_list("bias", &biases));
    const Tensor& c = context->input(0);
    TF_RETURN_IF_ERROR(CheckShapes(type_string(), DimsOf(c), AllDimsOf(gates), AllDimsOf(biases)));
    in->dtype = DTypeOf(c.dtype());
    in->forget_bias = forget_bias_;
    in->c = c.data();
    in->bias = biases.size() == 0 ? nullptr : biases[0].flat<float>().data();
    if (gates.size() == 1) {
      in->width = c.dim_size(c.dims() - 1);
      in->rows = in->width == 0 ? 0 : c.NumElements() / in->width;
      in->gate_stride = kNumGates * in->width;
    } else {  // without bias, rows do not matter
      in->width = c.NumElements();
      in->rows = 1;
      in->gate_stride = in->width;
    }
    for (int g = 0; g < kNumGates; ++g)
      in->gates[g] = gates.size() == 1 ? Quarter(gates[0], *in, g) : gates[g].data();
    return absl::OkStatus();
  }

  // Where gate g begins in the single tensor of all gates.
  static char* Quarter(const Tensor& gates, const LstmGatesInputs& in, int g) {
    return static_cast<char*>(gates.data()) + g * in.width * SizeOf(in.dtype);
  }

 private:
  float forget_bias_;
};

template <bool kIsGpu>
class LstmGatesOp : public LstmGatesKernel {
 public:
  using LstmGatesKernel::LstmGatesKernel;

  void Compute(OpKernelContext* context) override {
    LstmGatesArgs args = {};
    OP_REQUIRES_OK(context, ReadInputs(context, &args.in));
    Tensor* c_next = nullptr;
    Tensor* h_next = nullptr;
    const tensorflow::TensorShape& shape = context->input(0).shape();
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &c_next));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &h_next));
    args.c_next = c_next->data();
    args.h_next = h_next->data();
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LstmGatesGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LstmGatesCpu(args, ParallelForOf(context))));
    }
  }
};

template <bool kIsGpu>
class LstmGatesGradOp : public LstmGatesKernel {
 public:
  using LstmGatesKernel::LstmGatesKernel;

  void Compute(OpKernelContext* context) override {
    LstmGatesGradArgs args = {};
    OP_REQUIRES_OK(context, ReadInputs(context, &args.in));
    OP_REQUIRES_OK(context, ReadGradient(context, "dc_next", &args.dc_next));
    OP_REQUIRES_OK(context, ReadGradient(context, "dh_next", &args.dh_next));
    OP_REQUIRES_OK(context, AllocateOutputs(context, &args));
    Tensor workspace;
    if constexpr (kIsGpu) {
      const int64_t bytes = LstmGatesGradWorkspaceBytes(args);
      if (bytes > 0) {
        const tensorflow::TensorShape floats({bytes / static_cast<int64_t>(sizeof(float))});
        OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT, floats, &workspace));
        args.workspace = workspace.flat<float>().data();
      }
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LstmGatesGradGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context,
                     ToAbsl(type_string(), LstmGatesGradCpu(args, ParallelForOf(context))));
    }
  }

 private:
  absl::Status ReadGradient(OpKernelContext* context, const char* name, const void** data) const {
    OpInputList list;
    TF_RETURN_IF_ERROR(context->input_list(name, &list));
    if (list.size() > 1)
      return InvalidArgument(type_string(), ": at most one ", name,
                             " is supported. Received: ", list.size());
    if (list.size() == 0) return absl::OkStatus();
    TF_RETURN_IF_ERROR(CheckShape(type_string(), name, DimsOf(list[0]), DimsOf(context->input(0))));
    *data = list[0].data();
    return absl::OkStatus();
  }

  static absl::Status AllocateOutputs(OpKernelContext* context, LstmGatesGradArgs* args) {
    OpInputList gates, biases;
    OpOutputList dgates, dbiases;
    TF_RETURN_IF_ERROR(context->input_list("gates", &gates));
    TF_RETURN_IF_ERROR(context->input_list("bias", &biases));
    TF_RETURN_IF_ERROR(context->output_list("dgates", &dgates));
    TF_RETURN_IF_ERROR(context->output_list("dbias", &dbiases));
    Tensor* dc = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(0, context->input(0).shape(), &dc));
    args->dc = dc->data();
    Tensor* tensor = nullptr;
    for (int i = 0; i < gates.size(); ++i) {
      TF_RETURN_IF_ERROR(dgates.allocate(i, gates[i].shape(), &tensor));
      args->dgates[i] = tensor->data();
    }
    if (gates.size() == 1)
      for (int g = 0; g < kNumGates; ++g) args->dgates[g] = Quarter(*tensor, args->in, g);
    if (biases.size() > 0) {
      TF_RETURN_IF_ERROR(dbiases.allocate(0, biases[0].shape(), &tensor));
      args->dbias = tensor->flat<float>().data();
    }
    return absl::OkStatus();
  }
};

#define BLOCKSPARSE_REGISTER(DEVICE, IS_GPU)                                                 \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseLstmGates").Device(DEVICE), LstmGatesOp<IS_GPU>); \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseLstmGatesGrad").Device(DEVICE), LstmGatesGradOp<IS_GPU>)

BLOCKSPARSE_REGISTER(tensorflow::DEVICE_CPU, false);
#ifdef BLOCKSPARSE_WITH_CUDA
BLOCKSPARSE_REGISTER(tensorflow::DEVICE_GPU, true);
#endif
#undef BLOCKSPARSE_REGISTER

}  // namespace
}  // namespace blocksparse
