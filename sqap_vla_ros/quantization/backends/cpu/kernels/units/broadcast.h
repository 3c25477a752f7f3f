// The block product of the backends vnni (512 bits), avx_vnni and avx2 (256 bits). Included by kernels.cpp.
//
// Four inputs of a row, in every lane of a register, times four inputs of 8 or 16 channels: a row of a weight tile is 16
// channels by 4 inputs, just what the instructions take. Accumulators stay in registers over a depth block. They are
// enough to hide the latency of the instruction, and the loads few enough not to be waited for.
//
// vpdpbusd multiplies unsigned bytes by signed ones. Activations are therefore shifted by 128, and the accumulators start
// at -128 times the sum of their channel's weights, which makes them equal to those of signed products.
// Without it, on AVX2, vpmaddubsw adds pairs of such products in 16 bits. They are |weight| <= 128 times the activation
// with the weight's sign, |activation| <= 127: a pair is at most 32512 and never saturates.

#pragma once

namespace {

constexpr int64_t kTogether = 4;    // inputs of a channel that lie side by side
constexpr int64_t kPairedRows = 1;  // rows that alternate in a tile
constexpr int64_t kColumns = 2;     // vectors of channels that are multiplied at once

#if defined(__AVX512VNNI__)
using Vector = __m512i;
constexpr uint8_t kShift = 128;  // added to activations
constexpr int64_t kRowsAtOnce = 8, kTileRows = 16;
Vector inputs_of(int32_t four) { return _mm512_set1_epi32(four); }
Vector dot(Vector sum, Vector inputs, Vector weights) { return _mm512_dpbusd_epi32(sum, inputs, weights); }
#else
using Vector = __m256i;
Vector inputs_of(int32_t four) { return _mm256_set1_epi32(four); }
#if defined(__AVXVNNI__)
constexpr uint8_t kShift = 128;
constexpr int64_t kRowsAtOnce = 6, kTileRows = 12;
Vector dot(Vector sum, Vector inputs, Vector weights) { return _mm256_dpbusd_avx_epi32(sum, inputs, weights); }
#else
constexpr uint8_t kShift = 0;
constexpr int64_t kRowsAtOnce = 4, kTileRows = 12;
Vector dot(Vector sum, Vector inputs, Vector weights) {
  const Vector pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(inputs, weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
#endif

constexpr int64_t kVector = sizeof(Vector) / 4;  // channels of a vector

// Where 16 accumulators of a row are: sums [rows][32].
int64_t sums_at(int64_t row, int64_t half) { return row * kPanel + half * 16; }

void begin_multiplying() {}
void end_multiplying() {}

// A few rows times `kColumns` vectors of channels: rows of a tile, weights [steps][2][16][64] and sums [rows][32] from the
// first of these channels on. A function of its own: where the compiler put it into its caller, it spilled registers and
// took a third longer.
__attribute__((noinline)) void multiply_rows(const int8_t* rows, const int8_t* weights, int32_t* sums, int64_t steps,
                                             const int32_t* start) {
  Vector sum[kRowsAtOnce][kColumns];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
    for (int64_t c = 0; c < kColumns; ++c)
      sum[r][c] = *reinterpret_cast<const Vector*>((start ? start : sums + r * kPanel) + c * kVector);
  for (int64_t i = 0; i < steps; ++i, rows += kTileRows * kDepth, weights += 2 * kTile)
#pragma GCC unroll 2
    for (int64_t k = 0; k < 16; ++k) {
      Vector columns[kColumns];
#pragma GCC unroll 2
      for (int64_t c = 0; c < kColumns; ++c) {
        const int64_t channel = c * kVector;
        columns[c] = *reinterpret_cast<const Vector*>(weights + channel / 16 * kTile + k * kDepth + channel % 16 * 4);
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kRowsAtOnce; ++r) {
        int32_t four;
        std::memcpy(&four, rows + r * kDepth + k * 4, sizeof four);
        const Vector inputs = inputs_of(four);
#pragma GCC unroll 2
        for (int64_t c = 0; c < kColumns; ++c) sum[r][c] = dot(sum[r][c], inputs, columns[c]);
      }
    }
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRowsAtOnce; ++r)
#pragma GCC unroll 2
    for (int64_t c = 0; c < kColumns; ++c)
      *reinterpret_cast<Vector*>(sums + r * kPanel + c * kVector) = sum[r][c];
}

// Rows of two tiles times a panel over `steps` tiles of depth, onto sums, which begin at `start` [32] if there is one.
void multiply(const int8_t* upper, const int8_t* lower, const int8_t* weights, int32_t* sums, int64_t rows,
              int64_t steps, const int32_t* start) {
  for (int64_t row = 0; row < rows; row += kRowsAtOnce)
    for (int64_t channel = 0; channel < kPanel; channel += kColumns * kVector)
      multiply_rows((row < kTileRows ? upper : lower) + row % kTileRows * kDepth, weights + channel / 16 * kTile,
                    sums + row * kPanel + channel, steps, start ? start + channel : nullptr);
}

}  // namespace
