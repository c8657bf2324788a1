// The rounds of rounds.py and their adjoint, for matrices of float32 that fit into a core's cache.
//
// N source rows, M target rows, K rounds; rows lie one after the other. A product of a matrix and a vector is a sum of
// columns, a register of rows at a time: nothing is added up across a register, so the compiler may reorder nothing.

#include <algorithm>
#include <cstdint>
#include <new>

#include "lanes.h"

namespace {

constexpr int kChains = 4;  // parts of each sum, for an addition takes as long as four begin
constexpr int kRows = 8;    // rows in a tile of the product of rank K

int64_t padded(int64_t length) { return (length + kLanes - 1) / kLanes * kLanes; }

class Scratch {
 public:
  explicit Scratch(int64_t numbers)
      : begin_(static_cast<float*>(::operator new(numbers * sizeof(float), kAlignment))), free_(begin_) {}
  ~Scratch() { ::operator delete(begin_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* take(int64_t numbers) {
    float* const taken = free_;
    free_ += numbers;
    return taken;
  }

 private:
  static constexpr std::align_val_t kAlignment{sizeof(Floats)};
  float* begin_;
  float* free_;
};

// Both pack weight_nm · k_nm: kLanes columns of all rows and then the next, or kLanes rows of all columns.
// weight(n, m, width) are `width` weights from m on.
template <class Weight>
void pack_columns(const float* k_NM, int64_t N, int64_t M, const Weight& weight, float* packed) {
  for (int64_t m = 0; m < M; m += kLanes)
    for (int64_t n = 0; n < N; ++n, packed += kLanes)
      store(packed, read(k_NM + n * M + m, M - m) * weight(n, m, M - m));
}

template <class Weight>
void pack_rows(const float* k_NM, int64_t N, int64_t M, const Weight& weight, float* packed) {
  for (int64_t top = 0; top < N; top += kLanes)
    for (int64_t m = 0; m < M; m += kLanes) {
      float square[kLanes][kLanes] = {};
      for (int64_t n = top; n < std::min(top + kLanes, N); ++n)
        store(square[n - top], read(k_NM + n * M + m, M - m) * weight(n, m, M - m));
      for (int64_t i = 0; i < std::min<int64_t>(kLanes, M - m); ++i, packed += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) packed[lane] = square[lane][i];
    }
}

// Calls give(first, width, panel) for each panel of the product with a vector: packed are `length` numbers for each.
template <class Give>
inline void product(const float* packed, const float* vector, int64_t length, int64_t results, const Give& give) {
  for (int64_t first = 0; first < results; first += kLanes) {
    Floats sums[kChains] = {};
    int64_t i = 0;
    for (; i + kChains <= length; i += kChains)
      for (int chain = 0; chain < kChains; ++chain, packed += kLanes)
        sums[chain] = sums[chain] + load(packed) * vector[i + chain];
    for (; i < length; ++i, packed += kLanes) sums[0] = sums[0] + load(packed) * vector[i];
    give(first, std::min<int64_t>(kLanes, results - first), (sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

// Writes Σ_k rows_kn · panel_k of kRows rows that begin at rows_KN.
inline void rank_tile(const float* const* rows, int64_t N, const float* panels, int64_t K, Floats* sums) {
  Floats tile[kRows] = {};
  for (int64_t k = 0; k < K; ++k, panels += kLanes) {
    const Floats panel = load(panels);
    for (int i = 0; i < kRows; ++i) tile[i] = tile[i] + panel * rows[i][k * N];
  }
  std::copy(tile, tile + kRows, sums);
}

}  // namespace

// Both return 0, or 1 when there is no memory for copies of the kernel.

extern "C" int sinkhorn_scale(const float* kernel_NM, const float* source_N, const float* target_M, float* plan_NM,
                              float* rows_KN, float* columns_KM, int64_t N, int64_t M, int64_t K) noexcept {
  try {
    Scratch scratch(N * padded(M) + M * padded(N));
    float* const from_source = scratch.take(N * padded(M));
    float* const to_target = scratch.take(M * padded(N));
    pack_columns(kernel_NM, N, M, [=](int64_t n, int64_t, int64_t) { return source_N[n]; }, from_source);
    pack_rows(kernel_NM, N, M, [=](int64_t, int64_t m, int64_t width) { return read(target_M + m, width); }, to_target);
    std::fill(columns_KM, columns_KM + M, 1.0f);
    float *u_N = rows_KN, *v_M = columns_KM;
    for (int64_t k = 0; k < K; ++k) {
      u_N = rows_KN + k * N;
      product(to_target, v_M, M, N, [=](int64_t first, int64_t width, const Floats& sums) {
        write(u_N + first, 1.0f / sums, width);
      });
      v_M = columns_KM + (k + 1) * M;
      product(from_source, u_N, N, M, [=](int64_t first, int64_t width, const Floats& sums) {
        write(v_M + first, 1.0f / sums, width);
      });
    }
    const float* packed = from_source;
    for (int64_t left = 0; left < M; left += kLanes) {
      const int64_t width = std::min<int64_t>(kLanes, M - left);
      const Floats column = read(target_M + left, width) * read(v_M + left, width);
      for (int64_t n = 0; n < N; ++n, packed += kLanes)
        write(plan_NM + n * M + left, load(packed) * u_N[n] * column, width);
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

extern "C" int sinkhorn_scale_adjoint(const float* plan_pull_NM, const float* plan_NM, const float* kernel_NM,
                                      const float* source_N, const float* target_M, const float* rows_KN,
                                      const float* columns_KM, float* scaled_NM, int64_t N, int64_t M,
                                      int64_t K) noexcept {
  try {
    Scratch scratch(M * padded(N) + N * padded(M) + 2 * K * kLanes + N + K * (N + M));
    float* const from_source = scratch.take(M * padded(N));
    float* const to_target = scratch.take(N * padded(M));
    float* const column_part_panels = scratch.take(K * kLanes);
    float* const column_panels = scratch.take(K * kLanes);
    float* const direct_N = scratch.take(N);
    float* const row_parts_KN = scratch.take(K * N);
    float* const column_parts_KM = scratch.take(K * M);
    pack_rows(kernel_NM, N, M, [=](int64_t n, int64_t, int64_t) { return source_N[n]; }, from_source);
    pack_columns(kernel_NM, N, M, [=](int64_t, int64_t m, int64_t width) { return read(target_M + m, width); }, to_target);

    // scaled_NM is the pull on the plan itself, times the plan, until the end.
    std::fill(direct_N, direct_N + N, 0.0f);
    for (int64_t left = 0; left < M; left += kLanes) {
      const int64_t width = std::min<int64_t>(kLanes, M - left);
      Floats columns = {};
      for (int64_t n = 0; n < N; ++n) {
        const int64_t at = n * M + left;
        const Floats direct = read(plan_pull_NM + at, width) * read(plan_NM + at, width);
        write(scaled_NM + at, direct, width);
        columns = columns + direct;
        direct_N[n] += sum(direct);
      }
      write(column_parts_KM + (K - 1) * M + left, columns * read(columns_KM + K * M + left, width), width);
    }

    for (int64_t k = K - 1; k >= 0; --k) {
      const float* const u_N = rows_KN + k * N;
      float* const row_part_N = row_parts_KN + k * N;
      product(from_source, column_parts_KM + k * M, M, N, [=](int64_t first, int64_t width, const Floats& sums) {
        const Floats u = read(u_N + first, width);
        Floats part = sums * u * u;  // in this order: a square of u may not be a number
        if (k == K - 1) part = part - read(direct_N + first, width) * u;
        write(row_part_N + first, part, width);
      });
      if (k == 0) break;  // v before the first round is a constant
      const float* const v_M = columns_KM + k * M;
      float* const column_part_M = column_parts_KM + (k - 1) * M;
      product(to_target, row_part_N, N, M, [=](int64_t first, int64_t width, const Floats& sums) {
        const Floats v = read(v_M + first, width);
        write(column_part_M + first, sums * v * v, width);
      });
    }

    for (int64_t left = 0; left < M; left += kLanes) {
      const int64_t width = std::min<int64_t>(kLanes, M - left);
      for (int64_t k = 0; k < K; ++k) {
        write(column_part_panels + k * kLanes, read(column_parts_KM + k * M + left, width), kLanes);
        write(column_panels + k * kLanes, read(columns_KM + k * M + left, width), kLanes);
      }
      const Floats target = read(target_M + left, width);
      for (int64_t top = 0; top < N; top += kRows) {
        const float *u[kRows], *row_parts[kRows];
        for (int64_t i = 0; i < kRows; ++i) {
          const int64_t n = std::min(top + i, N - 1);
          u[i] = rows_KN + n;
          row_parts[i] = row_parts_KN + n;
        }
        Floats through_columns[kRows], through_rows[kRows];
        rank_tile(u, N, column_part_panels, K, through_columns);
        rank_tile(row_parts, N, column_panels, K, through_rows);
        for (int64_t i = 0; i < std::min<int64_t>(kRows, N - top); ++i) {
          const int64_t at = (top + i) * M + left;
          const Floats kernel = read(kernel_NM + at, width), direct = read(scaled_NM + at, width);
          const Floats through = through_columns[i] * (kernel * source_N[top + i]) - through_rows[i] * (kernel * target);
          write(scaled_NM + at, through - direct, width);
        }
      }
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
