// SPDX-License-Identifier: Apache-2.0
#include "fabric/sim/marks.h"

#include <mutex>

#include "base/check.h"
#include "base/mark.h"

namespace ibnbd::sim {
namespace {
struct Registry {
  std::mutex mutex;
  bool in_use = false;
  std::map<std::string, std::uint64_t> counts;
};
Registry& GetRegistry() {
  static Registry* registry = new Registry;  // Never destroyed: threads may mark during exit.
  return *registry;
}
}  // namespace

Marks::Marks() {
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  CHECK(!registry.in_use);
  registry.in_use = true;
  registry.counts.clear();
  SetMarkSink([](const char* text) {
    Registry& sink = GetRegistry();
    std::lock_guard<std::mutex> sink_lock(sink.mutex);
    ++sink.counts[text];
  });
}

Marks::~Marks() {
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  SetMarkSink(nullptr);
  registry.in_use = false;
}

std::uint64_t Marks::count(const std::string& text) const {
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  const auto found = registry.counts.find(text);
  return found == registry.counts.end() ? 0 : found->second;
}

std::map<std::string, std::uint64_t> Marks::counts() const {
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  return registry.counts;
}

}  // namespace ibnbd::sim
