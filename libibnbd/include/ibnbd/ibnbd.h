/* SPDX-License-Identifier: Apache-2.0
 *
 * libibnbd - volumes of an RNBD server (ibnbd-server, or the Linux kernel's), over RDMA or TCP.
 *
 * Conventions.
 *  (1) Handles are opaque.  NULL is never valid unless stated; closing or freeing NULL does
 *      nothing.
 *  (2) Calls return 0 (or a count) or a negative errno; the text is ibnbd_error_message(), valid
 *      on this thread until its next call.
 *  (3) If ibnbd_submit() returns 0 its callback runs exactly once, on the thread of its queue,
 *      never from inside ibnbd_submit(); otherwise never.  Callbacks may submit; they must not
 *      throw, poll, wait or close (-EDEADLK where that would hang).
 *  (4) Structs that may grow start with their size: option structs are initialised with the
 *      ..._INIT macros, and of structs that a call fills in the caller sets struct_size =
 *      sizeof(struct ...) before.  Unknown flags, and reserved fields that are not 0, are refused
 *      (-EINVAL).
 *  (5) A session has queues.  A queue, and IOs submitted on it, belong to one thread at a time;
 *      the thread that polled or submitted last owns it.  Everything else may be called from any
 *      thread, but not from callbacks.  Calls that wait (those with a time-out, and synchronous
 *      IO) meanwhile also poll the queues that the calling thread owns, so that programs with one
 *      thread need not care.  Every queue must be polled, also one without IOs: a path that was
 *      lost connects again only when each of them has let go of it, and that a path's connection of
 *      one queue is dead is found out only while that queue is polled.  Polling seldom costs delay,
 *      and no path.
 *  (6) A session keeps one thread of its own for connecting, heartbeats and reconnecting; it
 *      sleeps otherwise.  All signals are blocked in it.  The handle does not survive fork().
 *  (7) Sizes and offsets are bytes.  A sector is 512 bytes.
 */
#ifndef IBNBD_IBNBD_H
#define IBNBD_IBNBD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

#define IBNBD_VERSION_MAJOR 0
#define IBNBD_VERSION_MINOR 1

typedef struct ibnbd_session ibnbd_session; /* A pairing with one server; shared by its devices. */
typedef struct ibnbd_queue ibnbd_queue;     /* One of a session's queues: submit and poll here. */
typedef struct ibnbd_device ibnbd_device;   /* An open volume. */
typedef struct ibnbd_buffer ibnbd_buffer;   /* Registered memory. */

const char* ibnbd_version(void);       /* "0.1.0" */
const char* ibnbd_error_message(void); /* Never NULL; "" after success. */

/* ---- Logging.  Process-wide; call before opening sessions. ---- */
enum ibnbd_log_level {
  IBNBD_LOG_ERROR = 0,
  IBNBD_LOG_WARN = 1,
  IBNBD_LOG_INFO = 2,
  IBNBD_LOG_DEBUG = 3
};
typedef void (*ibnbd_log_fn)(void* opaque, int level, const char* line);
void ibnbd_set_log(ibnbd_log_fn fn, void* opaque, int level); /* NULL: back to stderr. */

/* ---- Sessions ---- */
struct ibnbd_session_options {
  size_t struct_size;
  const char* name;     /* NULL: made from the host name, the pid and a counter. No '/' or '.'. */
  uint32_t queue_count; /* 1..64 queues, each with a connection of its own. */
  uint32_t connect_timeout_ms; /* Of ibnbd_session_open(). */
  uint32_t flags;              /* IBNBD_SESSION_... */
  uint32_t heartbeat_ms;       /* A seventh of dead_after_ms; set one of them. */
  uint32_t io_depth_max;       /* IOs accepted per queue at once. */
  uint32_t bounce_bytes;       /* Per queue: room for IOs on unregistered memory; 0: refuse them. */
  const char* memory; /* Of ibnbd_buffer_alloc() and the bounce room: "pages" (NULL), "huge" (huge
                       * pages as far as there are some), "memfd" (a file without a name). */
  /* More ways to the server: "[SRC@]DST[:PORT]", separated by spaces; or NULL.  One that cannot be
   * found just now (its name, a route, an RDMA device) is looked for as ibnbd_session_add_path()
   * has it, unless that is all of them. */
  const char* paths;
  /* For a program that may be killed and started again, and then issues again what its predecessor
   * may have left under way: a random number that is kept over restarts, and a name that is, too.
   * The server ends what is left of the predecessor's session, and only then lets this one in. Two
   * sessions with the same server need different numbers and names. 0: none. */
  uint64_t client_id;
  const char* source; /* The local address to come from, on the way that the URI says; or NULL. */
  /* A server that says nothing for so long, not even to heartbeats, is taken for dead, path by
   * path: 1000 to 3600000.  0: 10000, or 35000 with the kernel's server, as its own client does. */
  uint32_t dead_after_ms;
  uint32_t reserved1;
  uint64_t reserved[2];
};
/* Keep trying until connect_timeout_ms instead of failing at the first refusal. */
#define IBNBD_SESSION_RETRY 1u
/* The queues are used by the thread that opens the session and by no other, ever: a little faster.
 * Other threads get -EPERM. */
#define IBNBD_SESSION_ONE_THREAD 2u
/* `paths` are all there are; of the URI the session takes tcp or rdma, and the default port. */
#define IBNBD_SESSION_PATHS_ONLY 4u
/* Return at once and connect in the background, for as long as it takes.  Nothing but a bad option
 * is an error then.  For ibnbd_device_resume(). */
#define IBNBD_SESSION_NO_WAIT 8u
#define IBNBD_SESSION_OPTIONS_INIT                                                             \
  {                                                                                            \
    sizeof(struct ibnbd_session_options), NULL, 1, 30000, 0, 0, 1024, 4u << 20, NULL, NULL, 0, \
        NULL, 0, 0, {                                                                          \
      0, 0                                                                                     \
    }                                                                                          \
  }

/* `uri` is tcp://host[:port] or rdma://host[:port]; an export name in it is ignored. NULL options:
 * defaults. */
int ibnbd_session_open(const char* uri, const struct ibnbd_session_options* options,
                       ibnbd_session** out);
/* Requires: no other thread uses the session, its queues, devices or buffers any more.  Waits up
 * to `timeout_ms` for outstanding IOs; what is left then completes with -ECANCELED from inside
 * this call.  Closes devices that are open and frees buffers that are left.  Returns within
 * `timeout_ms` plus a little in every state of the network: 0, or -ETIMEDOUT if IOs had to be
 * cancelled.  The handle is gone in either case. */
int ibnbd_session_close(ibnbd_session* session, uint32_t timeout_ms);
/* Copies the export's name out of `uri`, percent-decoded: "tcp://h:1/vol%20a" gives "vol a".
 * -EINVAL: not a URI of ours; -ENOENT: it names none; -ENAMETOOLONG: `size` is too small. */
int ibnbd_uri_export(const char* uri, char* name, size_t size);

struct ibnbd_session_info {
  size_t struct_size;
  uint32_t queue_count, queue_depth;
  uint32_t io_size_max; /* What one message carries; larger IOs are split. */
  uint32_t connected;   /* 0 or 1. */
  uint64_t reconnects, connect_failures;
  uint64_t heartbeat_rtt_ns; /* 0: none yet. */
  char address[128];         /* "127.0.0.1:40000@127.0.0.1:1234" */
  uint32_t policy;           /* enum ibnbd_policy */
  uint32_t dead_after_ms;    /* What holds now, never 0. */
  uint64_t reserved[3];
};
int ibnbd_session_get_info(ibnbd_session* session, struct ibnbd_session_info* out);
/* As in the options; from now on.  -EINVAL: neither 0 nor 1000 to 3600000. */
int ibnbd_session_set_dead_after(ibnbd_session* session, uint32_t dead_after_ms);
/* For a watchdog: asks the session's thread for a sign of life, and does not wait.  1: it has
 * answered what it was asked before; 0: not yet. */
int ibnbd_session_is_alive(ibnbd_session* session);
/* Round trip of one control message, in ns. */
int ibnbd_session_ping(ibnbd_session* session, uint32_t timeout_ms, uint64_t* round_trip_ns);

/* ---- Paths: several ways to one server, at most 8.  While one is up IOs go on; what was in flight
 * on one that is lost goes over another, and an old write never lands after a newer one (towards
 * one of our own servers). ---- */
enum ibnbd_policy { /* Which path an IO takes. */
                    IBNBD_POLICY_ADAPTIVE =
                        0, /* All that are well, by work in flight; slow ones get probes only. */
                    IBNBD_POLICY_ROUND_ROBIN = 1,
                    IBNBD_POLICY_MIN_INFLIGHT = 2,
                    IBNBD_POLICY_MIN_LATENCY = 3
};
enum ibnbd_path_state {
  IBNBD_PATH_CONNECTING = 1,
  IBNBD_PATH_UP = 2,
  IBNBD_PATH_DRAINING = 3, /* Lost; the network may still touch our memory. */
  IBNBD_PATH_PAUSING = 4,  /* Until the next attempt to connect. */
  IBNBD_PATH_CLOSING = 5
};
struct ibnbd_path_info {
  size_t struct_size;
  uint32_t id;       /* Stays the same for as long as the path exists. */
  uint32_t state;    /* enum ibnbd_path_state */
  uint32_t weight;   /* Its share of the IOs, 100 by default; 0: only if no other path is up. */
  uint32_t flags;    /* IBNBD_PATH_... */
  uint32_t inflight; /* IOs, and control messages. */
  uint32_t reserved1;
  uint64_t reads, writes, bytes; /* Answered. */
  uint64_t lost;                 /* Those that were in flight when it broke. */
  uint64_t reconnects, connect_failures;
  uint64_t latency_ns;       /* Smoothed; 0: unknown. */
  uint64_t heartbeat_rtt_ns; /* 0: none yet. */
  char path[160];            /* "[SRC@]DST:PORT", names until they were looked up. */
  char address[128];         /* "127.0.0.1:40000@127.0.0.1:1234"; "" before it was connected. */
  char last_error[256];      /* "" if it is up. */
  uint64_t reserved[4];
};
#define IBNBD_PATH_SLOW 1u /* Up, but drained by the policy. */
/* `path`: "[SRC@]DST[:PORT]", the port of the session's URI by default.  Returns soon: the path
 * connects by itself, and goes on trying; before each attempt after one that failed its name, route
 * and RDMA device are looked for anew, on a thread of the library's.  `id` may be NULL.  -EINVAL:
 * not such a text, or weight above 1000; -EEXIST: it is there already; -ENOBUFS: there are 8 paths.
 */
int ibnbd_session_add_path(ibnbd_session* session, const char* path, uint32_t weight, uint32_t* id);
/* Returns when nothing of it is left.  -ENOENT: no such path; -EBUSY: it is the last one;
 * -ETIMEDOUT: it will be removed, but what executes for it at the server takes longer. */
int ibnbd_session_remove_path(ibnbd_session* session, uint32_t id, uint32_t timeout_ms);
int ibnbd_session_set_path_weight(ibnbd_session* session, uint32_t id, uint32_t weight);
int ibnbd_session_set_policy(ibnbd_session* session, uint32_t policy); /* enum ibnbd_policy */
/* Of the path number `index`, from 0 in order of creation; -ENOENT: there are not so many. */
int ibnbd_session_get_path_info(ibnbd_session* session, uint32_t index,
                                struct ibnbd_path_info* out);

struct ibnbd_export_info {
  size_t struct_size;
  char name[256];
  uint64_t size;
  uint32_t logical_block_size;
  uint32_t flags; /* IBNBD_EXPORT_... */
  uint32_t reader_count, writer_count;
  uint64_t reserved[4];
};
#define IBNBD_EXPORT_READ_ONLY 1u
#define IBNBD_EXPORT_WRITE_CACHE 2u
/* Calls `fn` for every export, on this thread; a non-zero return of `fn` ends the list and is
 * returned. -EOPNOTSUPP: the server is not one of ours and cannot tell. */
typedef int (*ibnbd_export_fn)(void* opaque, const struct ibnbd_export_info* info);
int ibnbd_session_list(ibnbd_session* session, uint32_t timeout_ms, ibnbd_export_fn fn,
                       void* opaque);

/* ---- Devices ---- */
enum ibnbd_access { IBNBD_READ_ONLY = 0, IBNBD_READ_WRITE = 1, IBNBD_MIGRATION = 2 };
struct ibnbd_device_options {
  size_t struct_size;
  uint32_t access; /* enum ibnbd_access */
  uint32_t open_timeout_ms;
  /* Loss policy: how long IOs are held when the server is lost; -1: for ever. */
  int64_t fail_after_ms;
  /* For a program that was started again, under the session name and client_id that it had, and
   * repeats IOs of its former process: the writer_epoch of the device that it goes on with.  The
   * open fails if somebody else has had the volume open for writing since.  0: nothing to repeat. */
  uint64_t writer_epoch;
  uint64_t reserved[3];
};
#define IBNBD_DEVICE_OPTIONS_INIT                                                    \
  {                                                                                  \
    sizeof(struct ibnbd_device_options), IBNBD_READ_WRITE, 30000, -1, 0, { 0, 0, 0 } \
  }
int ibnbd_device_open(ibnbd_session* session, const char* name,
                      const struct ibnbd_device_options* options, ibnbd_device** out);
/* Waits for outstanding IOs (their queues must be polled) up to `timeout_ms`, then fences them
 * off: they complete with -ECANCELED.  Returns 0; -ETIMEDOUT if it had to; -ENODEV if it was
 * closed before. */
int ibnbd_device_close(ibnbd_device* device, uint32_t timeout_ms);
int ibnbd_device_set_fail_after(ibnbd_device* device, int64_t fail_after_ms);

struct ibnbd_device_info {
  size_t struct_size;
  uint64_t size;
  uint32_t logical_block_size, physical_block_size;
  uint32_t io_size_max;                                         /* Larger IOs are split. */
  uint32_t discard_max, discard_granularity, discard_alignment; /* 0 max: not supported. */
  uint32_t write_zeroes_max;                                    /* 0: not supported. */
  uint32_t flags;                                               /* IBNBD_DEVICE_... */
  uint32_t state;                                               /* enum ibnbd_device_state, now. */
  uint64_t volume_id;                                           /* 0: the server does not say. */
  char name[256];
  char state_reason[256]; /* What it waits for; "" if nothing. */
  uint64_t writer_epoch;  /* See ibnbd_device_options.  0: not known. */
  /* Which life of the server's machine had it open last: another one may have lost what was not
   * flushed.  One before, as long as no flush has failed for such a loss.  All 0: not known. */
  uint8_t server_instance[16];
  uint64_t held_ms; /* How long IOs have been waiting for the server; 0: they are not. */
  uint64_t reserved[4];
};
#define IBNBD_DEVICE_READ_ONLY 1u
#define IBNBD_DEVICE_WRITE_CACHE 2u
#define IBNBD_DEVICE_FUA 4u
#define IBNBD_DEVICE_SECURE_ERASE 8u
enum ibnbd_device_state {
  IBNBD_STATE_OPEN = 1,
  IBNBD_STATE_HELD = 2,
  IBNBD_STATE_FAILING = 3,
  IBNBD_STATE_CLOSED = 4
};
int ibnbd_device_get_info(ibnbd_device* device, struct ibnbd_device_info* out);
/* For a program that goes on with the device of another process, which the kernel holds, say: what
 * ibnbd_device_get_info() said there, and the name, are in `was`.  Returns at once; IOs are held
 * until ibnbd_device_settle() was called, and the server is there and gives the same volume back.
 * A flush fails (-EIO) if the server's machine lost power since `was`.  The loss policy counts from
 * was->held_ms ago.  open_timeout_ms means nothing here.  -EINVAL: `was` is no device. */
int ibnbd_device_resume(ibnbd_session* session, const struct ibnbd_device_info* was,
                        const struct ibnbd_device_options* options, ibnbd_device** out);
/* Of a device that was resumed: what the other process left comes from now on, for up to
 * `window_ms`.  If the loss policy's time ends within the window, it fails, and the volume is opened
 * behind it; else at once. */
int ibnbd_device_settle(ibnbd_device* device, uint32_t window_ms);
/* Asks the server how large the volume is now: if it has grown, ibnbd_device_get_info() says so and
 * IOs may go there from then on.  A volume that has shrunk is an error, and nothing changes.
 * -ENOTCONN: the device is not open now, as when the server is lost; -ETIMEDOUT: no answer in time.
 */
int ibnbd_device_refresh(ibnbd_device* device, uint32_t timeout_ms);

/* ---- Buffers.  Page-aligned memory is best; any alignment is accepted. ---- */
/* Zeroed, page aligned. */
int ibnbd_buffer_alloc(ibnbd_session* session, size_t size, ibnbd_buffer** out);
int ibnbd_buffer_register(ibnbd_session* session, void* memory, size_t size, ibnbd_buffer** out);
void* ibnbd_buffer_data(const ibnbd_buffer* buffer);
size_t ibnbd_buffer_size(const ibnbd_buffer* buffer);
/* Memory "memfd": the file that an allocated buffer is the beginning of, for other processes to
 * map; the buffer's, do not close it.  -ENOTSUP: of other memory. */
int ibnbd_buffer_fd(const ibnbd_buffer* buffer);
/* Requires: no IO outstanding on it.  Frees what ibnbd_buffer_alloc() allocated. */
void ibnbd_buffer_free(ibnbd_buffer* buffer);

/* ---- IO ---- */
enum ibnbd_op {
  IBNBD_OP_READ = 0,
  IBNBD_OP_WRITE = 1,
  IBNBD_OP_FLUSH = 2,
  IBNBD_OP_DISCARD = 3,
  IBNBD_OP_SECURE_ERASE = 4,
  IBNBD_OP_WRITE_ZEROES = 5
};
#define IBNBD_IO_FUA 1u      /* Write, write-zeroes: on stable storage before it completes. */
#define IBNBD_IO_PREFLUSH 2u /* Write: everything completed before is made stable first. */
#define IBNBD_IO_NO_UNMAP 4u /* Write-zeroes: the blocks stay allocated. */

struct ibnbd_io;
typedef void (*ibnbd_done_fn)(struct ibnbd_io* io, int result); /* 0 or a negative errno. */
/* The application's storage, untouched by it from submit to done.  Zero it once; fields may be
 * reused. */
struct ibnbd_io {
  uint32_t op;    /* enum ibnbd_op */
  uint32_t flags; /* IBNBD_IO_... */
  uint64_t offset;
  uint64_t length;      /* At most 2 GiB - 4096 for reads and writes.  0 for flush. */
  void* data;           /* Reads and writes. */
  ibnbd_buffer* buffer; /* The buffer `data` lies in; NULL: unregistered, the library copies. */
  ibnbd_done_fn done;
  void* opaque;          /* The application's. */
  uint64_t reserved[2];  /* 0. */
  uint64_t internal[32]; /* The library's. */
};

/* An IO that has not completed.  Of one on unregistered memory, the pieces that are under way. */
struct ibnbd_io_info {
  size_t struct_size;
  uint64_t offset, length;
  uint64_t waited_ns; /* Since it was submitted. */
  uint32_t op;        /* enum ibnbd_op */
  uint32_t queue;
  uint32_t waits_for; /* enum ibnbd_waits_for */
  uint32_t reserved32;
  uint64_t reserved[3];
};
enum ibnbd_waits_for {
  IBNBD_WAITS_FOR_ANSWER = 0, /* Given to a path. */
  IBNBD_WAITS_FOR_TURN = 1,   /* Others of its queue go first. */
  IBNBD_WAITS_FOR_SERVER = 2  /* Held: see state_reason of ibnbd_device_get_info(). */
};
/* Calls `fn` for every IO that is outstanding, on this thread; a non-zero return of `fn` ends the
 * list and is returned.  -ETIMEDOUT: a queue was not polled by its owner for so long. */
typedef int (*ibnbd_io_fn)(void* opaque, const struct ibnbd_io_info* info);
int ibnbd_device_list_ios(ibnbd_device* device, uint32_t timeout_ms, ibnbd_io_fn fn, void* opaque);

/* Queue `index` of the session, valid until the session is closed. */
ibnbd_queue* ibnbd_session_queue(ibnbd_session* session, uint32_t index);
/* -EINVAL misaligned, out of range or an unknown flag; -EPERM a write to a read-only device;
 * -EOPNOTSUPP; -EAGAIN more than io_depth_max IOs outstanding on this queue: poll, then try again;
 * -ENODEV the device was closed; -EBUSY the IO is outstanding already. */
int ibnbd_submit(ibnbd_queue* queue, ibnbd_device* device, struct ibnbd_io* io);
/* Makes progress without waiting and calls done callbacks, at most `budget` (0: no limit).
 * Returns how many callbacks ran.  Submitted IOs leave in batches: at the end of a poll, or by
 * ibnbd_queue_flush(). */
int ibnbd_queue_poll(ibnbd_queue* queue, uint32_t budget);
int ibnbd_queue_flush(ibnbd_queue* queue);
/* Polls; if no callback ran, waits up to `timeout_ms` (-1: no limit), spinning briefly first.
 * Returns how many callbacks ran; 0 also after a signal, or when woken for something else than an
 * IO of the application. */
int ibnbd_queue_wait(ibnbd_queue* queue, int timeout_ms);
/* For event loops: readable when a poll would find something.  Call ibnbd_queue_prepare_sleep()
 * before each sleep; if it returns 1 there is something already: poll instead. */
int ibnbd_queue_fd(ibnbd_queue* queue);
int ibnbd_queue_prepare_sleep(ibnbd_queue* queue);
/* Any thread: a thread that sleeps in ibnbd_queue_wait() on this queue returns, or does so the
 * next time; the queue's fd becomes readable. */
int ibnbd_queue_wake(ibnbd_queue* queue);

/* ---- Synchronous IO: submits on `queue` and polls it until done; other callbacks may run. ---- */
int ibnbd_pread(ibnbd_queue* queue, ibnbd_device* device, void* data, size_t size, uint64_t offset);
int ibnbd_pwrite(ibnbd_queue* queue, ibnbd_device* device, const void* data, size_t size,
                 uint64_t offset, uint32_t flags);
int ibnbd_flush(ibnbd_queue* queue, ibnbd_device* device);
int ibnbd_discard(ibnbd_queue* queue, ibnbd_device* device, uint64_t size, uint64_t offset);
int ibnbd_write_zeroes(ibnbd_queue* queue, ibnbd_device* device, uint64_t size, uint64_t offset,
                       uint32_t flags);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif /* IBNBD_IBNBD_H */
