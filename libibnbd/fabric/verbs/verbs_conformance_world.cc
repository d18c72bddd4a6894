// SPDX-License-Identifier: Apache-2.0
// The verbs fabric under the conformance tests: two hosts that are two fabrics of this process, on
// the first RDMA device whose network device has an address, or on the one whose address is
// $IBNBD_TEST_RDMA.  Without a device every test is skipped and says so.
#include <ifaddrs.h>
#include <netinet/in.h>

#include <array>
#include <cstdlib>

#include "base/check.h"
#include "base/clock.h"
#include "fabric/conformance_fixture.h"
#include "fabric/verbs/verbs_fabric.h"
#include "fabric/verbs/verbs_translate.h"
#include "reactor/reactor.h"

namespace ibnbd::fabric {
namespace {

// An address on an RDMA device, with port 0; length 0 if there is none.
SocketAddress RdmaAddress() {
  if (const char* wanted = std::getenv("IBNBD_TEST_RDMA")) return *ResolveAddress(wanted, 0);
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return {};
  SocketAddress found;
  for (const ifaddrs* entry = all; entry != nullptr && found.length == 0; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    const SocketAddress address = verbs::AddressFrom(entry->ifa_addr);
    if (verbs::FindDeviceTowards(address).ok()) found = address;
  }
  freeifaddrs(all);
  return found;
}

class VerbsWorld final : public ConformanceWorld {
 public:
  explicit VerbsWorld(const SocketAddress& address) : address_(address) {
    for (int host = 0; host < 2; ++host) {
      fabrics_[Index(host)] = *verbs::CreateVerbsFabric(&address_);
      for (int lane = 0; lane < 2; ++lane) {
        reactors_[Index(host)][Index(lane)] = *Reactor::Create(clock_, ReactorOptions{});
        pollers_[Index(host)][Index(lane)] =
            *fabrics_[Index(host)]->CreatePoller(*reactors_[Index(host)][Index(lane)]);
      }
    }
  }
  Fabric& fabric(int host) override { return *fabrics_[Index(host)]; }
  Poller& poller(int host, int lane) override { return *pollers_[Index(host)][Index(lane)]; }
  SocketAddress listen_address(int) override { return address_; }
  SocketAddress dead_address() override {
    // A port that was ours a moment ago.
    auto listener = pollers_[1][1]->Listen(address_, 0);
    CHECK(listener.ok());
    return (*listener)->local_address();
  }
  // rxe flushes the send whose lkey is bad, and acknowledges the message whose invalidation fails.
  [[nodiscard]] bool names_every_fault() const override { return false; }
  [[nodiscard]] int settle_rounds() const override { return 2000; }
  void Progress() override {
    for (auto& lanes : reactors_) {
      for (auto& reactor : lanes) reactor->RunTurn();
    }
  }

 private:
  const SocketAddress address_;
  MonotonicClock clock_;
  std::array<std::unique_ptr<Fabric>, 2> fabrics_;
  std::array<std::array<std::unique_ptr<Reactor>, 2>, 2> reactors_;
  std::array<std::array<std::unique_ptr<Poller>, 2>, 2> pollers_;
};

std::unique_ptr<ConformanceWorld> CreateVerbsWorld() {
  const SocketAddress address = RdmaAddress();
  if (address.length == 0) return nullptr;
  return std::make_unique<VerbsWorld>(address);
}

INSTANTIATE_TEST_SUITE_P(Verbs, ConformanceTest,
                         testing::Values(ConformanceParam{"verbs", CreateVerbsWorld}),
                         ConformanceName);

}  // namespace
}  // namespace ibnbd::fabric
