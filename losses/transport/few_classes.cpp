// What few_classes.py does between the softmax and Sinkhorn's rounds: distances over a handful of classes and their
// gradient.
//
// G rows of one group, V classes, K rounds; p_VG and q_VG are the sides' probabilities, a class after the other.

#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include "lanes.h"

extern "C" int sinkhorn_scale_adjoint(const float*, const float*, const float*, const float*, const float*,
                                      const float*, const float*, float*, int64_t, int64_t, int64_t) noexcept;

// cost_GG = unit · Σ_v |p_vn − q_vm|.
extern "C" int few_classes_cost(const float* p_VG, const float* q_VG, float* cost_GG, int64_t G, int64_t V,
                                float unit) noexcept {
  for (int64_t n = 0; n < G; ++n) {
    float* const cost_G = cost_GG + n * G;
    for (int64_t m = 0; m < G; ++m) cost_G[m] = std::fabs(p_VG[n] - q_VG[m]);
    for (int64_t v = 1; v < V; ++v)
      for (int64_t m = 0; m < G; ++m) cost_G[m] += std::fabs(p_VG[v * G + n] - q_VG[v * G + m]);
    for (int64_t m = 0; m < G; ++m) cost_G[m] *= unit;
  }
  return 0;
}

// pulled_VG is the gradient for p of Σ_n share_pull_n / mass_n · Σ_m plan_nm · cost_nm, through the rounds that made
// the plan; own: q is p, and its gradient is added. Returns 1 when there is no memory for some copies of the cost.
extern "C" int few_classes_pull(const float* share_pull_G, const float* p_VG, const float* q_VG, const float* cost_GG,
                                const float* plan_GG, const float* kernel_GG, const float* mass_G,
                                const float* rows_KG, const float* columns_KG, float* pulled_VG, int64_t G, int64_t V,
                                int64_t K, int64_t own, float unit, float epsilon) noexcept {
  try {
    std::vector<float> weighted_GG(G * G), pull_GG(G * G);
    for (int64_t n = 0; n < G; ++n)
      for (int64_t m = 0; m < G; ++m) weighted_GG[n * G + m] = share_pull_G[n] / mass_G[n] * cost_GG[n * G + m];
    if (sinkhorn_scale_adjoint(weighted_GG.data(), plan_GG, kernel_GG, mass_G, mass_G, rows_KG, columns_KG,
                               pull_GG.data(), G, G, K))
      return 1;
    for (int64_t n = 0; n < G; ++n) {
      const float weight = share_pull_G[n] / mass_G[n];
      for (int64_t m = 0; m < G; ++m) {
        float& pull = pull_GG[n * G + m];
        pull = (pull / epsilon + weight * plan_GG[n * G + m]) * unit;
      }
    }
    if (own)
      for (int64_t n = 0; n < G; ++n)
        for (int64_t m = 0; m <= n; ++m) pull_GG[n * G + m] = pull_GG[m * G + n] += pull_GG[n * G + m];
    for (int64_t v = 0; v < V; ++v)
      for (int64_t n = 0; n < G; ++n) {
        Floats sums = {};
        for (int64_t m = 0; m < G; m += kLanes) {
          const Floats difference = p_VG[v * G + n] - read(q_VG + v * G + m, G - m);
          const Floats pull = read(pull_GG.data() + n * G + m, G - m);
          const Floats other = difference < 0.0f ? -pull : difference * pull;  // 0 or NaN
          sums += difference > 0.0f ? pull : other;
        }
        pulled_VG[v * G + n] = sum(sums);
      }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
