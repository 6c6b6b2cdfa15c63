// The matrices that left the range of their type, in the log domain and in double: a block for each, as log_domain.h
// does it on the CPU. lz = -log u, lw = -log v.
#pragma once
#include "doubly_stochastic/problem.cuh"

namespace ucmkd {
namespace doubly_stochastic {

constexpr int kBeyondThreads = 64;

// Doubles that a block needs.
UK_HOST_DEVICE int64_t beyond_size(const Steps& s, bool backward) {
  const int64_t p = s.rows, q = s.columns, kept = backward ? s.column_steps() + 1 : 2;
  return (backward ? 2 : 1) * p * q + kept * (p + q) + 2 * (p + q);
}

template <class S, bool kBackward>
class Beyond {
 public:
  __device__ Beyond(const Problem<S>& problem, double* memory)
      : p_(problem), p(problem.p), q(problem.q), thread_(threadIdx.x), threads_(blockDim.x), eps_(problem.eps) {
    auto take = [&](int64_t count) {
      double* begin = memory;
      memory += count;
      return begin;
    };
    const int64_t kept = kBackward ? problem.s.column_steps() + 1 : 2;
    x_ = take(int64_t(p) * q), lz_ = take(kept * p), lw_ = take(kept * q);
    bar_z_ = take(p), carry_z_ = take(p), bar_w_ = take(q), carry_w_ = take(q);
    if (kBackward) g_ = take(int64_t(p) * q);
  }

  __device__ void run(int64_t k) {
    const int64_t columns = p_.s.column_steps(), rows = p_.s.row_steps();
    const S* logits = p_.logits + k * p_.size();
    for (int e = thread_; e < p_.size(); e += threads_) x_[e] = double(cuda::wide(logits[p_.place(e / q, e % q)]));
    cuda::sync_block();
    p_.s.added ? read_softmax() : read();
    cuda::sync_block();
    for (int64_t t = 0; t < columns; ++t) {
      for (int c = thread_; c < q; c += threads_) w(t + 1)[c] = closed_sum(column_sum(t, c), w(t)[c], p_.s.column_sum);
      cuda::sync_block();
      for (int r = thread_; t < rows && r < p; r += threads_)
        z(t + 1)[r] = closed_sum(row_sum(t + 1, r), z(t)[r], p_.s.row_sum);
      cuda::sync_block();
    }
    if (kBackward) adjoint(p_.upstream + k * p_.size());
    for (int e = thread_; e < p_.size(); e += threads_) {
      const double found = kBackward ? g_[e] : entry(e / q, e % q, rows, columns);
      p_.out[k * p_.size() + p_.place(e / q, e % q)] = cuda::narrow<S>(Wide<S>(found));
    }
    cuda::sync_block();
  }

 private:
  __device__ double* z(int64_t t) const { return lz_ + (kBackward ? t : t % 2) * p; }
  __device__ double* w(int64_t t) const { return lw_ + (kBackward ? t : t % 2) * q; }
  __device__ double entry(int r, int c, int64_t of_z, int64_t of_w) const {
    return cuda::exp_of(x_[r * q + c] - z(of_z)[r] - w(of_w)[c]);
  }

  __device__ void read() {
    for (int c = thread_; c < q; c += threads_) {
      double top = -INFINITY;
#pragma unroll 1
      for (int r = 0; r < p; ++r) top = cuda::larger_of(top, x_[r * q + c]);
      w(0)[c] = -top;
    }
    cuda::sync_block();
    for (int r = thread_; r < p; r += threads_) {
      double top = -INFINITY;
#pragma unroll 1
      for (int c = 0; c < q; ++c) top = cuda::larger_of(top, x_[r * q + c] + w(0)[c]);
#pragma unroll 1
      for (int c = 0; c < q; ++c) x_[r * q + c] = (x_[r * q + c] + w(0)[c]) - top;
      z(0)[r] = -top;
    }
  }
  __device__ void read_softmax() {
    for (int c = thread_; c < q; c += threads_) w(0)[c] = 0;
    for (int r = thread_; r < p; r += threads_) {
      double top = -INFINITY, total = 0;
#pragma unroll 1
      for (int c = 0; c < q; ++c) top = cuda::larger_of(top, x_[r * q + c]);
#pragma unroll 1
      for (int c = 0; c < q; ++c) total += cuda::exp_of(x_[r * q + c] - top);
#pragma unroll 1
      for (int c = 0; c < q; ++c) {
        double& x = x_[r * q + c];
        if (x > -INFINITY) x = cuda::log_of(cuda::exp_of(x - top) / total + eps_);
      }
      z(0)[r] = 0;
    }
  }

  // log sum_r exp(x_rc - lz_r), and the same of a row.
  __device__ double column_sum(int64_t t, int c) const {
    double top = -INFINITY, total = 0;
#pragma unroll 1
    for (int r = 0; r < p; ++r) top = cuda::larger_of(top, x_[r * q + c] - z(t)[r]);
#pragma unroll 1
    for (int r = 0; r < p; ++r) total += cuda::exp_of(x_[r * q + c] - z(t)[r] - top);
    return top + cuda::log_of(total);
  }
  __device__ double row_sum(int64_t t, int r) const {
    double top = -INFINITY, total = 0;
#pragma unroll 1
    for (int c = 0; c < q; ++c) top = cuda::larger_of(top, x_[r * q + c] - w(t)[c]);
#pragma unroll 1
    for (int c = 0; c < q; ++c) total += cuda::exp_of(x_[r * q + c] - w(t)[c] - top);
    return top + cuda::log_of(total);
  }
  // log(exp(sum) + eps exp(old)) - log target
  __device__ double closed_sum(double sum, double old, double target) const {
    if (eps_ > 0) {
      const double extra = cuda::log_of(eps_) + old, top = cuda::larger_of(sum, extra);
      sum = top + cuda::log_of(cuda::exp_of(sum - top) + cuda::exp_of(extra - top));
    }
    return sum - cuda::log_of(target);
  }

  __device__ void adjoint(const S* upstream) {
    const int64_t columns = p_.s.column_steps(), rows = p_.s.row_steps();
    for (int e = thread_; e < p_.size(); e += threads_) {
      const double at = entry(e / q, e % q, rows, columns);
      g_[e] = at > 0 ? double(cuda::wide(upstream[p_.place(e / q, e % q)])) * at : 0;
    }
    cuda::sync_block();
    for (int r = thread_; r < p; r += threads_) {
      bar_z_[r] = carry_z_[r] = 0;
#pragma unroll 1
      for (int c = 0; c < q; ++c) bar_z_[r] -= g_[r * q + c];
    }
    for (int c = thread_; c < q; c += threads_) {
      bar_w_[c] = carry_w_[c] = 0;
#pragma unroll 1
      for (int r = 0; r < p; ++r) bar_w_[c] -= g_[r * q + c];
    }
    cuda::sync_block();
    for (int64_t t = columns - 1; t >= 0; --t) {
      if (t < rows) row_adjoint(t);
      cuda::sync_block();
      column_adjoint(t);
      cuda::sync_block();
    }
    for (int r = thread_; p_.s.added && r < p; r += threads_) {
      double total = 0;
#pragma unroll 1
      for (int c = 0; c < q; ++c) {
        const double a = cuda::exp_of(x_[r * q + c]);
        g_[r * q + c] = a > 0 ? g_[r * q + c] * ((a - eps_) / a) : 0;
        total += g_[r * q + c];
      }
#pragma unroll 1
      for (int c = 0; c < q; ++c) g_[r * q + c] -= total * cuda::larger_of(cuda::exp_of(x_[r * q + c]) - eps_, 0.0);
    }
    cuda::sync_block();
  }
  // Each sum's gradient is spread over its entries, and from there to the scalings of the other side.
  __device__ void row_adjoint(int64_t t) {
    const double share = 1 / p_.s.row_sum;
    for (int r = thread_; r < p; r += threads_) {
      bar_z_[r] = (bar_z_[r] + carry_z_[r]) * share;
      carry_z_[r] = eps_ > 0 ? bar_z_[r] * eps_ * cuda::exp_of(z(t)[r] - z(t + 1)[r]) : 0;
    }
    cuda::sync_block();
    for (int c = thread_; c < q; c += threads_)
#pragma unroll 1
      for (int r = 0; r < p; ++r) {
        const double part = bar_z_[r] * entry(r, c, t + 1, t + 1);
        g_[r * q + c] += part;
        bar_w_[c] -= part;
      }
    cuda::sync_block();
    for (int r = thread_; r < p; r += threads_) bar_z_[r] = 0;
  }
  __device__ void column_adjoint(int64_t t) {
    const double share = 1 / p_.s.column_sum;
    for (int c = thread_; c < q; c += threads_) {
      bar_w_[c] = (bar_w_[c] + carry_w_[c]) * share;
      carry_w_[c] = eps_ > 0 ? bar_w_[c] * eps_ * cuda::exp_of(w(t)[c] - w(t + 1)[c]) : 0;
    }
    cuda::sync_block();
    for (int r = thread_; r < p; r += threads_)
#pragma unroll 1
      for (int c = 0; c < q; ++c) {
        const double part = bar_w_[c] * entry(r, c, t, t + 1);
        g_[r * q + c] += part;
        bar_z_[r] -= part;
      }
    cuda::sync_block();
    for (int c = thread_; c < q; c += threads_) bar_w_[c] = 0;
  }

  const Problem<S>& p_;
  const int p, q, thread_, threads_;
  const double eps_;
  double *x_, *g_, *lz_, *lw_, *bar_z_, *carry_z_, *bar_w_, *carry_w_;
};

// Looks at as many marks at a time as the block has threads.
template <class S, bool kBackward>
__global__ void __launch_bounds__(kBeyondThreads, 8)
    beyond_kernel(const __grid_constant__ Problem<S> p, double* const work) {
  Beyond<S, kBackward> matrix(p, work + blockIdx.x * beyond_size(p.s, kBackward));
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t first = int64_t(blockIdx.x) * blockDim.x; first < p.batch; first += step) {
    const int64_t mine = first + threadIdx.x;
    if (!cuda::any_of_block(mine < p.batch && p.beyond[mine] != 0)) continue;
    for (int64_t k = first; k < first + blockDim.x && k < p.batch; ++k)
      if (p.beyond[k] != 0) matrix.run(k);
  }
}

}  // namespace doubly_stochastic
}  // namespace ucmkd
