// The compiled module. The files of this folder are the only ones that know pybind11.
#include <sstream>
#include <stdexcept>
#include <string>

#include "bind/bind.h"
#include "core/levels.h"
#include "core/parallel.h"

using namespace ucmkd;

namespace {

void set_threads(Address parallel_for, Address get_num_threads, int limit, double least_work) {
  thread_settings() = {parallel_for, get_num_threads, limit, least_work};
  forget_stalls();
}

py::dict build_info() {
  py::dict info;
  int count;
  const Level* const* all = built_levels(&count);
  py::list built, usable;
  for (int k = 0; k < count; ++k) {
    built.append(all[k]->name);
    if (all[k]->supported()) usable.append(all[k]->name);
  }
  const char* error;
  const Level* chosen = level(&error);
  info["cpu_levels_built"] = built;
  info["cpu_levels_usable"] = usable;
  info["cpu_level"] = chosen ? py::object(py::str(chosen->name)) : py::object(py::none());
  info["cpu_level_error"] = error ? py::object(py::str(error)) : py::object(py::none());
  py::list architectures;
#ifdef UCMKD_WITH_CUDA
  std::istringstream names(UCMKD_CUDA_ARCHITECTURES);
  for (std::string name; names >> name;) architectures.append(name);
#endif
  info["cuda_architectures"] = architectures;
  info["threads"] = num_threads();
  return info;
}

// That of a level by its name, for the tests.
void exp_of_level(bool f64, const std::string& name, Address x, Address y, int64_t count) {
  int levels;
  const Level* const* all = built_levels(&levels);
  for (int k = 0; k < levels; ++k)
    if (name == all[k]->name && all[k]->supported())
      return f64 ? all[k]->exp_f64(x, y, count) : all[k]->exp_f32(x, y, count);
  throw std::invalid_argument("no usable level " + name);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Kernels of ucmkd_fast; see csrc/";
  module.def("set_threads", &set_threads, "parallel_for"_a, "get_num_threads"_a, "limit"_a,
             "least_work"_a = least_work());
  module.def("thread_counts", [] { return py::make_tuple(thread_counts().teams, thread_counts().stalls); });
  module.def("build_info", &build_info);
  module.def("exp", &exp_of_level, "f64"_a, "level"_a, "x"_a, "y"_a, "count"_a);
  bind_rules(module);
  bind_cost(module);
  bind_sinkhorn(module);
  bind_ragged(module);
  bind_panels(module);
  bind_label(module);
  bind_assign(module);
  bind_doubly_stochastic(module);
  bind_samples_loss(module);
#ifdef UCMKD_WITH_CUDA
  bind_cuda(module);
#endif
}
