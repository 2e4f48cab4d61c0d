/* What the files of the Python module share. */
#ifndef IPCBUS_NATIVE_H
#define IPCBUS_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdbool.h>

#include "arena.h"
#include "ring.h"
#include "wait.h"

/* Copies of more bytes than this are made without the interpreter's lock. */
#define LONG_COPY ((size_t)64 * 1024)

/* Bytes of the head that send_bytes puts before a message, and recv_bytes takes away. */
#define HEAD_BYTES 4u

/* ------------------------------------------------------------------ errors.c */

extern PyObject *ChannelBroken, *ChannelClosed, *ChannelEmpty, *ChannelFull, *EndOfChannel;

int errors_import(void);

/* Raise ChannelBroken for memory that makes no sense. Returns NULL. */
PyObject *raise_damaged(void);
PyObject *raise_closed(void);

/* ------------------------------------------------------------------ segment.c */

/* The memory of one channel, mapped into this process, and the descriptors that belong to it. */
typedef struct {
    PyObject_HEAD
    struct ring ring;
    struct arena arena;
    void *memory;
    size_t mapped;
    int memory_fd;
    int receivers_bell;
    int senders_bell;
} Segment;

extern PyTypeObject *SegmentType;

PyTypeObject *segment_type(PyObject *module);
PyObject *segment_create(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* ------------------------------------------------------------------ side.c */

/* What both ends have in common. */
struct side {
    Segment *segment;
    bool closed;
    bool watched;   /* the doorbell's descriptor was given out: it has to ring whenever there was nothing to do */
    unsigned users; /* calls inside; the last to leave a closed end lets go of the segment */
    struct spin spin;
    struct owner *owner; /* of extents; claimed with the first large message */
};

/* How a Sender and a Receiver begin, for the methods that are the same. */
typedef struct {
    PyObject_HEAD
    struct side side;
} End;

PyObject *end_depth(End *self, PyObject *nothing);
/* Close an end in a forked child, which has none of the threads that may have been inside. */
PyObject *end_abandon(End *self, PyObject *nothing);
PyObject *end_closed(End *self, void *closure);

/* Begin and end a call; the first raises ChannelClosed. */
bool side_enter(struct side *side);
void side_leave(struct side *side);
/* Close an end. Calls that are blocked in it wake up where there is a bell for them. */
void side_close(struct side *side, struct bell *bell);

/* Turn a timeout (None, or seconds) into a moment of the monotonic clock; false with an exception set. 0 stays 0. */
bool side_moment(PyObject *timeout, int64_t *moment);

/* Spin until `done` says so or it does not pay any more; the interpreter's lock is let go of after an instant. */
bool side_spin(struct side *side, bool (*done)(const void *), const void *what, int64_t until);

/* Read a head; false with an exception set. */
bool side_head(PyObject *bytes, unsigned char *head);

/* The moment until which to wait for a lock that somebody else has. Not to wait at all would make a full or an empty
 * channel of one whose lock is taken for an instant. */
int64_t side_patience(int64_t until);

/* ------------------------------------------------------------------ sender.c, receiver.c, mapping.c */

PyTypeObject *sender_type(PyObject *module);
PyTypeObject *receiver_type(PyObject *module);
PyTypeObject *mapping_type(PyObject *module);

/* Map an extent for a receiver, which may write to its copy; NULL with errno. */
void *mapping_map(const Segment *segment, const struct held *held);

/* Return the message that lies in a mapped extent as a tuple of writable views, whose memory goes with the last of them;
 * NULL with an exception set, and everything freed. */
PyObject *mapping_frame(Segment *segment, const struct held *held, void *memory, const uint64_t *sizes, unsigned count);

/* Give an extent back that is not mapped, or not looked at any more. */
void mapping_give_back(Segment *segment, struct held *held);

/* Have forked children inherit copies of what is mapped, so that it can be used again here. Once per process. */
void mapping_watch_forks(void);

/* Where a part of a message lies in its extent: arrays want to be aligned. */
static inline uint64_t extent_align(uint64_t offset)
{
    return (offset + LINE - 1) / LINE * LINE;
}

/* What the ring says of a message in an extent; the sizes of its parts follow, 64 bits each. */
struct extent_record {
    uint64_t index;
    uint64_t bytes;
};

#endif
