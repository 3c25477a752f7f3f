// Kernels of backend amx: the quantiser of activations (AVX-512), which activations.py calls, and the integer product
// (AMX), which product.py calls.
//
// The product is int8 activations times weights of 8, 4 or 2 bits. A tile holds 16 rows of 64 bytes. A panel is 32 output
// channels, two tiles wide. The depth is worked off in blocks of eight tiles: then a panel's weights (16 KiB) and a row
// block's activations (16 KiB) stay in the first-level cache. Four accumulating tiles take every loaded tile twice.
// Panels are taken in groups, so that a depth block of all activations is used several times while it is in the
// second-level cache; weights come from memory once, prefetched a block ahead.
//
// A panel's weights take 2, 4 or 8 bits; panels of several widths lie one after the other, and `starts` says where.
// int4: one byte holds the values of channels n (low nibble) and n + 16 (high nibble) of a panel. A nibble at the top
// of its byte is 16 times the value in int8, so unpacking is one shift and two masks; the sums are shifted back.
// Two bits c stand for 2 c + 1, one of -3 -1 1 3: at the top of a byte, with the next bit set, they are 32 times that.
//
// Slower when tried: depth blocks of 4, 6, 12 or 16 tiles, unpacking the next block between the multiplications,
// streaming loads, prefetching past the second-level cache.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include <omp.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

constexpr int64_t kRows = 16;            // of a tile
constexpr int64_t kDepth = 64;           // int8 values in a tile's row
constexpr int64_t kTile = 1024;          // bytes
constexpr int64_t kPanel = 32;           // output channels
constexpr int64_t kUnit = 512;           // bytes of a panel in a tile of depth, at two bits; 4 and 8 bits take 2 and 4
constexpr int64_t kSteps = 8;            // tiles of a depth block
constexpr int64_t kGroup = 8;            // panels that share a depth block of activations
constexpr int64_t kAccumulators = 1024;  // int32 values of a row block (32 rows) times a panel

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The compiler does not know what tile instructions read: values written before must be in memory.
void written() { asm volatile("" ::: "memory"); }

void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = kDepth;
    config.rows[i] = kRows;
  }
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Memory of a thread, kept for the next call.
template <int kWhich>
int8_t* scratch(int64_t bytes) {
  struct Free {
    void operator()(int8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  static thread_local std::unique_ptr<int8_t[], Free> held;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    held.reset(static_cast<int8_t*>(::operator new[](bytes, std::align_val_t{64})));
    size = bytes;
  }
  return held.get();
}

// float32 -> the same rounded to bfloat16 (nearest, ties to even), in the upper halves of int32.
__m512i to_bfloat16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i kept = _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  return _mm512_mask_mov_epi32(kept, nan, _mm512_set1_epi32(0x7fc00000));
}

// Rows of activations [rows, inputs] -> one row of tiles [depth / 64][16][64], zeros where there is nothing.
void pack_rows(const int8_t* values, int8_t* tiles, int64_t rows, int64_t inputs) {
  const int64_t whole = inputs / kDepth, rest = inputs % kDepth;
  const __mmask64 mask = (uint64_t{1} << rest) - 1;
  for (int64_t row = 0; row < kRows; ++row) {
    const int8_t* from = values + row * inputs;
    int8_t* to = tiles + row * kDepth;
    const bool there = row < rows;
    for (int64_t t = 0; t < whole; ++t, to += kTile)
      _mm512_store_si512(to, there ? _mm512_loadu_si512(from + t * kDepth) : _mm512_setzero_si512());
    if (rest) _mm512_store_si512(to, _mm512_maskz_loadu_epi8(there ? mask : 0, from + whole * kDepth));
  }
}

// Weights are read once in a product: with small pages, looking up where they are takes a good part of the time.
void ask_for_huge_pages(uint8_t* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void unpack_two_bits(const uint8_t* packed, int8_t* tiles, int64_t steps) {
  const __m512i top = _mm512_set1_epi8(static_cast<char>(0xc0)), one = _mm512_set1_epi8(0x20);
  const auto quarter = [&](__m512i four, int8_t* to) {
    _mm512_store_si512(to, _mm512_or_si512(_mm512_and_si512(four, top), one));
  };
  for (int64_t i = 0; i < steps; ++i, packed += kUnit, tiles += 2 * kTile)
    for (int64_t row = 0; row < kUnit; row += kDepth) {
      const __m512i four = _mm512_loadu_si512(packed + row);
      quarter(_mm512_slli_epi16(four, 6), tiles + row);
      quarter(_mm512_slli_epi16(four, 4), tiles + kUnit + row);
      quarter(_mm512_slli_epi16(four, 2), tiles + kTile + row);
      quarter(four, tiles + kTile + kUnit + row);
    }
}

void unpack_four_bits(const uint8_t* packed, int8_t* tiles, int64_t steps) {
  const __m512i high = _mm512_set1_epi8(static_cast<char>(0xf0));
  for (int64_t i = 0; i < steps; ++i, packed += kTile, tiles += 2 * kTile)
    for (int64_t row = 0; row < kTile; row += kDepth) {
      const __m512i both = _mm512_loadu_si512(packed + row);
      _mm512_store_si512(tiles + row, _mm512_and_si512(_mm512_slli_epi16(both, 4), high));
      _mm512_store_si512(tiles + kTile + row, _mm512_and_si512(both, high));
    }
}

// 16 or 32 rows times a panel over `steps` tiles of depth, onto sums [2][2][16][16] that start at zero if `first`.
template <bool kBoth>
void multiply(const int8_t* upper, const int8_t* lower, const int8_t* weights, int32_t* sums, int64_t steps,
              bool first) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    if (kBoth) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    if (kBoth) {
      _tile_loadd(2, sums + 512, 64);
      _tile_loadd(3, sums + 768, 64);
    }
  }
  for (int64_t i = 0; i < steps; ++i) {
    _tile_loadd(4, upper + i * kTile, 64);
    _tile_loadd(6, weights + 2 * i * kTile, 64);
    _tile_loadd(7, weights + (2 * i + 1) * kTile, 64);
    if (kBoth) _tile_loadd(5, lower + i * kTile, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    if (kBoth) {
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  if (kBoth) {
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }
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

__m512 exponential(__m512 x) {
  const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 t = _mm512_mul_ps(_mm512_sub_ps(power, whole), _mm512_set1_ps(0.693147181f));  // |t| <= 0.35
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (const float factorial : {120.0f, 24.0f, 6.0f, 2.0f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(1.0f / factorial));
  return _mm512_scalef_ps(sum, whole);
}

// Prepared weights of a linear. scale: [panels * 32]. starts: [panels + 1] units before a panel in a tile of depth.
struct Weights {
  const uint8_t* packed;
  const int64_t* starts;
  const float* scale;

  int64_t units(int64_t panel) const { return starts[panel + 1] - starts[panel]; }

  const uint8_t* block(int64_t d, int64_t panel, int64_t panels, int64_t steps) const {
    return packed + (d * starts[panels] + starts[panel] * steps) * kUnit;
  }

  // A block as int8 tiles, unpacked into `tiles` where it is packed.
  const int8_t* tiles_of(const uint8_t* block, int64_t panel, int8_t* tiles, int64_t steps) const {
    if (units(panel) == 4) return reinterpret_cast<const int8_t*>(block);
    if (units(panel) == 2)
      unpack_four_bits(block, tiles, steps);
    else
      unpack_two_bits(block, tiles, steps);
    return tiles;
  }

  // 16 accumulators times their channels' scales, rounded. Unpacked values are 16 or 32 times what they stand for.
  template <typename T>
  __m512 scaled(const int32_t* sums, int64_t row, int64_t half, int64_t panel) const {
    const __m512i sum = _mm512_load_si512(sums + ((row / 16) * 2 + half) * 256 + (row % 16) * 16);
    const __m128i shift = _mm_cvtsi32_si128(units(panel) == 4 ? 0 : units(panel) == 2 ? 4 : 5);
    const __m512 factors = _mm512_loadu_ps(scale + panel * kPanel + half * 16);
    return rounded<T>(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sra_epi32(sum, shift)), factors));
  }
};

// Writes the results of a row block and a panel, times the rows' scales; silu(gate) * up where there is an `up`.
// columns: [panels * 32] the output column of a channel, -1 in the rest of a panel; null where channels are in order.
template <typename T>
void write_out(const Weights& weights, const int32_t* sums, const Weights* up, const int32_t* up_sums,
               const int32_t* columns, const T* row_scale, T* out, int64_t rows, int64_t panel, int64_t outputs) {
  const int64_t first = panel * kPanel;
  int64_t channels = std::min(kPanel, outputs - first);
  if (columns) {
    columns += first;
    channels = std::find(columns, columns + kPanel, -1) - columns;
  }
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 factor = _mm512_set1_ps(to_float(row_scale[row]));
    for (int64_t half = 0; half * 16 < channels; ++half) {
      __m512 y = _mm512_mul_ps(weights.scaled<T>(sums, row, half, panel), factor);
      if (up) {
        const __m512 below = _mm512_add_ps(exponential(_mm512_sub_ps(_mm512_setzero_ps(), y)), _mm512_set1_ps(1.0f));
        const __m512 other = _mm512_mul_ps(up->scaled<T>(up_sums, row, half, panel), factor);
        y = _mm512_mul_ps(_mm512_div_ps(y, below), other);
      }
      const int64_t left = std::min<int64_t>(channels - half * 16, 16);
      const __mmask16 mask = left == 16 ? 0xffff : (1 << left) - 1;
      if (columns) {
        T together[16];
        store(together, mask, rounded<T>(y));
        for (int64_t i = 0; i < left; ++i) out[row * outputs + columns[half * 16 + i]] = together[i];
      } else {
        store(out + row * outputs + first + half * 16, mask, rounded<T>(y));
      }
    }
  }
}

// up: the second factor of a gated MLP, its channels in the same order; null for a plain product.
template <typename T>
void product(const int8_t* values, const Weights& weights, const Weights* up, const int32_t* columns,
             const T* row_scale, T* out, int64_t rows, int64_t outputs, int64_t inputs, int64_t panels) {
  const int64_t depth = ceil_div(inputs, kDepth);
  const int64_t tiles = ceil_div(rows, kRows), blocks = ceil_div(tiles, 2);
  const Weights* factors[] = {&weights, up};
  const int64_t count = up ? 2 : 1;
  int8_t* activations = scratch<0>(tiles * depth * kTile);
#pragma omp parallel
  {
    const int64_t group = std::clamp<int64_t>(panels / (2 * omp_get_num_threads()), 1, kGroup / count);
    int32_t* sums = reinterpret_cast<int32_t*>(scratch<1>(group * count * blocks * kAccumulators * 4));
    int8_t* unpacked = scratch<2>(2 * kTile * kSteps);
#pragma omp for
    for (int64_t i = 0; i < tiles; ++i)
      pack_rows(values + i * kRows * inputs, activations + i * depth * kTile, rows - i * kRows, inputs);
    configure_tiles();
#pragma omp for schedule(dynamic)
    for (int64_t start = 0; start < panels; start += group) {
      const int64_t turns = (std::min(start + group, panels) - start) * count;
      for (int64_t d = 0; d < depth; d += kSteps) {
        const int64_t steps = std::min(kSteps, depth - d);
        for (int64_t turn = 0; turn < turns; ++turn) {
          const int64_t panel = start + turn / count;
          const Weights& factor = *factors[turn % count];
          // the next block: at the end of a group, that of its first panel further down
          const bool last = turn + 1 == turns;
          const int64_t next_turn = last ? 0 : turn + 1, next_d = last ? d + kSteps : d;
          const int64_t next_steps = std::max<int64_t>(std::min(kSteps, depth - next_d), 0);
          const Weights& next_factor = *factors[next_turn % count];
          const int64_t next_panel = start + next_turn / count;
          const uint8_t* next = next_factor.block(next_d, next_panel, panels, next_steps);
          const int64_t lines = next_steps * next_factor.units(next_panel) * kUnit / 64;
          const int8_t* multiplied = factor.tiles_of(factor.block(d, panel, panels, steps), panel, unpacked, steps);
          written();
          for (int64_t b = 0; b < blocks; ++b) {
            for (int64_t line = b * lines / blocks; line < (b + 1) * lines / blocks; ++line)
              _mm_prefetch(reinterpret_cast<const char*>(next) + line * 64, _MM_HINT_T1);
            int32_t* sum = sums + (turn * blocks + b) * kAccumulators;
            const int8_t* upper = activations + (2 * b * depth + d) * kTile;
            if (2 * b + 1 < tiles)
              multiply<true>(upper, upper + depth * kTile, multiplied, sum, steps, d == 0);
            else
              multiply<false>(upper, upper, multiplied, sum, steps, d == 0);
            if (d + kSteps < depth || turn % count + 1 < count) continue;
            const int64_t row = b * 2 * kRows;
            const int32_t* first = sums + ((turn - count + 1) * blocks + b) * kAccumulators;
            write_out(weights, first, up, sum, columns, row_scale + row, out + row * outputs,
                      std::min(2 * kRows, rows - row), panel, outputs);
          }
        }
      }
    }
    _tile_release();
  }
}

// 16 values of a row, zeros beyond its end.
__m512 load_row(const uint16_t* x, int64_t at, int64_t inputs) {
  const int64_t left = inputs - at;
  const __mmask16 mask = left >= 16 ? 0xffff : (1 << left) - 1;
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x + at)), 16));
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

}  // namespace

extern "C" {

// Sets the threads of the calling thread's next calls. torch may bring an OpenMP of its own with its own setting.
void use_threads(int count) { omp_set_num_threads(count); }
int threads() { return omp_get_max_threads(); }

// x [rows, inputs] bfloat16 -> values [rows, inputs], scale [rows] bfloat16.
void quantize_tokens(const uint16_t* x, int8_t* values, uint16_t* scale, int64_t rows, int64_t inputs, int top,
                     float ratio, float rms_eps) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row)
    scale[row] = quantize_row(x + row * inputs, values + row * inputs, inputs, top, ratio, rms_eps);
}

// weight [outputs, inputs] -> packed [depth blocks][panels][steps][units][512], zeros at the edges.
// channels: [panels * 32] the row of `weight` in every place, -1 for none. starts: [panels + 1], see Weights.
// Byte i of a panel's tile holds position i (row i / 64, channel i % 64 / 4, input i % 4) of both 16-channel tiles.
void pack_weight(const int8_t* weight, uint8_t* packed, const int64_t* starts, const int32_t* channels, int64_t panels,
                 int64_t inputs) {
  const int64_t depth = ceil_div(inputs, kDepth);
  ask_for_huge_pages(packed, starts[panels] * depth * kUnit);
#pragma omp parallel for
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t t = 0; t < depth; ++t) {
      const int64_t d = t / kSteps * kSteps, steps = std::min(kSteps, depth - d), units = starts[p + 1] - starts[p];
      uint8_t* tile = packed + (d * starts[panels] + starts[p] * steps + (t - d) * units) * kUnit;
      const auto at = [&](int64_t half, int64_t i) {
        const int64_t n = channels[p * kPanel + half * 16 + i % 64 / 4], k = t * kDepth + i / 64 * 4 + i % 4;
        return static_cast<uint8_t>(n >= 0 && k < inputs ? weight[n * inputs + k] : 0);
      };
      const auto two_bits = [&](int64_t half, int64_t i) { return (at(half, i) >> 1) & 3; };  // of 2 c + 1
      for (int64_t i = 0; i < kTile; ++i) {
        if (units == 4) {
          tile[i] = at(0, i);
          tile[i + kTile] = at(1, i);
        } else if (units == 2) {
          tile[i] = static_cast<uint8_t>((at(0, i) & 15) | (at(1, i) << 4));
        } else if (i < kUnit) {
          tile[i] = static_cast<uint8_t>(two_bits(0, i) | two_bits(0, i + kUnit) << 2 | two_bits(1, i) << 4 |
                                         two_bits(1, i + kUnit) << 6);
        }
      }
    }
}

// values [rows, inputs], scale [panels * 32], columns [panels * 32] or null, row_scale [rows], out [rows, outputs].
void product_bfloat16(const int8_t* values, const uint8_t* packed, const int64_t* starts, const float* scale,
                      const int32_t* columns, const uint16_t* row_scale, uint16_t* out, int64_t rows, int64_t outputs,
                      int64_t inputs, int64_t panels) {
  product(values, {packed, starts, scale}, nullptr, columns, row_scale, out, rows, outputs, inputs, panels);
}

void product_float32(const int8_t* values, const uint8_t* packed, const int64_t* starts, const float* scale,
                     const int32_t* columns, const float* row_scale, float* out, int64_t rows, int64_t outputs,
                     int64_t inputs, int64_t panels) {
  product(values, {packed, starts, scale}, nullptr, columns, row_scale, out, rows, outputs, inputs, panels);
}

// silu(gate) * up, both with row_scale.
void gated_bfloat16(const int8_t* values, const uint8_t* packed, const int64_t* starts, const float* scale,
                    const uint8_t* up_packed, const int64_t* up_starts, const float* up_scale, const int32_t* columns,
                    const uint16_t* row_scale, uint16_t* out, int64_t rows, int64_t outputs, int64_t inputs,
                    int64_t panels) {
  const Weights up{up_packed, up_starts, up_scale};
  product(values, {packed, starts, scale}, &up, columns, row_scale, out, rows, outputs, inputs, panels);
}

void gated_float32(const int8_t* values, const uint8_t* packed, const int64_t* starts, const float* scale,
                   const uint8_t* up_packed, const int64_t* up_starts, const float* up_scale, const int32_t* columns,
                   const float* row_scale, float* out, int64_t rows, int64_t outputs, int64_t inputs, int64_t panels) {
  const Weights up{up_packed, up_starts, up_scale};
  product(values, {packed, starts, scale}, &up, columns, row_scale, out, rows, outputs, inputs, panels);
}
}
