// SPDX-License-Identifier: Apache-2.0
// One host's poller as the conformance tests look at it: everything that came out of it is kept.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabric/fabric.h"

namespace ibnbd::fabric {

inline std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct SeenEvent {
  CmEvent::Kind kind;
  std::uint64_t context;
  Connection* connection;
  std::string private_data;
  int error;
};

// A host's poller with all that came out of it.
struct Side {
  Poller* poller = nullptr;
  std::vector<Completion> completions;
  std::vector<SeenEvent> events;
  std::vector<std::unique_ptr<Incoming>> incoming;

  void Poll() {
    std::array<Completion, 8> batch;
    const std::size_t count = poller->PollCompletions(batch);
    completions.insert(completions.end(), batch.begin(), batch.begin() + count);
    std::array<CmEvent, 4> some;
    const std::size_t event_count = poller->PollEvents(some);
    for (std::size_t i = 0; i < event_count; ++i) {
      events.push_back({some[i].kind, some[i].context, some[i].connection,
                        Text(some[i].private_data), some[i].error});
      if (some[i].incoming) incoming.push_back(std::move(some[i].incoming));
    }
  }
  std::size_t Count(CmEvent::Kind kind) const {
    return static_cast<std::size_t>(
        std::count_if(events.begin(), events.end(), [&](const auto& e) { return e.kind == kind; }));
  }
  const SeenEvent* Find(CmEvent::Kind kind) const {
    for (const SeenEvent& event : events) {
      if (event.kind == kind) return &event;
    }
    return nullptr;
  }
  std::vector<Completion> Of(Cookie cookie) const {
    std::vector<Completion> found;
    for (const Completion& c : completions) {
      if (c.cookie == cookie) found.push_back(c);
    }
    return found;
  }
  WcStatus StatusOf(Cookie cookie) const {
    const auto found = Of(cookie);
    EXPECT_EQ(found.size(), 1u) << "completions of cookie " << cookie;
    return found.empty() ? WcStatus::kLocalFault : found.front().status;
  }
};

}  // namespace ibnbd::fabric
