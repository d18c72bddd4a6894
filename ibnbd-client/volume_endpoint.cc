// SPDX-License-Identifier: Apache-2.0
// A volume as a side of a copy: many IOs at once, from registered memory.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/endpoint.h"

namespace ibnbd::client {
namespace {

class VolumeEndpoint final : public Endpoint {
 public:
  VolumeEndpoint(std::string uri, Session session, Device device, const ibnbd_device_info& info)
      : uri_(std::move(uri)),
        session_(std::move(session)),
        device_(std::move(device)),
        info_(info),
        queue_(ibnbd_session_queue(session_.get(), 0)),
        block_(info.logical_block_size) {}

  ~VolumeEndpoint() override {
    device_.reset();
    ibnbd_buffer_free(buffer_);
  }

  const std::string& name() const override { return uri_; }
  std::optional<std::uint64_t> size() const override { return info_.size; }
  ibnbd_queue* queue() const override { return queue_; }

  absl::Status UseMemory(std::span<std::byte> memory) override {
    const int error = ibnbd_buffer_register(session_.get(), memory.data(), memory.size(), &buffer_);
    return error == 0 ? absl::OkStatus() : ApiStatus(error);
  }

  void Start(Operation& operation) override {
    if (operation.length % info_.logical_block_size != 0) {
      const int error = WriteTail(operation);
      if (error != 0 || operation.length == 0) return operation.done(error);
    }
    ibnbd_io& io = operation.io;
    io = {};
    io.offset = operation.offset;
    io.length = operation.length;
    io.opaque = &operation;
    io.done = [](ibnbd_io* done, int result) {
      static_cast<Operation*>(done->opaque)->done(result);
    };
    if (operation.kind == OperationKind::kZero) {
      io.op = IBNBD_OP_WRITE_ZEROES;
    } else {
      io.op = operation.kind == OperationKind::kRead ? IBNBD_OP_READ : IBNBD_OP_WRITE;
      io.data = operation.data;
      io.buffer = buffer_;
    }
    int error = Submit(io);
    // No write-zeroes: zeroes are written like other data, synchronously as they are rare there.
    if (error == -EOPNOTSUPP && operation.kind == OperationKind::kZero) {
      return operation.done(WriteZeroData(operation));
    }
    if (error != 0) operation.done(error);
  }

  absl::Status Finish(std::uint64_t) override {
    if ((info_.flags & IBNBD_DEVICE_READ_ONLY) != 0) return absl::OkStatus();
    const int error = ibnbd_flush(queue_, device_.get());
    return error == 0 ? absl::OkStatus() : Annotate(ApiStatus(error), absl::StrCat("flush ", uri_));
  }

  absl::Status ReadNow(std::uint64_t offset, std::span<std::byte> into) override {
    const std::size_t tail = into.size() % info_.logical_block_size;
    int error = 0;
    if (tail != 0) {
      const std::span<std::byte> last = into.last(tail);
      error = ibnbd_pread(queue_, device_.get(), block_.data(), block_.size(),
                          offset + into.size() - tail);
      std::copy_n(block_.begin(), tail, last.begin());
      into = into.first(into.size() - tail);
    }
    if (error == 0 && !into.empty()) {
      error = ibnbd_pread(queue_, device_.get(), into.data(), into.size(), offset);
    }
    return error == 0 ? absl::OkStatus() : Annotate(ApiStatus(error), uri_);
  }

 private:
  int Submit(ibnbd_io& io) {
    for (;;) {
      const int error = ibnbd_submit(queue_, device_.get(), &io);
      if (error != -EAGAIN) return error;
      ibnbd_queue_wait(queue_, -1);
    }
  }

  // The part of the last block that is copied, over what the volume has there; the operation is
  // cut to the whole blocks before it.
  int WriteTail(Operation& operation) {
    const std::uint64_t tail = operation.length % info_.logical_block_size;
    const std::uint64_t whole = operation.length - tail;
    const std::uint64_t offset = operation.offset + whole;
    int error = ibnbd_pread(queue_, device_.get(), block_.data(), block_.size(), offset);
    if (error != 0) return error;
    if (operation.kind == OperationKind::kZero) {
      std::fill_n(block_.begin(), tail, std::byte{0});
    } else {
      std::copy_n(operation.data + whole, tail, block_.begin());
    }
    error = ibnbd_pwrite(queue_, device_.get(), block_.data(), block_.size(), offset, 0);
    operation.length = whole;
    return error;
  }

  int WriteZeroData(const Operation& operation) {
    if (zeroes_.empty()) zeroes_.resize(std::size_t{4} << 20);
    for (std::uint64_t done = 0; done < operation.length;) {
      const std::uint64_t size = std::min<std::uint64_t>(operation.length - done, zeroes_.size());
      const int error =
          ibnbd_pwrite(queue_, device_.get(), zeroes_.data(), size, operation.offset + done, 0);
      if (error != 0) return error;
      done += size;
    }
    return 0;
  }

  const std::string uri_;
  Session session_;
  Device device_;
  const ibnbd_device_info info_;
  ibnbd_queue* const queue_;
  ibnbd_buffer* buffer_ = nullptr;
  std::vector<std::byte> block_;   // One, for the tail.
  std::vector<std::byte> zeroes_;  // For servers without write-zeroes.
};

}  // namespace

absl::StatusOr<std::unique_ptr<Endpoint>> OpenVolumeEndpoint(const std::string& uri, bool to_write,
                                                             const ConnectOptions& options) {
  ASSIGN_OR_RETURN(const std::string name, ExportOfUri(uri));
  ASSIGN_OR_RETURN(Session session,
                   OpenSession(uri, options.session_name, options.timeout_ms, options.depth));
  ASSIGN_OR_RETURN(Device device, OpenDevice(session.get(), name, to_write, options.timeout_ms,
                                             options.fail_after_ms));
  ASSIGN_OR_RETURN(const ibnbd_device_info info, DescribeDevice(device.get()));
  if (to_write && (info.flags & IBNBD_DEVICE_READ_ONLY) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(uri, ": the export is read-only"));
  }
  return std::make_unique<VolumeEndpoint>(uri, std::move(session), std::move(device), info);
}

}  // namespace ibnbd::client
