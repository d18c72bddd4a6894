// SPDX-License-Identifier: Apache-2.0
// See bridge.h.
#include "nbd-bridge/bridge.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <iterator>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace ibnbd::bridge {

namespace {

void SetUp(const UniqueFd& socket) {
  const int one = 1;
  // Fails on a unix socket, which needs none.
  (void)::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  const int buffer_size = 1 << 20;  // As far as the system lets us.
  (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &buffer_size, sizeof(buffer_size));
}

}  // namespace

// Accepts on one socket, on the first loop.
class Bridge::Acceptor final : public LoopMember, public RingOp {
 public:
  Acceptor(Bridge& bridge, EventLoop& loop, int fd) : bridge_(bridge), loop_(loop), fd_(fd) {}
  void Start() {
    loop_.Add(*this);
    Arm();
  }
  void OnCqe(int result) override {
    armed_ = false;
    if (stopping_) {
      if (result >= 0) bridge_.HandOverNew(UniqueFd(result));
      loop_.RequestTurnEnd(*this);
      return;
    }
    if (result >= 0) {
      bridge_.TakeClient(UniqueFd(result));
    } else if (result != -EINTR && result != -EAGAIN && result != -ECONNABORTED) {
      // Out of descriptors or memory, most likely: wait for the next tick.
      if (loop_.MayLog()) LOG_ERROR(ErrnoStatus(result, "accept").message());
      return;
    }
    Arm();
  }
  // Until it has gone, somebody may still come.
  void Stop() {
    if (std::exchange(stopping_, true)) return;
    if (armed_) loop_.Cancel(*this);
    loop_.RequestTurnEnd(*this);
  }
  void OnTurnEnd() override {
    if (!stopping_ || armed_) return;
    loop_.Remove(*this);
    bridge_.acceptors_gone_.release();
  }
  void OnTick() override {
    if (!armed_ && !stopping_) Arm();
  }
  void OnDrain() override { Stop(); }

 private:
  void Arm() {
    armed_ = true;
    io_uring_sqe* sqe = loop_.GetSqe();
    io_uring_prep_accept(sqe, fd_, nullptr, nullptr, SOCK_CLOEXEC);
    loop_.Bind(sqe, *this);
  }

  Bridge& bridge_;
  EventLoop& loop_;
  const int fd_;
  bool armed_ = false;
  bool stopping_ = false;
};

Bridge::Bridge(const BridgeOptions& options) : options_(options) {}

absl::StatusOr<std::unique_ptr<Bridge>> Bridge::Start(const BridgeOptions& options,
                                                      Inheritance inheritance) {
  std::unique_ptr<Bridge> bridge(new Bridge(options));
  // First the sockets: what is wrong with them is found at once, a server may take a while.
  RETURN_IF_ERROR(bridge->Listen(&inheritance));
  bridge->volumes_ = std::move(inheritance.volumes);
  if (bridge->volumes_ == nullptr) {
    ASSIGN_OR_RETURN(bridge->volumes_, VolumeTable::Open(VolumeOptionsOf(options)));
  }
  bridge->StartLoops();
  // From here on nothing can fail.
  if (inheritance.on_serve) inheritance.on_serve();
  bridge->Resume(std::move(inheritance.before.clients));
  return bridge;
}

VolumeTableOptions Bridge::VolumeOptionsOf(const BridgeOptions& options) {
  VolumeTableOptions volumes = options.volumes;
  volumes.queue_count = options.thread_count;
  volumes.payload_size_max = std::min(volumes.payload_size_max, options.connection_memory);
  return volumes;
}

absl::Status Bridge::Listen(Inheritance* inheritance) {
  for (UniqueFd& fd : inheritance->activated) {
    ASSIGN_OR_RETURN(ListenSocket socket, ListenSocket::Activated(std::move(fd)));
    sockets_.push_back(std::move(socket));
  }
  for (const std::string& address : options_.listen) {
    auto socket = ListenSocket::Open(address, &inheritance->before.sockets);
    if (socket.ok()) {
      sockets_.push_back(*std::move(socket));
    } else if (inheritance->before.taken) {
      LOG_ERROR(socket.status().message(), "; there are clients to be served all the same");
    } else {
      return socket.status();
    }
  }
  if (!inheritance->before.sockets.empty()) {
    LOG_WARN("listens no more on ", inheritance->before.sockets.size(),
             " sockets of the process before");
    inheritance->before.sockets.clear();
  }
  if (sockets_.empty() && inheritance->before.clients.empty()) {
    return absl::InvalidArgumentError("nothing to listen on: give --socket or --listen");
  }
  return absl::OkStatus();
}

void Bridge::StartLoops() {
  loops_.resize(options_.thread_count);
  for (std::uint32_t i = 0; i < options_.thread_count; ++i) {
    Loop& loop = loops_[i];
    const std::vector<ibnbd_queue*> queues = volumes_->QueuesOf(i);
    loop.events = std::make_unique<EventLoop>(clock_, queues);
    loop.memory =
        std::make_unique<ConnectionMemoryCache>(volumes_->sessions(), options_.connection_memory);
    loop.context.reset(new LoopContext{*loop.events,
                                       *volumes_,
                                       *loop.memory,
                                       queues,
                                       connection_count_,
                                       options_.handshake_timeout_ms * kNsPerMs,
                                       false,
                                       {},
                                       {}});
  }
  EventLoop& first = *loops_[0].events;
  for (const ListenSocket& socket : sockets_) {
    acceptors_.push_back(std::make_unique<Acceptor>(*this, first, socket.fd()));
    first.Post([acceptor = acceptors_.back().get()] { acceptor->Start(); });
  }
  // The loops' threads take no signals, whoever takes them.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);  // Cannot fail.
  for (Loop& loop : loops_) {
    loop.ended = std::make_unique<std::binary_semaphore>(0);
    loop.thread = std::thread([events = loop.events.get(), ended = loop.ended.get()] {
      if (absl::Status status = events->Run(); !status.ok()) {
        LOG_ERROR("an event loop cannot run: ", status.message());
        CHECK(status.ok());
      }
      ended->release();
    });
    (void)pthread_setname_np(loop.thread.native_handle(),
                             absl::StrCat("nbd-loop-", &loop - loops_.data()).c_str());
  }
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Bridge::TakeClient(UniqueFd socket) {
  std::string peer = PeerOf(socket.get());
  if (connection_count_.load(std::memory_order_relaxed) >= options_.connections_max) {
    if (loops_[0].events->MayLog()) {
      LOG_WARN("turned ", peer, " away: there are ", options_.connections_max, " connections");
    }
    return;
  }
  connection_count_.fetch_add(1, std::memory_order_relaxed);
  SetUp(socket);
  Loop& loop = loops_[next_loop_];
  next_loop_ = (next_loop_ + 1) % loops_.size();
  loop.events->Post(
      [context = loop.context.get(), socket = std::move(socket), peer = std::move(peer)]() mutable {
        NbdConnection::Start(*context, std::move(socket), std::move(peer));
      });
}

void Bridge::Resume(std::vector<HandedClient> clients) {
  for (HandedClient& client : clients) {
    absl::StatusOr<ClientState> state = ParseClientState(client.state);
    std::string peer = PeerOf(client.socket.get());
    if (!state.ok()) {
      LOG_WARN("closed the connection of ", peer, ": ", state.status().message());
      continue;
    }
    SetUp(client.socket);  // The one before had no time to if it only accepted it.
    connection_count_.fetch_add(1, std::memory_order_relaxed);
    Loop& loop = loops_[next_of_resumed_++ % loops_.size()];
    loop.events->Post([context = loop.context.get(), socket = std::move(client.socket),
                       peer = std::move(peer), state = *std::move(state)]() mutable {
      NbdConnection::Resume(*context, std::move(socket), std::move(peer), state);
    });
  }
}

void Bridge::HandOverNew(UniqueFd socket) {
  LoopContext& context = *loops_[0].context;
  if (!context.hand_over) return;
  ClientState state;
  state.is_new = true;
  context.handed_over.push_back({std::move(socket), FormatClientState(state)});
}

Predecessor Bridge::Describe() {
  constexpr std::chrono::seconds kPatience(1);
  // What is due beside the time that is given: the end of accepting, and of the process.
  constexpr std::int64_t kEndNs = 10 * kNsPerSecond;
  struct Gathering {  // A loop may answer when nobody waits any more.
    std::mutex mutex;
    std::set<std::string> states;
    std::counting_semaphore<> answers{0};
  };
  const auto gathering = std::make_shared<Gathering>();
  for (Loop& loop : loops_) {
    loop.events->Post([gathering, context = loop.context.get()] {
      {
        const std::lock_guard<std::mutex> lock(gathering->mutex);
        gathering->states.insert(context->served.begin(), context->served.end());
      }
      gathering->answers.release();
    });
  }
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  std::size_t answers = 0;
  while (answers < loops_.size() && gathering->answers.try_acquire_until(deadline)) ++answers;
  if (answers < loops_.size()) LOG_ERROR("a thread does not answer; its clients are not looked at");
  Predecessor described;
  // To finish, to flush, and to close.
  described.ends_within_ns = 3 * options_.stop_timeout_ms * kNsPerMs + kEndNs;
  for (const ListenSocket& socket : sockets_) described.addresses.push_back(socket.address());
  const std::lock_guard<std::mutex> lock(gathering->mutex);
  for (const std::string& state : gathering->states) {
    described.clients.push_back(*ParseClientState(state));  // We have written it.
  }
  return described;
}

// Who is accepted is dealt to a loop, and a loop that drains knows only those who are there: so all
// of them are, before the first loop drains.
void Bridge::StopAccepting() {
  constexpr std::chrono::seconds kPatience(5);  // No more than a turn of the first loop is due.
  std::vector<Acceptor*> acceptors;
  for (const auto& acceptor : acceptors_) acceptors.push_back(acceptor.get());
  loops_[0].events->Post([acceptors = std::move(acceptors)] {
    for (Acceptor* acceptor : acceptors) acceptor->Stop();
  });
  for (std::size_t i = 0; i < acceptors_.size(); ++i) {
    if (acceptors_gone_.try_acquire_for(kPatience)) continue;
    LOG_ERROR("the first thread does not answer; clients that come now are lost");
    return;
  }
}

// False: there are connections left, or threads.
bool Bridge::JoinLoops() {
  constexpr std::int64_t kTurnNs = 2 * kNsPerSecond;  // More than a turn of a loop takes.
  stopped_ = true;
  StopAccepting();
  const std::int64_t deadline_ns = clock_.NowNs() + options_.stop_timeout_ms * kNsPerMs;
  for (Loop& loop : loops_) loop.events->StartDrain(deadline_ns);
  for (Loop& loop : loops_) {
    const std::int64_t left_ns = deadline_ns + kTurnNs - clock_.NowNs();
    loop.hangs = !loop.ended->try_acquire_for(std::chrono::nanoseconds(left_ns));
    if (!loop.hangs) {
      loop.thread.join();
      continue;
    }
    LOG_ERROR("thread nbd-loop-", &loop - loops_.data(), " hangs; its clients are lost");
    loop.thread.detach();
  }
  sockets_.clear();
  if (loops_[0].hangs) {
    static auto* const left = new std::vector<std::unique_ptr<Acceptor>>;  // To the thread.
    std::move(acceptors_.begin(), acceptors_.end(), std::back_inserter(*left));
  }
  acceptors_.clear();
  return connection_count_.load(std::memory_order_relaxed) == 0 && !AnyHangs();
}

bool Bridge::AnyHangs() const {
  return std::any_of(loops_.begin(), loops_.end(), [](const Loop& loop) { return loop.hangs; });
}

bool Bridge::AllAlive() {
  const bool sessions_answer = volumes_->AllAlive();
  if (unanswered_.load(std::memory_order_acquire) != 0) return false;
  unanswered_.store(static_cast<std::uint32_t>(loops_.size()), std::memory_order_relaxed);
  for (Loop& loop : loops_) {
    loop.events->Post([this] { unanswered_.fetch_sub(1, std::memory_order_release); });
  }
  return sessions_answer;
}

bool Bridge::StopFor(std::vector<HandedClient>* clients) {
  for (Loop& loop : loops_) {
    loop.events->Post([context = loop.context.get()] { context->hand_over = true; });
  }
  for (ListenSocket& socket : sockets_) socket.Leave();
  const bool clean = JoinLoops();
  for (Loop& loop : loops_) {
    if (loop.hangs) continue;
    std::move(loop.context->handed_over.begin(), loop.context->handed_over.end(),
              std::back_inserter(*clients));
  }
  const bool flushed = clients->empty() || FlushFor(clients);
  return CloseAll(clean) && flushed;
}

// Clients of a volume that is not flushed are closed: the error was ours to tell them, and through
// the next process their next flush would succeed.
bool Bridge::FlushFor(std::vector<HandedClient>* clients) {
  std::vector<bool> usable;  // What a thread that hangs was told was for its clients.
  for (const Loop& loop : loops_) usable.push_back(!loop.hangs);
  const std::vector<bool> flushed = volumes_->Flush(options_.stop_timeout_ms, usable);
  std::erase_if(*clients, [&](const HandedClient& client) {
    const auto state = ParseClientState(client.state);
    if (state.ok() && state->is_new) return false;
    const auto volume = state.ok() ? volumes_->Find(state->export_name) : std::nullopt;
    if (volume && flushed[*volume]) return false;
    LOG_WARN("closed the connection of ", PeerOf(client.socket.get()),
             ": what it was told is written may not be");
    return true;
  });
  return std::find(flushed.begin(), flushed.end(), false) == flushed.end();
}

bool Bridge::Stop() { return stopped_ || CloseAll(JoinLoops()); }

bool Bridge::CloseAll(bool clean) {
  if (AnyHangs() || !volumes_->Answer()) {
    // Nothing can be taken down below it; the kernel can.
    LOG_ERROR("a thread hangs; the volumes close with the end of the process");
    (void)volumes_.release();
    clean = false;
  }
  if (clean) {
    // Buffers go before the sessions that they are registered with.
    loops_.clear();
    volumes_->Close(options_.stop_timeout_ms);
    return true;
  }
  LOG_WARN("gave up waiting for outstanding IO");
  // The IOs come back from inside this call, into connections that stay as they are: the process
  // ends anyway.
  if (volumes_ != nullptr) volumes_->Close(0);
  static auto* const given_up = new std::vector<Loop>;  // Never destroyed.
  std::move(loops_.begin(), loops_.end(), std::back_inserter(*given_up));
  loops_.clear();
  return false;
}

Bridge::~Bridge() {
  if (!loops_.empty()) (void)Stop();
}

}  // namespace ibnbd::bridge
