// The inputs and attributes that describe a block-sparse layout, and the checks of what must fit
// it. Each check serves the shape function, where sizes may be unknown, and Compute, because eager
// execution runs no shape function.
#ifndef BLOCKSPARSE_OPS_LAYOUT_INPUTS_H_
#define BLOCKSPARSE_OPS_LAYOUT_INPUTS_H_

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "src/kernels/common/lut.h"
#include "src/ops/op_utils.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace blocksparse {

// A shape of which parts may be unknown.
struct Dims {
  static constexpr int64_t kUnknown = -1;
  bool has_rank = true;
  std::vector<int64_t> sizes;

  int rank() const { return static_cast<int>(sizes.size()); }
  std::string ToString() const {
    if (!has_rank) return "<unknown>";
    return absl::StrCat("[",
                        absl::StrJoin(sizes, ", ",
                                      [](std::string* out, int64_t size) {
                                        absl::StrAppend(
                                            out, size == kUnknown ? "?" : absl::StrCat(size));
                                      }),
                        "]");
  }
};

inline Dims DimsOf(const tensorflow::Tensor& tensor) {
  Dims dims;
  for (int i = 0; i < tensor.dims(); ++i) dims.sizes.push_back(tensor.dim_size(i));
  return dims;
}

inline Dims DimsOf(tensorflow::shape_inference::InferenceContext* c,
                   tensorflow::shape_inference::ShapeHandle shape) {
  Dims dims;
  dims.has_rank = c->RankKnown(shape);
  for (int i = 0; dims.has_rank && i < c->Rank(shape); ++i) {
    const auto dim = c->Dim(shape, i);
    dims.sizes.push_back(c->ValueKnown(dim) ? c->Value(dim) : Dims::kUnknown);
  }
  return dims;
}

// The sizes that are fixed when an op is built.
struct LayoutAttrs {
  int32_t block_size = 0;
  int32_t in_blocks = 0;
  int32_t out_blocks = 0;
  int32_t feature_axis = 1;

  // Reads them from an OpKernelConstruction or an InferenceContext.
  template <class Context>
  absl::Status Read(Context* context) {
    for (const auto& [name, field] : {std::pair{"block_size", &block_size},
                                      {"in_blocks", &in_blocks},
                                      {"out_blocks", &out_blocks}}) {
      const absl::Status status = context->GetAttr(name, field);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  template <class Context>
  absl::Status ReadWithAxis(Context* context) {
    const absl::Status status = Read(context);
    return status.ok() ? context->GetAttr("feature_axis", &feature_axis) : status;
  }

  // The dimension of the features in an activation of this rank: the last, or the first.
  int FeatureDim(int rank) const { return feature_axis == 1 ? rank - 1 : 0; }
};

// The shape of the stored blocks; num_blocks may be Dims::kUnknown.
inline Dims WeightShape(int64_t num_blocks, const LayoutAttrs& attrs) {
  return {true, {num_blocks, attrs.block_size, attrs.block_size}};
}

// An activation has rank 2 or more and `blocks` blocks of features.
inline absl::Status CheckActivation(const std::string& op, const std::string& name,
                                    const Dims& dims, const LayoutAttrs& attrs, int64_t blocks) {
  if (!dims.has_rank) return absl::OkStatus();
  if (dims.rank() < 2)
    return InvalidArgument(op, ": ", name,
                           " must have rank 2 or more (features and minibatch). Received: ", name,
                           ".shape=", dims.ToString());
  const int64_t features = dims.sizes[attrs.FeatureDim(dims.rank())];
  if (features != Dims::kUnknown && features != blocks * attrs.block_size)
    return InvalidArgument(op, ": ", name, " must have ", blocks * attrs.block_size,
                           " features on ", attrs.feature_axis == 1 ? "the last axis" : "axis 0",
                           " (", blocks, " blocks of ", attrs.block_size,
                           ", feature_axis=", attrs.feature_axis, "). Received: ", name,
                           ".shape=", dims.ToString());
  return absl::OkStatus();
}

// A tensor has exactly this shape; kUnknown on either side matches anything.
inline absl::Status CheckShape(const std::string& op, const std::string& name, const Dims& dims,
                               const Dims& expected) {
  if (!dims.has_rank) return absl::OkStatus();
  bool matches = dims.rank() == expected.rank();
  for (int i = 0; matches && i < dims.rank(); ++i)
    matches = dims.sizes[i] == expected.sizes[i] || dims.sizes[i] == Dims::kUnknown ||
              expected.sizes[i] == Dims::kUnknown;
  if (matches) return absl::OkStatus();
  return InvalidArgument(op, ": ", name, " must have shape ", expected.ToString(),
                         ". Received: ", name, ".shape=", dims.ToString());
}

// Reads the inputs "lut" and "plan" and checks them against the attributes.
inline absl::Status ReadLayout(tensorflow::OpKernelContext* context, const std::string& op,
                               const LayoutAttrs& attrs, Layout* layout) {
  const tensorflow::Tensor* lut = nullptr;
  const tensorflow::Tensor* plan = nullptr;
  absl::Status status = context->input("lut", &lut);
  if (status.ok()) status = context->input("plan", &plan);
  if (!status.ok()) return status;
  status = ToAbsl(op, ParseLayout(plan->flat<int32_t>().data(), plan->NumElements(),
                                  lut->flat<int64_t>().data(), lut->NumElements(), layout));
  if (!status.ok()) return status;
  if (layout->block_size != attrs.block_size || layout->in_blocks != attrs.in_blocks ||
      layout->out_blocks != attrs.out_blocks)
    return InvalidArgument(op, ": the layout must have ", attrs.in_blocks, " x ", attrs.out_blocks,
                           " blocks of ", attrs.block_size, ". Received: ", layout->in_blocks,
                           " x ", layout->out_blocks, " blocks of ", layout->block_size);
  return absl::OkStatus();
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_OPS_LAYOUT_INPUTS_H_
