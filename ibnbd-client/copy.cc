// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/copy.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/arena.h"
#include "base/status_macros.h"
#include "ibnbd-client/zero_scan.h"

namespace ibnbd::client {
namespace {

constexpr std::size_t kPieceSize = std::size_t{512} << 10;
constexpr std::size_t kZeroGrain = std::size_t{64} << 10;
constexpr std::size_t kRunsMax = kPieceSize / kZeroGrain;
constexpr std::uint64_t kZeroExtentMax = std::uint64_t{256} << 20;  // So that progress is seen.

const char* Verb(OperationKind kind) {
  switch (kind) {
    case OperationKind::kRead:
      return "read";
    case OperationKind::kWrite:
      return "write";
    case OperationKind::kZero:
      return "write zeroes";
  }
  return "?";
}

class Copier {
 public:
  Copier(Endpoint& source, Endpoint& target, const CopyOptions& options, CopyStats& stats)
      : source_(source), target_(target), options_(options), stats_(stats), total_(source.size()) {
    skips_zeroes_ = options.destination_is_zero || target.starts_zeroed();
  }

  absl::Status Run() {
    RETURN_IF_ERROR(CheckSizes());
    RETURN_IF_ERROR(Prepare());
    while (error_.ok() ? !AllDone() : in_flight_ != 0) {
      if (error_.ok()) FillPieces();
      if (error_.ok()) WriteReadyPieces();
      if (in_flight_ != 0) WaitForProgress();
      if (options_.on_progress) options_.on_progress(stats_.bytes, total_);
    }
    RETURN_IF_ERROR(error_);
    return target_.Finish(next_offset_);
  }

 private:
  enum class State : std::uint8_t { kEmpty, kReading, kReady, kWriting };
  struct Piece {
    State state = State::kEmpty;
    bool zero = false;  // A hole of the source: nothing was read.
    std::uint64_t offset = 0, length = 0;
    std::byte* memory = nullptr;
    Operation read;
    std::array<Operation, kRunsMax> writes;
    std::uint32_t writes_left = 0;
  };

  absl::Status CheckSizes() const {
    const auto room = target_.size();
    if (!total_.has_value() || !room.has_value() || *total_ <= *room) return absl::OkStatus();
    return absl::OutOfRangeError(absl::StrCat("copy ", source_.name(), " to ", target_.name(),
                                              ": the source is larger (", *total_,
                                              " bytes) than the destination (", *room, " bytes)"));
  }

  absl::Status Prepare() {
    ASSIGN_OR_RETURN(arena_, Arena::Create(std::size_t{options_.pieces_in_flight} * kPieceSize));
    RETURN_IF_ERROR(source_.UseMemory(arena_.bytes()));
    RETURN_IF_ERROR(target_.UseMemory(arena_.bytes()));
    pieces_ = std::vector<Piece>(options_.pieces_in_flight);
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      pieces_[i].memory = arena_.bytes().data() + i * kPieceSize;
    }
    return absl::OkStatus();
  }

  bool AllDone() const {
    return at_end_ && std::all_of(pieces_.begin(), pieces_.end(),
                                  [](const Piece& piece) { return piece.state == State::kEmpty; });
  }

  void FillPieces() {
    for (Piece& piece : pieces_) {
      if (at_end_ || !error_.ok()) return;
      if (total_.has_value() && next_offset_ >= *total_) {
        at_end_ = true;
        return;
      }
      if (piece.state == State::kEmpty) Fill(piece);
      // A pipe is read as fast as it can be written: what is there should not wait for more.
      if (source_.sequential()) return;
    }
  }

  void Fill(Piece& piece) {
    const std::uint64_t left = total_.has_value() ? *total_ - next_offset_ : kPieceSize;
    auto extent = source_.NextExtent(next_offset_, left);
    if (!extent.ok()) {
      error_ = extent.status();
      return;
    }
    piece.zero = extent->zero;
    piece.offset = next_offset_;
    piece.length =
        std::min(extent->length, piece.zero ? kZeroExtentMax : std::uint64_t{kPieceSize});
    next_offset_ += piece.length;
    if (piece.zero) {
      piece.state = State::kReady;
      return;
    }
    piece.state = State::kReading;
    Operation& read = piece.read;
    read.kind = OperationKind::kRead;
    read.offset = piece.offset;
    read.length = piece.length;
    read.data = piece.memory;
    read.done = [this, &piece](int error) { OnRead(piece, error); };
    ++in_flight_;
    source_.Start(read);
  }

  void OnRead(Piece& piece, int error) {
    --in_flight_;
    piece.state = State::kReady;
    if (error != 0) return Fail(source_, piece.read, error);
    if (piece.read.length == piece.length) return;
    at_end_ = true;  // A pipe ended.
    piece.length = piece.read.length;
    next_offset_ = piece.offset + piece.length;
    if (piece.length == 0) piece.state = State::kEmpty;
  }

  void WriteReadyPieces() {
    for (bool again = true; again;) {
      again = false;
      for (Piece& piece : pieces_) {
        if (piece.state != State::kReady || !error_.ok()) continue;
        if (target_.sequential() && piece.offset != next_write_offset_) continue;
        Write(piece);
        again = target_.sequential();  // Its successor may be ready already.
      }
    }
  }

  void Write(Piece& piece) {
    const auto room = target_.size();
    if (room.has_value() && piece.offset + piece.length > *room) {
      error_ = absl::OutOfRangeError(absl::StrCat("copy ", source_.name(), " to ", target_.name(),
                                                  ": the source is larger than the destination (",
                                                  *room, " bytes)"));
      return;
    }
    piece.state = State::kWriting;
    next_write_offset_ = piece.offset + piece.length;
    piece.writes_left = 1;  // Ours, until all have been started.
    std::size_t count = 0;
    for (std::uint64_t done = 0; done < piece.length;) {
      WriteRun run = NextRun(piece, done);
      if (run.zero) stats_.zero_bytes += run.length;
      if (!run.zero || !skips_zeroes_ || target_.sequential()) {
        StartWrite(piece, piece.writes[count++], done, run);
      }
      done += run.length;
    }
    OnWritten(piece);
  }

  struct WriteRun {
    std::uint64_t length = 0;
    bool zero = false;
  };
  WriteRun NextRun(const Piece& piece, std::uint64_t from) const {
    const std::uint64_t left = piece.length - from;
    if (piece.zero) return {left, true};
    if (!options_.sparse) return {left, false};
    const ZeroRun run = FirstRun({piece.memory + from, left}, kZeroGrain);
    return {run.length, run.zero};
  }

  void StartWrite(Piece& piece, Operation& write, std::uint64_t from, const WriteRun& run) {
    write.kind = run.zero ? OperationKind::kZero : OperationKind::kWrite;
    write.offset = piece.offset + from;
    write.length = run.length;
    write.data = run.zero ? nullptr : piece.memory + from;
    write.done = [this, &piece, &write](int error) {
      --in_flight_;
      if (error != 0) Fail(target_, write, error);
      OnWritten(piece);
    };
    ++piece.writes_left;
    ++in_flight_;
    target_.Start(write);
  }

  void OnWritten(Piece& piece) {
    if (--piece.writes_left != 0) return;
    piece.state = State::kEmpty;
    stats_.bytes += piece.length;
  }

  void Fail(const Endpoint& endpoint, const Operation& operation, int error) {
    if (!error_.ok()) return;
    error_ =
        ErrnoStatus(error, absl::StrCat(Verb(operation.kind), " ", operation.length, " bytes at ",
                                        operation.offset, " of ", endpoint.name()));
  }

  // Runs callbacks of the volumes; sleeps if there are none.
  void WaitForProgress() {
    ibnbd_queue* const first = source_.queue() != nullptr ? source_.queue() : target_.queue();
    ibnbd_queue* const second = source_.queue() != nullptr ? target_.queue() : nullptr;
    constexpr int kWaitMs = 200;  // For the sake of the progress line.
    const bool more_to_do = error_.ok() && HasWorkWithoutWaiting();
    if (second == nullptr || more_to_do) {
      ibnbd_queue_wait(first, more_to_do ? 0 : kWaitMs);
      if (second != nullptr) ibnbd_queue_poll(second, 0);
      return;
    }
    if (ibnbd_queue_poll(first, 0) + ibnbd_queue_poll(second, 0) > 0) return;
    if (ibnbd_queue_prepare_sleep(first) != 0 || ibnbd_queue_prepare_sleep(second) != 0) return;
    std::array<pollfd, 2> fds{pollfd{ibnbd_queue_fd(first), POLLIN, 0},
                              pollfd{ibnbd_queue_fd(second), POLLIN, 0}};
    (void)::poll(fds.data(), fds.size(), kWaitMs);
  }

  bool HasWorkWithoutWaiting() const {
    return std::any_of(pieces_.begin(), pieces_.end(), [this](const Piece& piece) {
      return (piece.state == State::kEmpty && !at_end_) ||
             (piece.state == State::kReady &&
              (!target_.sequential() || piece.offset == next_write_offset_));
    });
  }

  Endpoint& source_;
  Endpoint& target_;
  const CopyOptions& options_;
  CopyStats& stats_;
  const std::optional<std::uint64_t> total_;
  bool skips_zeroes_ = false;
  Arena arena_;
  std::vector<Piece> pieces_;
  std::uint64_t next_offset_ = 0;        // Of the source: read up to here.
  std::uint64_t next_write_offset_ = 0;  // Of a sequential target.
  std::uint32_t in_flight_ = 0;          // Operations started and not done.
  bool at_end_ = false;
  absl::Status error_;
};

}  // namespace

absl::Status Copy(Endpoint& source, Endpoint& target, const CopyOptions& options,
                  CopyStats& stats) {
  return Copier(source, target, options, stats).Run();
}

absl::Status Compare(Endpoint& source, Endpoint& target, std::uint64_t length,
                     const CopyOptions& options) {
  constexpr std::size_t kCompareSize = std::size_t{4} << 20;
  ASSIGN_OR_RETURN(Arena arena, Arena::Create(2 * kCompareSize));
  for (std::uint64_t done = 0; done < length;) {
    const std::size_t size = std::min<std::uint64_t>(length - done, kCompareSize);
    const std::span<std::byte> ours = arena.bytes().first(size);
    const std::span<std::byte> theirs = arena.bytes().subspan(kCompareSize, size);
    RETURN_IF_ERROR(source.ReadNow(done, ours));
    RETURN_IF_ERROR(target.ReadNow(done, theirs));
    const auto differs = std::mismatch(ours.begin(), ours.end(), theirs.begin());
    if (differs.first != ours.end()) {
      return absl::DataLossError(
          absl::StrCat("verify ", target.name(), ": byte ",
                       done + static_cast<std::uint64_t>(differs.first - ours.begin()),
                       " differs from ", source.name()));
    }
    done += size;
    if (options.on_progress) options.on_progress(done, length);
  }
  return absl::OkStatus();
}

}  // namespace ibnbd::client
