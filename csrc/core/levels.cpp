#include "core/levels.h"

#include <cstdlib>
#include <cstring>

#include "core/parallel.h"

namespace ucmkd {

// UK_LEVELS is a list like X(baseline) X(v3) X(v4), from CMakeLists.txt.
#define X(name)                 \
  namespace name {              \
  extern const Level the_level; \
  }
UK_LEVELS
#undef X

const Level* const* built_levels(int* count) {
  static const Level* const all[] = {
#define X(name) &name::the_level,
      UK_LEVELS
#undef X
  };
  *count = sizeof(all) / sizeof(all[0]);
  return all;
}

namespace {
struct Choice {
  const Level* level = nullptr;
  const char* error = nullptr;
  Choice() {
    int count;
    const Level* const* all = built_levels(&count);
    const char* wanted = std::getenv("UCMKD_CPU_LEVEL");
    for (int k = 0; k < count; ++k) {
      if (!all[k]->supported()) continue;
      if (!wanted || !*wanted || std::strcmp(wanted, all[k]->name) == 0) level = all[k];
    }
    if (!level) error = "UCMKD_CPU_LEVEL names a level that was not built or that this processor does not support";
  }
};
const Choice& choice() {
  static const Choice made;
  return made;
}
}  // namespace

const Level* level(const char** error) {
  if (error) *error = choice().error;
  return choice().level;
}

double least_work() {
  const Level* chosen = level(nullptr);
  return chosen ? kLeastWork * chosen->vector_bytes / 64 : kLeastWork;
}

template <>
const Kernels<float>& kernels<float>() {
  return level(nullptr)->f32;
}
template <>
const Kernels<double>& kernels<double>() {
  return level(nullptr)->f64;
}

}  // namespace ucmkd
