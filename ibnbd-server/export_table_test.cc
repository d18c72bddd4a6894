// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/export_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "tests/support/backend_fixture.h"

namespace ibnbd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class ExportTableTest : public testing::Test {
 protected:
  static ExportSpec Spec(const std::string& name, const std::string& source = "mem:1M") {
    return ExportSpec{.name = name, .source = source};
  }
  static void Add(ExportTable& table, const ExportSpec& spec) {
    auto backend = OpenExportBackend(spec, 0);
    ASSERT_TRUE(backend.ok()) << backend.status();
    table.Add(spec, *std::move(backend));
  }
  TempDir dir_;
};

TEST_F(ExportTableTest, FindsWhatWasAddedAndNamesWhatIsNotThere) {
  ExportTable table;
  Add(table, Spec("a"));
  const auto found = table.Find("host", "a");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)->name, "a");
  const auto missing = table.Find("host", "b");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("export b"));
}

TEST_F(ExportTableTest, ReadOnlyComesFromTheSpecOrTheVolume) {
  ExportTable table;
  ExportSpec spec = Spec("a");
  spec.read_only = true;
  Add(table, spec);
  Add(table, Spec("b"));
  EXPECT_TRUE((*table.Find("", "a"))->read_only);
  EXPECT_FALSE((*table.Find("", "b"))->read_only);
}

TEST_F(ExportTableTest, ListsInTheOrderOfNames) {
  ExportTable table;
  for (const char* name : {"c", "a", "b"}) Add(table, Spec(name));
  std::string names;
  for (const auto& exported : table.List("")) names += exported->name;
  EXPECT_EQ(names, "abc");
}

TEST_F(ExportTableTest, ARemovedExportLivesWhileSomebodyHoldsIt) {
  ExportTable table;
  Add(table, Spec("a"));
  const std::shared_ptr<rnbd::Export> held = *table.Find("", "a");
  EXPECT_EQ(table.Remove("a"), held);
  EXPECT_FALSE(table.Find("", "a").ok());
  EXPECT_EQ(held->backend->geometry().size_bytes, 1u << 20);
  EXPECT_EQ(table.Remove("a"), nullptr);
}

TEST_F(ExportTableTest, PlansAdditionsRemovalsAndChanges) {
  ExportTable table;
  for (const char* name : {"gone", "idle", "same", "used"}) Add(table, Spec(name));
  (*table.Find("", "used"))->writer_count = 1;
  const auto plan =
      table.PlanFor({Spec("same"), Spec("used", "mem:2M"), Spec("idle", "mem:2M"), Spec("new")});
  EXPECT_THAT(plan.add, ElementsAre(Spec("new")));
  EXPECT_THAT(plan.remove, ElementsAre("gone"));
  EXPECT_THAT(plan.replace, ElementsAre(Spec("idle", "mem:2M")));
  EXPECT_THAT(plan.busy, ElementsAre("used"));
  (*table.Find("", "used"))->writer_count = 0;
}

TEST_F(ExportTableTest, AFileThatWasReplacedIsExchangedUnlessItIsInUse) {
  ExportTable table;
  const std::string path = dir_.MakeFile("v.img", 1 << 20);
  const ExportSpec spec = Spec("v", path);
  Add(table, spec);
  EXPECT_THAT(table.PlanFor({spec}).replace, IsEmpty());
  ASSERT_EQ(rename(path.c_str(), (path + ".old").c_str()), 0);
  (void)dir_.MakeFile("v.img", 1 << 20);
  EXPECT_EQ(table.PlanFor({spec}).replace.size(), 1u);
  (*table.Find("", "v"))->reader_count = 1;
  EXPECT_THAT(table.PlanFor({spec}).replace, IsEmpty());
  EXPECT_THAT(table.PlanFor({spec}).busy, ElementsAre("v"));
}

TEST_F(ExportTableTest, TheSamePlanAgainIsEmpty) {
  ExportTable table;
  Add(table, Spec("a"));
  const auto plan = table.PlanFor({Spec("a")});
  EXPECT_THAT(plan.add, IsEmpty());
  EXPECT_THAT(plan.remove, IsEmpty());
  EXPECT_THAT(plan.replace, IsEmpty());
  EXPECT_THAT(plan.busy, IsEmpty());
}

TEST_F(ExportTableTest, TheSearchPathGivesOneExportPerVolumeAndForgetsUnusedOnes) {
  dir_.MakeFile("disk", 4096);
  ASSERT_EQ(symlink("disk", (dir_ / "alias").c_str()), 0);
  ExportTable table(*SearchPath::Parse(dir_.path()));
  auto first = table.Find("alice", "disk");
  ASSERT_TRUE(first.ok()) << first.status();
  // By another name and session it is the same export: the access rules count all of them.
  EXPECT_EQ(*table.Find("bob", "alias"), *first);
  EXPECT_EQ(table.List("alice").size(), 1u);
  EXPECT_EQ(table.List("bob").size(), 0u);
  const std::weak_ptr<rnbd::Export> weak = *first;
  first = absl::CancelledError();
  EXPECT_TRUE(weak.expired());
  EXPECT_TRUE(table.Find("bob", "alias").ok());  // Opened anew; the lock was let go.
}

// After something else hung there is little patience, but the lock is waited for all the same.
TEST_F(ExportTableTest, ALockThatIsHeldIsNotTakenForAFileSystemThatHangs) {
  const auto release = std::make_shared<absl::Notification>();
  BoundedCall hung;
  ASSERT_FALSE(hung.Run([release] { release->WaitForNotification(); }));
  const auto holder = OpenExportBackend(Spec("disk", dir_.MakeFile("disk", 4096)), 0);
  ASSERT_TRUE(holder.ok()) << holder.status();
  ExportTable table(*SearchPath::Parse(dir_.path()));
  std::string why;
  // Several times: this machine may be busy.
  for (int i = 0; i < 20 && !absl::StrContains(why, "is exported for writing already"); ++i) {
    why = std::string(table.Find("alice", "disk").status().message());
  }
  EXPECT_THAT(why, HasSubstr("is exported for writing already"));
  release->Notify();
  ASSERT_TRUE(hung.Wait(600 * kNsPerSecond));
}

TEST_F(ExportTableTest, WhoWroteAVolumeIsNotForgottenWhenItIsLetGo) {
  dir_.MakeFile("disk", 4096);
  dir_.MakeFile("other", 4096);
  ExportTable table(*SearchPath::Parse(dir_.path()));
  const auto writers = [&](const char* name) { return (*table.Find("bob", name))->writers; };
  const rnbd::WriterRecord* disk = writers("disk").get();
  EXPECT_EQ(writers("disk").get(), disk);  // Another export by now, but the same volume.
  EXPECT_NE(writers("other").get(), disk);
  Add(table, Spec("a"));
  const rnbd::WriterRecord* a = writers("a").get();
  (void)table.Remove("a");
  Add(table, Spec("a"));
  EXPECT_EQ(writers("a").get(), a);
  (void)table.Remove("a");
  Add(table, Spec("a", "mem:2M"));
  EXPECT_NE(writers("a").get(), a);
}

TEST_F(ExportTableTest, NamedExportsComeBeforeTheSearchPath) {
  dir_.MakeFile("disk", 4096);
  ExportTable table(*SearchPath::Parse(dir_.path()));
  Add(table, Spec("disk"));
  EXPECT_EQ((*table.Find("", "disk"))->backend->geometry().size_bytes, 1u << 20);
}

}  // namespace
}  // namespace ibnbd
