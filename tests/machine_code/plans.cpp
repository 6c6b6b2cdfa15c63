// What regime.h plans for square problems in float on a device, a line of JSON per size:
//   plans multiprocessors shared_per_block size...
#include <cstdio>
#include <cstdlib>

#include "sinkhorn/regime.h"

using namespace ucmkd::sinkhorn;

namespace {

void print_owned(const char* name, const OwnedPlan& p) {
  std::printf(", \"%s\": {\"quads\": %d, \"rows\": %d, \"keeps\": %d, \"threads\": %d, \"groups\": %d, \"span\": %d, ",
              name, p.quads, p.rows,
              p.kept       ? 1
              : p.held > 0 ? 2
                           : 0,
              p.threads, p.groups, p.span);
  std::printf("\"held\": %d}", p.held);
}

}  // namespace

int main(int count, char** words) {
  if (count < 3) return 1;
  const DeviceProperties device{std::atoi(words[1]), std::atoll(words[2]), max_threads(4), false};
  for (int k = 3; k < count; ++k) {
    const int64_t n = std::atoll(words[k]);
    const Plan plan = make_plan(Regime::kAuto, n, n, 1, 4, device);
    std::printf("{\"n\": %lld, \"regime\": %d, \"grid\": %d, \"tile\": %d", static_cast<long long>(n), int(plan.regime),
                plan.grid, gradient_tile(n, n, 1, 4, device.multiprocessors));
    print_owned("forward", plan.owned), print_owned("adjoint", plan.back);
    std::printf("}\n");
  }
}
