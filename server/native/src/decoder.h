// The decoder: one forward pass over the tokens of many sequences at once, and the draws that follow it.
//
// All tokens of a step lie in one flat (tokens, hidden) matrix, whatever sequence they belong to. Every phase works row
// by row or as a product whose rows do not touch each other, so a token's values never depend on its company.
#pragma once

#include <array>
#include <memory>

#include "attention.h"
#include "sampler.h"

namespace lorachat {

// The linear layers of a block, in the order in which server/native/library.py numbers them.
enum Module { kQ, kK, kV, kO, kGate, kUp, kDown, kModules };

// Modules that read the same input share one stacked A matrix.
enum Input { kAttentionInput, kOutputInput, kMlpInput, kDownInput, kInputs };
constexpr int kInputOf[kModules] = {kAttentionInput, kAttentionInput, kAttentionInput, kOutputInput,
                                    kMlpInput,       kMlpInput,       kDownInput};

struct Shape {
  int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, max_positions;
  float rms_eps;
};

struct Layer {
  const float *input_norm = nullptr, *post_attention_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  Matrix linear[kModules];
  const float *bias[kModules] = {};
};

// LoRA matrices of one adapter version, by layer: y += scaling * (x Aᵀ) Bᵀ.
struct Adapter {
  struct Low {
    Matrix b;      // (out, rank)
    int offset;    // of its ranks in the stacked A
    float scaling;
  };
  struct Stack {
    Matrix a;  // (ranks of all modules of this input, in)
    Low low[kModules];
    bool has[kModules] = {};
    int ranks = 0;
  };
  std::vector<std::array<Stack, kInputs>> layers;
  Arena arena;
  int max_ranks = 0;
};

struct Span {
  int first, count;
  const Adapter *adapter;
};

// Rows of a flat matrix: how many, whose tokens they are, and which neighbours have one adapter.
struct Rows {
  int count = 0;
  std::vector<Piece> pieces;
  std::vector<Span> spans;
};

// One row of activations after another, and the same in panels, for the whole and for each span of it.
struct Operand {
  std::vector<float> rows, panels, span_panels;
  std::vector<float> low_panels;  // x Aᵀ of the adapters
  struct High : HighPart {
    int first;  // row of the first
  };
  std::vector<High> high[kModules];  // what the adapters add to each module that reads this
  bool same_adapter = false;         // all rows have one and the same
  Panels whole;
  std::vector<Panels> spans;
};

class Decoder {
 public:
  Decoder(const Shape &shape, int threads, int64_t kv_blocks)
      : shape(shape), pool(threads), cache(shape.layers, shape.kv_heads, shape.head_dim, kv_blocks), layers(shape.layers) {}

  const Shape shape;
  Pool pool;
  Arena arena;
  KvCache cache;
  std::vector<Layer> layers;
  Matrix embedding, output;
  bool tied = true;
  const float *final_norm = nullptr;
  const float *cos = nullptr, *sin = nullptr;  // (max_positions, head_dim / 2)

  // Computes all tokens and writes their keys and values; the hidden states of output_rows (ascending) are kept for
  // logits().
  void forward(const int32_t *token_ids, const Rows &all, const std::vector<int32_t> &output_rows) {
    const int hidden = shape.hidden;
    x_.resize(size_t(all.count) * hidden);
    pool.run(all.count, [&](int r) { (tied ? output : embedding).row(token_ids[r], &x_[size_t(r) * hidden]); });

    // In the last layer only rows whose output is wanted need more than keys and values.
    const bool narrow = int(output_rows.size()) < all.count;
    Rows few;
    if (narrow) few = pick(all, output_rows);

    for (int l = 0; l < shape.layers; l++) {
      const bool last = l == shape.layers - 1;
      normalize(x_, layers[l].input_norm, all, in_);
      if (!(last && narrow)) {
        attention(l, all, all, in_, in_, x_);
        mlp(l, all, x_);
        continue;
      }
      gather(in_.rows, output_rows, hidden, few_in_.rows);
      few_in_.rows.resize(std::max<size_t>(1, few_in_.rows.size()));
      gather(x_, output_rows, hidden, few_x_);
      pack_operand(few_in_, few, hidden);
      attention(l, all, few, in_, few_in_, few_x_);
      if (few.count) mlp(l, few, few_x_);
      x_.swap(few_x_);
    }
  }

  // Logits of the kept outputs [first, first+count): (count, vocab), valid until the next call.
  float *logits(int first, int count) {
    Rows rows;
    rows.count = count;
    std::vector<float> part(x_.begin() + size_t(first) * shape.hidden, x_.begin() + size_t(first + count) * shape.hidden);
    normalize(part, final_norm, rows, in_);
    logits_.resize(size_t(count) * shape.vocab);
    run_products(pool, {Product{&output, in_.whole, logits_.data(), size_t(shape.vocab)}});
    return logits_.data();
  }

 private:
  static Rows pick(const Rows &all, const std::vector<int32_t> &chosen) {
    Rows few;
    few.count = int(chosen.size());
    for (int i = 0; i < few.count; i++) {
      int row = chosen[i];
      for (auto &piece : all.pieces)
        if (row >= piece.first && row < piece.first + piece.count)
          few.pieces.push_back({i, 1, piece.start + row - piece.first, piece.blocks});
      for (auto &span : all.spans)
        if (row >= span.first && row < span.first + span.count) {
          if (!few.spans.empty() && few.spans.back().adapter == span.adapter) few.spans.back().count++;
          else few.spans.push_back({i, 1, span.adapter});
        }
    }
    return few;
  }

  static void gather(const std::vector<float> &from, const std::vector<int32_t> &rows, int width, std::vector<float> &to) {
    to.resize(rows.size() * width);
    for (size_t i = 0; i < rows.size(); i++) std::memcpy(&to[i * width], &from[size_t(rows[i]) * width], size_t(width) * 4);
  }

  // Fills row groups with `fill` and packs them, group by group while they are in cache; then the spans' own panels.
  template <class Fill>
  void fill_operand(Operand &in, const Rows &rows, int width, const Fill &fill) {
    in.rows.resize(std::max<size_t>(1, size_t(rows.count) * width));
    layout(in, rows, width);
    pool.run(in.whole.num_groups(), [&](int g) {
      int first = g * in.whole.group, count = in.whole.rows_of(g);
      for (int r = first; r < first + count; r++) fill(r, &in.rows[size_t(r) * width]);
      if (in.whole.rows > 1)
        pack_panel(&in.rows[size_t(first) * width], width, count, width, const_cast<float *>(in.whole.panel(g)));
    });
    pack_spans(in, rows, width);
  }

  void pack_operand(Operand &in, const Rows &rows, int width) {
    layout(in, rows, width);
    if (in.whole.rows > 1)
      pool.run(in.whole.num_groups(), [&](int g) {
        pack_panel(&in.rows[size_t(g) * in.whole.group * width], width, in.whole.rows_of(g), width,
                   const_cast<float *>(in.whole.panel(g)));
      });
    pack_spans(in, rows, width);
  }

  // A single row is its own panel.
  static void layout(Operand &in, const Rows &rows, int width) {
    if (rows.count > 1) in.panels.resize(size_t(rows.count) * width);
    in.whole = Panels(rows.count > 1 ? in.panels.data() : in.rows.data(), rows.count, width);
    in.spans.clear();
    for (auto &span : rows.spans) {
      if (span.count == rows.count) {
        in.spans.push_back(in.whole);
      } else if (span.count == 1) {
        in.spans.push_back(Panels(&in.rows[size_t(span.first) * width], 1, width));
      } else {
        in.span_panels.resize(size_t(rows.count) * width);
        in.spans.push_back(Panels(&in.span_panels[size_t(span.first) * width], span.count, width));
      }
    }
  }

  void pack_spans(Operand &in, const Rows &rows, int width) {
    for (size_t s = 0; s < rows.spans.size(); s++) {
      const Span &span = rows.spans[s];
      const Panels &panels = in.spans[s];
      if (span.count == rows.count || span.count == 1) continue;
      pool.run(panels.num_groups(), [&](int g) {
        pack_panel(&in.rows[size_t(span.first + g * panels.group) * width], width, panels.rows_of(g), width,
                   const_cast<float *>(panels.panel(g)));
      });
    }
  }

  // Root mean square norm (arXiv:1910.07467).
  void norm_row(const float *x, const float *weight, int width, float *to) const {
    Vec squares[4] = {};
    int i = 0;
    for (; i + 4 * kWidth <= width; i += 4 * kWidth)
      for (int j = 0; j < 4; j++) {
        Vec v = load(x + i + j * kWidth);
        squares[j] += v * v;
      }
    double total = double(sum(squares[0])) + sum(squares[1]) + sum(squares[2]) + sum(squares[3]);
    for (; i < width; i++) total += double(x[i]) * x[i];
    const float scale = float(1.0 / std::sqrt(total / width + shape.rms_eps));
    for (i = 0; i < width; i++) to[i] = weight[i] * (x[i] * scale);
  }

  void normalize(const std::vector<float> &x, const float *weight, const Rows &rows, Operand &in) {
    fill_operand(in, rows, shape.hidden,
                 [&](int r, float *to) { norm_row(&x[size_t(r) * shape.hidden], weight, shape.hidden, to); });
  }

  // --- adapters ---

  static const Adapter::Stack &stack(const Span &span, int layer, int input) { return span.adapter->layers[layer][input]; }

  // First in a phase: their few tiles are long tasks, and the base's many short ones fill up what they leave.
  void add_low(int layer, int input, const Rows &rows, Operand &in) {
    for (auto &high : in.high) high.clear();
    in.same_adapter = rows.spans.size() == 1 && rows.spans[0].count == rows.count;
    if (rows.spans.empty()) return;
    int ranks = 0;
    for (auto &span : rows.spans) ranks = std::max(ranks, span.adapter->max_ranks);
    in.low_panels.resize(size_t(rows.count) * ranks);
    float *to = in.low_panels.data();
    for (size_t s = 0; s < rows.spans.size(); s++) {
      const Span &span = rows.spans[s];
      const auto &stack = span.adapter->layers[layer][input];
      if (!stack.ranks) continue;
      Product product{&stack.a, in.spans[s]};
      for (int module = 0; module < kModules; module++) {
        if (!stack.has[module]) continue;
        const auto &low = stack.low[module];
        product.parts.push_back({low.offset, low.b.k, low.scaling, to});
        Operand::High high;
        high.b = &low.b;
        high.low = Panels(to, span.count, low.b.k);
        high.first = span.first;
        in.high[module].push_back(high);
        to += size_t(span.count) * low.b.k;
      }
      products_.push_back(std::move(product));
    }
  }

  // A module of the base, and with it what the adapter adds if that is one for all rows.
  void add_base(int layer, Module module, Operand &in, float *y, size_t stride, bool add = false) {
    Product product{&layers[layer].linear[module], in.whole, y, stride, add, layers[layer].bias[module]};
    if (in.same_adapter && !in.high[module].empty()) product.high = &in.high[module][0];
    products_.push_back(std::move(product));
  }

  // What several adapters add, each to its own rows: in a phase of its own.
  void add_high(Module module, const Operand &in, float *y, size_t stride) {
    if (in.same_adapter) return;
    for (auto &high : in.high[module]) products_.push_back({high.b, high.low, y + high.first * stride, stride, true});
  }

  void run() {
    if (!products_.empty()) run_products(pool, products_);
    products_.clear();
  }

  // --- the two halves of a layer ---

  // Keys and values of `all`; queries, attention and residual of `some` (all of them, or those picked).
  void attention(int l, const Rows &all, const Rows &some, Operand &in, Operand &some_in, std::vector<float> &x) {
    const Layer &layer = layers[l];
    const int d = shape.head_dim, group = shape.heads / shape.kv_heads;
    const size_t q_width = size_t(shape.heads) * d, kv_width = size_t(shape.kv_heads) * d;
    q_.resize(some.count * q_width);
    k_.resize(all.count * kv_width);
    v_.resize(all.count * kv_width);
    add_low(l, kAttentionInput, all, in);
    if (&some_in != &in) add_low(l, kAttentionInput, some, some_in);
    add_base(l, kQ, some_in, q_.data(), q_width);
    add_base(l, kK, in, k_.data(), kv_width);
    add_base(l, kV, in, v_.data(), kv_width);
    run();
    add_high(kQ, some_in, q_.data(), q_width);
    add_high(kK, in, k_.data(), kv_width);
    add_high(kV, in, v_.data(), kv_width);
    run();

    const float scale = 1.0f / std::sqrt(float(d));
    pool.run(int(some.pieces.size() + all.pieces.size()), [&](int i) {
      const bool keys = i >= int(some.pieces.size());
      const Piece &piece = keys ? all.pieces[i - some.pieces.size()] : some.pieces[i];
      for (int t = 0; t < piece.count; t++) {
        const int row = piece.first + t, position = piece.start + t;
        if (!keys) {
          for (int h = 0; h < shape.heads; h++) rotate(&q_[row * q_width + h * d], layer.q_norm, position, scale);
          continue;
        }
        for (int h = 0; h < shape.kv_heads; h++) {
          float *key = &k_[row * kv_width + h * d];
          rotate(key, layer.k_norm, position, 1.0f);
          cache.write(piece.blocks[position / kKvBlock], l, h, position % kKvBlock, key, &v_[row * kv_width + h * d]);
        }
      }
    });
    if (!some.count) return;

    Operand &out = attended_;
    out.rows.resize(some.count * q_width);
    tasks_.clear();
    for (int p = 0; p < int(some.pieces.size()); p++) {
      const int queries = some.pieces[p].count * group;
      // Whole tokens to a task where a group of heads fits into a register block.
      const int step = group >= kMaxRows ? kMaxRows : kMaxRows / group * group;
      for (int first = 0; first < queries; first += step)
        for (int h = 0; h < shape.kv_heads; h++) tasks_.push_back({p, h, first, std::min(step, queries - first)});
    }
    pool.run(int(tasks_.size()), [&](int i) {
      const auto &task = tasks_[tasks_.size() - 1 - i];  // the longest contexts first
      attend(cache, l, task.head, some.pieces[task.piece], group, task.first, task.count, q_.data(), out.rows.data(), q_width);
    });
    pack_operand(out, some, int(q_width));
    project(l, kO, some, out, x);
  }

  void mlp(int l, const Rows &rows, std::vector<float> &x) {
    const Layer &layer = layers[l];
    const size_t width = shape.intermediate;
    normalize(x, layer.post_attention_norm, rows, mlp_in_);
    gate_.resize(rows.count * width);
    up_.resize(rows.count * width);
    add_low(l, kMlpInput, rows, mlp_in_);
    add_base(l, kGate, mlp_in_, gate_.data(), width);
    add_base(l, kUp, mlp_in_, up_.data(), width);
    run();
    add_high(kGate, mlp_in_, gate_.data(), width);
    add_high(kUp, mlp_in_, up_.data(), width);
    run();
    fill_operand(active_, rows, shape.intermediate, [&](int r, float *to) {
      const float *gate = &gate_[r * width], *up = &up_[r * width];
      size_t i = 0;
      for (; i + kWidth <= width; i += kWidth) {
        Vec g = load(gate + i);
        store(to + i, g / (1.0f + exp(-g)) * load(up + i));
      }
      for (; i < width; i++) to[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    });
    project(l, kDown, rows, active_, x);
  }

  // x += in · Wᵀ, with the adapters' part.
  void project(int l, Module module, const Rows &rows, Operand &in, std::vector<float> &x) {
    add_low(l, kInputOf[module], rows, in);
    add_base(l, module, in, x.data(), shape.hidden, true);
    run();
    add_high(module, in, x.data(), shape.hidden);
    run();
  }

  // Rotary position embedding (arXiv:2104.09864), halves paired as in transformers' Llama; before it Qwen3's norm.
  void rotate(float *head, const float *norm, int position, float scale) const {
    const int half = shape.head_dim / 2;
    if (norm) norm_row(head, norm, shape.head_dim, head);
    const float *c = cos + size_t(position) * half, *s = sin + size_t(position) * half;
    for (int i = 0; i < half; i++) {
      float a = head[i], b = head[half + i];
      head[i] = (a * c[i] - b * s[i]) * scale;
      head[half + i] = (b * c[i] + a * s[i]) * scale;
    }
  }

  struct Attend {
    int piece, head, first, count;
  };

  std::vector<float> x_, few_x_, q_, k_, v_, gate_, up_, logits_;
  Operand in_, few_in_, attended_, mlp_in_, active_;
  std::vector<Product> products_;
  std::vector<Attend> tasks_;
};

}  // namespace lorachat
