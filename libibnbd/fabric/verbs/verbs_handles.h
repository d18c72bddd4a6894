// SPDX-License-Identifier: Apache-2.0
// Owners for the objects of libibverbs and librdmacm.  Each destroys its object; who holds several
// destroys them in the order that the hardware wants: queue pair, completion queue, region, domain.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <memory>

namespace ibnbd::verbs {

template <auto kDestroy>
struct Destroyer {
  template <class T>
  void operator()(T* object) const {
    (void)kDestroy(object);  // Fails only for what is in use, which its owner rules out.
  }
};

struct WindowDestroyer {  // Its verb has no linkage, which a template argument needs.
  void operator()(ibv_mw* mw) const { (void)ibv_dealloc_mw(mw); }
};

using PdHandle = std::unique_ptr<ibv_pd, Destroyer<ibv_dealloc_pd>>;
using MrHandle = std::unique_ptr<ibv_mr, Destroyer<ibv_dereg_mr>>;
using MwHandle = std::unique_ptr<ibv_mw, WindowDestroyer>;
using CqHandle = std::unique_ptr<ibv_cq, Destroyer<ibv_destroy_cq>>;
using CompChannelHandle = std::unique_ptr<ibv_comp_channel, Destroyer<ibv_destroy_comp_channel>>;
using CmIdHandle = std::unique_ptr<rdma_cm_id, Destroyer<rdma_destroy_id>>;
using EventChannelHandle =
    std::unique_ptr<rdma_event_channel, Destroyer<rdma_destroy_event_channel>>;

}  // namespace ibnbd::verbs
