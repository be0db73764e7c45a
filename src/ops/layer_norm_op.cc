// TensorFlow's view of the layer_norm room: registration, shapes, allocation. The arithmetic is in
// src/kernels/layer_norm.h.
#include "src/kernels/layer_norm.h"
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

// The attributes, and the checks and shapes that follow from them. Each check serves the shape
// function, where sizes may be unknown, and Compute, because eager execution runs no shape
// function.
struct LayerNormAttrs {
  int32_t feature_axis = 1;
  int64_t segments = 1;
  bool relu = false;

  template <class Context>
  absl::Status Read(const std::string& op, Context* context) {
    TF_RETURN_IF_ERROR(context->GetAttr("feature_axis", &feature_axis));
    TF_RETURN_IF_ERROR(context->GetAttr("segments", &segments));
    TF_RETURN_IF_ERROR(context->GetAttr("relu", &relu));
    if (feature_axis == 0 || feature_axis == 1) return absl::OkStatus();
    return InvalidArgument(op, ": feature_axis must be 1 (features last) or 0 (features first). ",
                           "Received: ", feature_axis);
  }

  int FeatureDim(int rank) const { return feature_axis == 1 ? rank - 1 : 0; }

  // K, which may be unknown.
  int64_t Features(const Dims& x) const {
    return x.has_rank ? x.sizes[FeatureDim(x.rank())] : Dims::kUnknown;
  }

  absl::Status Check(const std::string& op, const Dims& x, const Dims& g, const Dims& b) const {
    if (x.has_rank && x.rank() < 2)
      return InvalidArgument(op, ": x must have rank 2 or more (features and minibatch). ",
                             "Received: x.shape=", x.ToString());
    const int64_t features = Features(x);
    if (features != Dims::kUnknown && (features < 1 || features % segments != 0))
      return InvalidArgument(op, ": the number of features on ",
                             feature_axis == 1 ? "the last axis" : "axis 0",
                             " of x must be a positive multiple of segments=", segments,
                             ". Received: x.shape=", x.ToString());
    TF_RETURN_IF_ERROR(CheckShape(op, "g", g, {true, {features}}));
    return CheckShape(op, "b", b, {true, {features}});
  }

  // [S, N] of mean and rstd.
  Dims MomentsShape(const Dims& x) const {
    int64_t batch = x.has_rank ? 1 : Dims::kUnknown;
    for (int i = 0; i < x.rank(); ++i) {
      if (i == FeatureDim(x.rank())) continue;
      const bool is_known = batch != Dims::kUnknown && x.sizes[i] != Dims::kUnknown;
      batch = is_known ? batch * x.sizes[i] : Dims::kUnknown;
    }
    return {true, {segments, batch}};
  }
};

REGISTER_OP("BlocksparseLayerNorm")
    .Input("x: T")
    .Input("g: float")
    .Input("b: float")
    .Output("y: T")
    .Output("mean: float")
    .Output("rstd: float")
    .Attr("T: {float, half, bfloat16}")
    .Attr("feature_axis: int")
    .Attr("segments: int >= 1")
    .Attr("epsilon: float")
    .Attr("relu: bool")
    .SetShapeFn([](InferenceContext* c) {
      const std::string op = "BlocksparseLayerNorm";
      LayerNormAttrs attrs;
      TF_RETURN_IF_ERROR(attrs.Read(op, c));
      const Dims x = DimsOf(c, c->input(0));
      TF_RETURN_IF_ERROR(attrs.Check(op, x, DimsOf(c, c->input(1)), DimsOf(c, c->input(2))));
      const int64_t batch = attrs.MomentsShape(x).sizes[1];
      c->set_output(0, c->input(0));
      for (int i = 1; i < 3; ++i)
        c->set_output(
            i, c->MakeShape({c->MakeDim(attrs.segments),
                             batch == Dims::kUnknown ? c->UnknownDim() : c->MakeDim(batch)}));
      return absl::OkStatus();
    })
    .Doc(R"(
Normalises the features of x, or each of their segments, to mean 0 and variance 1:
y = g (x - mean) rstd + b.

x: [..., K] if feature_axis is 1, [K, ...] if it is 0.
g: float[K].
b: float[K].
y: like x; max(y, 0) if relu.
mean: float[segments, N], where N is the product of x's other dimensions.
rstd: float[segments, N]; 1 / sqrt(variance + epsilon).
)");

REGISTER_OP("BlocksparseLayerNormGrad")
    .Input("dy: T")
    .Input("x: T")
    .Input("g: float")
    .Input("b: float")
    .Input("mean: float")
    .Input("rstd: float")
    .Output("dx: T")
    .Output("dg: float")
    .Output("db: float")
    .Attr("T: {float, half, bfloat16}")
    .Attr("feature_axis: int")
    .Attr("segments: int >= 1")
    .Attr("epsilon: float")
    .Attr("relu: bool")
    .SetShapeFn([](InferenceContext* c) {
      const std::string op = "BlocksparseLayerNormGrad";
      LayerNormAttrs attrs;
      TF_RETURN_IF_ERROR(attrs.Read(op, c));
      TF_RETURN_IF_ERROR(
          attrs.Check(op, DimsOf(c, c->input(1)), DimsOf(c, c->input(2)), DimsOf(c, c->input(3))));
      for (int i = 0; i < 3; ++i) c->set_output(i, c->input(1 + i));
      return absl::OkStatus();
    })
    .Doc(R"(
The gradient of BlocksparseLayerNorm with respect to x, g and b.

epsilon: what rstd was made with; for the gradients of this op.
)");

// What both directions share.
class LayerNormKernel : public OpKernel {
 public:
  explicit LayerNormKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, attrs_.Read(type_string(), context));
  }

 protected:
  // Checks the inputs x, g and b and fills in all that concerns them.
  template <class Args>
  absl::Status ReadInputs(OpKernelContext* context, Args* args, const Tensor** x) const {
    const Tensor* g = nullptr;
    const Tensor* b = nullptr;
    TF_RETURN_IF_ERROR(context->input("x", x));
    TF_RETURN_IF_ERROR(context->input("g", &g));
    TF_RETURN_IF_ERROR(context->input("b", &b));
    TF_RETURN_IF_ERROR(attrs_.Check(type_string(), DimsOf(**x), DimsOf(*g), DimsOf(*b)));
    args->dtype = DTypeOf((*x)->dtype());
    args->feature_axis = attrs_.feature_axis;
    args->relu = attrs_.relu;
    args->segments = attrs_.segments;
    args->features = attrs_.Features(DimsOf(**x));
    args->batch = (*x)->NumElements() / args->features;
    args->x = (*x)->data();
    args->g = g->flat<float>().data();
    args->b = b->flat<float>().data();
    return absl::OkStatus();
  }

  static absl::Status Allocate(OpKernelContext* context, int64_t floats, Tensor* tensor,
                               float** workspace) {
    if (floats == 0) return absl::OkStatus();
    TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, {floats}, tensor));
    *workspace = tensor->flat<float>().data();
    return absl::OkStatus();
  }

  LayerNormAttrs attrs_;
};

template <bool kIsGpu>
class LayerNormOp : public LayerNormKernel {
 public:
  explicit LayerNormOp(OpKernelConstruction* context) : LayerNormKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES(
        context, epsilon_ >= 0.f,
        InvalidArgument(type_string(), ": epsilon must be 0 or more. Received: ", epsilon_));
  }

  void Compute(OpKernelContext* context) override {
    LayerNormArgs args = {};
    const Tensor* x = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &args, &x));
    const tensorflow::TensorShape moments({args.segments, args.batch});
    Tensor* y = nullptr;
    Tensor* mean = nullptr;
    Tensor* rstd = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, x->shape(), &y));
    OP_REQUIRES_OK(context, context->allocate_output(1, moments, &mean));
    OP_REQUIRES_OK(context, context->allocate_output(2, moments, &rstd));
    if (args.batch == 0) return;
    args.epsilon = epsilon_;
    args.y = y->data();
    args.mean = mean->flat<float>().data();
    args.rstd = rstd->flat<float>().data();
    if constexpr (kIsGpu) {
      int64_t floats = 0;
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LayerNormGpuWorkspace(args, &floats)));
      Tensor workspace;
      OP_REQUIRES_OK(context, Allocate(context, floats, &workspace, &args.workspace));
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LayerNormGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LayerNormCpu(args, ParallelForOf(context))));
    }
  }

 private:
  float epsilon_;
};

template <bool kIsGpu>
class LayerNormGradOp : public LayerNormKernel {
 public:
  using LayerNormKernel::LayerNormKernel;

  void Compute(OpKernelContext* context) override {
    LayerNormGradArgs args = {};
    const Tensor* x = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &args, &x));
    OP_REQUIRES_OK(context, ReadGradInputs(context, DimsOf(*x), &args));
    Tensor* dx = nullptr;
    Tensor* dg = nullptr;
    Tensor* db = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, x->shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, {args.features}, &dg));
    OP_REQUIRES_OK(context, context->allocate_output(2, {args.features}, &db));
    args.dx = dx->data();
    args.dg = dg->flat<float>().data();
    args.db = db->flat<float>().data();
    Tensor workspace;
    if constexpr (kIsGpu) {
      int64_t floats = 0;
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LayerNormGradGpuWorkspace(args, &floats)));
      OP_REQUIRES_OK(context, Allocate(context, floats, &workspace, &args.workspace));
      OP_REQUIRES_OK(context, ToAbsl(type_string(), LayerNormGradGpu(args, StreamOf(context))));
    } else {
      const int64_t floats = LayerNormGradCpuPartials(args) * 2 * args.features;
      OP_REQUIRES_OK(context, Allocate(context, floats, &workspace, &args.workspace));
      OP_REQUIRES_OK(context,
                     ToAbsl(type_string(), LayerNormGradCpu(args, ParallelForOf(context))));
    }
  }

 private:
  absl::Status ReadGradInputs(OpKernelContext* context, const Dims& x,
                              LayerNormGradArgs* args) const {
    const Tensor* dy = nullptr;
    const Tensor* mean = nullptr;
    const Tensor* rstd = nullptr;
    TF_RETURN_IF_ERROR(context->input("dy", &dy));
    TF_RETURN_IF_ERROR(context->input("mean", &mean));
    TF_RETURN_IF_ERROR(context->input("rstd", &rstd));
    const Dims moments = attrs_.MomentsShape(x);
    TF_RETURN_IF_ERROR(CheckShape(type_string(), "dy", DimsOf(*dy), x));
    TF_RETURN_IF_ERROR(CheckShape(type_string(), "mean", DimsOf(*mean), moments));
    TF_RETURN_IF_ERROR(CheckShape(type_string(), "rstd", DimsOf(*rstd), moments));
    args->dy = dy->data();
    args->mean = mean->flat<float>().data();
    args->rstd = rstd->flat<float>().data();
    return absl::OkStatus();
  }
};

#define BLOCKSPARSE_REGISTER(DEVICE, IS_GPU)                                                 \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseLayerNorm").Device(DEVICE), LayerNormOp<IS_GPU>); \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseLayerNormGrad").Device(DEVICE), LayerNormGradOp<IS_GPU>)

BLOCKSPARSE_REGISTER(tensorflow::DEVICE_CPU, false);
#ifdef BLOCKSPARSE_WITH_CUDA
BLOCKSPARSE_REGISTER(tensorflow::DEVICE_GPU, true);
#endif
#undef BLOCKSPARSE_REGISTER

}  // namespace
}  // namespace blocksparse
