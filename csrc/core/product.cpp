// See product.h. A block of four rows and two vectors of columns stays in registers over the whole depth; the
// strip of b that it reads stays in the cache while the rows go by. The last block overlaps the one before it
// instead of being cut short: its elements are written twice, with the same value.
#include "core/product.h"

#include "core/parallel.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

template <class T, int R, int V>
static inline void block(const Product<T>& p, int64_t i, int64_t j) {
  constexpr int W = Lanes<T>::W;
  Vec<T> total[R][V] = {};
  const T* a = p.a + i * p.a_row;
  const T* b = p.b + j;
  for (int64_t k = 0; k < p.depth; ++k, a += p.a_depth, b += p.m) {
    Vec<T> right[V];
    for (int c = 0; c < V; ++c) right[c] = load(b + c * W);
    for (int r = 0; r < R; ++r) {
      const Vec<T> left = splat(a[r * p.a_row]);
      for (int c = 0; c < V; ++c) total[r][c] += left * right[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < V; ++c) store(p.out + (i + r) * p.m + j + c * W, total[r][c]);
}

// Fewer columns than a vector has lanes.
template <class T>
static inline void narrow(const Product<T>& p, int64_t i) {
  for (int64_t j = 0; j < p.m; ++j) {
    T total = 0;
    for (int64_t k = 0; k < p.depth; ++k) total += p.a[i * p.a_row + k * p.a_depth] * p.b[k * p.m + j];
    p.out[i * p.m + j] = total;
  }
}

template <class T, int V>
static inline void strip(const Product<T>& p, int64_t begin, int64_t end, int64_t j) {
  if (end - begin < 4) {
    for (int64_t i = begin; i < end; ++i) block<T, 1, V>(p, i, j);
    return;
  }
  for (int64_t i = begin; i < end; i += 4) block<T, 4, V>(p, i + 4 <= end ? i : end - 4, j);
}

}  // namespace

template <class T>
void product(const Product<T>& p) {
  constexpr int W = Lanes<T>::W;
  auto body = [&](int index) {
    const int64_t begin = p.n * index / p.tasks, end = p.n * (index + 1) / p.tasks;
    if (p.m < W) {
      for (int64_t i = begin; i < end; ++i) narrow(p, i);
      return;
    }
    int64_t j = 0;
    for (; j + 2 * W <= p.m; j += 2 * W) strip<T, 2>(p, begin, end, j);
    if (p.m - j > W) strip<T, 1>(p, begin, end, j), j += W;
    if (j < p.m) strip<T, 1>(p, begin, end, p.m - W);
  };
  parallel(p.tasks, body);
}
template void product<float>(const Product<float>&);
template void product<double>(const Product<double>&);

}  // namespace UK_LEVEL
}  // namespace ucmkd
