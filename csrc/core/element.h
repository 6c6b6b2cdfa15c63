// Types of the elements of a matrix that kernels read or write as it is.
#pragma once
#include <stdint.h>

namespace ucmkd {

enum class Element : int { kFloat, kDouble, kHalf, kBFloat16 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// body(a null pointer of the type)
template <class Body>
static inline void by_element(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat: return body(static_cast<float*>(nullptr));
    case Element::kDouble: return body(static_cast<double*>(nullptr));
    case Element::kHalf: return body(static_cast<Half*>(nullptr));
    case Element::kBFloat16: return body(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace ucmkd
