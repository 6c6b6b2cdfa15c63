// What C++ knows and Python asks for: names and codes, limits, sentences.
#include "sinkhorn/rules.h"

#include <utility>

#include "bind/bind.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/panel_entry.h"

namespace ucmkd {
namespace {

using cost::Metric;
using sinkhorn::Grad;

constexpr std::pair<const char*, Grad> kGrads[] = {
    {"unrolled", Grad::kUnrolled}, {"implicit", Grad::kImplicit}, {"envelope", Grad::kEnvelope}};
constexpr std::pair<const char*, sinkhorn::Flag> kFlags[] = {
    {"bad_cost", sinkhorn::kFlagBadCost}, {"forbidden", sinkhorn::kFlagForbidden},
    {"bad_mass", sinkhorn::kFlagBadMass}, {"no_mass", sinkhorn::kFlagNoMass},
    {"sums", sinkhorn::kFlagSums},        {"not_converged", sinkhorn::kFlagNotConverged},
    {"overflow", sinkhorn::kFlagOverflow}};
// In the order in which they are told: what comes first may bring about the last.
constexpr std::pair<const char*, const char*> kRefusals[] = {
    {"bad_cost", sinkhorn::refusals::kBadCost},    {"bad_cost_or_label", sinkhorn::refusals::kBadCostOrLabel},
    {"bad_mass", sinkhorn::refusals::kBadMass},    {"no_mass", sinkhorn::refusals::kNoMass},
    {"sums", sinkhorn::refusals::kSums},           {"overflow", sinkhorn::refusals::kOverflow},
    {"forbidden", sinkhorn::refusals::kForbidden}, {"class_cost", sinkhorn::refusals::kClassCost},
    {"labels", sinkhorn::refusals::kLabels},       {"range", sinkhorn::refusals::kRange}};

template <class Enum, size_t kCount>
py::dict codes(const std::pair<const char*, Enum> (&table)[kCount]) {
  py::dict result;
  for (const auto& [name, code] : table) result[name] = static_cast<int>(code);
  return result;
}

template <class Hold>
py::tuple metrics_that(Hold hold) {
  py::list names;
  for (const auto& info : cost::kMetrics)
    if (hold(info.metric)) names.append(info.name);
  return py::tuple(names);
}

void bind_metrics(py::module_& module) {
  py::dict metrics, degrees;
  for (const auto& info : cost::kMetrics) {
    metrics[info.name] = static_cast<int>(info.metric);
    degrees[info.name] = info.degree;
  }
  module.attr("METRICS") = metrics;
  module.attr("DEGREES") = degrees;
  module.attr("NORMALISED") = metrics_that([](Metric m) { return cost::normalised(m); });
  module.attr("CENTRED") = metrics_that([](Metric m) { return cost::centred(m); });
  module.attr("BY_DIFFERENCE") = metrics_that([](Metric m) { return cost::by_difference(m); });
  module.attr("SUMMED") = metrics_that([](Metric m) { return cost::summed(m); });
}

struct RulesOfType {
  double least_mass, sums_gap, safe_log, range_limit;

  template <class T>
  static RulesOfType of() {
    using R = sinkhorn::Rules<T>;
    return {R::kLeastMass, R::kSumsGap, R::kSafeLog, R::kRangeLimit};
  }
};

}  // namespace

void bind_rules(py::module_& module) {
  bind_metrics(module);
  module.attr("GRADS") = codes(kGrads);
  module.attr("FLAGS") = codes(kFlags);
  py::dict sentences;
  for (const auto& [name, text] : kRefusals) sentences[name] = text;
  module.attr("REFUSALS") = sentences;
  module.attr("PAD") = sinkhorn::kPad;
  module.attr("BLOCK_ROWS") = sinkhorn::kRows;
  module.attr("PANEL_ROWS") = sinkhorn::kMostRows;
  module.attr("ELEMENTS_PER_TASK") = sinkhorn::kElementsPerTask;
  module.attr("OWN_PRODUCTS") = sinkhorn::kOwnProducts;
  module.attr("UNKNOWN_RATE") = sinkhorn::kUnknownRate;
  py::class_<RulesOfType>(module, "Rules", "Limits of a dtype (csrc/sinkhorn/rules.h).")
      .def_readonly("least_mass", &RulesOfType::least_mass)
      .def_readonly("sums_gap", &RulesOfType::sums_gap)
      .def_readonly("safe_log", &RulesOfType::safe_log)
      .def_readonly("range_limit", &RulesOfType::range_limit);
  module.def(
      "rules", [](bool f64) { return by_type(f64, [](auto t) { return RulesOfType::of<decltype(t)>(); }); }, "f64"_a);
  module.def(
      "adjoint_tolerance",
      [](bool f64, double tol) {
        return by_type(f64, [&](auto t) { return sinkhorn::adjoint_tolerance<decltype(t)>(tol); });
      },
      "f64"_a, "tol"_a);
  module.def("max_sweeps", [](int64_t max_iter) { return sinkhorn::max_sweeps(max_iter); }, "max_iter"_a);
  module.def("padded", &sinkhorn::padded, "size"_a);
  module.def("sinkhorn_saved_size", &sinkhorn::saved_size, "n"_a, "m"_a, "max_iter"_a, "history"_a,
             "unbalanced"_a = false);
}

}  // namespace ucmkd
