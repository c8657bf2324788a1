// Vectors of float32 for manhattan.cpp and rounds.cpp, which compiled.py compiles where they run.
//
// They are the compiler's own extension (GCC, Clang): no processor is named but to say how long its registers are.
// Nothing here may be compiled as if there were no NaN (-ffast-math).

#pragma once

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
