// Functions for calls so small that pybind11 would be felt: it makes and interns a string for every name of
// every call, 70 ns each. Here names are interned once, and those of a call are found by comparing pointers.
#pragma once
#include <exception>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "bind/bind.h"

namespace ucmkd {

// A number, address or record from what Python hands over.
template <class T>
struct FromPython {
  static const T& read(PyObject* o) { return *py::cast<const T*>(py::handle(o)); }
};
template <>
struct FromPython<int64_t> {
  static int64_t read(PyObject* o) {
    const long long number = PyLong_AsLongLong(o);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
  }
};
template <>
struct FromPython<Address> {
  static Address read(PyObject* o) {
    const unsigned long long number = PyLong_AsUnsignedLongLong(o);
    if (number == ~0ull && PyErr_Occurred()) throw py::error_already_set();
    return {static_cast<uintptr_t>(number)};
  }
};
template <>
struct FromPython<double> {
  static double read(PyObject* o) {
    const double number = PyFloat_AsDouble(o);
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
  }
};
template <>
struct FromPython<bool> {
  static bool read(PyObject* o) {
    if (o == Py_True || o == Py_False) return o == Py_True;
    throw py::type_error("expected True or False");
  }
};

// kFunction as Python calls it: the first arguments by position, the others by name, all of them.
template <auto kFunction>
struct Fast;
template <class... Args, py::object (*kFunction)(Args...)>
struct Fast<kFunction> {
  static constexpr Py_ssize_t kCount = sizeof...(Args);

  static void define(py::module_& module, const char* name, Py_ssize_t by_position,
                     const char* const (&arguments)[kCount]) {
    positional = by_position;
    for (Py_ssize_t k = 0; k < kCount; ++k) names[k] = PyUnicode_InternFromString(arguments[k]);
    method = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
              METH_FASTCALL | METH_KEYWORDS, nullptr};
    module.add_object(name, py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr)));
  }

 private:
  static inline PyMethodDef method;
  static inline Py_ssize_t positional;
  static inline PyObject* names[kCount];

  static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t count, PyObject* given_names) {
    const Py_ssize_t named = given_names ? PyTuple_GET_SIZE(given_names) : 0;
    try {
      if (count != positional || count + named != kCount)
        throw py::type_error(std::string(method.ml_name) + " takes " + std::to_string(positional) +
                             " by position and " + std::to_string(kCount - positional) + " by name, got " +
                             std::to_string(count) + " and " + std::to_string(named));
      PyObject* values[kCount];
      for (Py_ssize_t k = 0; k < count; ++k) values[k] = given[k];
      for (Py_ssize_t k = count; k < kCount; ++k)
        values[place_of(PyTuple_GET_ITEM(given_names, k - count), k)] = given[k];
      return run(values, std::index_sequence_for<Args...>());
    } catch (py::error_already_set& error) {
      error.restore();
    } catch (const py::builtin_exception& error) {
      error.set_error();
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }

  template <size_t... k>
  static PyObject* run(PyObject* const* values, std::index_sequence<k...>) {
    return kFunction(FromPython<std::decay_t<Args>>::read(values[k])...).release().ptr();
  }

  // Of the argument of that name; most calls have them in our order.
  static Py_ssize_t place_of(PyObject* name, Py_ssize_t expected) {
    if (names[expected] == name) return expected;
    for (Py_ssize_t k = positional; k < kCount; ++k)
      if (names[k] == name) return k;
    for (Py_ssize_t k = positional; k < kCount; ++k)
      if (PyUnicode_Compare(names[k], name) == 0) return k;
    throw py::type_error(std::string(method.ml_name) + " has no argument " +
                         py::repr(name).cast<std::string>());
  }
};

}  // namespace ucmkd
