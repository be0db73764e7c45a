// How a CPU kernel gets its threads: src/ops hands down TensorFlow's pool, the C interface a plain
// loop.
#ifndef BLOCKSPARSE_KERNELS_COMMON_PARALLEL_FOR_H_
#define BLOCKSPARSE_KERNELS_COMMON_PARALLEL_FOR_H_

#include <cstdint>
#include <functional>

namespace blocksparse {

// Runs body(begin, end) over disjoint ranges that cover [0, total). `cost` is a rough count of
// cycles of one index. Which thread runs which range is not fixed, so a kernel's result must not
// depend on the split.
using ParallelFor = std::function<void(
    int64_t total, int64_t cost, const std::function<void(int64_t begin, int64_t end)>& body)>;

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_PARALLEL_FOR_H_
