// Compiled once per level (CMakeLists.txt): the table of that level's kernels.
#include "core/levels.h"
#include "core/simd.h"

namespace ucmkd {
namespace UK_LEVEL {

// Defined in the kernel files of this level.
template <class T>
void forward(sinkhorn::Forward<T>&);
template <class T>
void adjoint(sinkhorn::Adjoint<T>&);
template <class T>
void adjoint_log(sinkhorn::Adjoint<T>&);
template <class T>
void implicit(sinkhorn::Implicit<T>&);
template <class T>
void gradient(const sinkhorn::Gradient<T>&);
template <class T>
bool scales(bool, int64_t, int64_t, const T*, T*, int);
template <class T>
void centre(int64_t, int64_t, int64_t, const T*, const T*, T*, T*, int);
template <class T>
void finish(const cost::Features<T>&, T*, int);
template <class T>
void weigh(const cost::Features<T>&, const T*, T*, T*, T*, T*, int);
template <class T>
void set_apart(const cost::Features<T>&, const T*, T*, T*, T*, int);
template <class T>
void project(int64_t, int64_t, const T*, const T*, T*, int);
template <class T>
void l1_backward(int64_t, int64_t, int64_t, const T*, const T*, const T*, int64_t, int64_t, T*, int);
template <class T>
void shift_rows(int64_t, int64_t, const T*, const T*, T*, int);
template <class T>
void product_plain(const product::Plain<T>&);
template <class T>
void product_inner(const product::Inner<T>&);
template <class T>
void product_pack(int64_t, int64_t, const T*, T*, int);
template <class T>
void label_transport_forward(label_transport::Forward<T>&);
template <class T>
bool panel_columns(const sinkhorn::Panels<T>&, const T*, T*, T*);
template <class T>
void panel_iterate(const sinkhorn::Panels<T>&, bool, const T*, const T*, T*, T*);
template <class T>
void panel_plan(const sinkhorn::Panels<T>&, const T*, const T*, T*, T*, T*);
template <class T>
void panel_adjoint(const sinkhorn::Panels<T>&, const T*, const T*, const T*, const T*, T*, T*);
template <class T>
void panel_adjoint_log(const sinkhorn::Panels<T>&, const T*, const T*, const T*, const T*, const T*, T*, T*);
template <class T>
void panel_gradient(const sinkhorn::Panels<T>&, const sinkhorn::PanelGradient<T>&);

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
    store_part(y + k, exp(load_part(x + k, count - k, T(0))),
               count - k < Lanes<T>::W ? count - k : Lanes<T>::W);
}

template <class T>
constexpr Kernels<T> table() {
  return {{forward<T>, adjoint<T>, adjoint_log<T>, implicit<T>, gradient<T>},
          {panel_columns<T>, panel_iterate<T>, panel_plan<T>, panel_adjoint<T>, panel_adjoint_log<T>,
           panel_gradient<T>},
          {scales<T>, centre<T>, finish<T>, weigh<T>, set_apart<T>, project<T>, shift_rows<T>, l1_backward<T>},
          {product_plain<T>, product_inner<T>, product_pack<T>},
          {label_transport_forward<T>}};
}

#define UK_STRING_OF(x) #x
#define UK_STRING(x) UK_STRING_OF(x)

}  // namespace

extern const Level the_level;
const Level the_level = {UK_STRING(UK_LEVEL), supported,        table<float>(),
                         table<double>(),     exp_array<float>, exp_array<double>};

}  // namespace UK_LEVEL
}  // namespace ucmkd
