// SPDX-License-Identifier: Apache-2.0
// The tcp fabric under the conformance tests: two hosts that are two fabrics of this process,
// talking over the loopback interface.
#include <array>

#include "base/check.h"
#include "base/clock.h"
#include "fabric/conformance_fixture.h"
#include "fabric/tcp/tcp_fabric.h"
#include "reactor/reactor.h"

namespace ibnbd::fabric {
namespace {

class TcpWorld final : public ConformanceWorld {
 public:
  TcpWorld() {
    for (int host = 0; host < 2; ++host) {
      fabrics_[Index(host)] = *tcp::CreateTcpFabric();
      for (int lane = 0; lane < 2; ++lane) {
        reactors_[Index(host)][Index(lane)] = *Reactor::Create(clock_, ReactorOptions{});
        pollers_[Index(host)][Index(lane)] =
            *fabrics_[Index(host)]->CreatePoller(*reactors_[Index(host)][Index(lane)]);
      }
    }
  }
  Fabric& fabric(int host) override { return *fabrics_[Index(host)]; }
  Poller& poller(int host, int lane) override { return *pollers_[Index(host)][Index(lane)]; }
  SocketAddress listen_address(int) override { return *ResolveAddress("127.0.0.1", 0); }
  SocketAddress dead_address() override {
    // A port that was ours a moment ago.
    auto listener = pollers_[1][1]->Listen(listen_address(1), 0);
    CHECK(listener.ok());
    return (*listener)->local_address();
  }
  [[nodiscard]] int settle_rounds() const override { return 10'000; }  // Some milliseconds.
  void Progress() override {
    for (auto& lanes : reactors_) {
      for (auto& reactor : lanes) reactor->RunTurn();
    }
  }

 private:
  MonotonicClock clock_;
  std::array<std::unique_ptr<Fabric>, 2> fabrics_;
  std::array<std::array<std::unique_ptr<Reactor>, 2>, 2> reactors_;
  std::array<std::array<std::unique_ptr<Poller>, 2>, 2> pollers_;
};

INSTANTIATE_TEST_SUITE_P(Tcp, ConformanceTest,
                         testing::Values(ConformanceParam{
                             "tcp", [] { return std::make_unique<TcpWorld>(); }}),
                         ConformanceName);

}  // namespace
}  // namespace ibnbd::fabric
