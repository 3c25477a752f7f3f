// The most that a unit of the CPU can multiply: a loop of the instruction that its kernel is made of, on registers alone.

#include "kernels.cpp"

namespace {

#if defined(__AMX_INT8__)
int64_t multiply_registers(int64_t turns) {
  begin_multiplying();
  for (int64_t i = 0; i < turns; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  end_multiplying();
  return turns * 4 * 16 * 16 * 64;
}
#elif defined(__aarch64__)
int64_t multiply_registers(int64_t turns) {
  int8x16_t inputs = vdupq_n_s8(1), weights = vdupq_n_s8(1);
  int32x4_t sum[16] = {};
  for (int64_t i = 0; i < turns; ++i)
#pragma GCC unroll 16
    for (int32x4_t& each : sum) {
#ifdef __ARM_FEATURE_MATMUL_INT8
      each = vmmlaq_s32(each, inputs, weights);
#else
      each = dot<0>(each, weights, inputs);
#endif
      asm volatile("" : "+w"(each));
    }
  return turns * 16 * (kTogether == 8 ? 32 : 16);
}
#else
int64_t multiply_registers(int64_t turns) {
  constexpr int64_t kSums = kRowsAtOnce * kColumns;
  Vector sum[kSums] = {}, inputs = inputs_of(0x01010101), weights = inputs;
  for (int64_t i = 0; i < turns; ++i)
#pragma GCC unroll 16
    for (int64_t j = 0; j < kSums; ++j) {
      sum[j] = dot(sum[j], inputs, weights);
      asm volatile("" : "+v"(sum[j]), "+v"(inputs));  // each time anew
    }
  return turns * kSums * kVector * 4;
}
#endif

}  // namespace

// Multiplies on that many threads, `turns` loops each; returns how many bytes were multiplied by another and added.
extern "C" int64_t multiply_on_registers(int64_t turns, int64_t threads) {
  int64_t all = 0;
#pragma omp parallel num_threads(threads) reduction(+ : all)
  all += multiply_registers(turns);
  return all;
}
