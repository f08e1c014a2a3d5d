// Causal attention over paged keys and values, and the layout of the pages.
//
// A block holds kKvBlock positions of one sequence, all layers, all key heads. Per layer and head: keys as [d][32], so
// that the scores of a query are a product with a weight tile; values as [d/32][32][32], so that the weighted sum is one
// too. Blocks start at positions divisible by 32 and are taken in order, so a query's result does not depend on which
// other queries are computed with it, nor on how its prompt was cut into pieces.
#pragma once

#include <sys/mman.h>

#include <cmath>

#include "matrix.h"

namespace lorachat {

constexpr int kKvBlock = 32;
static_assert(kKvBlock == kTile, "a block of keys is used as a weight tile");

class KvCache {
 public:
  KvCache(int layers, int kv_heads, int head_dim, int64_t blocks)
      : head_dim_(head_dim), value_tiles_(tiles_of(head_dim)), kv_heads_(kv_heads) {
    head_floats_ = size_t(kKvBlock) * (head_dim + value_tiles_ * kTile);
    block_floats_ = head_floats_ * kv_heads * layers;
    bytes_ = block_floats_ * 4 * blocks;
    // Address space only: pages become real when they are first written.
    void *start = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<float *>(start);
  }

  ~KvCache() { munmap(data_, bytes_); }

  KvCache(const KvCache &) = delete;
  KvCache &operator=(const KvCache &) = delete;

  static size_t block_bytes(int layers, int kv_heads, int head_dim) {
    return size_t(kKvBlock) * (head_dim + tiles_of(head_dim) * kTile) * kv_heads * layers * 4;
  }

  float *keys(int64_t block, int layer, int head) const {
    return data_ + block * block_floats_ + (size_t(layer) * kv_heads_ + head) * head_floats_;
  }

  float *values(int64_t block, int layer, int head) const {
    return keys(block, layer, head) + size_t(kKvBlock) * head_dim_;
  }

  void copy(int64_t source, int64_t target) const {
    std::memcpy(data_ + target * block_floats_, data_ + source * block_floats_, block_floats_ * 4);
  }

  void write(int64_t block, int layer, int head, int offset, const float *key, const float *value) const {
    float *k = keys(block, layer, head) + offset;
    for (int d = 0; d < head_dim_; d++) k[d * kKvBlock] = key[d];
    float *v = values(block, layer, head);
    for (int tile = 0; tile < value_tiles_; tile++) {
      int width = std::min(kTile, head_dim_ - tile * kTile);
      std::memcpy(v + (size_t(tile) * kKvBlock + offset) * kTile, value + tile * kTile, width * 4);
    }
  }

  int head_dim() const { return head_dim_; }
  int value_tiles() const { return value_tiles_; }

 private:
  int head_dim_, value_tiles_, kv_heads_;
  size_t head_floats_, block_floats_, bytes_;
  float *data_;
};

// Consecutive tokens of one sequence: rows [first, first+count) of a flat matrix.
struct Piece {
  int first, count;
  int start;  // position of the first token
  const int32_t *blocks;
};

// The queries of some tokens that share a key head: `rows` of them from `first_query`, counted token by token and
// `group` to a token. q: (tokens, stride), scaled; out likewise.
inline void attend(const KvCache &cache, int layer, int kv_head, const Piece &piece, int group, int first_query, int rows,
                   const float *q, float *out, size_t stride) {
  const int d = cache.head_dim();
  const int last_token = (first_query + rows - 1) / group;
  const int length = piece.start + last_token + 1;
  const int blocks = (length + kKvBlock - 1) / kKvBlock;
  const size_t row_stride = size_t(blocks) * kKvBlock;

  static thread_local std::vector<float> memory;
  memory.resize(size_t(rows) * d + 2 * rows * row_stride);
  float *queries = memory.data();                  // [d][rows]
  float *scores = queries + size_t(rows) * d;      // [rows][positions]
  float *weights = scores + rows * row_stride;     // [positions][rows]
  float total[kMaxRows * kTile];

  auto place = [&](int r) {
    int query = first_query + r;
    return size_t(piece.first + query / group) * stride + size_t(kv_head * group + query % group) * d;
  };
  for (int r = 0; r < rows; r++) {
    const float *from = q + place(r);
    for (int i = 0; i < d; i++) queries[i * rows + r] = from[i];
  }

  Multiply multiply = multiply_for<1, false>(rows);
  for (int b = 0; b < blocks; b++) {
    multiply(queries, reinterpret_cast<const char *>(cache.keys(piece.blocks[b], layer, kv_head)), 0, d, total, false);
    for (int r = 0; r < rows; r++) std::memcpy(scores + r * row_stride + b * kKvBlock, total + r * kTile, kTile * 4);
  }

  float sums[kMaxRows];
  for (int r = 0; r < rows; r++) {
    float *row = scores + r * row_stride;
    const int valid = piece.start + (first_query + r) / group + 1;
    for (int p = valid; p < int(row_stride); p++) row[p] = -INFINITY;
    Vec top = splat(-INFINITY);
    for (int p = 0; p < valid; p += kWidth) top = max(top, load(row + p));
    Vec highest = splat(max(top));
    Vec added = {};
    for (int p = 0; p < int(row_stride); p += kWidth) {
      Vec e = exp(load(row + p) - highest);
      added += e;
      store(row + p, e);
    }
    sums[r] = sum(added);
    for (int p = 0; p < length; p++) weights[size_t(p) * rows + r] = row[p];
  }

  for (int tile = 0; tile < cache.value_tiles(); tile++) {
    float result[kMaxRows * kTile] = {};
    for (int b = 0; b < blocks; b++) {
      const float *values = cache.values(piece.blocks[b], layer, kv_head) + size_t(tile) * kKvBlock * kTile;
      multiply(weights + size_t(b) * kKvBlock * rows, reinterpret_cast<const char *>(values), 0,
               std::min(kKvBlock, length - b * kKvBlock), total, false);
      for (int i = 0; i < rows * kTile; i += kWidth) store(result + i, load(result + i) + load(total + i));
    }
    int width = std::min(kTile, d - tile * kTile);
    for (int r = 0; r < rows; r++) {
      float *to = out + place(r) + tile * kTile;
      for (int i = 0; i < width; i++) to[i] = result[r * kTile + i] / sums[r];
    }
  }
}

}  // namespace lorachat
