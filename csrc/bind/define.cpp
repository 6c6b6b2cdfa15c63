#include "bind/define.h"

#include <exception>
#include <new>
#include <string>

namespace ucmkd {

void Signature::add(const char* name, const py::object& missing) {
  names_.push_back(PyUnicode_InternFromString(name));
  missing_.push_back(missing);
}

std::string Signature::text() const {
  std::string result = std::string(name_) + "(";
  for (size_t k = 0; k < size(); ++k) {
    if (static_cast<Py_ssize_t>(k) == by_position_) result += "*, ";
    result += py::cast<std::string>(py::handle(names_[k]));
    if (missing_[k]) result += "=" + py::cast<std::string>(py::repr(missing_[k]));
    result += k + 1 < size() ? ", " : "";
  }
  return result + ")\n--\n\n";
}

void Signature::arrange(PyObject* const* given, Py_ssize_t by_position, PyObject* given_names,
                        PyObject** values) const {
  const size_t count = size(), positional = static_cast<size_t>(by_position);
  if (positional > (by_position_ < 0 ? count : static_cast<size_t>(by_position_)))
    throw py::type_error(std::string(name_) + "() takes its arguments by name, got " + std::to_string(positional) +
                         " by position");
  for (size_t k = 0; k < count; ++k) values[k] = k < positional ? given[k] : nullptr;
  const Py_ssize_t named = given_names ? PyTuple_GET_SIZE(given_names) : 0;
  size_t place = positional - 1;
  for (Py_ssize_t k = 0; k < named; ++k) {
    place = place_of(PyTuple_GET_ITEM(given_names, k), place + 1);
    if (place < positional)
      throw py::type_error(std::string(name_) + "() got an argument twice, by position and by name");
    values[place] = given[by_position + k];
  }
  for (size_t k = 0; k < count; ++k) {
    if (!values[k]) values[k] = missing_[k].ptr();
    if (!values[k])
      throw py::type_error(std::string(name_) + "() needs the argument " +
                           py::cast<std::string>(py::handle(names_[k])));
  }
}

// Most calls name them in our order.
size_t Signature::place_of(PyObject* name, size_t expected) const {
  const size_t count = size();
  for (size_t k = expected; k < count; ++k)
    if (names_[k] == name) return k;
  for (size_t k = 0; k < count; ++k)
    if (PyUnicode_Compare(names_[k], name) == 0) return k;
  throw py::type_error(std::string(name_) + "() has no argument " + py::cast<std::string>(py::handle(name)));
}

void raise_in_python() {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

}  // namespace ucmkd
