// Arithmetic on rows of activations, which is the same on every CPU with AVX-512. Included by kernels.cpp.

#pragma once

namespace {

// float32 -> the same rounded to bfloat16 (nearest, ties to even), in the upper halves of int32.
__m512i to_bfloat16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  return _mm512_mask_mov_epi32(kept, nan, _mm512_set1_epi32(0x7fc00000));
}

float to_float(float x) { return x; }

float to_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// To the precision of an output, which is bfloat16 or float32.
template <typename T>
__m512 rounded(__m512 x) {
  return sizeof(T) == 2 ? _mm512_castsi512_ps(to_bfloat16(x)) : x;
}

template <typename T>
void store(T* to, __mmask16 mask, __m512 y) {
  if (sizeof(T) == 2)
    _mm512_mask_cvtepi32_storeu_epi16(to, mask, _mm512_srli_epi32(_mm512_castps_si512(y), 16));
  else
    _mm512_mask_storeu_ps(to, mask, y);
}

__m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }

__m512 load(const uint16_t* from, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
}

__m512 exponential(__m512 x) {
  const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 t = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.693147181f));  // |t| <= 0.35
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (const float factorial : {120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(1.0f / factorial));
  return _mm512_scalef_ps(sum, whole);
}

// GELU with the error function (Abramowitz and Stegun 7.1.26, within 1.5e-7), or with its approximation by tanh.
__m512 gelu(__m512 x, bool by_tanh) {
  const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
  if (by_tanh) {
    const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), one);
    const __m512 power = _mm512_mul_ps(_mm512_mul_ps(x, inner), _mm512_set1_ps(-2 * 0.7978845608f));
    return _mm512_div_ps(x, _mm512_add_ps(exponential(power), one));
  }
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.7071067812f));
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
  __m512 sum = _mm512_set1_ps(1.061405429f);
  for (const float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(factor));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(sum, t), exponential(_mm512_sub_ps(zero, _mm512_mul_ps(z, z))));
  const __m512 half = _mm512_mul_ps(tail, _mm512_set1_ps(0.5f));  // of the normal distribution, beyond |x|
  const __mmask16 negative = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(one, half), negative, half));
}

// 16 values of a row, zeros beyond its end.
__m512 load_row(const uint16_t* x, int64_t at, int64_t inputs) {
  const int64_t left = inputs - at;
  const __mmask16 mask = left >= 16 ? 0xffff : (1 << left) - 1;
  return load(x + at, mask);
}

// Quantises one row and returns its scale, see quantize_activation in quantizers.py. rms_eps < 0: no norm.
uint16_t quantize_row(const uint16_t* x, int8_t* values, int64_t inputs, int top, float ratio, float rms_eps) {
  constexpr float kTiny = 1e-12f;
  __m512 largest = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (int64_t k = 0; k < inputs; k += 16) {
    const __m512 v = load_row(x, k, inputs);
    largest = _mm512_max_ps(_mm512_abs_ps(v), largest);
    nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    if (rms_eps >= 0) squares = _mm512_fmadd_ps(v, v, squares);
  }
  const float magnitude = nan ? NAN : _mm512_reduce_max_ps(largest);
  const float step = magnitude * ratio;
  float inverse = 1.0f / (step < kTiny ? kTiny : step);
  uint32_t bits;
  std::memcpy(&bits, &inverse, sizeof bits);
  inverse = to_float(static_cast<uint16_t>(bits >> 16));
  float scale = 1.0f / inverse;
  if (rms_eps >= 0) scale *= 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / inputs + rms_eps);
  const __m512 factor = _mm512_set1_ps(inverse), high = _mm512_set1_ps(top), low = _mm512_set1_ps(-top);
  for (int64_t k = 0; k < inputs; k += 16) {
    const __m512 v = _mm512_mul_ps(load_row(x, k, inputs), factor);
    // to nearest, ties to even
    const __m512i integers = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, low), high));
    const int64_t left = inputs - k;
    _mm512_mask_cvtepi32_storeu_epi8(values + k, left >= 16 ? 0xffff : (1 << left) - 1, integers);
  }
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(to_bfloat16(_mm512_set1_ps(scale)))) >> 16;
}

// LayerNorm of one row; weight and bias may be null.
void normalise_row(const uint16_t* x, uint16_t* y, int64_t inputs, float eps, const float* weight, const float* bias) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t k = 0; k < inputs; k += 16) sum = _mm512_add_ps(sum, load_row(x, k, inputs));
  const float mean = _mm512_reduce_add_ps(sum) / inputs;
  const __m512 middle = _mm512_set1_ps(mean);
  const auto mask = [&](int64_t k) -> __mmask16 { return inputs - k >= 16 ? 0xffff : (1 << (inputs - k)) - 1; };
  __m512 squares = _mm512_setzero_ps();
  for (int64_t k = 0; k < inputs; k += 16) {
    const __m512 away = _mm512_maskz_sub_ps(mask(k), load_row(x, k, inputs), middle);
    squares = _mm512_fmadd_ps(away, away, squares);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / inputs + eps));
  for (int64_t k = 0; k < inputs; k += 16) {
    __m512 v = _mm512_mul_ps(_mm512_sub_ps(load_row(x, k, inputs), middle), factor);
    if (weight) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask(k), weight + k));
    if (bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask(k), bias + k));
    store(y + k, mask(k), rounded<uint16_t>(v));
  }
}

}  // namespace
