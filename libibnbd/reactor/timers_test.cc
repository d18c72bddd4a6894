// SPDX-License-Identifier: Apache-2.0
#include "reactor/timers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/prng.h"

namespace ibnbd {
namespace {

TEST(Timers, FireInDeadlineOrderAndEqualOnesInArmingOrder) {
  Timers timers;
  std::vector<int> fired;
  Timer a(timers, [&] { fired.push_back(1); });
  Timer b(timers, [&] { fired.push_back(2); });
  Timer c(timers, [&] { fired.push_back(3); });
  c.ArmAt(10);
  a.ArmAt(20);
  b.ArmAt(10);
  EXPECT_EQ(timers.next_deadline_ns(), 10);
  EXPECT_FALSE(timers.FireDue(9));
  EXPECT_TRUE(timers.FireDue(20));
  EXPECT_EQ(fired, (std::vector<int>{3, 2, 1}));
  EXPECT_EQ(timers.next_deadline_ns(), -1);
}

TEST(Timers, OneThatRearmsItselfForNowFiresOncePerCall) {
  Timers timers;
  int count = 0;
  std::unique_ptr<Timer> timer;
  timer = std::make_unique<Timer>(timers, [&] {
    ++count;
    timer->ArmAfter(0);
  });
  timer->ArmAt(5);
  timers.FireDue(5);
  EXPECT_EQ(count, 1);
  EXPECT_EQ(timers.next_deadline_ns(), 5);
  timers.FireDue(5);
  EXPECT_EQ(count, 2);
}

TEST(Timers, ACallbackMayDestroyItsOwnTimerAndCancelOthers) {
  Timers timers;
  int count = 0;
  std::unique_ptr<Timer> own;
  Timer other(timers, [&] { count += 100; });
  own = std::make_unique<Timer>(timers, [&] {
    ++count;
    other.Cancel();
    own.reset();
    ++count;  // What was captured outlives the timer.
  });
  own->ArmAt(1);
  other.ArmAt(1);
  timers.FireDue(1);
  EXPECT_EQ(count, 2);
  EXPECT_EQ(timers.armed_count(), 0u);
}

TEST(Timers, OneArmedDuringFiringCanBeCancelledDuringFiring) {
  Timers timers;
  int count = 0;
  Timer x(timers, [&] { ++count; });
  Timer y(timers, [&] { ++count; });
  Timer first(timers, [&] {
    x.ArmAt(0);
    y.ArmAt(0);
    x.Cancel();
    EXPECT_FALSE(x.armed());
    EXPECT_TRUE(y.armed());
  });
  first.ArmAt(1);
  timers.FireDue(1);
  EXPECT_EQ(count, 0);
  EXPECT_EQ(timers.armed_count(), 1u);
  timers.FireDue(1);
  EXPECT_EQ(count, 1);
}

TEST(Timers, AgreeWithASortedListUnderRandomArmingAndCancelling) {
  Timers timers;
  Prng prng(4711);
  std::vector<std::int64_t> fired;
  std::vector<std::unique_ptr<Timer>> all;
  for (int i = 0; i < 200; ++i) {
    auto* slot = &all.emplace_back();
    (void)slot;
    const std::size_t index = all.size() - 1;
    all.back() =
        std::make_unique<Timer>(timers, [&, index] { fired.push_back(all[index]->deadline_ns()); });
  }
  for (int step = 0; step < 5000; ++step) {
    Timer& timer = *all[prng.Below(all.size())];
    if (prng.Below(3) == 0) {
      timer.Cancel();
    } else {
      timer.ArmAt(static_cast<std::int64_t>(prng.Below(1000)));
    }
  }
  const std::size_t armed = timers.armed_count();
  for (std::int64_t now = 0; now <= 1000; now += 50) timers.FireDue(now);
  EXPECT_EQ(fired.size(), armed);
  EXPECT_TRUE(std::is_sorted(fired.begin(), fired.end()));
}

}  // namespace
}  // namespace ibnbd
