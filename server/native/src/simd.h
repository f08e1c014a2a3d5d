// Vectors of floats in the compiler's own vector extension, so that one source serves AVX-512, AVX2, Arm and plain.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace lorachat {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
constexpr const char *kVariant = "avx512";
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr const char *kVariant = "avx2";
#elif defined(__aarch64__)
constexpr int kWidth = 4;
constexpr const char *kVariant = "neon";
#else
constexpr int kWidth = 4;
constexpr const char *kVariant = "plain";
#endif

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4)));

inline Vec load(const float *p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float *p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline VecU load_bits(const void *p) {
  VecU v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec splat(float x) { return x - Vec{}; }

inline Vec select(VecI mask, Vec yes, Vec no) { return (Vec)((mask & (VecI)yes) | (~mask & (VecI)no)); }

inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }

// One fixed tree, so that a sum does not depend on how the compiler likes to add.
inline float sum(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int half = kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float max(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int i = 1; i < kWidth; i++) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

// e^x. Cody and Waite's reduction, the polynomial of Cephes' expf; error under 2 units in the last place.
// Below -87 the result is 0; over 88 it is e^88.
inline Vec exp(Vec given) {
  Vec x = select(given > 88.0f, splat(88.0f), given);
  x = select(x < -87.0f, splat(-87.0f), x);
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec n = (x * 1.44269504088896341f + magic) - magic;
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  VecI exponent = __builtin_convertvector(n, VecI) << 23;
  Vec result = (Vec)((VecI)p + exponent);
  return select(given < -87.0f, Vec{}, result);
}

}  // namespace lorachat
