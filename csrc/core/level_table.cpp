// Compiled once per level (CMakeLists.txt): what this level is, and all of its kernels.
#include "core/level_table.h"

#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {
namespace {

bool supported() {
#if defined(__x86_64__) && UK_X86_LEVEL == 4
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
#elif defined(__x86_64__) && UK_X86_LEVEL == 3
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
  return true;
#endif
}

template <class T>
void exp_array(const T* x, T* y, int64_t count) {
  for (int64_t k = 0; k < count; k += Lanes<T>::W)
    store_part(y + k, exp(load_part(x + k, count - k, T(0))), count - k < Lanes<T>::W ? count - k : Lanes<T>::W);
}

#define UK_STRING_OF(x) #x
#define UK_STRING(x) UK_STRING_OF(x)
#define UK_TABLES(type)                                                                \
  {forward_kernels.type,           unbalanced_kernels.type,      adjoint_kernels.type, \
   gradient_kernels.type,          panel_kernels.type,           cost_kernels.type,    \
   product_kernels.type,           label_transport_kernels.type, assign_kernels.type,  \
   doubly_stochastic_kernels.type, samples_loss_kernels.type}

}  // namespace

extern const Level the_level;
const Level the_level = {UK_STRING(UK_LEVEL), UK_BYTES,         supported,        UK_TABLES(f32),
                         UK_TABLES(f64),      exp_array<float>, exp_array<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd
