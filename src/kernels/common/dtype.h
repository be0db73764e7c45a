// Storage types: one enum for run time, one plain 16-bit struct each for the CPU, and their
// conversions to float32. All arithmetic is in float32; storage types are only loaded and stored.
#ifndef BLOCKSPARSE_KERNELS_COMMON_DTYPE_H_
#define BLOCKSPARSE_KERNELS_COMMON_DTYPE_H_

#include <cstdint>
#include <cstring>

namespace blocksparse {

// The values are part of the C interface.
enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline int SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float ToFloat(float value) { return value; }
inline float ToFloat(BFloat16 value) { return FloatOf(uint32_t{value.bits} << 16); }
inline float ToFloat(Half value) {
  // No step meets a subnormal float32: TensorFlow's threads flush those to zero.
  constexpr uint32_t kRebias = (127u - 15u) << 23;  // from half's exponents to float32's
  constexpr uint32_t kExponent = 0x7c00u << 13;     // where a half's exponent lands
  constexpr uint32_t kLeastNormal = 1u << 23;
  const uint32_t shifted = (value.bits & 0x7fffu) << 13;
  const uint32_t exponent = shifted & kExponent;
  uint32_t bits = shifted + kRebias;
  if (exponent == kExponent) bits += kRebias;  // infinity or NaN: all ones
  if (exponent == 0) {
    // Subnormal: with the exponent of the least normal number the mantissa lacks an implicit one
    // too many.
    bits = BitsOf(FloatOf(bits + kLeastNormal) - FloatOf(kRebias + kLeastNormal));
  }
  return FloatOf(bits | (value.bits & 0x8000u) << 16);
}

// Round to nearest, ties to even, as the hardware does.
template <typename T>
T FromFloat(float value);

template <>
inline float FromFloat<float>(float value) {
  return value;
}
template <>
inline BFloat16 FromFloat<BFloat16>(float value) {
  const uint32_t bits = BitsOf(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return BFloat16{static_cast<uint16_t>(is_nan ? (bits >> 16 | 0x40u) : rounded >> 16)};
}
template <>
inline Half FromFloat<Half>(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return Half{static_cast<uint16_t>(sign | 0x7e00u)};  // NaN
  if (magnitude >= 0x477ff000u)
    return Half{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the subnormal's integer mantissa, rounded by the addition, in
    // the low bits.
    const uint32_t subnormal = BitsOf(FloatOf(magnitude) + 0.5f) - BitsOf(0.5f);
    return Half{static_cast<uint16_t>(sign | subnormal)};
  }
  const uint32_t rebased = magnitude - (112u << 23);
  return Half{static_cast<uint16_t>(sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13)};
}

// Calls f with a value of the CPU storage type of `dtype`.
template <class F>
void WithCpuType(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Half{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(float{});
  }
}

}  // namespace blocksparse

#endif  // BLOCKSPARSE_KERNELS_COMMON_DTYPE_H_
