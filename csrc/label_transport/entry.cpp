#include "label_transport/entry.h"

#include "core/levels.h"
#include "core/parallel.h"

namespace ucmkd {
namespace label_transport {
namespace {

int64_t rows_kept(const int64_t* target, int64_t n, int64_t ignore_index) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) kept += target[i] != ignore_index;
  return kept;
}

}  // namespace

template <class T>
void forward(Forward<T>& call) {
  const int64_t useful = call.n * call.k / (8 * 1024);  // elements that pay for a second thread
  int64_t tasks = num_threads();
  tasks = useful < tasks ? useful : tasks;
  tasks = call.n < tasks ? call.n : tasks;
  call.tasks = tasks < 1 ? 1 : static_cast<int>(tasks);
  call.grad_share = call.mean ? 1 / T(rows_kept(call.target, call.n, call.ignore_index)) : T(1);
  with_helpers(2 * kExpWork * times(call.n, call.k), [&] { kernels<T>().label_transport.forward(call); });
}
template void forward<float>(Forward<float>&);
template void forward<double>(Forward<double>&);

}  // namespace label_transport
}  // namespace ucmkd
