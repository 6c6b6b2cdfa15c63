// Places in blocks of memory that need not be there.
#pragma once
#include <stdint.h>

namespace ucmkd {

// base + elements, or null where base is.
template <class T>
static inline T* offset(void* base, int64_t elements) {
  return base ? static_cast<T*>(base) + elements : nullptr;
}
template <class T>
static inline const T* offset(const void* base, int64_t elements) {
  return base ? static_cast<const T*>(base) + elements : nullptr;
}

}  // namespace ucmkd
