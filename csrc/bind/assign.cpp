// Balanced assignments.
#include "assign/entry.h"
#include "bind/define.h"

namespace ucmkd {
namespace {

// Some rows of scores, in the type that they are computed in.
struct AssignRows {
  bool f64;
  int64_t n, k;
  Address scores;
  int64_t score_type, score_stride;
  Address weight;
  double rate;

  template <class T>
  assign::Rows<T> of() const {
    return {n, k, scores, static_cast<Element>(score_type), score_stride, weight, T(rate), 1};
  }
};

AssignRows rows_of(bool f64, int64_t n, int64_t k, Address scores, int64_t score_type, int64_t score_stride,
                   Address weight, double rate) {
  return {f64, n, k, scores, score_type, score_stride, weight, rate};
}

void assign_columns(AssignRows rows, Address level, Address sum) {
  by_type(rows.f64, [&](auto t) {
    using T = decltype(t);
    assign::Columns<T> call{};
    call.rows = rows.of<T>();
    call.level = level, call.sum = sum;
    assign::columns(call);
  });
}

// (bad_row, lost_row, top) of params.h.
py::object assign_sweep(AssignRows rows, Address level, Address scale, Address kept, int64_t kept_stride, bool made,
                        bool first, Address sum, Address out, int64_t out_type, int64_t out_stride) {
  return by_type(rows.f64, [&](auto t) {
    using T = decltype(t);
    assign::Sweep<T> call{};
    call.rows = rows.of<T>();
    call.level = level, call.scale = scale;
    call.kept = kept, call.kept_stride = kept_stride, call.made = made;
    call.first = first;
    call.sum = sum, call.out = out, call.out_type = static_cast<Element>(out_type), call.out_stride = out_stride;
    {
      py::gil_scoped_release unlocked;
      assign::sweep(call);
    }
    return py::make_tuple(call.bad_row, call.lost_row, call.top);
  });
}

}  // namespace

void bind_assign(py::module_& module) {
  define_record(module, "AssignRows", &rows_of, py::kw_only(), "f64"_a, "n"_a, "k"_a, "scores"_a, "score_type"_a,
                "score_stride"_a, "weight"_a, "rate"_a);
  define(module, "assign_columns", &assign_columns, Unlocked(), "rows"_a, py::kw_only(), "level"_a, "sum"_a);
  define(module, "assign_sweep", &assign_sweep, "rows"_a, py::kw_only(), "level"_a, "scale"_a, "kept"_a,
         "kept_stride"_a, "made"_a, "first"_a, "sum"_a, "out"_a, "out_type"_a, "out_stride"_a);
}

}  // namespace ucmkd
