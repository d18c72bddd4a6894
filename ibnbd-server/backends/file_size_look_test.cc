// SPDX-License-Identifier: Apache-2.0
// A look at a size that outlives who asked for it, through a real reactor and ring.
#include "ibnbd-server/backends/file_size_look.h"

#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "tests/support/backend_fixture.h"

namespace ibnbd {
namespace {

class FileSizeLookTest : public BackendFixture {
 protected:
  [[nodiscard]] std::unique_ptr<Volume> Open() const {
    const std::string path = dir_.MakeFile("a.img", 1 << 20);
    auto volume = Volume::Open(path, [&path](int flags) { return open(path.c_str(), flags); }, {});
    EXPECT_TRUE(volume.ok()) << volume.status();
    return *std::move(volume);
  }
  const TempDir dir_;
};

// Its file system may hang at the close, and other volumes' IO is on this thread.
TEST_F(FileSizeLookTest, AVolumeThatOnlyALateLookHoldsIsNotClosedOnTheReactorsThread) {
  struct Closing {
    const std::thread::id reactors = std::this_thread::get_id();
    std::thread::id its;
    absl::Notification begun, answers, done;
  };
  const auto closing = std::make_shared<Closing>();
  std::shared_ptr<Volume> volume(Open().release(), [closing](Volume* last) {
    closing->its = std::this_thread::get_id();
    closing->begun.Notify();
    if (closing->its != closing->reactors) closing->answers.WaitForNotification();
    delete last;
    closing->done.Notify();
  });
  FileSizeLook::Ptr look = FileSizeLook::Create(volume, *reactor_->ring());
  look->Start();
  look.reset();
  const std::weak_ptr<Volume> held = std::exchange(volume, nullptr);
  ASSERT_FALSE(held.expired());
  while (!closing->begun.HasBeenNotified()) reactor_->RunTurn();
  EXPECT_NE(closing->its, closing->reactors);
  closing->answers.Notify();
  closing->done.WaitForNotification();
}

}  // namespace
}  // namespace ibnbd
