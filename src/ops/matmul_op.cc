// TensorFlow's view of the matmul room: registration, shapes, allocation. The arithmetic is in
// src/kernels/matmul.h.
#include <type_traits>

#include "src/kernels/matmul.h"
#include "src/ops/layout_inputs.h"
#include "src/ops/op_utils.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"

namespace blocksparse {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;
using ::tensorflow::shape_inference::InferenceContext;
using ::tensorflow::shape_inference::ShapeHandle;

// The gates from input `first` on, if any, are float[num_blocks].
absl::Status CheckGateShapes(InferenceContext* c, const std::string& op, int first,
                             int64_t num_blocks) {
  int32_t num_gates = 0;
  TF_RETURN_IF_ERROR(c->GetAttr("num_gates", &num_gates));
  for (int i = 0; i < num_gates; ++i)
    TF_RETURN_IF_ERROR(
        CheckShape(op, "gate", DimsOf(c, c->input(first + i)), {true, {num_blocks}}));
  return absl::OkStatus();
}

// Shape of y = x W, or of dx = dy W^T.
absl::Status ProductShape(InferenceContext* c, bool is_dx) {
  LayoutAttrs attrs;
  TF_RETURN_IF_ERROR(attrs.ReadWithAxis(c));
  const int64_t from = is_dx ? attrs.out_blocks : attrs.in_blocks;
  const int64_t to = is_dx ? attrs.in_blocks : attrs.out_blocks;
  const std::string op = is_dx ? "BlocksparseMatmulDX" : "BlocksparseMatmul";
  const ShapeHandle x = c->input(0);
  TF_RETURN_IF_ERROR(CheckActivation(op, is_dx ? "dy" : "x", DimsOf(c, x), attrs, from));
  TF_RETURN_IF_ERROR(
      CheckShape(op, "w", DimsOf(c, c->input(1)), WeightShape(Dims::kUnknown, attrs)));
  const Dims w = DimsOf(c, c->input(1));
  TF_RETURN_IF_ERROR(CheckGateShapes(c, op, 2, w.has_rank ? w.sizes[0] : Dims::kUnknown));
  ShapeHandle y = c->UnknownShape();
  if (c->RankKnown(x))
    TF_RETURN_IF_ERROR(
        c->ReplaceDim(x, attrs.FeatureDim(c->Rank(x)), c->MakeDim(to * attrs.block_size), &y));
  c->set_output(0, y);
  return absl::OkStatus();
}

absl::Status DwShape(InferenceContext* c) {
  LayoutAttrs attrs;
  TF_RETURN_IF_ERROR(attrs.ReadWithAxis(c));
  int32_t num_pairs = 0;
  TF_RETURN_IF_ERROR(c->GetAttr("num_pairs", &num_pairs));
  for (int i = 0; i < num_pairs; ++i) {
    TF_RETURN_IF_ERROR(CheckActivation("BlocksparseMatmulDW", "x", DimsOf(c, c->input(i)), attrs,
                                       attrs.in_blocks));
    TF_RETURN_IF_ERROR(CheckActivation(
        "BlocksparseMatmulDW", "dy", DimsOf(c, c->input(num_pairs + i)), attrs, attrs.out_blocks));
  }
  TF_RETURN_IF_ERROR(CheckGateShapes(c, "BlocksparseMatmulDW", 2 * num_pairs, Dims::kUnknown));
  c->set_output(0, c->MakeShape({c->UnknownDim(), attrs.block_size, attrs.block_size}));
  return absl::OkStatus();
}

REGISTER_OP("BlocksparseMatmul")
    .Input("x: T")
    .Input("w: T")
    .Input("gate: num_gates * float")
    .Input("lut: int64")
    .Input("plan: int32")
    .Output("y: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("num_gates: int >= 0")
    .Attr("feature_axis: int")
    .Attr("block_size: int >= 1")
    .Attr("in_blocks: int >= 1")
    .Attr("out_blocks: int >= 1")
    .Attr("dw_dtype: {float, half, bfloat16}")
    .Attr("gate_grad: bool = false")
    .Attr("dw_gated: bool = false")
    .SetShapeFn([](InferenceContext* c) { return ProductShape(c, false); })
    .Doc(R"(
y = x W for a W of which only the blocks `w` are stored.

x: [..., C] if feature_axis is 1, [C, ...] if it is 0; C = in_blocks * block_size.
w: [num_blocks, block_size, block_size].
gate: none, or one float[num_blocks]; block b is scaled by gate[b] and skipped where that is 0.
lut: the layout's tables, on the op's device.
plan: the layout's sizes, in host memory.
y: like x, with K = out_blocks * block_size features.
dw_dtype: dtype of the gradient with respect to w.
gate_grad: whether gate has a gradient (that of w is then scaled by gate too).
dw_gated: whether blocks with gate 0 get a zero gradient.
)");

REGISTER_OP("BlocksparseMatmulDX")
    .Input("dy: T")
    .Input("w: T")
    .Input("gate: num_gates * float")
    .Input("lut: int64")
    .Input("plan: int32")
    .Output("dx: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("num_gates: int >= 0")
    .Attr("feature_axis: int")
    .Attr("block_size: int >= 1")
    .Attr("in_blocks: int >= 1")
    .Attr("out_blocks: int >= 1")
    .Attr("dw_dtype: {float, half, bfloat16}")
    .Attr("gate_grad: bool = false")
    .Attr("dw_gated: bool = false")
    .SetShapeFn([](InferenceContext* c) { return ProductShape(c, true); })
    .Doc(R"(
dx = dy W^T, the gradient of BlocksparseMatmul with respect to x. Inputs and attributes as there.
)");

REGISTER_OP("BlocksparseMatmulDW")
    .Input("x: num_pairs * T")
    .Input("dy: num_pairs * T")
    .Input("gate: num_gates * float")
    .Input("lut: int64")
    .Input("plan: int32")
    .Output("dw: dw_dtype")
    .Attr("T: {float, half, bfloat16}")
    .Attr("num_pairs: int >= 1")
    .Attr("num_gates: int >= 0")
    .Attr("feature_axis: int")
    .Attr("block_size: int >= 1")
    .Attr("in_blocks: int >= 1")
    .Attr("out_blocks: int >= 1")
    .Attr("dw_dtype: {float, half, bfloat16}")
    .SetShapeFn(DwShape)
    .Doc(R"(
dw = sum over the pairs of x^T dy, at the stored blocks only: the gradient of BlocksparseMatmul with
respect to w.

x: at most 128 activations, each with its own minibatch.
dy: as many output gradients; dy[i] has the minibatch of x[i].
gate: none, or one float[num_blocks]; blocks with gate 0 get zeros, the others are not scaled.
dw: [num_blocks, block_size, block_size], T or float; summed in float32.
)");

REGISTER_OP("BlocksparseMatmulDG")
    .Input("dw: dw_dtype")
    .Input("w: T")
    .Input("gate: float")
    .Output("dw_out: dw_dtype")
    .Output("dg: float")
    .Attr("T: {float, half, bfloat16}")
    .Attr("dw_dtype: {float, half, bfloat16}")
    .SetShapeFn([](InferenceContext* c) {
      TF_RETURN_IF_ERROR(
          CheckShape("BlocksparseMatmulDG", "w", DimsOf(c, c->input(1)), DimsOf(c, c->input(0))));
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(2));
      return absl::OkStatus();
    })
    .Doc(R"(
The gradients of gated weights g w from the gradient of their product:
dg[b] = sum dw[b] w[b], dw_out[b] = gate[b] dw[b].
)");

absl::Status AllocateWorkspace(OpKernelContext* context, int64_t bytes, Tensor* workspace) {
  if (bytes == 0) return absl::OkStatus();
  return context->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes}), workspace);
}

// What the three products have in common: the layout and a gate.
class ProductKernel : public OpKernel {
 public:
  explicit ProductKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, attrs_.ReadWithAxis(context));
    tensorflow::DataType dtype;
    OP_REQUIRES_OK(context, context->GetAttr("T", &dtype));
    OP_REQUIRES_OK(context, context->GetAttr("dw_dtype", &dw_dtype_));
    dtype_ = DTypeOf(dtype);
    OP_REQUIRES(
        context, IsMatmulSupported(dtype_, attrs_.block_size, attrs_.feature_axis),
        InvalidArgument(type_string(), ": block_size ", attrs_.block_size, " with feature_axis ",
                        attrs_.feature_axis,
                        " is not supported. Supported: 8, 16, 32, 64, 128 with feature_axis 0, 1"));
  }

 protected:
  absl::Status ReadLayoutAndGate(OpKernelContext* context, Layout* layout,
                                 const float** gate) const {
    TF_RETURN_IF_ERROR(ReadLayout(context, type_string(), attrs_, layout));
    tensorflow::OpInputList gates;
    TF_RETURN_IF_ERROR(context->input_list("gate", &gates));
    *gate = nullptr;
    if (gates.size() == 0) return absl::OkStatus();
    if (gates.size() > 1)
      return InvalidArgument(type_string(),
                             ": at most one gate is supported. Received: ", gates.size());
    TF_RETURN_IF_ERROR(
        CheckShape(type_string(), "gate", DimsOf(gates[0]), {true, {layout->num_blocks}}));
    *gate = gates[0].flat<float>().data();
    return absl::OkStatus();
  }

  LayoutAttrs attrs_;
  DType dtype_;
  tensorflow::DataType dw_dtype_;
};

template <bool kIsGpu, bool kIsDx>
class MatmulOp : public ProductKernel {
 public:
  using ProductKernel::ProductKernel;

  void Compute(OpKernelContext* context) override {
    MatmulArgs args = {};
    OP_REQUIRES_OK(context, ReadLayoutAndGate(context, &args.layout, &args.gate));
    const Tensor& x = context->input(0);
    const Tensor& w = context->input(1);
    const int64_t from = kIsDx ? attrs_.out_blocks : attrs_.in_blocks;
    const int64_t to = kIsDx ? attrs_.in_blocks : attrs_.out_blocks;
    OP_REQUIRES_OK(context,
                   CheckActivation(type_string(), kIsDx ? "dy" : "x", DimsOf(x), attrs_, from));
    OP_REQUIRES_OK(context, CheckShape(type_string(), "w", DimsOf(w),
                                       WeightShape(args.layout.num_blocks, attrs_)));

    TensorShape shape = x.shape();
    shape.set_dim(attrs_.FeatureDim(x.dims()), to * attrs_.block_size);
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &y));
    if (y->NumElements() == 0) return;
    args.dtype = dtype_;
    args.feature_axis = attrs_.feature_axis;
    args.is_dx = kIsDx;
    args.allow_tf32 = tensorflow::tensor_float_32_execution_enabled();
    args.batch = x.NumElements() / (from * attrs_.block_size);
    args.x = x.data();
    args.w = w.data();
    args.y = y->data();
    if constexpr (kIsGpu) {
      int64_t bytes = 0;
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulWorkspaceBytes(args, &bytes)));
      Tensor workspace;
      OP_REQUIRES_OK(context, AllocateWorkspace(context, bytes, &workspace));
      args.workspace = workspace.data();
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulCpu(args, ParallelForOf(context))));
    }
  }
};

template <bool kIsGpu>
class MatmulDwOp : public ProductKernel {
 public:
  using ProductKernel::ProductKernel;

  void Compute(OpKernelContext* context) override {
    MatmulDwArgs args = {};
    OP_REQUIRES_OK(context, ReadLayoutAndGate(context, &args.layout, &args.gate));
    OP_REQUIRES_OK(context, ReadPairs(context, &args));
    Tensor* dw = nullptr;
    const TensorShape shape({args.layout.num_blocks, attrs_.block_size, attrs_.block_size});
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &dw));
    args.dtype = dtype_;
    args.dw_dtype = DTypeOf(dw_dtype_);
    args.feature_axis = attrs_.feature_axis;
    args.allow_tf32 = tensorflow::tensor_float_32_execution_enabled();
    args.dw = dw->data();
    OP_REQUIRES(
        context, args.dw_dtype == dtype_ || args.dw_dtype == DType::kFloat32,
        InvalidArgument(type_string(), ": dw_dtype must be float32 or the dtype of x. Received: ",
                        tensorflow::DataTypeString(dw_dtype_)));
    if constexpr (kIsGpu) {
      int64_t bytes = 0;
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulDwWorkspaceBytes(args, &bytes)));
      Tensor workspace;
      OP_REQUIRES_OK(context, AllocateWorkspace(context, bytes, &workspace));
      args.workspace = static_cast<float*>(workspace.data());
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulDwGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulDwCpu(args, ParallelForOf(context))));
    }
  }

 private:
  absl::Status ReadPairs(OpKernelContext* context, MatmulDwArgs* args) const {
    tensorflow::OpInputList x;
    tensorflow::OpInputList dy;
    TF_RETURN_IF_ERROR(context->input_list("x", &x));
    TF_RETURN_IF_ERROR(context->input_list("dy", &dy));
    if (x.size() > kMaxMatmulPairs)
      return InvalidArgument(type_string(), ": at most ", kMaxMatmulPairs,
                             " pairs. Received: ", x.size());
    args->num_pairs = x.size();
    for (int i = 0; i < x.size(); ++i) {
      TF_RETURN_IF_ERROR(
          CheckActivation(type_string(), "x", DimsOf(x[i]), attrs_, attrs_.in_blocks));
      TF_RETURN_IF_ERROR(
          CheckActivation(type_string(), "dy", DimsOf(dy[i]), attrs_, attrs_.out_blocks));
      const int64_t batch = x[i].NumElements() / (int64_t{attrs_.in_blocks} * attrs_.block_size);
      const int64_t dy_batch =
          dy[i].NumElements() / (int64_t{attrs_.out_blocks} * attrs_.block_size);
      if (batch != dy_batch)
        return InvalidArgument(type_string(),
                               ": x and dy must have the same minibatch. Received: x.shape=",
                               DimsOf(x[i]).ToString(), ", dy.shape=", DimsOf(dy[i]).ToString());
      args->pairs[i] = {x[i].data(), dy[i].data(), batch};
    }
    return absl::OkStatus();
  }
};

template <bool kIsGpu>
class MatmulDgOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& dw = context->input(0);
    const Tensor& w = context->input(1);
    const Tensor& gate = context->input(2);
    OP_REQUIRES(
        context, w.dims() == 3 && w.dim_size(1) == w.dim_size(2),
        InvalidArgument(type_string(), ": w must have shape [num_blocks, B, B]. Received: w.shape=",
                        DimsOf(w).ToString()));
    OP_REQUIRES_OK(context, CheckShape(type_string(), "dw", DimsOf(dw), DimsOf(w)));
    OP_REQUIRES_OK(context,
                   CheckShape(type_string(), "gate", DimsOf(gate), {true, {w.dim_size(0)}}));
    Tensor* dw_out = nullptr;
    Tensor* dg = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, dw.shape(), &dw_out));
    OP_REQUIRES_OK(context, context->allocate_output(1, gate.shape(), &dg));
    if (dw.NumElements() == 0) return;
    const MatmulGateGradArgs args = {DTypeOf(w.dtype()),
                                     DTypeOf(dw.dtype()),
                                     static_cast<int>(w.dim_size(1)),
                                     w.dim_size(0),
                                     dw.data(),
                                     w.data(),
                                     gate.flat<float>().data(),
                                     dw_out->data(),
                                     dg->flat<float>().data()};
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), MatmulGateGradGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context,
                     ToAbsl(type_string(), MatmulGateGradCpu(args, ParallelForOf(context))));
    }
  }
};

#define BLOCKSPARSE_REGISTER(DEVICE, IS_GPU)                                             \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseMatmul").Device(DEVICE).HostMemory("plan"),   \
                          MatmulOp<IS_GPU, false>);                                      \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseMatmulDX").Device(DEVICE).HostMemory("plan"), \
                          MatmulOp<IS_GPU, true>);                                       \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseMatmulDW").Device(DEVICE).HostMemory("plan"), \
                          MatmulDwOp<IS_GPU>);                                           \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseMatmulDG").Device(DEVICE), MatmulDgOp<IS_GPU>)

BLOCKSPARSE_REGISTER(tensorflow::DEVICE_CPU, false);
#ifdef BLOCKSPARSE_WITH_CUDA
BLOCKSPARSE_REGISTER(tensorflow::DEVICE_GPU, true);
#endif
#undef BLOCKSPARSE_REGISTER

}  // namespace
}  // namespace blocksparse
