#include "src/kernels/common/scratch.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace blocksparse {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPage = int64_t{1} << 12;
constexpr int64_t kHugePage = int64_t{1} << 21;
// Under AddressSanitizer each gets memory of its own and exactly its size, so that any access
// outside is seen.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kIsExact = true;
#else
constexpr bool kIsExact = false;
#endif

struct Chunk {
  float* data;
  int64_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Chunk> free;
  int64_t kept_bytes = 0;
};

// Never destroyed: threads may outlive static objects.
Pool& ThePool() {
  static Pool* pool = new Pool;
  return *pool;
}

int64_t AlignmentOf(int64_t bytes) {
  return kIsExact ? kLine : bytes < kHugePage ? kPage : kHugePage;
}

// Sizes are rounded so that calls of similar size find each other's chunks.
int64_t RoundUp(int64_t bytes) {
  int64_t step = AlignmentOf(bytes);
  while (!kIsExact && step * 8 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

float* Allocate(int64_t bytes) {
  void* data = std::aligned_alloc(AlignmentOf(bytes), bytes);
  if (data == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (AlignmentOf(bytes) == kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return static_cast<float*>(data);
}

}  // namespace

Scratch::Scratch(int64_t words) : bytes_(RoundUp(words * sizeof(float))) {
  if (bytes_ == 0) bytes_ = AlignmentOf(0);
  Pool& pool = ThePool();
  {
    const std::lock_guard<std::mutex> lock(pool.mutex);
    for (Chunk& chunk : pool.free) {
      if (chunk.bytes != bytes_) continue;
      data_ = chunk.data;
      pool.kept_bytes -= bytes_;
      chunk = pool.free.back();
      pool.free.pop_back();
      return;
    }
  }
  data_ = Allocate(bytes_);
}

Scratch::~Scratch() {
  Pool& pool = ThePool();
  std::vector<Chunk> dropped;
  {
    const std::lock_guard<std::mutex> lock(pool.mutex);
    pool.free.push_back({data_, bytes_});
    pool.kept_bytes += bytes_;
    // The oldest go first.
    while (pool.kept_bytes > (kIsExact ? 0 : kKeptBytes)) {
      dropped.push_back(pool.free.front());
      pool.kept_bytes -= pool.free.front().bytes;
      pool.free.erase(pool.free.begin());
    }
  }
  for (const Chunk& chunk : dropped) std::free(chunk.data);
}

}  // namespace blocksparse
