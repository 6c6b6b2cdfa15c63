// The steps of steps.cuh as a visit asks for them: of a panel (panel.cu), or of all rows (streamed.cu). A launch looks
// itself up whether it is still to run: nobody waits to tell it.
#pragma once
#include <type_traits>

#include "sinkhorn/cuda.h"
#include "sinkhorn/steps.cuh"
#include "sinkhorn/unbalanced.cuh"

namespace ucmkd {
namespace sinkhorn {
namespace {

// Whether what the kernel is for has already ended.
template <class T>
__device__ bool over(const DeviceProblem<T>& p, const PanelCall<T>& c) {
  if (c.stop && *c.stop) return true;
  return c.sweep == Sweep::kBack && (c.t > *p.n_iter || c.t <= *c.first);
}

// A step by its type alone.
template <class S>
struct Named {
  using Step = S;
};

// The plan's columns, of costs less what their rows hand back: the mean cost, damped.
template <class T>
struct Centred : First<T> {
  using First<T>::p;
  T damping;
  __device__ Centred(const First<T>& first, T of_rows) : First<T>(first), damping(of_rows) {}
  __device__ RowValue<T> given(int i) const { return {p.f()[i], 0, damping * p.alpha()[i]}; }
};

// The step of a sweep, from the call.
template <class T>
__device__ Start<T> make(Named<Start<T>>, const One<T>& p, const PanelCall<T>&) {
  return {p, p.f_at(0), 1 / p.reg(), false};
}
template <class T>
__device__ Iterate<T> make(Named<Iterate<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {p, p.g_at(c.t), p.f_at(c.t), p.log_f_at(c.t), 1 / p.reg(), c.relaxed && *c.relaxed};
}
template <class T>
__device__ Value<T> make(Named<Value<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {p, p.f(), p.g(), 1 / p.reg(), c.centre, 0, 0};
}
template <class T>
__device__ Centred<T> make(Named<Centred<T>>, const One<T>& p, const PanelCall<T>&) {
  return {{p, p.g(), nullptr, 1 / p.reg(), T(1)}, Damped<T>::rows(p, 0).lambda};
}
template <class T>
__device__ Back<T> make(Named<Back<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {p,        c.t,        p.log_g_at(c.t), c.dg + (c.t - 1) * p.m(), p.g_at(c.t - 1), c.df + (c.t - 2) * p.n(),
          c.grad_a, 1 / p.reg()};
}
template <class T>
__device__ ColumnMass<T> make(Named<ColumnMass<T>>, const One<T>& p, const PanelCall<T>&) {
  return {p, 1 / p.reg()};
}
template <class T>
__device__ FixedPoint<T> make(Named<FixedPoint<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {p, p.log_f_at(*p.n_iter()), c.share, c.df, c.grad_a, 1 / p.reg()};
}
template <class T>
__device__ DampedIterate<T> make(Named<DampedIterate<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {make(Named<Iterate<T>>(), p, c), Damped<T>::rows(p, c.held[0])};
}
template <class T>
__device__ DampedBack<T> make(Named<DampedBack<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {make(Named<Back<T>>(), p, c), Damped<T>::rows(p, c.held[0]), PulledShift{c.held[1]}};
}
template <class T>
__device__ DampedFixedPoint<T> make(Named<DampedFixedPoint<T>>, const One<T>& p, const PanelCall<T>& c) {
  return {make(Named<FixedPoint<T>>(), p, c), Damped<T>::rows(p, c.held[0]), PulledShift{c.held[1]}};
}

// What a row leaves beside what it hands to the columns; by the thread that finished it.
template <class T, class Step>
__device__ void keep_row(const Step& step, const PanelCall<T>& call, int i) {
  if constexpr (std::is_same_v<Step, Value<T>>) {
    if (!step.centre) call.row_value[i] = T(step.value);
  }
}
// What the columns' pass found, by every thread.
template <class T, class Step>
__device__ void keep_flags(const Step& step, const DeviceProblem<T>& p) {
  if constexpr (std::is_same_v<Step, Start<T>>) {
    if (step.bad) cuda::atomic_or(p.flags, kFlagOverflow);
  }
}

// What a sweep visits the rows and the columns with: body.rows(step, finish), where `finish` sums as `step` does and ends
// the rows, and body.columns(step), by their types; the plan twice over the rows, the second time centred.
template <class T, class Body>
const char* with_steps(const PanelCall<T>& call, const Body& body) {
  auto both = [&](auto step, auto damped) {
    const char* refused = call.held ? body.rows(step, damped, call) : body.rows(step, step, call);
    return refused ? refused : body.columns(step, call);
  };
  switch (call.sweep) {
    case Sweep::kStart: return body.columns(Named<Start<T>>(), call);
    case Sweep::kIterate: return both(Named<Iterate<T>>(), Named<DampedIterate<T>>());
    case Sweep::kPlan: {
      PanelCall<T> again = call;
      for (const bool centre : {false, true}) {
        again.centre = centre;
        if (const char* refused = body.rows(Named<Value<T>>(), Named<Value<T>>(), again)) return refused;
      }
      return body.columns(Named<Centred<T>>(), again);
    }
    case Sweep::kBack: return both(Named<Back<T>>(), Named<DampedBack<T>>());
    case Sweep::kColumnMass: return body.columns(Named<ColumnMass<T>>(), call);
    case Sweep::kFixedPoint: return both(Named<FixedPoint<T>>(), Named<DampedFixedPoint<T>>());
  }
  return "no such sweep";
}

}  // namespace
}  // namespace sinkhorn
}  // namespace ucmkd
