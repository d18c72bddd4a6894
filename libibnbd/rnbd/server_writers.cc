// SPDX-License-Identifier: Apache-2.0
#include "rnbd/server_writers.h"

#include <algorithm>
#include <cerrno>
#include <span>

#include "base/canary.h"
#include "base/check.h"
#include "base/fnv.h"

namespace ibnbd::rnbd {

std::uint64_t WriterOf(const rtrs::ServerSessionInfo& session) {
  std::uint64_t hash = 0;
  if (session.client_id != 0) {  // Its name may be that of a host, which may be called anew.
    hash = Fnv1a(std::as_bytes(std::span(&session.client_id, 1)));
  } else {
    hash = Fnv1a(std::as_bytes(std::span(session.name)));
    hash = Fnv1a(std::as_bytes(std::span(session.paths_uuid)), hash);
  }
  return std::max<std::uint64_t>(hash, 1);
}

std::uint16_t EpochDrawnFor(const rtrs::ServerSessionInfo& session) {
  const std::uint64_t hash = Fnv1a(std::as_bytes(std::span(session.paths_uuid)));
  return std::max<std::uint16_t>(static_cast<std::uint16_t>(hash ^ (hash >> 32)), 1);
}

bool WriterRecord::Has(std::uint64_t writer) const {
  return std::find(writers_.begin(), writers_.end(), writer) != writers_.end();
}

bool WriterRecord::WasHere(const Opening& opening) const {
  if (opening.epoch == 0 || opening.epoch != epoch_) return false;
  return Has(opening.writer) || (told_ && (told_by_migration_ || opening.migration));
}

int WriterRecord::Check(const Opening& opening) const {
  if (opening.migration || opening.epoch == 0 || epoch_ == 0) return 0;
  return WasHere(opening) || IBNBD_CANARY(14) ? 0 : -EUCLEAN;
}

void WriterRecord::Enter(const Opening& opening) {
  DCHECK(Check(opening) == 0 && opening.writer != 0 && opening.begins_at != 0);
  // Who begins anew does not go on with what was agreed with the others of a migration.
  const bool alone = writers_ == decltype(writers_){opening.writer};
  const bool is_same = opening.epoch == 0 ? alone : WasHere(opening);
  const bool goes_on = is_same || IBNBD_CANARY(14);  // Or a client that is let in sees the change.
  if (epoch_ == 0) {  // The past is not known.  Who was here before goes on.
    told_ = opening.epoch != 0;
    told_by_migration_ = told_ && opening.migration;
    epoch_ = told_ ? opening.epoch : opening.begins_at;
    writers_ = {opening.writer};
  } else if (opening.beside_others || goes_on) {
    if (Has(opening.writer)) return;
    std::shift_right(writers_.begin(), writers_.end(), 1);
    writers_.front() = opening.writer;
  } else {
    // After a number that we were told the next one may be taken, by who came then.
    const bool draws = told_ && opening.begins_at != epoch_;
    const std::uint16_t next = epoch_ == UINT16_MAX ? 1 : static_cast<std::uint16_t>(epoch_ + 1);
    epoch_ = draws ? opening.begins_at : next;
    told_ = told_by_migration_ = false;
    writers_ = {opening.writer};
  }
}

}  // namespace ibnbd::rnbd
