/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later
 *
 * An engine for fio on the public C API of libibnbd:
 *   fio --ioengine=external:/path/ibnbd_fio.so --uri=tcp://host:1234/vol0 --thread ...
 * Every job (thread or process) has a session of its own with one queue.  fio's buffers are registered
 * memory, so that nothing is copied.  trim is discard, fsync is flush, sync=1 is FUA on every write.
 * Loaded into fio, which is GPL-2.0; hence the choice of licences of this file alone.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fio.h"
#include "optgroup.h"

#include <ibnbd/ibnbd.h>

struct engine_options {
  void *pad; /* fio takes an option at offset 0 for none. */
  char *uri;
  char *paths;
  unsigned int fail_after;
};

static struct fio_option options[] = {
  {
    .name = "uri",
    .lname = "volume",
    .help = "tcp://host[:port]/export or rdma://host[:port]/export",
    .category = FIO_OPT_C_ENGINE,
    .group = FIO_OPT_G_INVALID,
    .type = FIO_OPT_STR_STORE,
    .off1 = offsetof(struct engine_options, uri),
  },
  {
    .name = "paths",
    .lname = "paths",
    .help = "More ways to the server: [SRC@]DST[:PORT], separated by spaces",
    .category = FIO_OPT_C_ENGINE,
    .group = FIO_OPT_G_INVALID,
    .type = FIO_OPT_STR_STORE,
    .off1 = offsetof(struct engine_options, paths),
  },
  {
    .name = "fail_after",
    .lname = "fail after",
    .help = "Seconds without the server until IOs fail; 0: they are held for ever",
    .category = FIO_OPT_C_ENGINE,
    .group = FIO_OPT_G_INVALID,
    .type = FIO_OPT_INT,
    .off1 = offsetof(struct engine_options, fail_after),
    .def = "0",
  },
  { .name = NULL },
};

struct job {
  ibnbd_session *session;
  ibnbd_device *device;
  ibnbd_queue *queue;
  ibnbd_buffer *buffer;
  int flush_on_commit;
  /* Completed and not yet reported: a ring of `size` (a power of two, more than iodepth). */
  struct io_u **done;
  unsigned int size, head, tail;
};

static void report(const char *what) {
  log_err("fio: ibnbd: %s: %s\n", what, ibnbd_error_message());
}

static int open_volume(struct thread_data *td, int to_write, ibnbd_session **session,
                       ibnbd_device **device) {
  struct engine_options *options_given = td->eo;
  struct ibnbd_session_options session_options = IBNBD_SESSION_OPTIONS_INIT;
  struct ibnbd_device_options device_options = IBNBD_DEVICE_OPTIONS_INIT;
  char name[256];

  *session = NULL;
  *device = NULL;
  if (!options_given->uri) {
    log_err("fio: ibnbd: uri is missing: say --uri=tcp://host:port/export\n");
    return 1;
  }
  if (ibnbd_uri_export(options_given->uri, name, sizeof(name))) {
    report("uri");
    return 1;
  }
  session_options.flags = IBNBD_SESSION_ONE_THREAD;
  session_options.io_depth_max = td->o.iodepth + 1;
  session_options.paths = options_given->paths;
  if (ibnbd_session_open(options_given->uri, &session_options, session)) {
    report("connect");
    return 1;
  }
  device_options.access = to_write ? IBNBD_READ_WRITE : IBNBD_READ_ONLY;
  if (options_given->fail_after) device_options.fail_after_ms = options_given->fail_after * 1000ll;
  if (ibnbd_device_open(*session, name, &device_options, device)) {
    report("open");
    ibnbd_session_close(*session, 1000);
    *session = NULL;
    return 1;
  }
  return 0;
}

/* In the parent, before jobs fork: asks for the size and keeps nothing. */
static int engine_setup(struct thread_data *td) {
  ibnbd_session *session;
  ibnbd_device *device;
  struct ibnbd_device_info info;

  if (!td->files_index) {
    add_file(td, "ibnbd", 0, 0);
    td->o.nr_files = td->o.nr_files ? td->o.nr_files : 1;
    td->o.open_files++;
  }
  if (open_volume(td, 0, &session, &device)) return 1;
  memset(&info, 0, sizeof(info));
  info.struct_size = sizeof(info);
  if (ibnbd_device_get_info(device, &info)) {
    report("size");
    ibnbd_session_close(session, 1000);
    return 1;
  }
  td->files[0]->real_file_size = info.size;
  fio_file_set_size_known(td->files[0]);
  ibnbd_session_close(session, 1000);
  return 0;
}

static int engine_init(struct thread_data *td) {
  struct job *job = calloc(1, sizeof(*job));

  if (!job) return 1;
  td->io_ops_data = job;
  job->size = 2;
  while (job->size <= td->o.iodepth) job->size *= 2;
  job->done = calloc(job->size, sizeof(*job->done));
  if (!job->done) return 1;
  if (open_volume(td, td_write(td) || td_trim(td), &job->session, &job->device)) return 1;
  job->queue = ibnbd_session_queue(job->session, 0);
  /* Otherwise what was queued leaves in one batch when fio asks for events, which it does as soon as it
   * can queue no more. */
  job->flush_on_commit = td->o.iodepth_batch > 1 || td->o.thinktime || td->o.rate[0] ||
                         td->o.rate[1] || td->o.rate[2] || td->o.rate_iops[0] ||
                         td->o.rate_iops[1] || td->o.rate_iops[2];
  return 0;
}

static void engine_cleanup(struct thread_data *td) {
  struct job *job = td->io_ops_data;

  if (!job) return;
  ibnbd_session_close(job->session, 5000); /* Frees the rest. */
  free(job->done);
  free(job);
  td->io_ops_data = NULL;
}

static int engine_iomem_alloc(struct thread_data *td, size_t size) {
  struct job *job = td->io_ops_data;

  if (ibnbd_buffer_alloc(job->session, size, &job->buffer)) {
    report("allocate buffers");
    return 1;
  }
  td->orig_buffer = ibnbd_buffer_data(job->buffer);
  return 0;
}

static void engine_iomem_free(struct thread_data *td) {
  struct job *job = td->io_ops_data;

  if (!job) return;
  ibnbd_buffer_free(job->buffer);
  job->buffer = NULL;
  td->orig_buffer = NULL;
}

static int engine_io_u_init(struct thread_data *td, struct io_u *io_u) {
  io_u->engine_data = calloc(1, sizeof(struct ibnbd_io));
  return io_u->engine_data ? 0 : 1;
}

static void engine_io_u_free(struct thread_data *td, struct io_u *io_u) {
  free(io_u->engine_data);
  io_u->engine_data = NULL;
}

static void on_done(struct ibnbd_io *io, int result) {
  struct io_u *io_u = io->opaque;
  struct job *job = (struct job *)(uintptr_t)io_u->mmap_data;

  io_u->error = result < 0 ? -result : 0;
  job->done[job->tail++ & (job->size - 1)] = io_u;
}

/* Buffers that fio takes from elsewhere are copied by the library. */
static ibnbd_buffer *buffer_of(struct job *job, const struct io_u *io_u) {
  const char *start = job->buffer ? ibnbd_buffer_data(job->buffer) : NULL;
  const char *data = io_u->xfer_buf;

  if (!start || data < start) return NULL;
  return (size_t)(data - start) + io_u->xfer_buflen <= ibnbd_buffer_size(job->buffer) ? job->buffer
                                                                                     : NULL;
}

static enum fio_q_status engine_queue(struct thread_data *td, struct io_u *io_u) {
  struct job *job = td->io_ops_data;
  struct ibnbd_io *io = io_u->engine_data;
  int error;

  fio_ro_check(td, io_u);
  io_u->mmap_data = job;
  io->opaque = io_u;
  io->done = on_done;
  io->flags = 0;
  io->offset = io_u->offset;
  io->length = io_u->xfer_buflen;
  io->data = NULL;
  io->buffer = NULL;
  switch (io_u->ddir) {
    case DDIR_READ:
    case DDIR_WRITE:
      io->op = io_u->ddir == DDIR_READ ? IBNBD_OP_READ : IBNBD_OP_WRITE;
      if (io_u->ddir == DDIR_WRITE && td->o.sync_io) io->flags = IBNBD_IO_FUA;
      io->data = io_u->xfer_buf;
      io->buffer = buffer_of(job, io_u);
      break;
    case DDIR_TRIM: io->op = IBNBD_OP_DISCARD; break;
    case DDIR_SYNC:
    case DDIR_DATASYNC:
      io->op = IBNBD_OP_FLUSH;
      io->offset = io->length = 0;
      break;
    default: io_u->error = EINVAL; return FIO_Q_COMPLETED;
  }
  error = ibnbd_submit(job->queue, job->device, io);
  if (error == 0) return FIO_Q_QUEUED;
  if (error == -EAGAIN) return FIO_Q_BUSY;
  report("submit");
  io_u->error = -error;
  return FIO_Q_COMPLETED;
}

static int engine_commit(struct thread_data *td) {
  struct job *job = td->io_ops_data;

  return job->flush_on_commit ? ibnbd_queue_flush(job->queue) : 0;
}

static int engine_getevents(struct thread_data *td, unsigned int min, unsigned int max,
                            const struct timespec *limit) {
  struct job *job = td->io_ops_data;
  const int timeout_ms = limit ? (int)(limit->tv_sec * 1000 + limit->tv_nsec / 1000000) : -1;
  unsigned int ready = job->tail - job->head;

  if (ready < max) {
    int ran = ibnbd_queue_poll(job->queue, 0);
    while (ran >= 0 && job->tail - job->head < min) {
      ran = ibnbd_queue_wait(job->queue, timeout_ms);
      if (ran == 0 && limit) break;
      if (td->terminate && ran == 0) break; /* A signal: fio wants to end. */
    }
    if (ran < 0) {
      report("poll");
      return ran;
    }
    ready = job->tail - job->head;
  }
  return ready < max ? ready : max;
}

/* fio calls it once for each of 0..n-1 after getevents() returned n. */
static struct io_u *engine_event(struct thread_data *td, int event) {
  struct job *job = td->io_ops_data;

  return job->done[job->head++ & (job->size - 1)];
}

static int engine_open_file(struct thread_data *td, struct fio_file *file) { return 0; }
static int engine_invalidate(struct thread_data *td, struct fio_file *file) { return 0; }

struct ioengine_ops ioengine = {
  .name = "ibnbd",
  .version = FIO_IOOPS_VERSION,
  .flags = FIO_DISKLESSIO | FIO_NOEXTEND | FIO_NODISKUTIL | FIO_RAWIO,
  .setup = engine_setup,
  .init = engine_init,
  .cleanup = engine_cleanup,
  .queue = engine_queue,
  .commit = engine_commit,
  .getevents = engine_getevents,
  .event = engine_event,
  .open_file = engine_open_file,
  .invalidate = engine_invalidate,
  .iomem_alloc = engine_iomem_alloc,
  .iomem_free = engine_iomem_free,
  .io_u_init = engine_io_u_init,
  .io_u_free = engine_io_u_free,
  .options = options,
  .option_struct_size = sizeof(struct engine_options),
};
