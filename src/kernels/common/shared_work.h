// A loop that threads of a pool share: each takes the next block of it when it has done one. Who
// starts late does less, and the caller waits for blocks that others have begun, never for threads
// to wake up, which may take longer than many a product.
#ifndef BLOCKSPARSE_KERNELS_COMMON_SHARED_WORK_H_
#define BLOCKSPARSE_KERNELS_COMMON_SHARED_WORK_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace blocksparse {

class SharedWork {
 public:
  using Body = std::function<void(int64_t begin, int64_t end)>;

  // [0, total) in blocks of `block`. `body` must live until Run returns.
  SharedWork(int64_t total, int64_t block, const Body& body)
      : total_(total), block_(block), num_blocks_((total + block - 1) / block), body_(body) {}

  // Takes blocks until there are none. A helper that comes too late does nothing.
  void Help() {
    for (int64_t i; (i = next_.fetch_add(1)) < num_blocks_;) {
      body_(i * block_, std::min(total_, (i + 1) * block_));
      if (done_.fetch_add(1) + 1 < num_blocks_) continue;
      const std::lock_guard<std::mutex> lock(mutex_);
      finished_.notify_one();
    }
  }

  // Helps, and returns when all blocks are done.
  void Run() {
    constexpr auto kImpatience = std::chrono::microseconds(100);  // as long as a sleep costs
    Help();
    const auto start = std::chrono::steady_clock::now();
    while (!IsDone()) {
      if (std::chrono::steady_clock::now() - start < kImpatience) {
        std::this_thread::yield();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      finished_.wait(lock, [this] { return IsDone(); });
    }
  }

 private:
  bool IsDone() const { return done_.load() == num_blocks_; }

  const int64_t total_;
  const int64_t block_;
  const int64_t num_blocks_;
  const Body& body_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
};

// Runs body over [0, total) on this thread and those to which schedule(task) gives a task, at most
// num_threads in all. `cost`: rough cycles of one index.
template <class Schedule>
void ShareWork(int64_t total, int64_t cost, int num_threads, Schedule schedule,
               const SharedWork::Body& body) {
  constexpr int64_t kLeastBlock = 20000;  // cycles that are worth taking a block
  constexpr int64_t kLeastTotal = 60000;  // cycles that are worth waking a thread
  constexpr int64_t kBlocksOfThread = 8;  // so that all end at nearly the same time
  cost = std::max<int64_t>(cost, 1);
  if (num_threads <= 1 || total <= 1 || total < kLeastTotal / cost) {
    if (total > 0) body(0, total);
    return;
  }
  const int64_t block =
      std::max((total + kBlocksOfThread * num_threads - 1) / (kBlocksOfThread * num_threads),
               (kLeastBlock + cost - 1) / cost);
  const auto work = std::make_shared<SharedWork>(total, block, body);
  const int64_t helpers = std::min<int64_t>(num_threads, (total + block - 1) / block) - 1;
  for (int64_t i = 0; i < helpers; ++i) schedule([work] { work->Help(); });
  work->Run();
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_SHARED_WORK_H_
