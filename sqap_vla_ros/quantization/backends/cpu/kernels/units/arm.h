// The block product of the backends i8mm, dotprod and neon, for Arm. Included by kernels.cpp.
//
// sdot multiplies four inputs of a row, one quarter of a register, with four inputs of four channels. smmla multiplies
// eight inputs of two rows with eight inputs of two channels; rows of a tile and channels of a panel lie in pairs for it.
// Both take signed bytes. Eight rows times eight channels are 16 accumulators for 16 loads in 64 multiplications (sdot)
// or 8 loads in 16 (smmla). Older cores multiply into 16 bits, which a product of bytes never exceeds, and add in 32.
// The speed of none has been measured on a processor.

#pragma once

namespace {

constexpr uint8_t kShift = 0;  // added to activations
constexpr int64_t kTileRows = 16, kRowsAtOnce = 8;

// Where 16 accumulators of a row are: sums [rows][32].
int64_t sums_at(int64_t row, int64_t half) { return row * kPanel + half * 16; }

void begin_multiplying() {}
void end_multiplying() {}

#ifdef __ARM_FEATURE_MATMUL_INT8

constexpr int64_t kTogether = 8;    // inputs of a channel that lie side by side
constexpr int64_t kPairedRows = 2;  // rows that alternate in a tile

// Eight rows times eight channels: rows of a tile, weights [steps][2][8][16][8] and sums [rows][32] from the first of
// these channels on.
__attribute__((noinline)) void multiply_rows(const int8_t* rows, const int8_t* weights, int32_t* sums, int64_t steps,
                                             bool start) {
  int32x4_t sum[4][4];  // [pair of rows][pair of channels]
  for (int64_t r = 0; r < 4; ++r)
    for (int64_t c = 0; c < 4; ++c) {
      const int32_t* upper = sums + 2 * r * kPanel + 2 * c;
      sum[r][c] = start ? vdupq_n_s32(0) : vcombine_s32(vld1_s32(upper), vld1_s32(upper + kPanel));
    }
  for (int64_t i = 0; i < steps; ++i, rows += kTileRows * kDepth, weights += 2 * kTile)
    for (int64_t k = 0; k < kDepth / 8; ++k) {
      int8x16_t columns[4];
      for (int64_t c = 0; c < 4; ++c) columns[c] = vld1q_s8(weights + k * 128 + c * 16);
      for (int64_t r = 0; r < 4; ++r) {
        const int8x16_t inputs = vld1q_s8(rows + r * 2 * kDepth + k * 16);
        for (int64_t c = 0; c < 4; ++c) sum[r][c] = vmmlaq_s32(sum[r][c], inputs, columns[c]);
      }
    }
  for (int64_t r = 0; r < 4; ++r)
    for (int64_t c = 0; c < 4; ++c) {
      int32_t* upper = sums + 2 * r * kPanel + 2 * c;
      vst1_s32(upper, vget_low_s32(sum[r][c]));
      vst1_s32(upper + kPanel, vget_high_s32(sum[r][c]));
    }
}

#else

constexpr int64_t kTogether = 4;
constexpr int64_t kPairedRows = 1;

// Four inputs of a row, the quarter `kLane` of `inputs`, times those of four channels.
template <int kLane>
int32x4_t dot(int32x4_t sum, int8x16_t weights, int8x16_t inputs) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_laneq_s32(sum, weights, inputs, kLane);
#else
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(inputs), kLane));
  const int32x4_t lower = vpaddlq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(four)));
  const int32x4_t upper = vpaddlq_s16(vmull_high_s8(weights, four));
  return vaddq_s32(sum, vpaddq_s32(lower, upper));
#endif
}

// Four inputs of eight rows, the quarter `kLane` of `inputs`, times those of eight channels.
template <int kLane>
void multiply_quarter(int32x4_t (&sum)[kRowsAtOnce][2], const int8x16_t (&inputs)[kRowsAtOnce], const int8_t* weights) {
  const int8x16_t first = vld1q_s8(weights + kLane * kDepth), second = vld1q_s8(weights + kLane * kDepth + 16);
  for (int64_t r = 0; r < kRowsAtOnce; ++r) {
    sum[r][0] = dot<kLane>(sum[r][0], first, inputs[r]);
    sum[r][1] = dot<kLane>(sum[r][1], second, inputs[r]);
  }
}

// Eight rows times eight channels: rows of a tile, weights [steps][2][16][16][4] and sums [rows][32] from the first of
// these channels on.
__attribute__((noinline)) void multiply_rows(const int8_t* rows, const int8_t* weights, int32_t* sums, int64_t steps,
                                             bool start) {
  int32x4_t sum[kRowsAtOnce][2];
  for (int64_t r = 0; r < kRowsAtOnce; ++r)
    for (int64_t c = 0; c < 2; ++c) sum[r][c] = start ? vdupq_n_s32(0) : vld1q_s32(sums + r * kPanel + c * 4);
  for (int64_t i = 0; i < steps; ++i, rows += kTileRows * kDepth, weights += 2 * kTile)
    for (int64_t k = 0; k < kDepth; k += 16) {
      int8x16_t inputs[kRowsAtOnce];
      for (int64_t r = 0; r < kRowsAtOnce; ++r) inputs[r] = vld1q_s8(rows + r * kDepth + k);
      multiply_quarter<0>(sum, inputs, weights + k * 16);
      multiply_quarter<1>(sum, inputs, weights + k * 16);
      multiply_quarter<2>(sum, inputs, weights + k * 16);
      multiply_quarter<3>(sum, inputs, weights + k * 16);
    }
  for (int64_t r = 0; r < kRowsAtOnce; ++r)
    for (int64_t c = 0; c < 2; ++c) vst1q_s32(sums + r * kPanel + c * 4, sum[r][c]);
}

#endif

// Rows of two tiles times a panel over `steps` tiles of depth, onto sums, which start at zero if there is a `start`.
void multiply(const int8_t* upper, const int8_t* lower, const int8_t* weights, int32_t* sums, int64_t rows,
              int64_t steps, const int32_t* start) {
  for (int64_t row = 0; row < rows; row += kRowsAtOnce)
    for (int64_t channel = 0; channel < kPanel; channel += 8)
      multiply_rows((row < kTileRows ? upper : lower) + row % kTileRows * kDepth,
                    weights + channel / 16 * kTile + channel % 16 * kTogether, sums + row * kPanel + channel, steps,
                    start != nullptr);
}

}  // namespace
