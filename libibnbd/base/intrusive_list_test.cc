// SPDX-License-Identifier: Apache-2.0
#include "base/intrusive_list.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace ibnbd {
namespace {

struct Item : ListHook {
  int value = 0;
};

std::vector<int> Values(IntrusiveList<Item>& list) {
  std::vector<int> values;
  list.ForEach([&](Item& item) { values.push_back(item.value); });
  return values;
}

class IntrusiveListTest : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 5; ++i) items_[static_cast<std::size_t>(i)].value = i;
  }
  void TearDown() override {
    while (!list_.empty()) list_.PopFront();
  }
  std::array<Item, 5> items_;
  IntrusiveList<Item> list_;
};

TEST_F(IntrusiveListTest, KeepsOrderAtBothEnds) {
  list_.PushBack(items_[1]);
  list_.PushBack(items_[2]);
  list_.PushFront(items_[0]);
  EXPECT_EQ(Values(list_), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(list_.CountSlowly(), 3u);
  EXPECT_EQ(list_.PopFront().value, 0);
  EXPECT_FALSE(items_[0].linked());
  EXPECT_EQ(list_.front().value, 1);
}

TEST_F(IntrusiveListTest, AnElementLeavesFromTheMiddle) {
  for (Item& item : items_) list_.PushBack(item);
  items_[2].Unlink();
  EXPECT_EQ(Values(list_), (std::vector<int>{0, 1, 3, 4}));
  list_.PushBack(items_[2]);
  EXPECT_EQ(Values(list_), (std::vector<int>{0, 1, 3, 4, 2}));
}

TEST_F(IntrusiveListTest, ForEachMayUnlinkWhatItIsGiven) {
  for (Item& item : items_) list_.PushBack(item);
  list_.ForEach([](Item& item) {
    if (item.value % 2 == 0) item.Unlink();
  });
  EXPECT_EQ(Values(list_), (std::vector<int>{1, 3}));
}

TEST_F(IntrusiveListTest, SpliceMovesAllBehindOurs) {
  IntrusiveList<Item> other;
  list_.PushBack(items_[0]);
  other.PushBack(items_[1]);
  other.PushBack(items_[2]);
  list_.Splice(other);
  EXPECT_TRUE(other.empty());
  EXPECT_EQ(Values(list_), (std::vector<int>{0, 1, 2}));
}

}  // namespace
}  // namespace ibnbd
