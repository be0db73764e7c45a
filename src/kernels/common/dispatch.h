// Run-time values to compile-time constants.
#ifndef BLOCKSPARSE_KERNELS_COMMON_DISPATCH_H_
#define BLOCKSPARSE_KERNELS_COMMON_DISPATCH_H_

#include <string>
#include <type_traits>

#include "src/kernels/common/status.h"

namespace blocksparse {

template <int kValue>
using Int = std::integral_constant<int, kValue>;

// Calls f(Int<B>) for a supported block size.
template <class F>
Status WithBlockSize(int block_size, F f) {
  switch (block_size) {
    case 8:
      return f(Int<8>{});
    case 16:
      return f(Int<16>{});
    case 32:
      return f(Int<32>{});
    case 64:
      return f(Int<64>{});
    case 128:
      return f(Int<128>{});
  }
  return Unsupported("block_size must be 8, 16, 32, 64 or 128. Received: " +
                     std::to_string(block_size));
}

// Calls f(std::true_type) or f(std::false_type).
template <class F>
Status WithBool(bool value, F f) {
  return value ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_DISPATCH_H_
