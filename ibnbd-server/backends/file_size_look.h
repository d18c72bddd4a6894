// SPDX-License-Identifier: Apache-2.0
// Asks a file system that may take its time for a volume's size, through a reactor's ring, one
// question at a time.  A question may outlive the queue that asks: it keeps the volume, whose
// descriptor it is about, and its own memory.  On the reactor's thread.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "ibnbd-server/backends/volume.h"
#include "reactor/io_ring.h"

namespace ibnbd {

class FileSizeLook final : public IoRingOp {
 public:
  struct Releaser {
    void operator()(FileSizeLook* look) const { look->Release(); }
  };
  using Ptr = std::unique_ptr<FileSizeLook, Releaser>;
  static Ptr Create(std::shared_ptr<Volume> volume, IoRing& ring) {
    return Ptr(new FileSizeLook(std::move(volume), ring));
  }
  ~FileSizeLook() override { ring_.ChangeWorkersMax(-1); }
  // Nothing, while the question before has no answer.
  void Start();
  void OnCqe(int result, std::uint32_t flags) override;

 private:
  FileSizeLook(std::shared_ptr<Volume> volume, IoRing& ring)
      : volume_(std::move(volume)), ring_(ring) {
    ring_.ChangeWorkersMax(1);
  }
  void Release();

  std::shared_ptr<Volume> volume_;  // Until the end.
  IoRing& ring_;
  struct statx found_ {};
  std::uint64_t believed_ = 0;
  bool under_way_ = false;
  bool released_ = false;  // Its own, until the answer is there.
};

}  // namespace ibnbd
