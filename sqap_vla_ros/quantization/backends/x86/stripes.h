// The results of a stripe are put in order, finished and written. Included by kernels.cpp.

#pragma once

namespace {

// 32 values of a row.
struct Values {
  __m512 lower, upper;
};

// Values that are rounded already, to memory.
void store(float* to, Values y) {
  _mm512_storeu_ps(to, y.lower);
  _mm512_storeu_ps(to + 16, y.upper);
}

void store(uint16_t* to, Values y) {
  alignas(64) static constexpr uint16_t kUpperHalves[] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                          33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i lower = _mm512_castps_si512(y.lower), upper = _mm512_castps_si512(y.upper);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(lower, _mm512_load_si512(kUpperHalves), upper));
}

Values widened(__m512i bfloat16) {
  const auto wide = [](__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  };
  return {wide(_mm512_castsi512_si256(bfloat16)), wide(_mm512_extracti64x4_epi64(bfloat16, 1))};
}

Values loaded(const uint16_t* from) { return widened(_mm512_loadu_si512(from)); }
Values loaded(const float* from) { return {_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)}; }

// 32 values of a row of 256 from their places; zero where the place is -1.
Values picked(const uint16_t* row, const int16_t* places) {
  const __m512i at = _mm512_loadu_si512(places);
  const auto of_64 = [&](int64_t i) {
    return _mm512_permutex2var_epi16(_mm512_load_si512(row + i * 64), at, _mm512_load_si512(row + i * 64 + 32));
  };
  const __mmask32 odd = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
  const __m512i lower = _mm512_mask_mov_epi16(of_64(0), odd, of_64(1));
  const __m512i upper = _mm512_mask_mov_epi16(of_64(2), odd, of_64(3));
  const __m512i any = _mm512_mask_mov_epi16(lower, _mm512_test_epi16_mask(at, _mm512_set1_epi16(128)), upper);
  return widened(_mm512_maskz_mov_epi16(~_mm512_movepi16_mask(at), any));
}

Values picked(const float* row, const int16_t* places) {
  float values[32];
  for (int64_t i = 0; i < 32; ++i) values[i] = places[i] < 0 ? 0.0f : row[places[i]];
  return loaded(values);
}

// Results of a stripe before the rows' scales, [rows, 256] as its panels have them.
// places: where each output's channel is, -1 for none; null where channels are in order.
template <typename T>
struct Stripe {
  const T* channels;
  const int16_t* places;

  // 32 outputs of a row.
  Values at(int64_t row, int64_t output) const {
    const T* from = channels + row * kStripe;
    return places ? picked(from, places + output) : loaded(from + output);
  }
};

// What follows a product: out = residual + factor * gelu(y + bias), each rounded. Null pointers leave their step out.
// bias, factor: [outputs]. residual: [rows, outputs]. gelu: 1 with the error function, 2 by tanh, 0 without.
template <typename T>
struct Finish {
  const T *bias, *factor, *residual;
  int64_t gelu;

  __m512 operator()(__m512 y, __mmask16 mask, int64_t row, int64_t column, int64_t outputs) const {
    y = rounded<T>(y);
    if (bias) y = rounded<T>(_mm512_add_ps(y, load(bias + column, mask)));
    if (gelu) y = rounded<T>(::gelu(y, gelu == 2));
    if (factor) y = rounded<T>(_mm512_mul_ps(y, load(factor + column, mask)));
    if (residual) y = _mm512_add_ps(y, load(residual + row * outputs + column, mask));
    return y;
  }
};

// Where a product goes. row_scale: [rows]. out: [rows, outputs]. gated: it is silu(gate) * up, of two products.
template <typename T>
struct Output {
  const Finish<T>* finish;
  const T* row_scale;
  T* out;
  int64_t outputs;
  bool gated;

  // Writes a stripe, whose outputs are those from `begin` to `end`, times the rows' scales.
  void write(const Stripe<T>& stripe, const Stripe<T>& up, int64_t rows, int64_t begin, int64_t end) const {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    for (int64_t row = 0; row < rows; ++row) {
      const __m512 scale = _mm512_set1_ps(to_float(row_scale[row]));
      const auto put = [&](__m512 y, __m512 other, int64_t column) {
        if (column >= end) return;
        const __mmask16 mask = end - column >= 16 ? 0xffff : (1 << (end - column)) - 1;
        y = _mm512_mul_ps(y, scale);
        if (gated) {
          const __m512 below = _mm512_add_ps(exponential(_mm512_sub_ps(zero, y)), one);
          y = _mm512_mul_ps(_mm512_div_ps(y, below), _mm512_mul_ps(other, scale));
        }
        if (finish) y = (*finish)(y, mask, row, column, outputs);
        store(out + row * outputs + column, mask, rounded<T>(y));
      };
      for (int64_t column = begin; column < end; column += 32) {
        const Values y = stripe.at(row, column - begin), other = gated ? up.at(row, column - begin) : y;
        put(y.lower, other.lower, column);
        put(y.upper, other.upper, column + 16);
      }
    }
  }
};

}  // namespace
