#include "label_transport/entry.h"

#include "core/levels.h"
#include "core/parallel.h"

namespace ucmkd {
namespace label_transport {

template <class T>
void forward(Forward<T>& call) {
  const int64_t useful = call.n * call.k / (8 * 1024);  // elements that pay for a second thread
  int64_t tasks = num_threads();
  tasks = useful < tasks ? useful : tasks;
  tasks = call.n < tasks ? call.n : tasks;
  call.tasks = tasks < 1 ? 1 : static_cast<int>(tasks);
  kernels<T>().label_transport.forward(call);
}
template void forward<float>(Forward<float>&);
template void forward<double>(Forward<double>&);

}  // namespace label_transport
}  // namespace ucmkd
