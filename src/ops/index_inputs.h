// Tensors of indices in the terms of src/kernels, and where one of them is wrong.
#ifndef BLOCKSPARSE_OPS_INDEX_INPUTS_H_
#define BLOCKSPARSE_OPS_INDEX_INPUTS_H_

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "src/kernels/common/indices.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace blocksparse {

// uint8, uint16, int32 or int64; attributes admit nothing else.
inline IndexType IndexTypeOf(tensorflow::DataType dtype) {
  if (dtype == tensorflow::DT_UINT8) return IndexType::kUint8;
  if (dtype == tensorflow::DT_UINT16) return IndexType::kUint16;
  if (dtype == tensorflow::DT_INT32) return IndexType::kInt32;
  return IndexType::kInt64;
}

// The coordinates of the i-th element, as in "1, 0, 3".
inline std::string PositionOf(const tensorflow::Tensor& tensor, int64_t i) {
  std::vector<int64_t> position(tensor.dims());
  for (int d = tensor.dims() - 1; d >= 0; --d) {
    position[d] = i % tensor.dim_size(d);
    i /= tensor.dim_size(d);
  }
  return absl::StrJoin(position, ", ");
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_OPS_INDEX_INPUTS_H_
