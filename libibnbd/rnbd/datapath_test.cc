// SPDX-License-Identifier: Apache-2.0
// Client and server over the real TCP fabric, in one thread: IOs arrive, and once everything is
// warm not one of them allocates, takes a lock or writes a log line, on either side.  Every
// allocation, every pthread_mutex_lock() and every line of this program is counted.
#include <dlfcn.h>
#include <pthread.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "base/arena.h"
#include "base/log.h"
#include "fabric/tcp/tcp_fabric.h"
#include "gmock/gmock.h"
#include "reactor/reactor.h"
#include "rnbd/client.h"
#include "rnbd/server.h"

namespace {
std::uint64_t allocation_count = 0;
std::uint64_t lock_count = 0;
std::uint64_t line_count = 0;
}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kLocksAreCounted = false;  // The sanitizer has this function for itself.
#else
constexpr bool kLocksAreCounted = true;
extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  using Lock = int (*)(pthread_mutex_t*);
  static const Lock next = reinterpret_cast<Lock>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  ++lock_count;
  return next(mutex);
}
#endif

void* operator new(std::size_t size) {
  ++allocation_count;
  void* memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace ibnbd::rnbd {
namespace {

constexpr std::size_t kDiskSize = 4 << 20;

// Completes inside Submit(), without allocating.
class PlainBackend final : public Backend {
 public:
  PlainBackend() : memory_(*Arena::Create(kDiskSize)) {
    geometry_.size_bytes = kDiskSize;
    geometry_.physical_block_size = 512;
  }
  [[nodiscard]] const Geometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::string Describe() const override { return "plain"; }
  absl::StatusOr<std::unique_ptr<BackendQueue>> CreateQueue(Reactor&, std::uint32_t) override {
    return std::make_unique<Queue>(memory_.bytes());
  }
  [[nodiscard]] std::span<std::byte> memory() { return memory_.bytes(); }

 private:
  class Queue final : public BackendQueue {
   public:
    explicit Queue(std::span<std::byte> memory) : memory_(memory) {}
    void Submit(BackendIo& io) override {
      if (io.op == BackendOp::kRead) {
        std::memcpy(io.data.data(), &memory_[io.offset], io.length);
      } else if (io.op == BackendOp::kWrite) {
        std::memcpy(&memory_[io.offset], io.data.data(), io.length);
      }
      io.OnBackendDone(0);
    }

   private:
    const std::span<std::byte> memory_;
  };
  Geometry geometry_;
  Arena memory_;
};

class OneExport final : public ExportProvider {
 public:
  OneExport() : export_(std::make_shared<Export>()) {
    auto backend = std::make_unique<PlainBackend>();
    memory = backend->memory();
    export_->name = "vol0";
    export_->backend = std::move(backend);
  }
  absl::StatusOr<std::shared_ptr<Export>> Find(const std::string&, const std::string&) override {
    return export_;
  }
  std::vector<std::shared_ptr<Export>> List(const std::string&) override { return {export_}; }
  std::span<std::byte> memory;

 private:
  std::shared_ptr<Export> export_;
};

class CountedIo final : public Io {
 public:
  ~CountedIo() override = default;
  void OnIoDone(int error) override {
    result = error;
    done = true;
  }
  int result = 1;
  bool done = true;
};

class DatapathTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fabric_ = *tcp::CreateTcpFabric();
    for (int i = 0; i < 4; ++i) {
      reactors_.push_back(*Reactor::Create(clock_, {}));
      ports_.push_back(*rtrs::Port::Create(*reactors_.back(), *fabric_));
    }
    // Heartbeats are mail, which locks: none is due however slow the machine is.
    ServerOptions server_options;
    server_options.heartbeat_interval_ns = 3600 * kNsPerSecond;
    server_ = *Server::Create({ports_[0].get(), ports_[1].get()}, server_options, exports_);
    const auto address = server_->Listen(*ResolveAddress("127.0.0.1", 0));
    ASSERT_TRUE(address.ok()) << address.status();
    memory_ = *Arena::Create(kDiskSize);
    region_ = *fabric_->Register(memory_.bytes(), fabric::Access::kRemoteWrite);
    Client::Options options;
    options.session.name = "client";
    options.session.server = *address;
    options.session.seed = 7;
    options.session.heartbeat_interval_ns = server_options.heartbeat_interval_ns;
    rtrs::Port* lane = ports_[3].get();
    client_ = *Client::Create(options, *ports_[2], {&lane, 1});
    absl::Status status = absl::UnknownError("no answer");
    client_->Start(false, [&](const absl::Status& result) { status = result; });
    RunUntil([&] { return status.code() != absl::StatusCode::kUnknown; });
    ASSERT_TRUE(status.ok()) << status;
    client_->OpenDevice("vol0", AccessMode::kReadWrite, {}, [&](absl::StatusOr<Device*> result) {
      device_ = result.value_or(nullptr);
    });
    RunUntil([&] { return device_ != nullptr; });
    ASSERT_NE(device_, nullptr);
  }
  void TearDown() override {
    bool closed = false, stopped = false;
    client_->Close(kNsPerSecond, [&] { closed = true; });
    RunUntil([&] { return closed; });
    server_->Stop(kNsPerSecond, [&] { stopped = true; });
    RunUntil([&] { return stopped; });
    EXPECT_TRUE(closed && stopped);
    client_.reset();
    server_.reset();
    region_.reset();
    ports_.clear();
    reactors_.clear();
    fabric_.reset();
  }
  // All in one thread; gives up after ten seconds.
  template <class F>
  void RunUntil(F done) {
    const std::int64_t end_ns = clock_.NowNs() + 10 * kNsPerSecond;
    while (!done() && clock_.NowNs() < end_ns) {
      for (const auto& reactor : reactors_) reactor->RunTurn();
    }
    EXPECT_TRUE(done());
  }
  // `count` IOs in rounds of as many as `ios` has.
  void RunIos(std::vector<std::unique_ptr<CountedIo>>& ios, IoOp op, std::size_t size,
              std::size_t count) {
    for (std::size_t at = 0; at < count;) {
      for (auto& io : ios) {
        const std::uint64_t offset = at++ * size % (kDiskSize - size) / 512 * 512;
        io->op = op;
        io->offset = offset;
        io->length = size;
        io->data = memory_.bytes().subspan(offset, size);
        io->keys = &region_->keys();
        io->done = false;
        if (device_->queue(0).Submit(*io) != 0) std::abort();
      }
      RunUntil([&] {
        return std::all_of(ios.begin(), ios.end(), [](const auto& io) { return io->done; });
      });
      for (const auto& io : ios) {
        if (io->result != 0) std::abort();
      }
    }
  }
  static std::vector<std::unique_ptr<CountedIo>> MakeIos(std::size_t count) {
    std::vector<std::unique_ptr<CountedIo>> ios;
    for (std::size_t i = 0; i < count; ++i) ios.push_back(std::make_unique<CountedIo>());
    return ios;
  }

  MonotonicClock clock_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::unique_ptr<rtrs::Port>> ports_;
  OneExport exports_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
  Arena memory_;
  std::unique_ptr<fabric::Region> region_;
  Device* device_ = nullptr;
};

TEST_F(DatapathTest, BytesArriveOverTcp) {
  auto ios = MakeIos(8);
  std::span<std::byte> bytes = memory_.bytes();
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 >> 3);
  RunIos(ios, IoOp::kWrite, 512 << 10, 8);
  std::size_t equal = 0;
  while (equal < kDiskSize - (512 << 10) && exports_.memory[equal] == bytes[equal]) ++equal;
  EXPECT_EQ(equal, kDiskSize - (512 << 10));
  std::fill(bytes.begin(), bytes.end(), std::byte{0});
  RunIos(ios, IoOp::kRead, 512 << 10, 8);
  EXPECT_EQ(std::memcmp(bytes.data(), exports_.memory.data(), kDiskSize - (512 << 10)), 0);
}

TEST_F(DatapathTest, NothingIsAllocatedLockedOrLoggedOnceEverythingIsWarm) {
  SetLogSink([](LogLevel, const std::string&) { ++line_count; }, LogLevel::kDebug);
  auto ios = MakeIos(64);
  for (const std::size_t size : {std::size_t{4096}, std::size_t{300} << 10}) {
    RunIos(ios, IoOp::kWrite, size, 2000);
    RunIos(ios, IoOp::kRead, size, 2000);
    const std::uint64_t allocations = allocation_count, locks = lock_count, lines = line_count;
    RunIos(ios, IoOp::kWrite, size, 2000);
    RunIos(ios, IoOp::kRead, size, 2000);
    EXPECT_EQ(allocation_count - allocations, 0u) << "IOs of " << size;
    EXPECT_EQ(line_count - lines, 0u) << "IOs of " << size;
    EXPECT_EQ(lock_count - locks, 0u) << "IOs of " << size;
  }
  // The counters count: opening a device takes all three.
  const std::uint64_t allocations = allocation_count, locks = lock_count, lines = line_count;
  bool answered = false;
  client_->OpenDevice("vol0", AccessMode::kReadOnly, {},
                      [&](const absl::StatusOr<Device*>&) { answered = true; });
  RunUntil([&] { return answered; });
  EXPECT_GT(allocation_count, allocations);
  EXPECT_GT(line_count, lines);
  EXPECT_EQ(lock_count > locks, kLocksAreCounted);
  SetLogSink(nullptr, LogLevel::kWarn);
}

}  // namespace
}  // namespace ibnbd::rnbd
