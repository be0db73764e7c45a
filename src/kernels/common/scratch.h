// Memory for the length of one call, kept for the next one: fresh pages cost more than many a
// product.
#ifndef BLOCKSPARSE_KERNELS_COMMON_SCRATCH_H_
#define BLOCKSPARSE_KERNELS_COMMON_SCRATCH_H_

#include <cstdint>

namespace blocksparse {

// Float32 words, not initialised, that start at a cache line; large ones ask for huge pages. The
// destructor gives them back to a pool of the process, which keeps at most kKeptBytes. Any thread
// may construct and destroy.
class Scratch {
 public:
  static constexpr int64_t kKeptBytes = int64_t{64} << 20;

  explicit Scratch(int64_t words);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* data() const { return data_; }

 private:
  float* data_;
  int64_t bytes_;
};

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SCRATCH_H_
