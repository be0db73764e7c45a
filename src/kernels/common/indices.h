// Tensors of integers that choose something: labels, rows of a table.
#ifndef BLOCKSPARSE_KERNELS_COMMON_INDICES_H_
#define BLOCKSPARSE_KERNELS_COMMON_INDICES_H_

#include <cstdint>

#include "src/kernels/common/lut.h"  // BLOCKSPARSE_HOST_DEVICE

namespace blocksparse {

enum class IndexType : int32_t { kUint8, kUint16, kInt32, kInt64 };

BLOCKSPARSE_HOST_DEVICE inline int64_t IndexAt(const void* indices, IndexType type, int64_t i) {
  switch (type) {
    case IndexType::kUint8:
      return static_cast<const uint8_t*>(indices)[i];
    case IndexType::kUint16:
      return static_cast<const uint16_t*>(indices)[i];
    case IndexType::kInt32:
      return static_cast<const int32_t*>(indices)[i];
    case IndexType::kInt64:
      return static_cast<const int64_t*>(indices)[i];
  }
  return -1;
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_INDICES_H_
