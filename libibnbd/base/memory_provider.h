// SPDX-License-Identifier: Apache-2.0
// Where memory that a fabric registers comes from: the seam behind which ordinary pages, huge
// pages, shared memory, and one day a device's own memory are the same.  An Arena asks a provider
// once and gives everything back at once.  Providers have no state and live for ever; any thread.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ibnbd {

struct ProvidedMemory {
  std::span<std::byte> bytes;  // Zeroed; begins at a page.
  int fd = -1;                 // The file that it is a mapping of, from offset 0, or -1.
};

class MemoryProvider {
 public:
  virtual ~MemoryProvider() = default;
  [[nodiscard]] virtual const char* name() const = 0;  // As FindMemoryProvider() takes it.
  // At least `byte_count` bytes, more than 0; committed on first touch, and not inherited by
  // children: a child must not share pages that a NIC writes to.
  [[nodiscard]] virtual absl::StatusOr<ProvidedMemory> Map(std::size_t byte_count) const = 0;
  // Of the same provider.  Nothing uses the memory any more.
  virtual void Unmap(const ProvidedMemory& memory) const;
};

// "pages": what the machine has.
const MemoryProvider& OrdinaryPages();
// "huge": huge pages of the default size, as many as are set aside (vm.nr_hugepages); ordinary ones
// where they do not suffice, with a line in the log.  A NIC and io_uring need fewer translations.
const MemoryProvider& HugePages();
// "memfd": a file without a name, which other processes can map.
const MemoryProvider& SharedPages();

// Null if there is none of that name.
const MemoryProvider* FindMemoryProvider(absl::string_view name);
inline constexpr const char* kMemoryProviderNames = "pages, huge or memfd";

}  // namespace ibnbd
