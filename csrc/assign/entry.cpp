#include "assign/entry.h"

#include "core/levels.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace ucmkd {
namespace assign {
namespace {

template <class T>
int tasks_of(const Rows<T>& rows) {
  const int64_t useful = rows.n * rows.k / (8 * 1024);  // elements that pay for a second thread
  const int64_t quads = (rows.n + kQuad - 1) / kQuad;
  int64_t tasks = num_threads();
  tasks = useful < tasks ? useful : tasks;
  tasks = quads < tasks ? quads : tasks;
  return tasks < 1 ? 1 : static_cast<int>(tasks);
}

template <class T>
double work(const Rows<T>& rows, double of_element) {
  return of_element * times(rows.n, rows.k);
}

}  // namespace

template <class T>
void columns(Columns<T>& call) {
  call.rows.tasks = tasks_of(call.rows);
  const int64_t size = call.rows.tasks * call.rows.k;
  Scratch<T> levels(size), space((kQuad + 1) * size);
  Scratch<double> sums(size);
  call.levels = levels.data(), call.sums = sums.data(), call.space = space.data();
  with_helpers(work(call.rows, kExpWork), [&] { kernels<T>().assign.columns(call); });
}
template void columns<float>(Columns<float>&);
template void columns<double>(Columns<double>&);

template <class T>
void sweep(Sweep<T>& call) {
  call.rows.tasks = tasks_of(call.rows);
  const int64_t size = call.rows.tasks * call.rows.k;
  Scratch<T> space((kQuad + 1) * size);
  Scratch<double> sums(size);
  call.sums = sums.data(), call.space = space.data();
  with_helpers(work(call.rows, call.made ? kPassWork : kExpWork), [&] { kernels<T>().assign.sweep(call); });
}
template void sweep<float>(Sweep<float>&);
template void sweep<double>(Sweep<double>&);

}  // namespace assign
}  // namespace ucmkd
