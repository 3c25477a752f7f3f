// Arithmetic on rows of activations. Included by kernels.cpp.

#pragma once

namespace {

// Quantises one row and returns its scale, see quantize_activation in quantizers.py. rms_eps < 0: no norm.
uint16_t quantize_row(const uint16_t* x, int8_t* values, int64_t inputs, int top, float ratio, float rms_eps) {
  constexpr float kTiny = 1e-12f;
  Floats squares{};
  Words largest{};  // in the order of integers, in which what is not a number comes last
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const Floats v = load(x + k, inputs - k);
    largest = larger((Words)magnitude(v), largest);
    if (rms_eps >= 0) squares = fused(v, v, squares);
  }
  uint32_t bits = largest_of(largest);
  float step;
  std::memcpy(&step, &bits, sizeof bits);
  step *= ratio;
  float inverse = 1.0f / (step < kTiny ? kTiny : step);
  std::memcpy(&bits, &inverse, sizeof bits);
  inverse = to_float(static_cast<uint16_t>(bits >> 16));
  float scale = 1.0f / inverse;
  if (rms_eps >= 0) scale *= 1.0f / std::sqrt(sum_of(squares) / inputs + rms_eps);
  const Floats factor = spread(inverse), high = spread(top), low = spread(-top);
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const Floats v = load(x + k, inputs - k) * factor;
    store_integers(values + k, clipped(v, low, high), inputs - k);
  }
  return narrowed(to_bfloat16(spread(scale)))[0];
}

// LayerNorm of one row; weight and bias may be null.
void normalise_row(const uint16_t* x, uint16_t* y, int64_t inputs, float eps, const float* weight, const float* bias) {
  Floats sum{}, squares{};
  for (int64_t k = 0; k < inputs; k += kLanes) sum = sum + load(x + k, inputs - k);
  const Floats middle = spread(sum_of(sum) / inputs);
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const Floats away = kept(load(x + k, inputs - k) - middle, inputs - k);
    squares = fused(away, away, squares);
  }
  const Floats factor = spread(1.0f / std::sqrt(sum_of(squares) / inputs + eps));
  for (int64_t k = 0; k < inputs; k += kLanes) {
    const int64_t left = inputs - k;
    Floats v = (load(x + k, left) - middle) * factor;
    if (weight) v = v * load(weight + k, left);
    if (bias) v = v + load(bias + k, left);
    store(y + k, rounded<uint16_t>(v), left);
  }
}

}  // namespace
