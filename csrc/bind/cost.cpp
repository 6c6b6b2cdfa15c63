// Costs from features and back.
#include "bind/define.h"
#include "cost/entry.h"

namespace ucmkd {

using cost::features_of;
using cost::FeatureSet;

void bind_cost(py::module_& module) {
  // Addresses and sizes of two sets of features; it owns nothing.
  define_record(
      module, "Features",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x, Address scale_y,
         Address given_x, Address given_y, int64_t classes, Address class_cost, Address labels, Address distance,
         Address grad_class) {
        return FeatureSet{f64,     static_cast<cost::Metric>(metric),
                          n,       m,
                          d,       x,
                          y,       scale_x,
                          scale_y, given_x,
                          given_y, {classes, class_cost, labels, distance, grad_class}};
      },
      py::kw_only(), "f64"_a, "metric"_a, "n"_a, "m"_a, "d"_a, "x"_a, "y"_a, "scale_x"_a, "scale_y"_a, "given_x"_a = 0,
      "given_y"_a = 0, "classes"_a = 0, "class_cost"_a = 0, "labels"_a = 0, "distance"_a = 0, "grad_class"_a = 0);
  define(
      module, "cost_centre",
      [](bool f64, int64_t n, int64_t m, int64_t d, Address x, Address y, Address out_x, Address out_y) {
        FeatureSet f{};
        f.n = n, f.m = m, f.d = d, f.x = x, f.y = y;
        by_type(f64, [&](auto t) { cost::centre<decltype(t)>(features_of<decltype(t)>(f), out_x, out_y); });
      },
      py::kw_only(), "f64"_a, "n"_a, "m"_a, "d"_a, "x"_a, "y"_a, "out_x"_a, "out_y"_a, Unlocked());
  define(
      module, "cost_scales",
      [](const FeatureSet& f, Address scale_x, Address scale_y) {
        return by_type(
            f.f64, [&](auto t) { return cost::scales<decltype(t)>(features_of<decltype(t)>(f), scale_x, scale_y); });
      },
      "features"_a, py::kw_only(), "scale_x"_a, "scale_y"_a, Unlocked());
  define(
      module, "cost_finish",
      [](const FeatureSet& f, Address c) {
        by_type(f.f64, [&](auto t) { cost::finish<decltype(t)>(features_of<decltype(t)>(f), c); });
      },
      "features"_a, py::kw_only(), "cost"_a, Unlocked());
  define(
      module, "cost_weigh",
      [](const FeatureSet& f, Address c, Address grad_cost, Address row_sums, Address column_sums) {
        by_type(f.f64, [&](auto t) {
          cost::weigh<decltype(t)>(features_of<decltype(t)>(f), c, grad_cost, row_sums, column_sums);
        });
      },
      "features"_a, py::kw_only(), "cost"_a, "grad_cost"_a, "row_sums"_a, "column_sums"_a, Unlocked());
  define(
      module, "cost_set_apart",
      [](const FeatureSet& f, Address distance, Address weights, Address grad_x, Address grad_y) {
        by_type(f.f64, [&](auto t) {
          cost::set_apart<decltype(t)>(features_of<decltype(t)>(f), distance, weights, grad_x, grad_y);
        });
      },
      "features"_a, py::kw_only(), "distance"_a, "weights"_a, "grad_x"_a, "grad_y"_a, Unlocked());
  define(
      module, "cost_finish_gradient",
      [](const FeatureSet& f, Address sums, bool of_y, Address grad) {
        by_type(f.f64,
                [&](auto t) { cost::finish_gradient<decltype(t)>(features_of<decltype(t)>(f), sums, of_y, grad); });
      },
      "features"_a, py::kw_only(), "sums"_a, "of_y"_a, "grad"_a, Unlocked());
  define(
      module, "cost_sum_gradient",
      [](const FeatureSet& f, Address grad_cost, bool of_y, Address grad) {
        by_type(f.f64,
                [&](auto t) { cost::sum_gradient<decltype(t)>(features_of<decltype(t)>(f), grad_cost, of_y, grad); });
      },
      "features"_a, py::kw_only(), "grad_cost"_a, "of_y"_a, "grad"_a, Unlocked());
}

}  // namespace ucmkd
