// Vectors of float32 for the loops that compiled.py compiles where they run.
//
// They are the compiler's own extension (GCC, Clang): no processor is named but to say how long its registers are.
// Nothing here may be compiled as if there were no NaN (-ffast-math).

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));

inline Floats load(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store(float* to, const Floats& lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// After the first `width` numbers come zeros.
inline Floats read(const float* from, int64_t width) {
  if (width >= kLanes) return load(from);
  Floats lanes = {};
  std::memcpy(&lanes, from, width * sizeof(float));
  return lanes;
}

inline void write(float* to, const Floats& lanes, int64_t width) {
  if (width >= kLanes)
    store(to, lanes);
  else
    std::memcpy(to, &lanes, width * sizeof(float));
}

template <int count>
inline float sum_of(const float* numbers) {
  if constexpr (count == 1) {
    return numbers[0];
  } else {
    float half[count / 2];
    for (int i = 0; i < count / 2; ++i) half[i] = numbers[i] + numbers[i + count / 2];
    return sum_of<count / 2>(half);
  }
}

inline float sum(const Floats& lanes) {
  float numbers[kLanes];
  store(numbers, lanes);
  return sum_of<kLanes>(numbers);
}
