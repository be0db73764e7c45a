// TensorFlow's view of the l2_norm room: registration, shapes, allocation. The arithmetic is in
// src/kernels/l2_norm.h.
#include "src/kernels/l2_norm.h"
#include "src/ops/layout_inputs.h"
#include "src/ops/op_utils.h"
#include "tensorflow/core/framework/op.h"

namespace blocksparse {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::shape_inference::InferenceContext;

Dims FeatureShape(const LayoutAttrs& attrs) {
  return {true, {int64_t{attrs.out_blocks} * attrs.block_size}};
}

REGISTER_OP("BlocksparseL2Normalize")
    .Input("x: TX")
    .Input("gain: num_gains * float")
    .Input("lut: int64")
    .Input("plan: int32")
    .Output("y: TY")
    .Output("sum_sqr: float")
    .Attr("TX: {float, half, bfloat16}")
    .Attr("TY: {float, half, bfloat16}")
    .Attr("num_gains: int >= 0")
    .Attr("epsilon: float")
    .Attr("block_size: int >= 1")
    .Attr("in_blocks: int >= 1")
    .Attr("out_blocks: int >= 1")
    .SetShapeFn([](InferenceContext* c) {
      LayoutAttrs attrs;
      TF_RETURN_IF_ERROR(attrs.Read(c));
      TF_RETURN_IF_ERROR(CheckShape("BlocksparseL2Normalize", "x", DimsOf(c, c->input(0)),
                                    WeightShape(Dims::kUnknown, attrs)));
      c->set_output(0, c->input(0));
      c->set_output(1, c->MakeShape({int64_t{attrs.out_blocks} * attrs.block_size}));
      return absl::OkStatus();
    })
    .Doc(R"(
Gives every output feature of block-sparse weights the same length:
y = gain x / sqrt(max(sum_sqr, epsilon)).

x: [num_blocks, block_size, block_size].
gain: none, or one float[out_blocks * block_size].
lut: the layout's tables, on the op's device.
plan: the layout's sizes, in host memory.
y: x normalised.
sum_sqr: the sum of squares of each output feature's weights.
)");

REGISTER_OP("BlocksparseL2NormalizeGrad")
    .Input("dy: TY")
    .Input("x: TX")
    .Input("gain: num_gains * float")
    .Input("sum_sqr: float")
    .Input("lut: int64")
    .Input("plan: int32")
    .Output("dx: TX")
    .Output("dgain: num_gains * float")
    .Attr("TX: {float, half, bfloat16}")
    .Attr("TY: {float, half, bfloat16}")
    .Attr("num_gains: int >= 0")
    .Attr("epsilon: float")
    .Attr("block_size: int >= 1")
    .Attr("in_blocks: int >= 1")
    .Attr("out_blocks: int >= 1")
    .SetShapeFn([](InferenceContext* c) {
      LayoutAttrs attrs;
      int32_t num_gains = 0;
      TF_RETURN_IF_ERROR(attrs.Read(c));
      TF_RETURN_IF_ERROR(c->GetAttr("num_gains", &num_gains));
      c->set_output(0, c->input(1));
      for (int i = 0; i < num_gains; ++i) c->set_output(1 + i, c->input(2 + i));
      return absl::OkStatus();
    })
    .Doc(R"(
The gradient of BlocksparseL2Normalize with respect to x and gain.
)");

// The checks that both directions share.
class L2NormKernel : public OpKernel {
 public:
  explicit L2NormKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, attrs_.Read(context));
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES(context, IsMatmulSupported(DType::kFloat32, attrs_.block_size, 0),
                InvalidArgument(type_string(), ": block_size ", attrs_.block_size,
                                " is not supported. Supported: 8, 16, 32, 64, 128"));
  }

 protected:
  absl::Status ReadInputs(OpKernelContext* context, Layout* layout, const Tensor** x,
                          const float** gain) const {
    TF_RETURN_IF_ERROR(ReadLayout(context, type_string(), attrs_, layout));
    TF_RETURN_IF_ERROR(context->input("x", x));
    TF_RETURN_IF_ERROR(
        CheckShape(type_string(), "x", DimsOf(**x), WeightShape(layout->num_blocks, attrs_)));
    tensorflow::OpInputList gains;
    TF_RETURN_IF_ERROR(context->input_list("gain", &gains));
    *gain = nullptr;
    if (gains.size() == 0) return absl::OkStatus();
    if (gains.size() > 1)
      return InvalidArgument(type_string(),
                             ": at most one gain is supported. Received: ", gains.size());
    TF_RETURN_IF_ERROR(CheckShape(type_string(), "gain", DimsOf(gains[0]), FeatureShape(attrs_)));
    *gain = gains[0].flat<float>().data();
    return absl::OkStatus();
  }

  LayoutAttrs attrs_;
  float epsilon_;
};

template <bool kIsGpu>
class L2NormOp : public L2NormKernel {
 public:
  using L2NormKernel::L2NormKernel;

  void Compute(OpKernelContext* context) override {
    L2NormArgs args = {};
    const Tensor* x = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &args.layout, &x, &args.gain));
    Tensor* y = nullptr;
    Tensor* sum_sqr = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, x->shape(), &y));
    OP_REQUIRES_OK(context, context->allocate_output(1, {FeatureShape(attrs_).sizes[0]}, &sum_sqr));
    args.x_dtype = DTypeOf(x->dtype());
    args.y_dtype = DTypeOf(y->dtype());
    args.epsilon = epsilon_;
    args.x = x->data();
    args.y = y->data();
    args.sum_sqr = sum_sqr->flat<float>().data();
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), L2NormGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), L2NormCpu(args, ParallelForOf(context))));
    }
  }
};

template <bool kIsGpu>
class L2NormGradOp : public L2NormKernel {
 public:
  using L2NormKernel::L2NormKernel;

  void Compute(OpKernelContext* context) override {
    L2NormGradArgs args = {};
    const Tensor* x = nullptr;
    const Tensor* dy = nullptr;
    const Tensor* sum_sqr = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &args.layout, &x, &args.gain));
    OP_REQUIRES_OK(context, context->input("dy", &dy));
    OP_REQUIRES_OK(context, context->input("sum_sqr", &sum_sqr));
    OP_REQUIRES_OK(context, CheckShape(type_string(), "dy", DimsOf(*dy), DimsOf(*x)));
    OP_REQUIRES_OK(context,
                   CheckShape(type_string(), "sum_sqr", DimsOf(*sum_sqr), FeatureShape(attrs_)));
    Tensor* dx = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, x->shape(), &dx));
    if (args.gain != nullptr) {
      Tensor* dgain = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(1, sum_sqr->shape(), &dgain));
      args.dgain = dgain->flat<float>().data();
    }
    args.x_dtype = DTypeOf(x->dtype());
    args.y_dtype = DTypeOf(dy->dtype());
    args.epsilon = epsilon_;
    args.dy = dy->data();
    args.x = x->data();
    args.sum_sqr = sum_sqr->flat<float>().data();
    args.dx = dx->data();
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), L2NormGradGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), L2NormGradCpu(args, ParallelForOf(context))));
    }
  }
};

#define BLOCKSPARSE_REGISTER(DEVICE, IS_GPU)                                                    \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseL2Normalize").Device(DEVICE).HostMemory("plan"),     \
                          L2NormOp<IS_GPU>);                                                    \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseL2NormalizeGrad").Device(DEVICE).HostMemory("plan"), \
                          L2NormGradOp<IS_GPU>)

BLOCKSPARSE_REGISTER(tensorflow::DEVICE_CPU, false);
#ifdef BLOCKSPARSE_WITH_CUDA
BLOCKSPARSE_REGISTER(tensorflow::DEVICE_GPU, true);
#endif
#undef BLOCKSPARSE_REGISTER

}  // namespace
}  // namespace blocksparse
