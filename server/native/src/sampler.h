// From one row of logits to a token, by the definitions in server/types.py (SamplingParams) and nothing else: a draw
// depends on its logits, its parameters, its seed and its number.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd.h"

namespace lorachat {

struct Sampling {
  float temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
  int32_t top_k;
};

// Number `draw` of the sequence that `seed` begins: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), 53 bits of it.
inline double uniform(uint64_t seed, uint64_t draw) {
  uint64_t z = seed + (draw + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return double(z >> 11) * 0x1p-53;
}

inline float highest(const float *x, int n) {
  Vec top = splat(-INFINITY);
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) top = max(top, load(x + i));
  float result = max(top);
  for (; i < n; i++) result = x[i] > result ? x[i] : result;
  return result;
}

// The first of the largest.
inline int argmax(const float *x, int n) {
  float top = highest(x, n);
  for (int i = 0; i < n; i++)
    if (x[i] == top) return i;
  return 0;
}

// log of the sum of e^x.
inline double log_sum_exp(const float *x, int n) {
  float top = highest(x, n);
  double total = 0;
  int i = 0;
  for (; i + kWidth <= n;) {
    Vec part = {};
    for (int end = std::min(n - kWidth, i + 64 * kWidth); i <= end; i += kWidth) part += exp(load(x + i) - top);
    total += sum(part);
  }
  for (; i < n; i++) total += std::exp(double(x[i]) - top);
  return top + std::log(total);
}

struct Scored {
  double logprob;
  int32_t rank;
};

inline Scored score(const float *logits, int n, double normalizer, int token) {
  int32_t rank = 0;
  float own = logits[token];
  for (int i = 0; i < n; i++) rank += logits[i] >= own;
  return {double(own) - normalizer, rank};
}

// The `count` most likely tokens, best first, of equals the lower id first.
inline void top_tokens(const float *logits, int n, double normalizer, int count, int32_t *ids, double *logprobs) {
  static thread_local std::vector<int32_t> order;
  order.resize(n);
  for (int i = 0; i < n; i++) order[i] = i;
  count = std::min(count, n);
  auto better = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  if (count < n) std::nth_element(order.begin(), order.begin() + count, order.end(), better);
  std::sort(order.begin(), order.begin() + count, better);
  for (int i = 0; i < count; i++) {
    ids[i] = order[i];
    logprobs[i] = double(logits[order[i]]) - normalizer;
  }
}

// One draw. x: logits with penalties and bans in them; overwritten.
inline int draw(float *x, int n, const Sampling &s, double u) {
  if (s.temperature == 0) return argmax(x, n);
  const float top = highest(x, n);
  if (top == -INFINITY) return 0;
  // The maximum goes first: divided by a temperature near zero it would be infinite, and all the rest NaN.
  const float inverse = float(1.0 / std::max(double(s.temperature), 1e-30));
  double total = 0;
  {
    int i = 0;
    for (; i + kWidth <= n;) {
      Vec part = {};
      for (int end = std::min(n - kWidth, i + 64 * kWidth); i <= end; i += kWidth) {
        Vec w = exp(max((load(x + i) - top) * inverse, splat(-1e9f)));
        store(x + i, w);
        part += w;
      }
      total += sum(part);
    }
    for (; i < n; i++) total += x[i] = std::exp(std::max((x[i] - top) * inverse, -1e9f));
  }

  const int k = s.top_k > 0 ? std::min(s.top_k, n) : n;
  if (k == n && s.top_p >= 1) {
    const float least = s.min_p;
    if (least > 0) {
      total = 0;
      for (int i = 0; i < n; i++) {
        if (x[i] < least) x[i] = 0;
        total += x[i];
      }
    }
    double target = u * total, running = 0;
    int last = 0;
    for (int i = 0; i < n; i++) {
      if (x[i] <= 0) continue;
      running += x[i];
      last = i;
      if (running > target) return i;
    }
    return last;
  }

  // Only tokens over a threshold are sorted; it falls until they are sure to hold all that the filters keep.
  static thread_local std::vector<int32_t> kept;
  for (float threshold = 1e-2f;; threshold *= 1e-2f) {
    if (threshold < 1e-12f) threshold = 0;
    kept.clear();
    double mass = 0;
    for (int i = 0; i < n; i++)
      if (x[i] > threshold) {
        kept.push_back(i);
        mass += x[i];
      }
    bool enough = k < n ? int(kept.size()) >= k : mass >= double(s.top_p) * total;
    if (enough || threshold == 0) break;
  }
  auto better = [&](int a, int b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
  std::sort(kept.begin(), kept.end(), better);
  double mass_of_k = total;
  if (k < n && int(kept.size()) > k) kept.resize(k);
  if (k < n && int(kept.size()) == k) {
    mass_of_k = 0;
    for (int i : kept) mass_of_k += x[i];
  }
  if (s.top_p < 1) {
    double running = 0;
    size_t count = 0;
    while (count < kept.size() && (count == 0 || running < double(s.top_p) * mass_of_k)) running += x[kept[count++]];
    kept.resize(count);
  }
  if (s.min_p > 0) {
    size_t count = 1;
    while (count < kept.size() && x[kept[count]] >= s.min_p * x[kept[0]]) count++;
    kept.resize(count);
  }
  std::sort(kept.begin(), kept.end());
  double mass = 0;
  for (int i : kept) mass += x[i];
  double target = u * mass, running = 0;
  for (int i : kept) {
    running += x[i];
    if (running > target) return i;
  }
  return kept.back();
}

}  // namespace lorachat
