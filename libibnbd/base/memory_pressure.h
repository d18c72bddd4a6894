// SPDX-License-Identifier: Apache-2.0
// For processes through which a kernel writes its dirty pages back: when memory is short, the
// kernel waits for them, so they must not wait for the kernel to free memory.  Called by main()
// before there are other threads, which inherit it.
#pragma once

#include "absl/status/status.h"

namespace ibnbd {

// What the kernel allocates on our behalf (sockets, io_uring, page tables) starts no IO and waits
// for none, and our own buffered writes are not held back because others have dirtied too much.
// Takes CAP_SYS_RESOURCE.
absl::Status BecomeIoFlusher();

// All memory of this process, now and later, is there from the beginning and stays: no page fault
// will ever need a page.  The stacks of threads are made smaller for it.  Not done, and an error,
// unless the limit of locked memory can be lifted: mappings beyond it would fail later.
absl::Status LockAllMemory();

// The kernel kills others when there is no memory left.  Takes CAP_SYS_RESOURCE.
absl::Status BeNobodysVictim();

}  // namespace ibnbd
