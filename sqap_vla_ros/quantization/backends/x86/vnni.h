// The block product of backend vnni. Included by kernels.cpp.
//
// vpdpbusd multiplies unsigned bytes by signed ones. Activations are therefore shifted by 128, and the accumulators start
// at -128 times the sum of their channel's weights, which makes them equal to those of signed products. A row of a
// weight tile is 16 channels by 4 inputs, just what the instruction takes. Eight rows times a panel are 16 accumulators
// for 10 loads: enough to hide the latency, and few enough not to wait for loads.

#pragma once

namespace {

constexpr uint8_t kShift = 128;  // added to activations
constexpr int64_t kRowsAtOnce = 8;

void begin_multiplying() {}
void end_multiplying() {}

// Eight rows times a panel: rows of a tile [16][64] and of sums [2][16][16]. A function of its own: where the compiler put
// it into its caller, it spilled registers and took a third longer.
__attribute__((noinline)) void multiply_rows(const int8_t* rows, const int8_t* weights, int32_t* sums, int64_t steps,
                          const int32_t* start) {
  __m512i left[kRowsAtOnce], right[kRowsAtOnce];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRowsAtOnce; ++r) {
    left[r] = _mm512_load_si512(start ? start : sums + r * 16);
    right[r] = _mm512_load_si512(start ? start + 16 : sums + 256 + r * 16);
  }
  for (int64_t i = 0; i < steps; ++i, rows += kTile, weights += 2 * kTile)
#pragma GCC unroll 2
    for (int64_t k = 0; k < 16; ++k) {
      const __m512i first = _mm512_load_si512(weights + k * kDepth);
      const __m512i second = _mm512_load_si512(weights + kTile + k * kDepth);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRowsAtOnce; ++r) {
        int32_t four;
        std::memcpy(&four, rows + r * kDepth + k * 4, sizeof four);
        const __m512i inputs = _mm512_set1_epi32(four);
        left[r] = _mm512_dpbusd_epi32(left[r], inputs, first);
        right[r] = _mm512_dpbusd_epi32(right[r], inputs, second);
      }
    }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRowsAtOnce; ++r) {
    _mm512_store_si512(sums + r * 16, left[r]);
    _mm512_store_si512(sums + 256 + r * 16, right[r]);
  }
}

// Up to 32 rows times a panel over `steps` tiles of depth, onto sums [2][2][16][16], which begin at `start` [32] if there
// is one.
void multiply(const int8_t* upper, const int8_t* lower, const int8_t* weights, int32_t* sums, int64_t rows,
              int64_t steps, const int32_t* start) {
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t in_tile = row % kRows;
    multiply_rows((row < kRows ? upper : lower) + in_tile * kDepth, weights, sums + row / kRows * 512 + in_tile * 16,
                  steps, start);
  }
}

}  // namespace
