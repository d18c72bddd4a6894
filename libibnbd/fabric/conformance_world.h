// SPDX-License-Identifier: Apache-2.0
// What fabric_conformance_test.cc needs of a fabric under test: two hosts, each with a fabric and
// two pollers, and a way to let things happen.  To hold another fabric to the contract, implement
// this in a file of its own that is linked with the test, and instantiate ConformanceTest there, as
// tcp_conformance_world.cc does.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "base/socket_address.h"
#include "fabric/fabric.h"

namespace ibnbd::fabric {

// Hosts and lanes are 0 or 1, and index arrays.
inline std::size_t Index(int number) { return static_cast<std::size_t>(number); }

class ConformanceWorld {
 public:
  // Destroys pollers, fabrics and whatever they need, in the right order.
  virtual ~ConformanceWorld() = default;
  // `host` is 0 or 1, and so is `lane`.
  virtual Fabric& fabric(int host) = 0;
  virtual Poller& poller(int host, int lane) = 0;
  // Where `host` may listen; port 0 if the fabric chooses.
  virtual SocketAddress listen_address(int host) = 0;
  // Where nobody listens.
  virtual SocketAddress dead_address() = 0;
  // Lets a little happen: one turn of every reactor, or a little virtual time.  Neither polls nor
  // flushes the pollers: the test does.
  virtual void Progress() = 0;
  // False: the device breaks the connection as it must, but calls some faults a flush, or reports
  // them to the one end only.
  [[nodiscard]] virtual bool names_every_fault() const { return true; }
  // How many rounds of Progress() are enough for anything under way to arrive.
  [[nodiscard]] virtual int settle_rounds() const { return 2000; }
};

struct ConformanceParam {
  std::string name;
  // Null: not possible on this machine.
  std::function<std::unique_ptr<ConformanceWorld>()> create;
};

inline std::string ConformanceName(const testing::TestParamInfo<ConformanceParam>& info) {
  return info.param.name;
}

}  // namespace ibnbd::fabric
