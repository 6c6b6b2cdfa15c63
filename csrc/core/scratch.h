// Work space of one call, aligned for the widest vectors.
#pragma once
#include <stdint.h>

#include <cstdlib>
#include <new>

namespace ucmkd {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    if (count < 0 || count > INT64_MAX / 64) throw std::bad_alloc();
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes ? bytes : 64));
    if (!data_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }

 private:
  T* data_;
};

}  // namespace ucmkd
