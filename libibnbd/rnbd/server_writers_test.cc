// SPDX-License-Identifier: Apache-2.0
// Who is let in to write after whom.
#include "rnbd/server_writers.h"

#include <cerrno>
#include <cstring>

#include "gtest/gtest.h"

namespace ibnbd::rnbd {
namespace {

using Opening = WriterRecord::Opening;

// What the client is told.
std::uint16_t Enter(WriterRecord& record, const Opening& opening) {
  EXPECT_EQ(record.Check(opening), 0);
  record.Enter(opening);
  EXPECT_NE(record.epoch(), 0);
  return record.epoch();
}

TEST(WriterRecord, AWriterGoesOnUntilAnotherOneHasCome) {
  WriterRecord record;
  const std::uint16_t first = Enter(record, {.writer = 1});
  EXPECT_EQ(Enter(record, {.writer = 1, .epoch = first}), first);
  EXPECT_EQ(Enter(record, {.writer = 1}), first);  // Anew: still the same one.
  const std::uint16_t second = Enter(record, {.writer = 2});
  EXPECT_NE(second, first);
  EXPECT_EQ(record.Check({.writer = 1, .epoch = first}), -EUCLEAN);
  EXPECT_EQ(record.Check({.writer = 1, .epoch = second}), -EUCLEAN);  // It cannot know that one.
  EXPECT_EQ(Enter(record, {.writer = 2, .epoch = second}), second);   // Being refused is nothing.
  // Anew, the first one shuts the second one out.
  const std::uint16_t third = Enter(record, {.writer = 1});
  EXPECT_NE(third, second);
  EXPECT_EQ(record.Check({.writer = 2, .epoch = second}), -EUCLEAN);
  EXPECT_EQ(record.Check({.writer = 1, .epoch = first}), -EUCLEAN);  // What it held is still old.
}

TEST(WriterRecord, WhereThePastIsNotKnownTheFirstOneIsRightAndMeasuresTheOthers) {
  WriterRecord goes_on;
  EXPECT_EQ(Enter(goes_on, {.writer = 1, .epoch = 77}), 77);
  EXPECT_EQ(goes_on.Check({.writer = 2, .epoch = 76}), -EUCLEAN);
  WriterRecord begun;
  const std::uint16_t epoch = Enter(begun, {.writer = 2});
  EXPECT_EQ(begun.Check({.writer = 1, .epoch = 77}), -EUCLEAN);
  EXPECT_EQ(begun.Check({.writer = 1, .epoch = epoch}), -EUCLEAN);
}

TEST(WriterRecord, WritersSideBySideAreInOneEpochAndMigrationIsNeverRefused) {
  WriterRecord record;
  const std::uint16_t first = Enter(record, {.writer = 1});
  const Opening guest{.writer = 2, .migration = true, .beside_others = true};
  EXPECT_EQ(Enter(record, guest), first);
  EXPECT_EQ(Enter(record, {.writer = 1, .epoch = first}), first);
  EXPECT_EQ(Enter(record, {.writer = 2, .epoch = first}), first);
  // Alone it is a change of the writer, also for migration, whoever it was before.
  const std::uint16_t anew = Enter(record, {.writer = 2, .migration = true});
  EXPECT_NE(anew, first);
  const std::uint16_t second = Enter(record, {.writer = 3, .migration = true});
  EXPECT_NE(second, anew);
  EXPECT_EQ(record.Check({.writer = 1, .epoch = first}), -EUCLEAN);
  EXPECT_NE(Enter(record, {.writer = 2, .epoch = first, .migration = true}), second);
}

TEST(WriterRecord, TheNumberIsNeverTheOneThatSaysNothing) {
  WriterRecord record;
  EXPECT_EQ(Enter(record, {.writer = 1, .begins_at = UINT16_MAX}), UINT16_MAX);
  EXPECT_EQ(Enter(record, {.writer = 2, .begins_at = 7}), 1);
  rtrs::ServerSessionInfo session;
  for (std::uint32_t i = 0; i < 300'000; ++i) {
    std::memcpy(session.paths_uuid.data(), &i, sizeof i);
    ASSERT_NE(EpochDrawnFor(session), 0);
  }
}

TEST(WriterRecord, WhereThePastIsNotKnownAMigrationIsBelievedToHaveTheNumberTogether) {
  const Opening guest{.writer = 2, .epoch = 77, .migration = true};
  const Opening source{.writer = 1, .epoch = 77};
  WriterRecord guest_first;
  EXPECT_EQ(Enter(guest_first, guest), 77);
  EXPECT_FALSE(guest_first.WasHere({.writer = 1}));
  EXPECT_TRUE(guest_first.WasHere(source));
  EXPECT_EQ(guest_first.Check({.writer = 1, .epoch = 76}), -EUCLEAN);
  EXPECT_EQ(Enter(guest_first, source), 77);
  EXPECT_EQ(Enter(guest_first, guest), 77);  // Either alone.
  WriterRecord source_first;
  EXPECT_EQ(Enter(source_first, source), 77);
  EXPECT_EQ(source_first.Check({.writer = 3, .epoch = 77}), -EUCLEAN);
  EXPECT_EQ(Enter(source_first, guest), 77);
  EXPECT_EQ(Enter(source_first, source), 77);
  EXPECT_EQ(source_first.Check({.writer = 3, .epoch = 77}), -EUCLEAN);
  // Not any more when somebody else has come; and it is not the next number, which another server
  // may have given to somebody.
  EXPECT_EQ(Enter(source_first, {.writer = 4, .begins_at = 5000}), 5000);
  EXPECT_EQ(source_first.Check(source), -EUCLEAN);
  EXPECT_EQ(Enter(guest_first, {.writer = 4, .migration = true, .begins_at = 77}), 78);
  EXPECT_EQ(guest_first.Check({.writer = 3, .epoch = 78}), -EUCLEAN);
}

TEST(WriterRecord, ManyGuestsOneAfterTheOtherStayBounded) {
  WriterRecord record;
  const std::uint16_t epoch = Enter(record, {.writer = 1});
  for (std::uint64_t guest = 2; guest < 100; ++guest) {
    const Opening opening{.writer = guest, .migration = true, .beside_others = true};
    EXPECT_EQ(Enter(record, opening), epoch);
  }
  EXPECT_EQ(record.Check({.writer = 99, .epoch = epoch}), 0);
  EXPECT_EQ(record.Check({.writer = 1, .epoch = epoch}), -EUCLEAN);
}

TEST(WriterOf, AProcessWithAClientIdIsTheSameAfterARestartAndOneWithoutIsNot) {
  rtrs::ServerSessionInfo before{.name = "a", .client_id = 5, .paths_uuid = {1}};
  rtrs::ServerSessionInfo after{.name = "a", .client_id = 5, .paths_uuid = {2}};
  EXPECT_EQ(WriterOf(before), WriterOf(after));
  EXPECT_EQ(WriterOf(before), WriterOf({.name = "b", .client_id = 5, .paths_uuid = {1}}));
  EXPECT_NE(WriterOf(before), WriterOf({.name = "a", .client_id = 6, .paths_uuid = {1}}));
  before.client_id = after.client_id = 0;
  EXPECT_NE(WriterOf(before), WriterOf(after));
  EXPECT_EQ(WriterOf(before), WriterOf(before));
}

TEST(EpochDrawnFor, IsEachSessionsOwnAlsoIfItIsTheSameWriters) {
  const rtrs::ServerSessionInfo before{.name = "a", .client_id = 5, .paths_uuid = {1}};
  const rtrs::ServerSessionInfo after{.name = "a", .client_id = 5, .paths_uuid = {2}};
  EXPECT_NE(EpochDrawnFor(before), EpochDrawnFor(after));
}

}  // namespace
}  // namespace ibnbd::rnbd
