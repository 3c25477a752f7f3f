// Vectors of floats, as wide as the CPU's registers. Included by kernels.cpp.
//
// Written with the vector extensions of GCC and Clang, which make AVX-512, AVX2 or NEON of them; what these express badly
// on AVX-512 is written with intrinsics beside. Steps that round are never contracted (see the flags in units.py).

#pragma once

namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

float to_float(float x) { return x; }

float to_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

Floats spread(float x) { return x - Floats{}; }
Floats magnitude(Floats x) { return (Floats)((Words)x & 0x7fffffffu); }
Words larger(Words x, Words y) { return x > y ? x : y; }

// x between low and high, low where it is not a number.
Floats clipped(Floats x, Floats low, Floats high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(_mm512_max_ps(x, low), high);
#elif defined(__AVX2__)
  return _mm256_min_ps(_mm256_max_ps(x, low), high);
#else
  x = x > low ? x : low;
  return x < high ? x : high;
#endif
}

float sum_of(Floats x) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

uint32_t largest_of(Words x) {
  uint32_t largest = x[0];
  for (int64_t i = 1; i < kLanes; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// float32 -> the same rounded to bfloat16 (nearest, ties to even), as float32.
Floats to_bfloat16(Floats x) {
  const Words bits = (Words)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return (Floats)(x == x ? rounded : Words{} + 0x7fc00000u);
}

// To the precision of an output, which is bfloat16 or float32.
template <typename T>
Floats rounded(Floats x) {
  return sizeof(T) == 2 ? to_bfloat16(x) : x;
}

Floats widened(Halves bfloat16) { return (Floats)(__builtin_convertvector(bfloat16, Words) << 16); }
Halves narrowed(Floats y) { return __builtin_convertvector((Words)y >> 16, Halves); }

constexpr float kOnesPlace = 12582912.0f;  // 1.5 * 2^23: in a sum with it, the last place of a float is 1

// `count` values of a row from or to memory; zeros beyond. Values that are stored are rounded already.
#ifdef __AVX512F__
__mmask16 lanes(int64_t count) { return count >= kLanes ? 0xffff : (1 << count) - 1; }
Floats load(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(lanes(count), from); }
Floats load(const uint16_t* from, int64_t count) {
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes(count), from)), 16);
}
void store(float* to, Floats y, int64_t count) { _mm512_mask_storeu_ps(to, lanes(count), y); }
void store(uint16_t* to, Floats y, int64_t count) {
  _mm512_mask_cvtepi32_storeu_epi16(to, lanes(count), _mm512_srli_epi32((__m512i)y, 16));
}
Floats kept(Floats x, int64_t count) { return _mm512_maskz_mov_ps(lanes(count), x); }
#else
template <typename Vector, typename T>
Vector load_as(const T* from, int64_t count) {
  Vector some{};
  if (count >= kLanes)
    std::memcpy(&some, from, sizeof some);
  else
    std::memcpy(&some, from, count * sizeof(T));
  return some;
}
Floats load(const float* from, int64_t count) { return load_as<Floats>(from, count); }
Floats load(const uint16_t* from, int64_t count) { return widened(load_as<Halves>(from, count)); }

template <typename Vector, typename T>
void store_as(T* to, Vector y, int64_t count) {
  if (count >= kLanes)
    std::memcpy(to, &y, sizeof y);
  else
    std::memcpy(to, &y, count * sizeof(T));
}
void store(float* to, Floats y, int64_t count) { store_as(to, y, count); }
void store(uint16_t* to, Floats y, int64_t count) { store_as(to, narrowed(y), count); }
Floats kept(Floats x, int64_t count) {
  if (count >= kLanes) return x;
  Floats some{};
  std::memcpy(&some, &x, count * sizeof(float));
  return some;
}
#endif

// |x| <= 127, to the nearest integers, ties to even, and to memory.
void store_integers(int8_t* to, Floats x, int64_t count) {
  const Ints integers = (Ints)(x + kOnesPlace) - (Ints)spread(kOnesPlace);
#ifdef __AVX512F__
  _mm512_mask_cvtepi32_storeu_epi8(to, lanes(count), (__m512i)integers);
#else
  store_as(to, __builtin_convertvector(integers, Bytes), count);
#endif
}

// x * y + z in one rounding.
Floats fused(Floats x, Floats y, Floats z) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(x, y, z);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(x, y, z);
#else
  return vfmaq_f32(z, x, y);
#endif
}

Floats exponential(Floats x) {
#ifdef __AVX512F__
  const Floats power = x * 1.44269504f;
  const Floats whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = x < -88.0f ? spread(-88.0f) : x > 89.0f ? spread(89.0f) : x;  // beyond: zero, infinity; not a number stays
  const Floats power = x * 1.44269504f;
  const Floats whole = (power + kOnesPlace) - kOnesPlace;
#endif
  const Floats t = (power - whole) * 0.693147181f;  // |t| <= 0.35
  Floats sum = spread(1.0f / 720);
  for (const float factorial : {120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f}) sum = fused(sum, t, spread(1.0f / factorial));
#ifdef __AVX512F__
  return _mm512_scalef_ps(sum, whole);
#else
  return sum * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);  // 2^whole, -127 <= whole <= 128
#endif
}

// GELU with the error function (Abramowitz and Stegun 7.1.28, within 3e-7), or with its approximation by tanh.
__attribute__((always_inline)) inline Floats gelu(Floats x, bool by_tanh) {
  if (by_tanh) {
    const Floats inner = fused(x * x, spread(0.044715f), spread(1.0f));
    return x / (exponential(x * inner * (-2 * 0.7978845608f)) + 1.0f);
  }
  const Floats z = magnitude(x) * 0.7071067812f;
  Floats root = spread(0.0000430638f);  // the sixteenth root of 1 / (1 - erf z)
  for (const float factor : {0.0002765672f, 0.0001520143f, 0.0092705272f, 0.0422820123f, 0.0705230784f, 1.0f})
    root = fused(root, z, spread(factor));
  for (int i = 0; i < 4; ++i) root = root * root;
  const Floats half = 0.5f / root;  // of the normal distribution, beyond |x|
  return x * (x < 0.0f ? half : 1.0f - half);
}

}  // namespace
