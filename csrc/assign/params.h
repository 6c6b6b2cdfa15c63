// The contract of balanced assignments (README.md beside this file for the formulas).
#pragma once
#include <stdint.h>

#include "core/element.h"

namespace ucmkd {
namespace assign {

constexpr int kQuad = 4;  // rows that a task takes together

// Some rows of the scores. They are halved as they are read, so that no difference of two overflows.
template <class T>
struct Rows {
  int64_t n, k;        // samples, prototypes
  const void* scores;  // (n, k), rows score_stride apart
  Element score_type;  // no wider than T
  int64_t score_stride;
  const T* weight;  // (n,) in the column sums, or null: 1 each
  T rate;           // 2 / temperature, of halves; finite and above 0
  int tasks;
};

// The log-sum of every column, as a level and a sum relative to it: what the first half-step needs where
// exp(score / temperature) leaves the range.
template <class T>
struct Columns {
  Rows<T> rows;
  // in and out: of the rows before, and with these
  T* level;     // (k,) largest half of a score of a sample with weight; -inf: none
  double* sum;  // (k,) of weight exp(rate (score / 2 - level))
  // work space of each task
  T* levels;     // (tasks, k)
  double* sums;  // (tasks, k)
  T* space;      // (tasks, kQuad + 1, k)
};

// The rows of the assignments, E_ij scale_j / (their sum), E_ij = exp(rate (score / 2 - level_j - the row's largest)).
template <class T>
struct Sweep {
  Rows<T> rows;
  const T* level;  // (k,) +inf: the prototype takes no part
  const T* scale;  // (k,) 0 there
  T* kept;         // (n, k) E, rows kept_stride apart, or null
  int64_t kept_stride;
  bool made;  // kept holds E already, and the scores are not read; else it is written
  // Whether rows count exp(score / temperature) in the columns, as they are before they sum to one; levels are 0 then.
  // The first sweep, which also checks the scores.
  bool first;
  double* sum;  // (k,) in and out: the columns of the assignments, weighted, are added; or null
  void* out;    // (n, k) the assignments, rows out_stride apart; may be kept, or the scores; or null
  Element out_type;
  int64_t out_stride;
  // work space of each task
  double* sums;  // (tasks, k)
  T* space;      // (tasks, kQuad + 1, k)
  // results
  int64_t bad_row;   // the first that has NaN or +inf, or -1
  int64_t lost_row;  // the first that has no prototype which takes part, or -1
  double top;        // of the first sweep: largest score over temperature, of rows with weight
};

template <class T>
struct Kernels {
  void (*columns)(Columns<T>&);
  void (*sweep)(Sweep<T>&);
};

}  // namespace assign
}  // namespace ucmkd
