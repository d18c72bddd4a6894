// SPDX-License-Identifier: Apache-2.0
// What a device waits for, IO by IO: each lane tells what it has, control puts it together.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "rnbd/client_device.h"

namespace ibnbd::rnbd {
namespace {

// Of one question.  A lane's entry is the lane's until it has answered.
struct Answers {
  std::vector<std::vector<OutstandingIo>> of_lane;
  std::size_t awaited = 0;
  DeviceImpl::ListDone done;
};

void OnAnswer(Answers& answers) {
  if (--answers.awaited != 0) return;
  std::vector<OutstandingIo> all;
  for (const auto& ios : answers.of_lane) all.insert(all.end(), ios.begin(), ios.end());
  answers.done(std::move(all));
}

}  // namespace

void DeviceImpl::ListIos(ListDone done) {
  if (queues_.empty()) return done({});  // It was never open.
  auto answers = std::make_shared<Answers>();
  answers->of_lane.resize(queues_.size());
  answers->awaited = queues_.size();
  answers->done = std::move(done);
  Reactor& control = context_.control.reactor();
  for (std::uint32_t lane = 0; lane < queues_.size(); ++lane) {
    DeviceQueueImpl* queue = queues_[lane].get();
    // A lane does not allocate; what is submitted meanwhile has room for a while.
    answers->of_lane[lane].reserve(queue->outstanding() + 64);
    queue->lane().port().reactor().Post([queue, lane, answers, &control] {
      queue->ListIos(lane, &answers->of_lane[lane]);
      control.Post([answers] { OnAnswer(*answers); });
    });
  }
}

}  // namespace ibnbd::rnbd
