#include "doubly_stochastic/entry.h"

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace doubly_stochastic {

template <class T>
void run(Call<T>& call) {
  const Kernels<T>& k = kernels<T>().doubly_stochastic;
  const double passes = call.upstream ? 8 : 2;  // over a matrix per iteration, a multiply-add for each element
  const double work =
      passes * times(call.batch, call.n, call.m, call.n_iter) + kExpWork * times(call.batch, call.n, call.m);
  const int64_t groups = (call.batch + k.group(call) - 1) / k.group(call);
  const double useful = work / 1e6;  // tasks of less cost more than they save
  int64_t tasks = num_threads();
  tasks = useful < double(tasks) ? int64_t(useful) : tasks;
  tasks = groups < tasks ? groups : tasks;
  call.tasks = tasks < 1 ? 1 : static_cast<int>(tasks);
  call.work_size = k.work_size(call);
  Scratch<T> scratch(call.tasks * call.work_size);
  call.work = scratch.data();
  with_helpers(work, [&] { k.run(call); });
}
template void run<float>(Call<float>&);
template void run<double>(Call<double>&);

}  // namespace doubly_stochastic
}  // namespace ucmkd
