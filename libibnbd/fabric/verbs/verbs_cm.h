// SPDX-License-Identifier: Apache-2.0
// The passive side's way to a connection: who listens, and a request that waits for its answer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/verbs/verbs_handles.h"
#include "fabric/verbs/verbs_poller.h"

namespace ibnbd::verbs {

class VerbsListener final : public fabric::Listener, public CmTarget {
 public:
  static absl::StatusOr<std::unique_ptr<fabric::Listener>> Create(VerbsPoller& poller,
                                                                  const SocketAddress& local,
                                                                  std::uint64_t context);
  ~VerbsListener() override;
  [[nodiscard]] SocketAddress local_address() const override;
  void OnCmEvent(const rdma_cm_event& event, std::span<const std::byte> private_data) override;

 private:
  VerbsListener(VerbsPoller& poller, CmIdHandle id, std::uint64_t context);
  VerbsPoller& poller_;
  CmIdHandle id_;
  const std::uint64_t context_;
};

class VerbsIncoming final : public fabric::Incoming {
 public:
  VerbsIncoming(CmIdHandle id, std::span<const std::byte> private_data);
  ~VerbsIncoming() override;
  [[nodiscard]] std::span<const std::byte> private_data() const override { return data_; }
  [[nodiscard]] SocketAddress local_address() const override { return local_address_; }
  [[nodiscard]] SocketAddress peer_address() const override { return peer_address_; }
  absl::StatusOr<std::unique_ptr<fabric::Domain>> CreateDomain() override;
  absl::StatusOr<std::unique_ptr<fabric::Connection>> Accept(
      fabric::Poller& owner, const fabric::ConnectionOptions& options,
      std::span<const std::byte> private_data) override;
  void Reject(std::span<const std::byte> private_data) override;

 private:
  CmIdHandle id_;                                     // Null once it was answered; then
  const SocketAddress local_address_, peer_address_;  // somebody may still ask whose it was.
  const std::vector<std::byte> data_;
};

}  // namespace ibnbd::verbs
