// exp, tanh and the sigmoid for the CPU, free of branches and calls so that compilers turn loops
// over them into vector instructions. The polynomials are minimax fits with float32's rounding in
// mind: each errs by less than 0.1 units of roundoff, the functions by a few with their roundings.
#ifndef BLOCKSPARSE_KERNELS_COMMON_CPU_MATH_H_
#define BLOCKSPARSE_KERNELS_COMMON_CPU_MATH_H_

#include <cmath>

#include "src/kernels/common/cpu_clones.h"
#include "src/kernels/common/dtype.h"

namespace blocksparse {

// The larger or smaller of x and a limit: one instruction. NaN stays NaN.
BLOCKSPARSE_INLINE float AtLeast(float least, float x) { return least > x ? least : x; }
BLOCKSPARSE_INLINE float AtMost(float most, float x) { return most < x ? most : x; }

// e^(kScale x) = power (1 + rest): power is 2^n, and |rest| < 0.42.
struct ExpParts {
  float power;
  float rest;
};

// kScale: 1, -1 or 2. n is from -127, where power becomes 0, to 128, where it becomes infinity; so
// kScale x must be between -88.3 and 89.
template <int kScale>
BLOCKSPARSE_INLINE ExpParts SplitExp(float x) {
  constexpr float kLog2e = 1.44269504f * kScale;
  constexpr float kLn2High = 0.693359375f / kScale;  // few bits, so that its multiples are exact
  constexpr float kLn2Low = -2.12194440e-4f / kScale;
  // 1.5 * 2^23 + 127: what is added to it becomes an integer, with the bias of exponents.
  constexpr float kRounder = 12583039.f;
  const float shifted = x * kLog2e + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * kLn2High) - n * kLn2Low;  // kScale |r| <= ln(2) / 2
  float p = 1.3813145e-3f * kScale * kScale * kScale * kScale * kScale * kScale;
  p = p * r + 8.369419e-3f * kScale * kScale * kScale * kScale * kScale;
  p = p * r + 4.1668456e-2f * kScale * kScale * kScale * kScale;
  p = p * r + 1.6666515e-1f * kScale * kScale * kScale;
  p = p * r + 4.9999994e-1f * kScale * kScale;
  return {FloatOf(BitsOf(shifted) << 23), (p * r + kScale) * r};
}

// e^x for x <= 0, 0 below -87.7, which is 2^-126 nearly; NaN stays NaN.
BLOCKSPARSE_INLINE float ExpOfNegative(float x) {
  const ExpParts e = SplitExp<1>(AtLeast(-88.f, x));
  return e.power * e.rest + e.power;
}

// (e^2x - 1) / (e^2x + 1) with a numerator that does not cancel: the relative error is as small
// near 0 as elsewhere.
BLOCKSPARSE_INLINE float Tanh(float x) {
  constexpr float kSaturated = 10.f;  // the results are 1 and -1 long before
  const ExpParts e = SplitExp<2>(AtMost(kSaturated, AtLeast(-kSaturated, x)));
  const float numerator = e.power * e.rest + (e.power - 1.f);
  return numerator / (numerator + 2.f);
}

// s(x) = 1 / (1 + exp(-x)), 0 where the exponential overflows, and s'(x); 1 - s(x) would cancel.
struct Sigmoid {
  float value;
  float slope;
};
BLOCKSPARSE_INLINE Sigmoid SigmoidOf(float x) {
  const ExpParts parts = SplitExp<-1>(AtMost(88.f, AtLeast(-89.f, x)));
  const float e = parts.power * (1.f + parts.rest);
  const float value = 1.f / (1.f + e);
  const float rest = e * value;  // 1 - s(x), but NaN where e is infinity
  return {value, value * (rest < 1.f ? rest : 1.f)};
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_CPU_MATH_H_
