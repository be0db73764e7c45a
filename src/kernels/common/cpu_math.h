// exp, tanh and the sigmoid for the CPU, free of branches and calls so that compilers turn loops
// over them into vector instructions. The polynomials are minimax fits with float32's rounding in
// mind: each errs by less than 0.1 units of roundoff, the functions by a few with their roundings.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CPU_MATH_H_
#define BLOCKSPARSE_KERNELS_COMMON_CPU_MATH_H_

#include <cmath>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/common/dtype.h"

namespace blocksparse {

// condition ? a : b, both computed: compilers would make a branch of that, which ends vectors.
BLOCKSPARSE_INLINE float Select(bool condition, float a, float b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return FloatOf((BitsOf(a) & mask) | (BitsOf(b) & ~mask));
}

// e^x for x <= 0, 0 where that is below the smallest normal number; NaN stays NaN.
BLOCKSPARSE_INLINE float ExpOfNegative(float x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few bits, so that its multiples are exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRounder = 12582912.f;  // 1.5 * 2^23: what is added to it becomes an integer
  constexpr float kSmallest = -87.3365f;
  const float shifted = x * kLog2e + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;  // e^x = 2^n e^r, |r| <= ln(2) / 2
  float p = 1.3813145e-3f;
  p = p * r + 8.369419e-3f;
  p = p * r + 4.1668456e-2f;
  p = p * r + 1.6666515e-1f;
  p = p * r + 4.9999994e-1f;
  const float e = p * (r * r) + r + 1.f;
  const float power = FloatOf((BitsOf(shifted) + 127u) << 23);  // 2^n
  return Select(x < kSmallest, 0.f, e * power);
}

// Relative error as small near 0 as elsewhere.
BLOCKSPARSE_INLINE float Tanh(float x) {
  constexpr float kLargestOfPolynomial = 0.625f;
  const float magnitude = std::fabs(x);
  const float e = ExpOfNegative(-2.f * magnitude);
  const float far = std::copysign((1.f - e) / (1.f + e), x);
  const float z = x * x;
  float p = -5.681288e-3f;
  p = p * z + 2.0618629e-2f;
  p = p * z - 5.37337e-2f;
  p = p * z + 1.3331371e-1f;
  p = p * z - 3.333328e-1f;
  const float near = x + x * z * p;
  return Select(magnitude > kLargestOfPolynomial, far, near);
}

// s(x) = 1 / (1 + exp(-x)) and s'(x) from one exponential, which never overflows; 1 - s(x) would
// cancel.
struct Sigmoid {
  float value;
  float slope;
};
BLOCKSPARSE_INLINE Sigmoid SigmoidOf(float x) {
  const float e = ExpOfNegative(-std::fabs(x));
  const float r = 1.f / (1.f + e);
  const float er = e * r;
  return {Select(x >= 0.f, r, er), er * r};
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_CPU_MATH_H_
