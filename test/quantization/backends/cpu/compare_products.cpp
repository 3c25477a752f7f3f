// Compares the kernels with plain loops over random shapes and widths: a program of its own, so that those of another
// architecture run in an emulator. Prints the number of cases; ends with status 1 at the first difference.

#include "kernels.cpp"

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

namespace {

uint64_t state = 88172645463325252u;

int64_t below(int64_t end) {  // xorshift
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return static_cast<int64_t>(state % static_cast<uint64_t>(end));
}

template <typename T, size_t n>
T one_of(const T (&choices)[n]) {
  return choices[below(n)];
}

float uniform() { return 0.5f + below(1 << 16) / 65536.0f; }

uint16_t bfloat16_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void convert(float x, float& to) { to = x; }
void convert(float x, uint16_t& to) { to = bfloat16_of(x); }

template <typename T>
float rounded_to(float x) {
  T y;
  convert(x, y);
  return to_float(y);
}

[[noreturn]] void differs(const char* what, int64_t row, int64_t column, double found, double expected) {
  std::printf("%s differs at row %ld, column %ld: %.9g instead of %.9g\n", what, long(row), long(column), found, expected);
  std::exit(1);
}

// Room for `size` values that begins with a line of the cache, as PyTorch's does.
template <typename T>
T* aligned(std::vector<T>& memory, size_t size) {
  memory.resize(size + 64 / sizeof(T));
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
}

// A random matrix and the order of its rows, as product.py makes it: sorted by width in every stripe.
struct Matrix {
  int64_t outputs, inputs;
  std::vector<int8_t> values;
  std::vector<float> scale;
  std::vector<int32_t> channels, first;
  std::vector<int64_t> starts{0}, stripes{0};
  std::vector<int16_t> places;
  std::vector<uint8_t> memory;
  std::vector<float> scales;
  Weights weights;

  Matrix(int64_t outputs, int64_t inputs, bool mixed, int bits, bool extreme)
      : outputs(outputs), inputs(inputs), values(outputs * inputs), scale(outputs) {
    std::vector<int> widths(outputs, bits);
    for (int64_t n = 0; n < outputs; ++n) {
      if (mixed) widths[n] = one_of({2, 4, 8});
      scale[n] = uniform();
      for (int64_t k = 0; k < inputs; ++k) {
        const int64_t top = int64_t{1} << (widths[n] - 1), any = extreme ? -top : below(2 * top) - top;
        values[n * inputs + k] = static_cast<int8_t>(widths[n] == 2 ? 2 * any + 1 : any);
      }
    }
    for (int64_t begin = 0; begin < outputs; begin += kStripe) {
      std::vector<int32_t> rows(std::min(kStripe, outputs - begin));
      std::iota(rows.begin(), rows.end(), int32_t(begin));
      std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) { return widths[a] < widths[b]; });
      places.resize(places.size() + kStripe, -1);
      for (size_t i = 0; i < rows.size(); ++i) places[rows[i]] = static_cast<int16_t>(i);
      for (size_t i = 0; i < rows.size(); i += kPanel) {
        int widest = 0;
        for (size_t j = i; j < i + kPanel; ++j) {
          channels.push_back(j < rows.size() ? rows[j] : -1);
          if (j < rows.size()) widest = std::max(widest, widths[rows[j]]);
        }
        starts.push_back(starts.back() + widest / 2);
      }
      stripes.push_back(static_cast<int64_t>(starts.size()) - 1);
    }
    const int64_t panels = static_cast<int64_t>(starts.size()) - 1;
    uint8_t* packed = aligned(memory, starts[panels] * ceil_div(inputs, kDepth) * kUnit);
    int32_t* begun = aligned(first, channels.size());
    pack_weight(values.data(), packed, starts.data(), channels.data(), begun, panels, inputs);
    for (int32_t n : channels) scales.push_back(n < 0 ? 0.0f : scale[n]);
    weights = {packed, starts.data(), begun, scales.data(), mixed ? places.data() : nullptr,
               mixed ? stripes.data() : nullptr, outputs, inputs, panels};
  }

  // One result before the row's scale.
  template <typename T>
  float at(const int8_t* row, int64_t n) const {
    int32_t sum = 0;
    for (int64_t k = 0; k < inputs; ++k) sum += row[k] * values[n * inputs + k];
    return rounded_to<T>(static_cast<float>(sum) * scale[n]);
  }
};

struct Activations {
  std::vector<int8_t> values;
  std::vector<float> wide;
  std::vector<uint16_t> half;

  Activations(int64_t rows, int64_t inputs, bool extreme) : values(rows * inputs) {
    for (int8_t& value : values) value = static_cast<int8_t>(extreme ? -127 : below(255) - 127);
    for (int64_t row = 0; row < rows; ++row) {
      wide.push_back(uniform());
      half.push_back(bfloat16_of(uniform()));
    }
  }
};

void compare_product(const Matrix& matrix, const Activations& given, int64_t rows) {
  std::vector<float> wide(rows * matrix.outputs);
  std::vector<uint16_t> half(wide.size());
  product_float32(&matrix.weights, given.values.data(), given.wide.data(), wide.data(), rows);
  product_bfloat16(&matrix.weights, given.values.data(), given.half.data(), half.data(), rows);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t n = 0; n < matrix.outputs; ++n) {
      const int8_t* from = given.values.data() + row * matrix.inputs;
      const float expected = matrix.at<float>(from, n) * given.wide[row], found = wide[row * matrix.outputs + n];
      if (found != expected) differs("a product in float32", row, n, found, expected);
      const uint16_t rounded = bfloat16_of(matrix.at<uint16_t>(from, n) * to_float(given.half[row]));
      const uint16_t got = half[row * matrix.outputs + n];
      if (got != rounded) differs("a product in bfloat16", row, n, to_float(got), to_float(rounded));
    }
}

// SiLU and GELU are approximations: within 1e-5, and within a place of bfloat16.
void compare_gated_and_finished(const Matrix& gate, const Matrix& up, Activations given, int64_t rows) {
  for (float& scale : given.wide) scale /= 127 * 127 * std::sqrt(float(gate.inputs));
  for (int64_t row = 0; row < rows; ++row) given.half[row] = bfloat16_of(given.wide[row]);
  std::vector<float> gated(rows * gate.outputs);
  gated_float32(&gate.weights, &up.weights, given.values.data(), given.wide.data(), gated.data(), rows);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t n = 0; n < gate.outputs; ++n) {
      const int8_t* from = given.values.data() + row * gate.inputs;
      const double y = gate.at<float>(from, n) * given.wide[row], other = up.at<float>(from, n) * given.wide[row];
      const double expected = y / (1 + std::exp(-y)) * other, found = gated[row * gate.outputs + n];
      if (!(std::abs(found - expected) <= 1e-6 + 1e-5 * std::abs(expected)))
        differs("a gated product", row, n, found, expected);
    }
  if (gate.weights.places) return;
  std::vector<uint16_t> bias(gate.outputs), finished(gated.size());
  for (uint16_t& each : bias) each = bfloat16_of(uniform() - 1);
  for (const int64_t gelu : {1, 2}) {
    finished_bfloat16(&gate.weights, bias.data(), bias.data(), nullptr, gelu, given.values.data(), given.half.data(),
                      finished.data(), rows);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t n = 0; n < gate.outputs; ++n) {
        const float plain = gate.at<uint16_t>(given.values.data() + row * gate.inputs, n) * to_float(given.half[row]);
        const double y = rounded_to<uint16_t>(rounded_to<uint16_t>(plain) + to_float(bias[n]));
        const double normal = gelu == 1 ? 0.5 * (1 + std::erf(y * std::sqrt(0.5)))
                                        : 0.5 * (1 + std::tanh(0.7978845608 * (y + 0.044715 * y * y * y)));
        const double expected = y * normal * to_float(bias[n]), found = to_float(finished[row * gate.outputs + n]);
        if (!(std::abs(found - expected) <= 1e-6 + 0.02 * std::abs(expected)))
          differs("a product with GELU", row, n, found, expected);
      }
  }
}

void compare_quantiser(int64_t rows, int64_t inputs) {
  std::vector<uint16_t> x(rows * inputs), scale(rows);
  std::vector<int8_t> values(x.size());
  for (uint16_t& each : x) each = bfloat16_of((uniform() - 1) * (1 << below(8)));
  const float ratio = 0.9f / 7;
  quantize_tokens(x.data(), values.data(), scale.data(), rows, inputs, 7, ratio, -1);
  for (int64_t row = 0; row < rows; ++row) {
    float largest = 0;
    for (int64_t k = 0; k < inputs; ++k) largest = std::max(largest, std::abs(to_float(x[row * inputs + k])));
    float inverse = 1.0f / std::max(largest * ratio, 1e-12f);
    uint32_t bits;
    std::memcpy(&bits, &inverse, sizeof bits);
    inverse = to_float(static_cast<uint16_t>(bits >> 16));
    if (scale[row] != bfloat16_of(1 / inverse)) differs("a scale", row, 0, to_float(scale[row]), 1 / inverse);
    for (int64_t k = 0; k < inputs; ++k) {
      const float integer = std::nearbyint(to_float(x[row * inputs + k]) * inverse);
      const float expected = std::min(std::max(integer, -7.0f), 7.0f);
      if (values[row * inputs + k] != expected) differs("an activation", row, k, values[row * inputs + k], expected);
    }
  }
}

}  // namespace

int main() {
  constexpr int kCases = 60;
  for (int i = 0; i < kCases; ++i) {
    use_threads(1 + int(below(2)));
    const int64_t rows = one_of({1, 2, 7, 8, 9, 16, 17, 40}), inputs = one_of({1, 7, 8, 63, 64, 65, 577, 1100});
    const int64_t outputs = one_of({1, 15, 31, 32, 33, 70, 320});
    const bool mixed = below(2), extreme = below(4) == 0;
    const int bits = one_of({2, 4, 8});
    const Matrix matrix(outputs, inputs, mixed, bits, extreme), other(outputs, inputs, mixed, bits, false);
    compare_product(matrix, {rows, inputs, extreme}, rows);
    compare_gated_and_finished(matrix, other, {rows, inputs, false}, rows);
    compare_quantiser(rows, inputs);
  }
  std::printf("%d cases\n", kCases);
}
