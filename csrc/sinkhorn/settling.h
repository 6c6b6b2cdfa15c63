// When nothing but a constant still moves. Unbalanced half-steps take f + c to g - lambda_b c and that to
// f + lambda_a lambda_b c, whatever f is: once all rows move alike, the iterations that are left are those of one number.
#pragma once
#include <math.h>

#include "core/simd.h"
#include "sinkhorn/rules.h"

namespace ucmkd {
namespace UK_LEVEL {

// 1 + r + ... + r^(count - 1) for r in (0, 1].
static inline double geometric(double r, double count) { return r < 1 ? ::expm1(count * ::log(r)) / (r - 1) : count; }

// Looks at u_t every few iterations. All rows move alike where for a while their ratios have stayed within `kNoise`, the
// rounding of one iteration. What may still move is a part of that per iteration; all of it together shrinks by r at least,
// from one iteration to the next: so that `kLeft` times the noise is the most that is missed.
template <class T>
class Settling {
 public:
  static constexpr int64_t kLook = 4, kWindow = 8, kLeft = 8;
  static constexpr T kNoise = 32 * T(sinkhorn::Rules<T>::kRounding);

  Settling(T* work, int64_t padded_size) : from(work), size(padded_size) {}
  // Behind iteration t, which nothing before is to be compared with.
  void start(int64_t t, const T* u) { copy(u, from, size), since = t; }

  // Whether they do, behind iteration t with `left` to come. Vectors are padded.
  bool now(int64_t t, const T* u, const T* mass, double r, double left) {
    if (t % kLook) return false;
    constexpr int W = Lanes<T>::W;
    Vec<T> above = {}, below = {}, sums = {}, parts = {};  // below: the greatest inverse
    for (int64_t k = 0; k < size; k += W) {
      const auto part = load(mass + k) > 0;
      const Vec<T> one = Vec<T>{} + 1, now = part ? load(u + k) : one, before = part ? load(from + k) : one;
      const Vec<T> ratio = now / before;
      above = vmax<T>(above, part ? ratio : Vec<T>{});
      below = vmax<T>(below, part ? before / now : Vec<T>{});
      sums += part ? ratio : Vec<T>{};
      parts += part ? one : Vec<T>{};
    }
    if (!(greatest<T>(above) * greatest<T>(below) <= 1 + kNoise)) return start(t, u), false;
    moved_ = ::log(double(sum<T>(sums)) / double(sum<T>(parts)));
    return t - since >= kWindow && kLeft * double(t - since) >= geometric(r, left);
  }

  // Of log u_t, in the last iteration: r is what is left of a move from one to the next.
  double step(int64_t t, double r) const {
    const double count = double(t - since);
    return moved_ * ::exp((count - 1) * ::log(r)) / geometric(r, count);
  }
  // The iteration from which on they have.
  int64_t first() const { return since > 0 ? since : 1; }
  // Over all iterations that were looked at.
  double moved() const { return moved_; }

 private:
  T* const from;  // u of iteration `since`
  const int64_t size;
  int64_t since = 0;
  double moved_ = 0;
};

}  // namespace UK_LEVEL
}  // namespace ucmkd
