// Threads that share the tasks of one phase after another, with as little between two phases as possible.
//
// Tasks are handed out one by one, so a thread that the system takes a core from delays only the task it holds. Which
// thread runs a task never changes a result. Waiting threads spin for a short time, then sleep: between two steps the
// cores belong to the rest of the process.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace lorachat {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    stopping_.store(true);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    for (auto &worker : workers_) worker.join();
  }

  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  // Calls task(i) for i in [0, count), on all threads; returns when all are done. One caller at a time.
  template <class Task>
  void run(int count, const Task &task) {
    if (workers_.empty() || count <= 1) {
      for (int i = 0; i < count; i++) task(i);
      return;
    }
    uint32_t phase = ++phase_;
    Job &job = jobs_[phase % kJobs];
    job.call = [](const void *t, int i) { (*static_cast<const Task *>(t))(i); };
    job.task = &task;
    job.done.store(0, std::memory_order_relaxed);
    job.count.store(count, std::memory_order_relaxed);
    next_.store(uint64_t(phase) << 32, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take_tasks(phase);
    for (int spins = 0; job.done.load(std::memory_order_acquire) < count; spins++) {
      // A worker that holds a task may have lost its core to something else: let it have this one.
      if (spins > kSpins) std::this_thread::yield();
      else relax();
    }
  }

 private:
  static constexpr int kJobs = 8;
  static constexpr int kSpins = 4000;  // some 50 to 100 microseconds

  struct Job {
    void (*call)(const void *, int);
    const void *task;
    std::atomic<int> count;
    std::atomic<int> done{0};
  };

  void take_tasks(uint32_t phase) {
    Job &job = jobs_[phase % kJobs];
    uint64_t ticket = next_.load(std::memory_order_acquire);
    // A late worker may read a job that is being replaced; then the phase in the ticket has moved on and the
    // exchange below fails before anything of the job is used.
    while (uint32_t(ticket >> 32) == phase && int(uint32_t(ticket)) < job.count.load(std::memory_order_relaxed)) {
      if (!next_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      job.call(job.task, int(uint32_t(ticket)));
      job.done.fetch_add(1, std::memory_order_release);
      ticket = next_.load(std::memory_order_acquire);
    }
  }

  void work() {
    uint32_t seen = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
      int spins = 0;
      while (uint32_t(next_.load(std::memory_order_acquire) >> 32) == seen) {
        if (stopping_.load(std::memory_order_relaxed)) return;
        if (++spins < kSpins) {
          relax();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] {
          return stopping_.load() || uint32_t(next_.load(std::memory_order_seq_cst) >> 32) != seen;
        });
        sleeping_.fetch_sub(1);
      }
      seen = uint32_t(next_.load(std::memory_order_acquire) >> 32);
      take_tasks(seen);
    }
  }

  std::vector<std::thread> workers_;
  Job jobs_[kJobs];
  alignas(64) std::atomic<uint64_t> next_{0};  // phase in the upper half, next task in the lower
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  uint32_t phase_ = 0;
};

}  // namespace lorachat
