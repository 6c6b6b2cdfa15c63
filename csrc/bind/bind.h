// What the bindings share. Arguments cross by name: addresses and sizes as integers, a null pointer as 0; a record as
// itself.
// `f64` chooses double, else float. The names and types are those of ucmkd_fast/_C.pyi.
#pragma once
#include <pybind11/pybind11.h>
#include <stdint.h>

namespace ucmkd {

namespace py = pybind11;
using namespace py::literals;  // "name"_a

// Of a binding that runs a kernel: the interpreter lock is released meanwhile.
using Unlocked = py::call_guard<py::gil_scoped_release>;

// A pointer from Python: becomes one of whatever type is asked for, but no number.
struct Address {
  uintptr_t number;

  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(number);
  }
};

// Calls body(double()) or body(float()): the argument is there for its type.
template <class Body>
auto by_type(bool f64, Body body) {
  return f64 ? body(double()) : body(float());
}

void bind_rules(py::module_&);
void bind_cost(py::module_&);
void bind_sinkhorn(py::module_&);
void bind_ragged(py::module_&);
void bind_panels(py::module_&);
void bind_label(py::module_&);
void bind_assign(py::module_&);
void bind_doubly_stochastic(py::module_&);
void bind_samples_loss(py::module_&);
void bind_cuda(py::module_&);  // in builds with device code, and in tests/cuda_model, which runs it without a GPU

}  // namespace ucmkd

namespace pybind11 {
namespace detail {

template <>
struct type_caster<ucmkd::Address> {
  using Number = make_caster<uintptr_t>;
  PYBIND11_TYPE_CASTER(ucmkd::Address, Number::name);

  bool load(handle source, bool convert) {
    Number number;
    if (!number.load(source, convert)) return false;
    value.number = cast_op<uintptr_t>(number);
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11
