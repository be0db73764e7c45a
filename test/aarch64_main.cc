// Runs products that test_aarch64.py wrote to a file, through the C interface of the kernels.
//
//   aarch64_main CALLS RESULTS
//
// Each call: int64 product (0 fprop, 1 dx, 2 dw), dtype, feature_axis, batch and the bytes of five
// buffers; then plan, lut, and x, w (fprop), dy, w (dx) or x, dy (dw). The fifth is the result's.
#include <cstdio>
#include <vector>

#include "src/kernels/c_api.h"

namespace {

enum Product { kFprop, kDx, kDw };
enum Buffer { kPlan, kLut, kFirst, kSecond, kResult, kNumBuffers };

struct Call {
  int64_t product;
  int64_t dtype;
  int64_t feature_axis;
  int64_t batch;
  int64_t bytes[kNumBuffers];
};

int Run(const Call& call, std::vector<char>* buffers) {
  const BlocksparseTables tables = {
      reinterpret_cast<const int32_t*>(buffers[kPlan].data()), call.bytes[kPlan] / 4,
      reinterpret_cast<const int64_t*>(buffers[kLut].data()), call.bytes[kLut] / 8};
  const void* first = buffers[kFirst].data();
  const void* second = buffers[kSecond].data();
  if (call.product == kDw) {
    BlocksparseMatmulDw dw = {};
    dw.dtype = dw.dw_dtype = call.dtype;
    dw.feature_axis = call.feature_axis;
    dw.num_pairs = 1;
    dw.tables = tables;
    dw.x = &first;
    dw.dy = &second;
    dw.batch = &call.batch;
    dw.dw = buffers[kResult].data();
    return blocksparse_matmul_dw(&dw);
  }
  BlocksparseMatmul product = {};
  product.dtype = call.dtype;
  product.feature_axis = call.feature_axis;
  product.is_dx = call.product == kDx;
  product.batch = call.batch;
  product.tables = tables;
  product.x = first;
  product.w = second;
  product.y = buffers[kResult].data();
  return blocksparse_matmul(&product);
}

}  // namespace

int main(int argc, char** argv) {
  std::FILE* calls = argc == 3 ? std::fopen(argv[1], "rb") : nullptr;
  std::FILE* results = argc == 3 ? std::fopen(argv[2], "wb") : nullptr;
  if (calls == nullptr || results == nullptr) return 2;
  Call call;
  while (std::fread(&call, sizeof call, 1, calls) == 1) {
    std::vector<char> buffers[kNumBuffers];
    for (int i = 0; i < kNumBuffers; ++i) {
      buffers[i].resize(call.bytes[i]);
      if (i != kResult && std::fread(buffers[i].data(), 1, call.bytes[i], calls) !=
                              static_cast<size_t>(call.bytes[i]))
        return 3;
    }
    if (Run(call, buffers) != 0) {
      std::fprintf(stderr, "%s\n", blocksparse_last_error());
      return 1;
    }
    std::fwrite(buffers[kResult].data(), 1, call.bytes[kResult], results);
  }
  return std::fclose(results) == 0 ? 0 : 4;
}
