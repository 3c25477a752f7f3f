// Kernels of the CPU's backends: the quantiser of activations, which activations.py calls, and the integer product, which
// product.py calls. The innermost product of each unit is in units/; all else is common (attention is for AVX-512 alone).
//
// The product is int8 activations times weights of 8, 4 or 2 bits. A tile of depth is 64 inputs. A panel is 32 output
// channels, two weight tiles of 16 wide. The depth is worked off in blocks of up to eight tiles: then a panel's weights
// (16 KiB) and a row block's activations (12 or 16 KiB) stay in the first-level cache.
// Panels are taken in groups, so that a depth block of all activations is used several times while it is in the
// second-level cache; weights come from memory once, prefetched a block ahead.
//
// A panel's weights take 2, 4 or 8 bits; panels of several widths lie one after the other, and `starts` says where.
// Results are gathered for a stripe of 256 outputs and then written row by row: the lines of many short pieces of rows
// would displace each other in the cache. Where rows differ in width, those of a stripe are sorted by it, which fills whole
// panels, and put in order in registers, 32 at a time, when they are written.
// int4: one byte holds the values of channels n (low nibble) and n + 16 (high nibble) of a panel. A nibble at the top
// of its byte is 16 times the value in int8, so unpacking is one shift and two masks; the sums are shifted back.
// Two bits c stand for 2 c + 1, one of -3 -1 1 3: at the top of a byte, with the next bit set, they are 32 times that.
//
// Slower when tried, or no faster: depth blocks of 4, 6, 9, 12 or 16 tiles, twelve rows at once, unpacking the next block
// between the multiplications, streaming loads, prefetching past the second-level cache.

#ifdef __aarch64__
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

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

constexpr int64_t kDepth = 64;    // inputs in a tile
constexpr int64_t kTile = 1024;   // bytes of a weight tile, 16 channels
constexpr int64_t kPanel = 32;    // output channels
constexpr int64_t kUnit = 512;    // bytes of a panel in a tile of depth, at two bits; 4 and 8 bits take 2 and 4
constexpr int64_t kSteps = 8;     // tiles of a depth block at most
constexpr int64_t kGroup = 8;     // panels that share a depth block of activations
constexpr int64_t kStripe = 256;  // output channels that are written together

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What is divided into parts of about equal size, none of them larger than `most` where there are enough.
struct Parts {
  int64_t all, count;

  int64_t begin(int64_t part) const { return part * all / count; }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
};

Parts depth_blocks(int64_t tiles) { return {tiles, ceil_div(tiles, kSteps)}; }

}  // namespace

#include "lanes.h"

#include "rows.h"
#include "stripes.h"

#if defined(__aarch64__)
#include "units/arm.h"
#elif defined(__AMX_INT8__)
#include "units/amx.h"
#else
#include "units/broadcast.h"
#endif

namespace {

constexpr int64_t kRowTile = kTileRows * kDepth;  // bytes of a tile of activations
constexpr int64_t kRows = 2 * kTileRows;          // of a row block
constexpr int64_t kAccumulators = kRows * kPanel;

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

// Rows of activations [rows, inputs] -> one row of tiles [depth / 64][rows of a tile][64], shifted; zeros where there is
// nothing. Where rows are paired, eight inputs of one are followed by eight of the other.
void pack_rows(const int8_t* values, int8_t* tiles, int64_t rows, int64_t inputs) {
  for (int64_t row = 0; row < kTileRows; ++row)
    for (int64_t k = 0; k < inputs; k += kDepth) {
      uint8_t bytes[kDepth] = {};
      const int8_t* from = values + row * inputs + k;
      if (row < rows && inputs - k >= kDepth)
        std::memcpy(bytes, from, kDepth);
      else if (row < rows)
        std::memcpy(bytes, from, inputs - k);
      for (uint8_t& byte : bytes) byte ^= kShift;
      int8_t* to = tiles + k / kDepth * kRowTile + row / kPairedRows * kPairedRows * kDepth;
      if (kPairedRows == 1)
        std::memcpy(to, bytes, kDepth);
      else
        for (int64_t i = 0; i < kDepth; i += 8) std::memcpy(to + kPairedRows * i + row % kPairedRows * 8, bytes + i, 8);
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

// Calls `unpack` for all places of eight bytes of `size`; the compiler takes several at a time.
template <typename Unpack>
void by_words(const uint8_t* packed, int8_t* tiles, int64_t size, const Unpack& unpack) {
  for (int64_t i = 0; i < size; i += 8) {
    uint64_t word;
    std::memcpy(&word, packed + i, 8);
    unpack(word, [&](int64_t tile_at, uint64_t values) { std::memcpy(tiles + tile_at + i, &values, 8); });
  }
}

void unpack_two_bits(const uint8_t* packed, int8_t* tiles, int64_t steps) {
  constexpr uint64_t kTop = 0xc0c0c0c0c0c0c0c0, kOne = 0x2020202020202020;
  for (int64_t i = 0; i < steps; ++i, packed += kUnit, tiles += 2 * kTile)
    by_words(packed, tiles, kUnit, [](uint64_t four, const auto& put) {
      put(0, ((four << 6) & kTop) | kOne);
      put(kUnit, ((four << 4) & kTop) | kOne);
      put(kTile, ((four << 2) & kTop) | kOne);
      put(kTile + kUnit, (four & kTop) | kOne);
    });
}

void unpack_four_bits(const uint8_t* packed, int8_t* tiles, int64_t steps) {
  constexpr uint64_t kHigh = 0xf0f0f0f0f0f0f0f0;
  for (int64_t i = 0; i < steps; ++i, packed += kTile, tiles += 2 * kTile)
    by_words(packed, tiles, kTile, [](uint64_t both, const auto& put) {
      put(0, (both << 4) & kHigh);
      put(kTile, both & kHigh);
    });
}

// Prepared weights of a linear; product.py fills it in. starts: [panels + 1] units before a panel in a tile of depth.
// first: [panels * 32] what the accumulators begin at. scale: [panels * 32].
// places: [stripes * 256] where an output's channel is in its stripe, -1 for none. stripes: [stripes + 1] panels before a
// stripe. Both are null where channels are in order.
struct Weights {
  const uint8_t* packed;
  const int64_t* starts;
  const int32_t* first;
  const float* scale;
  const int16_t* places;
  const int64_t* stripes;
  int64_t outputs, inputs, panels;

  int64_t units(int64_t panel) const { return starts[panel + 1] - starts[panel]; }

  const uint8_t* block(int64_t d, int64_t panel, int64_t steps) const {
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

  // A row of accumulators times their channels' scales, rounded. Unpacked values are 16 or 32 times what they stand for.
  template <typename T>
  Values scaled(const int32_t* sums, int64_t row, int64_t panel) const {
    const int shift = units(panel) == 4 ? 0 : units(panel) == 2 ? 4 : 5;
    Values y;
    for (int64_t i = 0; i < kParts; ++i) {
      Ints sum;
      std::memcpy(&sum, sums + sums_at(row, i * kLanes / 16) + i * kLanes % 16, sizeof sum);
      const Floats factors = load(scale + panel * kPanel + i * kLanes, kLanes);
      y.part[i] = rounded<T>(__builtin_convertvector(sum >> shift, Floats) * factors);
    }
    return y;
  }
};

// A panel of one of the factors; place: among its stripe's panels.
struct Turn {
  int64_t factor, panel, place;
};

// Activations times one or two factors, a stripe of outputs at a time.
// activations: [tiles][depth][rows of a tile][64], see pack_rows. stripes: the panels of each.
struct Multiplication {
  const Weights* factors[2];
  int64_t count;
  const int8_t* activations;
  int64_t rows, depth;
  Parts stripes;

  // Lists a stripe's panels, those of two factors by turns, and returns how many they are.
  int64_t list(int64_t stripe, Turn* turns) const {
    int64_t all = 0;
    for (int64_t place = 0; place < kStripe / kPanel; ++place)
      for (int64_t f = 0; f < count; ++f) {
        const int64_t* sorted = factors[f]->stripes;
        const int64_t panel = (sorted ? sorted[stripe] : stripes.begin(stripe)) + place;
        const int64_t end = sorted ? sorted[stripe + 1] : std::min(stripes.begin(stripe + 1), factors[f]->panels);
        if (panel < end) turns[all++] = {f, panel, place};
      }
    return all;
  }

  // Multiplies a group of panels. channels: [count, rows, 256] results before the rows' scales.
  template <typename T>
  void run(const Turn* turns, int64_t size, T* channels) const {
    const int64_t blocks = ceil_div(rows, kRows);
    int32_t* sums = reinterpret_cast<int32_t*>(scratch<1>(kGroup * blocks * kAccumulators * 4));
    int8_t* unpacked = scratch<2>(2 * kTile * kSteps);
    const Parts parts = depth_blocks(depth);
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t d = parts.begin(part), steps = parts.size(part);
      for (int64_t turn = 0; turn < size; ++turn) {
        const auto [f, panel, place] = turns[turn];
        const Weights& factor = *factors[f];
        // the next block: at the end of a group, that of its first panel further down
        const bool last = turn + 1 == size;
        const Turn& next_turn = turns[last ? 0 : turn + 1];
        const int64_t next_d = last ? d + steps : d;
        const int64_t next_steps = !last ? steps : part + 1 < parts.count ? parts.size(part + 1) : 0;
        const Weights& next_factor = *factors[next_turn.factor];
        const uint8_t* next = next_factor.block(next_d, next_turn.panel, next_steps);
        const int64_t lines = next_steps * next_factor.units(next_turn.panel) * kUnit / 64;
        const int8_t* multiplied = factor.tiles_of(factor.block(d, panel, steps), panel, unpacked, steps);
        const int32_t* begin = d ? nullptr : factor.first + panel * kPanel;
        for (int64_t b = 0; b < blocks; ++b) {
          for (int64_t line = b * lines / blocks; line < (b + 1) * lines / blocks; ++line)
            __builtin_prefetch(next + line * 64, 0, 2);
          int32_t* sum = sums + (turn * blocks + b) * kAccumulators;
          const int8_t* upper = activations + (2 * b * depth + d) * kRowTile;
          const int64_t row = b * kRows, there = std::min(kRows, rows - row);
          multiply(upper, upper + depth * kRowTile, multiplied, sum, there, steps, begin);
          if (part + 1 < parts.count) continue;
          T* to = channels + (f * rows + row) * kStripe + place * kPanel;
          for (int64_t i = 0; i < there; ++i) store(to + i * kStripe, factor.scaled<T>(sum, i, panel));
        }
      }
    }
  }
};

// up: the second factor of a gated MLP; null for a plain product.
template <typename T>
void product(const Weights& weights, const Weights* up, const Finish<T>* finish, const int8_t* values,
             const T* row_scale, T* out, int64_t rows) {
  const int64_t outputs = weights.outputs, inputs = weights.inputs, count = up ? 2 : 1;
  const int64_t depth = ceil_div(inputs, kDepth), across = ceil_div(outputs, kPanel), tiles = ceil_div(rows, kTileRows);
  const bool sorted = weights.places || (up && up->places);
  const Output<T> output{finish, row_scale, out, outputs, up != nullptr};
  int8_t* activations = scratch<0>(tiles * depth * kRowTile);
#pragma omp parallel
  {
    constexpr int64_t kMost = kStripe / kPanel;
    // panels in order: as much for each thread, in two stripes or more
    const int64_t threads = omp_get_num_threads(), enough = std::max(ceil_div(across, kMost), 2 * threads);
    const Parts in_order{across, std::min(ceil_div(enough, threads) * threads, across)};
    const Parts stripes = sorted ? Parts{ceil_div(across, kMost) * kMost, ceil_div(across, kMost)} : in_order;
    const Multiplication multiplication{{&weights, up}, count, activations, rows, depth, stripes};
    T* channels = reinterpret_cast<T*>(scratch<3>(count * rows * kStripe * sizeof(T)));
#pragma omp for
    for (int64_t i = 0; i < tiles; ++i)
      pack_rows(values + i * kTileRows * inputs, activations + i * depth * kRowTile, rows - i * kTileRows, inputs);
    begin_multiplying();
#pragma omp for schedule(dynamic)
    for (int64_t stripe = 0; stripe < stripes.count; ++stripe) {
      Turn turns[2 * kMost];
      const int64_t all = multiplication.list(stripe, turns);
      for (int64_t start = 0; start < all; start += kGroup)
        multiplication.run(turns + start, std::min(kGroup, all - start), channels);
      const int64_t begin = stripes.begin(stripe) * kPanel, end = std::min(stripes.begin(stripe + 1) * kPanel, outputs);
      const auto results = [&](const Weights& factor, int64_t f) {
        return Stripe<T>{channels + f * rows * kStripe, factor.places ? factor.places + begin : nullptr};
      };
      output.write(results(weights, 0), results(up ? *up : weights, count - 1), rows, begin, end);
    }
    end_multiplying();
  }
}

}  // namespace

#ifdef __AVX512F__
#include "attention.h"
#endif

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

// weight [outputs, inputs] -> packed [depth blocks][panels][steps][units][512], zeros at the edges, and what the
// accumulators begin at, [panels * 32].
// channels: [panels * 32] the row of `weight` in every place, -1 for none. starts: [panels + 1], see Weights.
// Byte i of a panel's tile holds position i of both 16-channel tiles: kTogether inputs of each channel, then the next ones.
void pack_weight(const int8_t* weight, uint8_t* packed, const int64_t* starts, const int32_t* channels, int32_t* first,
                 int64_t panels, int64_t inputs) {
  const int64_t depth = ceil_div(inputs, kDepth);
  const auto channel_of = [](int64_t i) { return i % (16 * kTogether) / kTogether; };
  const Weights made{packed, starts, first};
  ask_for_huge_pages(packed, starts[panels] * depth * kUnit);
#pragma omp parallel for
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t t = 0, part = 0; t < depth; ++t) {
      const Parts parts = depth_blocks(depth);
      if (t == parts.begin(part + 1)) ++part;
      const int64_t d = parts.begin(part), steps = parts.size(part), units = starts[p + 1] - starts[p];
      uint8_t* tile = packed + (d * starts[panels] + starts[p] * steps + (t - d) * units) * kUnit;
      const auto at = [&](int64_t half, int64_t i) {
        const int64_t n = channels[p * kPanel + half * 16 + channel_of(i)];
        const int64_t k = t * kDepth + i / (16 * kTogether) * kTogether + i % kTogether;
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
      const int8_t* tiles = made.tiles_of(tile, p, scratch<2>(2 * kTile * kSteps), 1);
      for (int64_t i = 0; i < 2 * kTile; ++i) first[p * kPanel + i / kTile * 16 + channel_of(i)] -= kShift * tiles[i];
    }
}

// Row by row LayerNorm, rounded to bfloat16, then as quantize_tokens. weight, bias: [inputs] or null.
void normalise_tokens(const uint16_t* x, int8_t* values, uint16_t* scale, int64_t rows, int64_t inputs, int top,
                      float ratio, float eps, const float* weight, const float* bias) {
#pragma omp parallel for
  for (int64_t row = 0; row < rows; ++row) {
    uint16_t* normed = reinterpret_cast<uint16_t*>(scratch<2>(inputs * 2));
    normalise_row(x + row * inputs, normed, inputs, eps, weight, bias);
    scale[row] = quantize_row(normed, values + row * inputs, inputs, top, ratio, -1);
  }
}

// values [rows, inputs], row_scale [rows], out [rows, outputs].
void product_bfloat16(const Weights* weights, const int8_t* values, const uint16_t* row_scale, uint16_t* out,
                      int64_t rows) {
  product<uint16_t>(*weights, nullptr, nullptr, values, row_scale, out, rows);
}

void product_float32(const Weights* weights, const int8_t* values, const float* row_scale, float* out, int64_t rows) {
  product<float>(*weights, nullptr, nullptr, values, row_scale, out, rows);
}

// silu(gate) * up, both with row_scale.
void gated_bfloat16(const Weights* gate, const Weights* up, const int8_t* values, const uint16_t* row_scale,
                    uint16_t* out, int64_t rows) {
  product<uint16_t>(*gate, up, nullptr, values, row_scale, out, rows);
}

void gated_float32(const Weights* gate, const Weights* up, const int8_t* values, const float* row_scale, float* out,
                   int64_t rows) {
  product<float>(*gate, up, nullptr, values, row_scale, out, rows);
}

// Whether `attention` can run on this CPU.
#ifdef __AVX512F__
int has_attention() { return __builtin_cpu_supports("avx512bf16"); }
#else
int has_attention() { return 0; }
#endif

#ifdef __AVX512F__
// softmax(query key^T / sqrt(size) + bias) value, [batch * tokens, heads * size] each; rows of the inputs are `stride`
// apart. bias: [batch, tokens] or null.
void attention(const uint16_t* query, const uint16_t* key, const uint16_t* value, const float* bias, uint16_t* out,
               int64_t batch, int64_t heads, int64_t tokens, int64_t size, int64_t stride, int64_t causal) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < batch * heads; ++task) {
    const int64_t row = task / heads * tokens, column = task % heads * size, at = row * stride + column;
    attend(query + at, key + at, value + at, out + row * heads * size + column, tokens, size, stride, heads * size,
           causal, bias ? bias + row : nullptr);
  }
}
#endif

// A product and what follows it, see Finish. Weights are in order.
void finished_bfloat16(const Weights* weights, const uint16_t* bias, const uint16_t* factor, const uint16_t* residual,
                       int64_t gelu, const int8_t* values, const uint16_t* row_scale, uint16_t* out, int64_t rows) {
  const Finish<uint16_t> finish{bias, factor, residual, gelu};
  product(*weights, nullptr, &finish, values, row_scale, out, rows);
}
}
