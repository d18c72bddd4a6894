// SPDX-License-Identifier: Apache-2.0
// From the scheme of a URI to a fabric.  The only place that names implementations: whoever needs
// another one adds it here and nowhere else.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fabric/fabric.h"
#include "fabric/listening_sockets.h"

namespace ibnbd {

// "tcp" or "rdma".  Any thread; the fabric may be used from any.  Whom it will connect to is for
// AddPeer().
// `listening`: for fabrics that listen on sockets; may be null, else outlives the fabric.
absl::StatusOr<std::unique_ptr<fabric::Fabric>> OpenFabric(
    absl::string_view scheme, fabric::ListeningSockets* listening = nullptr);

}  // namespace ibnbd
