// Weight matrices in tiles, stored as bfloat16 where that is exact, and their product with float32 activations.
//
// y = x·Wᵀ. W (n, k) is cut into tiles of 32 output columns; a tile is k-major: [k][32]. As bfloat16 a tile row is 16
// 32-bit words, column i in the lower half of word i and column i+16 in the upper half, so that one load and two cheap
// operations give 32 float32 weights. x comes in panels: groups of up to kMaxRows rows, each k-major ([k][rows]).
//
// Every element of y is a sum over k in blocks of kBlock, each block in one chain of fused multiply-adds, the blocks
// added in order. That order does not depend on how many rows there are, how they are grouped, or on the number of
// threads: a row's result is the same bits in any company.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace lorachat {

constexpr int kTile = 32;
constexpr int kBlock = 256;
// Rows of a register block: as many as leave registers for the weights (32 registers, else 16).
constexpr int kMaxRows = kWidth == 16 ? 14 : 6;
constexpr int kLaneGroups = 16 / kWidth;

inline int tiles_of(int n) { return (n + kTile - 1) / kTile; }

// Memory that is never given back before the end, in pieces of whole huge pages where the system has them.
class Arena {
 public:
  ~Arena() {
    for (auto &chunk : chunks_) munmap(chunk.start, chunk.bytes);
  }

  void *allocate(size_t bytes) {
    bytes = (bytes + 63) & ~size_t(63);
    if (chunks_.empty() || chunks_.back().used + bytes > chunks_.back().bytes) {
      size_t size = std::max(bytes, kChunk);
      size = (size + kHuge - 1) & ~(kHuge - 1);
      void *start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (start == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
      madvise(start, size, MADV_HUGEPAGE);
#endif
      chunks_.push_back({start, size, 0});
    }
    Chunk &chunk = chunks_.back();
    void *result = static_cast<char *>(chunk.start) + chunk.used;
    chunk.used += bytes;
    return result;
  }

  size_t used() const {
    size_t total = 0;
    for (auto &chunk : chunks_) total += chunk.used;
    return total;
  }

 private:
  static constexpr size_t kHuge = size_t(2) << 20;
  static constexpr size_t kChunk = size_t(32) << 20;
  struct Chunk {
    void *start;
    size_t bytes, used;
  };
  std::vector<Chunk> chunks_;
};

struct Matrix {
  int n = 0, k = 0;
  bool exact_bf16 = false;
  const char *tiles = nullptr;

  size_t tile_bytes() const { return size_t(k) * kTile * (exact_bf16 ? 2 : 4); }
  size_t bytes() const { return tile_bytes() * tiles_of(n); }
  const char *tile(int t) const { return tiles + t * tile_bytes(); }

  // Row `row` of W as k floats.
  void row(int row, float *out) const {
    const char *base = tile(row / kTile);
    int column = row % kTile;
    if (exact_bf16) {
      auto *words = reinterpret_cast<const uint16_t *>(base) + 2 * (column % 16) + column / 16;
      for (int i = 0; i < k; i++) {
        uint32_t bits = uint32_t(words[size_t(i) * kTile]) << 16;
        std::memcpy(out + i, &bits, 4);
      }
    } else {
      auto *values = reinterpret_cast<const float *>(base) + column;
      for (int i = 0; i < k; i++) out[i] = values[size_t(i) * kTile];
    }
  }
};

// Where the weights come from: (n, k) row-major, float32 or the upper halves of float32.
struct Source {
  const float *floats;
  const uint16_t *halves;
};

inline bool is_exact_bf16(const float *values, size_t count, Pool &pool) {
  const size_t piece = size_t(1) << 18;
  std::atomic<bool> exact{true};
  pool.run(int((count + piece - 1) / piece), [&](int i) {
    if (!exact.load(std::memory_order_relaxed)) return;
    size_t end = std::min(count, (i + 1) * piece);
    uint32_t low = 0;
    for (size_t j = i * piece; j < end; j++) {
      uint32_t bits;
      std::memcpy(&bits, values + j, 4);
      low |= bits & 0xffff;
    }
    if (low) exact.store(false, std::memory_order_relaxed);
  });
  return exact.load();
}

inline Matrix pack(Source source, int n, int k, Arena &arena, Pool &pool) {
  Matrix m;
  m.n = n;
  m.k = k;
  m.exact_bf16 = source.halves || is_exact_bf16(source.floats, size_t(n) * k, pool);
  char *memory = static_cast<char *>(arena.allocate(m.bytes()));
  m.tiles = memory;
  pool.run(tiles_of(n), [&](int t) {
    char *tile = memory + t * m.tile_bytes();
    int columns = std::min(kTile, n - t * kTile);
    if (columns < kTile) std::memset(tile, 0, m.tile_bytes());
    constexpr int piece = 64;  // of k: what is written stays in the first-level cache
    for (int first = 0; first < k; first += piece) {
      int last = std::min(k, first + piece);
      for (int c = 0; c < columns; c++) {
        size_t from = size_t(t * kTile + c) * k;
        if (!m.exact_bf16) {
          float *to = reinterpret_cast<float *>(tile) + c;
          for (int i = first; i < last; i++) to[size_t(i) * kTile] = source.floats[from + i];
          continue;
        }
        uint16_t *to = reinterpret_cast<uint16_t *>(tile) + 2 * (c % 16) + c / 16;
        if (source.halves) {
          for (int i = first; i < last; i++) to[size_t(i) * kTile] = source.halves[from + i];
        } else {
          for (int i = first; i < last; i++) {
            uint32_t bits;
            std::memcpy(&bits, source.floats + from + i, 4);
            to[size_t(i) * kTile] = uint16_t(bits >> 16);
          }
        }
      }
    }
  });
  return m;
}

// Rows of activations, in groups. Group g holds rows [g*group, …) as [k][rows of the group].
struct Panels {
  const float *data = nullptr;
  int rows = 0, k = 0, group = 0;

  Panels() = default;
  Panels(const float *data, int rows, int k) : data(data), rows(rows), k(k) {
    int groups = std::max(1, (rows + kMaxRows - 1) / kMaxRows);
    group = (rows + groups - 1) / groups;
  }

  int num_groups() const { return rows ? (rows + group - 1) / group : 0; }
  int rows_of(int g) const { return std::min(group, rows - g * group); }
  const float *panel(int g) const { return data + size_t(g) * group * k; }
};

// x: rows of `stride` floats, the first of the group. to: [k][rows].
inline void pack_panel(const float *x, size_t stride, int rows, int k, float *to, float scale = 1.0f) {
  constexpr int piece = 32;
  for (int first = 0; first < k; first += piece) {
    int last = std::min(k, first + piece);
    for (int r = 0; r < rows; r++) {
      const float *from = x + r * stride;
      for (int i = first; i < last; i++) to[size_t(i) * rows + r] = from[i] * scale;
    }
  }
}

// Tile rows ahead: far enough for memory into the second-level cache, and from there into the first.
constexpr int kFar = 128, kNear = 16;

// Sums of one lane group of `Tiles` neighbouring tiles for `Rows` rows, over `count` values of k.
template <int Rows, int Tiles, int Groups, bool Bf16>
inline void accumulate(const float *a, const char *w, size_t tile_bytes, int first_group, int count,
                       Vec (&acc)[Tiles][Groups][2][Rows]) {
  constexpr size_t row_bytes = kTile * (Bf16 ? 2 : 4);
  for (int i = 0; i < count; i++) {
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; t++) {
      const char *row = w + t * tile_bytes + i * row_bytes;
      for (size_t line = 0; line < row_bytes; line += 64) {
        __builtin_prefetch(row + kFar * row_bytes + line, 0, 2);
        __builtin_prefetch(row + kNear * row_bytes + line);
      }
#pragma GCC unroll 4
      for (int g = 0; g < Groups; g++) {
        int lane = (first_group + g) * kWidth;
        Vec low, high;
        if (Bf16) {
          VecU words = load_bits(row + lane * 4);
          low = (Vec)(words << 16);
          high = (Vec)(words & 0xffff0000u);
        } else {
          low = load(reinterpret_cast<const float *>(row) + lane);
          high = load(reinterpret_cast<const float *>(row) + 16 + lane);
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; r++) {
          acc[t][g][0][r] += low * a[r];
          acc[t][g][1][r] += high * a[r];
        }
      }
    }
    a += Rows;
  }
}

// total: [Tiles][Rows][32], the products of a panel with `Tiles` neighbouring tiles; added to what is there if `onto`.
template <int Rows, int Tiles, bool Bf16>
void multiply(const float *a, const char *w, size_t tile_bytes, int k, float *total, bool onto) {
  // With few rows all lane groups fit into registers at once, and the weights pass by once.
  constexpr int Groups = Rows * Tiles * kLaneGroups * 2 <= kMaxRows * 2 ? kLaneGroups : 1;
  constexpr size_t row_bytes = kTile * (Bf16 ? 2 : 4);
  for (int first = 0; first < k || first == 0; first += kBlock) {
    int count = std::min(kBlock, k - first);
    for (int lanes = 0; lanes < kLaneGroups; lanes += Groups) {
      Vec acc[Tiles][Groups][2][Rows] = {};
      accumulate<Rows, Tiles, Groups, Bf16>(a + size_t(first) * Rows, w + first * row_bytes, tile_bytes, lanes, count,
                                            acc);
#pragma GCC unroll 4
      for (int t = 0; t < Tiles; t++)
#pragma GCC unroll 4
        for (int g = 0; g < Groups; g++)
#pragma GCC unroll 2
          for (int half = 0; half < 2; half++)
#pragma GCC unroll 16
            for (int r = 0; r < Rows; r++) {
              float *to = total + (t * Rows + r) * kTile + half * 16 + (lanes + g) * kWidth;
              store(to, first || onto ? load(to) + acc[t][g][half][r] : acc[t][g][half][r]);
            }
    }
  }
}

using Multiply = void (*)(const float *, const char *, size_t, int, float *, bool);

template <int Tiles, bool Bf16>
inline Multiply multiply_for(int rows) {
  static const Multiply table[] = {
      multiply<1, Tiles, Bf16>, multiply<2, Tiles, Bf16>, multiply<3, Tiles, Bf16>,
      multiply<4, Tiles, Bf16>, multiply<5, Tiles, Bf16>, multiply<6, Tiles, Bf16>,
#if defined(__AVX512F__)
      multiply<7, Tiles, Bf16>, multiply<8, Tiles, Bf16>, multiply<9, Tiles, Bf16>,
      multiply<10, Tiles, Bf16>, multiply<11, Tiles, Bf16>, multiply<12, Tiles, Bf16>,
      multiply<13, Tiles, Bf16>, multiply<14, Tiles, Bf16>,
#endif
  };
  return table[rows - 1];
}

// Up to so many rows two tiles are taken at once: more independent chains, and two streams from memory.
constexpr int kPairRows = kMaxRows / 2;

template <bool Bf16>
inline Multiply multiply_pair(int rows) {
  static const Multiply table[] = {
      multiply<1, 2, Bf16>, multiply<2, 2, Bf16>, multiply<3, 2, Bf16>,
#if defined(__AVX512F__)
      multiply<4, 2, Bf16>, multiply<5, 2, Bf16>, multiply<6, 2, Bf16>, multiply<7, 2, Bf16>,
#endif
  };
  return table[rows - 1];
}

// The low-rank side of an adapter's modules that read one input: where the columns of x·Aᵀ go.
struct LowPart {
  int offset, rank;  // its columns
  float scaling;
  float *panels;  // grouped as x is: per group [rank][rows]
};

// What B of one adapter adds to some rows: low·Bᵀ, with low in panels.
struct HighPart {
  const Matrix *b = nullptr;
  Panels low;
};

// One product as tasks over tiles: y = x·Wᵀ (+ bias), or y += x·Wᵀ; or, with parts, x·Aᵀ into panels.
struct Product {
  const Matrix *w;
  Panels x;
  float *y = nullptr;  // row r of x goes to y + r * stride
  size_t stride = 0;
  bool add = false;
  const float *bias = nullptr;
  const HighPart *high = nullptr;  // added too, if all rows have the same adapter; low comes from the same phase
  std::vector<LowPart> parts;

  // open: tasks of this phase that still write low panels.
  void run(int first_tile, int last_tile, std::atomic<int> &open) const {
    float total[2 * kMaxRows * kTile];
    for (int t = first_tile; t < last_tile;) {
      const int at_once = x.rows <= kPairRows && t + 1 < last_tile ? 2 : 1;
      for (int g = 0; g < x.num_groups(); g++) {
        const int rows = x.rows_of(g);
        kernel(*w, rows, at_once)(x.panel(g), w->tile(t), w->tile_bytes(), w->k, total, false);
        if (high && !add && !bias) multiply_high(t, g, at_once, total, open, true);
        for (int i = 0; i < at_once; i++) {
          float *part = total + i * rows * kTile;
          if (!parts.empty()) scatter(part, t + i, g);
          else finish(part, t + i, g);
        }
        if (high && (add || bias)) {
          multiply_high(t, g, at_once, total, open, false);
          for (int i = 0; i < at_once; i++) plus(total + i * rows * kTile, t + i, g);
        }
      }
      t += at_once;
    }
    if (!parts.empty()) open.fetch_sub(1, std::memory_order_release);
  }

 private:
  static Multiply kernel(const Matrix &m, int rows, int tiles) {
    if (tiles == 2) return m.exact_bf16 ? multiply_pair<true>(rows) : multiply_pair<false>(rows);
    return m.exact_bf16 ? multiply_for<1, true>(rows) : multiply_for<1, false>(rows);
  }

  void multiply_high(int t, int g, int at_once, float *total, const std::atomic<int> &open, bool onto) const {
    wait(open);
    const Matrix &b = *high->b;
    kernel(b, x.rows_of(g), at_once)(high->low.panel(g), b.tile(t), b.tile_bytes(), b.k, total, onto);
  }

  // Tasks are taken in order and the writers come first, so each is done or in another thread's hands.
  static void wait(const std::atomic<int> &open) {
    for (int spins = 0; open.load(std::memory_order_acquire) > 0; spins++) {
      if (spins > 1000) std::this_thread::yield();
      else relax();
    }
  }

  // y and what is added to it later are summed in the same order whether that happens here or in a phase of its own.
  void finish(const float *total, int t, int g) const {
    const int column = t * kTile, columns = std::min(kTile, w->n - column);
    for (int r = 0; r < x.rows_of(g); r++, total += kTile) {
      float *to = y + (size_t(g) * x.group + r) * stride + column;
      if (columns == kTile && !bias) {
        for (int c = 0; c < kTile; c += kWidth) store(to + c, add ? load(to + c) + load(total + c) : load(total + c));
        continue;
      }
      for (int c = 0; c < columns; c++) {
        float value = total[c] + (bias ? bias[column + c] : 0.0f);
        to[c] = add ? to[c] + value : value;
      }
    }
  }

  void plus(const float *total, int t, int g) const {
    const int column = t * kTile, columns = std::min(kTile, w->n - column);
    for (int r = 0; r < x.rows_of(g); r++, total += kTile) {
      float *to = y + (size_t(g) * x.group + r) * stride + column;
      if (columns == kTile) {
        for (int c = 0; c < kTile; c += kWidth) store(to + c, load(to + c) + load(total + c));
        continue;
      }
      for (int c = 0; c < columns; c++) to[c] += total[c];
    }
  }

  void scatter(const float *total, int t, int g) const {
    const int rows = x.rows_of(g);
    for (auto &part : parts) {
      const int first = std::max(part.offset, t * kTile), last = std::min(part.offset + part.rank, (t + 1) * kTile);
      for (int column = first; column < last; column++) {
        float *to = part.panels + size_t(g) * x.group * part.rank + size_t(column - part.offset) * rows;
        for (int r = 0; r < rows; r++) to[r] = total[r * kTile + column - t * kTile] * part.scaling;
      }
    }
  }
};

// Of a task: values of k times rows, for each of which a tile takes a cycle or so.
constexpr int64_t kLeastWork = 4096;

// Runs several products at once: all their tiles are tasks of one phase. Those that write low panels come first.
inline void run_products(Pool &pool, const std::vector<Product> &products) {
  struct Task {
    const Product *product;
    int first, last;
  };
  static thread_local std::vector<Task> tasks;
  tasks.clear();
  std::atomic<int> open{0};
  for (auto &product : products) {
    if (!product.x.rows) continue;
    const int tiles = tiles_of(product.w->n);
    // Small enough to share evenly and to survive the loss of a core, large enough that taking a task costs nothing
    // beside it: that matters for the short sums of adapters.
    const int64_t tile_work = int64_t(product.w->k) * product.x.rows;
    int piece = std::clamp(tiles / (pool.threads() * 8), product.x.rows <= kPairRows ? 2 : 1, 16);
    piece = std::max<int>(piece, int(kLeastWork / std::max<int64_t>(1, tile_work)));
    piece = std::min(piece, (tiles + pool.threads() - 1) / pool.threads());
    for (int t = 0; t < tiles; t += piece) {
      tasks.push_back({&product, t, std::min(tiles, t + piece)});
      if (!product.parts.empty()) open.fetch_add(1, std::memory_order_relaxed);
    }
  }
  const Task *list = tasks.data();
  pool.run(int(tasks.size()), [list, &open](int i) { list[i].product->run(list[i].first, list[i].last, open); });
}

}  // namespace lorachat
