// The tile instructions of AMX in plain C++: the kernels' logic can then be tested on CPUs that have AVX-512 alone.
// Included before the kernels, whose calls it takes over. Every tile has 16 rows of 64 bytes, as the kernels configure.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

struct Tile {
  int8_t bytes[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline void configure(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  uint16_t row_bytes[8];
  std::memcpy(row_bytes, bytes + 16, sizeof row_bytes);
  if (bytes[0] != 1) std::abort();
  for (int i = 0; i < 8; ++i)
    if (row_bytes[i] != 64 || bytes[48 + i] != 16) std::abort();
  configured = true;
}

inline Tile& tile(int number) {
  if (!configured) std::abort();  // the CPU would fault
  return tiles[number];
}

inline void load(int number, const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(tile(number).bytes[row], static_cast<const char*>(from) + row * stride, 64);
}

inline void store(int number, void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tile(number).bytes[row], 64);
}

// sums[m][n] += sum over k and i of a[m][4 k + i] * b[k][4 n + i], int8 times int8 into int32.
inline void multiply(int sums, int a, int b) {
  int32_t total[16][16];
  std::memcpy(total, tile(sums).bytes, sizeof total);
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 16; ++n)
        for (int i = 0; i < 4; ++i) total[m][n] += tile(a).bytes[m][4 * k + i] * tile(b).bytes[k][4 * n + i];
  std::memcpy(tile(sums).bytes, total, sizeof total);
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig(config) emulated::configure(config)
#define _tile_release() (emulated::configured = false)
#define _tile_zero(number) std::memset(&emulated::tile(number), 0, sizeof(emulated::Tile))
#define _tile_loadd(number, from, stride) emulated::load(number, from, stride)
#define _tile_stored(number, to, stride) emulated::store(number, to, stride)
#define _tile_dpbssd(sums, a, b) emulated::multiply(sums, a, b)
