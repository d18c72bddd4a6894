// SPDX-License-Identifier: Apache-2.0
// The oracle itself: it must allow what a correct volume does and refuse what a broken one would.
#include "tests/sim/oracle.h"

#include <gtest/gtest.h>

namespace ibnbd::sim {
namespace {

TEST(SectorHistory, AllowsTheFirstContentUntilSomethingIsWritten) {
  SectorHistory history;
  EXPECT_EQ(history.CheckRead(0, true, 1, 2).reason, nullptr);
  history.OnWriteStarted(7, false, 3);
  EXPECT_EQ(history.CheckRead(0, true, 4, 5).reason, nullptr);  // The write is in flight: either.
  EXPECT_EQ(history.CheckRead(7, false, 4, 5).reason, nullptr);
  EXPECT_NE(history.CheckRead(0, true, 6, 7).reason, nullptr);  // It was read: it has happened.
}

TEST(SectorHistory, AllowsAnUnacknowledgedWriteToTakeEffectAgain) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  EXPECT_EQ(history.CheckRead(1, false, 2, 3).reason, nullptr);
  history.OnWriteStarted(2, false, 4);
  history.OnWriteEnded(2, true, false, 5);
  EXPECT_EQ(history.CheckRead(1, false, 6, 7).reason, nullptr);  // Re-issued after its path broke.
  history.OnWriteEnded(1, true, false, 8);
  history.OnWriteStarted(3, false, 9);
  history.OnWriteEnded(3, true, false, 10);
  EXPECT_NE(history.CheckRead(1, false, 11, 12).reason, nullptr);  // Not after its end.
}

TEST(SectorHistory, RefusesAnOldWriteOnTopOfANewerOne) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnWriteStarted(2, false, 3);
  history.OnWriteEnded(2, true, false, 4);
  EXPECT_NE(history.CheckRead(1, false, 5, 6).reason, nullptr);
  EXPECT_EQ(history.CheckRead(2, false, 5, 6).reason, nullptr);
}

TEST(SectorHistory, AllowsEitherOrderOfConcurrentWritesButNotBothInTurn) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteStarted(2, false, 2);
  history.OnWriteEnded(1, true, false, 4);
  history.OnWriteEnded(2, true, false, 5);
  EXPECT_EQ(history.CheckRead(1, false, 6, 7).reason, nullptr);
  EXPECT_NE(history.CheckRead(2, false, 8, 9).reason, nullptr);
}

TEST(SectorHistory, RefusesAValueNobodyWrote) {
  SectorHistory history;
  EXPECT_NE(history.CheckRead(9, false, 1, 2).reason, nullptr);
}

TEST(SectorHistory, ACrashMayUndoWhatWasNotFlushed) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnCrash(3);
  EXPECT_EQ(history.CheckRead(0, true, 4, 5).reason, nullptr);
}

TEST(SectorHistory, ACrashMayNotUndoWhatWasFlushedOrForced) {
  SectorHistory flushed;
  flushed.OnWriteStarted(1, false, 1);
  flushed.OnWriteEnded(1, true, false, 2);
  flushed.OnFlushed(3, 4);
  flushed.OnCrash(5);
  EXPECT_NE(flushed.CheckRead(0, true, 6, 7).reason, nullptr);
  SectorHistory forced;
  forced.OnWriteStarted(1, false, 1);
  forced.OnWriteEnded(1, true, true, 2);
  forced.OnCrash(5);
  EXPECT_NE(forced.CheckRead(0, true, 6, 7).reason, nullptr);
}

TEST(SectorHistory, ACrashDuringALongReadMayUndoWhatWasThereWhenItBegan) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnCrash(5);
  EXPECT_EQ(history.CheckRead(0, true, 4, 6).reason, nullptr);
  history.OnWriteStarted(2, false, 7);
  history.OnWriteEnded(2, true, false, 8);
  EXPECT_NE(history.CheckRead(0, true, 9, 10).reason, nullptr);
}

TEST(SectorHistory, AFlushThatBeganBeforeTheAcknowledgementPromisesNothing) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 4);
  history.OnFlushed(3, 5);
  history.OnCrash(6);
  EXPECT_EQ(history.CheckRead(0, true, 7, 8).reason, nullptr);
}

TEST(SectorHistory, AFlushMayNotAcknowledgeWhatACrashHasUndoneBefore) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnCrash(3);
  EXPECT_EQ(history.CheckRead(0, true, 4, 5).reason, nullptr);  // Lost, as it may be...
  history.OnFlushed(6, 7);                                      // ...but not any more.
  EXPECT_NE(history.CheckRead(0, true, 8, 9).reason, nullptr);
}

TEST(SectorHistory, AFlushThatSpansTheCrashPromisesAsAnyOther) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnCrash(4);
  history.OnFlushed(3, 5);
  EXPECT_NE(history.CheckRead(0, true, 6, 7).reason, nullptr);
}

TEST(SectorHistory, AReportedLossIsNotPromisedByLaterFlushes) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnCrash(3);
  history.OnLossReported(4);
  history.OnWriteStarted(2, false, 5);
  history.OnFlushed(6, 7);
  EXPECT_EQ(history.CheckRead(0, true, 8, 9).reason, nullptr);
  // What was written since is.
  history.OnWriteEnded(2, true, false, 10);
  history.OnFlushed(11, 12);
  EXPECT_NE(history.CheckRead(0, true, 13, 14).reason, nullptr);
}

TEST(SectorHistory, AReportForgivesOnlyWhatACrashMayHaveUndone) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnLossReported(3);  // Nothing has crashed: it means nothing.
  history.OnFlushed(4, 5);
  history.OnCrash(6);
  EXPECT_NE(history.CheckRead(0, true, 7, 8).reason, nullptr);
}

TEST(SectorHistory, AWriteThatWasDoneAgainAfterACrashIsPromisedByTheNextFlush) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  EXPECT_EQ(history.CheckRead(1, false, 2, 3).reason, nullptr);  // Seen, not acknowledged...
  history.OnCrash(4);
  history.OnFlushed(5, 6);
  EXPECT_EQ(history.CheckRead(0, true, 7, 12).reason, nullptr);  // ...so no flush promises it.
  history.OnWriteEnded(1, true, false, 8);
  EXPECT_EQ(history.CheckRead(0, true, 7, 12).reason,
            nullptr);  // This began before it was done again.
  history.OnFlushed(9, 10);
  EXPECT_NE(history.CheckRead(0, true, 11, 12).reason, nullptr);
}

TEST(SectorHistory, AWriteInDoubtMayHaveHappenedButNotLaterThanItsEnd) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, false, false, 2);  // Failed: in doubt.
  EXPECT_EQ(history.CheckRead(0, true, 3, 4).reason, nullptr);
  history.OnWriteStarted(2, false, 5);
  history.OnWriteEnded(2, true, false, 6);
  EXPECT_NE(history.CheckRead(1, false, 7, 8).reason,
            nullptr);  // It landed after a newer write: forbidden.
}

TEST(SectorHistory, AnAnswerThatOutlivesACrashSaysNothingOfWhatTheCrashLeft) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteStarted(2, false, 2);
  history.OnWriteEnded(1, true, false, 3);
  history.OnWriteEnded(2, true, false, 4);
  history.OnCrash(7);                                            // Undoes 2 alone.
  EXPECT_EQ(history.CheckRead(2, false, 5, 8).reason, nullptr);  // Was answered before.
  EXPECT_EQ(history.CheckRead(1, false, 9, 10).reason, nullptr);
  EXPECT_EQ(history.CheckRead(1, false, 11, 12).reason, nullptr);
  EXPECT_NE(history.CheckRead(2, false, 13, 14).reason, nullptr);  // Which is gone now.
}

TEST(VolumeOracle, SeesTornSectorsAndForeignData) {
  VolumeOracle oracle(1, 8);
  std::byte bytes[1024];
  oracle.OnWriteStarted(5, false, 2, 2, 1);
  oracle.OnWriteEnded(5, true, false, 2, 2, 2);
  VolumeOracle::Fill(bytes, 1, 5, 2, 2);
  oracle.OnRead(bytes, 2, 2, 3, 4);
  EXPECT_TRUE(oracle.findings().empty());
  bytes[100] = std::byte{1};
  oracle.OnRead(bytes, 2, 1, 5, 6);
  ASSERT_EQ(oracle.findings().size(), 1u);
  VolumeOracle::Fill(bytes, 2, 5, 2, 1);
  oracle.OnRead(bytes, 2, 1, 7, 8);
  VolumeOracle::Fill(bytes, 1, 5, 3, 1);
  oracle.OnRead(bytes, 2, 1, 9, 10);
  EXPECT_EQ(oracle.findings().size(), 3u);
}

TEST(SectorHistory, NamesABrokenPromiseApartFromAnyOtherOldValue) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1);
  history.OnWriteEnded(1, true, false, 2);
  EXPECT_FALSE(history.CheckRead(0, true, 3, 4).broken_promise);  // Nothing was lost: merely old.
  history.OnFlushed(5, 6);
  history.OnCrash(7);
  const SectorHistory::Verdict verdict = history.CheckRead(0, true, 8, 9);
  EXPECT_NE(verdict.reason, nullptr);
  EXPECT_TRUE(verdict.broken_promise);
}

TEST(SectorHistory, AFlushPromisesWhatItsOwnClientWroteBeforeACrash) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1, /*client=*/1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnCrash(3);
  history.OnFlushed(4, 5, /*client=*/2);  // Nobody told client 2 of a loss: nothing of it was lost.
  EXPECT_EQ(history.CheckRead(0, true, 6, 7).reason, nullptr);
  SectorHistory other;
  other.OnWriteStarted(1, false, 1, 1);
  other.OnWriteEnded(1, true, false, 2);
  other.OnCrash(3);
  other.OnFlushed(4, 5, /*client=*/1);  // Its own flush must have failed.
  EXPECT_TRUE(other.CheckRead(0, true, 6, 7).broken_promise);
}

TEST(SectorHistory, AnyFlushMakesStableWhatOthersWroteAndNoCrashUndid) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnFlushed(3, 4, 2);
  history.OnCrash(5);
  EXPECT_NE(history.CheckRead(0, true, 6, 7).reason, nullptr);
}

TEST(SectorHistory, WhatAClientHoldsThatWasShutOutDoesNotGoOverWhatTheNextOneWrote) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1, /*client=*/1);
  history.OnTakenOver(3, 4, /*client=*/2);
  EXPECT_EQ(history.CheckRead(1, false, 5, 6).reason, nullptr);  // It may have landed before.
  history.OnWriteStarted(2, false, 7, 2);
  history.OnWriteEnded(2, true, false, 8);
  history.OnWriteEnded(1, true, false, 9);  // An answer that was late changes nothing.
  EXPECT_NE(history.CheckRead(1, false, 10, 11).reason, nullptr);
  EXPECT_EQ(history.CheckRead(2, false, 10, 11).reason, nullptr);
}

TEST(SectorHistory, ATakeOverEndsNothingOfItsOwnClientOrOfAnOpeningAfterIt) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1, /*client=*/2);
  history.OnWriteStarted(2, false, 5, /*client=*/1);  // The other one is back already...
  history.OnTakenOver(3, 6, 2);                       // ...when the answer to this one comes.
  history.OnWriteStarted(3, false, 7, 1);
  history.OnWriteEnded(3, true, false, 8);
  EXPECT_EQ(history.CheckRead(2, false, 9, 10).reason, nullptr);
  EXPECT_EQ(history.CheckRead(1, false, 11, 12).reason, nullptr);
}

TEST(SectorHistory, AClientThatDiedIsPromisedNothingThatItHadNotFlushed) {
  SectorHistory history;
  history.OnWriteStarted(1, false, 1, 1);
  history.OnWriteEnded(1, true, false, 2);
  history.OnClientGone(3, 1);
  history.OnCrash(4);
  history.OnFlushed(5, 6, 1);  // Of its next life, which knows nothing of that write.
  EXPECT_EQ(history.CheckRead(0, true, 7, 8).reason, nullptr);
}

}  // namespace
}  // namespace ibnbd::sim
