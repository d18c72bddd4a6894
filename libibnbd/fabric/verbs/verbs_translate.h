// SPDX-License-Identifier: Apache-2.0
// Between the words of fabric.h and those of libibverbs.  Pure: no device is needed.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <span>

#include "base/socket_address.h"
#include "fabric/fabric.h"

struct sockaddr;

namespace ibnbd::verbs {

// What a work request carries as its name: where the connection is in its poller's table, which
// user of that place it is, and the how manyeth request of its queue.
struct WrName {
  std::uint16_t index = 0;
  std::uint16_t generation = 0;
  bool is_receive = false;
  std::uint32_t sequence = 0;  // Modulo 2^31.
};
inline constexpr std::uint32_t kSequenceMask = 0x7fffffff;
std::uint64_t PackWrName(const WrName& name);
WrName UnpackWrName(std::uint64_t wr_id);

// `sges` has room for request.sges and stays until the request is posted.
void TranslateSend(const fabric::SendRequest& request, std::uint64_t wr_id,
                   std::uint32_t inline_size_max, ibv_sge* sges, ibv_send_wr* wr);
void TranslateReceive(const fabric::ReceiveRequest& request, std::uint64_t wr_id, ibv_sge* sges,
                      ibv_recv_wr* wr);

fabric::WcStatus TranslateStatus(ibv_wc_status status);
// Of a success; the cookie is the caller's to fill in.
fabric::Completion TranslateSuccess(const ibv_wc& wc);

SocketAddress AddressFrom(const sockaddr* address);

}  // namespace ibnbd::verbs
