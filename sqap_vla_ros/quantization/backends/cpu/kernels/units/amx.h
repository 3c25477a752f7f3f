// The block product of backend amx: 16 by 16 accumulators are one tile register. Included by kernels.cpp.

#pragma once

namespace {

constexpr uint8_t kShift = 0;        // added to activations
constexpr int64_t kTileRows = 16;    // rows of activations in a tile
constexpr int64_t kTogether = 4;     // inputs of a channel that lie side by side
constexpr int64_t kPairedRows = 1;   // rows that alternate in a tile

// Where 16 accumulators of a row are: sums [2][2][16][16] of two tiles of rows and the halves of a panel.
int64_t sums_at(int64_t row, int64_t half) { return ((row / 16) * 2 + half) * 256 + (row % 16) * 16; }

// The compiler does not know what tile instructions read: values written before must be in memory.
void written() { asm volatile("" ::: "memory"); }

void begin_multiplying() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = kDepth;
    config.rows[i] = kTileRows;
  }
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void end_multiplying() { _tile_release(); }

// 16 or 32 rows times a panel over `steps` tiles of depth, onto sums [2][2][16][16], which start at zero if there is a
// `start`. Four accumulating tiles take every loaded tile twice.
template <bool kBoth>
void multiply_tiles(const int8_t* upper, const int8_t* lower, const int8_t* weights, int32_t* sums, int64_t steps,
                    const int32_t* start) {
  if (start) {
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

void multiply(const int8_t* upper, const int8_t* lower, const int8_t* weights, int32_t* sums, int64_t rows,
              int64_t steps, const int32_t* start) {
  written();
  if (rows > kTileRows)
    multiply_tiles<true>(upper, lower, weights, sums, steps, start);
  else
    multiply_tiles<false>(upper, lower, weights, sums, steps, start);
}

}  // namespace
