// SPDX-License-Identifier: Apache-2.0
// Connections of one reactor on a device that cannot make a completion queue longer.  Soft-RoCE
// can: this program's own ibv_resize_cq() refuses for it.
#include <dlfcn.h>
#include <infiniband/verbs.h>

#include <cerrno>

#include "fabric/conformance_fixture.h"

namespace {
bool resize_refused = false;
int refusal_count = 0;
}  // namespace

extern "C" int ibv_resize_cq(ibv_cq* cq, int entries) {
  using Resize = int (*)(ibv_cq*, int);
  static const Resize next = reinterpret_cast<Resize>(dlsym(RTLD_NEXT, "ibv_resize_cq"));
  if (!resize_refused) return next(cq, entries);
  ++refusal_count;
  return EOPNOTSUPP;
}

namespace ibnbd::fabric {

TEST_P(ConformanceTest, AQueueThatCannotGrowIsJoinedByOthers) {
  resize_refused = true;
  refusal_count = 0;
  std::vector<std::unique_ptr<Connection>> others;
  ASSERT_NO_FATAL_FAILURE(Listen(1));
  // The first queue has 1024 entries: room for one of the first three, and not for the last.
  std::size_t count = 0;
  for (const std::uint32_t per_kind : {500u, 500u, 500u, 1000u}) {
    ++count;
    limits_ = Limits{per_kind, per_kind, 4, 0};
    for (auto& end : ends_) {
      if (end) others.push_back(std::move(end));
    }
    ASSERT_NO_FATAL_FAILURE(StartConnect());
    ASSERT_NO_FATAL_FAILURE(Accept());
    ASSERT_TRUE(Until([&] {
      return side(0).Count(CmEvent::Kind::kEstablished) == count &&
             side(1).Count(CmEvent::Kind::kEstablished) == count;
    })) << "no connection "
        << count;
    Receive(1, 10 + count, Piece(1, 0, 64));
    Send(0, Opcode::kSend, 20 + count, Piece(0, 0, 64));
    EXPECT_TRUE(Until([&] { return Done(1, 10 + count) && Done(0, 20 + count); }));
  }
  EXPECT_GT(refusal_count, 0);
  for (auto& other : others) other->Disconnect();
  EXPECT_TRUE(Until([&] {
    return std::all_of(others.begin(), others.end(), [](const auto& o) { return o->drained(); });
  }));
  resize_refused = false;
}

}  // namespace ibnbd::fabric
