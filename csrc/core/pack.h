// Elements that are read and written together, with one instruction where the address is a multiple of their size.
#pragma once
#include "core/host_device.h"

namespace ucmkd {

template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T e[kCount];
};

// A store to global memory that the compiler cannot take apart again; it does behind branches.
template <class T, int kCount>
UK_HOST_DEVICE void store_together(T* to, const Pack<T, kCount>& from) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4 && kCount == 4) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(from.e[0]), "f"(from.e[1]), "f"(from.e[2]),
                 "f"(from.e[3])
                 : "memory");
    return;
  } else if constexpr (sizeof(T) == 8 && kCount == 2) {
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(to), "d"(from.e[0]), "d"(from.e[1]) : "memory");
    return;
  }
#endif
  *reinterpret_cast<Pack<T, kCount>*>(to) = from;
}

}  // namespace ucmkd
