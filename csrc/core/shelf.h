// How a kernel takes its work vectors from the block that it is given.
#pragma once
#include <stdint.h>

namespace ucmkd {
namespace UK_LEVEL {

// Hands out zeroed pieces, one after the other. Sizes are padded ones: every piece is aligned as the block
// is.
template <class T>
class Shelf {
 public:
  explicit Shelf(T* block) : next_(block) {}
  T* take(int64_t size) {
    T* mine = next_;
    for (int64_t k = 0; k < size; ++k) mine[k] = 0;
    next_ += size;
    return mine;
  }

 private:
  T* next_;
};

}  // namespace UK_LEVEL
}  // namespace ucmkd
