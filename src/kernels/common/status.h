// The one error type below src/ops: a code and a sentence.
#ifndef BLOCKSPARSE_KERNELS_COMMON_STATUS_H_
#define BLOCKSPARSE_KERNELS_COMMON_STATUS_H_

#include <string>
#include <utility>

namespace blocksparse {

enum class Code {
  kOk = 0,
  kInvalid = 1,      // the caller's arguments contradict each other
  kUnsupported = 2,  // the arguments are sound, but no kernel serves them
  kDevice = 3,       // the CUDA runtime reported an error
};

class Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status Invalid(std::string message) { return Status(Code::kInvalid, std::move(message)); }
inline Status Unsupported(std::string message) {
  return Status(Code::kUnsupported, std::move(message));
}

}  // namespace blocksparse

#define BLOCKSPARSE_RETURN_IF_ERROR(expression)   \
  do {                                            \
    ::blocksparse::Status status_ = (expression); \
    if (!status_.ok()) return status_;            \
  } while (0)

#endif  // BLOCKSPARSE_KERNELS_COMMON_STATUS_H_
