// The inner loops of manhattan.py: L1 distances between rows of float32.
//
// N source rows, M target rows, V columns; rows lie one after the other. A tile of sums stays in registers while
// columns, or target rows, pass by.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include "lanes.h"

namespace {

// Source rows in a tile: as many as there are registers for.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSources = 4;
#else
constexpr int kSources = 2;
#endif
constexpr int kTargets = 4;               // target rows in a tile of overlaps
constexpr int kVectors = 2;               // vectors of columns in a tile of the gradient
constexpr int kPanel = kVectors * kLanes;
constexpr int64_t kColumns = 64 * kLanes; // after which sums go on in float64
constexpr int64_t kCached = 1 << 16;      // numbers of the target rows kept close: 256 KiB of a core's own cache
constexpr int64_t kPairs = 1 << 22;       // below which another thread costs more than it saves
constexpr uint32_t kInfinity = 0x7f800000;  // its bits; above are NaN's, and those of all that is below 0
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

typedef int32_t Mask __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));  // of floats: in their order, but for the negative

inline Bits load_bits(const float* from) {
  Bits lanes;
  std::memcpy(&lanes, from, sizeof lanes);
#if defined(__x86_64__)
  asm("" : "+v"(lanes));  // stay in a register: GCC would load it for each use again, and loads are what is scarce
#endif
  return lanes;
}

// Lays `height` rows side by side: the first kLanes columns of each, then the next. After the last column come zeros,
// after the last row that row again. nan gets NaN for a row with a NaN or a number below 0 in it, else 0.
template <int height>
inline void pack(const float* rows, int64_t count, int64_t stride, int64_t width, float* packed, float* nan) {
  for (int64_t row = 0; row < height; ++row) {
    const float* from = rows + std::min(row, count - 1) * stride;
    float* to = packed + row * kLanes;
    Mask found = {};
    int64_t column = 0;
    for (; column + kLanes <= width; column += kLanes, to += height * kLanes) {
      const Bits lanes = load_bits(from + column);
      std::memcpy(to, &lanes, sizeof lanes);
      found |= lanes > kInfinity;
    }
    if (column < width) {
      std::fill(to, to + kLanes, 0.0f);
      std::copy(from + column, from + width, to);
      found |= load_bits(to) > kInfinity;
    }
    nan[row] = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane)
      if (found[lane]) nan[row] = kNaN;
  }
}

inline void overlap_tile(const float* source, const float* target, int64_t width, float (*shared)[kTargets]) {
  Floats sums[kSources][kTargets] = {};
  for (int64_t column = 0; column < width; column += kLanes) {
    Bits p[kSources];
    for (int n = 0; n < kSources; ++n) p[n] = load_bits(source + n * kLanes);
    for (int m = 0; m < kTargets; ++m) {
      const Bits q = load_bits(target + m * kLanes);
      // A minimum of whole numbers, which processors do beside the sum: one of floats waits for the same units.
      for (int n = 0; n < kSources; ++n) sums[n][m] += (Floats)(p[n] < q ? p[n] : q);
    }
    source += kSources * kLanes;
    target += kTargets * kLanes;
  }
  for (int n = 0; n < kSources; ++n)
    for (int m = 0; m < kTargets; ++m) shared[n][m] = sum(sums[n][m]);
}

constexpr int64_t kOverlapScratch = kCached + kSources * kColumns;

// Adds the columns from begin to end to shared_NM.
void overlap(const float* source_NV, const float* target_MV, int64_t N, int64_t M, int64_t V, bool own, int64_t begin,
             int64_t end, float* scratch, double* shared_NM) {
  constexpr int64_t group = kCached / kColumns;
  float* const source = scratch + kCached;
  float source_nan[kSources], target_nan[group], shared[kSources][kTargets];
  for (int64_t left = begin; left < end; left += kColumns) {
    const int64_t width = std::min(kColumns, end - left);
    for (int64_t first = 0; first < M; first += group) {
      const int64_t targets = std::min(group, M - first);
      for (int64_t m = 0; m < targets; m += kTargets)
        pack<kTargets>(target_MV + (first + m) * V + left, targets - m, V, width, scratch + m * kColumns,
                       target_nan + m);
      // own: each row with itself and those after it. What else is in their tiles does no harm.
      for (int64_t row = 0; row < (own ? std::min(N, first + targets) : N); row += kSources) {
        pack<kSources>(source_NV + row * V + left, N - row, V, width, source, source_nan);
        int64_t m = own ? std::max<int64_t>(0, row - first) / kTargets * kTargets : 0;
        for (; m < targets; m += kTargets) {
          overlap_tile(source, scratch + m * kColumns, width, shared);
          for (int64_t i = 0; i < std::min<int64_t>(kSources, N - row); ++i)
            for (int64_t j = 0; j < std::min<int64_t>(kTargets, targets - m); ++j)
              shared_NM[(row + i) * M + first + m + j] += double(shared[i][j]) + source_nan[i] + target_nan[m + j];
        }
      }
    }
  }
}

// In `tile` stand the sources' columns, and afterwards their gradient.
inline void pull_tile(const float* const* pull, const float* target, const float* target_nan, int64_t M,
                      float (*tile)[kPanel]) {
  Floats p[kSources][kVectors], sums[kSources][kVectors] = {};
  for (int n = 0; n < kSources; ++n)
    for (int k = 0; k < kVectors; ++k) p[n][k] = load(tile[n] + k * kLanes);
  for (int64_t m = 0; m < M; ++m, target += kPanel) {
    Floats q[kVectors];
    for (int k = 0; k < kVectors; ++k) q[k] = load(target + k * kLanes);
    for (int n = 0; n < kSources; ++n) {
      const Floats weight = pull[n][m] - Floats{};
      for (int k = 0; k < kVectors; ++k) {
        sums[n][k] = p[n][k] > q[k] ? sums[n][k] + weight : sums[n][k];
        sums[n][k] = p[n][k] < q[k] ? sums[n][k] - weight : sums[n][k];
      }
    }
  }
  for (int n = 0; n < kSources; ++n)
    for (int k = 0; k < kVectors; ++k)
      store(tile[n] + k * kLanes, (p[n][k] != p[n][k] ? p[n][k] : sums[n][k]) + load(target_nan + k * kLanes));
}

int64_t panels_close(int64_t M) { return std::max<int64_t>(1, kCached / (M * kPanel)); }

int64_t pull_scratch(int64_t M) { return panels_close(M) * (M + 1) * kPanel; }

// Writes the columns from begin to end of pulled_NV.
void pull(const float* pull_NM, const float* source_NV, const float* target_MV, int64_t N, int64_t M, int64_t V,
          int64_t begin, int64_t end, float* scratch, float* pulled_NV) {
  const int64_t columns = panels_close(M) * kPanel;
  for (int64_t left = begin; left < end; left += columns) {
    const int64_t right = std::min(left + columns, end);
    // A panel is kPanel columns of all target rows, and below them NaN where one of them is NaN.
    float* panel = scratch;
    for (int64_t column = left; column < right; column += kPanel) {
      const int64_t width = std::min<int64_t>(kPanel, right - column);
      Mask found[kVectors] = {};
      for (int64_t m = 0; m < M; ++m, panel += kPanel) {
        std::memcpy(panel, target_MV + m * V + column, width * sizeof(float));
        std::fill(panel + width, panel + kPanel, 0.0f);
        for (int k = 0; k < kVectors; ++k) {
          const Floats q = load(panel + k * kLanes);
          found[k] |= q != q;
        }
      }
      for (int k = 0; k < kVectors; ++k, panel += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) panel[lane] = found[k][lane] ? kNaN : 0.0f;
    }
    for (int64_t row = 0; row < N; row += kSources) {
      const int64_t sources = std::min<int64_t>(kSources, N - row);
      const float* pulls[kSources];
      for (int64_t n = 0; n < kSources; ++n) pulls[n] = pull_NM + std::min(row + n, N - 1) * M;
      panel = scratch;
      for (int64_t column = left; column < right; column += kPanel, panel += (M + 1) * kPanel) {
        const int64_t width = std::min<int64_t>(kPanel, right - column);
        float tile[kSources][kPanel] = {};
        for (int64_t n = 0; n < sources; ++n)
          std::memcpy(tile[n], source_NV + (row + n) * V + column, width * sizeof(float));
        pull_tile(pulls, panel, panel + M * kPanel, M, tile);
        for (int64_t n = 0; n < sources; ++n)
          std::memcpy(pulled_NV + (row + n) * V + column, tile[n], width * sizeof(float));
      }
    }
  }
}

int64_t parts_of(int64_t N, int64_t M, int64_t V, int64_t block, int64_t threads) {
  const int64_t useful = std::min(N * M * V / kPairs, (V + block - 1) / block);
  return std::max<int64_t>(1, std::min(threads, useful));
}

// Calls work(part, begin, end) for `parts` ranges of whole blocks of the V columns, each in a thread of its own.
template <class Work>
void in_parallel(int64_t parts, int64_t V, int64_t block, const Work& work) {
  const int64_t blocks = (V + block - 1) / block;
  const auto one = [&](int64_t part) {
    work(part, part * blocks / parts * block, std::min(V, (part + 1) * blocks / parts * block));
  };
  std::vector<std::thread> threads;
  threads.reserve(parts - 1);
  for (int64_t part = 1; part < parts; ++part) {
    try {
      threads.emplace_back(one, part);
    } catch (const std::exception&) {  // no more threads to be had
      one(part);
    }
  }
  one(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

// Both return 0, or 1 when there is no memory for a copy of a few rows.

// shared_NM = Σ_v min(p_nv, q_mv) of numbers from 0 up; own: the targets are the sources, and what is below the diagonal is left undefined.
extern "C" int l1_overlap(const float* source_NV, const float* target_MV, double* shared_NM, int64_t N, int64_t M,
                          int64_t V, int64_t own, int64_t threads) noexcept {
  try {
    const int64_t parts = parts_of(N, M, V, kColumns, threads);
    std::vector<float> scratch(parts * kOverlapScratch);
    std::vector<double> shared_PNM(parts * N * M);
    in_parallel(parts, V, kColumns, [&](int64_t part, int64_t begin, int64_t end) {
      overlap(source_NV, target_MV, N, M, V, own, begin, end, scratch.data() + part * kOverlapScratch,
              shared_PNM.data() + part * N * M);
    });
    for (int64_t pair = 0; pair < N * M; ++pair) {
      shared_NM[pair] = 0.0;
      for (int64_t part = 0; part < parts; ++part) shared_NM[pair] += shared_PNM[part * N * M + pair];
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

// pulled_NV = Σ_m pull_nm · sign(p_nv − q_mv), for pulls that are finite.
extern "C" int l1_pull(const float* pull_NM, const float* source_NV, const float* target_MV, float* pulled_NV,
                       int64_t N, int64_t M, int64_t V, int64_t threads) noexcept {
  try {
    const int64_t parts = parts_of(N, M, V, kPanel, threads);
    std::vector<float> scratch(parts * pull_scratch(M));
    in_parallel(parts, V, kPanel, [&](int64_t part, int64_t begin, int64_t end) {
      pull(pull_NM, source_NV, target_MV, N, M, V, begin, end, scratch.data() + part * pull_scratch(M), pulled_NV);
    });
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
