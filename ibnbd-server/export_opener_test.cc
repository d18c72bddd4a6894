// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/export_opener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <thread>

#include "absl/synchronization/notification.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

using testing::HasSubstr;

constexpr std::int64_t kForEver = 600 * kNsPerSecond;

// What those who open share with those who look on.
struct Place {
  absl::Notification answers;  // To who opens "slow".
  std::atomic<int> begun{0};
  std::atomic<int> open{0};
};

class CountedBackend final : public rnbd::Backend {
 public:
  explicit CountedBackend(std::shared_ptr<Place> place) : place_(std::move(place)) {
    ++place_->open;
  }
  ~CountedBackend() override { --place_->open; }
  [[nodiscard]] const rnbd::Geometry& geometry() const override { return geometry_; }
  [[nodiscard]] std::string Describe() const override { return "counted"; }
  absl::StatusOr<std::unique_ptr<rnbd::BackendQueue>> CreateQueue(Reactor&,
                                                                  std::uint32_t) override {
    return absl::UnimplementedError("not here");
  }

 private:
  const std::shared_ptr<Place> place_;
  const rnbd::Geometry geometry_;
};

class ExportOpenerTest : public testing::Test {
 protected:
  ~ExportOpenerTest() override {
    if (!place_->answers.HasBeenNotified()) place_->answers.Notify();
  }
  static ExportSpec Spec(const std::string& name, const std::string& source = "/srv/a") {
    return ExportSpec{.name = name, .source = source};
  }
  // Until nothing is open any more: closed where it was opened.
  void AwaitClosed() {
    while (place_->open != 0) std::this_thread::yield();
  }

  const std::shared_ptr<Place> place_ = std::make_shared<Place>();
  ExportOpener opener_{
      [place = place_](const ExportSpec& spec, std::int64_t) -> ExportOpener::BackendOr {
        ++place->begun;
        if (spec.name == "slow") place->answers.WaitForNotification();
        if (spec.name == "bad") return absl::NotFoundError("export bad: no such file");
        return std::make_unique<CountedBackend>(place);
      }};
};

TEST_F(ExportOpenerTest, WhatAnswersIsThere) {
  EXPECT_TRUE(opener_.Open(Spec("a"), 0, kForEver).ok());
  EXPECT_EQ(opener_.Open(Spec("bad"), 0, kForEver).status().message(), "export bad: no such file");
  EXPECT_FALSE(opener_.IsUnderWay(Spec("a")));
  EXPECT_FALSE(opener_.IsUnderWay(Spec("bad")));
}

TEST_F(ExportOpenerTest, WhatDoesNotAnswerIsThereForWhoAsksAgainAndHoldsUpNobodyElse) {
  for (int i = 0; i < 3; ++i) {
    const auto slow = opener_.Open(Spec("slow"), 0, kNsPerMs);
    EXPECT_EQ(ErrnoFromStatus(slow.status()), -EBUSY);
    EXPECT_THAT(std::string(slow.status().message()), HasSubstr("export slow: attach /srv/a: "));
    EXPECT_TRUE(opener_.IsUnderWay(Spec("slow")));
    EXPECT_TRUE(opener_.Open(Spec("a"), 0, kForEver).ok());
  }
  place_->answers.Notify();
  EXPECT_TRUE(opener_.Open(Spec("slow"), 0, kForEver).ok());
  EXPECT_FALSE(opener_.IsUnderWay(Spec("slow")));
  EXPECT_EQ(place_->begun, 1 + 3);  // Once, however often it was asked for.
}

TEST_F(ExportOpenerTest, AnotherSourceOfTheSameNameIsAnotherOpening) {
  EXPECT_FALSE(opener_.Open(Spec("slow", "/srv/a"), 0, kNsPerMs).ok());
  EXPECT_FALSE(opener_.IsUnderWay(Spec("slow", "/srv/b")));
  EXPECT_FALSE(opener_.Open(Spec("slow", "/srv/b"), 0, kNsPerMs).ok());
  opener_.ForgetAllBut({Spec("slow", "/srv/b")});
  EXPECT_FALSE(opener_.IsUnderWay(Spec("slow", "/srv/a")));
  EXPECT_TRUE(opener_.IsUnderWay(Spec("slow", "/srv/b")));
}

TEST_F(ExportOpenerTest, WhatIsForgottenIsClosedWhenItIsThere) {
  EXPECT_FALSE(opener_.Open(Spec("slow"), 0, kNsPerMs).ok());
  while (place_->begun == 0) std::this_thread::yield();
  opener_.Forget(Spec("slow"));
  EXPECT_FALSE(opener_.IsUnderWay(Spec("slow")));
  place_->answers.Notify();
  EXPECT_TRUE(opener_.Open(Spec("slow"), 0, kForEver).ok());  // Anew.
  AwaitClosed();
  EXPECT_EQ(place_->begun, 2);
}

}  // namespace
}  // namespace ibnbd
