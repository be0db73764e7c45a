// What every op needs from TensorFlow: the stream, the thread pool, dtypes and errors, in the terms
// of src/kernels.
#ifndef BLOCKSPARSE_OPS_OP_UTILS_H_
#define BLOCKSPARSE_OPS_OP_UTILS_H_

#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "src/kernels/common/dtype.h"
#include "src/kernels/common/parallel_for.h"
#include "src/kernels/common/shared_work.h"
#include "src/kernels/common/status.h"
#include "src/kernels/matmul.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/stream.h"

namespace blocksparse {

// The stream that a GPU kernel must use.
inline Stream StreamOf(tensorflow::OpKernelContext* context) {
  auto* device_context = context->op_device_context();
  if (device_context == nullptr || device_context->stream() == nullptr) return nullptr;
  return static_cast<Stream>(device_context->stream()->platform_specific_handle().stream);
}

// TensorFlow's intra-op threads as the kernels' ParallelFor. Valid during Compute.
inline ParallelFor ParallelForOf(tensorflow::OpKernelContext* context) {
  const auto& threads = *context->device()->tensorflow_cpu_worker_threads();
  return [&threads](int64_t total, int64_t cost, const SharedWork::Body& body) {
    ShareWork(
        total, cost, threads.num_threads,
        [&threads](std::function<void()> task) { threads.workers->Schedule(std::move(task)); },
        body);
  };
}

// float32, float16 or bfloat16; attributes admit nothing else.
inline DType DTypeOf(tensorflow::DataType dtype) {
  if (dtype == tensorflow::DT_HALF) return DType::kFloat16;
  if (dtype == tensorflow::DT_BFLOAT16) return DType::kBFloat16;
  return DType::kFloat32;
}

template <typename... Parts>
absl::Status InvalidArgument(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// A kernel's Status as TensorFlow's, with the op's name in front.
inline absl::Status ToAbsl(const std::string& op, const Status& status) {
  const std::string message = absl::StrCat(op, ": ", status.message());
  switch (status.code()) {
    case Code::kOk:
      return absl::OkStatus();
    case Code::kInvalid:
      return absl::InvalidArgumentError(message);
    case Code::kUnsupported:
      return absl::UnimplementedError(message);
    case Code::kDevice:
      return absl::InternalError(message);
  }
  return absl::InternalError(message);
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_OPS_OP_UTILS_H_
