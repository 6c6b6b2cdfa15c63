// See product.h for the contract.
#include "core/product.h"

#include "core/level_table.h"
#include "core/packed.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

using product::Inner;
using product::Plain;

// Of a block of `plain`; columns of a tile, and how deep tiles are: 64 KB.
constexpr int kRows = kBlockRows, kVectors = kBlockVectors;
template <class T>
constexpr int64_t kTile = tile_columns<T>();
template <class T>
constexpr int64_t kDeepest = 64 * 1024 / (kTile<T> * sizeof(T));

// Some columns of a stretch of `right`, whose rows are `stride` apart.
template <class T>
struct Tile {
  const T* right;
  int64_t stride, depth;
  const T* left;  // of row 0
  bool add;
};

// R rows by V vectors of columns, the last of which has `lanes`.
template <class T, int R, int V>
inline void block(const Plain<T>& p, const Tile<T>& tile, int64_t i, int64_t j, int64_t lanes) {
  constexpr int W = Lanes<T>::W;
  const bool whole = lanes == W;
  T* out = p.out + i * p.cols + j;
  Vec<T> total[R][V];
  clear<T>(total);
  if (tile.add)
    for (int r = 0; r < R; ++r)
      for (int h = 0; h < V; ++h) {
        const T* from = out + r * p.cols + h * W;
        total[r][h] = whole || h + 1 < V ? load(from) : load_part(from, lanes, T(0));
      }
  multiply<T>(tile.left + i * p.left_row, p.left_row, p.left_depth, tile.right, tile.stride, tile.depth, total);
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < V; ++h) {
      T* to = out + r * p.cols + h * W;
      whole || h + 1 < V ? store(to, total[r][h]) : store_part(to, total[r][h], lanes);
    }
}

template <class T, int V>
inline void column(const Plain<T>& p, const Tile<T>& tile, int64_t begin, int64_t end, int64_t j, int64_t lanes) {
  row_blocks(begin, end, [&](int64_t i, auto rows) { block<T, decltype(rows)::rows, V>(p, tile, i, j, lanes); });
}

// Columns of `right` are copied first where a vector would reach beyond the last one, and, if more than a few rows read
// them, where vectors would lie across cache lines: half the speed.
template <class T>
void rows_of_plain(const Plain<T>& p, int64_t begin, int64_t end) {
  constexpr int W = Lanes<T>::W;
  alignas(64) T copied[kTile<T> * kDeepest<T>];
  const bool split = (reinterpret_cast<uintptr_t>(p.right) | (p.cols * sizeof(T))) % UK_BYTES != 0;
  for (int64_t j = 0; j < p.cols; j += kTile<T>) {
    const int64_t width = p.cols - j < kTile<T> ? p.cols - j : kTile<T>;
    int64_t k = 0;
    do {
      const int64_t depth = p.depth - k < kDeepest<T> ? p.depth - k : kDeepest<T>;
      Tile<T> tile{p.right + k * p.cols + j, p.cols, depth, p.left + k * p.left_depth, p.add || k > 0};
      if (width < kTile<T> || (split && end - begin > 2 * kRows)) {
        for (int64_t e = 0; e < depth; ++e) {
          const T* from = tile.right + e * p.cols;
          T* to = copied + e * kTile<T>;
          int64_t c = 0;
          for (; c + W <= width; c += W) store(to + c, load(from + c));
          if (c < width) store(to + c, load_part(from + c, width - c, T(0)));
        }
        tile.right = copied, tile.stride = kTile<T>;
      }
      if (width == kTile<T>)
        column<T, kVectors>(p, tile, begin, end, j, W);
      else
        for (int64_t c = 0; c < width; c += W, tile.right += W)
          column<T, 1>(p, tile, begin, end, j + c, width - c < W ? width - c : W);
    } while ((k += kDeepest<T>) < p.depth);
  }
}

template <class T>
void plain(const Plain<T>& p) {
  auto body = [&](int index) { rows_of_plain(p, p.rows * index / p.tasks, p.rows * (index + 1) / p.tasks); };
  parallel(p.tasks, body);
}

// Rows of y that stay in the first cache while those of x pass by.
constexpr int64_t kMostColumns = 64, kColumnBytes = 16 * 1024;

// What is left of rows behind the last whole vector, with zeros after it.
template <class T>
inline void tails(const T* rows, int64_t count, int64_t d, T* tail) {
  constexpr int W = Lanes<T>::W;
  for (int64_t q = 0; q < count; ++q) store(tail + q * W, load_part(rows + q * d + d / W * W, d % W, T(0)));
}

// Four columns by R rows of inner products: vectors run along the depth, summed across lanes at the end.
template <class T, int R, bool kTail>
inline void inner_block(const Inner<T>& p, int64_t i, int64_t j, const T* tail_x, const T* tail_y) {
  constexpr int W = Lanes<T>::W;
  const T *x[R], *y[4];
  int64_t column[4];
  for (int r = 0; r < R; ++r) x[r] = p.x + (i + r) * p.d;
  for (int q = 0; q < 4; ++q) column[q] = j + q < p.m ? q : p.m - 1 - j, y[q] = p.y + (j + column[q]) * p.d;
  Vec<T> total[R][4];
  clear<T>(total);
  int64_t k = 0;
  for (; k + W <= p.d; k += W) {
    Vec<T> row[R];
    for (int r = 0; r < R; ++r) row[r] = load(x[r] + k);
    for (int q = 0; q < 4; ++q) {
      const Vec<T> other = load(y[q] + k);
      for (int r = 0; r < R; ++r) total[r][q] += row[r] * other;
    }
  }
  if (kTail)
    for (int q = 0; q < 4; ++q)
      for (int r = 0; r < R; ++r) total[r][q] += load(tail_x + r * W) * load(tail_y + column[q] * W);
  for (int r = 0; r < R; ++r) {
    const Quad<T> sums = sum4<T>(total[r][0], total[r][1], total[r][2], total[r][3]);
    T* out = p.out + (i + r) * p.m + j;
    if (j + 4 <= p.m)
      store4(out, sums);
    else
      for (int64_t q = 0; q < p.m - j; ++q) out[q] = sums[q];
  }
}

template <class T, int R>
inline void inner_rows(const Inner<T>& p, int64_t i, int64_t begin, int64_t end, const T* tail_y) {
  constexpr int W = Lanes<T>::W;
  T tail_x[R * W];
  if (p.d % W) {
    tails(p.x + i * p.d, R, p.d, tail_x);
    for (int64_t j = begin; j < end; j += 4) inner_block<T, R, true>(p, i, j, tail_x, tail_y + (j - begin) * W);
  } else {
    for (int64_t j = begin; j < end; j += 4) inner_block<T, R, false>(p, i, j, nullptr, nullptr);
  }
}

template <class T>
void inner(const Inner<T>& p) {
  constexpr int R = UK_BYTES == 64 ? 4 : 3, W = Lanes<T>::W;
  const int64_t fitting = kColumnBytes / int64_t(sizeof(T)) / (p.d > 0 ? p.d : 1) / 4 * 4;
  const int64_t columns = fitting < 4 ? 4 : fitting < kMostColumns ? fitting : kMostColumns;
  auto body = [&](int index) {
    const int64_t first = p.n * index / p.tasks, last = p.n * (index + 1) / p.tasks;
    T tail_y[kMostColumns * W];
    for (int64_t begin = 0; begin < p.m; begin += columns) {
      const int64_t end = p.m - begin < columns ? p.m : begin + columns;
      if (p.d % W) tails(p.y + begin * p.d, end - begin, p.d, tail_y);
      int64_t i = first;
      for (; i + R <= last; i += R) inner_rows<T, R>(p, i, begin, end, tail_y);
      for (; i < last; ++i) inner_rows<T, 1>(p, i, begin, end, tail_y);
    }
  };
  parallel(p.tasks, body);
}

template <class T>
void pack(int64_t m, int64_t d, const T* y, T* packed, int tasks) {
  const int64_t tiles = product::packed_columns(m) / tile_columns<T>();
  auto body = [&](int index) {
    for (int64_t t = tiles * index / tasks; t < tiles * (index + 1) / tasks; ++t) pack_tile(y, m, d, t, packed);
  };
  parallel(tasks, body);
}

template <class T>
constexpr product::Kernels<T> kTable = {plain<T>, inner<T>, pack<T>};

}  // namespace

const ByType<product::Kernels> product_kernels = {kTable<float>, kTable<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd
