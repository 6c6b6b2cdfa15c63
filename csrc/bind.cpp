// The only file that knows pybind11. Pointers, sizes and the stream arrive as integers; a null pointer
// is 0. `f64` chooses double, else float. The interpreter lock is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <stdexcept>
#include <string>

#ifdef UCMKD_WITH_CUDA
#include "bind_cuda.h"
#endif
#include "core/levels.h"
#include "core/parallel.h"
#include "cost/entry.h"
#include "label_transport/entry.h"
#include "sinkhorn/entry.h"
#include "sinkhorn/panel_entry.h"
#include "sinkhorn/ragged.h"

namespace py = pybind11;
using namespace ucmkd;

namespace {

using Address = uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

template <class T>
T* to(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls body(float()) or body(double()).
template <class Body>
auto by_type(bool f64, Body body) {
  return f64 ? body(double()) : body(float());
}

sinkhorn::Problem problem(bool f64, int64_t batch, int64_t n, int64_t m, int64_t max_iter, double reg,
                          double tol, Address cost, Address a, bool a_shared, Address b, bool b_shared,
                          Address init_f, Address init_g, bool relax, bool history, Address saved, int metric,
                          int64_t d, Address x, Address y, Address scale_x, Address scale_y) {
  sinkhorn::Problem p{};
  p.f64 = f64, p.batch = batch, p.n = n, p.m = m, p.max_iter = max_iter, p.reg = reg, p.tol = tol;
  p.cost = to<void>(cost);
  p.a = to<void>(a), p.a_stride = a_shared ? 0 : n;
  p.b = to<void>(b), p.b_stride = b_shared ? 0 : m;
  p.init_f = to<void>(init_f), p.init_g = to<void>(init_g), p.relax = relax, p.history = history,
  p.saved = to<void>(saved);
  p.metric = metric, p.d = d, p.x = to<void>(x), p.y = to<void>(y);
  p.scale_x = to<void>(scale_x), p.scale_y = to<void>(scale_y);
  return p;
}

sinkhorn::Ragged ragged(bool f64, int64_t batch, int64_t d, int64_t max_iter, double reg, double tol,
                        bool relax, bool history, int metric, Address x_offsets, Address y_offsets, Address x,
                        Address y, Address scale_x, Address scale_y, Address a, Address b, Address init_f,
                        Address init_g) {
  sinkhorn::Ragged r{};
  r.f64 = f64, r.batch = batch, r.d = d, r.max_iter = max_iter, r.reg = reg, r.tol = tol;
  r.relax = relax, r.history = history, r.metric = metric;
  r.x_offsets = to<int64_t>(x_offsets), r.y_offsets = to<int64_t>(y_offsets);
  r.x = to<void>(x), r.y = to<void>(y), r.scale_x = to<void>(scale_x), r.scale_y = to<void>(scale_y);
  r.a = to<void>(a), r.b = to<void>(b), r.init_f = to<void>(init_f), r.init_g = to<void>(init_g);
  return r;
}

sinkhorn::PanelsOf panels(bool f64, double reg, int64_t room, int metric, int64_t n, int64_t m, int64_t d,
                          Address x, Address y, Address scale_x, Address scale_y, Address packed,
                          Address kept, bool made) {
  sinkhorn::PanelsOf p{};
  p.f64 = f64, p.reg = reg, p.room = room, p.metric = metric, p.n = n, p.m = m, p.d = d;
  p.x = to<void>(x), p.y = to<void>(y), p.scale_x = to<void>(scale_x), p.scale_y = to<void>(scale_y);
  p.packed = to<void>(packed), p.kept = to<void>(kept), p.made = made;
  return p;
}

template <class Of>  // Problem, Ragged or PanelsOf
void set_classes(Of& p, int64_t count, Address cost, Address label, Address distance, Address grad) {
  p.classes = {count, to<void>(cost), to<int64_t>(label), to<void>(distance), to<void>(grad)};
}

template <class T>
cost::Features<T> features(int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
                           Address scale_y) {
  return {static_cast<cost::Metric>(metric), n, m, d, to<T>(x), to<T>(y), to<T>(scale_x), to<T>(scale_y), {}};
}

sinkhorn::Upstream upstream(Address value, Address f, Address g) {
  return {to<void>(value), to<void>(f), to<void>(g)};
}

void set_thread_pool(Address parallel_for, Address get_num_threads) {
  thread_pool().parallel_for = reinterpret_cast<decltype(ThreadPool::parallel_for)>(parallel_for);
  thread_pool().get_num_threads = reinterpret_cast<decltype(ThreadPool::get_num_threads)>(get_num_threads);
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of ucmkd_fast; see csrc/";
  m.def("set_thread_pool", &set_thread_pool);
  m.def("build_info", &build_info);
#ifdef UCMKD_WITH_CUDA
  bind_cuda(m);
#endif
  m.def("padded", &sinkhorn::padded);
  m.def("is_one", [](bool f64, Address x) { return f64 ? *to<double>(x) == 1 : *to<float>(x) == 1; });
  m.def("exp", [](bool f64, const std::string& name, Address x, Address y, int64_t count) {
    int levels;
    const Level* const* all = built_levels(&levels);
    for (int k = 0; k < levels; ++k)
      if (name == all[k]->name && all[k]->supported()) {
        f64 ? all[k]->exp_f64(to<double>(x), to<double>(y), count)
            : all[k]->exp_f32(to<float>(x), to<float>(y), count);
        return;
      }
    throw std::invalid_argument("no usable level " + name);
  });

  using sinkhorn::Problem;
  m.def("sinkhorn_saved_size", &sinkhorn::saved_size);
  py::class_<Problem>(m, "SinkhornProblem", "Addresses and sizes of one batch; it owns nothing.")
      .def(py::init(&problem))
      .def("set_classes", &set_classes<Problem>);
  m.def(
      "sinkhorn_forward",
      [](const Problem& p, bool save_plan, Address f, Address g, Address value, Address dual,
         Address marginal_error, Address n_iter) {
        return by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::forward<T>(p, save_plan, to<T>(f), to<T>(g), to<T>(value), to<T>(dual),
                                      to<T>(marginal_error), to<int64_t>(n_iter));
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_adjoint",
      [](const Problem& p, Address up_value, Address up_f, Address up_g, Address left, Address right,
         Address grad_a, Address grad_b, Address depth) {
        return by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::adjoint<T>(p, upstream(up_value, up_f, up_g), to<T>(left), to<T>(right),
                                      {nullptr, to<T>(grad_a), to<T>(grad_b), nullptr, nullptr},
                                      to<int64_t>(depth));
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_adjoint_finish",
      [](const Problem& p, Address up_value, Address up_f, Address up_g, Address depth, Address grad_cost,
         Address grad_a, Address grad_b, Address rows, Address cols) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::adjoint_finish<T>(
              p, upstream(up_value, up_f, up_g), to<int64_t>(depth),
              {to<T>(grad_cost), to<T>(grad_a), to<T>(grad_b), to<T>(rows), to<T>(cols)});
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_implicit",
      [](const Problem& p, Address up_value, Address up_f, Address up_g, Address grad_cost, Address grad_a,
         Address grad_b, Address rows, Address cols) {
        return by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::implicit<T>(
              p, upstream(up_value, up_f, up_g),
              {to<T>(grad_cost), to<T>(grad_a), to<T>(grad_b), to<T>(rows), to<T>(cols)});
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_envelope",
      [](const Problem& p, Address up_value, Address grad_cost, Address rows, Address cols) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::envelope<T>(p, upstream(up_value, 0, 0),
                                {to<T>(grad_cost), nullptr, nullptr, to<T>(rows), to<T>(cols)});
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_gradient_rows",
      [](const Problem& p, int grad, Address up_value, int64_t begin, int64_t end, Address row_sum,
         Address col_sum, Address grad_cost, Address rows, Address cols) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::gradient_rows<T>(p, static_cast<sinkhorn::Grad>(grad), upstream(up_value, 0, 0), begin,
                                     end, to<T>(row_sum), to<T>(col_sum),
                                     {to<T>(grad_cost), nullptr, nullptr, to<T>(rows), to<T>(cols)});
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_loss_forward",
      [](const Problem& p, bool own_products, bool save_plan, Address f, Address g, Address value,
         Address dual, Address marginal_error, Address n_iter) {
        return by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::loss_forward<T>(p, own_products, save_plan, to<T>(f), to<T>(g), to<T>(value),
                                           to<T>(dual), to<T>(marginal_error), to<int64_t>(n_iter));
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_loss_backward",
      [](const Problem& p, int grad, Address up_value, Address up_f, Address up_g, Address grad_a,
         Address grad_b, Address dx, Address dy) {
        return by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::loss_backward<T>(p, static_cast<sinkhorn::Grad>(grad),
                                            upstream(up_value, up_f, up_g), to<T>(grad_a), to<T>(grad_b),
                                            to<T>(dx), to<T>(dy));
        });
      },
      Unlocked());

  using sinkhorn::LossSettings;
  py::class_<LossSettings>(m, "SinkhornLossSettings", "What many calls share.")
      .def(py::init([](bool f64, int metric, bool regularized, double reg, int64_t max_iter, double tol, bool relax,
                       int grad) {
        return LossSettings{f64, metric, regularized, reg, max_iter, tol, relax, static_cast<sinkhorn::Grad>(grad)};
      }));
  m.def(
      "sinkhorn_loss_and_gradient",
      [](const LossSettings& settings, int64_t n, int64_t d, int64_t m, Address x, Address y, Address a, Address b,
         Address init_f, Address init_g, Address loss, Address marginal_error, Address n_iter, Address dx,
         Address dy) {
        Problem p{};
        p.n = n, p.d = d, p.m = m, p.x = to<void>(x), p.y = to<void>(y), p.a = to<void>(a), p.b = to<void>(b);
        p.init_f = to<void>(init_f), p.init_g = to<void>(init_g);
        return by_type(settings.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::loss_and_gradient<T>(settings, p, to<T>(loss), to<T>(marginal_error), to<int64_t>(n_iter),
                                                to<T>(dx), to<T>(dy));
        });
      },
      Unlocked());

  using sinkhorn::Ragged;
  py::class_<Ragged>(m, "SinkhornRagged", "Addresses and sizes of a ragged batch; it owns nothing.")
      .def(py::init(&ragged))
      .def("sizes",
           [](const Ragged& r) {
             const auto sizes = sinkhorn::ragged_sizes(r);
             return std::make_pair(sizes.cost, sizes.saved);
           })
      .def("cost_offset", &sinkhorn::ragged_cost_offset)
      .def("set_classes", &set_classes<Ragged>)
      .def("memory", [](Ragged& r, Address cost, Address saved) {
        r.cost = to<void>(cost), r.saved = to<void>(saved);
      });
  m.def(
      "sinkhorn_ragged_forward",
      [](const Ragged& r, bool save_plan, Address f, Address g, Address value, Address dual,
         Address marginal_error, Address n_iter) {
        return by_type(r.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::ragged_forward<T>(
              r, save_plan,
              {to<T>(f), to<T>(g), to<T>(value), to<T>(dual), to<T>(marginal_error), to<int64_t>(n_iter)});
        });
      },
      Unlocked());
  m.def(
      "sinkhorn_ragged_backward",
      [](const Ragged& r, int grad, Address up_value, Address up_f, Address up_g, Address x, Address y,
         Address a, Address b) {
        return by_type(r.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::ragged_backward<T>(r, static_cast<sinkhorn::Grad>(grad), to<T>(up_value),
                                              to<T>(up_f), to<T>(up_g),
                                              {to<T>(x), to<T>(y), to<T>(a), to<T>(b)});
        });
      },
      Unlocked());

  using sinkhorn::PanelsOf;
  py::class_<PanelsOf>(m, "SinkhornPanels", "Addresses and sizes of rows in panels; it owns nothing.")
      .def(py::init(&panels))
      .def("set_classes", &set_classes<PanelsOf>);
  m.def("panels_columns", &product::packed_columns);
  m.def("panels_packed_size", &product::packed_size);
  m.def("panels_pack", [](bool f64, int64_t m, int64_t d, Address y, Address packed) {
    by_type(f64, [&](auto t) {
      using T = decltype(t);
      sinkhorn::panels_pack<T>(m, d, to<T>(y), to<T>(packed));
    });
  });
  m.def(
      "panel_columns",
      [](const PanelsOf& p, Address f, Address top, Address total) {
        return by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          return sinkhorn::panel_columns<T>(p, to<T>(f), to<T>(top), to<T>(total));
        });
      },
      Unlocked());
  m.def(
      "panel_iterate",
      [](const PanelsOf& p, bool relaxed, Address mass, Address g, Address f, Address sums) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::panel_iterate<T>(p, relaxed, to<T>(mass), to<T>(g), to<T>(f), to<T>(sums));
        });
      },
      Unlocked());
  m.def(
      "panel_plan",
      [](const PanelsOf& p, Address f, Address g, Address alpha, Address row_value, Address first) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::panel_plan<T>(p, to<T>(f), to<T>(g), to<T>(alpha), to<T>(row_value), to<T>(first));
        });
      },
      Unlocked());
  m.def(
      "panel_adjoint",
      [](const PanelsOf& p, Address f, Address g, Address sigma, Address factor, Address d, Address sums) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::panel_adjoint<T>(p, to<T>(f), to<T>(g), to<T>(sigma), to<T>(factor), to<T>(d),
                                     to<T>(sums));
        });
      },
      Unlocked());
  m.def(
      "panel_adjoint_log",
      [](const PanelsOf& p, Address f, Address g, Address share, Address g_before, Address inverse,
         Address fbar, Address sums) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::panel_adjoint_log<T>(p, to<T>(f), to<T>(g), to<T>(share), to<T>(g_before), to<T>(inverse),
                                         to<T>(fbar), to<T>(sums));
        });
      },
      Unlocked());
  m.def(
      "panel_gradient",
      [](const PanelsOf& p, Address f, Address g, Address alpha, double weight, Address row_sum,
         Address col_sum, int64_t depth, int64_t stride, Address hist_before, Address hist_f, Address share_f,
         Address hist_g, Address share_g, Address out, Address weight_rows, Address weight_cols) {
        by_type(p.f64, [&](auto t) {
          using T = decltype(t);
          sinkhorn::PanelGradient<T> q{};
          q.f = to<T>(f), q.g = to<T>(g), q.alpha = to<T>(alpha), q.weight = T(weight);
          q.row_sum = to<T>(row_sum), q.col_sum = to<T>(col_sum);
          q.depth = depth, q.stride = stride;
          q.hist_before = to<T>(hist_before), q.hist_f = to<T>(hist_f), q.share_f = to<T>(share_f);
          q.hist_g = to<T>(hist_g), q.share_g = to<T>(share_g);
          q.out = to<T>(out), q.weight_rows = to<T>(weight_rows), q.weight_cols = to<T>(weight_cols);
          sinkhorn::panel_gradient<T>(p, q);
        });
      },
      Unlocked());

  m.def(
      "cost_scales",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y) {
        return by_type(f64, [&](auto t) {
          using T = decltype(t);
          return cost::scales<T>(features<T>(metric, n, m, d, x, y, scale_x, scale_y), to<T>(scale_x),
                                 to<T>(scale_y));
        });
      },
      Unlocked());
  m.def(
      "cost_finish",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y, Address c) {
        by_type(f64, [&](auto t) {
          using T = decltype(t);
          cost::finish(features<T>(metric, n, m, d, x, y, scale_x, scale_y), to<T>(c));
        });
      },
      Unlocked());
  m.def(
      "cost_weigh",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y, Address c, Address dc, Address row_sum, Address col_sum) {
        by_type(f64, [&](auto t) {
          using T = decltype(t);
          cost::weigh(features<T>(metric, n, m, d, x, y, scale_x, scale_y), to<T>(c), to<T>(dc),
                      to<T>(row_sum), to<T>(col_sum));
        });
      },
      Unlocked());
  m.def(
      "cost_finish_gradient",
      [](bool f64, int metric, int64_t n, int64_t m, int64_t d, Address x, Address y, Address scale_x,
         Address scale_y, Address sums, bool of_y, Address g) {
        by_type(f64, [&](auto t) {
          using T = decltype(t);
          cost::finish_gradient(features<T>(metric, n, m, d, x, y, scale_x, scale_y), to<const T>(sums), of_y,
                                to<T>(g));
        });
      },
      Unlocked());
  m.def(
      "cost_l1_backward",
      [](bool f64, int64_t n, int64_t m, int64_t d, Address x, Address y, Address dc, bool transposed,
         Address dx) {
        by_type(f64, [&](auto t) {
          using T = decltype(t);
          cost::l1_backward<T>(n, m, d, to<T>(x), to<T>(y), to<T>(dc), transposed, to<T>(dx));
        });
      },
      Unlocked());

  m.def(
      "label_transport_forward",
      [](bool f64, int64_t n, int64_t k, Address student, int64_t student_stride, Address teacher,
         int64_t teacher_stride, Address target, int64_t ignore_index, double label_smoothing,
         bool live_kappa, bool mean, Address loss, Address grad_student, Address grad_teacher,
         int64_t grad_stride) {
        return by_type(f64, [&](auto t) {
          using T = decltype(t);
          label_transport::Forward<T> call{};
          call.n = n, call.k = k;
          call.student = to<T>(student), call.student_stride = student_stride;
          call.teacher = to<T>(teacher), call.teacher_stride = teacher_stride;
          call.target = to<int64_t>(target), call.ignore_index = ignore_index;
          call.label_smoothing = T(label_smoothing), call.live_kappa = live_kappa, call.mean = mean;
          call.loss = to<T>(loss), call.grad_student = to<T>(grad_student),
          call.grad_teacher = to<T>(grad_teacher);
          call.grad_stride = grad_stride;
          label_transport::forward(call);
          return std::make_tuple(call.total, call.kept, call.bad_row);
        });
      },
      Unlocked());
}
