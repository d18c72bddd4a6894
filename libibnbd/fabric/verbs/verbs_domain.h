// SPDX-License-Identifier: Apache-2.0
// Devices, domains and regions of the verbs fabric.  Any thread.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "fabric/fabric.h"
#include "fabric/verbs/verbs_handles.h"

namespace ibnbd::verbs {

// A memory window of type 1: its key holds on every queue pair of the domain, as RTRS needs (a
// client uses a chunk through any of its connections); those of type 2 are tied to one.
class VerbsWindow final : public fabric::Window {
 public:
  VerbsWindow(MwHandle mw, ibv_mr* mr) : mw_(std::move(mw)), mr_(mr) {}
  [[nodiscard]] std::uint32_t next_rkey() const override { return ibv_inc_rkey(mw_->rkey); }
  // Fills in what binds it, or unbinds it; its opcode is there already.
  void Translate(bool open, ibv_send_wr* wr) const;
  // What Translate() made has been posted.  The caller keeps the key: rxe takes it from here to
  // name the window in the next request.
  void OnPosted() { mw_->rkey = next_rkey(); }

 private:
  const MwHandle mw_;
  ibv_mr* const mr_;
};

class VerbsFabric;

// Memory that is registered in one domain, or in the common domains of several devices.
class VerbsRegion final : public fabric::Region {
 public:
  // Of no device yet.
  VerbsRegion(std::span<std::byte> memory, fabric::Access access)
      : memory_(memory), access_(access) {}
  ~VerbsRegion() override;
  absl::StatusOr<std::unique_ptr<fabric::Window>> CreateWindow() override;
  // The devices are through with the memory when this returns: the verb waits for it.
  bool Revoke() override;
  [[nodiscard]] std::uint32_t lkey() const override { return keys_[0].lkey; }
  [[nodiscard]] std::uint32_t rkey() const override { return keys_[0].rkey; }
  [[nodiscard]] std::span<std::byte> memory() const override { return memory_; }

  // --- For the fabric, under its lock. ---
  void set_fabric(VerbsFabric* fabric) { fabric_ = fabric; }
  absl::Status AddDevice(ibv_pd* pd, std::uint32_t device);
  void DropDevice(std::uint32_t device);

 private:
  void SetKeys(std::uint32_t device);
  std::array<MrHandle, fabric::kDevicesMax> mrs_;
  const std::span<std::byte> memory_;
  const fabric::Access access_;
  VerbsFabric* fabric_ = nullptr;  // Who knows it as one of the common domain.
};

class VerbsDomain final : public fabric::Domain {
 public:
  // `context` is librdmacm's: open for as long as the process lives.  `device`: its number among
  // the common domains of a fabric.
  static absl::StatusOr<std::unique_ptr<VerbsDomain>> Create(ibv_context* context,
                                                             std::uint32_t device = 0);
  [[nodiscard]] std::uint32_t device() const { return device_; }
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  [[nodiscard]] ibv_pd* pd() const { return pd_.get(); }
  [[nodiscard]] ibv_context* context() const { return pd_->context; }

 private:
  VerbsDomain(PdHandle pd, std::uint32_t device) : pd_(std::move(pd)), device_(device) {}
  const PdHandle pd_;
  const std::uint32_t device_;
};

// The RDMA device through which `peer` is reached, from `source` if that is not null.  Asks routing
// tables only: nothing is sent and nothing waited for.
absl::StatusOr<ibv_context*> FindDeviceTowards(const SocketAddress& peer,
                                               const SocketAddress* source = nullptr);
// "rxe0"; for texts.
std::string DeviceName(const ibv_context* context);

}  // namespace ibnbd::verbs
