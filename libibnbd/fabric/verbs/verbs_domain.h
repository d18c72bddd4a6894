// SPDX-License-Identifier: Apache-2.0
// Devices, domains and regions of the verbs fabric.  Any thread.
#pragma once

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

class VerbsDomain final : public fabric::Domain {
 public:
  // `context` is librdmacm's: open for as long as the process lives.
  static absl::StatusOr<std::unique_ptr<VerbsDomain>> Create(ibv_context* context);
  absl::StatusOr<std::unique_ptr<fabric::Region>> Register(std::span<std::byte> memory,
                                                           fabric::Access access) override;
  [[nodiscard]] ibv_pd* pd() const { return pd_.get(); }
  [[nodiscard]] ibv_context* context() const { return pd_->context; }

 private:
  explicit VerbsDomain(PdHandle pd) : pd_(std::move(pd)) {}
  const PdHandle pd_;
};

// The RDMA device through which `peer` is reached.  Asks routing tables only: nothing is sent and
// nothing waited for.
absl::StatusOr<ibv_context*> FindDeviceTowards(const SocketAddress& peer);
// "rxe0"; for texts.
std::string DeviceName(const ibv_context* context);

}  // namespace ibnbd::verbs
