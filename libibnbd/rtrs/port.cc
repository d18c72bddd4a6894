// SPDX-License-Identifier: Apache-2.0
#include "rtrs/port.h"

#include <utility>

#include "base/status_macros.h"

namespace ibnbd::rtrs {
namespace {

constexpr unsigned kSlotIndexBits = 20;
constexpr unsigned kKindBits = 4;
constexpr unsigned kOwnerIndexBits = 16;
static_assert(kSlotIndexBits + kSlotGenerationBits + kKindBits + kOwnerIndexBits +
                  kSlotGenerationBits ==
              64);
constexpr unsigned kKindShift = kSlotIndexBits + kSlotGenerationBits;
constexpr unsigned kOwnerShift = kKindShift + kKindBits;

constexpr std::uint64_t Mask(unsigned bits) { return (std::uint64_t{1} << bits) - 1; }

std::uint64_t PackContext(SlotRef owner) {
  return std::uint64_t{owner.generation} << kOwnerIndexBits | owner.index;
}

SlotRef UnpackContext(std::uint64_t context) {
  return {static_cast<std::uint32_t>(context & Mask(kOwnerIndexBits)),
          static_cast<std::uint32_t>(context >> kOwnerIndexBits & Mask(kSlotGenerationBits))};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Port>> Port::Create(Reactor& reactor, fabric::Fabric& fabric) {
  std::unique_ptr<Port> port(new Port(reactor, fabric));
  ASSIGN_OR_RETURN(port->poller_, fabric.CreatePoller(reactor));
  port->turn_end_queue_.reserve(kClientsMax);
  reactor.AddSource(*port);
  return port;
}

Port::~Port() {
  CHECK_EQ(clients_.used_count(), 0u);
  if (poller_ != nullptr) reactor_.RemoveSource(*this);
}

std::uint64_t Port::Attach(PortClient& client) {
  const SlotRef owner = clients_.Claim();
  clients_[owner.index] = {&client, false};
  return PackContext(owner);
}

void Port::Detach(std::uint64_t context) {
  const SlotRef owner = UnpackContext(context);
  CHECK(clients_.Find(owner) != nullptr);
  clients_[owner.index] = {};
  clients_.Release(owner.index);
}

PortClient* Port::Find(std::uint64_t context) {
  Entry* entry = clients_.Find(UnpackContext(context));
  return entry == nullptr ? nullptr : entry->client;
}

void Port::RequestTurnEnd(std::uint64_t context) {
  Entry* entry = clients_.Find(UnpackContext(context));
  CHECK(entry != nullptr);
  if (std::exchange(entry->turn_end_requested, true)) return;
  turn_end_queue_.push_back(context);  // Reserved: does not allocate.
}

fabric::Cookie Port::MakeCookie(std::uint64_t context, std::uint8_t kind, SlotRef slot) {
  DCHECK_LT(kind, 1u << kKindBits);
  DCHECK_LT(slot.index, 1u << kSlotIndexBits);
  return context << kOwnerShift | std::uint64_t{kind} << kKindShift |
         std::uint64_t{slot.generation} << kSlotIndexBits | slot.index;
}

bool Port::Poll() {
  bool worked = false;
  std::array<fabric::CmEvent, 8> events;
  while (const std::size_t count = poller_->PollEvents(events)) {
    worked = true;
    for (std::size_t i = 0; i < count; ++i) {
      PortClient* client = Find(events[i].context);
      if (client != nullptr) client->OnCmEvent(events[i]);
      events[i].incoming.reset();
    }
    if (count < events.size()) break;
  }
  std::array<fabric::Completion, kCompletionBatch> completions;
  for (std::size_t done = 0; done < kCompletionBudget;) {
    const std::size_t count = poller_->PollCompletions(completions);
    for (std::size_t i = 0; i < count; ++i) {
      const fabric::Cookie cookie = completions[i].cookie;
      PortClient* client = Find(cookie >> kOwnerShift);
      if (client == nullptr) {
        ++stale_completions_;
        continue;
      }
      const CookieParts parts{
          static_cast<std::uint8_t>(cookie >> kKindShift & Mask(kKindBits)),
          {static_cast<std::uint32_t>(cookie & Mask(kSlotIndexBits)),
           static_cast<std::uint32_t>(cookie >> kSlotIndexBits & Mask(kSlotGenerationBits))}};
      client->OnCompletion(parts, completions[i]);
    }
    done += count;
    worked |= count != 0;
    if (count < completions.size()) break;
  }
  return worked;
}

void Port::Flush() {
  // A client may ask again from its OnTurnEnd(), and is served in the same turn; but not for ever.
  const std::size_t budget = turn_end_queue_.size() + kTurnEndsAgainMax;
  std::size_t done = 0;
  for (; done < turn_end_queue_.size() && done < budget; ++done) {
    Entry* entry = clients_.Find(UnpackContext(turn_end_queue_[done]));
    if (entry == nullptr) continue;
    entry->turn_end_requested = false;
    entry->client->OnTurnEnd();
  }
  turn_end_queue_.erase(turn_end_queue_.begin(),
                        turn_end_queue_.begin() + static_cast<std::ptrdiff_t>(done));
  if (!turn_end_queue_.empty()) reactor_.Post([] {});  // Another turn follows, before any sleep.
  poller_->Flush();
}

}  // namespace ibnbd::rtrs
