// SPDX-License-Identifier: Apache-2.0
// Domains and regions of the tcp fabric: entries of its key table.  Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "fabric/fabric.h"
#include "fabric/tcp/region_table.h"

namespace ibnbd::tcp {

class TcpDomain final : public fabric::Domain {
 public:
  TcpDomain(RegionTable& table, RegionTable::DomainId id) : table_(table), id_(id) {}
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  [[nodiscard]] RegionTable::DomainId id() const { return id_; }
  // Of ConnectionOptions::domain, which may be null.
  static RegionTable::DomainId IdOf(const fabric::Domain* domain) {
    return domain == nullptr ? RegionTable::kCommonDomain
                             : static_cast<const TcpDomain*>(domain)->id_;
  }

 private:
  RegionTable& table_;
  const RegionTable::DomainId id_;
};

}  // namespace ibnbd::tcp
