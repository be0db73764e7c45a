// TensorFlow's view of the embedding room: registration, shapes, allocation. The arithmetic is in
// src/kernels/embedding.h.
#include "src/kernels/embedding.h"
#include "src/ops/index_inputs.h"
#include "src/ops/layout_inputs.h"  // Dims and CheckShape
#include "src/ops/op_utils.h"
#include "tensorflow/core/framework/op.h"

namespace blocksparse {
namespace {

using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;
using ::tensorflow::shape_inference::InferenceContext;

absl::Status CheckTable(const std::string& op, const Dims& emb) {
  if (emb.has_rank && emb.rank() != 2)
    return InvalidArgument(op, ": emb must have rank 2. Received: emb.shape=", emb.ToString());
  return absl::OkStatus();
}

// A row of the table for each index.
Dims RowsShape(const Dims& emb, const Dims& idx) {
  if (!emb.has_rank || !idx.has_rank) return {false, {}};
  Dims dims = idx;
  dims.sizes.push_back(emb.sizes[1]);
  return dims;
}

REGISTER_OP("BlocksparseEmbeddingLookup")
    .Input("emb: T")
    .Input("idx: Tidx")
    .Output("y: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("Tidx: {uint8, uint16, int32, int64}")
    .Attr("demb_dtype: {float, half, bfloat16}")
    .SetShapeFn([](InferenceContext* c) {
      TF_RETURN_IF_ERROR(CheckTable("BlocksparseEmbeddingLookup", DimsOf(c, c->input(0))));
      const auto width = c->RankKnown(c->input(0)) ? c->Dim(c->input(0), 1) : c->UnknownDim();
      tensorflow::shape_inference::ShapeHandle y;
      TF_RETURN_IF_ERROR(c->Concatenate(c->input(1), c->Vector(width), &y));
      c->set_output(0, y);
      return absl::OkStatus();
    })
    .Doc(R"(
y[n, k] = emb[idx[n], k].

emb: [C, K].
idx: [...], each in [0, C).
y: [..., K].
demb_dtype: dtype of the gradient of emb: T or float.
)");

REGISTER_OP("BlocksparseEmbeddingLookupGrad")
    .Input("dy: T")
    .Input("idx: Tidx")
    .Input("emb: T")
    .Output("demb: demb_dtype")
    .Attr("T: {float, half, bfloat16}")
    .Attr("Tidx: {uint8, uint16, int32, int64}")
    .Attr("demb_dtype: {float, half, bfloat16}")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(2));
      return absl::OkStatus();
    })
    .Doc(R"(
The gradient of BlocksparseEmbeddingLookup with respect to emb: demb[c] is the sum of dy[n] over all
n with idx[n] = c.

emb: gives its shape alone.
demb: dense, [C, K].
)");

// The inputs that both directions share.
class EmbeddingKernel : public OpKernel {
 public:
  explicit EmbeddingKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("demb_dtype", &demb_dtype_));
    tensorflow::DataType dtype;
    OP_REQUIRES_OK(context, context->GetAttr("T", &dtype));
    OP_REQUIRES(context, demb_dtype_ == dtype || demb_dtype_ == tensorflow::DT_FLOAT,
                InvalidArgument(type_string(), ": demb_dtype must be that of emb or float32. ",
                                "Received: ", tensorflow::DataTypeString(demb_dtype_)));
  }

 protected:
  absl::Status ReadInputs(OpKernelContext* context, const Tensor** emb, const Tensor** idx,
                          EmbeddingInputs* in) const {
    TF_RETURN_IF_ERROR(context->input("emb", emb));
    TF_RETURN_IF_ERROR(context->input("idx", idx));
    TF_RETURN_IF_ERROR(CheckTable(type_string(), DimsOf(**emb)));
    in->dtype = DTypeOf((*emb)->dtype());
    in->index_type = IndexTypeOf((*idx)->dtype());
    in->rows = (*emb)->dim_size(0);
    in->width = (*emb)->dim_size(1);
    in->num_indices = (*idx)->NumElements();
    in->idx = (*idx)->data();
    return absl::OkStatus();
  }

  // Indices in host memory are all in range.
  absl::Status CheckIndices(const Tensor& idx, const EmbeddingInputs& in) const {
    const int64_t n = FindBadIndex(in);
    if (n < 0) return absl::OkStatus();
    return InvalidArgument(type_string(), ": idx must be in [0, ", in.rows,
                           "), the rows of emb. Received: idx[", PositionOf(idx, n),
                           "]=", IndexOf(in, n));
  }

  tensorflow::DataType demb_dtype_;
};

template <bool kIsGpu>
class EmbeddingLookupOp : public EmbeddingKernel {
 public:
  using EmbeddingKernel::EmbeddingKernel;

  void Compute(OpKernelContext* context) override {
    EmbeddingArgs args = {};
    const Tensor* emb = nullptr;
    const Tensor* idx = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &emb, &idx, &args.in));
    if constexpr (!kIsGpu) OP_REQUIRES_OK(context, CheckIndices(*idx, args.in));
    TensorShape shape = idx->shape();
    OP_REQUIRES_OK(context, shape.AddDimWithStatus(args.in.width));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &y));
    args.emb = emb->data();
    args.y = y->data();
    if constexpr (kIsGpu) {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), EmbeddingGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context, ToAbsl(type_string(), EmbeddingCpu(args, ParallelForOf(context))));
    }
  }
};

template <bool kIsGpu>
class EmbeddingLookupGradOp : public EmbeddingKernel {
 public:
  using EmbeddingKernel::EmbeddingKernel;

  void Compute(OpKernelContext* context) override {
    EmbeddingGradArgs args = {};
    const Tensor* emb = nullptr;
    const Tensor* idx = nullptr;
    const Tensor* dy = nullptr;
    OP_REQUIRES_OK(context, ReadInputs(context, &emb, &idx, &args.in));
    OP_REQUIRES_OK(context, context->input("dy", &dy));
    OP_REQUIRES_OK(context, CheckShape(type_string(), "dy", DimsOf(*dy),
                                       RowsShape(DimsOf(*emb), DimsOf(*idx))));
    if constexpr (!kIsGpu) OP_REQUIRES_OK(context, CheckIndices(*idx, args.in));
    Tensor* demb = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, emb->shape(), &demb));
    args.demb_dtype = DTypeOf(demb_dtype_);
    args.dy = dy->data();
    args.demb = demb->data();
    if constexpr (kIsGpu) {
      int64_t bytes = 0;
      OP_REQUIRES_OK(context, ToAbsl(type_string(), EmbeddingGradWorkspaceBytes(args, &bytes)));
      Tensor workspace;
      OP_REQUIRES_OK(
          context, context->allocate_temp(tensorflow::DT_UINT8, TensorShape({bytes}), &workspace));
      args.workspace = workspace.data();
      OP_REQUIRES_OK(context, ToAbsl(type_string(), EmbeddingGradGpu(args, StreamOf(context))));
    } else {
      OP_REQUIRES_OK(context,
                     ToAbsl(type_string(), EmbeddingGradCpu(args, ParallelForOf(context))));
    }
  }
};

#define BLOCKSPARSE_REGISTER(DEVICE, IS_GPU)                                     \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseEmbeddingLookup").Device(DEVICE),     \
                          EmbeddingLookupOp<IS_GPU>);                            \
  REGISTER_KERNEL_BUILDER(Name("BlocksparseEmbeddingLookupGrad").Device(DEVICE), \
                          EmbeddingLookupGradOp<IS_GPU>)

BLOCKSPARSE_REGISTER(tensorflow::DEVICE_CPU, false);
#ifdef BLOCKSPARSE_WITH_CUDA
BLOCKSPARSE_REGISTER(tensorflow::DEVICE_GPU, true);
#endif
#undef BLOCKSPARSE_REGISTER

}  // namespace
}  // namespace blocksparse
