// SPDX-License-Identifier: Apache-2.0
// Which SIM_MARKs of production code were hit while this object lived.  One at a time; scenario
// tests create one, run, and demand the mark they exist for.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace ibnbd::sim {

class Marks {
 public:
  Marks();   // Starts with no mark hit.
  ~Marks();  // Marks are off again.
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;

  [[nodiscard]] std::uint64_t count(const std::string& text) const;
  [[nodiscard]] std::map<std::string, std::uint64_t> counts() const;
};

}  // namespace ibnbd::sim
