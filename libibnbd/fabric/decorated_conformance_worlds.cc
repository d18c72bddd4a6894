// SPDX-License-Identifier: Apache-2.0
// The simulator and the decorators under the conformance tests: sim, faulty(sim), traced(sim),
// traced(tcp), faulty(tcp).  Plain tcp is in tcp_conformance_world.cc.
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "fabric/conformance_fixture.h"
#include "fabric/faulty_fabric.h"
#include "fabric/sim/sim_world.h"
#include "fabric/tcp/tcp_fabric.h"
#include "fabric/traced_fabric.h"
#include "reactor/reactor.h"

namespace ibnbd::fabric {
namespace {

// What is under the decorator.
class Ground {
 public:
  virtual ~Ground() = default;
  virtual Fabric& fabric(int host) = 0;
  virtual Reactor& reactor(int host, int lane) = 0;
  virtual SocketAddress listen_address(int host) = 0;
  virtual void Progress() = 0;
};

class SimGround final : public Ground {
 public:
  SimGround(std::uint64_t seed, const sim::FaultPlan& plan) : world_(seed, plan) {
    for (std::size_t host = 0; host < 2; ++host) {
      hosts_[host] = &world_.AddHost(host == 0 ? "active" : "passive");
      for (Reactor*& reactor : reactors_[host]) reactor = &hosts_[host]->AddReactor();
    }
  }
  ~SimGround() override {
    for (const std::string& violation : world_.violations()) {
      // Bad keys are the business of some tests; a source used too early is a bug in the fixture.
      if (violation.find("F9") != std::string::npos) ADD_FAILURE() << violation;
    }
  }
  Fabric& fabric(int host) override { return hosts_[Index(host)]->fabric(); }
  Reactor& reactor(int host, int lane) override { return *reactors_[Index(host)][Index(lane)]; }
  SocketAddress listen_address(int host) override { return hosts_[Index(host)]->Address(0); }
  void Progress() override { world_.RunFor(50 * kNsPerUs); }

 private:
  sim::World world_;
  std::array<sim::Host*, 2> hosts_{};
  std::array<std::array<Reactor*, 2>, 2> reactors_{};
};

class TcpGround final : public Ground {
 public:
  TcpGround() {
    for (auto& fabric : fabrics_) fabric = tcp::CreateTcpFabric().value();
    for (auto& lanes : reactors_) {
      for (auto& reactor : lanes) reactor = Reactor::Create(clock_, ReactorOptions{}).value();
    }
  }
  Fabric& fabric(int host) override { return *fabrics_[Index(host)]; }
  Reactor& reactor(int host, int lane) override { return *reactors_[Index(host)][Index(lane)]; }
  SocketAddress listen_address(int) override { return ResolveAddress("127.0.0.1", 0).value(); }
  void Progress() override {
    for (auto& lanes : reactors_) {
      for (auto& reactor : lanes) reactor->RunTurn();
    }
  }

 private:
  static std::size_t Index(int value) { return static_cast<std::size_t>(value); }
  MonotonicClock clock_;
  std::array<std::array<std::unique_ptr<Reactor>, 2>, 2> reactors_;
  std::array<std::unique_ptr<Fabric>, 2> fabrics_;
};

using Decorate = std::function<std::unique_ptr<Fabric>(Fabric& inner)>;  // Null: as it is.

class DecoratedWorld final : public ConformanceWorld {
 public:
  DecoratedWorld(std::unique_ptr<Ground> ground, const Decorate& decorate)
      : ground_(std::move(ground)) {
    for (int host = 0; host < 2; ++host) {
      const std::size_t i = static_cast<std::size_t>(host);
      if (decorate) decorators_[i] = decorate(ground_->fabric(host));
      for (int lane = 0; lane < 2; ++lane) {
        pollers_[i][static_cast<std::size_t>(lane)] =
            fabric(host).CreatePoller(ground_->reactor(host, lane)).value();
      }
    }
  }
  Fabric& fabric(int host) override {
    const std::unique_ptr<Fabric>& decorator = decorators_[static_cast<std::size_t>(host)];
    return decorator != nullptr ? *decorator : ground_->fabric(host);
  }
  Poller& poller(int host, int lane) override {
    return *pollers_[static_cast<std::size_t>(host)][static_cast<std::size_t>(lane)];
  }
  SocketAddress listen_address(int host) override { return ground_->listen_address(host); }
  SocketAddress dead_address() override {
    // A port that was ours a moment ago.
    return poller(1, 1).Listen(listen_address(1), 0).value()->local_address();
  }
  void Progress() override { ground_->Progress(); }

 private:
  std::unique_ptr<Ground> ground_;
  std::array<std::unique_ptr<Fabric>, 2> decorators_;
  std::array<std::array<std::unique_ptr<Poller>, 2>, 2> pollers_;
};

ConformanceParam Sim(std::string name, std::uint64_t seed, const sim::FaultPlan& plan = {},
                     Decorate decorate = nullptr) {
  return {std::move(name), [seed, plan, decorate = std::move(decorate)] {
            return std::make_unique<DecoratedWorld>(std::make_unique<SimGround>(seed, plan),
                                                    decorate);
          }};
}
ConformanceParam Tcp(std::string name, Decorate decorate) {
  return {std::move(name), [decorate = std::move(decorate)] {
            return std::make_unique<DecoratedWorld>(std::make_unique<TcpGround>(), decorate);
          }};
}

// Everything that is slow or out of step, nothing that breaks a connection by itself.
sim::FaultPlan Unsteady() {
  sim::FaultPlan plan;
  plan.slow_message_ppm = 100'000;
  plan.slow_message_ns.high = 2 * kNsPerMs;
  plan.slow_completion_ppm = 300'000;
  plan.late_landing_ppm = 500'000;
  plan.late_landing_ns.high = 50 * kNsPerMs;
  plan.one_sided_ppm = 300'000;
  plan.one_sided_ns.high = 500 * kNsPerMs;
  return plan;
}

// Delays only: the tests decide themselves when a connection breaks.
Decorate Faulty() {
  return [](Fabric& inner) {
    return std::make_unique<FaultyFabric>(inner, ParseFaultSpec("delay=0us..300us").value());
  };
}
Decorate Traced() {
  return [](Fabric& inner) {
    return std::make_unique<TracedFabric>(
        inner, [](const std::string& line) { EXPECT_FALSE(line.empty()); });
  };
}

INSTANTIATE_TEST_SUITE_P(Sim, ConformanceTest,
                         testing::Values(Sim("sim1", 1), Sim("sim2", 2), Sim("sim3", 3),
                                         Sim("unsteady_sim4", 4, Unsteady()),
                                         Sim("unsteady_sim5", 5, Unsteady()),
                                         Sim("unsteady_sim6", 6, Unsteady())),
                         ConformanceName);
INSTANTIATE_TEST_SUITE_P(Decorated, ConformanceTest,
                         testing::Values(Sim("faulty_sim", 7, {}, Faulty()),
                                         Sim("traced_sim", 8, {}, Traced()),
                                         Tcp("faulty_tcp", Faulty()), Tcp("traced_tcp", Traced())),
                         ConformanceName);

}  // namespace
}  // namespace ibnbd::fabric
