// SPDX-License-Identifier: Apache-2.0
#include "tests/vm/victim.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include <ibnbd/ibnbd.h>

#include "absl/strings/str_cat.h"

namespace ibnbd {
namespace {

constexpr std::uint32_t kQueues = 2;
constexpr std::uint32_t kTimeoutMs = 3000;
constexpr std::int64_t kFailAfterMs = 3000;
constexpr char kUntouched = 0x33;

class Log {  // What the library says, of all sessions of the process.
 public:
  static Log& Get() {
    static auto* log = new Log;  // Sessions may outlive main().
    return *log;
  }
  void Add(const std::string& line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
    absl::StrAppend(&text_, ms / 1000, ".", absl::Dec(ms % 1000, absl::kZeroPad3), " ", line, "\n");
  }
  std::string Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(text_, "");
  }

 private:
  Log() { ibnbd_set_log(&Log::OnLine, this, IBNBD_LOG_INFO); }
  static void OnLine(void* self, int, const char* line) { static_cast<Log*>(self)->Add(line); }
  std::mutex mutex_;
  std::string text_;
};

// Memory with a room before and one behind that nobody may touch.
class GuardedRoom {
 public:
  static constexpr std::size_t kSize = 16 << 10;
  GuardedRoom() : memory_(3 * kSize, kUntouched) {}
  char* data() { return memory_.data() + kSize; }
  [[nodiscard]] bool beside_touched() const {
    return Touched(std::span(memory_).first(kSize)) || Touched(std::span(memory_).last(kSize));
  }
  [[nodiscard]] bool touched() const { return Touched(memory_); }
  void Clear() { std::memset(memory_.data(), kUntouched, memory_.size()); }

 private:
  static bool Touched(std::span<const char> bytes) {
    for (const char byte : bytes) {
      if (byte != kUntouched) return true;
    }
    return false;
  }
  std::vector<char> memory_;
};

struct Io {
  ibnbd_io io{};
  int done_count = 0, result = 0;
};

void OnDone(ibnbd_io* io, int result) {
  auto* mine = static_cast<Io*>(io->opaque);
  ++mine->done_count;
  mine->result = result;
}

void Make(Io* io, std::uint32_t op, void* data, std::uint64_t length, ibnbd_buffer* buffer) {
  io->io.op = op;
  io->io.data = data;
  io->io.length = length;
  io->io.buffer = buffer;
  io->io.done = OnDone;
  io->io.opaque = io;
}

// Polls all queues until all are done, or the time is over; then a little longer, for what comes
// twice.
bool Await(ibnbd_session* session, std::span<Io> ios, std::int64_t within_ms) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::milliseconds(within_ms);
  const auto done = [ios] {
    for (const Io& io : ios) {
      if (io.done_count == 0) return false;
    }
    return true;
  };
  const auto poll = [session] {
    for (std::uint32_t i = 1; i < kQueues; ++i) {
      ibnbd_queue_poll(ibnbd_session_queue(session, i), 0);
    }
    ibnbd_queue_wait(ibnbd_session_queue(session, 0), 10);
  };
  while (!done() && Clock::now() < end) poll();
  const auto a_little = Clock::now() + std::chrono::milliseconds(100);
  while (Clock::now() < a_little) poll();
  return done();
}

class Victim {
 public:
  VictimReport Run(const std::string& uri) {
    Log::Get().Take();
    if (Open(uri)) UseIt();
    Close();
    report_.beside_touched = early_.beside_touched() || late_.beside_touched() ||
                             rest_.beside_touched() || (early_is_gone_ && early_.touched());
    report_.text = Log::Get().Take();
    return report_;
  }

 private:
  int Note(int error) {
    if (error != 0) Log::Get().Add(ibnbd_error_message());
    return error;
  }
  bool Open(const std::string& uri) {
    ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
    options.connect_timeout_ms = kTimeoutMs;
    options.heartbeat_ms = 300;
    options.queue_count = kQueues;
    report_.session = Note(ibnbd_session_open(uri.c_str(), &options, &session_));
    if (report_.session != 0) return false;
    const auto none = [](void*, const ibnbd_export_info*) { return 0; };
    Note(ibnbd_session_list(session_, kTimeoutMs, none, nullptr));  // Not all servers can.
    ibnbd_device_options how = IBNBD_DEVICE_OPTIONS_INIT;
    how.open_timeout_ms = kTimeoutMs;
    how.fail_after_ms = kFailAfterMs;
    report_.device = Note(ibnbd_device_open(session_, "vol", &how, &device_));
    return report_.device == 0;
  }
  bool Submit(std::span<Io> ios) {
    ibnbd_queue* queue = ibnbd_session_queue(session_, 0);
    for (Io& io : ios) {
      if (Note(ibnbd_submit(queue, device_, &io.io)) != 0) return false;
      ++report_.submitted;
    }
    return Await(session_, ios, 2 * kFailAfterMs + 1000);
  }
  void UseIt() {
    // A registration that is gone before the others are lent.
    ibnbd_buffer* buffer = nullptr;
    if (Note(ibnbd_buffer_register(session_, early_.data(), GuardedRoom::kSize, &buffer))) return;
    Make(&ios_[0], IBNBD_OP_READ, early_.data(), 4096, buffer);
    if (!Submit(std::span(ios_).first(1))) return;
    if (early_.beside_touched()) return;
    ibnbd_buffer_free(buffer);
    early_.Clear();
    early_is_gone_ = true;
    if (Note(ibnbd_buffer_register(session_, late_.data(), GuardedRoom::kSize, &buffer))) return;
    Make(&ios_[1], IBNBD_OP_READ, late_.data(), 8192, buffer);
    Make(&ios_[2], IBNBD_OP_WRITE, late_.data() + 8192, 8192, buffer);
    Make(&ios_[3], IBNBD_OP_READ, rest_.data(), 4096, nullptr);
    Make(&ios_[4], IBNBD_OP_WRITE, rest_.data() + 8192, 4096, nullptr);
    Make(&ios_[5], IBNBD_OP_FLUSH, nullptr, 0, nullptr);
    Submit(std::span(ios_).last(5));
  }
  void Close() {
    if (session_ == nullptr) return;
    ibnbd_session_info info{};
    info.struct_size = sizeof info;
    if (Note(ibnbd_session_get_info(session_, &info)) == 0) report_.reconnects = info.reconnects;
    report_.close = Note(ibnbd_session_close(session_, 1000));
    for (const Io& io : ios_) {
      if (io.done_count == 0) continue;
      report_.answered_twice |= io.done_count > 1;
      ++(io.result == 0            ? report_.succeeded
         : io.result == -ECANCELED ? report_.cancelled
                                   : report_.failed);
    }
  }

  VictimReport report_;
  ibnbd_session* session_ = nullptr;
  ibnbd_device* device_ = nullptr;
  GuardedRoom early_, late_, rest_;
  bool early_is_gone_ = false;
  std::vector<Io> ios_{6};
};

}  // namespace

std::string VictimReport::ToString() const {
  return absl::StrCat("session ", session, ", device ", device, ", IOs: ", submitted,
                      " submitted, ", succeeded, " succeeded, ", failed, " failed, ", cancelled,
                      " cancelled, close ", close, ", ", reconnects, " reconnects\n", text);
}

VictimReport RunVictim(const std::string& uri) { return Victim().Run(uri); }

Neighbour::Neighbour(std::string uri, bool stores) : uri_(std::move(uri)), stores_(stores) {
  Log::Get();  // Before there is a session.
  thread_ = std::thread([this] { Run(); });
}

std::string Neighbour::Stop() {
  stop_.store(true);
  if (thread_.joinable()) thread_.join();
  return trouble_;
}

void Neighbour::Run() {
  trouble_ = Work();
  if (!trouble_.empty()) rounds_.store(-1);
}

std::string Neighbour::Work() {
  ibnbd_session* session = nullptr;
  ibnbd_device* device = nullptr;
  ibnbd_buffer* buffer = nullptr;
  ibnbd_session_options options = IBNBD_SESSION_OPTIONS_INIT;
  options.queue_count = kQueues;
  if (ibnbd_session_open(uri_.c_str(), &options, &session) != 0 ||
      ibnbd_device_open(session, "vol", nullptr, &device) != 0 ||
      ibnbd_buffer_alloc(session, 2 * kNeighbourHalf, &buffer) != 0) {
    return absl::StrCat("neighbour: ", ibnbd_error_message());
  }
  auto* memory = static_cast<char*>(ibnbd_buffer_data(buffer));
  std::memset(memory + kNeighbourHalf, kUntouched, kNeighbourHalf);
  ibnbd_queue* queue = ibnbd_session_queue(session, 0);
  std::string trouble;
  for (int round = 0; trouble.empty() && !stop_.load(); ++round) {
    for (const std::uint32_t op : {IBNBD_OP_WRITE, IBNBD_OP_READ}) {
      Io io;
      std::memset(memory, op == IBNBD_OP_WRITE ? round & 0x7f : 0, 8192);
      Make(&io, op, memory, 8192, buffer);
      io.io.offset = static_cast<std::uint64_t>(round % 64) * 8192;
      if (ibnbd_submit(queue, device, &io.io) != 0) trouble = ibnbd_error_message();
      if (trouble.empty() && !Await(session, {&io, 1}, 30'000)) trouble = "neighbour: no answer";
      if (trouble == "neighbour: no answer") return trouble;  // The IO is still out there.
      if (io.result != 0) trouble = absl::StrCat("neighbour: IO failed with ", io.result);
    }
    for (std::size_t i = 0; i < kNeighbourHalf; ++i) {
      if (memory[kNeighbourHalf + i] != kUntouched) trouble = "neighbour: its memory was touched";
      if (stores_ && i < 8192 && memory[i] != (round & 0x7f)) trouble = "neighbour: other data";
    }
    rounds_.store(round + 1);
  }
  ibnbd_session_info info{};
  info.struct_size = sizeof info;
  if (ibnbd_session_get_info(session, &info) == 0 && info.reconnects != 0) {
    trouble = "neighbour: its session was lost";
  }
  if (ibnbd_session_close(session, 5000) != 0) trouble = ibnbd_error_message();
  return trouble;
}

}  // namespace ibnbd
