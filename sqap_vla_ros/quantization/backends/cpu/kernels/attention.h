// Attention of tokens to all tokens, or to those before them, in bfloat16 with float32 sums, for CPUs with AVX512-BF16. Included by kernels.cpp.
//
// A head is one task. Its keys and values are packed once so that vdpbf16ps takes two inputs of 16 keys, or two keys of
// 16 channels, at a time; six queries go through both products together, with the softmax between them in float32.

#pragma once

#define BFLOAT16_UNIT __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

namespace {

constexpr int64_t kQueries = 6;

// out [6][...] = a [6][pairs] times b, whose pairs of 16 columns lie at block * block_stride + pair * pair_stride.
template <int kBlocks>
BFLOAT16_UNIT inline void pairs_product(const uint16_t* const* a, const uint32_t* b, int64_t block_stride,
                                        int64_t pair_stride, int64_t pairs, float* out, int64_t out_stride) {
  __m512 sums[kQueries][kBlocks];
#pragma GCC unroll 6
  for (int64_t r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kBlocks; ++j) sums[r][j] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p) {
    __m512bh columns[kBlocks];
#pragma GCC unroll 4
    for (int64_t j = 0; j < kBlocks; ++j)
      columns[j] = (__m512bh)_mm512_loadu_si512(b + j * block_stride + p * pair_stride);
#pragma GCC unroll 6
    for (int64_t r = 0; r < kQueries; ++r) {
      int32_t pair;
      std::memcpy(&pair, a[r] + 2 * p, sizeof pair);
      const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int64_t j = 0; j < kBlocks; ++j) sums[r][j] = _mm512_dpbf16_ps(sums[r][j], both, columns[j]);
    }
  }
#pragma GCC unroll 6
  for (int64_t r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
    for (int64_t j = 0; j < kBlocks; ++j) _mm512_storeu_ps(out + r * out_stride + j * kLanes, sums[r][j]);
}

BFLOAT16_UNIT void product_of_pairs(const uint16_t* const* a, const uint32_t* b, int64_t blocks, int64_t block_stride,
                                    int64_t pair_stride, int64_t pairs, float* out, int64_t out_stride) {
  for (int64_t j = 0; j < blocks; j += 4, b += 4 * block_stride, out += 4 * kLanes) {
    const int64_t left = blocks - j;
    if (left >= 4)
      pairs_product<4>(a, b, block_stride, pair_stride, pairs, out, out_stride);
    else if (left == 3)
      pairs_product<3>(a, b, block_stride, pair_stride, pairs, out, out_stride);
    else if (left == 2)
      pairs_product<2>(a, b, block_stride, pair_stride, pairs, out, out_stride);
    else
      pairs_product<1>(a, b, block_stride, pair_stride, pairs, out, out_stride);
  }
}

// e^(y - max) of the first `keys` of y = factor s + bias, rounded to bfloat16, zeros up to `width`; returns their sum.
// s is overwritten. bias: one for each key, or null.
float softmax_row(float* s, uint16_t* p, int64_t keys, int64_t width, float factor, const float* bias) {
  __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  const __m512 scale = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < keys; i += kLanes) {
    const __mmask16 mask = keys - i >= kLanes ? 0xffff : (1 << (keys - i)) - 1;
    __m512 y = _mm512_mul_ps(_mm512_loadu_ps(s + i), scale);
    if (bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, bias + i));
    _mm512_storeu_ps(s + i, y);
    largest = _mm512_mask_max_ps(largest, mask, largest, y);
  }
  const __m512 max = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  for (int64_t i = 0; i < width; i += kLanes) {
    const __mmask16 mask = keys - i >= kLanes ? 0xffff : keys > i ? (1 << (keys - i)) - 1 : 0;
    const __m512 power = exponential(_mm512_sub_ps(_mm512_loadu_ps(s + i), max));
    const __m512 seen = _mm512_maskz_mov_ps(mask, power);
    sum = _mm512_add_ps(sum, seen);
    store(p + i, rounded<uint16_t>(seen), kLanes);
  }
  return _mm512_reduce_add_ps(sum);
}

// One head: query, key, value, out [tokens] rows of `size` channels, `stride` apart (out: `out_stride`).
// causal: a token sees itself and those before it.
BFLOAT16_UNIT void attend(const uint16_t* query, const uint16_t* key, const uint16_t* value, uint16_t* out,
                          int64_t tokens, int64_t size, int64_t stride, int64_t out_stride, bool causal,
                          const float* bias) {
  const int64_t blocks = ceil_div(tokens, kLanes), width = blocks * kLanes, pairs = size / 2;
  const int64_t columns = ceil_div(size, kLanes), wide = std::max(width, columns * kLanes);
  uint32_t* keys = reinterpret_cast<uint32_t*>(scratch<3>(
      (blocks * pairs * kLanes + width / 2 * columns * kLanes + kQueries * wide) * 4 + kQueries * width * 2));
  uint32_t* values = keys + blocks * pairs * kLanes;
  float* scores = reinterpret_cast<float*>(values + width / 2 * columns * kLanes);
  uint16_t* weights = reinterpret_cast<uint16_t*>(scores + kQueries * wide);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t token = block * kLanes + lane;
      for (int64_t p = 0; p < pairs; ++p) {
        uint32_t pair = 0;
        if (token < tokens) std::memcpy(&pair, key + token * stride + 2 * p, sizeof pair);
        keys[(block * pairs + p) * kLanes + lane] = pair;
      }
    }
  for (int64_t p = 0; p < width / 2; ++p)
    for (int64_t c = 0; c < columns; ++c) {
      const __mmask16 mask = size - c * kLanes >= kLanes ? 0xffff : (1 << (size - c * kLanes)) - 1;
      const uint16_t* upper = value + 2 * p * stride + c * kLanes;
      const __m256i first = _mm256_maskz_loadu_epi16(2 * p < tokens ? mask : 0, upper);
      const __m256i second = _mm256_maskz_loadu_epi16(2 * p + 1 < tokens ? mask : 0, upper + stride);
      const __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
      _mm512_storeu_si512(values + (p * columns + c) * kLanes, both);
    }
  const float factor = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t first = 0; first < tokens; first += kQueries) {
    const uint16_t *asked[kQueries], *weighing[kQueries];
    float sums[kQueries];
    for (int64_t r = 0; r < kQueries; ++r) asked[r] = query + std::min(first + r, tokens - 1) * stride;
    const int64_t seen = ceil_div(causal ? std::min(first + kQueries, tokens) : tokens, kLanes);  // blocks of keys
    product_of_pairs(asked, keys, seen, pairs * kLanes, kLanes, pairs, scores, wide);
    for (int64_t r = 0; r < kQueries; ++r) {
      weighing[r] = weights + r * width;
      const int64_t mine = causal ? std::min(first + r + 1, tokens) : tokens;
      sums[r] = softmax_row(scores + r * wide, weights + r * width, mine, seen * kLanes, factor, bias);
    }
    product_of_pairs(weighing, values, columns, kLanes, columns * kLanes, seen * kLanes / 2, scores, wide);
    for (int64_t r = 0; r < std::min(kQueries, tokens - first); ++r)
      for (int64_t c = 0; c < size; c += kLanes) {
        const __m512 y = _mm512_div_ps(_mm512_loadu_ps(scores + r * wide + c), _mm512_set1_ps(sums[r]));
        store(out + (first + r) * out_stride + c, rounded<uint16_t>(y), size - c);
      }
  }
}

}  // namespace
