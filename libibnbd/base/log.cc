// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <mutex>
#include <utility>

namespace ibnbd {
namespace {
struct State {
  std::mutex mutex;
  LogSink sink;
  std::atomic<int> level{static_cast<int>(LogLevel::kWarn)};
};
State& GetState() {
  static State* state = new State;  // Never destroyed: threads may log during exit.
  return *state;
}
}  // namespace

void SetLogSink(LogSink sink, LogLevel level) {
  State& state = GetState();
  std::lock_guard<std::mutex> lock(state.mutex);
  state.sink = std::move(sink);
  state.level.store(static_cast<int>(level), std::memory_order_relaxed);
}

bool LogEnabled(LogLevel level) {
  return static_cast<int>(level) <= GetState().level.load(std::memory_order_relaxed);
}

void LogLine(LogLevel level, const std::string& line) {
  static constexpr const char* kNames[] = {"error", "warn", "info", "debug"};
  State& state = GetState();
  std::lock_guard<std::mutex> lock(state.mutex);
  if (state.sink) {
    state.sink(level, line);
  } else {
    std::fprintf(stderr, "ibnbd: %s: %s\n", kNames[static_cast<int>(level)], line.c_str());
  }
}

}  // namespace ibnbd
