// SPDX-License-Identifier: Apache-2.0
#include "capi/handles.h"

#include <unordered_set>

namespace ibnbd::capi {
namespace {

thread_local bool t_in_callback = false;

struct Registry {
  std::mutex mutex;
  std::unordered_set<const void*> handles;
};
Registry& OpenHandles() {
  static Registry& registry = *new Registry;  // Never destroyed: threads may outlive main().
  return registry;
}

}  // namespace

bool InCallback() { return t_in_callback; }
void SetInCallback(bool inside) { t_in_callback = inside; }

void RememberHandle(const void* handle) {
  Registry& registry = OpenHandles();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  registry.handles.insert(handle);
}

bool ForgetHandle(const void* handle) {
  Registry& registry = OpenHandles();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  return registry.handles.erase(handle) != 0;
}

bool IsOpenHandle(const void* handle) {
  Registry& registry = OpenHandles();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  return registry.handles.contains(handle);
}

}  // namespace ibnbd::capi
