// TensorFlow's view of the cross_entropy room: registration, shapes, allocation. The arithmetic is
// in src/kernels/cross_entropy.h.
#include "src/kernels/cross_entropy.h"
#include "src/ops/index_inputs.h"
#include "src/ops/layout_inputs.h"  // Dims and CheckShape
#include "src/ops/op_utils.h"
#include "tensorflow/core/framework/op.h"

namespace blocksparse {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::shape_inference::InferenceContext;

// Rows of at least one class, and something else for each row.
absl::Status CheckLogits(const std::string& op, const Dims& logits) {
  if (logits.has_rank && (logits.rank() < 1 || logits.sizes.back() == 0))
    return InvalidArgument(op,
                           ": logits must have rank 1 or more and at least one class on the last "
                           "axis. Received: logits.shape=",
                           logits.ToString());
  return absl::OkStatus();
}
absl::Status CheckRows(const std::string& op, const std::string& name, const Dims& dims,
                       const Dims& logits) {
  if (!logits.has_rank) return absl::OkStatus();
  Dims expected = logits;
  expected.sizes.pop_back();
  return CheckShape(op, name, dims, expected);
}

REGISTER_OP("BlocksparseSoftmaxCrossEntropy")
    .Input("logits: T")
    .Input("labels: Tlabels")
    .Output("loss: float")
    .Output("row_max: float")
    .Output("log_sum: float")
    .Attr("T: {float, half, bfloat16}")
    .Attr("Tlabels: {uint8, uint16, int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      const Dims logits = DimsOf(c, c->input(0));
      TF_RETURN_IF_ERROR(CheckLogits("BlocksparseSoftmaxCrossEntropy", logits));
      TF_RETURN_IF_ERROR(
          CheckRows("BlocksparseSoftmaxCrossEntropy", "labels", DimsOf(c, c->input(1)), logits));
      for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, c->input(1));
      return absl::OkStatus();
    })
    .Doc(R"(
loss = log sum_j exp(logits[j]) - logits[labels], over the last axis.

logits: [..., V].
labels: [...], each in [0, V).
loss: [...].
row_max: the largest logit of each row.
log_sum: log sum_j exp(logits[j] - row_max).
)");

REGISTER_OP("BlocksparseSoftmaxCrossEntropyGrad")
    .Input("dloss: float")
    .Input("logits: T")
    .Input("labels: Tlabels")
    .Input("row_max: float")
    .Input("log_sum: float")
    .Output("dlogits: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("Tlabels: {uint8, uint16, int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(1));
      return absl::OkStatus();
    })
    .Doc(R"(
The gradient of BlocksparseSoftmaxCrossEntropy with respect to logits: dloss (softmax - onehot).
)");

// The inputs that both directions share.
class CrossEntropyKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

 protected:
  absl::Status ReadInputs(OpKernelContext* context, const Tensor** logits, const Tensor** labels,
                          CrossEntropyInputs* in) const {
    TF_RETURN_IF_ERROR(context->input("logits", logits));
    TF_RETURN_IF_ERROR(context->input("labels", labels));
    TF_RETURN_IF_ERROR(CheckLogits(type_string(), DimsOf(**logits)));
    TF_RETURN_IF_ERROR(CheckRows(type_string(), "labels", DimsOf(**labels), DimsOf(**logits)));
    in->dtype = DTypeOf((*logits)->dtype());
    in->label_type = IndexTypeOf((*labels)->dtype());
    in->rows = (*labels)->NumElements();
    in->classes = (*logits)->dim_size((*logits)->dims() - 1);
    in->x = (*logits)->data();
    in->labels = (*labels)->data();
    return absl::OkStatus();
  }

  // A float32 input with one number for each row.
  absl::Status ReadRows(OpKernelContext* context, const char* name, const Tensor& logits,
                        const float** data) const {
    const Tensor* tensor = nullptr;
    TF_RETURN_IF_ERROR(context->input(name, &tensor));
    TF_RETURN_IF_ERROR(CheckRows(type_string(), name, DimsOf(*tensor), DimsOf(logits)));
    *data = tensor->flat<float>().data();
    return absl::OkStatus();
  }

  // Labels in host memory are all in range.
  absl::Status CheckLabels(const Tensor& labels, const CrossEntropyInputs& in) const {
    const int64_t row = FindBadLabel(in);
    if (row < 0) return absl::OkStatus();
    return InvalidArgument(type_string(), ": labels must be in [0, ", in.classes,
                           "), the classes of logits. Received: labels[", PositionOf(labels, row),
                           "]=", LabelOf(in, row));
  }
};

template <bool kIsGpu>
class CrossEntropyOp : public CrossEntropyKernel {
 public:
  using CrossEntropyKernel::CrossEntropyKernel;

  void Compute(OpKernelContext* context) override {
    CrossEntropyArgs args = {};
    const Tensor* logits = nullptr;
    const Tensor* labels = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &logits, &labels, &args.in));
    if constexpr (!kIsGpu) OP_REQUIRES_OK(context, CheckLabels(*labels, args.in));
    int index = 0;
    for (float** output : {&args.loss, &args.row_max, &args.log_sum}) {
      Tensor* tensor = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(index++, labels->shape(), &tensor));
      *output = tensor->flat<float>().data();
    }
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), CrossEntropyGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), CrossEntropyCpu(args, ParallelForOf(context))));
    }
  }
};

template <bool kIsGpu>
class CrossEntropyGradOp : public CrossEntropyKernel {
 public:
  using CrossEntropyKernel::CrossEntropyKernel;

  void Compute(OpKernelContext* context) override {
    CrossEntropyGradArgs args = {};
    const Tensor* logits = nullptr;
    const Tensor* labels = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &logits, &labels, &args.in));
    OP_REQUIRES_OK(context, ReadRows(context, "dloss", *logits, &args.dloss));
    OP_REQUIRES_OK(context, ReadRows(context, "row_max", *logits, &args.row_max));
    OP_REQUIRES_OK(context, ReadRows(context, "log_sum", *logits, &args.log_sum));
    if constexpr (!kIsGpu) OP_REQUIRES_OK(context, CheckLabels(*labels, args.in));
    Tensor* dlogits = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, logits->shape(), &dlogits));
    args.dx = dlogits->data();
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), CrossEntropyGradGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context,
                     ToAbsl(type_string(), CrossEntropyGradCpu(args, ParallelForOf(context))));
    }
  }
};

#define BLOCKSPARSE_REGISTER(DEVICE, IS_GPU)                                         \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseSoftmaxCrossEntropy").Device(DEVICE),     \
                          CrossEntropyOp<IS_GPU>);                                   \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseSoftmaxCrossEntropyGrad").Device(DEVICE), \
                          CrossEntropyGradOp<IS_GPU>)

BLOCKSPARSE_REGISTER(tensorflow::DEVICE_CPU, false);
#ifdef BLOCKSPARSE_WITH_CUDA
BLOCKSPARSE_REGISTER(tensorflow::DEVICE_GPU, true);
#endif
#undef BLOCKSPARSE_REGISTER

}  // namespace
}  // namespace blocksparse
