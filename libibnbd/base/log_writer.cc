// SPDX-License-Identifier: Apache-2.0
// See log_writer.h.
#include "base/log_writer.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/time/clock.h"

namespace ibnbd {

LogWriter::LogWriter(int fd, std::string loss_prefix, std::size_t capacity)
    : fd_(fd), loss_prefix_(std::move(loss_prefix)), buffer_(capacity) {}

LogWriter::~LogWriter() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void LogWriter::Start() {
  // Signals are for others; without SIGPIPE a reader that has gone is an error like any other.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);  // Cannot fail.
  thread_ = std::thread([this] { Run(); });
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void LogWriter::Write(absl::string_view line) {
  line = line.substr(0, kLineMax);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (line.size() + 1 > buffer_.size() - (end_ - begin_)) {
      if (lost_++ == 0) lost_at_ = end_;
      return;
    }
    Append(line);
    Append("\n");
  }
  changed_.notify_all();
}

void LogWriter::Append(absl::string_view text) {
  const std::size_t at = end_ % buffer_.size();
  const std::size_t first = std::min(text.size(), buffer_.size() - at);
  std::memcpy(&buffer_[at], text.data(), first);
  std::memcpy(buffer_.data(), text.data() + first, text.size() - first);
  end_ += text.size();
}

bool LogWriter::Flush(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout), [this] { return IsIdle(); });
}

LogWriter::Piece LogWriter::Next() const {
  Piece piece{};
  if (MayTellLoss()) piece.lost = lost_;
  // What came before the loss is said before it.
  const std::uint64_t end = lost_ != 0 && begin_ < lost_at_ ? lost_at_ : end_;
  piece.begin = begin_ % buffer_.size();
  piece.size = std::min<std::size_t>(end - begin_, buffer_.size() - piece.begin);
  return piece;
}

void LogWriter::Finish(const Piece& piece, bool told, bool written) {
  begin_ += piece.size;
  failed_ = !written || (piece.lost != 0 && !told);
  if (told) {
    lost_ -= piece.lost;
    lost_at_ = end_;
  }
  if (written) return;
  const auto begin = buffer_.begin() + static_cast<std::ptrdiff_t>(piece.begin);
  if (lost_ == 0) lost_at_ = begin_;
  lost_ += static_cast<std::uint64_t>(
      std::count(begin, begin + static_cast<std::ptrdiff_t>(piece.size), '\n'));
}

void LogWriter::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !IsIdle() || ending_; });
    if (IsIdle()) return;
    const Piece piece = Next();
    lock.unlock();
    bool told = piece.lost != 0;
    if (told) {
      char text[256];
      const int size =
          std::snprintf(text, sizeof(text), "%s%" PRIu64 " log lines were lost: nobody took them\n",
                        loss_prefix_.c_str(), piece.lost);
      told =
          WriteOut(text, std::min<std::size_t>(static_cast<std::size_t>(size), sizeof(text) - 1));
    }
    const bool written = WriteOut(&buffer_[piece.begin], piece.size);
    lock.lock();
    Finish(piece, told, written);
    changed_.notify_all();
  }
}

// False: nobody can have the rest.
bool LogWriter::WriteOut(const char* text, std::size_t size) const {
  while (size > 0) {
    const ssize_t put = ::write(fd_, text, size);
    if (put >= 0) {
      text += put;
      size -= static_cast<std::size_t>(put);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return false;
    pollfd ready{.fd = fd_, .events = POLLOUT, .revents = 0};  // Others share it, and made it so.
    (void)::poll(&ready, 1, -1);
  }
  return true;
}

}  // namespace ibnbd
