// `define` and `define_record`, in the place of pybind11's module.def and constructors, which small calls
// feel: pybind11 makes and interns a string for every name of every call, and a class that is called by name
// turns the names into a dictionary and back. A record of 16 numbers took 2 to 5 us so. Here names are
// interned once and found by comparing pointers, and a record is what a function returns: 0.4 us.
#pragma once
#include <pybind11/stl.h>

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/bind.h"

namespace ucmkd {

// The names of a function's arguments and what stands for them where they are not given.
class Signature {
 public:
  explicit Signature(const char* name) : name_(name) {}
  void add(const py::arg& argument) { add(argument.name, py::object()); }
  void add(const py::arg_v& argument) { add(argument.name, argument.value); }
  void add(const py::kw_only&) { by_position_ = static_cast<Py_ssize_t>(names_.size()); }
  void add(const Unlocked&) { unlocked_ = true; }
  bool unlocked() const { return unlocked_; }
  size_t size() const { return names_.size(); }
  std::string text() const;  // as `inspect.signature` reads it

  // The values of a call in our order. Throws TypeError.
  void arrange(PyObject* const* given, Py_ssize_t by_position, PyObject* given_names, PyObject** values) const;

 private:
  void add(const char* name, const py::object& missing);
  size_t place_of(PyObject* name, size_t expected) const;

  const char* name_;
  Py_ssize_t by_position_ = -1;  // arguments that may be given so; -1: all
  bool unlocked_ = false;
  std::vector<PyObject*> names_;
  std::vector<py::object> missing_;  // or null
};

// To be called in a catch block: what was thrown becomes the interpreter's error.
void raise_in_python();

namespace from_python {

inline void check(bool failed) {
  if (failed && PyErr_Occurred()) throw py::error_already_set();
}
// Records, and pointers to them that may be null.
template <class T>
struct Read {
  static T of(PyObject* o) {
    try {
      return py::cast<T>(py::handle(o));
    } catch (const py::builtin_exception&) {
      throw py::type_error("expected " + py::type_id<T>() + ", got " + Py_TYPE(o)->tp_name);
    }
  }
};
template <>
struct Read<int64_t> {
  static int64_t of(PyObject* o) {
    const long long number = PyLong_AsLongLong(o);
    return check(number == -1), number;
  }
};
template <>
struct Read<int> {
  static int of(PyObject* o) {
    const int64_t number = Read<int64_t>::of(o);
    if (number != static_cast<int>(number)) throw py::type_error("expected an int of 32 bits");
    return static_cast<int>(number);
  }
};
template <>
struct Read<Address> {
  static Address of(PyObject* o) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(o);
    return check(number == ~0ull), Address{static_cast<uintptr_t>(number)};
  }
};
template <>
struct Read<double> {
  static double of(PyObject* o) {
    const double number = PyFloat_AsDouble(o);
    return check(number == -1), number;
  }
};
template <>
struct Read<bool> {
  static bool of(PyObject* o) {
    if (o != Py_True && o != Py_False) throw py::type_error("expected True or False");
    return o == Py_True;
  }
};

}  // namespace from_python

template <class Result, class... Args>
struct Function {
  Signature signature;
  Result (*body)(Args...);
  std::string text;
  PyMethodDef method;

  static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t by_position, PyObject* given_names) {
    const auto& function = *static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
    try {
      PyObject* values[sizeof...(Args)];
      function.signature.arrange(given, by_position, given_names, values);
      return function.run(values, std::index_sequence_for<Args...>());
    } catch (...) {
      raise_in_python();
      return nullptr;
    }
  }

 private:
  template <size_t... k>
  PyObject* run(PyObject* const* values, std::index_sequence<k...>) const {
    return in_python(from_python::Read<Args>::of(values[k])...);
  }
  PyObject* in_python(Args... args) const {
    if constexpr (std::is_void_v<Result>) {
      without_lock(args...);
      Py_RETURN_NONE;
    } else if constexpr (std::is_same_v<Result, py::object>) {
      return body(args...).release().ptr();
    } else {
      return py::cast(without_lock(args...)).release().ptr();
    }
  }
  Result without_lock(Args... args) const {
    if (!signature.unlocked()) return body(args...);
    py::gil_scoped_release unlocked;
    return body(args...);
  }
};

template <class Result, class... Args, class... Extras>
void define_function(py::module_& module, const char* name, Result (*body)(Args...), const Extras&... extras) {
  using F = Function<Result, Args...>;
  auto* function = new F{Signature(name), body, {}, {}};  // for as long as the process lives
  (function->signature.add(extras), ...);
  if (function->signature.size() != sizeof...(Args)) py::pybind11_fail("every argument needs a name");
  function->text = function->signature.text();
  function->method = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&F::call)),
                      METH_FASTCALL | METH_KEYWORDS, function->text.c_str()};
  PyObject* made = PyCFunction_New(&function->method, py::capsule(static_cast<void*>(function)).ptr());
  module.add_object(name, py::reinterpret_steal<py::object>(made), true);
}

template <class Record, class... Args>
Record record_of(Record (*)(Args...));

// As module.def(name, body, extras...); the body captures nothing.
template <class Body, class... Extras>
void define(py::module_& module, const char* name, Body body, const Extras&... extras) {
  define_function(module, name, +body, extras...);
}

// A class that Python makes by calling `body`; its name in the module is that of the function.
template <class Body, class... Extras>
void define_record(py::module_& module, const char* name, Body body, const Extras&... extras) {
  py::class_<decltype(record_of(+body))>(module, name).release();
  define(module, name, body, extras...);
}

}  // namespace ucmkd
