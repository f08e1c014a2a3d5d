// The library's C interface; server/native/library.py is its other side. Every call that can fail returns a message, or
// nullptr if all is well. Nothing here checks what Python has checked: shapes, ids and block numbers are trusted.
#include <exception>
#include <string>

#include "decoder.h"

namespace lorachat {

struct RowArguments {
  int32_t first, count, start, num_draws;
  int32_t first_block;  // in the flat list of block ids
  int32_t adapter;      // in the list of adapters, -1 for none
  int32_t first_banned, num_banned, num_banned_draws;
  int32_t first_context, num_prompt, num_output;  // token ids of the text so far, for penalties
  int32_t first_bias, num_bias;
  int32_t first_scored, num_scored;
  int32_t logprobs, prompt_logprobs;  // -1: not asked for
  Sampling sampling;
  uint64_t seed;
  int64_t draw;
  const uint32_t *allowed;  // a bit per token, or nullptr
};

struct StepArguments {
  int32_t num_tokens, num_rows, num_copies, max_top;
  const int32_t *token_ids;
  const RowArguments *rows;
  const int32_t *block_ids;
  const int32_t *copies;  // pairs: source, target
  void *const *adapters;
  const int32_t *banned_ids, *context_ids, *bias_ids, *scored_ids;
  const float *biases;
  // Results. Draws of a row follow each other from first_draw on, scored positions likewise.
  int32_t *num_sampled;                                            // (rows,)
  int32_t *sampled_ids, *sampled_ranks, *sampled_top_ids;          // (draws,), (draws,), (draws, max_top)
  double *sampled_logprobs, *sampled_top_logprobs;                 // (draws,), (draws, max_top)
  int32_t *scored_ranks, *scored_top_ids;                          // (scored,), (scored, max_top)
  double *scored_logprobs, *scored_top_logprobs;                   // (scored,), (scored, max_top)
};

namespace {

// Logits are computed for so many outputs at once, whatever the number of positions that are scored.
constexpr int kOutputsAtOnce = 64;

struct Work {  // of one row in one chunk of outputs
  int row, output;   // the first output of it
  int draws, draw;   // how many draws begin here, and where in the results
  int scored;        // index of the scored position, or -1
};

void tell(const float *logits, int vocab, int token, int top, int slot, int max_top, int32_t *ranks, double *logprobs,
          int32_t *top_ids, double *top_logprobs) {
  double normalizer = log_sum_exp(logits, vocab);
  Scored scored = score(logits, vocab, normalizer, token);
  ranks[slot] = scored.rank;
  logprobs[slot] = scored.logprob;
  if (top > 0)
    top_tokens(logits, vocab, normalizer, top, top_ids + size_t(slot) * max_top, top_logprobs + size_t(slot) * max_top);
}

void penalize(float *logits, int vocab, const StepArguments &a, const RowArguments &row, const int32_t *drafts,
              int num_drafts) {
  const Sampling &s = row.sampling;
  for (int i = 0; i < row.num_bias; i++) logits[a.bias_ids[row.first_bias + i]] += a.biases[row.first_bias + i];
  const bool repetition = s.repetition_penalty != 1, counted = s.presence_penalty != 0 || s.frequency_penalty != 0;
  if (repetition || counted) {
    static thread_local std::vector<int32_t> counts;  // of the answer's tokens; -1 marks a token of the prompt only
    counts.assign(vocab, 0);
    const int32_t *context = a.context_ids + row.first_context;
    for (int i = 0; i < row.num_prompt; i++) counts[context[i]] = -1;
    auto count = [&](int token) { counts[token] = std::max(counts[token], 0) + 1; };
    for (int i = 0; i < row.num_output; i++) count(context[row.num_prompt + i]);
    for (int i = 0; i < num_drafts; i++) count(drafts[i]);
    for (int t = 0; t < vocab; t++) {
      if (!counts[t]) continue;
      if (repetition) logits[t] = logits[t] > 0 ? logits[t] / s.repetition_penalty : logits[t] * s.repetition_penalty;
      if (counts[t] > 0) logits[t] -= s.frequency_penalty * counts[t] + s.presence_penalty;
    }
  }
}

void ban(float *x, int vocab, const int32_t *ids, int count) {
  static thread_local std::vector<float> before;
  before.resize(count);
  for (int i = 0; i < count; i++) before[i] = x[ids[i]];
  for (int i = 0; i < count; i++) x[ids[i]] = -INFINITY;
  if (highest(x, vocab) > -INFINITY) return;
  // A grammar that is complete allows the end only, whatever min_tokens says.
  for (int i = 0; i < count; i++) x[ids[i]] = before[i];
}

void draw_row(float *logits, int vocab, const StepArguments &a, const Work &work) {
  const RowArguments &row = a.rows[work.row];
  const int32_t *drafts = a.token_ids + row.first + row.count - (row.num_draws - 1);
  int sampled = 0;
  for (int i = 0; i < row.num_draws; i++) {
    float *x = logits + size_t(i) * vocab;
    // Log-probabilities are of the model's own distribution, so they come before anything changes the logits; which
    // token they are told of is known only afterwards.
    static thread_local std::vector<float> raw;
    if (row.logprobs >= 0) raw.assign(x, x + vocab);
    penalize(x, vocab, a, row, drafts, i);
    if (row.allowed)
      for (int t = 0; t < vocab; t++)
        if (!(row.allowed[t / 32] >> (t % 32) & 1)) x[t] = -INFINITY;
    if (i < row.num_banned_draws) ban(x, vocab, a.banned_ids + row.first_banned, row.num_banned);
    int token = draw(x, vocab, row.sampling, uniform(row.seed, uint64_t(row.draw + i)));
    int slot = work.draw + i;
    a.sampled_ids[slot] = token;
    if (row.logprobs >= 0)
      tell(raw.data(), vocab, token, row.logprobs, slot, a.max_top, a.sampled_ranks, a.sampled_logprobs,
           a.sampled_top_ids, a.sampled_top_logprobs);
    sampled++;
    if (i + 1 < row.num_draws && token != drafts[i]) break;
  }
  a.num_sampled[work.row] = sampled;
}

void step(Decoder &decoder, const StepArguments &a) {
  for (int i = 0; i < a.num_copies; i++) decoder.cache.copy(a.copies[2 * i], a.copies[2 * i + 1]);
  Rows all;
  all.count = a.num_tokens;
  std::vector<int32_t> outputs;
  std::vector<Work> work;
  int draws = 0;
  for (int i = 0; i < a.num_rows; i++) {
    const RowArguments &row = a.rows[i];
    all.pieces.push_back({row.first, row.count, row.start, a.block_ids + row.first_block});
    if (row.adapter >= 0) {
      auto *adapter = static_cast<const Adapter *>(a.adapters[row.adapter]);
      if (!all.spans.empty() && all.spans.back().adapter == adapter) all.spans.back().count += row.count;
      else all.spans.push_back({row.first, row.count, adapter});
    }
    // Scored positions first, then drawing ones; a position can be both only as the last of a prompt, which has
    // nothing known after it.
    for (int t = 0; t < row.num_scored; t++) {
      work.push_back({i, int(outputs.size()), 0, 0, row.first_scored + t});
      outputs.push_back(row.first + t);
    }
    a.num_sampled[i] = 0;
    if (row.num_draws) {
      work.push_back({i, int(outputs.size()), row.num_draws, draws, -1});
      for (int d = 0; d < row.num_draws; d++) outputs.push_back(row.first + row.count - row.num_draws + d);
      draws += row.num_draws;
    }
  }
  decoder.forward(a.token_ids, all, outputs);

  const int vocab = decoder.shape.vocab;
  for (size_t first = 0; first < work.size();) {
    size_t last = first;
    int begin = work[first].output, count = 0;
    while (last < work.size() && (count == 0 || count + std::max(1, work[last].draws) <= kOutputsAtOnce))
      count += std::max(1, work[last++].draws);
    float *logits = decoder.logits(begin, count);
    decoder.pool.run(int(last - first), [&](int i) {
      const Work &w = work[first + i];
      float *own = logits + size_t(w.output - begin) * vocab;
      if (w.draws) {
        draw_row(own, vocab, a, w);
      } else {
        tell(own, vocab, a.scored_ids[w.scored], a.rows[w.row].prompt_logprobs, w.scored, a.max_top, a.scored_ranks,
             a.scored_logprobs, a.scored_top_ids, a.scored_top_logprobs);
      }
    });
    first = last;
  }
}

// Messages of failed calls; read before the next call of the same thread.
const char *keep(const std::string &message) {
  static thread_local std::string kept;
  kept = message;
  return kept.c_str();
}

template <class Call>
const char *guarded(const Call &call) {
  try {
    call();
    return nullptr;
  } catch (const std::bad_alloc &) {
    return keep("out of memory");
  } catch (const std::exception &error) {
    return keep(error.what());
  }
}

}  // namespace
}  // namespace lorachat

using namespace lorachat;

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// 3: AVX-512, 2: AVX2 with FMA, 1: neither. Asked of the plain variant, which runs everywhere.
EXPORT int lorachat_cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return 3;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 2;
#endif
  return 1;
}

// So that the other side can check that it agrees on the layout.
EXPORT int lorachat_struct_bytes(int number) {
  return int(number == 0 ? sizeof(Shape) : number == 1 ? sizeof(RowArguments) : sizeof(StepArguments));
}

EXPORT const char *lorachat_variant() { return kVariant; }
EXPORT int lorachat_block_size() { return kKvBlock; }
EXPORT int64_t lorachat_block_bytes(const Shape *shape) {
  return int64_t(KvCache::block_bytes(shape->layers, shape->kv_heads, shape->head_dim));
}

EXPORT const char *lorachat_create(const Shape *shape, int threads, int64_t kv_blocks, void **decoder) {
  return guarded([&] { *decoder = new Decoder(*shape, threads, kv_blocks); });
}

EXPORT void lorachat_destroy(void *decoder) { delete static_cast<Decoder *>(decoder); }

// One linear layer's weight, (n, k) row-major, as float32 or as bfloat16 bits. layer -1: module 0 is the output matrix,
// module 1 an embedding of its own. *exact_bf16: how it is stored. The source may be dropped afterwards.
EXPORT const char *lorachat_set_matrix(void *handle, int layer, int module, const float *floats, const uint16_t *halves, int n,
                                int k, int *exact_bf16) {
  return guarded([&] {
    auto *decoder = static_cast<Decoder *>(handle);
    Matrix matrix = pack({floats, halves}, n, k, decoder->arena, decoder->pool);
    *exact_bf16 = matrix.exact_bf16;
    if (layer >= 0) {
      decoder->layers[layer].linear[module] = matrix;
    } else if (module == 0) {
      decoder->output = matrix;
    } else {
      decoder->embedding = matrix;
      decoder->tied = false;
    }
  });
}

// A vector, copied. kind: 0 input norm, 1 post-attention norm, 2 q norm, 3 k norm, 10 + module: bias.
// layer -1: 0 final norm, 1 cosines, 2 sines.
EXPORT const char *lorachat_set_vector(void *handle, int layer, int kind, const float *values, int64_t count) {
  return guarded([&] {
    auto *decoder = static_cast<Decoder *>(handle);
    auto *copy = static_cast<float *>(decoder->arena.allocate(size_t(count) * 4));
    std::memcpy(copy, values, size_t(count) * 4);
    if (layer < 0) {
      (kind == 0 ? decoder->final_norm : kind == 1 ? decoder->cos : decoder->sin) = copy;
      return;
    }
    Layer &to = decoder->layers[layer];
    if (kind >= 10) to.bias[kind - 10] = copy;
    else (kind == 0 ? to.input_norm : kind == 1 ? to.post_attention_norm : kind == 2 ? to.q_norm : to.k_norm) = copy;
  });
}

EXPORT int64_t lorachat_weight_bytes(void *decoder) { return int64_t(static_cast<Decoder *>(decoder)->arena.used()); }

EXPORT const char *lorachat_create_adapter(void *decoder, void **adapter) {
  return guarded([&] {
    auto *created = new Adapter;
    created->layers.resize(static_cast<Decoder *>(decoder)->layers.size());
    *adapter = created;
  });
}

EXPORT void lorachat_destroy_adapter(void *adapter) { delete static_cast<Adapter *>(adapter); }

// The pairs of one layer that read the same input (see kInputOf): a (ranks of all, in) stacked, b each (out, rank).
EXPORT const char *lorachat_set_adapter(void *handle, void *adapter_handle, int layer, int input, const float *a, int ranks,
                                 int in, int count, const int *modules, const int *rank_of, const int *out_of,
                                 const float *const *bs, const float *scalings) {
  return guarded([&] {
    auto *decoder = static_cast<Decoder *>(handle);
    auto *adapter = static_cast<Adapter *>(adapter_handle);
    Adapter::Stack &stack = adapter->layers[layer][input];
    stack.a = pack({a, nullptr}, ranks, in, adapter->arena, decoder->pool);
    stack.ranks = ranks;
    adapter->max_ranks = std::max(adapter->max_ranks, ranks);
    int offset = 0;
    for (int i = 0; i < count; i++) {
      auto &low = stack.low[modules[i]];
      low.b = pack({bs[i], nullptr}, out_of[i], rank_of[i], adapter->arena, decoder->pool);
      low.offset = offset;
      low.scaling = scalings[i];
      stack.has[modules[i]] = true;
      offset += rank_of[i];
    }
  });
}

EXPORT const char *lorachat_step(void *decoder, const StepArguments *arguments) {
  return guarded([&] { step(*static_cast<Decoder *>(decoder), *arguments); });
}

}  // extern "C"
