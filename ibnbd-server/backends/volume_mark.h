// SPDX-License-Identifier: Apache-2.0
// What a server leaves with a file, in the extended attribute user.ibnbd.volume, so that the next
// one can tell whether somebody else has written to it in between: the generation of the content,
// and, if the file was closed in order, its time of modification.  Another time at the next opening
// means another content: the generation advances, and with it the volume's id, so that clients that
// count on what they wrote are not let loose on it.
//
// After a `kill -9` or a power cut there is no such time, and nothing can be told.  Nor on file
// systems that are not known to keep the attribute and the time together (they are changed in the
// order in which they were: both in the inode, both in the journal).
//
// Made, asked and closed by a volume that holds the lock on the file.  Control thread.
#pragma once

#include <cstdint>
#include <string>

namespace ibnbd {

class VolumeMark {
 public:
  // Reads what is there.  `writable`: compares it with the file, and notes that this is open now.
  // Tells the log what it finds; never fails.
  static VolumeMark Open(int fd, bool writable, const std::string& path);

  // 0 until somebody else has written for the first time.
  [[nodiscard]] std::uint16_t generation() const { return generation_; }
  // All IO has ended.  Before the lock is let go.
  void Close(int fd) const;

 private:
  void NoteOpen(int fd, bool had_mark, const std::string& path) const;

  std::uint16_t generation_ = 0;
  bool writable_ = false;  // The mark is ours to change.
};

}  // namespace ibnbd
