// Matrices of any size: each is the work of the threads of a team, which is a block or a part of one. A thread has whole
// columns in one step, whole rows in the next, and all threads of a block meet between them.
#pragma once
#include "doubly_stochastic/problem.cuh"

namespace ucmkd {
namespace doubly_stochastic {

constexpr int kMostThreads = 128;  // of a block

// Elements that a matrix needs, in shared memory or in p.work.
UK_HOST_DEVICE int64_t team_size(const Steps& s, bool backward) {
  const int64_t p = s.rows, q = s.columns, pairs = s.column_steps() + 1, stride = q | 1;
  return (backward ? 2 : 1) * p * stride + 4 * p + 4 * q + (backward ? 2 * pairs * (p + q) : 0);
}

template <class S, bool kBackward>
class Team {
 public:
  using T = Wide<S>;

  __device__ Team(const Problem<S>& problem, T* memory, int thread, int threads)
      : p_(problem), p(problem.p), q(problem.q), stride_(problem.q | 1), thread_(thread), threads_(threads) {
    auto take = [&](int64_t count) {
      T* begin = memory;
      memory += count;
      return begin;
    };
    const int64_t pairs = problem.s.column_steps() + 1;
    a_ = take(int64_t(p) * stride_), u_ = take(p), z_ = take(p), bar_u_ = take(p), row_mark_ = take(p);
    v_ = take(q), w_ = take(q), bar_v_ = take(q), column_mark_ = take(q);
    if (kBackward) {
      g_ = take(int64_t(p) * stride_);
      kept_u_ = take(pairs * p), of_z_ = take(pairs * p), kept_v_ = take(pairs * q), of_w_ = take(pairs * q);
    }
  }

  // Matrix k; all threads of the block call this as often. `mine`: what is written is this team's.
  __device__ void run(int64_t k, bool mine) {
    load(p_.logits + k * p_.size(), a_);
    cuda::sync_block();
    const bool good = p_.s.added ? read_softmax() : read();
    cuda::sync_block();
    iterate();
    const bool beyond = good && !trusted();
    if (mine && thread_ == 0) p_.beyond[k] = beyond;
    if (kBackward) {
      load(p_.upstream + k * p_.size(), g_);
      cuda::sync_block();
      adjoint();
    }
    for (int e = thread_; e < p_.size(); e += threads_) {
      const int r = e / q, c = e % q;
      const T x = !good ? T(NAN) : kBackward ? g_[r * stride_ + c] : u_[r] * a_[r * stride_ + c] * v_[c];
      if (mine) p_.out[k * p_.size() + p_.place(r, c)] = cuda::narrow<S>(x);
    }
    cuda::sync_block();  // before the next matrix
  }

 private:
  __device__ void load(const S* from, T* to) const {
    for (int e = thread_; e < p_.size(); e += threads_)
      to[e / q * stride_ + e % q] = cuda::wide(from[p_.place(e / q, e % q)]);
  }
  __device__ T& at(int r, int c) { return a_[r * stride_ + c]; }

  // As read and read_shifted of thread.cuh; a mark is the largest |x| of a column, +inf where it is refused.
  __device__ bool read() {
    T* top_c = bar_v_;
    for (int c = thread_; c < q; c += threads_) {
      T top = -T(INFINITY), size = 0;
      bool shut = false;
      for (int r = 0; r < p; ++r) {
        const T x = at(r, c);
        top = cuda::larger_of(top, x);
        size = !(x <= kMost<T>) ? T(INFINITY) : closed(x) ? size : cuda::larger_of(size, x < 0 ? -x : x);
        shut = shut || closed(x);
      }
      top_c[c] = top;
      column_mark_[c] = closed(top) ? T(INFINITY) : size;
      w_[c] = T(1);
    }
    cuda::sync_block();
    T size = 0;
    for (int c = 0; c < q; ++c) size = cuda::larger_of(size, column_mark_[c]);
    const bool wide = size > Range<T>::kNarrow;
    for (int r = thread_; r < p; r += threads_) {
      T top = -T(INFINITY);
      for (int c = 0; c < q; ++c) top = cuda::larger_of(top, at(r, c) - top_c[c]);
      const T d = wide && !closed(top) ? top : T(0);
      bool dropped = false;
      for (int c = 0; c < q; ++c) at(r, c) = shifted(at(r, c), wide ? top_c[c] : T(0), d, &dropped);
      row_mark_[r] = closed(top) ? T(2) : dropped ? T(1) : T(0);
      u_[r] = cuda::exp_of(d), z_[r] = p_.eps > 0 ? cuda::exp_of(-d) : T(1);
    }
    cuda::sync_block();
    bool good = size <= kMost<T>;
    dropped_ = false;
    for (int r = 0; r < p; ++r) {
      good = good && row_mark_[r] < 2;
      dropped_ = dropped_ || row_mark_[r] > 0;
    }
    for (int c = thread_; wide && p_.eps > 0 && c < q; c += threads_) w_[c] = cuda::exp_of(-top_c[c]);
    return good;
  }
  __device__ bool read_softmax() {
    for (int c = thread_; c < q; c += threads_) {
      bool open = false;
      for (int r = 0; r < p; ++r) open = open || !closed(at(r, c));
      column_mark_[c] = open ? T(0) : T(2);
      w_[c] = T(1);
    }
    cuda::sync_block();
    for (int r = thread_; r < p; r += threads_) {
      T top = -T(INFINITY), total = 0;
      bool refused = false;
      for (int c = 0; c < q; ++c) {
        refused = refused || !(at(r, c) <= kMost<T>);
        top = cuda::larger_of(top, at(r, c));
      }
      for (int c = 0; c < q; ++c) total += cuda::exp_of(at(r, c) - top);
      const T share = cuda::quotient(T(1), total);
      for (int c = 0; c < q; ++c) at(r, c) = closed(at(r, c)) ? T(0) : cuda::exp_of(at(r, c) - top) * share + p_.eps;
      row_mark_[r] = refused || closed(top) ? T(2) : T(0);
      u_[r] = z_[r] = T(1);
    }
    cuda::sync_block();
    dropped_ = false;
    bool good = true;
    for (int r = 0; r < p; ++r) good = good && row_mark_[r] < 2;
    for (int c = 0; c < q; ++c) good = good && column_mark_[c] < 2;
    return good;
  }

  __device__ void iterate() {
    const int64_t columns = p_.s.column_steps(), rows = p_.s.row_steps();
    for (int64_t k = 0; k < columns; ++k) {
      for (int r = thread_; kBackward && r < p; r += threads_) kept_u_[k * p + r] = u_[r];
      for (int c = thread_; c < q; c += threads_) {
        T sum = p_.eps * w_[c];
        for (int r = 0; r < p; ++r) sum += u_[r] * at(r, c);
        w_[c] = sum * p_.of_columns;
        v_[c] = cuda::quotient(T(1), w_[c]);
        if (kBackward) kept_v_[k * q + c] = v_[c];
      }
      cuda::sync_block();
      if (k >= rows) break;
      for (int r = thread_; r < p; r += threads_) {
        T sum = p_.eps * z_[r];
        for (int c = 0; c < q; ++c) sum += v_[c] * at(r, c);
        z_[r] = sum * p_.of_rows;
        u_[r] = cuda::quotient(T(1), z_[r]);
      }
      cuda::sync_block();
    }
  }

  __device__ bool trusted() const {
    bool good = true;
    T top_u = 0, top_v = 0;
    for (int r = 0; r < p; ++r) good = good && in_range(u_[r]), top_u = cuda::larger_of(top_u, u_[r]);
    for (int c = 0; c < q; ++c) good = good && in_range(v_[c]), top_v = cuda::larger_of(top_v, v_[c]);
    return good && (!dropped_ || top_u * top_v <= Range<T>::kPeak);
  }

  // g, the gradient of P, becomes that of the logits (README.md).
  __device__ void adjoint() {
    const int64_t columns = p_.s.column_steps(), rows = p_.s.row_steps();
    for (int c = thread_; c < q; c += threads_) {
      T sum = 0;
      for (int r = 0; r < p; ++r) sum += g_[r * stride_ + c] * at(r, c) * u_[r];
      bar_v_[c] = sum, w_[c] = T(0);
    }
    for (int r = thread_; r < p; r += threads_) {
      T sum = 0;
      for (int c = 0; c < q; ++c) sum += g_[r * stride_ + c] * at(r, c) * v_[c];
      bar_u_[r] = sum, z_[r] = T(0);
      kept_u_[columns * p + r] = u_[r];
    }
    cuda::sync_block();
    for (int64_t k = columns - 1; k >= 0; --k) {
      if (k < rows) {
        for (int r = thread_; r < p; r += threads_) {
          const T u = kept_u_[(k + 1) * p + r];
          const T of_z = (z_[r] - bar_u_[r] * u * u) * p_.of_rows;
          of_z_[k * p + r] = of_z;
          z_[r] = p_.eps * of_z, bar_u_[r] = T(0);
        }
        cuda::sync_block();
      }
      for (int c = thread_; c < q; c += threads_) {
        T sum = bar_v_[c];
        for (int r = 0; k < rows && r < p; ++r) sum += of_z_[k * p + r] * at(r, c);
        const T v = kept_v_[k * q + c], of_w = (w_[c] - sum * v * v) * p_.of_columns;
        of_w_[k * q + c] = of_w;
        w_[c] = p_.eps * of_w, bar_v_[c] = T(0);
      }
      cuda::sync_block();
      for (int r = thread_; r < p; r += threads_) {
        T sum = bar_u_[r];
        for (int c = 0; c < q; ++c) sum += of_w_[k * q + c] * at(r, c);
        bar_u_[r] = sum;
      }
    }
    cuda::sync_block();
    gradient(columns, rows);
  }
  __device__ void gradient(int64_t columns, int64_t rows) {
    for (int e = thread_; e < p_.size(); e += threads_) {
      const int r = e / q, c = e % q;
      T sum = g_[r * stride_ + c] * u_[r] * v_[c];
      for (int64_t k = 0; k < columns; ++k) {
        sum += kept_u_[k * p + r] * of_w_[k * q + c];
        if (k < rows) sum += of_z_[k * p + r] * kept_v_[k * q + c];
      }
      T& a = at(r, c);
      if (p_.s.added) a = a > p_.eps ? a - p_.eps : T(0);  // the softmax
      g_[r * stride_ + c] = sum * a;
    }
    cuda::sync_block();
    if (!p_.s.added) return;
    for (int r = thread_; r < p; r += threads_) {
      T total = 0;
      for (int c = 0; c < q; ++c) total += g_[r * stride_ + c];
      for (int c = 0; c < q; ++c) g_[r * stride_ + c] -= total * at(r, c);
    }
    cuda::sync_block();
  }

  const Problem<S>& p_;
  const int p, q, stride_, thread_, threads_;
  bool dropped_;
  T *a_, *u_, *z_, *bar_u_, *row_mark_, *v_, *w_, *bar_v_, *column_mark_;
  T *g_, *kept_u_, *of_z_, *kept_v_, *of_w_;
};

// `team` threads for each matrix; all of them in shared memory, or with p.work in parts of it.
template <class S, bool kBackward>
__global__ void __launch_bounds__(kMostThreads, 4) team_kernel(const __grid_constant__ Problem<S> p, const int team) {
  using T = Wide<S>;
  const int teams = blockDim.x / team, mine = threadIdx.x / team;
  const int64_t size = team_size(p.s, kBackward);
  T* memory = p.work ? p.work + int64_t(blockIdx.x) * teams * size : reinterpret_cast<T*>(cuda::shared_memory());
  Team<S, kBackward> matrix(p, memory + mine * size, threadIdx.x % team, team);
  for (int64_t first = int64_t(blockIdx.x) * teams; first < p.batch; first += int64_t(gridDim.x) * teams) {
    const int64_t k = first + mine;
    matrix.run(k < p.batch ? k : p.batch - 1, k < p.batch);
  }
}

}  // namespace doubly_stochastic
}  // namespace ucmkd
