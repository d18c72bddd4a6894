// SPDX-License-Identifier: Apache-2.0
// Posting and completing.
#include <array>
#include <bit>

#include "base/check.h"
#include "fabric/verbs/verbs_connection.h"
#include "fabric/verbs/verbs_domain.h"

namespace ibnbd::verbs {
namespace {

using fabric::Completion;
using fabric::WcStatus;

constexpr std::size_t kBatch = 32;
constexpr std::size_t kSgesOfBatch = 128;

}  // namespace

void VerbsConnection::CookieRing::Reset(std::uint32_t size_max) {
  const std::uint32_t size = std::bit_ceil(std::max(size_max, 1u));
  cookies_.assign(size, 0);
  mask_ = size - 1;
}

bool VerbsConnection::CookieRing::TakeUpTo(std::uint32_t sequence, fabric::Cookie* cookie) {
  const std::uint32_t skip = (sequence - head_) & kSequenceMask;
  if (skip >= count()) return false;
  head_ += skip;
  *cookie = Pop();
  return true;
}

void VerbsConnection::FlushOne(fabric::Cookie cookie) {
  Completion completion;
  completion.cookie = cookie;
  completion.status = WcStatus::kFlushed;
  poller_.PushCompletion(*this, completion);
}

// As many as fit into one call of the device.
void VerbsConnection::PostSendBatch(std::span<const fabric::SendRequest> requests) {
  std::array<ibv_send_wr, kBatch> wrs;
  std::array<ibv_sge, kSgesOfBatch> sges;
  std::size_t sge_count = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const WrName name{place_.index, place_.generation, false, sends_.next_sequence()};
    TranslateSend(requests[i], PackWrName(name), limits_.inline_size_max, &sges[sge_count],
                  &wrs[i]);
    sge_count += requests[i].sges.size();
    if (auto* window = static_cast<VerbsWindow*>(requests[i].window)) {
      window->Translate(requests[i].opcode == fabric::Opcode::kOpenWindow, &wrs[i]);
    }
    wrs[i].next = i + 1 < requests.size() ? &wrs[i + 1] : nullptr;
    sends_.Push(requests[i].cookie);
  }
  ibv_send_wr* bad = nullptr;
  // What it refuses is in the ring, and flushed with the rest.
  if (const int error = ibv_post_send(qp_, wrs.data(), &bad)) return Break(-error);
  for (const fabric::SendRequest& request : requests) {
    if (request.window != nullptr) static_cast<VerbsWindow*>(request.window)->OnPosted();
  }
}

void VerbsConnection::PostSend(std::span<const fabric::SendRequest> requests) {
  while (!requests.empty() && state_ == State::kUp) {
    std::size_t count = 0;
    std::size_t sge_count = 0;
    while (count < requests.size() && count < kBatch &&
           sge_count + requests[count].sges.size() <= kSgesOfBatch) {
      sge_count += requests[count].sges.size();
      ++count;
    }
    CHECK(count > 0 && sends_.count() + count <= limits_.sends_max);
    PostSendBatch(requests.first(count));
    requests = requests.subspan(count);
  }
  for (const fabric::SendRequest& request : requests) FlushOne(request.cookie);
}

int VerbsConnection::PostReceiveNow(std::span<const fabric::ReceiveRequest> requests) {
  int error = 0;
  while (!requests.empty()) {
    std::array<ibv_recv_wr, kBatch> wrs;
    std::array<ibv_sge, kSgesOfBatch> sges;
    std::size_t count = 0;
    std::size_t sge_count = 0;
    while (count < requests.size() && count < kBatch &&
           sge_count + requests[count].sges.size() <= kSgesOfBatch) {
      const fabric::ReceiveRequest& request = requests[count];
      const WrName name{place_.index, place_.generation, true, receives_.next_sequence()};
      TranslateReceive(request, PackWrName(name), &sges[sge_count], &wrs[count]);
      sge_count += request.sges.size();
      if (count > 0) wrs[count - 1].next = &wrs[count];
      receives_.Push(request.cookie);
      ++count;
    }
    CHECK(count > 0 && receives_.count() <= limits_.receives_max);
    ibv_recv_wr* bad = nullptr;
    if (error == 0) error = ibv_post_recv(qp_, wrs.data(), &bad);
    requests = requests.subspan(count);
  }
  return error;
}

void VerbsConnection::PostReceive(std::span<const fabric::ReceiveRequest> requests) {
  if (state_ == State::kEnded) return;
  if (state_ == State::kBroken) {
    for (const fabric::ReceiveRequest& request : requests) FlushOne(request.cookie);
  } else if (qp_ != nullptr) {
    if (const int error = PostReceiveNow(requests)) Break(-error);
  } else {
    for (const fabric::ReceiveRequest& request : requests) {
      pending_receives_.push_back({request.cookie, {request.sges.begin(), request.sges.end()}});
    }
  }
}

int VerbsConnection::PostPendingReceives() {
  int error = 0;
  for (const PendingReceive& pending : pending_receives_) {
    const fabric::ReceiveRequest request{pending.cookie, pending.sges};
    if (error == 0) error = PostReceiveNow({&request, 1});
  }
  pending_receives_.clear();
  return error;
}

bool VerbsConnection::OnWc(const WrName& name, const ibv_wc& wc, Completion* out) {
  if (state_ == State::kEnded) return false;  // Receives of an attempt that failed: forgotten.
  fabric::Cookie cookie = 0;
  CookieRing& ring = name.is_receive ? receives_ : sends_;
  if (!ring.TakeUpTo(name.sequence, &cookie)) return false;
  if (wc.status == IBV_WC_SUCCESS) {
    *out = TranslateSuccess(wc);
    out->cookie = cookie;
    return true;
  }
  *out = Completion();
  out->cookie = cookie;
  // Only the first failure has a reason (F3).
  out->status = state_ == State::kBroken ? WcStatus::kFlushed : TranslateStatus(wc.status);
  Break(wc.status == IBV_WC_RETRY_EXC_ERR ? -ETIMEDOUT : -ECONNABORTED);
  return true;
}

void VerbsConnection::FlushAll() {
  while (!sends_.empty()) FlushOne(sends_.Pop());
  while (!receives_.empty()) FlushOne(receives_.Pop());
  flushed_ = true;
}

}  // namespace ibnbd::verbs
