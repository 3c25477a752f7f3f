// The results of a stripe are put in order, finished and written. Included by kernels.cpp.

#pragma once

namespace {

constexpr int64_t kParts = 32 / kLanes;

// 32 values of a row.
struct Values {
  Floats part[kParts];
};

// Values that are rounded already, to memory.
template <typename T>
void store(T* to, const Values& y) {
  for (int64_t i = 0; i < kParts; ++i) store(to + i * kLanes, y.part[i], kLanes);
}

template <typename T>
Values loaded(const T* from) {
  Values y;
  for (int64_t i = 0; i < kParts; ++i) y.part[i] = load(from + i * kLanes, kLanes);
  return y;
}

// 32 values of a row of 256 from their places; zero where the place is -1.
template <typename T>
Values picked(const T* row, const int16_t* places) {
  T values[32];
  for (int64_t i = 0; i < 32; ++i) values[i] = places[i] < 0 ? T(0) : row[places[i]];
  return loaded(values);
}

#ifdef __AVX512F__
template <>
Values picked(const uint16_t* row, const int16_t* places) {
  const __m512i at = _mm512_loadu_si512(places);
  const auto of_64 = [&](int64_t i) {
    return _mm512_permutex2var_epi16(_mm512_load_si512(row + i * 64), at, _mm512_load_si512(row + i * 64 + 32));
  };
  const __mmask32 odd = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
  const __m512i lower = _mm512_mask_mov_epi16(of_64(0), odd, of_64(1));
  const __m512i upper = _mm512_mask_mov_epi16(of_64(2), odd, of_64(3));
  const __m512i any = _mm512_mask_mov_epi16(lower, _mm512_test_epi16_mask(at, _mm512_set1_epi16(128)), upper);
  const __m512i there = _mm512_maskz_mov_epi16(~_mm512_movepi16_mask(at), any);
  return {widened((Halves)_mm512_castsi512_si256(there)), widened((Halves)_mm512_extracti64x4_epi64(there, 1))};
}
#endif

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

  Floats operator()(Floats y, int64_t row, int64_t column, int64_t outputs) const {
    const int64_t left = outputs - column;
    y = rounded<T>(y);
    if (bias) y = rounded<T>(y + load(bias + column, left));
    if (gelu) y = rounded<T>(::gelu(y, gelu == 2));
    if (factor) y = rounded<T>(y * load(factor + column, left));
    if (residual) y = rounded<T>(y + load(residual + row * outputs + column, left));
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
    for (int64_t row = 0; row < rows; ++row) {
      const Floats scale = spread(to_float(row_scale[row]));
      const auto put = [&](Floats y, Floats other, int64_t column) {
        if (column >= end) return;
        y = y * scale;
        if (gated) y = y / (exponential(-y) + 1.0f) * (other * scale);
        store(out + row * outputs + column, finish ? (*finish)(y, row, column, outputs) : rounded<T>(y), end - column);
      };
      for (int64_t column = begin; column < end; column += 32) {
        const Values y = stripe.at(row, column - begin), other = gated ? up.at(row, column - begin) : y;
        for (int64_t i = 0; i < kParts; ++i) put(y.part[i], other.part[i], column + i * kLanes);
      }
    }
  }
};

}  // namespace
